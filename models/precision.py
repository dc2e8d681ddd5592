"""Mixed precision: what must be float32, and what need not be though autocast makes it so."""

import copy

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def full_precision(x: Tensor) -> Tensor:
    """bfloat16 and float16 to float32; float32 and float64 as they are."""
    return x.float() if x.dtype in (torch.bfloat16, torch.float16) else x


def without_autocast(x: Tensor) -> torch.autocast:
    """Context in which operations on x keep its type."""
    return torch.autocast(x.device.type, enabled=False)


def without_weight_cache() -> torch.autocast:
    """Context in which autocast keeps no converted weights and uses none that it has kept.

    Before torch 2.11, autocast hands a copy of a weight that it made without gradient to every
    later operation of the same autocast region, and the weight then gets no gradient. So whatever
    may run without gradient before a training pass runs in this context.
    """
    # The cache is one for all kinds of devices. Autocast of the CPU stays as it is, and autocast of
    # GPUs is not touched.
    return torch.autocast("cpu", enabled=torch.is_autocast_enabled("cpu"), cache_enabled=False)


class LayerNorm(nn.LayerNorm):
    """Layer normalisation whose result has autocast's type, on GPUs as on the CPU.

    On GPUs autocast gives float32: each linear layer that follows then converts it, and a
    transformer's shortcuts are float32 from its first normalisation to the end. Sums inside are
    float32 in any case.
    """

    def forward(self, x: Tensor) -> Tensor:
        """(..., C) to the same."""
        if not torch.is_autocast_enabled(x.device.type):
            return super().forward(x)
        dtype = torch.get_autocast_dtype(x.device.type)
        weight, bias = self.weight.to(dtype), self.bias.to(dtype)
        with without_autocast(x):
            return F.layer_norm(x.to(dtype), self.normalized_shape, weight, bias, self.eps)


def with_weights_as(model: nn.Module, dtype: torch.dtype) -> nn.Module:
    """A copy of a network, for inference, whose weights have the type that autocast gives them.

    With autocast its results are the network's, but no call converts weights: a fifth of all that
    is launched on a GPU for a frame. Subclasses of layers that timm defines keep theirs, since some
    compute with them before they are converted.
    """
    model = copy.deepcopy(model)
    for module in model.modules():
        own = type(module).__module__.startswith(("torch.", "models."))
        if own and isinstance(module, (nn.Linear, nn.Conv2d, LayerNorm)):
            module.to(dtype)
    return model
