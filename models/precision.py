"""Mixed precision: operations that need float32, and layers that can stay in autocast's type."""

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
    """Context in which autocast does not use its cache of converted weights.

    Before torch 2.11, a weight that autocast converted without gradient gets no gradient later in
    the same autocast region. So a pass without gradient before a training pass runs in this.
    """
    # The cache is one for all kinds of devices; autocast itself stays as it is.
    return torch.autocast("cpu", enabled=torch.is_autocast_enabled("cpu"), cache_enabled=False)


class LayerNorm(nn.LayerNorm):
    """Layer normalisation whose result has autocast's type, on GPUs as on the CPU.

    On GPUs autocast would give float32: every next linear layer would convert it, and all shortcuts
    of a transformer would be float32. Sums inside are float32 in any case.
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

    Under autocast its results are the same, and no call converts weights, which is a fifth of a
    GPU's operations for a frame. Layers that timm defines keep their type; some need it.
    """
    model = copy.deepcopy(model)
    for module in model.modules():
        own = type(module).__module__.startswith(("torch.", "models."))
        if own and isinstance(module, (nn.Linear, nn.Conv2d, LayerNorm)):
            module.to(dtype)
    return model
