"""Numbers on their way from a GPU, for which nobody waits before they are needed.

A GPU works through what it has been given while Python goes on; asking it for a number makes one
wait for the other. So work is given to it one piece ahead of the results that are taken from it.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TypeVar

import torch
from torch import Tensor

Result = TypeVar("Result")


def send(tensor: Tensor, device: torch.device) -> Tensor:
    """A tensor of the CPU on ``device``, for which a GPU's other work is not waited for."""
    if device.type == "cuda" and not tensor.is_pinned():
        tensor = tensor.pin_memory()
    return tensor.to(device, non_blocking=True)


def fetch(tensors: Sequence[Tensor]) -> Callable[[], list[Tensor]]:
    """Begin to copy tensors to the CPU; what is returned waits for them, and is them.

    Args:
        tensors: of the current device, whose memory may be written to afterwards; tensors of the
            CPU are not copied.
    """
    # Without blocking, the copies are in memory that the GPU can write to by itself.
    copies = [tensor.to("cpu", non_blocking=True) for tensor in tensors]
    if not any(tensor.is_cuda for tensor in tensors):
        return lambda: copies
    done = torch.cuda.Event()
    done.record()

    def wait() -> list[Tensor]:
        done.synchronize()
        return copies

    return wait


def one_ahead(begun: Iterable[Callable[[], Result]]) -> Iterator[Result]:
    """Results of pieces of work in order, each taken after the next piece has been begun.

    Args:
        begun: begins a piece of work with each step, and gives what waits for its result.

    Raises:
        Whatever ``begun`` raises, after the result of what was begun before.
    """
    pieces, waiting = iter(begun), None
    while True:
        try:
            following = next(pieces, None)
        except Exception:
            if waiting is not None:
                yield waiting()
            raise
        if waiting is not None:
            yield waiting()
        if following is None:
            return
        waiting = following
