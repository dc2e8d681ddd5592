"""The buffers of a network, such as its norms' statistics, copied in few operations.

A network may have 600 of them. One operation for each would be 600 launches on a GPU.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn


class Buffers:
    """All buffers of a network, whose values may change but which are never replaced."""

    def __init__(self, network: nn.Module):
        by_type: dict[torch.dtype, list[Tensor]] = {}
        for buffer in network.buffers():
            by_type.setdefault(buffer.dtype, []).append(buffer)
        self._groups = [_Group(buffers) for buffers in by_type.values()]

    def keep(self) -> None:
        """Copy their values, for ``restore``."""
        for group in self._groups:
            torch._foreach_copy_(group.kept_parts, group.buffers)

    def restore(self, wanted: Tensor) -> None:
        """Set them to the values that were kept, if ``wanted``, a Boolean () on their device.

        Nothing waits for its value.
        """
        for group in self._groups:
            torch._foreach_copy_(group.joined_parts, group.buffers)
            torch.where(wanted, group.kept, group.joined, out=group.joined)
            torch._foreach_copy_(group.buffers, group.joined_parts)

    def broadcast(self) -> None:
        """Give all processes the values of the first one."""
        for group in self._groups:
            torch._foreach_copy_(group.joined_parts, group.buffers)
            torch.distributed.broadcast(group.joined, 0)
            torch._foreach_copy_(group.buffers, group.joined_parts)


class _Group:
    """Buffers of one type, with two tensors that have room for copies of all of them.

    torch copies a list of tensors in few launches only if they have one type.
    """

    def __init__(self, buffers: list[Tensor]):
        self.buffers = buffers
        self.kept, self.kept_parts = _joined(buffers)
        self.joined, self.joined_parts = _joined(buffers)


def _joined(tensors: Sequence[Tensor]) -> tuple[Tensor, list[Tensor]]:
    """One tensor (N,) with room for all of them, and their places in it."""
    joined = tensors[0].new_empty(sum(tensor.numel() for tensor in tensors))
    parts = joined.split([tensor.numel() for tensor in tensors])
    return joined, [part.view_as(tensor) for part, tensor in zip(parts, tensors)]
