"""Where networks compute in bfloat16, and that the masks stay."""

import numpy as np
import pytest
import torch

from inference import load, segment_video
from precision import autocast, device_in_words, in_bfloat16
from tests.test_starter import write_disc

CPU, GPU = torch.device("cpu"), torch.device("cuda", 1)


def test_gpus_compute_in_bfloat16_and_processors_without_it_do_not():
    assert in_bfloat16(GPU, True) and not in_bfloat16(CPU, True)
    assert not in_bfloat16(GPU, False)
    assert device_in_words(GPU, True) == "cuda:1 in bfloat16"
    assert device_in_words(CPU, True) == "cpu in float32"
    with autocast(CPU, True):
        assert (torch.ones(2, 2) @ torch.ones(2, 2)).dtype == torch.float32


def test_gpus_that_emulate_bfloat16_compute_in_float32(monkeypatch):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (7, 5))
    assert not in_bfloat16(GPU, True)
    monkeypatch.setattr(torch.version, "hip", "6.4")  # AMD's numbers mean something else
    assert in_bfloat16(GPU, True)


# Any processor computes in bfloat16 if it must.
@pytest.mark.parametrize("instructions", ["_is_amx_tile_supported", "_is_avx512_bf16_supported"])
def test_processors_with_bfloat16_compute_in_it_unless_told_otherwise(monkeypatch, instructions):
    monkeypatch.setattr(torch.cpu, instructions, lambda: True)
    assert in_bfloat16(CPU, True) and not in_bfloat16(CPU, False)
    assert not in_bfloat16(torch.device("xpu"), True)
    assert device_in_words(CPU, True) == "cpu in bfloat16"
    with autocast(CPU, True):
        assert (torch.ones(2, 2) @ torch.ones(2, 2)).dtype == torch.bfloat16


def test_masks_of_a_trained_network_are_the_same_in_bfloat16(monkeypatch, tmp_path):
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: True)
    write_disc(tmp_path / "clip.mp4")
    fast, exact = (
        np.concatenate(list(segment_video(network, tmp_path / "clip.mp4", probabilities=True)))
        for network in (load(device="cpu", mixed_precision=wanted) for wanted in (True, False))
    )
    assert (fast != exact).any()  # it was computed otherwise
    fast, exact = fast > 0.5, exact > 0.5
    assert 0.05 < exact.mean() < 0.5
    assert (fast & exact).sum() / (fast | exact).sum() >= 0.99
