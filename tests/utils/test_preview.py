"""The preview command: its pictures, and what it says of flow maps."""

import os
import re
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest

from datasets.colour_wheel import flow_to_picture
from datasets.layout import DatasetError
from datasets.samples import StillImages, VideoFrames
from utils.pictures import LABEL_HEIGHT, PANEL_WIDTH
from utils.preview import flow_traits, samples_of, table
from utils.settings import SettingsError

ROOT = Path(__file__).parents[2]
SIDE = 100


def a_map(inside, outside, blur=0.0):
    """A flow map of a square that moves, its mask, and the motion (x, y) in each."""
    mask = np.zeros((SIDE, SIDE), bool)
    mask[30:70, 30:70] = True
    share = mask.astype(np.float32)
    if blur:
        share = cv2.GaussianBlur(share, (0, 0), blur)
    flow = np.array(outside) + share[..., None] * np.subtract(inside, outside)
    flow[0, 0] = 1, 0  # the largest motion
    return flow_to_picture(flow), mask


def test_traits_are_those_of_the_motion_drawn():
    traits = flow_traits(*a_map(inside=(0.3, 0.4), outside=(-0.1, 0)))
    assert traits["motion of the object"] == pytest.approx(0.5, abs=0.01)
    assert traits["motion around it"] == pytest.approx(0.1, abs=0.01)
    assert traits["object against around"] == pytest.approx(np.hypot(0.4, 0.4), abs=0.02)
    assert traits["unevenness on the object"] < 0.01 and traits["unevenness around it"] < 0.02
    assert traits["sharpness of the edge"] == pytest.approx(1, abs=0.02)


def test_unevenness_is_the_root_of_the_mean_squared_deviation():
    picture, mask = a_map(inside=(0.5, 0), outside=(0, 0))
    halves, _ = a_map(inside=(0.1, 0), outside=(0, 0))
    picture[:, :50] = halves[:, :50]
    assert flow_traits(picture, mask)["unevenness on the object"] == pytest.approx(0.2, abs=0.01)


def test_a_blurred_edge_is_less_sharp_and_no_motion_has_none():
    blurred = flow_traits(*a_map(inside=(0.5, 0), outside=(0, 0), blur=2))
    assert 0.2 < blurred["sharpness of the edge"] < 0.7
    still = flow_traits(*a_map(inside=(0.01, 0), outside=(0, 0)))
    assert "sharpness of the edge" not in still and still["motion of the object"] < 0.02


def test_nothing_is_said_of_a_map_without_object():
    picture, mask = a_map(inside=(0.5, 0), outside=(0, 0))
    assert flow_traits(picture, np.zeros_like(mask)) == {}
    assert flow_traits(picture, np.ones_like(mask)) == {}


def test_the_table_has_percentiles_of_each_set():
    lengths = np.linspace(0, 1, 11)
    columns = {"A": [{"motion": x, "edge": 1 - x} for x in lengths], "B": [{"motion": 0.5}, {}]}
    lines = table(columns).splitlines()
    assert lines[1].split() == ["A", "(11)", "B", "(2)"]
    assert lines[2].split() == ["motion", "0.10", "0.50", "0.90", "0.50", "0.50", "0.50"]
    assert lines[3].split() == ["edge", "0.10", "0.50", "0.90"]


def test_samples_are_those_of_the_training_scripts(tiny_settings):
    stills = samples_of("DUTS_train", tiny_settings.replace(pretrain_motion="simulated"))
    assert isinstance(stills, StillImages) and stills.simulation is not None
    assert samples_of("DUTS_train", tiny_settings).simulation is None
    videos = samples_of("DAVIS_train", tiny_settings)
    assert isinstance(videos, VideoFrames) and videos.augmentation == stills.augmentation
    with pytest.raises(SettingsError, match="--set DAVIS_test: expected one of DUTS_train, DAVIS"):
        samples_of("DAVIS_test", tiny_settings)
    with pytest.raises(DatasetError, match="nowhere"):
        samples_of("DAVIS_train", tiny_settings.replace(data_root="nowhere"))


@pytest.fixture
def preview(tiny_root, tmp_path):
    """The command, as a user gives it."""

    command = [sys.executable, "-m", "utils.preview", "--data-root", str(tiny_root)]
    command += ["--train-sets", "DAVIS_train", "--image-size", "64"]

    def call(*flags):
        return subprocess.run(
            [*command, "--output", str(tmp_path), *flags],
            cwd=ROOT,
            env={**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""},
            capture_output=True,
            text=True,
            check=False,
        )

    return call


def test_pictures_and_numbers_of_both_stages(preview, tmp_path):
    result = preview("--pretrain-motion", "simulated", "--samples", "3")
    assert result.returncode == 0, result.stderr
    assert "Warning" not in result.stderr
    for name in ("DUTS_train", "DAVIS_train"):
        sheet = cv2.imread(str(tmp_path / f"{name}.png"))
        assert sheet.shape == (3 * (PANEL_WIDTH + LABEL_HEIGHT), 8 * PANEL_WIDTH, 3)
        assert sheet.std() > 20
    assert re.search(r"^motion of the object( +0\.\d\d){6}$", result.stdout, re.MULTILINE)
    assert "DUTS_train (6)" in result.stdout and "DAVIS_train (10)" in result.stdout


def test_stills_without_motion_have_pictures_alone(preview, tmp_path):
    result = preview("--set", "DUTS_train")
    assert result.returncode == 0, result.stderr
    assert f"{tmp_path / 'DUTS_train.png'}: 6 of 6 samples" in result.stdout
    assert "flow maps" not in result.stdout
    sheet = cv2.imread(str(tmp_path / "DUTS_train.png"))
    assert sheet.shape == (6 * (PANEL_WIDTH + LABEL_HEIGHT), PANEL_WIDTH, 3)


def test_a_wrong_number_is_named(preview):
    result = preview("--samples", "0")
    assert result.returncode != 0 and "--samples 0: expected 1 or above" in result.stderr
    assert "Traceback" not in result.stderr
