"""Small functions of tensors that several boxes share."""

from contextlib import nullcontext

import torch
import torch.nn.functional as F
from torch import Tensor

from models.precision import full_precision, without_autocast


def global_weighted_average_pooling(features: Tensor, masks: Tensor) -> Tensor:
    """Mean feature under each mask: GWAP, the P = GWAP(X, M) of eq. 2.

    Args:
        features: X (B, C, H, W).
        masks: M (B, K, H, W), not negative.

    Returns:
        (B, K, C); zeros for a mask that is zero everywhere.
    """
    # A sum over hundreds of pixels has more digits than bfloat16.
    with without_autocast(features):
        features, masks = full_precision(features.flatten(2)), full_precision(masks.flatten(2))
        total = masks.sum(dim=2, keepdim=True)
        return masks @ features.transpose(1, 2) / total.clamp(min=1e-6)


def soft_region_features(embedded: Tensor) -> Tensor:
    """Mean feature of each soft object region: the masks M_G of eq. 3, and their GWAP.

    Each channel's softmax over the positions is a soft region. It sums to one, so the mean is a
    product of matrices.

    Args:
        embedded: X_G (N, C, H, W).

    Returns:
        (N, C, C): one feature per region, in float32 or better.
    """
    # The softmax runs over thousands of positions; in float32, the regions keep small weights.
    with without_autocast(embedded):
        pixels = full_precision(embedded).flatten(2)
        return pixels.softmax(dim=2) @ pixels.transpose(1, 2)


def cosine_similarity(a: Tensor, b: Tensor) -> Tensor:
    """Cosine of every feature of ``a`` (B, N, C) with every one of ``b`` (B, K, C): (B, N, K).

    Always in float32 or better: bfloat16 knows only 256 steps between 1 and 2.
    """
    with without_autocast(a):
        a, b = full_precision(a), full_precision(b)
        # The floor keeps the gradient of an all-zero feature finite.
        return F.normalize(a, dim=2, eps=1e-6) @ F.normalize(b, dim=2, eps=1e-6).transpose(1, 2)


def correlation_maps(features: Tensor, prototypes: Tensor) -> Tensor:
    """Pixel-wise cosine similarity, CM of eq. 4.

    Args:
        features: X_L (B, C, H, W).
        prototypes: P_A or P_Sr (B, K, C).

    Returns:
        (B, K, H, W) in [-1, 1], float32.
    """
    similarity = cosine_similarity(prototypes, features.flatten(2).transpose(1, 2))
    return similarity.unflatten(2, features.shape[2:])


def gather_features(features: Tensor, indices: Tensor) -> Tensor:
    """The features (B, M, C) at ``indices`` (B, S, N), as (B, S, N, C)."""
    batch = torch.arange(features.shape[0], device=features.device)[:, None, None]
    return features[batch, indices]


def resize(x: Tensor, size: tuple[int, int]) -> Tensor:
    """Bilinear interpolation of (B, C, H, W) to ``size``."""
    # On GPUs autocast makes it float32, which doubles the traffic of the layers that follow.
    # Training needs float32: the gradient is summed in the type of x, with up to 4096 addends at a
    # factor of 32, and bfloat16 stops growing after 256.
    with nullcontext() if torch.is_grad_enabled() else without_autocast(x):
        return F.interpolate(x, size=tuple(size), mode="bilinear", align_corners=False)
