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
    # A sum over hundreds of pixels needs more digits than bfloat16 has.
    with without_autocast(features):
        features, masks = full_precision(features.flatten(2)), full_precision(masks.flatten(2))
        total = masks.sum(dim=2, keepdim=True)
        return masks @ features.transpose(1, 2) / total.clamp(min=1e-6)


def soft_region_features(embedded: Tensor) -> Tensor:
    """Mean feature of each soft object region: the masks M_G of eq. 3, and their GWAP.

    Each channel's softmax over the positions is a soft region. It sums to one, so that the mean
    needs no division. X_G (N, C, H, W) gives (N, C, C), one feature per region, in float32 or
    better.
    """
    # Over thousands of positions bfloat16 would lose small weights.
    with without_autocast(embedded):
        pixels = full_precision(embedded).flatten(2)
        return pixels.softmax(dim=2) @ pixels.transpose(1, 2)


def cosine_similarity(a: Tensor, b: Tensor) -> Tensor:
    """Cosines of ``a`` (B, N, C) and ``b`` (B, K, C), (B, N, K), in float32 or better."""
    with without_autocast(a):
        a, b = full_precision(a), full_precision(b)
        # eps keeps the gradient of an all-zero feature finite.
        return F.normalize(a, dim=2, eps=1e-6) @ F.normalize(b, dim=2, eps=1e-6).transpose(1, 2)


def correlation_maps(features: Tensor, prototypes: Tensor) -> Tensor:
    """Pixel-wise cosine similarity, CM of eq. 4, float32 (B, K, H, W) in [-1, 1].

    ``features`` are X_L (B, C, H, W), ``prototypes`` P_A or P_Sr (B, K, C).
    """
    similarity = cosine_similarity(prototypes, features.flatten(2).transpose(1, 2))
    return similarity.unflatten(2, features.shape[2:])


def attention(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """Scaled dot-product attention: (B, H, Q, C), (B, H, K, C), (B, H, K, D) to (B, H, Q, D).

    On the CPU in bfloat16 the scores are rounded to it, too.
    """
    if query.device.type != "cpu" or query.dtype != torch.bfloat16:
        return F.scaled_dot_product_attention(query, key, value)
    # There, with few keys, torch's own kernel takes up to twice as long.
    weights = (query * query.shape[-1] ** -0.5) @ key.transpose(2, 3)
    return weights.softmax(dim=3) @ value


def attend(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """Scaled dot-product attention of one head: (B, Q, C), (B, K, C), (B, K, D) to (B, Q, D)."""
    # With an axis of heads GPUs have faster kernels, and the network can be exported.
    heads = (x.unsqueeze(1) for x in (query, key, value))
    return attention(*heads).squeeze(1)


def gather_features(features: Tensor, indices: Tensor) -> Tensor:
    """The features (B, M, C) at ``indices`` (B, S, N), as (B, S, N, C)."""
    batch = torch.arange(features.shape[0], device=features.device)[:, None, None]
    return features[batch, indices]


def resize(x: Tensor, size: tuple[int, int]) -> Tensor:
    """Bilinear interpolation of (B, C, H, W) to ``size``."""
    # On GPUs autocast would make it float32. Only training needs that: its backward pass sums up to
    # 4096 values, too many for bfloat16. Inference would only get slower.
    with nullcontext() if torch.is_grad_enabled() else without_autocast(x):
        return F.interpolate(x, size=tuple(size), mode="bilinear", align_corners=False)
