"""References of a video whose frames come one by one: from the frames seen so far."""

import torch
from torch import Tensor


class SeenReferences:
    """Encoded frames that are spread over all frames seen so far, in constant memory.

    The frames at a fixed step are kept. When there are twice as many as a network takes, every
    second one is dropped and the step is doubled. The network gets the first of them, the latest,
    and evenly spaced ones between them. The latest lies in the second half of what was seen; with
    N_R = 1 the only one is the first.

    The beginning is frame 1: frame 0 has no frame before it, so that its flow map shows no motion.
    Frame 0 is its own reference, and the only one.

    Args:
        count: N_R, the number of references that the network takes at most.
    """

    def __init__(self, count: int):
        self.count = count
        self.step = 1
        self.kept: list[dict[str, Tensor]] = []

    def takes(self, position: int) -> bool:
        """Whether the frame at ``position`` of the video is to be encoded and added."""
        return position == 0 or (position - 1) % self.step == 0

    def add(self, position: int, references: dict[str, Tensor]) -> None:
        """Add the encoded frame at ``position``: tensors (1, 1, ...) by stream."""
        if position == 1:
            self.kept.clear()
        self.kept.append(references)
        if len(self.kept) == 2 * self.count:
            self.kept, self.step = self.kept[::2], 2 * self.step

    def spread(self) -> dict[str, Tensor]:
        """The references by stream, (1, R, ...); R is below N_R while few frames were seen."""
        last, count = len(self.kept) - 1, min(self.count, len(self.kept))
        chosen = [self.kept[part * last // max(1, count - 1)] for part in range(count)]
        return {name: torch.cat([one[name] for one in chosen], dim=1) for name in self.kept[0]}
