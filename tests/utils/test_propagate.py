"""The program of label propagation, by a real process on tiny data, and its parts."""

import os
import shutil
import subprocess
import sys
from dataclasses import replace
from itertools import count
from pathlib import Path

import av
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image

from datasets.masks import read_labels
from datasets.problems import DatasetError
from models.backbones import ModelError, build_backbone
from models.backbones.feature_map import FeatureMap
from models.backbones.vision_transformer import VisionTransformer
from models.propagation import RECIPES
from tests.small_checkpoints import save_small
from utils import propagate
from utils.evaluation.metrics import region_similarity
from utils.evaluation.propagating import propagate_video, read_first_mask
from utils.reports.pictures import write_mask
from utils.settings import SettingsError

ROOT = Path(__file__).parents[2]
TINY = ("--backbone", "vit_tiny_patch16_224", "--pretrained-backbone", "false", "--gpu", "")


def transformer(depth=12):
    torch.manual_seed(0)
    model = VisionTransformer("vit_tiny_patch16_224", pretrained=False)
    model.encoder.blocks = model.encoder.blocks[:depth]
    return model.eval()


@pytest.fixture(scope="module")
def several(tiny_root, tmp_path_factory):
    """A set of two videos whose objects have the labels 2 and 5."""
    root = tmp_path_factory.mktemp("data")
    shutil.copytree(tiny_root / "DAVIS_test", root / "DAVIS17_val")
    for path in root.rglob("GT/*.png"):
        labels = read_labels(path) * np.uint8(5)
        labels[: len(labels) // 2][labels[: len(labels) // 2] > 0] = 2
        write_mask(path, labels, 5)
    return root


def call(*flags):
    return subprocess.run(
        [sys.executable, "-m", "utils.propagate", *TINY, *map(str, flags)],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""},
        capture_output=True,
        text=True,
        check=False,
    )


def test_a_set_is_written_with_a_palette_and_scored(several, tmp_path):
    flags = ("--set", "DAVIS17_val", "--data-root", several, "--output", tmp_path)
    result = call(*flags, "--recipe", "dino", "--top-k", 3)
    assert result.returncode == 0, result.stderr
    assert "dino with top_k 3, vit_tiny_patch16_224 (random weights)" in result.stdout
    assert "protocol davis2017_semi_supervised" in result.stdout
    assert result.stdout.splitlines()[-1].startswith("J&F 0.")
    assert (tmp_path / "report.html").exists()
    for video in sorted((several / "DAVIS17_val").iterdir()):
        masks = sorted((tmp_path / "masks" / video.name).iterdir())
        truths = sorted((video / "GT").iterdir())
        assert len(masks) == len(truths) == 5
        np.testing.assert_array_equal(read_labels(masks[0]), read_labels(truths[0]))
        for mask in masks:
            with Image.open(mask) as picture:
                assert picture.mode == "P" and picture.size == (64, 48)
            assert set(np.unique(read_labels(mask))) <= {0, 2, 5}


@pytest.fixture(scope="module")
def clip(tiny_root):
    return sorted((tiny_root / "DAVIS_test").iterdir())[0]


def test_a_video_gets_masks_and_a_film(clip, tmp_path):
    first = sorted((clip / "GT").iterdir())[0]
    flags = ("--video", clip / "RGB", "--first-mask", first, "--output", tmp_path)
    result = call(*flags)
    assert result.returncode == 0, result.stderr
    names = sorted(path.stem for path in (clip / "RGB").iterdir())
    assert sorted(path.stem for path in (tmp_path / "masks").iterdir()) == names
    for name in names:
        with Image.open(tmp_path / "masks" / f"{name}.png") as picture:
            assert picture.size == (64, 48)
            assert set(np.unique(picture)) <= {0, 255}
    with av.open(str(tmp_path / "overlay.mp4")) as film:
        assert sum(1 for _ in film.decode(video=0)) == 5


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("--video", "clip", "--output", "out"), "--video and --first-mask FILE need each other"),
        (("--vip", "missing"), "--vip missing: no such folder; expected the unpacked archive"),
    ],
)
def test_what_cannot_be_done_is_refused_before_weights_are_loaded(monkeypatch, flags, message):
    monkeypatch.setattr(sys, "argv", ["propagate", *flags])
    monkeypatch.setattr(propagate, "build_features", None)
    with pytest.raises(SettingsError, match=message):
        propagate.main()


@pytest.mark.parametrize(
    ("labels", "message"),
    [(np.ones((48, 60), np.uint8), "60 x 48 pixels"), (np.zeros((48, 64), np.uint8), "no object")],
)
def test_unusable_first_masks_are_refused(labels, message, tmp_path):
    Image.fromarray(labels).save(tmp_path / "mask.png")
    with pytest.raises(DatasetError, match=message):
        read_first_mask(tmp_path / "mask.png", (48, 64))


def test_several_colours_are_no_first_mask_and_one_is_an_object(tmp_path):
    colours = np.zeros((48, 64, 3), np.uint8)
    colours[:10] = 128, 0, 0
    Image.fromarray(colours).save(tmp_path / "mask.png")
    labels = read_first_mask(tmp_path / "mask.png", (48, 64))
    np.testing.assert_array_equal(labels, colours[..., 0] > 0)
    colours[20:30] = 0, 128, 0
    Image.fromarray(colours).save(tmp_path / "mask.png")
    with pytest.raises(DatasetError, match="its colours do not number objects"):
        read_first_mask(tmp_path / "mask.png", (48, 64))


@pytest.fixture
def here(monkeypatch, capsys):
    """Runs the program in this process; returns what it prints."""

    def run(*flags):
        monkeypatch.setattr(sys, "argv", ["propagate", *TINY, *map(str, flags)])
        propagate.main()
        return capsys.readouterr().out

    return run


def test_a_sequence_without_first_mask_is_refused(several, here, tmp_path):
    shutil.copytree(several, tmp_path / "data")
    missing = sorted((tmp_path / "data").rglob("GT/*.png"))[0]
    missing.unlink()
    flags = ("--set", "DAVIS17_val", "--data-root", tmp_path / "data")
    with pytest.raises(DatasetError, match=f"{missing.stem}.* has no mask"):
        here(*flags, "--output", tmp_path / "out")


def test_a_set_with_first_masks_alone_is_not_scored(several, here, tmp_path):
    shutil.copytree(several, tmp_path / "data")
    for folder in (tmp_path / "data").rglob("GT"):
        for path in sorted(folder.iterdir())[1:]:
            path.unlink()
    flags = ("--set", "DAVIS17_val", "--data-root", tmp_path / "data")
    assert "nothing was scored" in here(*flags, "--output", tmp_path / "out")
    assert len(list((tmp_path / "out" / "masks").rglob("*.png"))) == 10


def test_a_run_that_was_stopped_goes_on(several, tmp_path, monkeypatch):
    masks = tmp_path / "out/masks"
    flags = ("--set", "DAVIS17_val", "--data-root", several, "--output", tmp_path / "out")
    monkeypatch.setattr("sys.argv", ["propagate", *TINY, *map(str, flags)])
    calls = count()  # of several threads

    def stopping(path, *arguments):
        if next(calls) >= 7:
            raise KeyboardInterrupt
        write_mask(path, *arguments)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(propagate, "write_mask", stopping)
        propagate.main()
    first, second = sorted(masks.iterdir())
    assert (len(list(first.iterdir())), len(list(second.iterdir()))) == (5, 2)
    times = {path: path.stat().st_mtime_ns for path in first.iterdir()}
    propagate.main()
    assert {path: path.stat().st_mtime_ns for path in first.iterdir()} == times  # not repeated
    assert len(list(second.iterdir())) == 5
    assert (tmp_path / "out/report.html").exists()
    # Another recipe replaces these masks, which the record knows as its own.
    monkeypatch.setattr("sys.argv", ["propagate", *TINY, *map(str, flags), "--top-k", "1"])
    propagate.main()
    assert all(path.stat().st_mtime_ns > time for path, time in times.items())


def test_masks_of_other_weights_are_not_continued(several, tmp_path, monkeypatch, tiny_settings):
    checkpoint, found = tmp_path / "best.pt", []
    flags = ["--set", "DAVIS17_val", "--data-root", str(several), "--output", str(tmp_path / "out")]
    monkeypatch.setattr(
        "sys.argv", ["propagate", *flags, "--checkpoint", str(checkpoint), "--gpu="]
    )

    def stopping(output, identity):
        found.append(identity)
        raise KeyboardInterrupt

    monkeypatch.setattr(propagate, "begin_evaluation", stopping)
    for time in (1, 1, 2):
        save_small(checkpoint, tiny_settings)
        os.utime(checkpoint, (time, time))
        with pytest.raises(KeyboardInterrupt):
            propagate.main()
    assert found[0] == found[1] != found[2]


def test_random_weights_are_the_same_again(several, tmp_path, monkeypatch):
    for name in "ab":
        flags = ("--set", "DAVIS17_val", "--data-root", several, "--output", tmp_path / name)
        monkeypatch.setattr("sys.argv", ["propagate", *TINY, *map(str, flags)])
        torch.manual_seed(ord(name))
        propagate.main()
    assert (tmp_path / "a/scores.csv").read_text() == (tmp_path / "b/scores.csv").read_text()


@pytest.mark.parametrize("feature", ["tokens", "normalised", "keys"])
@torch.inference_mode()
def test_features_of_a_transformer(feature):
    model = transformer()
    images = torch.randint(0, 256, (2, 3, 40, 70), dtype=torch.uint8)
    found = FeatureMap(model, feature)(images, (32, 64))
    mean, deviation = (torch.tensor(x)[:, None, None] for x in (model.mean, model.deviation))
    sent = F.interpolate((images / 255 - mean) / deviation, (32, 64), mode="bilinear")
    seen = {}
    last = model.encoder.blocks[-1]
    handles = [
        last.register_forward_hook(lambda *a: seen.update(tokens=a[2])),
        last.attn.qkv.register_forward_hook(lambda *a: seen.update(keys=a[2].chunk(3, -1)[1])),
        model.encoder.norm.register_forward_hook(lambda *a: seen.update(normalised=a[2])),
    ]
    model.positions = "timm"
    model.encoder.forward_features(sent)
    for handle in handles:
        handle.remove()
    expected = seen[feature][:, 1:].transpose(1, 2).reshape(2, 192, 2, 4)
    found = FeatureMap(model, feature)(images, (32, 64))
    torch.testing.assert_close(found, expected)


@torch.inference_mode()
def test_a_level_of_a_pyramid():
    pyramid = build_backbone("mit_b0", pretrained=False).eval()
    images = torch.randint(0, 256, (1, 3, 64, 96), dtype=torch.uint8)
    found = FeatureMap(pyramid, "tokens", 8)(images, (64, 96))
    features = FeatureMap(pyramid, "tokens", 16)
    torch.testing.assert_close(found, pyramid(features.normalise(images))[1])
    assert features(images, (64, 96)).shape[2:] == (4, 6)
    with pytest.raises(ModelError, match="no map at stride 2"):
        FeatureMap(pyramid, "tokens", 2)


class Patches(torch.nn.Module):
    """One random block of a transformer; its tokens without their mean over a video."""

    def __init__(self, frames):
        super().__init__()
        torch.manual_seed(0)
        self.model = transformer(depth=1)
        self.normalise, self.stride = FeatureMap(self.model, "tokens").normalise, 8
        self.model.encoder.patch_embed.proj = torch.nn.Conv2d(3, 192, 8, 8)
        self.model.encoder.patch_embed.patch_size, self.model.patch = (8, 8), 8
        random = np.random.default_rng(0)  # torch's random numbers differ between its versions
        for parameter in self.model.parameters():
            if parameter.ndim > 1:
                drawn = random.normal(0, parameter[0].numel() ** -0.5, parameter.shape)
                parameter.copy_(torch.from_numpy(drawn))
        images = torch.from_numpy(np.stack(frames)).permute(0, 3, 1, 2)
        self.mean = self.keys(images).mean(dim=0, keepdim=True)

    def keys(self, images):
        tokens = self.model(self.normalise(images))
        return tokens.keys.transpose(1, 2).unflatten(2, tokens.grid)

    def forward(self, images, size):
        return self.keys(images) - self.mean


def moving_square(step, size=128, side=40, frames=30):
    """Frames and masks: a textured square moves to and fro over a plain background."""
    random = np.random.default_rng(0)
    square = random.integers(0, 256, (side, side, 3)) // 2 + np.array([120, 20, 20])
    for t in range(frames):
        way = (t * step) % (2 * (size - side))
        x = min(way, 2 * (size - side) - way)
        image = np.full((size, size, 3), 90.0)
        mask = np.zeros((size, size), np.uint8)
        image[40 : 40 + side, x : x + side], mask[40 : 40 + side, x : x + side] = square, 1
        yield image.clip(0, 255).astype(np.uint8), mask


@torch.inference_mode()
def overlap_of(step, spoil=None):
    frames, masks = zip(*moving_square(step))
    features = Patches(frames)
    if spoil is not None:
        keys = features.keys
        order = torch.stack([torch.randperm(256, generator=spoil) for _ in range(31)])
        shuffled = iter(order)
        features.forward = lambda images, size: torch.stack(
            [
                (one - features.mean[0]).flatten(1)[:, next(shuffled)].unflatten(1, (16, 16))
                for one in keys(images)
            ]
        )
    found = propagate_video(frames, masks[0], features, replace(RECIPES["smtc_a"], stride=8))
    pairs = list(zip(found, masks))[1:]
    return float(np.mean([region_similarity(a > 0, b > 0) for a, b in pairs]))


def test_propagation_tracks_a_square_by_random_features():
    assert overlap_of(step=8) > 0.93
    assert overlap_of(step=3) > 0.70
    assert overlap_of(step=8, spoil=torch.Generator().manual_seed(0)) < 0.1


@pytest.mark.parametrize("size", [(37, 91), (91, 37)])
@pytest.mark.parametrize("name", RECIPES)
@torch.inference_mode()
def test_masks_have_the_frames_size_and_reach_every_border(name, size):
    recipe = replace(RECIPES[name], stride=None)
    image = np.zeros((*size, 3), np.uint8)
    image[:, -size[1] // 2 :] = 255
    first = (image[..., 0] > 0).astype(np.uint8) * np.uint8(3)
    features = FeatureMap(transformer(depth=1), "keys")
    found = list(propagate_video([image] * 3, first, features, recipe, batch_size=2))
    assert [one.shape for one in found] == [size] * 3
    assert all((one[:, -1] == 3).all() and (one[:, 0] == 0).all() for one in found)
