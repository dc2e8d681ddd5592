"""SSL-UVOS from training to masks of several objects, by the scripts."""

import sys

import numpy as np
import pytest
from PIL import Image

import evaluate
import train
from utils.scripts import run_script

SETTINGS = (
    *("--config", "recipes/ssl_uvos.py", "--backbone", "vit_tiny_patch16_224"),
    *("--pretrained-backbone", "false", "--train-sets", "DAVIS_train", "--val-set", "DAVIS_test"),
    *("--image-size", 64, "--image-width", 96, "--batch-size", 2, "--epochs", 1),
)


@pytest.fixture(scope="module")
def call(tiny_root):
    """Run a script in this process."""

    def run(script, *flags):
        machine = ("--gpu", "", "--workers", 0, "--data-root", tiny_root)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(sys, "argv", [f"{script.__name__}.py", *map(str, (*machine, *flags))])
            run_script(script.main)

    return run


@pytest.fixture(scope="module")
def checkpoint(call, tmp_path_factory):
    """A network after one epoch on frames alone."""
    folder = tmp_path_factory.mktemp("runs")
    call(train, *SETTINGS, "--output-dir", folder)
    return folder / "train" / "last.pt"


def ids(path):
    with Image.open(path) as picture:
        return picture.mode, set(np.unique(np.array(picture)).tolist())


def test_settings_of_the_clustering_change_the_masks_of_a_trained_network(
    checkpoint, call, tmp_path, capsys
):
    flags = ("--checkpoint", checkpoint, "--set", "DAVIS_test")
    sharp = ("--merge-distance", 1e-7, "--max-objects", 5)
    call(evaluate, *flags, *sharp, "--output", tmp_path / "fine")
    assert "64 x 96 pixels, whole videos" in capsys.readouterr().out
    found = [ids(path) for path in sorted((tmp_path / "fine" / "masks").rglob("*.png"))]
    assert len(found) == 10 and all(mode == "P" for mode, _ in found)
    assert {label for _, labels in found for label in labels} == {0, 1, 2, 3, 4, 5}
    call(evaluate, *flags, "--merge-distance", 1e3, "--output", tmp_path / "coarse")
    found = [ids(path) for path in sorted((tmp_path / "coarse" / "masks").rglob("*.png"))]
    assert found == [("L", {255})] * 10  # one cluster


def test_a_set_of_several_objects_is_scored_by_objects(checkpoint, call, tmp_path, capsys):
    flags = ("--checkpoint", checkpoint, "--set", "DAVIS_test", "--output", tmp_path)
    call(evaluate, *flags, "--protocol", "davis2017_unsupervised")
    table = capsys.readouterr().out.splitlines()
    assert any(line.startswith("object ") for line in table)
    assert "2 objects" in (tmp_path / "report.html").read_text()
    rows = (tmp_path / "scores.csv").read_text().splitlines()[1:]
    assert [row.split(",")[1] for row in rows] == ["object", "object", "average"]
