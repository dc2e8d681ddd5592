"""Slot attention's own transformer in the place of FAT: Table 2 without "FAT"."""

import torch
from torch import Tensor, nn

from models.slot_attention import SlotAttention


class PlainTransformer(nn.Module):
    """Updates features as slot attention updates slots; groups of features are its inputs.

    Args:
        channels: C.
        own_groups: True: each feature uses its own group alone, as a slot its nearest features.
            False: all groups.
    """

    def __init__(self, channels: int, own_groups: bool = False):
        super().__init__()
        self.attention = SlotAttention(channels)
        self.own_groups = own_groups

    def forward(self, features: Tensor, groups: Tensor) -> Tensor:
        """Features (B, L, C) and G groups of K features (B, G, K, C) to features (B, L, C)."""
        keep = None
        if self.own_groups:  # L = G
            own = torch.eye(groups.shape[1], dtype=torch.bool, device=groups.device)
            keep = own.repeat_interleave(groups.shape[2], dim=1)
        return self.attention(features, groups.flatten(1, 2), keep)
