"""Whether networks compute in bfloat16 or float32: the one place that chooses."""

import torch


def in_bfloat16(wanted: bool, device: torch.device) -> bool:
    """Whether autocast computes in bfloat16, if ``MIXED_PRECISION`` wants it where it is faster.

    That is on GPUs, and on CPUs with AMX, Intel's matrix instructions. Other CPUs may have none for
    bfloat16, and are slower with it than in float32.
    """
    return wanted and (device.type == "cuda" or torch.cpu._is_amx_tile_supported())


def mixed_precision(wanted: bool, device: torch.device) -> torch.autocast:
    """Context of a network's forward pass."""
    return torch.autocast(device.type, torch.bfloat16, enabled=in_bfloat16(wanted, device))


def precision(wanted: bool, device: torch.device) -> str:
    """``"bfloat16"`` or ``"float32"``."""
    return "bfloat16" if in_bfloat16(wanted, device) else "float32"


def device_in_words(device: torch.device, wanted: bool) -> str:
    """The device and how it computes, as "cuda:0 in bfloat16"."""
    return f"{device} in {precision(wanted, device)}"
