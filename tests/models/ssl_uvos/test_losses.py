"""Both losses against loops over their definitions, and what gets a gradient."""

import math

import numpy as np
import pytest
import torch

from models.ssl_uvos.losses import motion_consistency, ranked, semantic_consistency


def double(*shape, seed=0):
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_semantic_consistency_is_the_mean_over_nearest_and_farthest_tokens():
    cosines, attention = 2 * double(2, 6, 3, 40) - 1, double(2, 6, 3, 40, seed=1)
    pulls, pushes = [], []
    for b, q, t in np.ndindex(2, 6, 3):
        order = np.argsort(-attention[b, q, t].numpy())
        pulls += [max(0, 0.9 - cosines[b, q, t, j].item()) for j in order[:5]]
        pushes += [max(0, cosines[b, q, t, j].item() - 0.1) for j in order[-9:]]
    loss = semantic_consistency(cosines, attention, 5, 9)
    assert loss.item() == pytest.approx(np.mean(pulls) + np.mean(pushes), abs=1e-12)


def test_semantic_consistency_is_zero_when_groups_are_one_and_far_apart():
    group = torch.arange(20) % 2 == 0
    same = (group[:, None] == group).double()[None, :, None]  # every token is a query
    assert semantic_consistency(same, same, 10, 10) == 0
    assert semantic_consistency(same, 1 - same, 10, 10).item() == pytest.approx(1.8)


def plain_motion(query, positive, negative):
    total, count = 0.0, 0
    clips, frames, queries = query.shape[:3]
    for b, t in np.ndindex(clips, frames):
        targets = [(query[b, t, i] / query[b, t, i].sum()).numpy() for i in range(queries)]
        entropy = [sum(x * math.log(x + 1e-10) for x in target) for target in targets]
        weights = np.exp(entropy) / np.exp(entropy).sum()

        def agreement(target, maps):
            row = (maps / maps.sum()).numpy()
            return sum(x * math.log(y + 1e-10) for x, y in zip(target, row))

        for n, p in np.ndindex(negative.shape[3], positive.shape[3]):
            gaps = [
                1 + agreement(x, negative[b, t, i, n]) - agreement(x, positive[b, t, i, p])
                for i, x in enumerate(targets)
            ]
            total += sum(w * max(0, gap) for w, gap in zip(weights, gaps))
            count += 1
    return total / count


def test_motion_consistency_is_the_weighted_mean_over_all_pairs():
    query = double(2, 3, 4, 15) ** 3
    positive, negative = double(2, 3, 4, 3, 15, seed=1) ** 3, double(2, 3, 4, 5, 15, seed=2) ** 3
    loss = motion_consistency(query, positive, negative).item()
    assert loss == pytest.approx(plain_motion(query, positive, negative), abs=1e-9)
    scaled = motion_consistency(7 * query, 3 * positive, 0.1 * negative).item()
    assert scaled == pytest.approx(loss, abs=1e-8)


def test_motion_consistency_gives_queries_no_gradient():
    query, positive, negative = (
        double(1, 2, 3, *rest, 6, seed=seed).requires_grad_()
        for seed, rest in enumerate([(), (2,), (4,)])
    )
    motion_consistency(query, positive, negative).backward()
    assert query.grad is None
    assert positive.grad.abs().sum() > 0 and negative.grad.abs().sum() > 0


def test_ranks_are_the_largest_and_the_smallest_without_gradient():
    values = torch.tensor([0.3, 0.9, 0.1, 0.5], requires_grad=True)
    first, last = ranked(values, 2, 1)
    assert first.tolist() == [1, 3] and last.tolist() == [2] and not first.requires_grad
