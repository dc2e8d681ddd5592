"""A network on a GPU that does not exist: what it would do there can be seen, not what comes out.

Tensors are torch's fake ones, which have a shape, a type and a device, but no numbers.
"""

from contextlib import contextmanager

import torch
import torch.nn.functional as F
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.overrides import TorchFunctionMode

GRU = "_thnn_fused_gru_cell"
library = torch.library.Library("aten", "IMPL")
if not torch._C._dispatch_has_kernel_for_dispatch_key(f"aten::{GRU}", "Meta"):
    # Torch 2.14 does not know the shapes of a GRU cell's results on GPUs.
    library.impl(
        GRU,
        lambda _, __, state, *biases: (
            torch.empty_like(state),
            state.new_empty(len(state), 5 * state.shape[1]),
        ),
        "Meta",
    )


@contextmanager
def bfloat16_autocast():
    """torch.autocast("cuda", bfloat16), which without a GPU would switch itself off."""
    before = torch.is_autocast_enabled("cuda"), torch.get_autocast_dtype("cuda")
    torch.set_autocast_enabled("cuda", True)
    torch.set_autocast_dtype("cuda", torch.bfloat16)
    torch.autocast_increment_nesting()
    try:
        yield
    finally:
        if torch.autocast_decrement_nesting() == 0:
            torch.clear_autocast_cache()
        torch.set_autocast_enabled("cuda", before[0])
        torch.set_autocast_dtype("cuda", before[1])


@contextmanager
def fake_gpu(model):
    """Context in which tensors are fake; the network's are on a GPU, if it has registered them."""
    with FakeTensorMode() as fakes:

        def moved(tensor):
            return torch.empty_like(fakes.from_tensor(tensor), device="cuda")

        for module in model.modules():
            for name, parameter in module._parameters.items():
                if parameter is not None:
                    module._parameters[name] = nn.Parameter(moved(parameter))
            for name, buffer in module._buffers.items():
                if buffer is not None:
                    module._buffers[name] = moved(buffer)
        yield


class OneAttention(TorchFunctionMode):
    """Attention as one operation; without a GPU torch takes it apart."""

    def __torch_function__(self, function, types, args=(), kwargs=None):
        if function is not F.scaled_dot_product_attention or len(args) > 3 or kwargs:
            return function(*args, **(kwargs or {}))
        query, _, value = (x.to(torch.bfloat16) for x in args)
        return query.new_empty(*query.shape[:-1], value.shape[-1])


def works() -> bool:
    """Whether this torch can do so without a GPU; 2.6 asks for one, 2.15 does not."""
    try:
        with FakeTensorMode():
            x = torch.empty(1, 3, 2, 2, device="cuda")
            x.contiguous(memory_format=torch.channels_last)
    except RuntimeError:
        return False
    return True
