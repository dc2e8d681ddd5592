"""One feature map of any encoder: tokens of a vision transformer, or one level of a pyramid."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.backbones import ModelError, Normalise
from models.backbones.vision_transformer import VisionTransformer

FEATURES = ("tokens", "normalised", "keys")


class FeatureMap(nn.Module):
    """The features of an encoder, with its normalisation of images.

    Args:
        encoder: a ``VisionTransformer``, or a pyramid of ``build_backbone``.
        feature: of a transformer, ``tokens`` of the last block, ``normalised`` ones, or ``keys``.
        level: of a pyramid, the stride of the map.
        deviation: of the images' channels; ``None`` takes the encoder's.

    Attributes:
        stride: of the map, in pixels. Sides of images are multiples of it.

    Raises:
        ModelError: the pyramid has no such level.
    """

    def __init__(
        self,
        encoder: nn.Module,
        feature: str,
        level: int = 16,
        deviation: tuple[float, float, float] | None = None,
    ):
        super().__init__()
        self.encoder, self.feature = encoder, feature
        self.is_transformer = isinstance(encoder, VisionTransformer)
        if not self.is_transformer and level not in encoder.strides:
            found = list(encoder.strides)
            raise ModelError(f"there is no map at stride {level}; the encoder has them at {found}")
        self.stride = encoder.patch if self.is_transformer else level
        self.number = None if self.is_transformer else encoder.strides.index(level)
        self.normalise = Normalise(encoder.mean, deviation or encoder.deviation)

    def forward(self, images: Tensor, size: tuple[int, int]) -> Tensor:
        """Features (B, C, h, w) of images (B, 3, H, W), uint8, which are resized bilinearly."""
        images = self.normalise(images)
        if images.shape[2:] != torch.Size(size):
            images = F.interpolate(images, size, mode="bilinear", align_corners=False)
        if not self.is_transformer:
            return self.encoder(images)[self.number]
        tokens = self.encoder(images, class_token=self.feature != "keys")
        features = tokens.keys if self.feature == "keys" else tokens.patches
        if self.feature == "normalised":
            features = self.encoder.encoder.norm(features)
        return features.transpose(1, 2).unflatten(2, tokens.grid)
