"""SSL-UVOS from training to masks of several objects, by the scripts."""

import json
import shutil

import numpy as np
import pytest
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

import config
import evaluate
import train
from datasets.layout import video_sequences
from tests.readers import read_mask
from utils.evaluation.foreground import choose_foreground
from utils.evaluation.metrics import region_similarity
from utils.evaluation.segmenting import Segmenter, predict_sequences
from utils.evaluation.validation import validate_videos
from utils.processes import Process
from utils.settings import load_settings
from utils.training.checkpoints import build_from_checkpoint, load_checkpoint

SETTINGS = (
    *("--config", "recipes/ssl_uvos.py", "--backbone", "vit_tiny_patch16_224"),
    *("--pretrained-backbone", "false", "--train-sets", "DAVIS_train", "--val-set", "DAVIS_test"),
    *("--image-size", 64, "--image-width", 96, "--batch-size", 2, "--epochs", 1),
)


@pytest.fixture(scope="module")
def checkpoint(call, tmp_path_factory):
    """A network after one epoch on frames alone."""
    folder = tmp_path_factory.mktemp("runs")
    call(train, *SETTINGS, "--output-dir", folder)
    return folder / "train" / "last.pt"


@pytest.fixture(scope="module")
def frames_alone(tiny_root, tmp_path_factory):
    """The root of a set of videos that has neither masks nor flow maps."""
    root = tmp_path_factory.mktemp("data")
    shutil.copytree(tiny_root / "DAVIS_test", root / "VIDEOS")
    for folder in [*root.rglob("GT"), *root.rglob("FLOW")]:
        shutil.rmtree(folder)
    return root


def ids(path):
    with Image.open(path) as picture:
        return picture.mode, frozenset(np.unique(np.array(picture)).tolist())


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
    assert found == [("L", frozenset({255}))] * 10  # one cluster


def test_changed_settings_are_recorded_and_part_of_what_an_evaluation_is(
    checkpoint, call, tmp_path, frames_alone
):
    """Masks of a set without truths, which are kept for a repetition, are not those of others."""
    flags = ("--checkpoint", checkpoint, "--set", "VIDEOS", "--output", tmp_path / "out")
    seen = []
    for distance in (1e-7, 1e3):
        call(evaluate, *flags, "--data-root", frames_alone, "--merge-distance", distance)
        seen.append({ids(path) for path in (tmp_path / "out" / "masks").rglob("*.png")})
    assert {mode for mode, _ in seen[0]} == {"P"} and seen[1] == {("L", frozenset({255}))}
    scored = ("--checkpoint", checkpoint, "--set", "DAVIS_test", "--output", tmp_path / "scored")
    call(evaluate, *scored, "--max-objects", 7, "--panel-step", 0)
    record = json.loads((tmp_path / "scored" / "evaluation.json").read_text())
    assert record["settings"]["MAX_OBJECTS"] == 7
    assert "not there any more" not in (tmp_path / "scored" / "report.html").read_text()


def test_views_of_a_network_that_clusters_each_by_itself_are_not_averaged(checkpoint, call):
    with pytest.raises(SystemExit, match=r"--tta: ssl_uvos finds the objects of each view"):
        call(evaluate, "--checkpoint", checkpoint, "--set", "DAVIS_test", "--tta")


def test_compile_is_refused_where_it_has_no_effect(checkpoint, call):
    with pytest.raises(SystemExit, match="--compile: without effect"):
        call(evaluate, "--checkpoint", checkpoint, "--set", "DAVIS_test", "--compile")


def test_a_clip_is_segmented_with_its_own_frames_under_the_masks(
    checkpoint, call, tmp_path, tiny_root
):
    """The frames are read twice: once for the clusters and once for the pictures."""
    source = min((tiny_root / "DAVIS_test").iterdir()) / "RGB"
    call(evaluate, "--checkpoint", checkpoint, "--video", source, "--output", tmp_path / "clip")
    names = sorted(path.stem for path in (tmp_path / "clip" / "masks").iterdir())
    assert names == sorted(path.stem for path in source.iterdir())


def test_targets_get_the_masks_of_the_whole_video(checkpoint, tiny_root):
    """As in validation, which may look at every third frame."""
    network = build_from_checkpoint(load_checkpoint(checkpoint), merge_distance=1e-7).eval()
    (sequence, *_) = video_sequences(tiny_root, "DAVIS_test", masks="some", flow=False)
    segmenter = Segmenter(network, (64, 96))
    every = list(predict_sequences(segmenter, [sequence], batch_size=2))
    targets = {sequence.name: sequence.frames[::3]}
    some = list(predict_sequences(segmenter, [sequence], batch_size=2, targets=targets))
    assert [result.frame for result in some] == list(sequence.frames[::3])
    for one, other in zip(some, every[::3]):
        np.testing.assert_array_equal(one.labels(), other.labels())


def test_a_set_of_several_objects_is_scored_by_objects(checkpoint, call, tmp_path, capsys):
    flags = ("--checkpoint", checkpoint, "--set", "DAVIS_test", "--output", tmp_path)
    call(evaluate, *flags, "--protocol", "davis2017_unsupervised")
    table = capsys.readouterr().out.splitlines()
    assert any(line.startswith("object ") for line in table)
    assert "2 objects" in (tmp_path / "report.html").read_text()
    rows = (tmp_path / "scores.csv").read_text().splitlines()[1:]
    assert [row.split(",")[1] for row in rows] == ["object", "object", "average"]


def test_videos_without_masks_train_and_show_the_number_of_clusters(
    frames_alone, call, tmp_path, capsys
):
    """There is nothing to choose a best.pt by; too many clusters are a warning."""
    videos = ("--data-root", frames_alone, "--train-sets", "VIDEOS", "--val-set", "VIDEOS")
    sharp = ("--merge-distance", 1e-9, "--output-dir", tmp_path)
    call(train, *SETTINGS, *videos, *sharp)
    assert sorted(path.name for path in (tmp_path / "train").glob("*.pt")) == ["last.pt"]
    printed = capsys.readouterr().out
    assert "no masks to validate on, so there is no best.pt" in printed
    (line,) = [line for line in printed.splitlines() if line.startswith("epoch 1/1")]
    assert "validation J" not in line
    # Each of 5 frames has 4 x 6 tokens, no two alike.
    assert "clusters 120.0, more than 100: " in line and "raise MERGE_DISTANCE" in line
    events = EventAccumulator(str(tmp_path / "train"))
    events.Reload()
    assert [e.value for e in events.Scalars("validation/clusters")] == [120]
    out = ("--checkpoint", tmp_path / "train" / "last.pt", "--output", tmp_path / "out")
    call(evaluate, *out, "--data-root", frames_alone, "--set", "VIDEOS", "--merge-distance", 1e3)
    assert "mean over videos: clusters 1.0\n" in capsys.readouterr().out


@pytest.mark.parametrize("rule", ["border", "oracle"])
def test_a_set_of_one_object_is_scored_by_the_chosen_foreground(
    checkpoint, call, tmp_path, tiny_root, capsys, rule
):
    """The validation and the evaluation choose alike, and say how."""
    flags = ("--checkpoint", checkpoint, "--set", "DAVIS_test", "--output", tmp_path)
    many = {"merge_distance": 1e-7, "max_objects": 254}
    call(evaluate, *flags, *("--merge-distance", 1e-7, "--max-objects", 254, "--foreground", rule))
    assert f"(FOREGROUND = {rule})" in capsys.readouterr().out
    record = json.loads((tmp_path / "evaluation.json").read_text())
    assert record["settings"]["FOREGROUND"] == rule
    settings = load_settings(config).replace(
        data_root=str(tiny_root),
        image_size=64,
        image_width=96,
        foreground=rule,
        workers=0,
    )
    network = build_from_checkpoint(load_checkpoint(checkpoint), **many).eval()
    sequences = video_sequences(tiny_root, "DAVIS_test", masks="some", flow=False)
    found = validate_videos(network, sequences, settings, Process("cpu"))
    rows = [line.split(",") for line in (tmp_path / "frames.csv").read_text().splitlines()[1:]]
    # The evaluation leaves out the first and last frame of each sequence, the validation does not.
    assert len(rows) == found.frames - 2 * len(sequences)
    for sequence in sequences:
        truths = [read_mask(frame.mask) for frame in sequence.frames]
        masks = [
            np.array(Image.open(path))
            for path in sorted((tmp_path / "masks" / sequence.name).iterdir())
        ]
        chosen = choose_foreground(zip(masks, (t.astype(np.uint8) for t in truths)), rule)
        j = [region_similarity(chosen[one], truth) for one, truth in zip(masks, truths)]
        assert found.parts[f"J {sequence.name}"] == pytest.approx(np.mean(j))
