"""Copies to and from a GPU for which the program does not wait.

A GPU works through its tasks while Python continues; asking it for a number makes Python wait. So
the next task is started before the result of the last one is read.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TypeVar

import torch
from torch import Tensor

Result = TypeVar("Result")


def send(tensor: Tensor, device: torch.device) -> Tensor:
    """Copy a tensor from the CPU to ``device`` without waiting for the GPU's other work."""
    if device.type == "cuda" and not tensor.is_pinned():
        tensor = tensor.pin_memory()
    return tensor.to(device, non_blocking=True)


def fetch(tensors: Sequence[Tensor]) -> Callable[[], list[Tensor]]:
    """Start an asynchronous copy to the CPU. Calling the result waits for it and returns the copy.

    The tensors may be overwritten afterwards. Tensors of the CPU are returned as they are.
    """
    # Without blocking, the copies are in memory that the GPU can write to by itself.
    copies = [tensor.to("cpu", non_blocking=True) for tensor in tensors]
    if not any(tensor.is_cuda for tensor in tensors):
        return lambda: copies
    done = torch.cuda.Event()
    # A thread's own current device may be another GPU.
    done.record(torch.cuda.current_stream(next(t.device for t in tensors if t.is_cuda)))

    def wait() -> list[Tensor]:
        done.synchronize()
        return copies

    return wait


def one_ahead(started: Iterable[Callable[[], Result]]) -> Iterator[Result]:
    """Results of tasks in order, each read after the next task was started.

    ``started`` starts a task with each step, and gives a function that waits for its result.
    """
    waiting = None
    for following in started:
        if waiting is not None:
            yield waiting()
        waiting = following
    if waiting is not None:
        yield waiting()
