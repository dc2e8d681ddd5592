"""The attention maps of a whole video, a window of frames at a time."""

from collections.abc import Iterator

import torch
from torch import Tensor

WINDOW = 3  # frames of a window; training clips have as many


class AttentionMaps:
    """The attention maps of a video's windows of three frames, computed when they are asked for.

    A map is a token's attention to the M tokens of all key frames, the mean over the heads. No
    class tokens take part, and there is no dropout.

    Args:
        queries: of all frames, (T, H, N, d).
        columns: keys of the key frames' tokens, (H, M, d).
    """

    def __init__(self, queries: Tensor, columns: Tensor):
        self.queries, self.columns = queries, columns

    def __len__(self) -> int:
        return -(-len(self.queries) // WINDOW)

    def __iter__(self) -> Iterator[Tensor]:
        return map(self.window, range(len(self)))

    def window(self, index: int) -> Tensor:
        """The maps of one window, (n, M), in the order of frames, rows and columns."""
        window = self.queries[index * WINDOW :][:WINDOW] * self.queries.shape[-1] ** -0.5
        maps = window.new_zeros(len(window), window.shape[2], self.columns.shape[1])
        # All heads use the same memory; new memory for each one takes twice as long on a CPU.
        logits, attention = torch.empty_like(maps[0]), torch.empty_like(maps[0])
        for frame, total in zip(window, maps):
            for query, key in zip(frame, self.columns):
                torch.mm(query, key.T, out=logits)
                total += torch.softmax(logits, dim=1, out=attention)
        return maps.div_(len(self.columns)).flatten(0, 1)
