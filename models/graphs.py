"""Parts of networks as graphs of tensors alone, see ``models.interface.Graph``."""

import torch
from torch import Tensor, nn

from models.backbones.feature_map import FeatureMap
from models.backbones.vision_transformer import VisionTransformer
from models.interface import Graph


def pictures(count: int, height: int, width: int) -> Tensor:
    """Examples of images or flow maps, uint8 (count, 3, H, W)."""
    return torch.full((count, 3, height, width), 127, dtype=torch.uint8)


def key_graphs(encoder: VisionTransformer, height: int, width: int) -> dict[str, Graph]:
    """The keys (B, C, h, w) of a vision transformer, which networks with DINO features look at."""
    inputs = {"image": pictures(2, height, width)}
    return {"features": Graph(_Keys(encoder), inputs, ("keys",), {"image": {0: "batch"}})}


class _Keys(nn.Module):
    def __init__(self, encoder: VisionTransformer):
        super().__init__()
        self.map = FeatureMap(encoder, "keys")

    def forward(self, image: Tensor) -> tuple[Tensor]:
        return (self.map(image, image.shape[2:]),)
