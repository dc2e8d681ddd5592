"""Temporal correspondence: adds correlations with the previous frame to the keys."""

import torch
from torch import Tensor, nn

from models.ops import resize


class TemporalCorrespondence(nn.Module):
    """Adds to each key its projected correlations with the keys of the previous frame.

    Args:
        channels: C, of the keys.
        grid: the previous frame's keys are resized to grid x grid positions, so that the
            projection fits images of any size.
    """

    def __init__(self, channels: int, grid: int):
        super().__init__()
        self.grid = grid
        self.project = nn.Linear(grid**2, channels)  # W_c

    def forward(self, keys: Tensor, previous: Tensor, size: tuple[int, int]) -> Tensor:
        """Keys of B frames and of the frames before them, (B, N, C), on a grid of N = h * w.

        Returns:
            z = k + W_c C, (B, N, C).
        """
        return keys + self.project(self.correlation(keys, previous, size))

    def correlation(self, keys: Tensor, previous: Tensor, size: tuple[int, int]) -> Tensor:
        """C: inner products of all keys with the previous frame's, (B, N, grid * grid)."""
        if size != (self.grid, self.grid):
            maps = previous.transpose(1, 2).unflatten(2, size)
            previous = resize(maps, (self.grid, self.grid)).flatten(2).transpose(1, 2)
        return keys @ previous.transpose(1, 2)


def previous_frames(keys: Tensor, cyclic: bool) -> Tensor:
    """For each frame of clips (B, T, N, C) the one before it.

    The first frame gets the clip's last one if ``cyclic``, otherwise its second one.
    """
    if cyclic:
        return keys.roll(1, dims=1)
    return torch.cat([keys[:, 1:2] if keys.shape[1] > 1 else keys, keys[:, :-1]], dim=1)
