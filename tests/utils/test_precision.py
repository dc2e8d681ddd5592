"""Where networks compute in bfloat16, and that the masks stay."""

import numpy as np
import pytest
import torch

from inference import load, segment_video
from tests.test_starter import write_disc
from utils.precision import device_in_words, in_bfloat16, mixed_precision

CPU, GPU = torch.device("cpu"), torch.device("cuda", 1)


@pytest.fixture
def amx(monkeypatch):
    """A processor that says it has AMX; any one computes in bfloat16 if it must."""
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: True)


def test_gpus_compute_in_bfloat16_and_processors_without_amx_do_not():
    assert in_bfloat16(True, GPU) and not in_bfloat16(True, CPU)
    assert not in_bfloat16(False, GPU)
    assert device_in_words(GPU, True) == "cuda:1 in bfloat16"
    assert device_in_words(CPU, True) == "cpu in float32"
    with mixed_precision(True, CPU):
        assert (torch.ones(2, 2) @ torch.ones(2, 2)).dtype == torch.float32


def test_processors_with_amx_compute_in_bfloat16_unless_told_otherwise(amx):
    assert in_bfloat16(True, CPU) and not in_bfloat16(False, CPU)
    assert device_in_words(CPU, True) == "cpu in bfloat16"
    with mixed_precision(True, CPU):
        assert (torch.ones(2, 2) @ torch.ones(2, 2)).dtype == torch.bfloat16


def test_masks_of_a_trained_network_are_the_same_in_bfloat16(amx, tmp_path):
    write_disc(tmp_path / "clip.mp4")
    fast, exact = (
        np.stack(list(segment_video(load(device="cpu", mixed_precision=wanted), clip)))
        for clip in [tmp_path / "clip.mp4"]
        for wanted in (True, False)
    )
    assert 0.05 < exact.mean() < 0.5
    assert (fast & exact).sum() / (fast | exact).sum() >= 0.99
