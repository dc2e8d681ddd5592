"""Which samples make up which batch of which epoch."""

from dataclasses import dataclass

import numpy as np

# A key of a data set of datasets.samples: (epoch, index) or (epoch, index, size in pixels).
Key = tuple[int, int] | tuple[int, int, int]


@dataclass
class EpochBatches:
    """Batches of (epoch, index) keys in an order that depends on seed and epoch alone.

    A batch is the same for any number of processes and of parts: each process takes its share of
    it, part by part. The last, incomplete batch is left out; a data set smaller than one batch is
    repeated to fill one. ``len()`` is the number of batches in an epoch.
    """

    set_sizes: list[int]  # samples in each set, in the data set's order
    batch_size: int  # over all processes and parts; a multiple of world_size * parts
    seed: int = 0  # of the order
    balance: bool = True  # take from each set at most as many samples as the first has
    rank: int = 0
    world_size: int = 1
    parts: int = 1  # into how many a process's share is cut, for gradient accumulation
    sizes: list[int] | None = None  # one is drawn for each batch, and is in its keys
    last_share: float | None = None  # of the last set in an epoch, if it is large enough

    def __len__(self) -> int:
        return max(1, sum(self.taken()) // self.batch_size)

    def epoch(self, epoch: int, start: int = 0) -> list[list[list[Key]]]:
        """This process's keys in an epoch, from batch ``start`` on: by batch, then by part."""
        rng = np.random.default_rng([self.seed, epoch])
        starts = np.cumsum([0, *self.set_sizes[:-1]])
        chosen = [
            first + rng.permutation(size)[:taken]
            for first, size, taken in zip(starts, self.set_sizes, self.taken())
        ]
        order = rng.permutation(np.concatenate(chosen))
        order = np.resize(order, len(self) * self.batch_size)  # cuts, or repeats
        shares = order.reshape(-1, self.batch_size)[:, self.rank :: self.world_size]
        sizes = [()] * len(self)
        if self.sizes:
            sizes = [(int(size),) for size in rng.choice(self.sizes, len(self))]
        return [
            [[(epoch, int(index), *size) for index in part] for part in np.split(share, self.parts)]
            for share, size in list(zip(shares, sizes))[start:]
        ]

    def taken(self) -> list[int]:
        """How many samples of each set an epoch has."""
        sizes = self.set_sizes if self.last_share is None else self.set_sizes[:-1]
        taken = [min(size, sizes[0]) for size in sizes] if self.balance else list(sizes)
        if self.last_share is not None:
            wanted = round(sum(taken) * self.last_share / (1 - self.last_share))
            taken.append(min(wanted, self.set_sizes[-1]))
        return taken
