"""The preview command: its pictures, and what it says of them."""

import os
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

from datasets.problems import DatasetError
from datasets.samples import StillImages, VideoFrames
from utils.preview import draw_sample, main, samples_of
from utils.reports.pictures import LABEL_HEIGHT, PANEL_WIDTH

ROOT = Path(__file__).parents[2]


def test_samples_are_those_of_the_training_scripts(tiny_settings, monkeypatch):
    monkeypatch.setattr("utils.preview.flow_origin", lambda root, name: f"dis of {name}")
    ((title, stills, flow),) = samples_of(1, tiny_settings)
    assert (title, flow) == ("stage 1 DUTS_train", None)
    assert isinstance(stills, StillImages)
    assert len(stills) == 5  # one of the six is kept back for validation
    ((title, videos, flow),) = samples_of(2, tiny_settings.replace(seed=5))
    assert isinstance(videos, VideoFrames) and videos.augmentation == stills.augmentation
    assert (title, flow, videos.seed) == ("stage 2 DAVIS_train", "dis of DAVIS_train", 5)
    _, (title, photos, flow) = samples_of(2, tiny_settings.replace(still_share=0.3))
    assert (title, flow, len(photos)) == ("stage 2 DUTS_train", "without motion", 6)
    assert photos[0, 0]["flow"].min() == 255
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
    result = preview("--samples", "3")
    assert result.returncode == 0, result.stderr
    assert "Warning" not in result.stderr
    for name, panels in {"stage_1_DUTS_train": 1, "stage_2_DAVIS_train": 8}.items():
        sheet = cv2.imread(str(tmp_path / f"{name}.png"))
        assert sheet.shape == (3 * (PANEL_WIDTH + LABEL_HEIGHT), panels * PANEL_WIDTH, 3)
        assert sheet.std() > 20
    still = tmp_path / "stage_1_DUTS_train.png"
    assert f"{still}: 3 of 5 samples, flow: none" in result.stdout
    assert "stage_2_DAVIS_train.png: 3 of 10 samples, flow: of unknown origin" in result.stdout


def test_a_stage_may_be_shown_alone(preview, tmp_path):
    result = preview("--stage", "1")
    assert result.returncode == 0, result.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["stage_1_DUTS_train.png"]
    assert "5 of 5 samples" in result.stdout


def test_a_stage_that_the_network_does_not_have_is_refused(preview, tmp_path):
    result = preview("--stage", "1", "--model", "smtc")
    assert result.returncode == 1 and "trained in one stage" in result.stderr
    assert not list(tmp_path.glob("**/*.png"))


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


def test_a_wrong_number_is_named(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(sys, "argv", ["preview", "--output", str(tmp_path), "--samples", "0"])
    with pytest.raises(SystemExit):
        main()
    assert "--samples: 0: expected a whole number above 0" in capsys.readouterr().err


def test_pictures_do_not_go_into_the_data_or_a_file(monkeypatch, tiny_root, tmp_path):
    (tmp_path / "file").touch()
    wrong = {tmp_path / "file/below": "is a file", tiny_root / "DAVIS_train/x": "in the data set"}
    for output, message in wrong.items():
        flags = ["--output", str(output), "--data-root", str(tiny_root)]
        monkeypatch.setattr(sys, "argv", ["preview", *flags, "--train-sets", "DAVIS_train"])
        with pytest.raises(DatasetError, match=message):
            main()
    assert not (tiny_root / "DAVIS_train/x").exists()
