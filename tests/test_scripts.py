"""The three scripts as a user runs them: from a data folder to masks, scores and pictures."""

import contextlib
import csv
import errno
import json
import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import huggingface_hub
import numpy as np
import pytest
import torch
from PIL import Image

import config
import evaluate
import pretrain
import train
import utils.ablate
from datasets.augmentation import whole_frame
from datasets.files import write_picture
from datasets.flow.estimators import build_estimator
from datasets.flow.making import make_flow
from datasets.flow.origin import compare_flow, note_flow
from datasets.layout import still_images, video_sequences
from datasets.pictures import read_image
from datasets.problems import DatasetError
from datasets.samples import StillImages, show
from models import build_model
from models.ops import resize
from tests.readers import read_mask
from utils.describe import publish
from utils.evaluation import validation
from utils.evaluation.segmenting import Segmenter, to_labels
from utils.evaluation.validation import validate_stills, validate_videos
from utils.processes import Process
from utils.scripts import run_script
from utils.settings import load_settings, read_settings_file, write_settings
from utils.training.checkpoints import CheckpointError, build_from_checkpoint, load_checkpoint
from utils.training.interrupts import Interrupted
from utils.training.samples import augmentation_from, network_arguments, stills_of

ROOT = Path(config.__file__).parent
DEFAULTS = load_settings(config)
FRAMES = 5
STATISTICS = [f"{measure}_{column}" for measure in "JF" for column in ("mean", "recall", "decay")]


def run(folder: Path, *command, **environment: str) -> subprocess.CompletedProcess:
    """A Python command in a process of its own, on the CPU, started elsewhere than in the code."""
    return subprocess.run(
        [sys.executable, *map(str, command)],
        cwd=folder,
        env={**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", **environment},
        capture_output=True,
        text=True,
        errors="backslashreplace",
        timeout=300,
    )


def done(folder: Path, *command, **environment: str) -> str:
    """What a command that must succeed prints."""
    result = run(folder, *command, **environment)
    assert result.returncode == 0, result.stdout + result.stderr
    return result.stdout


@pytest.fixture(scope="module")
def chain(tmp_path_factory, tiny_settings):
    """All stages one after the other, with the output of each."""
    folder = tmp_path_factory.mktemp("chain")
    settings = folder / "settings.py"
    write_settings(tiny_settings.replace(stretch_masks=True, panel_step=2), settings)
    flags = ("--config", settings)
    stage1, stage2 = folder / "runs/pretrain/best.pt", folder / "runs/train/best.pt"
    return SimpleNamespace(
        folder=folder,
        settings=settings,
        stage1=stage1,
        stage2=stage2,
        masks=folder / "out/masks",
        pretrain=done(folder, ROOT / "pretrain.py", *flags, "--epochs", "2"),
        train=done(
            folder, ROOT / "train.py", *flags, "--stage1-checkpoint", stage1, "--workers", "1"
        ),
        evaluate=done(
            folder, ROOT / "evaluate.py", *flags, "--checkpoint", stage2, "--output", "out"
        ),
    )


@pytest.fixture
def call(monkeypatch, capsys, tmp_path):
    """Run a script's ``main`` in this process; returns what it prints."""

    def run_here(module, *arguments) -> str:
        monkeypatch.chdir(tmp_path)
        monkeypatch.setattr(sys, "argv", [f"{module.__name__}.py", *map(str, arguments)])
        run_script(module.main)
        return capsys.readouterr().out

    return run_here


@pytest.fixture
def refusal(call):
    """Run a script that must refuse; returns its message, the exit status being 1."""

    def run_here(module, *arguments) -> str:
        with pytest.raises(SystemExit) as stop:
            call(module, *arguments)
        # Text as the code means that Python prints it on stderr and exits with status 1.
        assert isinstance(stop.value.code, str)
        assert stop.value.code.startswith("error: ")
        assert "Traceback" not in stop.value.code
        return stop.value.code

    return run_here


def files(folder: Path) -> dict[str, bytes]:
    """Contents of all files below a folder but its lock."""
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name != ".lock"
    }


def rows(path: Path) -> dict[str, dict[str, str]]:
    """A score file by sequence."""
    with path.open(newline="") as file:
        return {row.pop("sequence"): dict(row) for row in csv.DictReader(file)}


def iou(a: np.ndarray, b: np.ndarray) -> float:
    return (a & b).sum() / (a | b).sum()


# The whole chain


def test_both_stages_leave_settings_checkpoints_and_a_log(chain):
    for name, epochs in (("pretrain", 2), ("train", 1)):
        run_dir = chain.folder / "runs" / name
        written = {"settings.py", "last.pt", "best.pt", "log.txt", "record.json"}
        assert written <= set(os.listdir(run_dir))
        assert len(list(run_dir.glob("events.out.tfevents.*"))) == 1
        used = read_settings_file(run_dir / "settings.py", DEFAULTS)
        given = read_settings_file(chain.settings, DEFAULTS)
        expected = (
            given.replace(epochs=2)
            if name == "pretrain"
            else given.replace(stage1_checkpoint=str(chain.stage1), workers=1)
        )
        assert used == expected
        last = load_checkpoint(run_dir / "last.pt")
        assert last["settings"] == used.as_dict()
        assert last["progress"]["epoch"] == epochs
        lines = (run_dir / "log.txt").read_text().splitlines()
        assert len(lines) == epochs and lines[-1].startswith(f"epoch {epochs}/{epochs}  step")
        (start,) = json.loads((run_dir / "record.json").read_text())["starts"]
        assert f"{name}.py" in start["command"]
        assert f"on {start['device']}" in getattr(chain, name)
        sets = {"DUTS_train"} if name == "pretrain" else {"DAVIS_train", "DAVIS_test"}
        assert start["data"].keys() == sets
    assert {path.name for path in chain.folder.iterdir()} == {"settings.py", "runs", "out"}


def test_the_stages_say_what_they_train_and_what_was_loaded(chain):
    assert "5 images for training, 1 for validation, on cpu" in chain.pretrain
    assert "DAVIS_train: 2 sequences, validation on DAVIS_test: 2, on cpu" in chain.train
    stage1 = load_checkpoint(chain.stage1)["weights"]
    stage2 = load_checkpoint(chain.stage2)["weights"]
    stream = sum(name.startswith("rgb_stream.") for name in stage1)
    fresh = len(stage2) - len(stage1) - stream
    assert (
        f"{len(stage1)} tensors loaded, {stream} copied from the RGB to the flow stream, "
        f"{fresh} left at their initial values, 0 of the file not used"
    ) in chain.train
    best = load_checkpoint(chain.stage2)["progress"]["best"]
    assert f"best validation J {best:.4f}: {Path('runs/train/best.pt')}" in chain.train


def test_a_mask_of_0_and_255_is_written_for_every_frame_at_its_own_size(chain, tiny_root):
    expected = {
        f"{sequence.name}/{frame.name.rpartition('_')[2]}.png"
        for sequence in video_sequences(tiny_root, "DAVIS_test")
        for frame in sequence.frames
    }
    written = {str(path.relative_to(chain.masks)) for path in chain.masks.rglob("*.png")}
    assert written == expected
    assert len(written) == 2 * FRAMES
    for name in written:
        with Image.open(chain.masks / name) as picture:
            assert picture.mode == "L"
            assert picture.size == (64, 48)
            # Both occur, because the settings stretch every frame's probabilities.
            assert set(np.unique(np.asarray(picture))) == {0, 255}


def test_scores_are_those_of_the_masks_on_disk(chain, tiny_root):
    table = rows(chain.folder / "out/scores.csv")
    sequences = video_sequences(tiny_root, "DAVIS_test")
    assert list(table) == [*(sequence.name for sequence in sequences), "average"]
    for sequence in sequences:
        values = []
        for frame in sequence.frames[1:-1]:
            path = chain.masks / sequence.name / f"{frame.name.rpartition('_')[2]}.png"
            values.append(iou(np.asarray(Image.open(path)) > 0, read_mask(frame.mask)))
        assert float(table[sequence.name]["J_mean"]) == pytest.approx(np.mean(values), abs=1e-9)
        recall = np.mean([value > 0.5 for value in values])
        assert float(table[sequence.name]["J_recall"]) == pytest.approx(recall, abs=1e-9)
    average = table.pop("average")
    assert {row["protocol"] for row in table.values()} == {"davis2016"}
    for column in STATISTICS:
        mean = np.mean([float(row[column]) for row in table.values()])
        assert float(average[column]) == pytest.approx(mean, abs=1e-9)


def test_the_printed_table_and_last_line_are_those_of_the_score_file(chain):
    table = rows(chain.folder / "out/scores.csv")
    for name, row in table.items():
        (line,) = [line for line in chain.evaluate.splitlines() if line.startswith(f"{name} ")]
        j_and_f = (float(row["J_mean"]) + float(row["F_mean"])) / 2
        printed = [float(number) for number in line.split()[1:]]
        expected = [float(row["frames"]), j_and_f, *(float(row[column]) for column in STATISTICS)]
        np.testing.assert_allclose(printed, expected, atol=0.00051)
    last = chain.evaluate.splitlines()[-1]
    assert re.fullmatch(r"J&F \d\.\d{4}", last)
    average = table["average"]
    mean = (float(average["J_mean"]) + float(average["F_mean"])) / 2
    assert float(last.split()[1]) == pytest.approx(mean, abs=0.000051)
    assert str(Path("out/panels")) in chain.evaluate
    assert (
        "protocol davis2016, as the name DAVIS_test says: J and F of every frame" in chain.evaluate
    )


def test_a_panel_of_eight_is_drawn_for_every_second_frame(chain, tiny_root):
    written = {
        str(path.relative_to(chain.folder / "out/panels"))
        for path in (chain.folder / "out/panels").rglob("*.png")
    }
    assert written == {
        f"{sequence.name}/{t:05d}.png"
        for sequence in video_sequences(tiny_root, "DAVIS_test")
        for t in (0, 2, 4)
    }
    for name in written:
        with Image.open(chain.folder / "out/panels" / name) as picture:
            assert picture.size == (8 * 240, 180 + 22)


# Scoring masks that exist


def test_masks_on_disk_are_scored_alike_without_any_network(chain, call, tmp_path, monkeypatch):
    def forbidden(*_, **__):
        raise AssertionError("a network was asked for")

    for name in ("load_trained_network", "evaluate_set"):
        monkeypatch.setattr(evaluate, name, forbidden)
    flags = ("--config", chain.settings, "--set", "DAVIS_test")
    printed = call(evaluate, *flags, "--masks", chain.masks, "--output", tmp_path / "scored")
    assert printed.splitlines()[-1] == chain.evaluate.splitlines()[-1]
    written = files(tmp_path / "scored")
    assert set(written) == {"scores.csv", "frames.csv", "evaluation.json", "report.html"}
    for name in ("scores.csv", "frames.csv"):
        assert written[name] == (chain.folder / "out" / name).read_bytes()
    before = files(tmp_path)
    assert (
        call(evaluate, *flags, "--masks", chain.masks).splitlines()[-1]
        == (chain.evaluate.splitlines()[-1])
    )
    assert files(tmp_path) == before


def test_true_masks_score_1_also_under_the_frames_full_names(chain, call, tiny_root, tmp_path):
    for sequence in video_sequences(tiny_root, "DAVIS_test"):
        (tmp_path / "true" / sequence.name).mkdir(parents=True)
        for frame in sequence.frames:
            shutil.copy(frame.mask, tmp_path / "true" / sequence.name / f"{frame.name}.png")
    printed = call(evaluate, "--config", chain.settings, "--masks", tmp_path / "true")
    assert printed.splitlines()[-1] == "J&F 1.0000"


# Flags of the evaluation


def test_size_references_and_iterations_are_the_checkpoints_unless_given(
    chain, call, tmp_path, monkeypatch
):
    asked = []

    def noting(trained, *_):
        segmenter, network = trained.segmenter, trained.segmenter.network
        iterations = network.rgb_stream.slots.slot_attention.num_iterations
        asked.append((segmenter.views[0].size, network.num_references, iterations))
        raise KeyboardInterrupt

    monkeypatch.setattr(evaluate, "evaluate_set", noting)
    other = read_settings_file(chain.settings, DEFAULTS).replace(
        image_size=96, num_references=5, num_iterations=7
    )
    write_settings(other, tmp_path / "other.py")
    flags = ("--config", tmp_path / "other.py", "--checkpoint", chain.stage2)
    given = ("--image-size", "32", "--num-references", "1", "--num-iterations", "4")
    for more in ((), given):
        with pytest.raises(SystemExit):
            call(evaluate, *flags, "--output", tmp_path / "out", *more)
    assert asked == [(64, 3, 2), (32, 1, 4)]


@pytest.mark.parametrize("untrained", [{"num_iterations": 0}, {"slot_attention": False}])
def test_rounds_of_slot_attention_that_was_not_trained_are_refused(
    chain, refusal, tmp_path, untrained
):
    checkpoint = load_checkpoint(chain.stage2)
    checkpoint["arguments"] |= untrained
    network = build_model(checkpoint["model"], **checkpoint["arguments"])
    checkpoint["weights"] = network.state_dict()
    torch.save(checkpoint, tmp_path / "best.pt")
    flags = ("--config", chain.settings, "--checkpoint", tmp_path / "best.pt")
    message = refusal(evaluate, *flags, "--num-iterations", "4")
    assert "--num-iterations: without effect" in message


def test_results_go_beside_the_checkpoint_by_default(chain, call, tmp_path):
    shutil.copy(chain.stage2, tmp_path / "best.pt")
    printed = call(
        evaluate,
        *("--config", chain.settings, "--checkpoint", tmp_path / "best.pt", "--panel-step", "0"),
    )
    written = {path.name for path in (tmp_path / "DAVIS_test").iterdir()}
    results = {"scores.csv", "frames.csv", "evaluation.json", "report.html"}
    assert written == {"masks", ".lock"} | results
    assert files(tmp_path / "DAVIS_test/masks") == files(chain.masks)
    assert "panels" not in printed
    # What an earlier evaluation has left there is not taken for this one's.
    (sequence, *_) = sorted(path.name for path in chain.masks.iterdir())
    stale = tmp_path / "DAVIS_test/panels" / sequence / "00001.png"
    stale.parent.mkdir(parents=True)
    stale.touch()
    call(
        evaluate,
        "--config",
        chain.settings,
        "--checkpoint",
        tmp_path / "best.pt",
        "--panel-step",
        "2",
    )
    assert not stale.exists() and stale.with_name("00002.png").exists()
    assert printed.splitlines()[-1] == chain.evaluate.splitlines()[-1]


# Sets of which not every frame is annotated


@pytest.fixture
def partly_annotated(tiny_root, tmp_path):
    """A data root whose FBMS_test has masks on the frames 0 and 3 of its two sequences."""
    shutil.copytree(tiny_root / "DAVIS_test", tmp_path / "data/FBMS_test")
    for path in (tmp_path / "data/FBMS_test").glob("*/GT/*"):
        if not path.stem.endswith(("00000", "00003")):
            path.unlink()
    return tmp_path / "data"


def test_every_frame_gets_a_mask_and_the_annotated_ones_a_score(
    chain, call, partly_annotated, tmp_path
):
    flags = ("--config", chain.settings, "--data-root", partly_annotated, "--set", "FBMS_test")
    printed = call(evaluate, *flags, "--checkpoint", chain.stage2, "--output", tmp_path / "out")
    assert "protocol fbms, as the name FBMS_test says" in printed
    assert files(tmp_path / "out/masks") == files(chain.masks)
    table = rows(tmp_path / "out/scores.csv")
    means = []
    for sequence in video_sequences(partly_annotated, "FBMS_test", masks="some"):
        values = [
            iou(
                read_mask(tmp_path / f"out/masks/{sequence.name}/{frame.name[-5:]}.png"),
                read_mask(frame.mask),
            )
            for frame in (sequence.frames[0], sequence.frames[3])
        ]
        means.append(np.mean(values))
        assert table[sequence.name]["frames"] == "2"
        assert float(table[sequence.name]["J_mean"]) == pytest.approx(means[-1], abs=1e-9)
    assert printed.splitlines()[-1] == f"J {np.mean(means):.4f}"
    # The same masks, scored from disk and by rules of the user's choice.
    scored = call(evaluate, *flags, "--masks", tmp_path / "out/masks", "--protocol", "long_videos")
    assert "protocol long_videos, as PROTOCOL says" in scored
    assert scored.splitlines()[-1].startswith("J&F ")


def test_rules_that_want_every_frame_annotated_name_the_masks_that_are_missing(
    chain, refusal, partly_annotated
):
    message = refusal(
        *(evaluate, "--config", chain.settings, "--data-root", partly_annotated),
        *("--set", "FBMS_test", "--masks", chain.masks, "--protocol", "davis2016"),
    )
    assert "6 x image without mask" in message


# Test-time augmentation


def test_test_time_augmentation_has_its_own_folder_and_is_written_down(chain, call, tmp_path):
    shutil.copy(chain.stage2, tmp_path / "best.pt")
    plain = json.loads((chain.folder / "out/evaluation.json").read_text())["settings"]
    assert plain["TTA"] is False and "TTA_SCALES" not in plain
    assert plain["PRECISION"] == "float32"
    assert plain["PROTOCOL"] == "davis2016" and plain["BACKBONE"] == "mobilenetv3_small_100"
    printed = call(
        *(evaluate, "--config", chain.settings, "--checkpoint", tmp_path / "best.pt", "--tta"),
        *("--tta-scales", "0.5", "1.5", "--panel-step", "0"),
    )
    assert "32, 96 pixels and mirrored, 3 reference frames" in printed
    record = json.loads((tmp_path / "DAVIS_test_tta/evaluation.json").read_text())
    assert record["settings"]["TTA_SCALES"] == [0.5, 1.5]
    assert record["settings"]["TTA"] is record["settings"]["TTA_FLIP"] is True
    found = files(tmp_path / "DAVIS_test_tta/masks")
    assert found.keys() == files(chain.masks).keys()
    assert found != files(chain.masks)


# Comparing evaluations, and any video


def test_evaluations_are_compared_in_one_page(chain, call, tmp_path):
    flags = ("--config", chain.settings, "--set", "DAVIS_test")
    call(evaluate, *flags, "--masks", chain.masks, "--output", tmp_path / "other")
    printed = call(
        *(evaluate, "--compare", chain.folder / "out", tmp_path / "other"),
        *("--output", tmp_path / "compared"),
    )
    (page,) = (tmp_path / "compared").iterdir()
    assert printed == f"comparison: {page}\n"
    text = page.read_text()
    for row in rows(tmp_path / "other/scores.csv").values():
        assert f"{float(row['J_mean']):.3f}" in text


def test_the_frames_of_a_sequence_are_segmented_as_a_video(chain, tiny_root, call, tmp_path):
    sequence = video_sequences(tiny_root, "DAVIS_test")[0]
    printed = call(
        *(evaluate, "--config", chain.settings, "--checkpoint", chain.stage2),
        *("--video", sequence.frames[0].image.parent, "--output", "clip"),
        *("--flow-estimator", "dis"),
    )
    assert str(Path("clip/overlay.mp4")) in printed
    names = {f"{frame.name}.png" for frame in sequence.frames}
    assert {path.name for path in (tmp_path / "clip/masks").iterdir()} == names
    for frame in sequence.frames:
        # The set's flow maps went through JPEG, the video's did not.
        expected = read_mask(chain.masks / sequence.name / f"{frame.name[-5:]}.png")
        assert 0 < expected.mean() < 1
        assert iou(read_mask(tmp_path / f"clip/masks/{frame.name}.png"), expected) > 0.9


@pytest.mark.parametrize(("signum", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
@pytest.mark.parametrize("at", [1, 4])  # while references are encoded, and while it is segmented
def test_a_video_that_is_stopped_leaves_nothing_behind(
    chain, tiny_root, call, tmp_path, monkeypatch, signum, code, at
):
    calls = []

    def stopping(first, second):
        calls.append(1)
        if len(calls) == at:
            os.kill(os.getpid(), signum)
        return np.zeros((*first.shape[:2], 2), np.float32)

    monkeypatch.setattr("utils.evaluation.video.build_estimator", lambda *_: stopping)
    frames = video_sequences(tiny_root, "DAVIS_test")[0].frames[0].image.parent
    before = signal.getsignal(signal.SIGTERM)
    # A shell has what it runs in the background ignore the signal.
    ctrl_c = signal.signal(signal.SIGINT, signal.default_int_handler)
    with pytest.raises(SystemExit) as stop:
        call(
            *(evaluate, "--config", chain.settings, "--checkpoint", chain.stage2),
            *("--video", frames, "--output", "clip", "--num-references", "2"),
        )
    assert stop.value.code == code and len(calls) >= at
    signal.signal(signal.SIGINT, ctrl_c)
    assert signal.getsignal(signal.SIGTERM) == before
    assert not (tmp_path / "clip").exists()


def test_names_of_a_video_may_be_in_any_encoding(chain, tmp_path):
    clip, output = (os.fsdecode(name + b"\xff") for name in ("ä".encode(), "ö".encode()))
    pictures = [Image.new("RGB", (64, 48), (50 * number, 90, 120)) for number in range(3)]
    pictures[0].save(tmp_path / clip, "GIF", save_all=True, append_images=pictures[1:])
    printed = done(
        tmp_path,
        *(ROOT / "evaluate.py", "--config", chain.settings, "--checkpoint", chain.stage2),
        *("--video", clip, "--output", output, "--flow-estimator", "dis"),
        **{"LC_ALL": "POSIX", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"},
    )
    assert "overlay.mp4\n" in printed
    assert len(files(tmp_path / output)) == 3 + 2


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--masks", "x", "--video", "y"), "--video takes no --masks or --compare"),
        (("--video", "0"), "--video of a camera, an address or a pipe needs --output"),
        (("--set", "x"), "expected --video, --checkpoint, --masks or --compare"),
        (("--masks", "x", "--tta"), "--tta needs a network"),
        (("--checkpoint", "x", "--binarize"), "--binarize needs --masks"),
        (("--compare", "x", "y", "--output", "z", "--set", "w"), "--compare takes no --set"),
        (("--compare", "x", "y", "--output", "z", "--image-size", "64"), "--image-size: without"),
        (("--masks", "x", "--tta-flip", "--channels", "8"), "--channels, --tta-flip: without"),
        (("--compare", "x", "y"), "--compare needs --output"),
        (("--masks", "x", "--set", "y", "--val-set", "z"), "--set takes the place of --val-set"),
        (("--compare", "x", "y", "--output", "z"), "x holds no evaluation.json"),
    ],
)
def test_arguments_that_do_not_go_together_are_refused(arguments, message, refusal, tmp_path):
    assert message in refusal(evaluate, *arguments)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("flag", ["--set", "--video", "--output", "--masks"])
def test_empty_text_is_no_set_and_not_the_current_folder(flag, call, capsys):
    with pytest.raises(SystemExit) as stop:
        call(evaluate, flag, "")
    assert stop.value.code == 2
    assert f"{flag}: expected text that is not empty" in capsys.readouterr().err


@pytest.mark.parametrize(
    "flags",
    [
        ("--channels", "32"),
        ("--learning-rate", "0.5"),
        ("--tta-scales", "0.5"),
        ("--frame-rate", "3"),
        ("--output-dir", "elsewhere"),
    ],
)
def test_flags_that_would_change_nothing_are_refused(flags, chain, refusal, tmp_path):
    shutil.copy(chain.stage2, tmp_path / "best.pt")
    own = ("--config", chain.settings, "--checkpoint", tmp_path / "best.pt")
    assert f"{flags[0]}: without effect" in refusal(evaluate, *own, *flags)
    message = refusal(evaluate, *own, "--video", "clip.mp4", "--output", "x", "--protocol", "fbms")
    assert "--protocol: without effect" in message
    assert {path.name for path in tmp_path.iterdir()} == {"best.pt"}
    (tmp_path / "clip.mp4").touch()
    message = refusal(evaluate, *own, "--video", "clip.mp4", "--output", "x", "--frame-rate", "5")
    assert "--frame-rate: without effect" in message


def test_a_set_of_still_images_is_no_training_set_of_videos(chain, refusal):
    flags = ("--config", chain.settings, "--stage1-checkpoint", chain.stage1, "--run-name", "x")
    message = refusal(train, *flags, "--train-sets", "DUTS_train")
    assert "DUTS_train is a set of still images, and TRAIN_SETS are videos" in message


def test_a_set_of_still_images_is_not_scored_as_videos(chain, refusal):
    message = refusal(
        evaluate, "--config", chain.settings, "--checkpoint", chain.stage1, "--set", "DUTS_train"
    )
    assert "DUTS_train is a set of still images, and this scores videos" in message


def test_flags_that_say_what_the_checkpoint_has_are_no_matter(chain, call):
    backbone = ("--backbone", "mobilenetv3_small_100", "--channels", "16")
    flags = ("--config", chain.settings, "--checkpoint", chain.stage2, *backbone)
    assert "J&F" in call(evaluate, *flags, "--output", "out")


# Going on with an evaluation


def test_an_evaluation_that_was_stopped_goes_on_and_another_begins_anew(
    chain, call, tmp_path, monkeypatch, capsys
):
    flags = ("--config", chain.settings, "--checkpoint", chain.stage2, "--output", "out")
    flags += ("--eval-batch-size", 1)
    done = []

    def stopping(segmenter, video):
        for result in segment(segmenter, video):
            done.append(result)
            if len(done) == 10:
                raise KeyboardInterrupt
            yield result

    segment = Segmenter.segment
    monkeypatch.setattr(Segmenter, "segment", stopping)
    # Then few frames wait for writing.
    monkeypatch.setattr("utils.evaluation.set_evaluation.num_cores", lambda: 1)
    with pytest.raises(SystemExit) as stop:
        call(evaluate, *flags)
    assert stop.value.code == 130
    first, second = sorted(path.name for path in chain.masks.iterdir())
    assert len(list((tmp_path / f"out/masks/{first}").iterdir())) == FRAMES
    assert not (tmp_path / "out/scores.csv").exists()
    # The first sequence is not segmented again: five frames are left of ten.
    done.clear()
    printed = call(evaluate, *flags)
    assert len(done) == 5
    assert "1 of 2 sequences were done before" in printed
    assert printed.splitlines()[-1] == chain.evaluate.splitlines()[-1]
    for name in ("masks", "panels"):
        assert files(tmp_path / "out" / name) == files(chain.folder / "out" / name)
    for name in ("scores.csv", "frames.csv"):
        found = (tmp_path / "out" / name).read_bytes()
        assert found == (chain.folder / "out" / name).read_bytes()
    assert not (tmp_path / "out/.evaluation.json").exists()
    # Other settings are another evaluation, which takes nothing over.
    (tmp_path / "out/masks/stale").mkdir()
    (tmp_path / "out/masks").rename(tmp_path / "disk")  # the folder may be a link
    (tmp_path / "out/masks").symlink_to(tmp_path / "disk")
    monkeypatch.undo()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["evaluate.py", *map(str, flags), "--threshold", "0.9"])
    capsys.readouterr()
    run_script(evaluate.main)
    assert "note: out/masks, of an earlier evaluation, is replaced" in capsys.readouterr().out
    assert {path.name for path in (tmp_path / "out/masks").iterdir()} == {first, second}
    assert files(tmp_path / "out/masks") != files(chain.masks)


def test_a_model_of_the_hub_is_evaluated_and_trained_further(chain, call, tmp_path, monkeypatch):
    settings = load_settings(config)
    publish(load_checkpoint(chain.stage2), tmp_path / "cache", settings)
    file = str(tmp_path / "cache/model.safetensors")
    monkeypatch.setattr(huggingface_hub, "hf_hub_download", lambda *_: file)
    flags = ("--config", chain.settings, "--checkpoint", "some-one/net", "--panel-step", 0)
    for _ in range(2):  # the folder of the results does not hide the name
        printed = call(evaluate, *flags)
        assert "report: some-one_net_DAVIS_test/report.html" in printed
    printed = call(train, "--config", chain.settings, "--stage1-checkpoint", "some-one/net")
    assert f"stage 1 from some-one/net: {len(load_checkpoint(chain.stage2)['weights'])} " in printed


def test_results_never_replace_what_no_evaluation_has_made(
    chain, refusal, tiny_root, tmp_path, monkeypatch
):
    flags = ("--config", chain.settings, "--checkpoint", chain.stage2, "--output")
    (tmp_path / "mine/masks").mkdir(parents=True)
    (tmp_path / "mine/masks/important.txt").write_text("x")
    assert "holds files that no evaluation is known to have made" in refusal(
        evaluate, *flags, "mine"
    )
    assert files(tmp_path) == {"mine/masks/important.txt": b"x"}
    # Not even when an evaluation has scored it.
    monkeypatch.chdir(tmp_path)
    for folder in ("masks", "probabilities"):
        own = shutil.copytree(chain.masks, tmp_path / folder / folder)
        scored = ("--config", chain.settings, "--masks", own, "--output", folder)
        monkeypatch.setattr(sys, "argv", ["evaluate.py", *map(str, scored)])
        run_script(evaluate.main)
        assert "no evaluation is known to have made" in refusal(evaluate, *flags, folder)
        assert files(own) == files(chain.masks)
    theirs = shutil.copytree(chain.folder / "out", tmp_path / "theirs")
    for masks in (own, theirs / "masks"):
        scored = ("--config", chain.settings, "--masks", masks, "--output", theirs)
        assert "holds the masks and the record of an evaluation" in refusal(evaluate, *scored)
    assert files(theirs) == files(chain.folder / "out")
    (tmp_path / "file").write_text("x")
    assert "is a file; expected a folder" in refusal(evaluate, *flags, "file/results")
    for module, given in (
        (evaluate, ("--config", chain.settings, "--masks", chain.masks)),
        (evaluate, ("--config", chain.settings, "--checkpoint", chain.stage2, "--video", "clip")),
        (evaluate, ("--compare", "a", "b")),
        (utils.ablate, ("--config", chain.settings)),
    ):
        message = refusal(module, *given, "--output", tmp_path / "file")
        assert "is a file; expected a folder" in message
    inside = tiny_root / "DAVIS_test/results"
    assert "lies in the data set" in refusal(evaluate, *flags, inside)
    assert not inside.exists()


def test_a_set_without_masks_is_segmented_and_not_scored(chain, call, tiny_root, tmp_path):
    shutil.copytree(tiny_root / "DAVIS_test", tmp_path / "data/own")
    for folder in (tmp_path / "data/own").glob("*/GT"):
        shutil.rmtree(folder)
    flags = ("--config", chain.settings, "--data-root", tmp_path / "data", "--set", "own")
    flags = (*flags, "--checkpoint", chain.stage2, "--output", tmp_path / "out")
    for _ in range(2):  # the same again, and after its masks have gone
        printed = call(evaluate, *flags)
        assert printed.splitlines()[-1] == "own has no masks, so nothing was scored"
        assert files(tmp_path / "out/masks") == files(chain.masks)
    shutil.rmtree(tmp_path / "out/masks")
    call(evaluate, *flags)
    assert files(tmp_path / "out/masks") == files(chain.masks)
    # With ground truth it is another evaluation.
    shutil.rmtree(tmp_path / "data")
    shutil.copytree(tiny_root / "DAVIS_test", tmp_path / "data/own")
    assert call(evaluate, *flags).splitlines()[-1] == chain.evaluate.splitlines()[-1]


@pytest.mark.parametrize("name", ["{}_mask.png", "{}.bmp"])
def test_masks_that_fit_no_frame_are_an_error(name, chain, refusal, tiny_root, tmp_path):
    shutil.copytree(tiny_root / "DAVIS_test", tmp_path / "data/own")
    for path in (tmp_path / "data/own").glob("*/GT/*"):
        path.rename(path.with_name(name.format(path.stem)))
    flags = ("--config", chain.settings, "--data-root", tmp_path / "data", "--set", "own")
    message = refusal(evaluate, *flags, "--checkpoint", chain.stage2, "--output", tmp_path / "out")
    assert "GT" in message and name.format("00000") in message
    assert not (tmp_path / "out").exists()


def test_one_evaluation_at_a_time_writes_into_a_folder(chain, refusal, tmp_path):
    out = tmp_path / "out"
    out.mkdir()
    hold = "import fcntl, sys; f = open(sys.argv[1], 'w'); fcntl.lockf(f, fcntl.LOCK_EX)"
    command = [sys.executable, "-c", f"{hold}; print(flush=True); sys.stdin.read()", out / ".lock"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as other:
        other.stdout.readline()
        for given in (
            ("--checkpoint", chain.stage2),
            ("--masks", chain.masks),
            ("--checkpoint", chain.stage2, "--video", "clip", "--flow-estimator", "dis"),
        ):
            message = refusal(evaluate, "--config", chain.settings, *given, "--output", out)
            assert f"another process is {'writing' if 'clip' in given else 'evaluating'}" in message
            assert files(out) == {}
        other.stdin.close()


# Going on with a run


def test_resuming_a_finished_run_leaves_its_checkpoints_and_settings(chain, call, tmp_path):
    for name, module in (("pretrain", pretrain), ("train", train)):
        run_dir = tmp_path / name
        shutil.copytree(chain.folder / "runs" / name, run_dir)
        before = files(run_dir)
        printed = call(module, "--resume", run_dir, "--learning-rate", "0.5")
        assert f"{run_dir} is finished, with {2 if name == 'pretrain' else 1} epochs" in printed
        assert "best validation J" in printed
        assert files(run_dir) == before


def test_a_run_of_the_other_script_is_refused_and_left_alone(chain, refusal, tmp_path):
    for own, other, module in (("pretrain", "train", train), ("train", "pretrain", pretrain)):
        run_dir = tmp_path / own
        shutil.copytree(chain.folder / "runs" / own, run_dir)
        before = files(run_dir)
        message = refusal(module, "--resume", run_dir, "--epochs", "3")
        assert f"{run_dir} is a run of {own}.py, not of {other}.py" in message
        assert files(run_dir) == before


@pytest.mark.parametrize("module", [pretrain, train])
def test_resuming_needs_nothing_that_the_run_started_from(module, chain, call, tmp_path):
    run_dir = tmp_path / module.__name__
    shutil.copytree(chain.folder / "runs" / module.__name__, run_dir)
    settings = read_settings_file(run_dir / "settings.py", DEFAULTS).replace(
        pretrained_backbone=True,
        backbone_weights=str(tmp_path / "gone.safetensors"),
        stage1_checkpoint=str(tmp_path / "gone.pt"),
    )
    write_settings(settings, run_dir / "settings.py")
    assert "resuming" in call(module, "--resume", run_dir, "--epochs", "3")
    assert read_settings_file(run_dir / "settings.py", DEFAULTS) == settings.replace(epochs=3)


def test_auto_begins_a_run_and_goes_on_with_it_by_the_same_command(chain, call, tmp_path):
    flags = ("--config", chain.settings, "--epochs", "2", "--resume", "auto")
    assert "resuming" not in call(pretrain, *flags)
    weights = (tmp_path / "runs/pretrain/last.pt").read_bytes()
    assert "runs/pretrain is finished" in call(pretrain, *flags)
    assert (tmp_path / "runs/pretrain/last.pt").read_bytes() == weights
    more = (*flags[:3], "3", *flags[4:])
    assert "resuming runs/pretrain after epoch 2 of 3" in call(pretrain, *more)
    starts = json.loads((tmp_path / "runs/pretrain/record.json").read_text())["starts"]
    assert len(starts) == 2


def test_a_run_that_ended_before_its_first_checkpoint_begins_anew(chain, call, tmp_path):
    run_dir = tmp_path / "run"
    run_dir.mkdir()
    shutil.copy(chain.folder / "runs/pretrain/settings.py", run_dir)
    call(pretrain, "--resume", run_dir)
    first, second = (
        load_checkpoint(d / "last.pt")["weights"] for d in (chain.folder / "runs/pretrain", run_dir)
    )
    assert all((first[name] == second[name]).all() for name in first)


def test_a_dry_run_writes_nothing(chain, call, tmp_path):
    for module, start in ((pretrain, ()), (train, ("--stage1-checkpoint", chain.stage1))):
        printed = call(module, "--config", chain.settings, "--dry-run", *start)
        assert "the whole run: 1 epochs of" in printed and "M parameters" in printed
    assert list(tmp_path.iterdir()) == []


# What is refused


def test_a_stage_1_checkpoint_of_another_network_is_refused(chain, refusal, tmp_path):
    flags = ("--config", chain.settings, "--stage1-checkpoint", chain.stage1)
    message = refusal(train, *flags, "--backbone", "resnet10t", "--channels", "24")
    assert "BACKBONE is 'mobilenetv3_small_100' there, 'resnet10t' here" in message
    assert "CHANNELS is 16 there, 24 here" in message
    missing = tmp_path / "gone.pt"
    message = refusal(train, "--config", chain.settings, "--stage1-checkpoint", missing)
    assert f"there is no checkpoint {missing}" in message
    message = refusal(pretrain, "--config", chain.settings, "--stage1-checkpoint", chain.stage1)
    assert "pretrain.py begins with the backbone's weights" in message
    assert not (tmp_path / "runs").exists()


def test_stage_1_alone_is_evaluated_on_frames_without_flow(chain, call, tiny_root, tmp_path):
    """On the CPU, by the network's forward pass, frame by frame."""
    root = tmp_path / "data"
    without = shutil.ignore_patterns("FLOW")
    shutil.copytree(tiny_root / "DAVIS_test", root / "DAVIS_test", ignore=without)
    flags = ("--config", chain.settings, "--checkpoint", chain.stage1, "--data-root", root)
    printed = call(evaluate, *flags, "--output", "alone")
    assert "64 pixels, stage 1: images alone, from" in printed
    assert re.fullmatch(r"J&F \d\.\d{4}", printed.splitlines()[-1])
    assert len(list((tmp_path / "alone/panels").rglob("*.png"))) == 6
    model = build_from_checkpoint(load_checkpoint(chain.stage1)).eval()
    for sequence in video_sequences(root, "DAVIS_test", flow=False):
        for frame in sequence.frames:
            image = show(read_image(frame.image), None, whole_frame(64))["image"]
            with torch.inference_mode():
                logits = resize(model(image.unsqueeze(0)).logits[0], (48, 64))
            expected = to_labels(logits.sigmoid()[0].numpy(), stretch=True) > 0
            found = read_mask(tmp_path / f"alone/masks/{sequence.name}/{frame.name[-5:]}.png")
            assert np.mean(found == expected) > 0.995


def test_stage_1_alone_takes_no_video_and_no_settings_of_motion(chain, refusal, tmp_path):
    flags = ("--config", chain.settings, "--checkpoint", chain.stage1)
    message = refusal(evaluate, *flags, "--video", tmp_path, "--output", "out")
    assert str(chain.stage1) in message and "stage 1" in message and "train.py" in message
    assert "--num-references: without effect" in refusal(evaluate, *flags, "--num-references", "5")


@pytest.mark.parametrize("number", [errno.EACCES, errno.EROFS, errno.ENOSPC])
def test_a_file_that_may_not_be_used_is_named(number):
    def main():
        raise OSError(number, os.strerror(number), "/results")

    with pytest.raises(SystemExit) as stop:
        run_script(main)
    message = f"error: /results could not be read or written: {os.strerror(number)}"
    assert stop.value.code == message


def fails():
    raise DatasetError("x.jpg is damaged")


def is_stopped(together: bool):
    raise Interrupted(signal.SIGTERM, together)


@pytest.mark.parametrize(
    ("main", "status", "left"),
    [
        (lambda: None, None, True),
        (fails, "error: x.jpg is damaged", False),
        (lambda: is_stopped(True), 143, True),
        (lambda: is_stopped(False), 143, False),
    ],
)
def test_the_group_is_left_only_where_all_processes_leave_it(main, status, left, monkeypatch):
    """NCCL waits for the others: after an error in one process, none would get to its message."""
    calls = []
    monkeypatch.setattr("utils.scripts.end_process", lambda: calls.append(1))
    with contextlib.nullcontext() if status is None else pytest.raises(SystemExit) as stop:
        run_script(main)
    assert status is None or stop.value.code == status
    assert bool(calls) == left


@pytest.mark.parametrize("kind", [CheckpointError, RuntimeError, ValueError, OSError])
def test_a_loader_process_that_dies_is_named_whatever_it_breaks_into(kind):
    said = "DataLoader worker (pid 7) is killed by signal: Killed."

    def main():
        try:
            raise RuntimeError(said)
        except RuntimeError as error:
            raise kind(f"last.pt could not be written: {error}") from error

    def by_its_cause_alone():
        raise kind("not written") from RuntimeError(said)

    for script in (main, by_its_cause_alone):
        with pytest.raises(SystemExit) as stop:
            run_script(script)
        assert stop.value.code.startswith(f"error: {said}\n") and "WORKERS" in stop.value.code


@pytest.mark.parametrize(
    "said",
    [
        "DataLoader worker (pid 7) is killed by signal: Bus error. It is possible that "
        "dataloader's workers are out of shared memory. Please try to raise your limit.",
        "Caught RuntimeError in DataLoader worker process 0.\nTraceback (most recent call):\n"
        "RuntimeError: unable to allocate shared memory(shm) for file </torch_7_3_0>: No space "
        "left on device (28)",
        "unable to write to file </torch_7_3_0>: No space left on device (28)",
    ],
)
def test_shared_memory_that_is_full_is_said_with_what_to_do(said):
    def main():
        try:
            raise RuntimeError(said)
        except RuntimeError as error:
            raise DatasetError("cannot be read") from error

    with pytest.raises(SystemExit) as stop:
        run_script(main)
    assert stop.value.code.startswith("error: ") and "Traceback" not in stop.value.code
    assert "--shm-size" in stop.value.code and "fewer WORKERS" in stop.value.code


@pytest.mark.parametrize("kind", [torch.cuda.OutOfMemoryError, RuntimeError])
def test_memory_that_is_too_small_is_said_with_what_to_do(kind):
    cuda = kind is torch.cuda.OutOfMemoryError
    said = (
        "CUDA out of memory. Tried to allocate 2 GiB."
        if cuda
        else ("[enforce fail at alloc_cpu.cpp:121] . DefaultCPUAllocator: can't allocate memory")
    )

    def main():
        raise kind(said)

    with pytest.raises(SystemExit) as stop:
        run_script(main)
    assert stop.value.code.startswith(f"error: {said}\n") and "BATCH_SIZE" in stop.value.code


@pytest.mark.parametrize(
    "trained_on, given, noted",
    [
        ("raft, camera motion kept", "raft, camera motion kept", False),
        ("raft, camera motion kept", "dis, camera motion kept", True),
        ("dis, camera motion kept", "dis, camera motion removed", True),
        (None, "dis, camera motion kept", False),
        ("dis, camera motion kept", None, False),
    ],
)
def test_flow_maps_of_another_kind_are_noted(trained_on, given, noted, capsys):
    compare_flow(trained_on, given)
    printed = capsys.readouterr().out
    assert bool(printed) == noted
    assert not noted or (trained_on in printed and given in printed)


def test_flow_maps_of_other_images_are_noted(tmp_path, capsys):
    folder = tmp_path / "DAVIS_test/bear"
    for number in range(3):
        write_picture(folder / f"RGB/bear_{number}.png", np.full((40, 50, 3), number, np.uint8))
    make_flow(tmp_path, "DAVIS_test", build_estimator("dis"))
    note_flow("DAVIS_test", video_sequences(tmp_path, "DAVIS_test", masks="none"))
    assert capsys.readouterr().out == ""
    write_picture(folder / "RGB/bear_2.png", np.full((40, 50, 3), 99, np.uint8))
    note_flow("DAVIS_test", video_sequences(tmp_path, "DAVIS_test", masks="none"))
    assert "note: DAVIS_test: 2 flow maps are of other images" in capsys.readouterr().out


def test_evaluating_a_missing_or_a_damaged_checkpoint_is_refused(chain, refusal, tmp_path):
    flags = ("--config", chain.settings, "--checkpoint")
    assert "there is no checkpoint" in refusal(evaluate, *flags, tmp_path / "gone.pt")
    damaged = tmp_path / "damaged.pt"
    damaged.write_bytes(chain.stage2.read_bytes()[:5000])
    assert f"{damaged} cannot be read" in refusal(evaluate, *flags, damaged)
    checkpoint = load_checkpoint(chain.stage2)
    for name, value in (("RECOLOUR_FLOW", None), ("IMAGE_SIZE", [64]), ("NUM_REFERENCES", "x")):
        settings = {**checkpoint["settings"], name: value}
        torch.save({**checkpoint, "settings": settings}, damaged)
        message = refusal(evaluate, *flags, damaged)
        assert f"a setting of its run is damaged: {name.lower()}={value!r}: expected" in message


def test_missing_data_is_refused_by_every_script_before_anything_is_written(
    chain, refusal, tmp_path
):
    nowhere = tmp_path / "nowhere"
    flags = ("--config", chain.settings, "--data-root", nowhere)
    for module, more, name in (
        (pretrain, (), "DUTS_train"),
        (train, ("--stage1-checkpoint", chain.stage1), "DAVIS_train"),
        (evaluate, ("--checkpoint", chain.stage2, "--set", "DAVIS_val"), "DAVIS_val"),
        (evaluate, ("--masks", chain.masks), "DAVIS_test"),
    ):
        message = refusal(module, *flags, *more)
        assert f"Data set {name} not found. {nowhere} is not a folder." in message
    assert list(tmp_path.iterdir()) == []


def test_a_truncated_image_is_found_before_training(chain, refusal, tiny_root, tmp_path):
    root = tmp_path / "data"
    shutil.copytree(tiny_root, root)
    path = sorted((root / "DAVIS_train/RGB").iterdir())[3]
    path.write_bytes(path.read_bytes()[:-20])
    message = refusal(
        *(train, "--config", chain.settings, "--data-root", root),
        *("--stage1-checkpoint", chain.stage1),
    )
    assert f"{path}: truncated" in message
    assert "1 problem in the files of 20 frames" in message
    assert not (tmp_path / "runs").exists()


def test_training_needs_flow_maps_and_the_message_says_how_to_make_them(
    chain, tiny_root, refusal, tmp_path
):
    root = tmp_path / "data"
    shutil.copytree(tiny_root, root)
    shutil.rmtree(root / "DAVIS_train/FLOW")
    message = refusal(train, "--config", chain.settings, "--data-root", root)
    assert "10 x image without flow map" in message
    assert f"python -m datasets.flow --data-root {root} --set DAVIS_train" in message
    assert not (tmp_path / "runs").exists()


def test_a_file_that_breaks_later_stops_training_with_its_path_alone(chain, tiny_root, tmp_path):
    root = tmp_path / "data"
    shutil.copytree(tiny_root / "DUTS_train", root / "DUTS_train")
    # Every mask, for one of the images is kept back for validation.
    for path in (root / "DUTS_train/GT").iterdir():
        content = bytearray(path.read_bytes())
        start = content.index(b"IDAT") + 4
        content[start : start + 8] = b"\xff" * 8
        path.write_bytes(content)
    result = run(
        *(tmp_path, ROOT / "pretrain.py", "--config", chain.settings),
        *("--data-root", root, "--workers", "1"),
    )
    assert result.returncode == 1
    assert re.search(rf"error: {root}/DUTS_train/GT/still_\d+\.png: damaged inside", result.stderr)
    assert "Traceback" not in result.stderr + result.stdout


@pytest.mark.parametrize("flag", ["--chekpoint", "--mask"])
def test_a_misspelt_flag_of_the_evaluation_is_no_missing_one(flag, call, capsys):
    with pytest.raises(SystemExit):
        call(evaluate, flag, "x")
    nearest = {"--chekpoint": "--checkpoint", "--mask": "--masks"}[flag]
    assert f"{flag}: no such flag; the nearest is {nearest}\n" in capsys.readouterr().err


def test_a_checkpoint_of_stage_2_in_the_place_of_stage_1_is_said(chain, call, tmp_path):
    flags = ("--config", chain.settings, "--output-dir", tmp_path, "--dry-run")
    note = f"note: {chain.stage2} is of stage 2 (train.py), so all its weights are taken"
    assert note in call(train, *flags, "--stage1-checkpoint", chain.stage2)
    assert "is of stage 2" not in call(train, *flags, "--stage1-checkpoint", chain.stage1)


# The other networks


def test_dpa_goes_through_the_same_scripts(tiny_settings, call, refusal, tmp_path):
    settings = tiny_settings.replace(model="dpa", graph_neighbours=4)
    write_settings(settings, tmp_path / "settings.py")
    flags = ("--config", tmp_path / "settings.py")
    begun = call(pretrain, *flags, "--num-clusters", "9", "--graph-rounds", "2", "--seed", "1")
    assert "without effect on dpa: NUM_CLUSTERS\n" in begun
    stage1, stage2 = (tmp_path / f"runs/{name}/last.pt" for name in ("pretrain", "train"))
    printed = call(train, *flags, "--stage1-checkpoint", stage1)
    first, second = (load_checkpoint(path)["weights"] for path in (stage1, stage2))
    stream = sum(name.startswith("rgb_stream.") for name in first)
    assert f"{len(first)} tensors loaded, {stream} copied from the RGB to the flow" in printed
    assert any(name.startswith("flow_stream.inter_frame.") for name in second)
    # The loss of its paper is that of IoU alone.
    assert re.search(r"loss (\d\.\d{3}) \(iou \1\)", printed)
    own = ("--config", tmp_path / "settings.py", "--checkpoint", stage2)
    scored = call(evaluate, *own, "--output", "out", "--num-references", "2")
    assert re.fullmatch(r"J&F \d\.\d{4}", scored.splitlines()[-1])
    assert "dpa with mobilenetv3_small_100, 64 pixels, 2 reference frames" in scored
    for panel in (tmp_path / "out/panels").rglob("*.png"):
        with Image.open(panel) as picture:
            assert picture.size == (8 * 240, 180 + 22)
    message = refusal(evaluate, *own, "--output", "other", "--num-iterations", "4")
    assert "--num-iterations: without effect" in message
    other = ("--model", "gsanet", "--run-name", "other", "--stage1-checkpoint", stage1)
    assert "MODEL" in refusal(train, *flags, *other)


def test_stage_2_takes_still_images_if_asked_to(tiny_settings, call, refusal, tmp_path):
    settings = tiny_settings.replace(still_share=0.3)
    write_settings(settings, tmp_path / "settings.py")
    printed = call(train, "--config", tmp_path / "settings.py")
    assert "DAVIS_train: 2 sequences, DUTS_train: 6 images, validation" in printed
    assert "step 3 " in printed  # 10 frames and 4 images in batches of 4
    assert "note: DUTS_train" not in printed
    flags = ("--still-share", 0.7, "--run-name", "few", "--dry-run")
    printed = call(train, "--config", tmp_path / "settings.py", *flags)
    note = "note: DUTS_train has 6 images, 38% of an epoch's samples and not STILL_SHARE = 0.7"
    assert note in printed
    seen = json.loads((tmp_path / "runs/train/record.json").read_text())
    assert "DUTS_train" in json.dumps(seen)
    flags = ("--config", tmp_path / "settings.py", "--run-name", "no")
    assert "Data set NONE not found" in refusal(train, *flags, "--pretrain-set", "NONE")
    flags = ("--model", "ssl_uvos", "--backbone", "vit_tiny_patch16_224", "--still-share", 0.3)
    message = refusal(train, "--config", tmp_path / "settings.py", "--run-name", "no", *flags)
    assert "STILL_SHARE = 0.3: ssl_uvos learns from videos alone; set it to 0" in message


def test_sets_with_flow_of_different_kinds_are_said(tiny_settings, call, monkeypatch, tmp_path):
    write_settings(tiny_settings, tmp_path / "settings.py")
    kinds = {"DAVIS_train": "raft, camera motion kept", "DAVIS_test": "dis, camera motion kept"}
    monkeypatch.setattr(train, "flow_origin", lambda root, name: kinds[name])
    printed = call(train, "--config", tmp_path / "settings.py")
    (note,) = (line for line in printed.splitlines() if "another kind" in line)
    assert note == (
        "note: trained on flow maps of another kind (raft, camera motion kept) than those of "
        "DAVIS_test (dis, camera motion kept)"
    )


def test_stage_1_is_the_papers(tiny_settings, tiny_root):
    frames = still_images(tiny_root, "DUTS_train")
    augmentation = augmentation_from(tiny_settings)
    samples = stills_of(frames, tiny_settings, augmentation)
    assert isinstance(samples, StillImages)
    rng = np.random.default_rng([tiny_settings.seed, 2, 3])
    pictures = read_image(frames[3].image), None, read_mask(frames[3].mask).view(np.uint8)
    image, _, labels = augmentation(rng, 64, *pictures)
    found = samples[2, 3]
    assert found.keys() == {"image", "labels"}
    assert np.array_equal(found["image"].permute(1, 2, 0), image)
    assert np.array_equal(found["labels"], labels)


def test_a_networks_loss_may_be_another(tiny_settings, call, tmp_path):
    write_settings(tiny_settings.replace(loss="bce"), tmp_path / "settings.py")
    printed = call(pretrain, "--config", tmp_path / "settings.py")
    assert re.search(r"loss (\d\.\d{3}) \(bce \1\)", printed)


@pytest.mark.parametrize("module", [pretrain, train])
def test_a_misspelt_network_is_refused_with_the_nearest(module, chain, refusal):
    message = refusal(module, "--config", chain.settings, "--run-name", "new", "--model", "dpaa")
    assert (
        "MODEL is 'dpaa', but the networks are gsanet, dpa, smtc, ssl_uvos; did you mean 'dpa'?"
        in message
    )


# Several processes


def test_two_processes_train_together_and_write_once(chain):
    printed = done(
        chain.folder,
        *("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"),
        *(ROOT / "train.py", "--config", chain.settings, "--run-name", "two"),
    )
    assert printed.count("stage 2: gsanet") == 1
    assert printed.count("epoch 1/1") == 1
    assert printed.count("best validation J") == 1
    run_dir = chain.folder / "runs/two"
    assert len(list(run_dir.glob("events.out.tfevents.*"))) == 1
    # 10 frames in batches of 4 over both processes.
    assert load_checkpoint(run_dir / "last.pt")["progress"]["step"] == 2
    one = load_checkpoint(chain.folder / "runs/train/last.pt")["weights"]
    two = load_checkpoint(run_dir / "last.pt")["weights"]
    assert {name: tensor.shape for name, tensor in one.items()} == {
        name: tensor.shape for name, tensor in two.items()
    }


def test_the_validation_does_not_depend_on_the_number_of_processes(
    tiny_settings, tiny_root, monkeypatch
):
    """Stages 1 and 2, with what three processes find put together by hand."""
    settings = tiny_settings.replace(eval_batch_size=1)
    sequences = video_sequences(tiny_root, "DAVIS_test")
    frames = still_images(tiny_root, "DUTS_train")
    for validate, data, motion in (
        (validate_videos, sequences, True),
        (validate_stills, frames, False),
    ):
        model = build_model("gsanet", **network_arguments(settings, motion=motion)).eval()
        alone = validate(model, data, settings, Process("cpu"))
        found = []

        def collect(value, process, found=found):
            found.append(value)
            return [value] if process.is_main else [found[0], value]

        monkeypatch.setattr(validation, "gather", collect)
        for rank in range(3):
            with contextlib.suppress(IndexError, ValueError):
                validate(model, data, settings, Process("cpu", rank, 3))
        monkeypatch.setattr(validation, "gather", lambda value, process, found=found: found)
        together = validate(model, data, settings, Process("cpu", 0, 3))
        assert (together.score, together.parts) == (alone.score, alone.parts)
        assert together.frames == together.of == alone.frames > 0
        quick = validate(model, data, settings, Process("cpu", 0, 3), quick=True)
        assert quick.of == alone.frames
        if validate is validate_videos:  # what one process has done, which a dry run divides by
            assert quick.frames == 1
        monkeypatch.undo()


def test_a_quick_validation_counts_all_frames_that_are_segmented(
    tiny_settings, tiny_root, monkeypatch
):
    model = build_model("gsanet", **network_arguments(tiny_settings, motion=True)).eval()
    sequences = video_sequences(tiny_root, "DAVIS_test")
    settings = tiny_settings.replace(eval_batch_size=2)
    for looks_ahead, frames in ((False, 2), (True, len(sequences[0].frames))):
        monkeypatch.setattr(type(model), "looks_ahead", looks_ahead)
        found = validate_videos(model, sequences, settings, Process("cpu"), quick=True)
        assert found.frames == frames


def test_stage_1_validates_masks_as_the_settings_make_them(tiny_settings, tiny_root):
    torch.manual_seed(0)
    model = build_model("gsanet", **network_arguments(tiny_settings, motion=False)).eval()
    frames = still_images(tiny_root, "DUTS_train")
    plain = tiny_settings.replace(threshold=0.9)  # above all that an untrained network gives
    assert validate_stills(model, frames, plain, Process("cpu")).score == 0
    stretched = plain.replace(stretch_masks=True)
    assert validate_stills(model, frames, stretched, Process("cpu")).score > 0


def test_networks_without_slots_are_validated_too(tiny_settings, tiny_root):
    """Table 2 (a) has no maps to show by iteration."""
    settings = tiny_settings.replace(
        guided_slots=False, knn_filtering=False, slot_attention=False, aggregation_transformer=False
    )
    model = build_model("gsanet", **network_arguments(settings, motion=True)).eval()
    sequences = video_sequences(tiny_root, "DAVIS_test")
    result = validate_videos(model, sequences, settings, Process("cpu"), quick=True)
    assert result.pictures.keys() == {"panel"}
    with_slots = build_model("gsanet", **network_arguments(tiny_settings, motion=True)).eval()
    result = validate_videos(with_slots, sequences, tiny_settings, Process("cpu"), quick=True)
    assert result.pictures.keys() == {"panel", "slot maps by iteration"}


@pytest.mark.parametrize("script", [pretrain, train])
def test_several_processes_do_not_compile(refusal, monkeypatch, script):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    message = refusal(script, "--gpu", "0,1", "--compile")
    assert "COMPILE is on" in message and "2 processes" in message


def test_one_process_of_torchrun_may_compile_on_a_machine_with_more_gpus(refusal, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setenv("LOCAL_RANK", "0")
    one = Process(torch.device("cpu"))
    monkeypatch.setattr("utils.training.start.start_process", lambda _: one)
    assert "COMPILE" not in refusal(train, "--gpu", "0,1", "--compile", "--data-root", "none")


def test_torchrun_s_processes_do_not_compile(refusal, monkeypatch):
    monkeypatch.setattr(
        "utils.training.start.start_process",
        lambda _: Process(torch.device("cpu"), rank=0, world_size=3),
    )
    assert "3 processes" in refusal(train, "--gpu", "", "--compile")
