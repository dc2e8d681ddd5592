"""Slot generator: guided slots for foreground and background (Sec. 3.2, Figure 3a)."""

import torch
from torch import Tensor, nn

from models.ops import global_weighted_average_pooling

NUM_SLOTS = 2  # foreground first, then background (N_S)


class SlotGenerator(nn.Module):
    """Guided slots P_S: mean local features under soft masks that the target frame proposes."""

    def __init__(self, channels: int):
        super().__init__()
        self.to_masks = nn.Conv2d(channels, NUM_SLOTS, kernel_size=1)

    def forward(self, target: Tensor, local: Tensor) -> tuple[Tensor, Tensor]:
        """X_T (B, C, H, W) and X_L (B, C_L, H, W) to P_S (B, S, C_L) and X_S (B, S, H, W)."""
        logits = self.to_masks(target)  # X_S
        masks = logits.softmax(dim=1)  # M_S, eq. 1
        return global_weighted_average_pooling(local, masks), logits  # P_S, eq. 2


class RandomSlots(nn.Module):
    """Slots that do not depend on the frame: Table 2 without "GS".

    They are Gaussian, as in slot attention (Locatello et al., 2020). Each slot has its own mean and
    deviation, because slot 0 must become the foreground. In evaluation the slots are the means.
    """

    def __init__(self, channels: int):
        super().__init__()
        self.mean = nn.Parameter(torch.randn(NUM_SLOTS, channels) * channels**-0.5)
        self.log_deviation = nn.Parameter(torch.full((NUM_SLOTS, channels), -2.0))

    def forward(self, batch: int) -> Tensor:
        """Slots (B, S, C) for a batch of that size."""
        mean = self.mean.expand(batch, -1, -1)
        if not self.training:
            return mean
        return mean + self.log_deviation.exp() * torch.randn_like(mean)
