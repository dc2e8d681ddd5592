"""Inter-frame attention, IFA, of Dual Prototype Attention (Cho, Lee et al., arXiv 2211.12036)."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.blocks import conv_norm_relu
from models.ops import correlation_maps, soft_region_features


class InterFrameAttention(nn.Module):
    """IFA of one stream, at the last stage of its encoder.

    Args:
        width: channels of the stage's features.
        channels: C, of queries, keys and values; each has as many prototypes.
    """

    def __init__(self, width: int, channels: int):
        super().__init__()
        self.to_query = nn.Conv2d(width, channels, 1)
        self.to_key = nn.Conv2d(width, channels, 1, bias=False)  # the softmax would cancel it
        self.to_value = nn.Conv2d(width, channels, 1)
        self.fuse = conv_norm_relu(width + channels, width, 1)

    def encode_references(self, features: Tensor) -> Tensor:
        """Reference frames (N, width, H, W) to key and value prototypes, (N, 2, C, C)."""
        keys, values = self.to_key(features), self.to_value(features)
        return torch.stack([soft_region_features(keys), soft_region_features(values)], dim=1)

    def forward(self, features: Tensor, references: Tensor) -> tuple[Tensor, Tensor]:
        """The query's prototypes attend to those of all reference frames.

        Args:
            features: of the query frame (B, width, H, W).
            references: keys and values of R frames in any order (B, R, 2, C, C).

        Returns:
            The features after IFA, (B, width, H, W), and its correlation map (B, C, H, W).
        """
        query = self.to_query(features)
        keys, values = references.unbind(dim=2)
        attended = F.scaled_dot_product_attention(
            soft_region_features(query), keys.flatten(1, 2), values.flatten(1, 2)
        )
        correlation = correlation_maps(query, attended)
        fused = self.fuse(torch.cat([features, correlation.to(features.dtype)], dim=1))
        return fused, correlation
