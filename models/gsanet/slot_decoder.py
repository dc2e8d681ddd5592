"""Cosine slot decoder: correlation maps of features and slots (Sec. 3.6, eq. 4)."""

import torch
import torch.nn.functional as F
from torch import Tensor

from models.precision import full_precision


def correlation_maps(local: Tensor, prototypes: Tensor) -> Tensor:
    """Pixel-wise cosine similarity, CM of eq. 4.

    Args:
        local: X_L (B, C, H, W).
        prototypes: P_A or P_Sr (B, K, C).

    Returns:
        (B, K, H, W) in [-1, 1], float32.
    """
    similarity = cosine_similarity(prototypes, local.flatten(2).transpose(1, 2))
    return similarity.unflatten(2, local.shape[2:])


def cosine_similarity(a: Tensor, b: Tensor) -> Tensor:
    """Cosine of every feature of ``a`` (B, N, C) with every one of ``b`` (B, K, C): (B, N, K).

    Always in float32 or better: bfloat16 knows only 256 steps between 1 and 2.
    """
    with torch.autocast(a.device.type, enabled=False):
        a, b = full_precision(a), full_precision(b)
        # The floor keeps the gradient of an all-zero feature finite.
        return F.normalize(a, dim=2, eps=1e-6) @ F.normalize(b, dim=2, eps=1e-6).transpose(1, 2)
