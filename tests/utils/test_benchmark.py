"""The benchmark: its counts, its parts, and that table and JSON tell the same."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import psutil
import pytest
import torch
import torch.nn.functional as F
from torch import nn

import config
from datasets.samples import VideoFrames
from datasets.sampling import EpochBatches
from models.interface import REFERENCES as WITH_REFERENCES
from models.interface import Needs, Network, Prediction
from utils import benchmark
from utils.benchmark import (
    LINES,
    REST,
    HeldVideo,
    Job,
    Meter,
    build_segmenter,
    by_part,
    clock,
    first_steps,
    operations,
    per_frame,
    run_sequence,
    table,
)
from utils.evaluation.segmenting import Segmenter
from utils.scripts import run_script

ROOT = Path(config.__file__).parent
SMALL = "--backbone mobilenetv3_small_100 --image-size 64 --channels 16 --num-clusters 8 "
SMALL += "--num-neighbours 4 --frame-size 48 64 --frames 5 --repeats 1"
SIDE, BATCH, FRAMES, REFERENCES = 32, 4, 10, 3
CONVOLUTION = 2 * 3 * 8 * 3 * 3 * SIDE * SIDE  # of an image, operations
LINEAR = 2 * 8 * 8 * SIDE * SIDE


class Inner(nn.Module):
    """A part within another one."""

    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(8, 8)

    def forward(self, x):
        return self.linear(x.movedim(1, -1)).movedim(-1, 1)


class Outer(nn.Module):
    """A part that uses another one twice."""

    def __init__(self):
        super().__init__()
        self.inner = Inner()

    def forward(self, x):
        return self.inner(x) + self.inner(x).mean()


class Counted(Network):
    """Encoder for images and references, a part within a part, and attention in no part."""

    def __init__(self):
        super().__init__()
        self.encoder = nn.Conv2d(3, 8, 3, padding=1)
        self.outer = Outer()
        self.seen = []

    def parts(self):
        return {"outer": [self.outer], "inner": [self.outer.inner], "encoder": [self.encoder]}

    needs = Needs(WITH_REFERENCES, flow=True)

    def segment_video(self, video):
        images = video.at(range(REFERENCES))["image"]
        self.seen.append(("references", len(images)))
        tokens = self.encoder(images).mean(dim=(2, 3))
        for batch in video:
            image = batch["image"]
            self.seen.append(("frames", len(image)))
            query = self.outer(self.encoder(image)).flatten(2).transpose(1, 2).unsqueeze(1)
            kept = tokens.expand(len(image), 1, -1, -1)
            attended = F.scaled_dot_product_attention(query, kept, kept)
            yield Prediction([attended.mean(dim=(1, 3)).unflatten(1, (1, SIDE, SIDE))])


@pytest.fixture
def network():
    return Counted().eval()


@pytest.fixture
def segmenter(network):
    return Segmenter(network, SIDE)


def views(number):
    return [{name: torch.rand(number, 3, SIDE, SIDE) for name in ("image", "flow")}]


@pytest.fixture
def job(tiny_settings, tmp_path):
    return Job(tiny_settings, torch.device("cpu"), frames=5, repeats=2, folder=tmp_path)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """The command, as a user gives it: what it prints, and what it writes."""
    file = tmp_path_factory.mktemp("benchmark") / "numbers.json"
    command = [sys.executable, "-m", "utils.benchmark", *SMALL.split(), "--json", str(file)]
    result = subprocess.run(
        [*command, "--only", "inference", "loader", "stills"],
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


def test_only_the_lines_asked_for_are_measured(run):
    assert list(run[1]["lines"]) == ["inference", "loader", "stills"]
    assert "training" not in run[0]


def test_the_numbers_say_what_they_are_of(run):
    printed, report = run
    assert report["device"]["type"] == "cpu"
    assert report["device"]["name"] in printed
    assert report["torch"] == torch.__version__
    assert report["precision"] == "float32"
    assert report["settings"]["BACKBONE"] == "mobilenetv3_small_100"
    assert (report["data"], report["frame_size"]) == ("synthetic", [48, 64])
    assert (report["repeats"], report["lines"]["inference"]["frames"]) == (1, 5)


def test_table_and_json_agree(run):
    printed, report = run
    lines = report["lines"]
    rows = [
        ("time per frame", lines["inference"]["milliseconds_per_frame"]),
        ("operations per frame", lines["inference"]["gflop_per_frame"]),
        ("share of the matrix peak", 100 * lines["inference"]["share_of_matrix_peak"]),
        ("limit's share of the time", 100 * lines["inference"]["share_of_limit"]),
        ("loader .* rate of one core", lines["loader"]["samples_per_second_per_core"]),
        ("stills .* rate of one core", lines["stills"]["samples_per_second_per_core"]),
    ]
    rows += [(p, 100 * own["share"]) for p, own in lines["inference"]["parts"].items()]
    for label, value in rows:
        shown = re.search(rf"{label} +([\d.]+)", printed)
        assert shown, label
        # Three figures, or one decimal of a percentage.
        assert float(shown[1]) == pytest.approx(value, rel=0.006, abs=0.051), label


def test_parts_share_the_work_of_a_frame(run):
    numbers = run[1]["lines"]["inference"]
    parts = numbers["parts"]
    names = {"encoders", "k-means", "FAT and slot attention", "decoder", REST}
    assert set(parts) == {"pre-processing", *names, "post-processing"}
    assert sum(part["share"] for part in parts.values()) == pytest.approx(1)
    assert all(part["milliseconds_per_frame"] > 0 for part in parts.values())
    gflop = sum(parts[name]["gflop_per_frame"] for name in names)
    assert gflop == pytest.approx(numbers["gflop_per_frame"])
    limit = sum(parts[name]["limit_milliseconds_per_frame"] for name in names)
    assert limit == pytest.approx(numbers["limit_milliseconds_per_frame"])


def test_derived_numbers_follow_from_the_measured_ones(run):
    numbers = run[1]["lines"]["inference"]
    seconds = numbers["milliseconds_per_frame"] / 1e3
    assert numbers["frames_per_second"] == pytest.approx(1 / seconds)
    rate = numbers["gflop_per_frame"] / seconds
    peak = numbers["matrix_peak_gflop_per_second"]
    assert numbers["share_of_matrix_peak"] == pytest.approx(rate / peak)
    limit = numbers["limit_milliseconds_per_frame"] / 1e3
    assert numbers["share_of_limit"] == pytest.approx(limit / seconds)
    for part in numbers["parts"].values():
        if "gflop_per_frame" in part:
            needs = (
                part["gflop_per_frame"] / peak,
                part["gb_per_frame"] / numbers["memory_gb_per_second"],
            )
            assert part["limit_milliseconds_per_frame"] == pytest.approx(1e3 * max(needs))


def test_peak_memory_is_that_of_a_process_with_torch_and_a_small_network(run):
    assert 0.1 < run[1]["lines"]["inference"]["peak_memory_gib"] < 4


def test_peak_memory_counts_what_has_been_freed():
    device, now = torch.device("cpu"), psutil.Process().memory_info().rss
    before = benchmark.peak_memory(device)
    assert before >= now / 2**30
    large = np.ones(int(before * 2**30) - now + 2**29, np.uint8)  # some of it may be reused
    del large
    assert benchmark.peak_memory(device) >= before + 0.1


def test_operations_of_known_layers_are_counted_by_part(segmenter):
    with operations() as counter:
        found = per_frame(segmenter, counter, views(REFERENCES), views(BATCH), FRAMES)
    flop = {part: counts[0] for part, counts in found.items()}
    attention = 2 * 2 * SIDE * SIDE * REFERENCES * 8  # queries by keys, then weights by values
    assert flop == {
        "encoder": CONVOLUTION * (1 + REFERENCES / FRAMES),
        "inner": 2 * LINEAR,
        "outer": 0,
        REST: attention,
    }


def test_references_count_once_for_a_sequence(segmenter):
    def encoder(frames):
        with operations() as counter:
            counts = per_frame(segmenter, counter, views(REFERENCES), views(BATCH), frames)
        return counts["encoder"][0] * frames

    assert encoder(40) - encoder(10) == pytest.approx(30 * CONVOLUTION)
    assert encoder(10) - 10 * CONVOLUTION == pytest.approx(REFERENCES * CONVOLUTION)


def test_operations_do_not_depend_on_the_batch(segmenter):
    found = []
    for size in (1, 4):
        with operations() as counter:
            counts = per_frame(segmenter, counter, views(REFERENCES), views(size), FRAMES)
        found.append(sum(count[0] for count in counts.values()))
    assert found[0] == found[1]


def test_bytes_are_those_of_operands_and_results():
    x, weight = torch.rand(5, 7), torch.rand(7, 11)
    with operations() as counter, torch.inference_mode():
        before = counter.read()
        (x @ weight).relu()  # the relu could be fused
        flop, moved = counter.between(before, counter.read())
    assert flop == 2 * 5 * 7 * 11
    assert moved == 4 * (5 * 7 + 7 * 11 + 5 * 11)


def test_attention_is_counted_once():
    query, key = torch.rand(2, 3, 10, 8), torch.rand(2, 3, 6, 8)
    with operations() as counter, torch.inference_mode():
        before = counter.read()
        F.scaled_dot_product_attention(query, key, key)
        flop, moved = counter.between(before, counter.read())
    assert flop == 2 * (2 * 2 * 3 * 10 * 6 * 8)
    # Queries, keys, values and result; the softmax's sums, a number for each query, may come too.
    least = 4 * 2 * 3 * (2 * 10 * 8 + 2 * 6 * 8)
    assert least <= moved <= least + 4 * 2 * 3 * 10


def test_time_within_a_part_is_not_counted_for_the_one_around_it(network):
    ticks = iter(range(100))
    meter = Meter(lambda: next(ticks), lambda first, second: second - first)
    found = by_part(network, meter, lambda: network.outer(torch.rand(1, 8, SIDE, SIDE)))
    # Between two readings is one tick: rest, outer, inner, outer, inner, outer, rest.
    assert found == {"outer": 3, "inner": 2, "encoder": 0, REST: 2}


def test_hooks_do_not_stay(network):
    def fail():
        network.outer(torch.rand(1, 8, SIDE, SIDE))
        raise RuntimeError("in the middle")

    with pytest.raises(RuntimeError, match="in the middle"):
        by_part(network, clock(torch.device("cpu")), fail)
    modules = list(network.modules())
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in modules)


def test_a_network_without_parts_is_one():
    class Whole(Network):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(4, 4)

    model = Whole()
    found = by_part(model, clock(torch.device("cpu")), lambda: model.layer(torch.rand(1, 4)))
    assert list(found) == ["network"]


def test_a_sequence_is_its_references_and_every_frame_once(segmenter, network):
    run_sequence(segmenter, HeldVideo(views(REFERENCES), [views(BATCH)] * 2, FRAMES))
    batches = [("frames", size) for size in (4, 4, 2)]
    assert network.seen == [("references", REFERENCES), *batches]


def test_the_parts_of_the_real_network_have_all_its_operations(tiny_settings):
    segmenter = build_segmenter(tiny_settings, torch.device("cpu"))
    size = tiny_settings.image_size
    shown = [{name: torch.rand(3, 3, size, size) for name in ("image", "flow")}]
    with operations() as counter:
        parts = per_frame(segmenter, counter, shown, shown, 5)
        totals = []
        for frames in (3, 6):  # one batch or two, with the same references
            before = counter.read()
            run_sequence(segmenter, HeldVideo(shown, [shown], frames))
            totals.append(counter.between(before, counter.read())[0])
    batch = totals[1] - totals[0]
    expected = batch / 3 + (totals[0] - batch) / 5
    assert sum(part[0] for part in parts.values()) == pytest.approx(expected)
    # The flow maps go through an encoder of their own, as large as that of the images.
    assert parts["encoders"][0] > parts["FAT and slot attention"][0] > 0


@pytest.mark.parametrize("line", ["training", "flow", "scoring"])
def test_lines_give_rates_and_leave_the_data_as_it_was(line, job, tiny_root):
    def state():
        files = sorted(path for path in tiny_root.rglob("*") if path.is_file())
        return [(path, path.stat().st_mtime_ns) for path in files]

    before = state()
    numbers = LINES[line](job)
    rates = [value for name, value in numbers.items() if name.endswith("_per_second")]
    assert len(rates) == 1
    assert rates[0] > 0
    assert 0 <= numbers.get("share_waiting_for_data", 0) <= 1
    assert state() == before


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


def test_steps_go_on_in_the_next_epoch(job):
    batches = EpochBatches([5], batch_size=2)
    steps = first_steps(batches, 5)
    assert [step[0][0][0] for step in steps] == [0, 0, 1, 1, 2]  # epochs


def test_figures_are_readable():
    numbers = {"milliseconds_per_frame": 1234.5678, "gflop_per_frame": 0.0123456}
    numbers |= {"share_of_matrix_peak": 0.98765, "peak_memory_gib": 1.0}
    report = {
        "device": {"type": "cuda", "name": "card", "cores": 16, "threads": 16},
        "torch": "2",
        "precision": "bfloat16",
        "settings": {
            "IMAGE_SIZE": 512,
            "MODEL": "gsanet",
            "BACKBONE": "mit_b2",
            "NUM_REFERENCES": 3,
        },
        "data": "synthetic",
        "repeats": 3,
        "lines": {"inference": numbers},
    }
    shown = table(report)
    for figure in ("1235 ms", "0.0123 GFLOP", "98.8 %", "1.00 GiB", "card", "bfloat16", "512"):
        assert figure in shown


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ("--frames 0", "--frames 0: expected 1 or above"),
        ("--repeats 0", "--repeats 0: expected 1 or above"),
        ("--frame-size 16 64", "--frame-size 16: expected 32 or above"),
        ("--gpu 0,1", "one device is measured"),
        ("--pretrained-backbone true", "--pretrained-backbone: weights are random here"),
        ("--json missing/numbers.json", "its folder is not there"),
        ("--json .", "expected a file's name"),
        ("--data-root missing", "missing"),
    ],
)
def test_what_cannot_be_measured_is_said_before_anything_is(flags, message, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["benchmark", *flags.split(), "--only", "scoring"])
    monkeypatch.setattr(benchmark, "write_data", lambda *_: pytest.fail("data was written"))
    with pytest.raises(SystemExit) as ended:
        run_script(benchmark.main)
    assert message in str(ended.value)


def test_stills_are_measured_with_simulated_motion(job, monkeypatch):
    measured = []
    monkeypatch.setattr(benchmark, "made_by_one_core", lambda _, data: measured.append(data))
    LINES["stills"](job)
    LINES["loader"](job)
    stills, videos = measured
    assert stills.simulation is not None and stills.augmentation is not None
    assert len(stills) == 6 and isinstance(videos, VideoFrames)


@pytest.fixture
def videos_alone(tiny_root, tmp_path, monkeypatch):
    """The lines that are measured, on a data root of one's own without stills."""

    def lines(*flags):
        shutil.copytree(tiny_root, tmp_path / "data", ignore=shutil.ignore_patterns("DUTS_train"))
        own = ["--data-root", str(tmp_path / "data"), "--train-sets", "DAVIS_train"]
        monkeypatch.setattr(sys, "argv", ["benchmark", *own, *flags])
        measured = []
        monkeypatch.setattr(benchmark, "in_own_process", lambda line, *_: measured.append(line))
        monkeypatch.setattr(benchmark, "table", lambda report: "")
        run_script(benchmark.main)
        return measured

    return lines


def test_without_stills_the_rest_is_measured(videos_alone, capsys):
    assert videos_alone() == [line for line in LINES if line != "stills"]
    assert "DUTS_train, so stills are not measured" in capsys.readouterr().out


def test_stills_that_are_asked_for_and_not_there_are_an_error(videos_alone):
    with pytest.raises(SystemExit, match="DUTS_train"):
        videos_alone("--only", "stills")


def test_an_unknown_line_is_refused(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["benchmark", "--only", "nothing"])
    with pytest.raises(SystemExit):
        benchmark.main()
    assert "inference" in capsys.readouterr().err
