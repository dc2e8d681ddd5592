"""Checkpoints: whole files only, no code in them, and what of stage 1 goes where."""

import errno
import itertools
import math
import multiprocessing
import os
import pickle
import resource
import signal
import sys
import zipfile
from pathlib import Path

import huggingface_hub
import pytest
import safetensors.torch
import torch

import train
from models import build_model
from utils.settings import write_settings
from utils.training.checkpoints import (
    CheckpointError,
    build_from_checkpoint,
    check_same_network,
    find_checkpoint,
    load_checkpoint,
    save_checkpoint,
    write_published,
)
from utils.training.samples import network_arguments

CHECKPOINT = {
    "model": "gsanet",
    "arguments": {"motion": True, "backbone": "mit_b0", "channels": 16},
    "settings": {
        "EPOCHS": 3,
        "TRAIN_SETS": ["a", "b"],
        "RUN_NAME": None,
        "SIGMA": 0.1,
        "IMAGE_SIZE": 64,
        "NUM_REFERENCES": 3,
        "RECOLOUR_FLOW": True,
    },
    "weights": {"x": torch.arange(1000.0), "y": torch.tensor(3)},
    "progress": {"epoch": 1, "step": 7, "best": 0.25},
}


def complaint(call, *args) -> str:
    with pytest.raises(CheckpointError) as caught:
        call(*args)
    return str(caught.value)


def make(settings, motion: bool, seed: int, **changes):
    """A small network and its constructor's arguments."""
    torch.manual_seed(seed)
    arguments = network_arguments(settings.replace(**changes), motion=motion)
    return build_model("gsanet", **arguments), arguments


def test_what_is_saved_is_loaded(tmp_path):
    path = tmp_path / "last.pt"
    save_checkpoint(path, CHECKPOINT)
    loaded = load_checkpoint(str(path))
    assert torch.equal(loaded.pop("weights")["x"], CHECKPOINT["weights"]["x"])
    assert loaded == {name: value for name, value in CHECKPOINT.items() if name != "weights"}
    assert [file.name for file in tmp_path.iterdir()] == ["last.pt"]


def step(number: int) -> dict:
    """A checkpoint whose tensor and progress both tell which it is."""
    weights = {"x": torch.full((20_000,), number)}
    return {**CHECKPOINT, "weights": weights, "progress": {"step": number}}


def step_of(checkpoint: dict) -> int:
    assert (checkpoint["weights"]["x"] == checkpoint["progress"]["step"]).all()
    return checkpoint["progress"]["step"]


def files(folder: Path) -> list[str]:
    return sorted(os.listdir(folder))


def in_process(action, *args) -> multiprocessing.Process:
    """A process of its own, started without importing everything again."""
    process = multiprocessing.get_context("fork").Process(target=action, args=args)
    process.start()
    return process


def flip(path: Path, position: int) -> None:
    content = bytearray(path.read_bytes())
    content[position] ^= 0x10
    path.write_bytes(content)


def tensor_position(path: Path) -> int:
    """A byte in the middle of the largest record."""
    with zipfile.ZipFile(path) as archive:
        record = max(archive.infolist(), key=lambda one: one.file_size)
    return record.header_offset + 200 + record.file_size // 2


def test_a_file_too_large_leaves_the_older_ones_whole_and_nothing_else(tmp_path):
    save_checkpoint(tmp_path / "last.pt", step(1))
    before = {name: (tmp_path / name).read_bytes() for name in files(tmp_path)}

    def save_with_little_room():
        resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, 50_000))
        message = complaint(save_checkpoint, tmp_path / "last.pt", step(2))
        assert message == f"{tmp_path / 'last.pt'} could not be written: File too large"

    process = in_process(save_with_little_room)
    process.join()
    assert process.exitcode == 0
    assert {name: (tmp_path / name).read_bytes() for name in files(tmp_path)} == before


@pytest.mark.parametrize("call", ["fsync", "replace"])
def test_a_full_disk_at_any_step_is_said(tmp_path, monkeypatch, call):
    path = tmp_path / "last.pt"
    save_checkpoint(path, step(0))

    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(os, call, full)
        message = complaint(save_checkpoint, path, step(1))
        assert message == f"{path} could not be written: No space left on device"
    assert step_of(load_checkpoint(path)) == 0
    assert files(tmp_path) == ["last.pt"]


def test_what_cannot_be_saved_leaves_nothing_behind(tmp_path):
    with pytest.raises((AttributeError, TypeError, pickle.PicklingError)):
        save_checkpoint(tmp_path / "last.pt", {**CHECKPOINT, "extra": lambda: None})
    assert files(tmp_path) == []


def save_until_killed(folder: Path, fatal_call: int | None = None) -> None:
    """Save one checkpoint after another; die right before a given call to the system's."""
    calls = itertools.count()

    def dying(function):
        def call(*args, **kwargs):
            if next(calls) == fatal_call:
                os.kill(os.getpid(), signal.SIGKILL)
            return function(*args, **kwargs)

        return call

    if fatal_call is not None:
        for name in ("replace", "fsync"):
            setattr(os, name, dying(getattr(os, name)))
    for number in itertools.count(1):
        save_checkpoint(folder / "last.pt", step(number))


def test_a_save_killed_at_any_step_leaves_a_whole_checkpoint(tmp_path):
    save_checkpoint(tmp_path / "last.pt", step(0))
    for call in range(6):  # three saves make so many
        process = in_process(save_until_killed, tmp_path, call)
        process.join()
        assert process.exitcode == -signal.SIGKILL
        step_of(load_checkpoint(tmp_path / "last.pt"))
        # It left something half-done, which the next one does not mind.
        assert files(tmp_path) == [".last.pt.partial", "last.pt"]
    save_checkpoint(tmp_path / "last.pt", step(1))
    assert files(tmp_path) == ["last.pt"]
    assert step_of(load_checkpoint(tmp_path / "last.pt")) == 1


class Intruder:
    """Touches a file when it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (str(self.path), "w")


def test_code_in_a_checkpoint_is_refused_and_not_run(tmp_path):
    trace = tmp_path / "trace"
    torch.save({**CHECKPOINT, "extra": Intruder(trace)}, tmp_path / "zip.pt")
    plain = pickle.dumps({**CHECKPOINT, "extra": Intruder(trace)}, protocol=2)
    (tmp_path / "plain.pt").write_bytes(plain)
    for name in ("zip.pt", "plain.pt"):
        message = complaint(load_checkpoint, tmp_path / name)
        assert str(tmp_path / name) in message
        assert "cannot be read as a checkpoint" in message
        assert "\n" not in message
    assert not trace.exists()
    message = complaint(load_checkpoint, tmp_path / "zip.pt")
    assert message.endswith("more than tensors and plain values, and code in it is never run")


def test_damaged_truncated_and_missing_files_are_named(tmp_path):
    whole = tmp_path / "whole.pt"
    save_checkpoint(whole, CHECKPOINT)
    content = whole.read_bytes()
    files = {
        "truncated.pt": content[: len(content) // 2],
        "empty.pt": b"",
        "text.pt": b"these are not the weights you are looking for",
        "image.pt": b"\x89PNG\r\n\x1a\n" + bytes(200),
    }
    for name, damaged in files.items():
        (tmp_path / name).write_bytes(damaged)
        message = complaint(load_checkpoint, tmp_path / name)
        assert message.startswith(f"{tmp_path / name} cannot be read as a checkpoint: ")
    missing = tmp_path / "missing.pt"
    assert complaint(load_checkpoint, missing) == f"there is no checkpoint {missing}"
    assert str(tmp_path) in complaint(load_checkpoint, tmp_path)


def test_a_single_wrong_bit_is_found_wherever_it_matters(tmp_path):
    path = tmp_path / "last.pt"
    save_checkpoint(path, CHECKPOINT)
    whole = path.read_bytes()
    flip(path, tensor_position(path))
    assert complaint(load_checkpoint, path) == (
        f"{path} cannot be read as a checkpoint: it is damaged or no file of torch.save (the "
        "checksum of its record archive/data/0 is wrong)"
    )
    harmless = 0
    for position in range(0, len(whole), 13):
        path.write_bytes(whole)
        flip(path, position)
        try:
            loaded = load_checkpoint(path)
        except CheckpointError as error:
            assert str(path) in str(error)
            continue
        harmless += 1
        assert all(torch.equal(loaded["weights"][n], CHECKPOINT["weights"][n]) for n in "xy")
        assert {**loaded, "weights": 0} == {**CHECKPOINT, "weights": 0}
    assert harmless < len(whole) / 13 / 2  # in dates and padding


def published(folder: Path) -> Path:
    folder.mkdir(exist_ok=True)
    write_published(folder / "model.safetensors", CHECKPOINT, {"network": "small"})
    return folder


def test_a_published_checkpoint_is_loaded_from_its_file_and_its_folder(tmp_path):
    folder = published(tmp_path / "published")
    for path in (folder, folder / "model.safetensors"):
        loaded = load_checkpoint(path)
        weights = loaded.pop("weights")
        assert {**loaded, "weights": 0} == {**CHECKPOINT, "weights": 0}
        assert weights.keys() == {"x", "y"}
        assert all(torch.equal(weights[n], CHECKPOINT["weights"][n]) for n in "xy")


def test_files_of_safetensors_that_are_damaged_or_foreign_are_refused(tmp_path):
    path = published(tmp_path) / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])
    assert "it is damaged or no file of safetensors (" in complaint(load_checkpoint, path)
    safetensors.torch.save_file({"x": torch.zeros(1)}, path)
    assert "it lacks model, arguments, settings" in complaint(load_checkpoint, path)


def test_a_name_of_the_hub_is_downloaded(tmp_path, monkeypatch):
    asked, file = [], published(tmp_path / "cache") / "model.safetensors"

    def download(*names):
        asked.append(names)
        return str(file)

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(huggingface_hub, "hf_hub_download", download)
    assert load_checkpoint("some-one/gsa.net")["model"] == "gsanet"
    assert find_checkpoint(Path("some-one/gsa.net")) == file
    assert asked == [("some-one/gsa.net", "model.safetensors")] * 2
    # These are no names of the hub, or there is a file.
    for name in ("runs/best.pt", "runs/train/best", "best", "../best", "/runs/best"):
        assert complaint(load_checkpoint, name) == f"there is no checkpoint {name}"
    save_checkpoint(tmp_path / "some-one/gsa.net", CHECKPOINT)
    assert find_checkpoint("some-one/gsa.net") == Path("some-one/gsa.net")
    assert len(asked) == 2


def test_a_failed_download_is_explained(tmp_path, monkeypatch):
    def offline(*_):
        raise OSError("no connection\nand more")

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(huggingface_hub, "hf_hub_download", offline)
    missing = "there is no file or folder a/b, and no model a/b could be downloaded"
    message = complaint(load_checkpoint, "a/b")
    assert message == f"{missing} from huggingface.co (OSError: no connection)"
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    message = complaint(load_checkpoint, "a/b")
    assert message == f"{missing} without the package huggingface_hub: pip install huggingface_hub"


def test_a_foreign_file_is_refused_with_what_it_lacks(tmp_path):
    torch.save({"weights": {}, "model": "x", "epoch": 3}, tmp_path / "foreign.pt")
    message = complaint(load_checkpoint, tmp_path / "foreign.pt")
    assert "not a checkpoint of this project: it lacks arguments, settings" in message
    torch.save(torch.zeros(3), tmp_path / "tensor.pt")
    message = complaint(load_checkpoint, tmp_path / "tensor.pt")
    assert "it lacks model, arguments, settings, weights" in message


@pytest.mark.parametrize(
    ("part", "name", "value", "message"),
    [
        ("model", None, 3, "it lacks model"),
        ("arguments", None, [], "it lacks arguments, or has them in another form"),
        ("flow", None, 1.5, "it lacks flow"),
        ("script", None, 3, "it lacks script"),
        ("version", None, 3, "it lacks version"),
        ("progress", None, 3, "it lacks progress"),
        (
            "weights",
            "x",
            torch.tensor([1.0, math.nan]),
            "not finite .* such as weights.x",
        ),
        ("weights", "x", torch.tensor([math.inf]), "weights.x: its training has broken down"),
        ("training", "state", [torch.tensor(-math.inf)], "such as training.state.0"),
    ],
)
def test_contents_of_another_kind_and_numbers_that_are_none_are_refused(
    tmp_path, part, name, value, message
):
    inside = value if name is None else {**CHECKPOINT.get(part, {}), name: value}
    torch.save({**CHECKPOINT, part: inside}, tmp_path / "best.pt")
    with pytest.raises(CheckpointError, match=f"{tmp_path}/best.pt .*{message}"):
        load_checkpoint(tmp_path / "best.pt")


def test_an_argument_that_the_network_does_not_have_is_refused(tiny_settings):
    model, arguments = make(tiny_settings, motion=False, seed=1)
    checkpoint = {**CHECKPOINT, "arguments": {**arguments, "depth": 3, 4: 5}}
    message = complaint(build_from_checkpoint, {**checkpoint, "weights": model.state_dict()})
    assert "another version of the code (TypeError: " in message


@pytest.mark.parametrize(
    "change", [{"channels": "many"}, {"channels": -4}, {"channels": [4]}, {"backbone": 7}]
)
def test_arguments_of_another_type_are_refused(tiny_settings, change):
    model, arguments = make(tiny_settings, motion=False, seed=1)
    checkpoint = {**CHECKPOINT, "settings": {3: 4}, "weights": model.state_dict()}
    checkpoint["arguments"] = {**arguments, **change}
    assert "arguments give no network" in complaint(build_from_checkpoint, checkpoint)


def test_the_network_of_a_checkpoint_computes_the_same_again(tmp_path, tiny_settings):
    model, arguments = make(tiny_settings, motion=True, seed=1)
    # What the run started from is not looked for again.
    arguments |= {"pretrained_backbone": True, "backbone_weights": str(tmp_path / "gone.pth")}
    checkpoint = {**CHECKPOINT, "arguments": arguments, "weights": model.state_dict()}
    save_checkpoint(tmp_path / "best.pt", checkpoint)
    torch.manual_seed(2)
    again = build_from_checkpoint(load_checkpoint(tmp_path / "best.pt")).eval()
    longer = build_from_checkpoint(load_checkpoint(tmp_path / "best.pt"), num_iterations=5).eval()
    image, flow = torch.rand(2, 1, 3, 64, 64)
    references = torch.rand(1, 2, 3, 64, 64)
    with torch.no_grad():
        results = [
            network(image, flow, references, references).logits[0]
            for network in (model.eval(), again, longer)
        ]
    assert torch.equal(results[0], results[1])
    assert not torch.equal(results[0], results[2])


@pytest.mark.parametrize("weights", [{"x": "abc"}, {7: torch.zeros(1)}])
def test_weights_that_are_none_are_refused(tiny_settings, weights):
    arguments = network_arguments(tiny_settings, motion=False)
    with pytest.raises(CheckpointError, match="do not fit the network"):
        build_from_checkpoint({**CHECKPOINT, "arguments": arguments, "weights": weights})


def test_weights_that_no_longer_fit_are_refused(tiny_settings):
    arguments = network_arguments(tiny_settings, motion=False)
    weights = build_model("gsanet", **arguments).state_dict()
    del weights["decoder.outline.to_mask.bias"]
    with pytest.raises(CheckpointError, match=r"do not fit the network.*outline\.to_mask\.bias"):
        build_from_checkpoint({**CHECKPOINT, "arguments": arguments, "weights": weights})


def statistics_of(model):
    return {k: v.flatten().tolist() for k, v in model.state_dict().items() if ".normalise." in k}


def test_a_checkpoint_says_how_images_are_normalised(tiny_settings):
    """Whatever timm says of the backbone today."""
    kept = {"mean": [0.1, 0.2, 0.3], "deviation": [0.4, 0.5, 0.6]}
    change = {"backbone": "tf_efficientnet_lite0"}
    stills, arguments = make(tiny_settings, motion=False, seed=1, **change)
    video, _ = make(tiny_settings, motion=True, seed=2, **change)
    assert statistics_of(stills) == {
        "rgb_stream.normalise.mean": [0.5] * 3,
        "rgb_stream.normalise.deviation": [0.5] * 3,
    }
    weights = {
        k: torch.tensor(kept[k.rpartition(".")[2]]).view_as(v) if ".normalise." in k else v
        for k, v in stills.state_dict().items()
    }
    again = build_from_checkpoint({**CHECKPOINT, "arguments": arguments, "weights": weights})
    video.start_from(weights)
    for model, streams in ((again, ["rgb"]), (video, ["rgb", "flow"])):
        found = statistics_of(model)
        assert found.keys() == {f"{s}_stream.normalise.{k}" for s in streams for k in kept}
        for key, values in found.items():
            assert values == pytest.approx(kept[key.rpartition(".")[2]])


def test_another_network_backbone_or_width_is_refused_with_both_sides_named():
    arguments = {"backbone": "mit_b0", "channels": 16, "num_clusters": 8}
    check_same_network("best.pt", CHECKPOINT, "gsanet", arguments)
    message = complaint(
        check_same_network,
        "best.pt",
        CHECKPOINT,
        "gsanet",
        {"backbone": "resnet101", "channels": 32},
    )
    assert "BACKBONE is 'mit_b0' there, 'resnet101' here" in message
    assert message.startswith("best.pt is of another network: ")
    assert "CHANNELS is 16 there, 32 here" in message
    assert "MODEL" not in message
    message = complaint(check_same_network, "best.pt", CHECKPOINT, "other", arguments)
    assert "MODEL is 'gsanet' there, 'other' here" in message
    assert "BACKBONE" not in message


def test_training_refuses_a_checkpoint_of_which_nothing_fits(tmp_path, tiny_settings, monkeypatch):
    stage1 = tmp_path / "best.pt"
    save_checkpoint(stage1, {**CHECKPOINT, "arguments": make(tiny_settings, False, seed=1)[1]})
    settings = {"stage1_checkpoint": str(stage1), "output_dir": str(tmp_path / "runs")}
    write_settings(tiny_settings.replace(**settings), tmp_path / "settings.py")
    monkeypatch.setattr(sys, "argv", ["train.py", "--config", str(tmp_path / "settings.py")])
    assert f"no tensor in {stage1} fits the network" in complaint(train.main)
    assert not (tmp_path / "runs").exists()
