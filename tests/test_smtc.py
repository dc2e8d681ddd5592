"""SMTC from training to masks of several objects, by the scripts."""

import os
import signal

import numpy as np
import pytest
import torch
from PIL import Image

import evaluate
import train
from datasets.layout import video_sequences
from datasets.masks import read_label_map, read_labels
from datasets.pictures import read_image
from models.backbones.feature_map import FeatureMap
from models.propagation import RECIPES
from models.smtc.network import SMTC
from tests.test_many_processes import ROOT, by_two
from utils import propagate
from utils.evaluation.propagating import propagate_video
from utils.training.checkpoints import build_from_checkpoint, load_checkpoint

SETTINGS = (
    *("--config", ROOT / "recipes/smtc.py", "--backbone", "vit_tiny_patch16_224"),
    *("--pretrained-backbone", "false", "--train-sets", "DAVIS_train", "--val-set", "DAVIS_test"),
    *("--image-size", 64, "--batch-size", 2, "--epochs", 2, "--freeze-steps", 3),
    *("--semantic-slots", 5, "--instance-slots", 3, "--instance-region", "soft"),
)
STEPS = 4  # two videos of five frames have four clips


@pytest.fixture(scope="module")
def folder(call, tmp_path_factory):
    """A run in one go on frames alone."""
    folder = tmp_path_factory.mktemp("runs")
    call(train, *SETTINGS, "--output-dir", folder)
    return folder / "train"


def test_a_run_says_its_losses_and_ends_at_a_tenth_of_the_rate(folder):
    log = (folder / "log.txt").read_text()
    assert "(difference " in log and ", semantic " in log and ", instance " in log
    assert "lr 2.0e-06" in log
    checkpoint = load_checkpoint(folder / "last.pt")
    assert checkpoint["progress"]["step"] == STEPS and checkpoint["progress"]["bad_steps"] == 0
    groups = checkpoint["training"]["optimizer"]["param_groups"]
    np.testing.assert_allclose([group["lr"] for group in groups], [2e-8, 2e-8, 2e-6, 2e-6])


def test_the_student_alone_leaves_what_the_teacher_follows(folder):
    weights = load_checkpoint(folder / "last.pt")["weights"]
    name = "slots.attention.to_value.weight"
    assert not torch.equal(weights[name], weights[f"teacher_{name}"])
    name = "encoder.encoder.blocks.0.attn.qkv.weight"
    assert not torch.equal(weights[name], weights[f"teacher_{name}"])  # one step was not frozen


def test_a_run_that_was_interrupted_while_frozen_goes_on_bit_for_bit(
    folder, call, tmp_path, monkeypatch
):
    after_step = SMTC.after_step

    def interrupt(self, step):
        after_step(self, step)
        if step == 1:
            os.kill(os.getpid(), signal.SIGINT)

    monkeypatch.setattr(SMTC, "after_step", interrupt)
    with pytest.raises(SystemExit):
        call(train, *SETTINGS, "--output-dir", tmp_path)
    assert load_checkpoint(tmp_path / "train" / "last.pt")["progress"]["step"] == 1
    monkeypatch.setattr(SMTC, "after_step", after_step)
    call(train, "--resume", tmp_path / "train")
    whole, broken = (load_checkpoint(f / "last.pt") for f in (folder, tmp_path / "train"))
    assert whole["progress"] == broken["progress"]
    for name, tensor in whole["weights"].items():
        assert torch.equal(tensor, broken["weights"][name]), name


def test_a_dry_run_tries_the_last_steps_in_which_nothing_is_frozen(call, tmp_path, monkeypatch):
    tried, before_step = [], SMTC.before_step

    def noted(self, step):
        before_step(self, step)
        tried.append((step, self.frozen))

    monkeypatch.setattr(SMTC, "before_step", noted)
    call(train, *SETTINGS, "--output-dir", tmp_path, "--dry-run", "--freeze-steps", STEPS - 2)
    assert tried == [(STEPS - 2, False), (STEPS - 1, False)]


def test_a_run_continues_from_a_checkpoint_that_is_given(folder, call, tmp_path, capsys):
    flags = (*SETTINGS, "--output-dir", tmp_path, "--epochs", 1, "--freeze-steps", 9)
    capsys.readouterr()
    call(train, *flags, "--stage1-checkpoint", folder / "last.pt")
    assert f"weights from {folder / 'last.pt'}: " in capsys.readouterr().out
    name = "encoder.encoder.blocks.0.attn.qkv.weight"  # frozen here, so as it was
    weights, own = (load_checkpoint(f / "last.pt")["weights"] for f in (folder, tmp_path / "train"))
    assert torch.equal(own[name], weights[name])
    with pytest.raises(SystemExit, match=r"there is no checkpoint .*gone\.pt"):
        call(train, *flags, "--stage1-checkpoint", tmp_path / "gone.pt", "--run-name", "other")


def test_training_refuses_to_validate_by_rules_that_need_tracks(call, tmp_path):
    with pytest.raises(SystemExit, match="anew, which davis2016 cannot score"):
        call(train, *SETTINGS, "--output-dir", tmp_path, "--discovery", "release")
    assert not any(tmp_path.iterdir())


def test_two_processes_train_with_a_part_that_is_frozen_at_first(tiny_root, tmp_path):
    machine = ("--gpu", "", "--workers", 0, "--data-root", tiny_root, "--output-dir", tmp_path)
    short = ("--epochs", 1, "--freeze-steps", 1)
    result = by_two(ROOT / "train.py", *machine, *SETTINGS, *short)
    assert result.returncode == 0, result.stderr
    checkpoint = load_checkpoint(tmp_path / "train" / "last.pt")
    assert checkpoint["progress"]["step"] == 2 and checkpoint["progress"]["bad_steps"] == 0
    name = "encoder.encoder.blocks.0.attn.qkv.weight"
    weights = checkpoint["weights"]
    assert not torch.equal(weights[name], weights[f"teacher_{name}"])  # since the second step


def ids(path):
    with Image.open(path) as picture:
        return set(np.unique(np.array(picture)).tolist())


@pytest.mark.parametrize("way, most", [("tracks", 4), ("release", 15)])
def test_a_set_is_evaluated_with_tracks_or_as_in_the_release(folder, call, tmp_path, way, most):
    flags = ("--checkpoint", folder / "last.pt", "--set", "DAVIS_test", "--output", tmp_path)
    flags = (*flags, "--discovery", way, "--max-objects", 4, "--num-iterations", 5)
    if way == "release":
        with pytest.raises(SystemExit, match="anew, which davis2016 cannot score"):
            call(evaluate, *flags)
        assert not any(tmp_path.iterdir())
        flags = (*flags, "--protocol", "per_frame_matching")
    call(evaluate, *flags)
    masks = sorted((tmp_path / "masks").rglob("*.png"))
    found = set().union(*map(ids, masks))
    assert len(masks) == 10 and len(found) > 1 and max(found) <= most
    assert len(list((tmp_path / "panels").rglob("*.png"))) == 10
    assert (tmp_path / "scores.csv").is_file() and (tmp_path / "report.html").is_file()


def test_first_masks_are_propagated_with_the_features_of_a_checkpoint(
    folder, call, tmp_path, tiny_root
):
    checkpoint = folder / "last.pt"
    flags = ("--set", "DAVIS_test", "--checkpoint", checkpoint, "--recipe", "smtc_b")
    call(propagate, *flags, "--output", tmp_path)
    features = FeatureMap(build_from_checkpoint(load_checkpoint(checkpoint)).encoder, "tokens")
    for sequence in video_sequences(tiny_root, "DAVIS_test", flow=False):
        images = [read_image(frame.image) for frame in sequence.frames]
        first = read_labels(sequence.frames[0].mask)
        expected = propagate_video(images, first, features.eval(), RECIPES["smtc_b"])
        masks = sorted((tmp_path / "masks" / sequence.name).iterdir())
        for path, labels in zip(masks, expected, strict=True):
            np.testing.assert_array_equal(read_label_map(path), labels)


def test_a_seed_makes_masks_repeatable(folder, call, tmp_path, tiny_root):
    source = min((tiny_root / "DAVIS_test").iterdir()) / "RGB"
    flags = ("--checkpoint", folder / "last.pt", "--video", source)
    found = []
    for number, seed in enumerate((0, 0, 1)):
        output = tmp_path / str(number)
        call(evaluate, *flags, "--output", output, "--noise-seed", seed)
        masks = sorted((output / "masks").iterdir())
        assert [path.stem for path in masks] == sorted(path.stem for path in source.iterdir())
        found.append([path.read_bytes() for path in masks])
    assert found[0] == found[1] != found[2]
    assert (tmp_path / "0" / "overlay.mp4").is_file()
