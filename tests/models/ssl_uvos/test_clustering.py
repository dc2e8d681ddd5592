"""Divergence, mean shift, greedy merging and levels against plain calculations."""

import os
import subprocess
import sys

import numpy as np
import pytest
import torch

import models.ssl_uvos.clustering as clustering
from models.ssl_uvos.clustering import (
    Maps,
    distances_to_centres,
    divergence,
    find_centres,
    greedy_merge,
    mean_shift,
)
from tests.models.ssl_uvos import plain_clustering
from tools.compare_clustering import cluster, moving_disks


def bernoulli(*shares):
    return torch.tensor([[share, 1 - share] for share in shares], dtype=torch.float64)


def between(p, q):
    return divergence(Maps.of(bernoulli(p)), Maps.of(bernoulli(q))).item()


def plain_divergence(p, q):
    """The definition, in numpy."""
    p, q = (np.maximum(x, 1e-12) / np.maximum(x, 1e-12).sum() for x in (p, q))
    return ((p - q) * (np.log(p) - np.log(q))).sum()


def plain_merge(maps, distance):
    """Greedy merging, one map after the other, with all distances."""
    taken, centres = [False] * len(maps), []
    for i in range(len(maps)):
        if not taken[i]:
            group = [
                j
                for j in range(len(maps))
                if not taken[j] and (j == i or plain_divergence(maps[i], maps[j]) <= distance)
            ]
            for j in group:
                taken[j] = True
            centres.append(maps[group].mean(axis=0))
    return np.array(centres)


def plain_shift(maps, distance):
    """Mean shift, one map after the other."""
    shifted = []
    for i, p in enumerate(maps):
        near = [j == i or plain_divergence(p, q) <= distance for j, q in enumerate(maps)]
        total = maps[near].sum(axis=0)
        shifted.append(total / total.sum())
    return np.array(shifted)


def plain_centres(windows, distance):
    """All levels."""
    centres = np.concatenate([plain_merge(plain_shift(w, distance), distance) for w in windows])
    while True:
        merged = plain_merge(centres, distance)
        if len(merged) == len(centres):
            return merged
        centres = merged


def mixtures(seed, count, columns=12, kinds=5, noise=0.3):
    """Maps around a few kinds, in random order; no distance lies near one."""
    rng = np.random.default_rng(seed)
    kind = rng.dirichlet(np.full(columns, 0.5), kinds)[rng.integers(kinds, size=count)]
    maps = kind * np.exp(noise * rng.normal(size=kind.shape))
    return maps / maps.sum(axis=1, keepdims=True)


@pytest.mark.parametrize(
    "p, q, expected", [(0.5, 0.9, 0.878890), (0.9, 0.97, 0.089521), (0.5, 0.97, 1.633766)]
)
def test_divergence_of_two_coins(p, q, expected):
    assert between(p, q) == pytest.approx(expected, abs=1e-6)
    assert between(q, p) == pytest.approx(expected, abs=1e-6)
    assert between(p, p) == pytest.approx(0, abs=1e-12)


def test_divergence_with_zeros_is_finite():
    a, b = Maps.of(bernoulli(0.0, 1.0)), Maps.of(bernoulli(0.0, 0.5))
    assert torch.isfinite(divergence(a, b)).all()
    assert divergence(a, b)[0, 0].item() == pytest.approx(0, abs=1e-9)


def test_the_order_of_maps_decides_what_is_merged():
    windows = [bernoulli(0.5, 0.9, 0.97)]
    once = greedy_merge(windows[0], None, 1.0)
    torch.testing.assert_close(once[:, 0], torch.tensor([0.70, 0.97], dtype=torch.float64))
    twice = greedy_merge(once, None, 1.0)
    torch.testing.assert_close(twice[:, 0], torch.tensor([0.835], dtype=torch.float64))
    backwards = greedy_merge(bernoulli(0.97, 0.9, 0.5), None, 1.0)
    torch.testing.assert_close(backwards[:, 0], torch.tensor([0.935, 0.5], dtype=torch.float64))
    assert len(greedy_merge(backwards, None, 1.0)) == 2


@pytest.mark.parametrize("shares", [(0.5, 0.9, 0.97), (0.97, 0.9, 0.5)])
def test_mean_shift_first_makes_the_order_indifferent(shares):
    maps = bernoulli(*shares)
    shifted, sizes = mean_shift(Maps.of(maps), 1.0)
    assert sizes.tolist() == [1, 1, 1]
    expected = {0.5: 0.70, 0.9: 0.79, 0.97: 0.935}
    wanted = torch.tensor([expected[share] for share in shares], dtype=torch.float64)
    torch.testing.assert_close(shifted[:, 0], wanted)
    centres = find_centres([maps], 1.0)
    assert centres[:, 0].tolist() == pytest.approx([0.808333], abs=1e-6)


@pytest.mark.parametrize("leaders", [1, 7, 64])
@pytest.mark.parametrize("seed, count, noise", [(0, 40, 0.3), (1, 90, 0.6), (2, 130, 1.2)])
def test_windows_are_merged_as_by_the_plain_algorithm(monkeypatch, leaders, seed, count, noise):
    monkeypatch.setattr(clustering, "LEADERS", leaders)
    maps = mixtures(seed, count, noise=noise)
    windows = np.split(maps, [count // 3, 2 * count // 3])
    expected = plain_centres(windows, 1.0)
    centres = find_centres([torch.from_numpy(window) for window in windows], 1.0)
    assert 1 < len(expected) < count
    np.testing.assert_allclose(centres.numpy(), expected, rtol=1e-9)
    labels = distances_to_centres(torch.from_numpy(maps), centres).argmin(dim=1)
    for row, label in zip(maps, labels):
        assert label == np.argmin([plain_divergence(row, centre) for centre in expected])


def test_the_same_neighbours_give_one_shifted_map_in_the_order_of_the_first():
    maps = mixtures(3, 60, noise=0.05)
    shifted, sizes = mean_shift(Maps.of(torch.from_numpy(maps)), 1.0)
    plain = plain_shift(maps, 1.0)
    first = np.sort(np.unique(plain.round(9), axis=0, return_index=True)[1])
    assert len(shifted) == len(first) < 60 and sizes.sum() == 60
    np.testing.assert_allclose(shifted.numpy(), plain[first], rtol=1e-9)


def test_later_levels_count_every_centre_once():
    near, far = bernoulli(0.80, 0.80, 0.80), bernoulli(0.60)
    centres = find_centres([near, far], 1.0)  # groups of three and of one
    assert centres[0, 0].item() == pytest.approx(0.70)


def test_sharp_maps_get_finite_centres():
    maps = torch.eye(5).repeat(4, 1)
    centres = find_centres([maps], 1.0)
    assert torch.isfinite(centres).all() and len(centres) == 5
    assert (distances_to_centres(maps, centres).argmin(dim=1) == torch.arange(20) % 5).all()


MEMORY = """
import torch
from models.ssl_uvos.attention_maps import AttentionMaps
from models.ssl_uvos.clustering import distances_to_centres, find_centres

def status(name):
    lines = open("/proc/self/status").read().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(name)) * 1024

def cluster(frames, tokens, key_frames):
    torch.manual_seed(0)
    maps = AttentionMaps(torch.randn(frames, 6, tokens, 8), torch.randn(6, key_frames * tokens, 8))
    centres = find_centres(maps, 0.9)
    distances = list(map(lambda window: distances_to_centres(window, centres), maps))
    return sum(map(len, distances)), len(centres)

with torch.inference_mode():
    cluster(6, 16, 1)
    before = status("VmRSS")
    open("/proc/self/clear_refs", "w").write("5")
    labels, centres = cluster(6, 640, 8)
    print(labels, centres, status("VmHWM") - before)
"""


def test_memory_is_that_of_a_few_windows():
    """At 20 x 32 tokens, two windows, with the key frames of a video of 80 frames."""
    # So that freed blocks return to the system at once.
    environment = {**os.environ, "MALLOC_MMAP_THRESHOLD_": "65536"}
    command = [sys.executable, "-c", MEMORY]
    run = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    labels, centres, used = map(int, run.stdout.split())
    window, columns = 3 * 640, 8 * 640
    assert labels == 6 * 640
    assert used < 3 * 4 * (window * columns + centres * columns + labels)


def test_six_moving_disks_are_seven_clusters_as_by_the_plain_algorithm():
    """One for each disk and the background; the order of the key tokens does not matter."""
    queries, columns = moving_disks(10, (16, 24), 1)
    found = cluster(queries, columns)
    assert len(found.unique()) == 7
    torch.testing.assert_close(found, plain_clustering.partition(queries, columns, 1.0))
    order = torch.from_numpy(np.random.default_rng(0).permutation(columns.shape[1]))
    torch.testing.assert_close(cluster(queries, columns[:, order]), found)
