"""Tests of datasets/flow/making.py."""

import os
import shutil
from pathlib import Path

import cv2
import numpy as np
import pytest

from datasets.flow.colour_wheel import flow_to_picture
from datasets.flow.estimators import dis_estimator
from datasets.flow.making import make_flow, make_share
from datasets.layout import video_sequences
from datasets.pictures import read_image
from datasets.problems import DatasetError
from tests.datasets.flow.frames import STEP, moving_frames, names, to_the_right, write_frames
from tests.readers import picture_to_flow


def test_every_frame_of_a_flat_set_gets_the_motion_that_it_has(flat: Path) -> None:
    assert make_flow(flat, "DAVIS_train", dis_estimator()) == (7, 0, 0)
    sequences = video_sequences(flat, "DAVIS_train", masks="none")
    assert [len(sequence.frames) for sequence in sequences] == [3, 4]
    assert len(names(flat / "DAVIS_train" / "FLOW")) == 7
    for frame in (frame for sequence in sequences for frame in sequence.frames):
        assert frame.flow == flat / "DAVIS_train" / "FLOW" / f"{frame.name}.jpg"
        picture = read_image(frame.flow)
        assert picture.shape == read_image(frame.image).shape
        motion = picture_to_flow(picture)[16:-16, 16:-16].reshape(-1, 2).mean(axis=0)
        cosine = motion @ STEP / np.linalg.norm(motion) / np.linalg.norm(STEP)
        assert cosine > 0.99, frame.name  # the last frame's sign, too


def test_which_frames_are_compared(flat: Path) -> None:
    frames = moving_frames(4)
    pairs = []

    def estimator(first: np.ndarray, second: np.ndarray) -> np.ndarray:
        if first.shape == frames[0].shape:
            index = [next(t for t in range(4) if (f == frames[t]).all()) for f in (first, second)]
            pairs.append(tuple(index))
        return to_the_right(first, second)

    make_flow(flat, "DAVIS_train", estimator)
    assert pairs == [(0, 1), (1, 2), (2, 3), (3, 2)]


def test_nested_set(tmp_path: Path) -> None:
    for sequence in ("swan", "bmx-trees"):
        write_frames(tmp_path / "DAVIS_test" / sequence / "RGB", sequence, moving_frames(2))
    assert make_flow(tmp_path, "DAVIS_test", to_the_right) == (4, 0, 0)
    for sequence in ("swan", "bmx-trees"):
        folder = tmp_path / "DAVIS_test" / sequence / "FLOW"
        assert names(folder) == [f"{sequence}_00000.jpg", f"{sequence}_00001.jpg"]
    assert all(s.frames[1].flow for s in video_sequences(tmp_path, "DAVIS_test", masks="none"))


def test_pictures_are_stored_with_full_chroma(flat: Path) -> None:
    stripes = np.zeros((128, 144, 2), np.float32)
    stripes[:, ::2, 0], stripes[:, 1::2, 0] = 1, -1

    def estimator(first: np.ndarray, second: np.ndarray) -> np.ndarray:
        return stripes[: first.shape[0], : first.shape[1]]

    make_flow(flat, "DAVIS_train", estimator)
    stored = read_image(flat / "DAVIS_train" / "FLOW" / "dog-run_00000.jpg")
    apart = np.abs(stored.astype(int) - flow_to_picture(stripes))
    assert apart.max() < 25  # with chroma at half the resolution all would be the same grey


def test_existing_maps_of_any_extension_are_kept(flat: Path) -> None:
    folder = flat / "DAVIS_train" / "FLOW"
    folder.mkdir()
    cv2.imwrite(str(folder / "dog-run_00001.png"), np.zeros((128, 144, 3), np.uint8))
    cv2.imwrite(str(folder / "dog-run_00003.JPEG"), np.zeros((128, 144, 3), np.uint8))
    before = {path: path.read_bytes() for path in folder.iterdir()}
    assert make_flow(flat, "DAVIS_train", to_the_right) == (5, 2, 0)
    assert all(path.read_bytes() == content for path, content in before.items())
    assert len(names(folder)) == 7
    assert make_flow(flat, "DAVIS_train", to_the_right) == (0, 7, 0)


def test_overwrite_replaces_maps_of_any_extension(flat: Path) -> None:
    folder = flat / "DAVIS_train" / "FLOW"
    folder.mkdir()
    for name in ("dog-run_00001.png", "dog-run_00002.jpg"):
        cv2.imwrite(str(folder / name), np.zeros((128, 144, 3), np.uint8))
    assert make_flow(flat, "DAVIS_train", to_the_right, overwrite=True) == (7, 0, 0)
    assert all(name.endswith(".jpg") for name in names(folder))
    assert len(names(folder)) == 7
    for t in (1, 2):
        assert read_image(folder / f"dog-run_{t:05d}.jpg").max() > 200


def test_sequences_of_one_frame_are_named_before_anything_is_written(flat: Path) -> None:
    write_frames(flat / "DAVIS_train" / "RGB", "lonely", moving_frames(1))
    with pytest.raises(DatasetError, match=r"1 x .*single frame(.|\n)*lonely_00000\.png"):
        make_flow(flat, "DAVIS_train", to_the_right)
    assert not (flat / "DAVIS_train" / "FLOW").exists()


def test_frames_of_different_size_are_named(flat: Path) -> None:
    path = flat / "DAVIS_train" / "RGB" / "dog-run_00002.png"
    cv2.imwrite(str(path), np.zeros((50, 60, 3), np.uint8))
    with pytest.raises(DatasetError, match=r"dog-run_00002\.png: 60 x 50, most 144 x 128"):
        make_flow(flat, "DAVIS_train", to_the_right)
    assert not (flat / "DAVIS_train" / "FLOW").exists()


@pytest.mark.parametrize("overwrite", [False, True])
def test_stopped_while_writing_and_started_again(
    flat: Path, monkeypatch: pytest.MonkeyPatch, overwrite: bool
) -> None:
    folder = flat / "DAVIS_train" / "FLOW"
    if overwrite:
        make_flow(flat, "DAVIS_train", to_the_right)
    before = {path.name: path.read_bytes() for path in folder.glob("*")}
    replace = os.replace

    def stopped(source: Path, destination: Path) -> None:
        if destination.name == "dog-run_00001.jpg":
            raise KeyboardInterrupt
        replace(source, destination)

    def to_the_left(first: np.ndarray, second: np.ndarray) -> np.ndarray:
        return -to_the_right(first, second)

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", stopped)
        with pytest.raises(KeyboardInterrupt):
            make_flow(flat, "DAVIS_train", to_the_left, overwrite)
    found = {path.name: path.read_bytes() for path in folder.iterdir()}
    assert len(found) == (7 if overwrite else 4)
    changed = [name for name in found if found[name] != before.get(name)]
    assert sorted(changed) == [*(f"a_cat_0000{t}.jpg" for t in range(3)), "dog-run_00000.jpg"]
    assert make_flow(flat, "DAVIS_train", to_the_left) == ((0, 7, 0) if overwrite else (3, 4, 0))
    assert len(names(folder)) == 7


@pytest.mark.parametrize("processes", [1, 2, 3])
def test_shares_make_the_files_of_one_process(tmp_path: Path, processes: int) -> None:
    write_frames(tmp_path / "DAVIS_train" / "RGB", "dog", moving_frames(20, 32, 40))
    write_frames(tmp_path / "DAVIS_train" / "RGB", "cat", moving_frames(13, 32, 40))
    make_flow(tmp_path, "DAVIS_train", dis_estimator())
    folder = tmp_path / "DAVIS_train" / "FLOW"
    whole = {path.name: path.read_bytes() for path in folder.iterdir()}
    shutil.rmtree(folder)
    written, estimator = [], dis_estimator()
    for rank in range(processes):
        sequences = video_sequences(tmp_path, "DAVIS_train", masks="none", flow=False)
        share = (rank, processes)
        written.append(make_share(sequences, estimator, False, share)[0])
        sequences = video_sequences(tmp_path, "DAVIS_train", masks="none", flow=False)
        assert make_share(sequences, estimator, False, share) == (0, written[-1], 0)
    assert sum(written) == 33 and max(written) - min(written) <= 8
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == whole


def test_published_sets_of_still_images_are_refused(tmp_path: Path) -> None:
    write_frames(tmp_path / "DUTS_train" / "RGB", "still", moving_frames(3))
    with pytest.raises(DatasetError, match="DUTS_train is a set of still images"):
        make_flow(tmp_path, "DUTS_train", to_the_right)
    assert not (tmp_path / "DUTS_train" / "FLOW").exists()
