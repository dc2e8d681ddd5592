"""Which samples make up which batch of which epoch."""

from collections.abc import Iterator

import numpy as np
from torch.utils.data import Sampler


class EpochBatches(Sampler[list[tuple[int, int]]]):
    """Batches of (epoch, index) keys in an order that depends on seed and epoch alone.

    A batch is the same whatever the number of processes: each of them takes its share of it. The
    last, incomplete batch is left out; a data set smaller than one batch is repeated to fill one.

    Args:
        set_sizes: samples in each set, in the data set's order.
        batch_size: over all processes; a multiple of ``world_size``.
        seed: of the order.
        balance: take from each set at most as many samples as the first has, anew every epoch.
        rank, world_size: this process, and how many there are.
    """

    def __init__(
        self,
        set_sizes: list[int],
        batch_size: int,
        seed: int = 0,
        balance: bool = True,
        rank: int = 0,
        world_size: int = 1,
    ):
        self.set_sizes = set_sizes
        self.batch_size = batch_size
        self.seed = seed
        self.balance = balance
        self.rank = rank
        self.world_size = world_size
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """The epoch that the next iteration is for."""
        self.epoch = epoch

    def __len__(self) -> int:
        return max(1, sum(self._taken()) // self.batch_size)

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        rng = np.random.default_rng([self.seed, self.epoch])
        starts = np.cumsum([0, *self.set_sizes[:-1]])
        chosen = [
            start + rng.permutation(size)[:taken]
            for start, size, taken in zip(starts, self.set_sizes, self._taken())
        ]
        order = rng.permutation(np.concatenate(chosen))
        order = np.resize(order, len(self) * self.batch_size)  # cuts, or repeats
        for batch in order.reshape(-1, self.batch_size):
            yield [(self.epoch, int(index)) for index in batch[self.rank :: self.world_size]]

    def _taken(self) -> list[int]:
        if not self.balance:
            return self.set_sizes
        return [min(size, self.set_sizes[0]) for size in self.set_sizes]
