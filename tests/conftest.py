"""Shared by all tests: a tiny data set in the project's layout, and settings that fit it."""

import sys

import pytest
import torch

import config
from datasets.flow.estimators import dis_estimator
from datasets.flow.making import make_flow
from datasets.synthetic import write_synthetic
from utils.scripts import run_script
from utils.settings import load_settings

# Networks as small as the tests' gain nothing from threads, which only wait for one another.
torch.set_num_threads(1)
# Results are compared with numbers in float32, also where the processor has bfloat16.
torch.cpu._is_amx_tile_supported = torch.cpu._is_avx512_bf16_supported = lambda: False


@pytest.fixture(autouse=True)
def ampere(monkeypatch):
    """Any GPU computes in bfloat16, also one that is not there."""
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device=None: (8, 0))


@pytest.fixture(scope="session")
def tiny_root(tmp_path_factory):
    """A data root with 6 stills, 2 training and 2 test videos of 5 frames; not to be changed."""
    root = tmp_path_factory.mktemp("tiny") / "data"
    write_synthetic(
        root, seed=1, stills=6, train_sequences=2, test_sequences=2, frames=5, height=48, width=64
    )
    for name in ("DAVIS_train", "DAVIS_test"):
        make_flow(root, name, dis_estimator())
    return root


@pytest.fixture(scope="session")
def call(tiny_root):
    """Runs a script in this process, on the CPU and the tiny data, unless flags say otherwise."""

    def run(script, *flags):
        machine = ("--gpu", "", "--workers", 0, "--data-root", tiny_root)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(sys, "argv", [f"{script.__name__}.py", *map(str, (*machine, *flags))])
            run_script(script.main)

    return run


@pytest.fixture(scope="session")
def tiny_settings(tiny_root):
    """Settings of a network small enough to train for a few steps on the CPU."""
    return load_settings(config).replace(
        data_root=str(tiny_root),
        pretrain_set="DUTS_train",
        train_sets=["DAVIS_train"],
        val_set="DAVIS_test",
        image_size=64,
        workers=0,
        model="gsanet",
        backbone="mobilenetv3_small_100",
        pretrained_backbone=False,
        backbone_weights=None,
        channels=16,
        num_clusters=8,
        num_references=3,
        num_neighbours=4,
        num_iterations=2,
        stage1_checkpoint=None,
        epochs=1,
        batch_size=4,
        learning_rate=1e-3,
        min_learning_rate=1e-4,
        seed=0,
        gpu="",
        mixed_precision=False,
        run_name=None,
        validate_every=1,
        val_frame_step=1,
        eval_batch_size=3,
    )


@pytest.fixture
def gpu_events(monkeypatch):
    """Replaces torch.cuda.Event; the streams recorded and "wait", in the order they were asked for.

    A device's stream is its own name.
    """
    seen = []

    class Event:
        def record(self, stream):
            seen.append(stream)

        def synchronize(self):
            seen.append("wait")

    monkeypatch.setattr(torch.cuda, "Event", Event)
    monkeypatch.setattr(torch.cuda, "current_stream", str)
    return seen
