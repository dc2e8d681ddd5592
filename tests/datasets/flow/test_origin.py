"""Tests of datasets/flow/origin.py."""

import os
import shutil
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image

from datasets.flow.__main__ import main
from datasets.flow.estimators import dis_estimator
from datasets.flow.making import make_flow
from datasets.flow.origin import flow_origin, kind_of_flow
from datasets.problems import DatasetError
from tests.datasets.flow.frames import moving_frames, to_the_right, write_frames


def test_maps_of_other_images_are_made_anew(flat: Path) -> None:
    rgb, folder = flat / "DAVIS_train" / "RGB", flat / "DAVIS_train" / "FLOW"
    frames = moving_frames(7)
    make_flow(flat, "DAVIS_train", dis_estimator())
    assert Image.open(folder / "a_cat_00000.jpg").info["comment"].startswith(b"flow between images")
    moved = flat / "moved"
    shutil.copytree(flat / "DAVIS_train", moved, copy_function=shutil.copyfile)  # with new times
    for path in sorted((moved / "RGB").glob("dog*"), reverse=True):
        path.rename(path.with_name(f"dog-run_1{path.name[-8:]}"))
        path = moved / "FLOW" / f"{path.stem}.jpg"
        path.rename(path.with_name(f"dog-run_1{path.name[-8:]}"))
    assert make_flow(flat, "moved", dis_estimator()) == (0, 7, 0)

    write_frames(rgb, "dog-run", frames[:5])  # longer by one: the last map shows the next frame now
    assert make_flow(flat, "DAVIS_train", dis_estimator()) == (2, 6, 1)
    (rgb / "dog-run_00002.png").unlink()  # a gap
    (folder / "dog-run_00002.jpg").unlink()
    assert make_flow(flat, "DAVIS_train", dis_estimator()) == (1, 6, 1)
    write_frames(rgb, "dog-run", frames[:5])  # filled
    assert make_flow(flat, "DAVIS_train", dis_estimator()) == (2, 6, 1)
    cv2.imwrite(str(rgb / "a_cat_00001.png"), 255 - cv2.imread(str(rgb / "a_cat_00001.png")))
    (folder / "a_cat_00002.jpg").unlink()
    cv2.imwrite(str(folder / "a_cat_00002.jpg"), np.zeros((96, 100, 3), np.uint8))  # of elsewhere
    assert make_flow(flat, "DAVIS_train", dis_estimator()) == (2, 6, 2)

    whole = {path.name: path.read_bytes() for path in folder.iterdir()}
    del whole["a_cat_00002.jpg"]
    shutil.rmtree(folder)
    make_flow(flat, "DAVIS_train", dis_estimator())
    assert all((folder / name).read_bytes() == content for name, content in whole.items())


def test_an_image_of_another_size_in_a_whole_set_is_named(flat: Path) -> None:
    make_flow(flat, "DAVIS_train", dis_estimator())
    path = flat / "DAVIS_train" / "RGB" / "dog-run_00002.png"
    cv2.imwrite(str(path), np.zeros((50, 60, 3), np.uint8))
    with pytest.raises(DatasetError, match=r"dog-run_00002\.png: 60 x 50, most 144 x 128"):
        make_flow(flat, "DAVIS_train", dis_estimator())


def command(root: Path, *flags: str) -> list[str]:
    return ["--data-root", str(root), "--set", "DAVIS_train", "--estimator", "dis", *flags]


def test_kinds_are_not_mixed_and_a_mixture_is_noted_until_all_maps_are_made(
    flat: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    assert main(command(flat)) == 0
    assert flow_origin(flat, "DAVIS_train") == "dis, camera motion kept"
    assert main(command(flat, "--remove-camera-motion")) == 1
    assert "of another kind (dis, camera motion kept)" in capsys.readouterr().err
    replace = os.replace

    def stopped(source: Path, destination: Path) -> None:
        if destination.name == "dog-run_00003.jpg":
            raise KeyboardInterrupt
        replace(source, destination)

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", stopped)
        assert main(command(flat, "--remove-camera-motion", "--overwrite")) == 130
    mixture = "dis, camera motion kept, in part replaced by dis, camera motion removed"
    assert flow_origin(flat, "DAVIS_train") == mixture
    for flags in ((), ("--remove-camera-motion",)):
        assert main(command(flat, *flags)) == 1
    assert main(command(flat, "--remove-camera-motion", "--overwrite")) == 0
    assert flow_origin(flat, "DAVIS_train") == "dis, camera motion removed"


def test_flow_maps_of_unknown_origin_are_not_said_to_be_of_a_new_one(flat: Path) -> None:
    make_flow(flat, "DAVIS_train", to_the_right)
    next((flat / "DAVIS_train/FLOW").iterdir()).unlink()
    assert main(command(flat)) == 0
    assert flow_origin(flat, "DAVIS_train") is None
    assert main(command(flat, "--overwrite")) == 0
    assert flow_origin(flat, "DAVIS_train") == "dis, camera motion kept"


def test_pipes_are_not_waited_for(flat: Path) -> None:
    make_flow(flat, "DAVIS_train", to_the_right)
    for part, name in (("RGB", "a_cat_00001.png"), ("FLOW", "dog-run_00002.jpg")):
        path = flat / "DAVIS_train" / part / name
        path.unlink()
        os.mkfifo(path)
    assert make_flow(flat, "DAVIS_train", to_the_right) == (0, 7, 0)
    with pytest.raises(DatasetError, match=r"a_cat_00001\.png: not a regular file"):
        make_flow(flat, "DAVIS_train", to_the_right, overwrite=True)


@pytest.mark.parametrize(
    ("trained_on", "estimator", "removed", "expected"),
    [
        ("raft, camera motion kept", None, None, ("raft", False)),
        ("dis, camera motion removed", None, None, ("dis", True)),
        ("farneback, camera motion removed", None, None, ("dis", True)),
        ("raft, camera motion removed", "dis", None, ("dis", True)),
        ("raft, camera motion removed", None, False, ("raft", False)),
        ("raft, camera motion kept, in part replaced by dis", None, None, ("raft", False)),
        ("dis, camera motion removed, in part replaced by raft", None, None, ("dis", True)),
        (None, None, None, ("dis", False)),
        (None, "raft", True, ("raft", True)),
    ],
)
def test_a_video_gets_the_flow_of_the_training(trained_on, estimator, removed, expected):
    assert kind_of_flow(trained_on, estimator, removed) == expected
