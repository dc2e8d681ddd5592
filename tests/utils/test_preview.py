"""The preview command: its pictures, and what it says of flow maps."""

import os
import re
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

from datasets.flow.colour_wheel import flow_to_picture, picture_to_flow
from datasets.problems import DatasetError
from datasets.samples import StillImages, VideoFrames
from utils.preview import draw_sample, flow_traits, main, samples_of, table
from utils.reports.pictures import LABEL_HEIGHT, PANEL_WIDTH

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


def test_sharpness_counts_in_the_direction_of_the_change():
    """A rim that moves across the object's motion is no sharp edge."""
    picture, mask = a_map(inside=(0.5, 0), outside=(0, 0))
    flow = picture_to_flow(picture)
    inner = cv2.erode(mask.astype(np.uint8), np.ones((5, 5))) > 0
    flow[mask & ~inner] = 0, 0.5
    flow[0, 0] = 1, 0
    assert abs(flow_traits(flow_to_picture(flow), mask)["sharpness of the edge"]) < 0.1


def test_the_picture_s_edge_is_no_edge_of_the_object():
    picture, mask = a_map(inside=(0.5, 0), outside=(0, 0))
    wide = np.zeros_like(mask)
    wide[:, 40:60] = True
    flow = np.where(wide[..., None], np.float32([0.5, 0]), 0)
    flow[:2, 40:60] = 0.5, 0.8  # which counts, so near to the picture's edge
    flow[50, 0] = 1, 0
    traits = flow_traits(flow_to_picture(flow), wide)
    assert traits["unevenness on the object"] > 0.08
    assert flow_traits(picture, mask)["unevenness on the object"] < 0.01


def test_the_table_has_percentiles_of_each_set():
    lengths = np.linspace(0, 1, 11)
    columns = {"A": [{"motion": x, "edge": 1 - x} for x in lengths], "B": [{"motion": 0.5}, {}]}
    lines = table(columns).splitlines()
    assert lines[1].split() == ["A", "B"]
    expected = ["motion", "0.10", "0.50", "0.90", "(11)", "0.50", "0.50", "0.50", "(1)"]
    assert lines[2].split() == expected
    assert lines[3].split() == ["edge", "0.10", "0.50", "0.90", "(11)", "(0)"]


def test_samples_are_those_of_the_training_scripts(tiny_settings, monkeypatch):
    monkeypatch.setattr("utils.preview.flow_origin", lambda root, name: f"dis of {name}")
    simulated = tiny_settings.replace(pretrain_motion="simulated", remove_camera_motion=True)
    ((title, stills, flow),) = samples_of(1, simulated)
    assert (title, flow) == ("stage 1 DUTS_train", "simulated, camera motion removed")
    assert isinstance(stills, StillImages) and stills.simulation is not None
    assert len(stills) == 5  # one of the six is kept back for validation
    ((_, stills, flow),) = samples_of(1, tiny_settings)
    assert stills.simulation is None and flow is None
    ((title, videos, flow),) = samples_of(2, tiny_settings.replace(seed=5))
    assert isinstance(videos, VideoFrames) and videos.augmentation == stills.augmentation
    assert (title, flow, videos.seed) == ("stage 2 DAVIS_train", "dis of DAVIS_train", 5)
    with pytest.raises(DatasetError, match="nowhere"):
        samples_of(2, tiny_settings.replace(data_root="nowhere"))


def test_a_row_shows_each_frame_beside_its_own_flow_map():
    colours = torch.linspace(0, 255, 8).byte()[:, None, None, None].expand(8, 3, 16, 16)
    sample = {
        "image": colours[0],
        "flow": colours[1],
        "reference_images": colours[2::2],
        "reference_flows": colours[3::2],
        "labels": torch.zeros(16, 16, dtype=torch.uint8),
    }
    row = draw_sample(sample)
    middles = row[PANEL_WIDTH // 2, PANEL_WIDTH // 2 :: PANEL_WIDTH, 0]
    np.testing.assert_allclose(middles, np.linspace(0, 255, 8), atol=1)
    sample["labels"][:8] = 1
    row = draw_sample(sample)
    assert row[10, 100].tolist() != [0, 0, 0] and row[200, 100].tolist() == [0, 0, 0]


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
    result = preview("--pretrain-motion", "simulated", "--samples", "3", "--flow-maps", "5")
    assert result.returncode == 0, result.stderr
    assert "Warning" not in result.stderr
    for name in ("stage_1_DUTS_train", "stage_2_DAVIS_train"):
        sheet = cv2.imread(str(tmp_path / f"{name}.png"))
        assert sheet.shape == (3 * (PANEL_WIDTH + LABEL_HEIGHT), 8 * PANEL_WIDTH, 3)
        assert sheet.std() > 20
    assert re.search(
        r"^motion of the object(( +0\.\d\d){3}  \(5\)){2}$", result.stdout, re.MULTILINE
    )
    assert "stage_1_DUTS_train.png: 3 of 5 samples, flow: simulated, camera" in result.stdout
    assert "stage_2_DAVIS_train.png: 3 of 10 samples, flow: of unknown origin" in result.stdout


def test_stills_without_motion_have_pictures_alone(preview, tmp_path):
    result = preview("--stage", "1")
    assert result.returncode == 0, result.stderr
    assert f"{tmp_path / 'stage_1_DUTS_train.png'}: 5 of 5 samples, flow: none" in result.stdout
    assert "percentile" not in result.stdout
    sheet = cv2.imread(str(tmp_path / "stage_1_DUTS_train.png"))
    assert sheet.shape == (5 * (PANEL_WIDTH + LABEL_HEIGHT), PANEL_WIDTH, 3)


def test_windows_are_shown_frame_by_frame(preview, tmp_path):
    model = ("--model", "ssl_uvos", "--backbone", "vit_tiny_patch16_224", "--frame-gap", "1")
    result = preview(*model, "--samples", "2")
    assert result.returncode == 0, result.stderr
    (sheet,) = tmp_path.iterdir()
    assert result.stdout == f"{sheet}: 2 of 6 samples, flow: none\n"
    assert sheet.name == "DAVIS_train.png"
    picture = cv2.imread(str(sheet))
    assert picture.shape == (2 * (PANEL_WIDTH + LABEL_HEIGHT), 3 * PANEL_WIDTH, 3)
    assert picture.std() > 20


@pytest.mark.parametrize("flag", ["--samples", "--flow-maps"])
def test_a_wrong_number_is_named(monkeypatch, tmp_path, capsys, flag):
    monkeypatch.setattr(sys, "argv", ["preview", "--output", str(tmp_path), flag, "0"])
    with pytest.raises(SystemExit):
        main()
    assert f"{flag}: 0: expected a whole number above 0" in capsys.readouterr().err


def test_pictures_do_not_go_into_the_data_or_a_file(monkeypatch, tiny_root, tmp_path):
    (tmp_path / "file").touch()
    wrong = {tmp_path / "file/below": "is a file", tiny_root / "DAVIS_train/x": "in the data set"}
    for output, message in wrong.items():
        flags = ["--output", str(output), "--data-root", str(tiny_root)]
        monkeypatch.setattr(sys, "argv", ["preview", *flags, "--train-sets", "DAVIS_train"])
        with pytest.raises(DatasetError, match=message):
            main()
    assert not (tiny_root / "DAVIS_train/x").exists()
