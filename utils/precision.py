"""Whether networks compute in bfloat16 or float32: the one place that chooses."""

import torch


def in_bfloat16(device: torch.device, wanted: bool) -> bool:
    """Whether the device computes in bfloat16; ``wanted`` is the setting ``MIXED_PRECISION``.

    GPUs do, and CPUs with AMX, Intel's matrix instructions. Others are slower in it than in
    float32.
    """
    amx = device.type == "cpu" and torch.cpu._is_amx_tile_supported()
    return wanted and (device.type == "cuda" or amx)


def autocast(device: torch.device, wanted: bool) -> torch.autocast:
    """Context of a network's forward pass."""
    return torch.autocast(device.type, torch.bfloat16, enabled=in_bfloat16(device, wanted))


def precision(device: torch.device, wanted: bool) -> str:
    """``"bfloat16"`` or ``"float32"``."""
    return "bfloat16" if in_bfloat16(device, wanted) else "float32"


def device_in_words(device: torch.device, wanted: bool) -> str:
    """The device and how it computes, as "cuda:0 in bfloat16"."""
    return f"{device} in {precision(device, wanted)}"
