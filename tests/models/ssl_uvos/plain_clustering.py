"""The clustering of SSL-UVOS as its definition says it: a reference for results and speed.

All attention maps of a window at once, in both passes over the video; both terms of the divergence
between all tokens, before and after the mean shift; a loop over all tokens.
"""

import torch
from torch import Tensor


def partition(queries: Tensor, columns: Tensor, distance: float, window: int = 3) -> Tensor:
    """The cluster of every token of a video, numbered by the order of the centres, (T * N,).

    Args:
        queries: of all frames, (T, H, N, d).
        columns: keys of the key frames, (H, M, d).
        distance: tau, in nats.
        window: frames that are clustered at once.
    """
    centres = []
    for part in queries.split(window):
        maps = attention(part, columns)
        near = (divergence(maps, maps) <= distance).float()
        shifted = near @ maps
        centres.append(merge(shifted / shifted.sum(dim=1, keepdim=True), distance))
    centres = torch.cat(centres)
    while len(merged := merge(centres, distance)) < len(centres):
        centres = merged
    parts = queries.split(window)
    return torch.cat([divergence(attention(p, columns), centres).argmin(dim=1) for p in parts])


def attention(queries: Tensor, columns: Tensor) -> Tensor:
    """Maps of a window (T, H, N, d), mean over the heads: (T * N, M)."""
    tokens = queries.transpose(0, 1).flatten(1, 2)
    logits = tokens @ columns.transpose(1, 2) * queries.shape[-1] ** -0.5
    return logits.softmax(dim=-1).mean(dim=0)


def divergence(p: Tensor, q: Tensor) -> Tensor:
    """Symmetric Kullback-Leibler divergence of all pairs: cross-entropies less the entropies."""
    log_p, log_q = (x.clamp(min=1e-12).log() for x in (p, q))
    own, other = (p * log_p).sum(dim=1), (q * log_q).sum(dim=1)
    return own[:, None] + other - p @ log_q.T - (q @ log_p.T).T


def merge(maps: Tensor, distance: float) -> Tensor:
    """The means of groups: each token in order takes all free tokens near it."""
    near = divergence(maps, maps) <= distance
    free = torch.ones(len(maps), dtype=torch.bool)
    centres = []
    for token in range(len(maps)):
        if free[token]:
            group = near[token] & free
            group[token] = True
            centres.append(maps[group].mean(dim=0))
            free &= ~group
    return torch.stack(centres)
