"""Inter-frame attention, IFA, of Dual Prototype Attention (Cho, Lee et al., arXiv 2211.12036)."""

import torch
from torch import Tensor, nn

from models.blocks import conv_norm_relu
from models.ops import attend, correlation_maps, soft_region_features


class InterFrameAttention(nn.Module):
    """IFA of one stream, at the last stage of its encoder, which has ``width`` channels.

    Queries, keys and values have C = ``channels``, and as many prototypes.
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
        """The prototypes of a query frame attend to those of R reference frames, in any order.

        Features (B, width, H, W) and references (B, R, 2, C, C) to features after IFA and its
        correlation map (B, C, H, W).
        """
        query = self.to_query(features)
        keys, values = references.unbind(dim=2)
        attended = attend(soft_region_features(query), keys.flatten(1, 2), values.flatten(1, 2))
        correlation = correlation_maps(query, attended)
        fused = self.fuse(torch.cat([features, correlation.to(features.dtype)], dim=1))
        return fused, correlation
