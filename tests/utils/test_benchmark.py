"""The benchmark: its numbers, its parts, and that table and JSON agree."""

import argparse
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import psutil
import pytest
import torch
from torch import nn

import config
from models.interface import Needs, Network, Prediction
from utils import benchmark
from utils.benchmark import LINES, REST, HeldVideo, Job, run, segmenter_of, table, time_by_part
from utils.evaluation.segmenting import Segmenter
from utils.scripts import run_script
from utils.training.samples import training_sequences, training_stills

ROOT = Path(config.__file__).parent
SMALL = "--backbone mobilenetv3_small_100 --image-size 64 --channels 16 --num-clusters 8 "
SMALL += "--num-neighbours 4 --frames 5 --repeats 1"
CPU = torch.device("cpu")


class Outer(nn.Module):
    """A part that uses another one twice."""

    def __init__(self):
        super().__init__()
        self.inner = nn.Conv2d(8, 8, 1)

    def forward(self, x):
        return self.inner(x) + self.inner(x).mean()


class Counted(Network):
    """Encoder for images and references, and a part within a part."""

    needs = Needs("references", flow=True)

    def __init__(self):
        super().__init__()
        self.encoder = nn.Conv2d(3, 8, 3, padding=1)
        self.outer = Outer()
        self.seen = []

    def parts(self):
        return {"outer": [self.outer], "inner": [self.outer.inner], "encoder": [self.encoder]}

    def segment_video(self, video):
        references = video.at([0, 2, 4])
        self.seen.append(("references", *references["image"].shape))
        self.encoder(references["flow"].float())
        for batch in video:
            self.seen.append(("frames", *batch["image"].shape))
            x = self.outer(self.encoder(batch["image"].float()))
            yield Prediction([x.mean(dim=1, keepdim=True)])


@pytest.fixture
def job(tiny_settings):
    settings = tiny_settings.replace(image_size=32, eval_batch_size=4)
    return Job(settings, CPU, frames=5, repeats=2)


@pytest.fixture
def segmenter():
    return Segmenter(Counted().eval(), 32)


@pytest.fixture(scope="module")
def command(tmp_path_factory, tiny_root):
    """The command, as a user gives it: its output and its file."""
    file = tmp_path_factory.mktemp("benchmark") / "numbers.json"
    command = [sys.executable, "-m", "utils.benchmark", *SMALL.split(), "--json", str(file)]
    command += ["--data-root", str(tiny_root), "--train-sets", "DAVIS_train"]
    command += ["--mixed-precision", "false"]  # the precision of CPUs differs
    result = subprocess.run(
        [*command, "--only", "inference", "--beside", "--channels", "32"],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""},
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    assert "Traceback" not in result.stderr
    assert "Warning" not in result.stderr
    return result.stdout, json.loads(file.read_text())


def test_both_columns_have_the_lines_asked_for_and_their_own_settings(command):
    first, second = command[1]
    assert list(first["lines"]) == list(second["lines"]) == ["inference"]
    assert (first["settings"]["CHANNELS"], second["settings"]["CHANNELS"]) == (16, 32)
    assert first["settings"]["BACKBONE"] == second["settings"]["BACKBONE"]
    assert first["torch"] == torch.__version__ and first["precision"] == "float32"
    one, other = (column["lines"]["inference"] for column in (first, second))
    assert (one["frames in a batch"], one["frames of the video"]) == (4, 5)
    assert one["GFLOP per frame"] < other["GFLOP per frame"]
    assert one["million parameters"] < other["million parameters"]
    assert 0.1 < one["GiB of memory at most"] < 4


def test_table_and_json_agree(command):
    printed, (first, second) = command
    for label, value in first["lines"]["inference"].items():
        shown = re.search(rf" {re.escape(label)} +([\d.e+-]+) +([\d.e+-]+)\n?", printed)
        assert float(shown[1]) == pytest.approx(value, rel=0.001)
        assert float(shown[2]) == pytest.approx(second["lines"]["inference"][label], rel=0.001)


def test_parts_share_the_time_of_a_frame(command):
    numbers = command[1][0]["lines"]["inference"]
    names = ("encoders", "k-means", "FAT and slot attention", "decoder", REST)
    shares = [numbers[f"% in {name}"] for name in names]
    assert sum(shares) == pytest.approx(100) and min(shares) > 0
    assert numbers["frames per second"] == pytest.approx(1e3 / numbers["ms per frame"])


def test_peak_memory_counts_what_has_been_freed():
    now = psutil.Process().memory_info().rss
    before = benchmark.peak_memory(CPU)
    assert before >= now / 2**30
    large = np.ones(int(before * 2**30) - now + 2**29, np.uint8)  # some of it may be reused
    del large
    assert benchmark.peak_memory(CPU) >= before + 0.1


def test_operations_of_known_layers_are_counted_with_their_share_of_the_references(
    job, segmenter, monkeypatch
):
    monkeypatch.setattr(benchmark, "segmenter_of", lambda *_: segmenter)
    pixels = 32 * 32
    encoder, inner = 2 * 3 * 8 * 3 * 3 * pixels, 2 * 8 * 8 * pixels
    expected = encoder * (1 + 3 / job.frames) + 2 * inner
    assert LINES["inference"](job)["GFLOP per frame"] == pytest.approx(expected / 1e9)


def test_a_video_is_its_references_and_every_frame_once(job, segmenter):
    network = segmenter.network
    run(segmenter, HeldVideo(job.settings, network, 10))
    batches = [("frames", size, 3, 32, 32) for size in (4, 4, 2)]
    assert network.seen == [("references", 3, 3, 32, 32), *batches]


def test_time_within_a_part_is_not_counted_for_the_one_around_it(job, segmenter, monkeypatch):
    ticks = iter(range(1000))
    monkeypatch.setattr(benchmark, "_now", lambda device: float(next(ticks)))
    found = time_by_part(segmenter, HeldVideo(job.settings, segmenter.network, 4))
    # One tick lies between two readings: rest, encoder (of the references), rest, encoder, rest,
    # outer, inner, outer, inner, outer, rest.
    assert found == {"outer": 3, "inner": 2, "encoder": 2, REST: 4}
    modules = list(segmenter.network.modules())
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in modules)


def test_the_network_is_random_but_the_same_every_time(job):
    one, other = (segmenter_of(job.settings, CPU).network.state_dict() for _ in range(2))
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_training_takes_the_steps_of_train_py(job, monkeypatch):
    """Warm-up, then for each repeat a run; every step changes the weights."""
    steps = []
    step = benchmark.Trainer.step

    def noted(self, samples):
        before = next(self.network.parameters()).detach().clone()
        result = step(self, samples)
        after = next(self.network.parameters())
        steps.append((samples[0]["image"].shape[0], not torch.equal(before, after)))
        return result

    monkeypatch.setattr(benchmark.Trainer, "step", noted)
    numbers = LINES["training"](job)
    assert numbers["steps"] == job.repeats
    assert len(steps) > numbers["steps"]
    assert set(steps) == {(job.settings.batch_size, True)}
    rate = job.settings.batch_size / numbers["seconds per step"]
    assert numbers["images per second"] == pytest.approx(rate)
    assert 0 <= numbers["% waiting for data"] <= 100


def test_the_synthetic_data_have_all_sets_of_the_training(tiny_settings, tmp_path):
    settings = tiny_settings.replace(train_sets=["mine"], pretrain_set="photos", still_share=0.3)
    arguments = argparse.Namespace(given=set(), frames=2, repeats=1)
    s = benchmark.job_of(settings, arguments, tmp_path / "data").settings
    needs = Needs("references", flow=True)
    assert len(training_sequences(s, needs)) == len(training_stills(s, needs)) == 1


def test_figures_are_readable():
    numbers = {"ms per frame": 1234.5678, "GFLOP per frame": 0.0123456, "frames": 3}
    report = {
        "device": "card",
        "torch": "2",
        "precision": "bfloat16",
        "settings": {
            "IMAGE_SIZE": 512,
            "MODEL": "gsanet",
            "BACKBONE": "mit_b2",
            "NUM_REFERENCES": 3,
        },
        "repeats": 3,
        "lines": {"inference": numbers},
    }
    shown = table([report])
    for figure in ("frame     1235", "frame  0.01235", "card", "bfloat16", "512"):
        assert figure in shown


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ("--gpu 0,1", "measures one GPU"),
        ("--data-root missing", "missing"),
        ("--train-sets MINE", "TRAIN_SETS: give --data-root, too"),
        ("--json .", "--json . is a folder"),
        ("--beside --json .", "--json . is a folder"),
    ],
)
def test_wrong_arguments_are_refused(flags, message, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["benchmark", *flags.split(), "--only", "training"])
    # In this process, and without synthetic data.
    monkeypatch.setattr(benchmark, "in_own_process", lambda line, job: LINES[line](job))
    monkeypatch.setattr(benchmark, "write_synthetic", lambda *_: pytest.fail("data was written"))
    with pytest.raises(SystemExit) as ended:
        run_script(benchmark.main)
    assert message in str(ended.value)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ("--only nothing", "inference"),
        ("--frames 0", "argument --frames: 0: expected a whole number above 0"),
        ("--repeats -1", "argument --repeats: -1: expected a whole number above 0"),
    ],
)
def test_wrong_values_of_its_own_flags_are_refused(flags, message, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["benchmark", *flags.split()])
    with pytest.raises(SystemExit):
        benchmark.main()
    assert message in capsys.readouterr().err


@pytest.mark.parametrize("name", ["smtc", "ssl_uvos"])
def test_networks_of_whole_videos_are_measured_by_their_parts(tiny_settings, name):
    settings = tiny_settings.replace(model=name, backbone="vit_tiny_patch16_224", image_size=32)
    found = benchmark.inference(Job(settings, CPU, frames=5, repeats=1))
    assert found["GFLOP per frame"] > 0 and found["% in encoder"] > 0
    assert sum(value for part, value in found.items() if part[0] == "%") == pytest.approx(100)
