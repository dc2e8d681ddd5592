"""Cosine slot decoder: similarity of the target frame to features and slots (Sec. 3.6, eq. 4)."""

import torch
from torch import Tensor

from models.ops import correlation_maps


def decode_slots(
    local: Tensor, aggregated: Tensor, slots: Tensor | None
) -> tuple[Tensor, Tensor | None]:
    """Correlation maps CM_A of the aggregated features and CM_Sr of the slots.

    X_L (B, C, H, W), P_A (B, M, C) and P_Sr (B, S, C) give both kinds together, (B, M + S, H, W)
    in [-1, 1], and those of the slots alone. An ablation may have no slots (``None``).
    """
    maps = correlation_maps(local, aggregated)  # CM_A
    if slots is None:
        return maps, None
    slot_maps = correlation_maps(local, slots)  # CM_Sr
    return torch.cat([maps, slot_maps], dim=1), slot_maps  # CM_RGB of eq. 4
