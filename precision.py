"""Whether networks compute in bfloat16 or float32: the one place that chooses.

It is beside errors.py because both datasets/ and utils/ need it.
"""

import torch


def in_bfloat16(device: torch.device, wanted: bool) -> bool:
    """Whether the device computes in bfloat16; ``wanted`` is the setting ``MIXED_PRECISION``.

    GPUs with instructions for it do (NVIDIA's from Ampere on), and CPUs with AMX or AVX-512 BF16.
    Others are slower in it than in float32.
    """
    has = {"cuda": _gpu_has_bfloat16, "cpu": _cpu_has_bfloat16}.get(device.type)
    return wanted and has is not None and has(device)


def _gpu_has_bfloat16(device: torch.device) -> bool:
    """Whether the GPU multiplies in bfloat16; torch emulates it on older ones."""
    return torch.version.hip is not None or torch.cuda.get_device_capability(device) >= (8, 0)


def _cpu_has_bfloat16(_: torch.device) -> bool:
    """Whether the processor multiplies in bfloat16."""
    return torch.cpu._is_amx_tile_supported() or torch.cpu._is_avx512_bf16_supported()


def autocast(device: torch.device, wanted: bool) -> torch.autocast:
    """Context of a network's forward pass."""
    return torch.autocast(device.type, torch.bfloat16, enabled=in_bfloat16(device, wanted))


def precision(device: torch.device, wanted: bool) -> str:
    """``"bfloat16"`` or ``"float32"``."""
    return "bfloat16" if in_bfloat16(device, wanted) else "float32"


def device_in_words(device: torch.device, wanted: bool) -> str:
    """The device and how it computes, as "cuda:0 in bfloat16"."""
    return f"{device} in {precision(device, wanted)}"
