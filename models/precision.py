"""What must not be computed in half precision when mixed precision is on."""

import torch
from torch import Tensor


def full_precision(x: Tensor) -> Tensor:
    """bfloat16 and float16 to float32; float32 and float64 as they are."""
    return x.float() if x.dtype in (torch.bfloat16, torch.float16) else x
