"""Soft masks: their values, their files, and the masks that are made from them again."""

import cv2
import numpy as np
import pytest
from PIL import Image

import evaluate
from datasets.clips import VideoError
from datasets.layout import video_sequences
from datasets.masks import read_binary_mask
from tests.models.small_networks import network
from tests.small_checkpoints import save_small
from utils.evaluation.segmenting import Segmenter, predict_sequences, to_labels
from utils.evaluation.set_evaluation import evaluate_masks
from utils.evaluation.soft_masks import to_grey
from utils.evaluation.video import check_results

RANGES = {"probabilities": (np.uint8, 255), "probabilities16": (np.uint16, 65535)}
NETWORKS = {"gsanet": {}, "ssl_uvos": {"merge_distance": 1e-7, "max_objects": 3}}


@pytest.fixture(scope="module", params=NETWORKS)
def name(request):
    return request.param


@pytest.fixture(scope="module")
def checkpoint(name, tiny_settings, tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    return save_small(folder / "best.pt", tiny_settings, name, **NETWORKS[name])


@pytest.fixture(scope="module")
def predicted(name, tiny_root):
    """The probabilities of the test set's frames, (K, 48, 64) each, by sequence and frame."""
    segmenter = Segmenter(network(name, **NETWORKS[name]).eval(), 64)
    results = predict_sequences(segmenter, video_sequences(tiny_root, "DAVIS_test"), batch_size=3)
    found = {(r.sequence, r.frame.name): r.prediction.probability((48, 64)) for r in results}
    return found


@pytest.fixture
def evaluated(call, checkpoint, tmp_path):
    """Evaluates the checkpoint with further flags; returns the folder with the results."""

    def run(*flags):
        call(evaluate, "--checkpoint", checkpoint, "--output", tmp_path / "out", *flags)
        return tmp_path / "out"

    return run


def soft_masks(folder, stem, count) -> np.ndarray:
    """The pictures of a frame's objects."""
    names = [stem] if count == 1 else [f"{stem}_{number}" for number in range(1, count + 1)]
    files = [str(folder / f"{name}.png") for name in names]
    return np.stack([cv2.imread(file, cv2.IMREAD_UNCHANGED) for file in files])


@pytest.mark.parametrize("save", RANGES)
def test_a_set_gets_a_picture_of_every_object_of_every_frame(evaluated, predicted, save):
    flags = ("--set", "DAVIS_test", "--panel-step", 0)
    folder = evaluated(*flags, "--save", save) / "probabilities"
    kind, most = RANGES[save]
    assert len(list(folder.rglob("*.png"))) == sum(map(len, predicted.values())) >= 10
    for (sequence, frame), probability in predicted.items():
        stem = frame.removeprefix(f"{sequence}_")
        found = soft_masks(folder / sequence, stem, len(probability))
        assert found.dtype == kind
        np.testing.assert_allclose(found, most * probability, atol=0.51)
    evaluated(*flags)
    assert not folder.exists()  # those of the earlier evaluation


def test_a_video_gets_them_beside_its_masks(name, evaluated, predicted, tiny_root):
    sequence = video_sequences(tiny_root, "DAVIS_test")[0]
    flags = ["--video", sequence.frames[0].image.parent]
    flags += ["--flow-estimator", "dis"] if name == "gsanet" else []
    folder = evaluated(*flags, "--save", "probabilities16") / "probabilities"
    for frame in sequence.frames:
        probability = predicted[sequence.name, frame.name]
        found = soft_masks(folder, frame.name, len(probability)) / 65535
        # The set's flow maps went through JPEG.
        np.testing.assert_allclose(found, probability, atol=0.02)
    evaluated(*flags)
    assert {path.name for path in folder.parent.iterdir()} == {
        ".lock",
        "masks",
        "masked.csv",
        "overlay.mp4",
    }


@pytest.mark.parametrize("name", ["gsanet"], indirect=True)
@pytest.mark.parametrize("save", RANGES)
def test_they_are_read_back_as_the_same_masks(evaluated, tiny_settings, tmp_path, save):
    folder = evaluated("--set", "DAVIS_test", "--panel-step", 0, "--save", save)
    scored, soft = tmp_path / "scored", folder / "probabilities"
    for path in folder.glob("masks/*/*.png"):
        mask = np.array(Image.open(path)) > 0
        assert 0 < mask.mean() < 1
        again = read_binary_mask(soft / path.parent.name / path.name, binarize=True)
        np.testing.assert_array_equal(again, mask)
    evaluate_masks(soft, "DAVIS_test", scored, tiny_settings, binarize=True)
    for scores in ("scores.csv", "frames.csv"):
        assert (scored / scores).read_bytes() == (folder / scores).read_bytes()


def test_an_evaluation_that_goes_on_with_them_makes_those_of_all_frames(
    evaluated, predicted, monkeypatch
):
    flags = ("--set", "DAVIS_test", "--panel-step", 0)
    with monkeypatch.context() as patch:
        patch.setattr("utils.evaluation.set_evaluation._score", stop)
        with pytest.raises(SystemExit):
            evaluated(*flags)
    folder = evaluated(*flags, "--save", "probabilities") / "probabilities"
    assert len(list(folder.rglob("*.png"))) == sum(map(len, predicted.values()))


def stop(*_, **__):
    raise KeyboardInterrupt


@pytest.mark.parametrize("save", RANGES)
def test_a_value_above_the_middle_is_a_probability_above_one_half(save):
    half = np.float32(0.5)
    near = [np.nextafter(half, half.dtype.type(side)) for side in (0, 1)]
    steps = np.linspace(0, 1, 100_003, dtype=np.float32)
    probability = np.array([[[0, 1, half, *near, *steps]]], np.float32)
    kind, most = RANGES[save]
    grey = to_grey(probability, save)
    assert grey.dtype == kind and grey[0, 0, 0] == 0 and grey[0, 0, 1] == most
    assert np.abs(grey - most * probability.astype(np.float64)).max() < 0.51
    np.testing.assert_array_equal(grey[0] > most // 2, to_labels(probability) == 1)


def test_a_folder_of_others_is_not_replaced(tmp_path):
    (tmp_path / "probabilities").mkdir()
    with pytest.raises(VideoError, match="probabilities is not an earlier video's result"):
        check_results(tmp_path / "clip.mp4", tmp_path)
    (tmp_path / "masks").mkdir()
    (tmp_path / "overlay.mp4").touch()
    check_results(tmp_path / "clip.mp4", tmp_path)
    with pytest.raises(VideoError, match="would be replaced"):
        check_results(tmp_path / "probabilities", tmp_path)


def test_results_that_are_links_are_refused_before_the_work(tmp_path):
    (tmp_path / "large/masks").mkdir(parents=True)
    (tmp_path / "masks").symlink_to(tmp_path / "large/masks")
    (tmp_path / "overlay.mp4").touch()
    with pytest.raises(VideoError, match="masks is a link, which results would replace"):
        check_results(tmp_path / "clip.mp4", tmp_path)
