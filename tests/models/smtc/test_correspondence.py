"""Correlations with the previous frame, and which frame that is."""

import pytest
import torch
import torch.nn.functional as F

from models.smtc.correspondence import TemporalCorrespondence, previous_frames

N = 9  # positions, as many as channels


def with_identity():
    module = TemporalCorrespondence(N, 3).double()
    with torch.no_grad():
        module.project.weight.copy_(torch.eye(N))
        module.project.bias.zero_()
    return module


def test_correlations_are_in_the_order_of_the_previous_frames_positions():
    """Each position of a frame has a key of its own; the frames have them in two orders."""
    orders = torch.stack([torch.randperm(N), torch.randperm(N)])
    keys = F.one_hot(orders, N).double()[None]  # (1, 2, N, C)
    before = previous_frames(keys, cyclic=True)
    torch.testing.assert_close(before[0, 0], keys[0, 1])  # frame 0 sees the last one
    module = with_identity()
    added = module(keys[0], before[0], (3, 3)) - keys[0]
    for t, other in ((0, 1), (1, 0)):
        for p in range(N):
            where = orders[other].tolist().index(orders[t][p])
            torch.testing.assert_close(added[t, p], F.one_hot(torch.tensor(where), N).double())


def test_a_shift_by_one_token_moves_the_correlations():
    keys = torch.eye(N, dtype=torch.float64)[None]
    moved = keys.roll(1, dims=1)
    added = with_identity()(moved, keys, (3, 3)) - moved
    torch.testing.assert_close(added[0].argmax(dim=1), (torch.arange(N) - 1) % N)


def test_only_the_previous_frame_is_resized_to_the_grid():
    module = TemporalCorrespondence(5, 2).double()
    keys, before = torch.randn(2, 12, 5).double(), torch.randn(2, 12, 5).double()
    maps = before.transpose(1, 2).reshape(2, 5, 3, 4)
    small = F.interpolate(maps, (2, 2), mode="bilinear", align_corners=False).flatten(2)
    correlation = torch.einsum("bcm,bpc->bpm", small, keys)
    expected = keys + correlation @ module.project.weight.T + module.project.bias
    torch.testing.assert_close(module(keys, before, (3, 4)), expected)


@pytest.mark.parametrize("cyclic, order", [(True, [3, 0, 1, 2]), (False, [1, 0, 1, 2])])
def test_the_frame_before_the_first_is_the_last_or_the_second(cyclic, order):
    keys = torch.randn(2, 4, 3, 5)
    assert torch.equal(previous_frames(keys, cyclic), keys[:, order])
    assert torch.equal(previous_frames(keys[:, :1], cyclic), keys[:, :1])
