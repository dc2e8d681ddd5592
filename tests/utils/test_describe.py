"""What a checkpoint says about itself, and its files for publication."""

import json
import sys

import huggingface_hub
import numpy as np
import pytest
import safetensors
import torch
from PIL import Image

import config
from datasets.layout import video_sequences
from inference import load, segment_video
from tests.small_checkpoints import save_small
from utils import __version__, describe
from utils.settings import load_settings
from utils.training.checkpoints import CheckpointError, load_checkpoint, save_checkpoint

RUN = {
    "script": "train.py",
    "version": "0.9.0",
    "commit": "abc123",
    "progress": {"epoch": 3, "batch": 0, "step": 120, "best": 0.8125},
}


@pytest.fixture
def checkpoint(tiny_settings, tmp_path):
    """A checkpoint as of a run of train.py, with paths of a machine in its settings."""
    settings = tiny_settings.replace(
        epochs=9, backbone_weights="/home/me/mit.pth", threshold=0.4, stage1_checkpoint="/home/me/x"
    )
    path = save_small(tmp_path / "best.pt", settings, backbone_weights="/home/me/mit.pth")
    training = {"optimizer": {"state": {0: torch.zeros(3)}}}
    save_checkpoint(path, {**load_checkpoint(path), **RUN, "training": training})
    return path


@pytest.fixture
def run(monkeypatch):
    def call(*arguments):
        monkeypatch.setattr(sys, "argv", ["describe", *map(str, arguments)])
        describe.main()

    return call


def test_a_checkpoint_says_what_it_is(checkpoint, run, capsys):
    run(checkpoint)
    first, *lines = capsys.readouterr().out.splitlines()
    assert first == f"{checkpoint}, {checkpoint.stat().st_size / 1e6:.1f} MB"
    said = {name: text.strip() for name, _, text in (line.partition(":") for line in lines)}
    network = load(checkpoint, "cpu").segmenter.network
    assert said["network"] == "gsanet with mit_b0"
    assert said["parameters"] == f"{sum(p.numel() for p in network.parameters()):,}"
    assert "channels = 32" in said["arguments"]
    assert "THRESHOLD = 0.4" in said["settings"] and "SIGMA" not in said["settings"]
    assert said["data"] == "DAVIS_train (train.py), validated on DAVIS_test"
    mixed = load_checkpoint(checkpoint)
    mixed["settings"]["STILL_SHARE"] = 0.3
    stills = describe.describe(mixed, load_settings(config))["data"]
    assert stills.startswith("DAVIS_train, still images of DUTS_train (train.py)")
    assert said["flow maps"] == "dis, camera motion kept"
    assert said["training"] == "3 of 9 epochs, 120 steps"
    assert said["validation"] == "highest J so far 0.8125"
    assert said["code"] == "version 0.9.0, commit abc123"
    assert "Apache-2.0" in said["licences"] and "data sets" in said["licences"]


def test_a_checkpoint_of_an_older_version_says_what_is_not_known(tiny_settings, tmp_path):
    checkpoint = load_checkpoint(save_small(tmp_path / "best.pt", tiny_settings, flow=None))
    del checkpoint["weights"]["decoder.outline.to_mask.bias"]
    said = describe.describe(checkpoint, load_settings(config))
    assert said["code"] == "version not known, commit not known"
    names = ("data", "flow maps", "training", "validation")
    assert {said[name] for name in names} == {"not known"}
    assert said["parameters"].startswith("not known; the checkpoint's weights do not fit")


def test_a_published_folder_has_the_same_masks_and_no_paths(checkpoint, run, tmp_path, tiny_root):
    folder = tmp_path / "published"
    run(checkpoint, "--safetensors", folder)
    assert sorted(p.name for p in folder.iterdir()) == [
        "README.md",
        "config.json",
        "model.safetensors",
    ]
    clip = video_sequences(tiny_root, "DAVIS_test")[0].frames[0].image.parent
    one, *others = (
        list(segment_video(load(path, "cpu"), clip, probabilities=True))
        for path in (checkpoint, folder, folder / "model.safetensors")
    )
    for other in others:
        np.testing.assert_array_equal(one, other)
    assert not any(b"/home/me" in path.read_bytes() for path in folder.iterdir())


def test_header_config_and_page_say_the_same(checkpoint, run, tmp_path):
    run(checkpoint, "--safetensors", tmp_path / "published")
    with safetensors.safe_open(tmp_path / "published/model.safetensors", "pt") as file:
        header = file.metadata()
    values = json.loads((tmp_path / "published/config.json").read_text())
    assert json.loads(header["checkpoint"]) == values
    assert values["model"] == "gsanet" and values["arguments"]["channels"] == 32
    assert {name: values[name] for name in RUN} == RUN
    page = huggingface_hub.ModelCard.load(tmp_path / "published/README.md")
    assert page.data.license == "other" and "gsanet" in page.data.tags
    for name in ("network", "parameters", "training", "validation", "flow maps", "code"):
        assert f"| {name} | {header[name]} |" in page.text
    assert header["licences"] in page.text


def test_a_folder_with_files_is_not_written_to(checkpoint, run):
    before = checkpoint.read_bytes()
    with pytest.raises(CheckpointError, match="holds files; give --safetensors a new or empty"):
        run(checkpoint, "--safetensors", checkpoint.parent)
    assert [p.name for p in checkpoint.parent.iterdir()] == ["best.pt"]
    assert checkpoint.read_bytes() == before


def test_the_version_is_that_of_the_change_log_and_the_citation():
    root = describe.__file__.rpartition("/utils/")[0]
    with open(f"{root}/CHANGELOG.md") as changes, open(f"{root}/CITATION.cff") as citation:
        assert f"\n## {__version__}" in changes.read()
        assert f"\nversion: {__version__}\n" in citation.read()


def test_a_checkpoint_in_half_precision_is_small_and_gives_the_same_masks(
    checkpoint, run, tiny_root, tmp_path, capsys
):
    small = tmp_path / "small.pt"
    run(checkpoint, "--half", small)
    assert small.stat().st_size < 0.6 * checkpoint.stat().st_size
    there = load_checkpoint(small)
    assert there["flow"] == "dis, camera motion kept" and "training" not in there
    assert "/home/me" not in str({k: v for k, v in there.items() if k != "weights"})
    frames = [frame.image for frame in video_sequences(tiny_root, "DAVIS_test")[0].frames]
    images = [np.asarray(Image.open(path).convert("RGB")) for path in frames]
    one, other = (
        np.stack(list(segment_video(load(path, "cpu"), images, probabilities=True)))
        for path in (checkpoint, small)
    )
    assert 0 < np.abs(one - other).max() < 0.02
    with pytest.raises(CheckpointError, match="is there already"):
        run(checkpoint, "--half", small)


def test_weights_that_are_too_large_for_half_precision_are_an_error(checkpoint, run, tmp_path):
    there = load_checkpoint(checkpoint)
    name = next(name for name, tensor in there["weights"].items() if tensor.ndim > 1)
    there["weights"][name] = there["weights"][name] + 1e6
    save_checkpoint(checkpoint, there)
    with pytest.raises(CheckpointError, match=f"{name} has numbers"):
        run(checkpoint, "--half", tmp_path / "small.pt")
    assert not (tmp_path / "small.pt").exists()
