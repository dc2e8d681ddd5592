"""The synthetic data set (synthetic.py, scenes.py): files, exact masks, and how hard it is."""

import os
import re
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest

from datasets import synthetic
from datasets.pictures import read_image
from datasets.scenes import EMPTY, MOTIONS, SHAPES, SUPERSAMPLING, Scene, make_scene, render_frame

SMALL = {
    "stills": 2,
    "train_sequences": 2,
    "test_sequences": 1,
    "frames": 3,
    "height": 48,
    "width": 64,
}


def all_bytes(root: Path) -> dict[str, bytes]:
    return {str(p.relative_to(root)): p.read_bytes() for p in root.rglob("*.*") if p.is_file()}


def some_scenes(frames: int = 5) -> list[Scene]:
    return [
        make_scene(np.random.default_rng([7, index]), SHAPES[index % 3], motion, frames, 64, 80)
        for index, motion in enumerate(list(MOTIONS) * 2)
    ]


def iou(prediction: np.ndarray, mask: np.ndarray) -> float:
    union = np.count_nonzero(prediction | mask)
    return np.count_nonzero(prediction & mask) / union if union else 1.0


# Files


def test_layout(tmp_path):
    synthetic.write_synthetic(tmp_path, **SMALL)

    assert {p.name for p in tmp_path.iterdir()} == {*synthetic.SETS, synthetic.MARKER}
    assert len(list((tmp_path / "DUTS_train/RGB").iterdir())) == 2
    train = sorted(p.name for p in (tmp_path / "DAVIS_train/RGB").iterdir())
    assert len(train) == 2 * 3
    assert len({name.rsplit("_", 1)[0] for name in train}) == 2
    (sequence,) = (tmp_path / "DAVIS_test").iterdir()
    assert sorted(p.name for p in (sequence / "RGB").iterdir()) == [
        f"{sequence.name}_{frame:05d}.jpg" for frame in range(3)
    ]

    images = sorted(tmp_path.rglob("RGB/*"))
    masks = sorted(tmp_path.rglob("GT/*"))
    assert [p.stem for p in images] == [p.stem for p in masks]
    for image, mask in zip(images, masks, strict=True):
        assert image.parent.parent == mask.parent.parent
        assert re.fullmatch(r"[\w-]+_\d{5}\.jpg", image.name)
        assert mask.suffix == ".png"
        assert cv2.imread(str(image)).shape == (48, 64, 3)
        pixels = cv2.imread(str(mask), cv2.IMREAD_UNCHANGED)
        assert pixels.shape == (48, 64)
        assert set(np.unique(pixels)) == {0, 255}
        assert 0.04 < np.mean(pixels > 0) < 0.35


def test_folders_whose_names_are_not_utf_8_are_written_to(tmp_path):
    root = tmp_path / os.fsdecode(b"\xff")
    synthetic.write_synthetic(root, **SMALL)
    assert read_image(next(root.rglob("DUTS_train/RGB/*"))).shape == (48, 64, 3)


def test_pictures_are_written_in_the_right_channel_order_and_masks_by_majority(
    tmp_path, monkeypatch
):
    red = np.zeros((32, 32, 3), np.uint8)
    red[..., 0] = 200
    coverage = np.tile(np.repeat(np.float32([0, 0.5, 0.51, 1]), 8), (32, 1))
    monkeypatch.setattr(synthetic, "render_frame", lambda scene, frame: (red, coverage))
    synthetic.write_synthetic(tmp_path, **{**SMALL, "height": 32, "width": 32})

    image = cv2.imread(str(tmp_path / "DUTS_train/RGB/still_00000.jpg"))
    assert np.abs(image.astype(int) - [0, 0, 200]).max() < 4  # OpenCV reads BGR
    mask = cv2.imread(str(tmp_path / "DUTS_train/GT/still_00000.png"), cv2.IMREAD_UNCHANGED)
    assert mask[0, ::8].tolist() == [0, 0, 255, 255]


def test_same_seed_same_bytes(tmp_path):
    for name, seed in [("a", 3), ("b", 3), ("c", 4)]:
        synthetic.write_synthetic(tmp_path / name, seed, **SMALL)
    a, b, c = (all_bytes(tmp_path / name) for name in "abc")
    assert a == b
    assert a.keys() == c.keys()
    assert all(a[name] != c[name] for name in a)


def test_a_sequence_does_not_depend_on_how_many_others_there_are(tmp_path):
    more = {**SMALL, "stills": 3, "train_sequences": 3, "test_sequences": 2}
    synthetic.write_synthetic(tmp_path / "few", **SMALL)
    synthetic.write_synthetic(tmp_path / "more", **more)
    few, many = all_bytes(tmp_path / "few"), all_bytes(tmp_path / "more")
    del few[synthetic.MARKER]
    assert all(many[name] == content for name, content in few.items())
    # 2 further stills and sequences, no two of which are alike.
    images = [content for name, content in many.items() if name.endswith(".jpg")]
    assert len(set(images)) == len(images) == 3 + (3 + 2) * 3


def test_videos_without_an_object_come_on_top_of_the_others(tmp_path):
    longer = {**SMALL, "frames": 4}
    synthetic.write_synthetic(tmp_path / "few", **longer)
    synthetic.write_synthetic(tmp_path / "more", **longer, empty_sequences=3)
    few, many = all_bytes(tmp_path / "few"), all_bytes(tmp_path / "more")
    assert all(many[name] == content for name, content in few.items())
    folders = [tmp_path / "more/DAVIS_train/RGB", *(tmp_path / "more/DAVIS_test").glob("*/RGB")]
    for part in ("train", "test"):
        found = {}
        for folder in folders:
            for path in sorted(folder.glob(f"{part}_*.jpg")):
                kind = path.name.split("_")[1].split("-")[0]
                if kind in EMPTY:
                    truth = path.parents[1] / "GT" / f"{path.stem}.png"
                    assert str(path.relative_to(tmp_path / "more")) not in few
                    mask = cv2.imread(str(truth), 0)
                    found.setdefault(kind, []).append((read_image(path).astype(int), mask.any()))
        assert found.keys() == set(EMPTY)
        masks = {kind: [has for _, has in frames] for kind, frames in found.items()}
        assert masks["rest"] == masks["camera"] == [False] * 4
        assert masks["gone"] == [True, True, False, False]
        images = {kind: np.stack([image for image, _ in frames]) for kind, frames in found.items()}
        change = {kind: np.abs(np.diff(one, axis=0)).mean() for kind, one in images.items()}
        assert change["rest"] == 0 < change["camera"]


def test_refuses_what_is_there_already(tmp_path):
    synthetic.write_synthetic(tmp_path, **SMALL)
    before = all_bytes(tmp_path)
    with pytest.raises(FileExistsError, match="--overwrite"):
        synthetic.write_synthetic(tmp_path, 1, **SMALL)
    assert all_bytes(tmp_path) == before

    stale = tmp_path / "DAVIS_train/FLOW/stale_00000.png"
    stale.parent.mkdir()
    stale.write_bytes(b"of other frames")
    (tmp_path / "DAVIS_test/.flow.json").write_text("{}")  # of datasets.flow
    synthetic.write_synthetic(tmp_path, 0, **SMALL, overwrite=True)
    assert all_bytes(tmp_path) == before


def test_never_deletes_real_data(tmp_path):
    real = tmp_path / "DAVIS_train/RGB/bear_00000.jpg"
    real.parent.mkdir(parents=True)
    real.write_bytes(b"real")
    with pytest.raises(FileExistsError, match="already there"):
        synthetic.write_synthetic(tmp_path, **SMALL, overwrite=True)
    assert all_bytes(tmp_path) == {"DAVIS_train/RGB/bear_00000.jpg": b"real"}


@pytest.mark.parametrize(
    "name", ["DAVIS_train/RGB/bear_0.jpg", "DAVIS_test/cows/RGB/0.jpg", "DUTS_train/RGB/sun.jpg"]
)
def test_never_deletes_real_data_beside_its_own(tmp_path, name):
    synthetic.write_synthetic(tmp_path, **SMALL)
    (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / name).write_bytes(b"real")
    before = all_bytes(tmp_path)
    with pytest.raises(FileExistsError, match="was not written by this program"):
        synthetic.write_synthetic(tmp_path, **SMALL, overwrite=True)
    assert all_bytes(tmp_path) == before


def test_command_line(tmp_path, monkeypatch, capsys):
    calls = []
    monkeypatch.setattr(
        synthetic, "write_synthetic", lambda *args, **kwargs: calls.append((args, kwargs))
    )
    monkeypatch.setattr("sys.argv", ["synthetic", "--data-root", str(tmp_path), "--seed", "5"])
    synthetic.main()
    assert calls == [((tmp_path, 5), {"overwrite": False, "empty_sequences": 0})]

    def refuse(*args, **kwargs):
        raise FileExistsError("already there")

    monkeypatch.setattr(synthetic, "write_synthetic", refuse)
    with pytest.raises(SystemExit) as stop:
        synthetic.main()
    assert stop.value.code == 1
    assert capsys.readouterr().err == "already there\n"


# Rendering


def test_masks_are_exact():
    for scene in some_scenes():
        # With a white object in a black world, a pixel's brightness is the object's share of it.
        black = replace(
            scene,
            texture=np.full_like(scene.texture, 255),
            world=np.zeros_like(scene.world),
            occluder_texture=np.zeros_like(scene.occluder_texture),
        )
        for frame in (0, 4):
            picture, coverage = render_frame(scene, frame)
            absent = replace(scene, silhouette=np.zeros_like(scene.silhouette))
            empty, nothing = render_frame(absent, frame)
            changed = (picture != empty).any(axis=2)
            assert not changed[coverage == 0].any()
            assert changed[coverage == 1].mean() > 0.9
            assert not nothing.any()
            share = render_frame(black, frame)[0][..., 0] / 255
            assert np.abs(share - coverage).max() < 0.01


def test_occluded_pixels_are_not_in_the_mask():
    occluded = [scene for scene in some_scenes() if scene.occluders.any()]
    assert 2 <= len(occluded) <= 6
    for scene in occluded:
        red = replace(
            scene,
            texture=np.zeros_like(scene.texture),
            world=np.zeros_like(scene.world),
            occluder_texture=np.full_like(scene.occluder_texture, 255),
        )
        picture, coverage = render_frame(red, 2)
        occluder = picture[..., 0] / 255
        open_view = replace(scene, occluders=np.zeros_like(scene.occluders))
        whole = render_frame(open_view, 2)[1]
        hidden = (whole == 1) & (occluder > 0.99)
        assert np.count_nonzero(hidden) > 0.02 * np.count_nonzero(whole > 0.5)
        assert not coverage[hidden].any()
        assert (coverage + occluder < 1.01).all()
        assert np.array_equal(coverage[occluder == 0], whole[occluder == 0])


def test_object_moves_in_the_world_and_deforms():
    for motion in MOTIONS:
        scene = make_scene(np.random.default_rng(1), "blob", motion, 12, 128, 160)
        middle = np.full(2, scene.silhouette.shape[0] / 2)
        in_picture, in_world = [], []
        for pose, camera in zip(scene.pose, scene.camera, strict=True):
            place = np.linalg.solve(pose[:, :2], middle - pose[:, 2])
            in_picture.append(place)
            in_world.append(camera @ [*place, 1])
        steps = {
            name: np.linalg.norm(np.diff(path, axis=0), axis=1) / SUPERSAMPLING
            for name, path in [("picture", in_picture), ("world", in_world)]
        }
        assert steps["world"].min() > 1.5
        assert steps["world"].max() < 7
        if motion == "follow":
            assert steps["picture"].max() < 1

        rigid = replace(scene, pose=np.repeat(scene.pose[:1], 12, axis=0))
        rigid.occluders[:] = 0
        first, last = (render_frame(rigid, frame)[1] > 0.5 for frame in (0, 11))
        assert 0.6 < iou(first, last) < 0.97


def test_only_videos_have_distractors_and_occluders():
    shares = {}
    for motion in (None, "static"):
        shares[motion] = []
        for seed in range(6):
            scene = make_scene(np.random.default_rng(seed), SHAPES[seed % 3], motion, 2, 64, 80)
            assert motion or not scene.occluders.any()
            picture, coverage = render_frame(scene, 0)
            objects_own = colour_model([(picture, coverage > 0.5)])
            shares[motion].append(objects_own(picture)[coverage == 0].mean())
    # The object's colours outside the object.
    assert max(shares[None]) < 0.02
    assert min(shares["static"]) > 0.05


def colour_model(pairs):
    """Histograms of the colours in and out of the masks; where the former is the likelier."""
    counts = np.ones((2, 16, 16, 16))
    for image, mask in pairs:
        for label in (0, 1):
            np.add.at(counts[label], tuple((image[mask == label] // 16).T), 1)
    foreground, background = counts[1] / counts[1].sum(), counts[0] / counts[0].sum()
    return lambda image: (foreground > background)[tuple(np.moveaxis(image // 16, 2, 0))]
