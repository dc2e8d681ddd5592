"""Clusters of attention maps over a whole video, by the symmetric Kullback-Leibler divergence.

A map is a distribution over M key tokens. In each window of frames, one step of mean shift and a
greedy merging give centres; the centres of all windows are merged until their number stays. Every
token of the video then belongs to the centre nearest to its own map.

The result depends on the order of the tokens (frame, row, column). It equals that of the plain
algorithm, which computes all distances of all tokens several times.
"""

from collections.abc import Iterable
from typing import NamedTuple

import torch
from torch import Tensor

FLOOR = 1e-12  # of a probability: sharp maps have zeros, whose logarithm is not finite
LEADERS = 64  # candidates for new groups that are compared with all other maps at once


class Maps(NamedTuple):
    """Distributions (n, M) with their logarithms and sums of p log p, (n,)."""

    p: Tensor
    log: Tensor
    negative_entropy: Tensor

    @classmethod
    def of(cls, p: Tensor) -> "Maps":
        """From probabilities (n, M), which are changed in place: zeros get a small floor."""
        p.clamp_(min=FLOOR)
        p /= p.sum(dim=1, keepdim=True)
        log = p.log()
        return cls(p, log, torch.einsum("nm,nm->n", p, log))  # without a product in memory

    def at(self, index: Tensor | slice) -> "Maps":
        """Those at ``index``."""
        return Maps(self.p[index], self.log[index], self.negative_entropy[index])


def divergence(a: Maps, b: Maps) -> Tensor:
    """Symmetric Kullback-Leibler divergence of all pairs, KL(a | b) + KL(b | a), (n, m) in nats."""
    cross = a.p @ b.log.T
    cross += a.log @ b.p.T
    return a.negative_entropy[:, None] + b.negative_entropy - cross


def mean_shift(maps: Maps, distance: float) -> tuple[Tensor, Tensor]:
    """One step of mean shift: every map becomes the mean of all maps that are near it.

    Tokens with the same neighbours get the same map, which is computed once.

    Returns:
        The different shifted maps (U, M), in the order of their first tokens, and how many tokens
        have each, (U,).
    """
    near = _near(maps, distance)
    first, sizes = _distinct(near)
    shifted = near[first].to(maps.p.dtype) @ maps.p
    return shifted / shifted.sum(dim=1, keepdim=True), sizes


def _near(maps: Maps, distance: float) -> Tensor:
    """Which maps are near each other, (n, n): one product gives both terms of the divergence."""
    cross = maps.p @ maps.log.T
    near = torch.empty(cross.shape, dtype=torch.bool, device=cross.device)
    for rows in torch.arange(len(cross), device=cross.device).split(256):
        both = cross[rows] + cross[:, rows].T
        near[rows] = maps.negative_entropy[rows, None] + maps.negative_entropy - both <= distance
        near[rows, rows] = True  # rounding, too, leaves a map near itself
    return near


def _distinct(rows: Tensor) -> tuple[Tensor, Tensor]:
    """The first of each kind of equal rows (n, n), in their order, and how many are equal."""
    # A random hash: equal rows get equal keys.
    generator = torch.Generator().manual_seed(0)
    weights = torch.randint(-(2**62), 2**62, (len(rows),), generator=generator).to(rows.device)
    keys = torch.cat([torch.where(part, weights, 0).sum(dim=1) for part in rows.split(256)])
    _, group, size = keys.unique(return_inverse=True, return_counts=True)
    numbers = torch.arange(len(rows), device=rows.device)
    first = torch.full_like(size, len(rows)).scatter_reduce(0, group, numbers, "amin")
    order = first.argsort()
    return first[order], size[order]


def greedy_merge(maps: Tensor, sizes: Tensor | None, distance: float) -> Tensor:
    """Merge maps greedily, in their order: the first free one takes all free ones near it.

    Only the maps that begin a group are compared with the others.

    Args:
        maps: (n, M).
        sizes: how often each map counts in its group's mean, (n,); once if ``None``.
        distance: the largest divergence at which two maps are near.

    Returns:
        The groups' means (C, M), in the order in which the groups were begun.
    """
    free = Maps.of(maps.clone())
    weights = torch.ones(len(maps)) if sizes is None else sizes
    weights = weights.to(free.p)
    centres = []
    while len(free.p):
        near = divergence(free.at(slice(LEADERS)), free) <= distance
        near.fill_diagonal_(True)
        leaders = _leaders(near[:, : len(near)])
        near = near[leaders]
        group = near.int().argmax(dim=0)  # the first leader that is near
        taken = near.any(dim=0)
        share = torch.where(torch.arange(len(near), device=near.device)[:, None] == group, near, 0)
        share = share * weights
        centres.append(share @ free.p / share.sum(dim=1, keepdim=True))
        free, weights = free.at(~taken), weights[~taken]
    return torch.cat(centres)


def _leaders(near: Tensor) -> Tensor:
    """Of candidates in order, with near (n, n), those that no earlier leader takes."""
    rows, leaders = near.cpu().numpy(), []
    taken = ~rows.any(axis=0)  # all False
    for number, row in enumerate(rows):
        if not taken[number]:
            leaders.append(number)
            taken |= row
    return torch.tensor(leaders, device=near.device)


def find_centres(windows: Iterable[Tensor], distance: float) -> Tensor:
    """The centres of a video's attention maps.

    Args:
        windows: maps of the tokens of a few frames each, (n, M), not negative. They are changed.
        distance: the largest divergence, in nats, at which two maps are near.

    Returns:
        (C, M), distributions.
    """
    found = []
    for window in windows:
        maps = Maps.of(window)
        del window  # it is large; so are the maps, when the next window is computed
        found.append(greedy_merge(*mean_shift(maps, distance), distance))
        del maps
    centres = torch.cat(found)
    while True:
        merged = greedy_merge(centres, None, distance)
        if len(merged) == len(centres):
            return merged
        centres = merged


def distances_to_centres(maps: Tensor, centres: Tensor) -> Tensor:
    """Divergence of every map (n, M) from every centre (C, M): (n, C). The maps are changed."""
    return divergence(Maps.of(maps), Maps.of(centres.clone()))
