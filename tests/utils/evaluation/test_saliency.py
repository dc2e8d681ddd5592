"""Saliency: the package's measures, the thresholds of a set, and evaluations of grey maps.

The package is optional. Where it is missing, a small stand-in with the same interface takes its
place in the tests of evaluations. Its own numbers are tested where it is installed.
"""

import csv
import shutil
import sys
from importlib.util import find_spec
from types import SimpleNamespace

import cv2
import numpy as np
import pytest

import evaluate
from datasets.layout import video_sequences
from datasets.masks import read_labels
from datasets.problems import DatasetError
from tests.models.small_networks import network
from tests.small_checkpoints import save_small
from utils.evaluation.protocols import PROTOCOLS, choose_protocol
from utils.evaluation.saliency import (
    SaliencyError,
    at_best_thresholds,
    load_package,
    read_grey,
    saliency_curves,
)
from utils.evaluation.validation import validate_videos
from utils.processes import Process
from utils.reports.pages import write_comparison
from utils.scripts import run_script


def f_measures(grey, truth) -> np.ndarray:
    """F at the thresholds 255 to 0, from its definition."""
    stretched = np.floor((grey / 255 - grey.min() / 255) / (np.ptp(grey) / 255 or 1) * 255)
    values = []
    for threshold in range(255, -1, -1):
        found = stretched >= threshold
        hits = (found & truth).sum()
        precision, recall = hits / max(found.sum(), 1), hits / max(truth.sum(), 1)
        values.append(1.3 * precision * recall / (0.3 * precision + recall) if hits else 0.0)
    return np.array(values)


class Meter:
    """A measure of the stand-in."""

    def __init__(self, name, measure):
        self.name, self.measure = name, measure

    def step(self, grey, truth):
        assert grey.dtype == truth.dtype == np.uint8 and set(np.unique(truth)) <= {0, 255}
        self.value = self.measure(grey, truth > 128)

    def get_results(self):
        return {self.name: self.value}


STAND_IN = SimpleNamespace(
    FmeasureHandler=lambda with_dynamic, with_adaptive, beta: beta,
    FmeasureV2=lambda metric_handlers: Meter("fm", lambda g, t: {"dynamic": f_measures(g, t)}),
    Emeasure=lambda: Meter("em", lambda g, t: {"curve": f_measures(g, t) / 2}),
    Smeasure=lambda: Meter("sm", lambda g, t: 1 - abs(g / 255 - t).mean() / 2),
    MAE=lambda: Meter("mae", lambda g, t: abs(g / 255 - t).mean()),
)


@pytest.fixture
def package(monkeypatch):
    monkeypatch.setitem(sys.modules, "py_sod_metrics", STAND_IN)


@pytest.fixture
def score(monkeypatch, tiny_root):
    """Scores the maps of a folder by evaluate.py."""

    def run(folder, *flags):
        flags = ("--masks", folder, "--set", "DAVIS_test", "--protocol", "saliency", *flags)
        monkeypatch.setattr(sys, "argv", ["x", *map(str, flags), "--data-root", str(tiny_root)])
        run_script(evaluate.main)

    return run


@pytest.fixture
def maps(tiny_root, tmp_path):
    """Noisy grey maps of the test set, by sequence and frame."""
    rng, found = np.random.default_rng(0), {}
    for sequence in video_sequences(tiny_root, "DAVIS_test"):
        for frame in sequence.frames:
            truth = read_labels(frame.mask) == 1
            grey = np.where(truth, 130, 60) + rng.integers(-60, 60, truth.shape)
            path = tmp_path / "maps" / sequence.name / f"{frame.name}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            cv2.imwrite(str(path), grey.astype(np.uint8))
            found[sequence.name, frame.name] = grey.astype(np.uint8), truth
    return found


def table(folder) -> dict[str, list[float]]:
    with (folder / "scores.csv").open() as file:
        return {
            row["sequence"]: [float(row[f"{m}_mean"]) for m in PROTOCOLS["saliency"].measures]
            for row in csv.DictReader(file)
        }


def test_the_packages_measures_are_those_of_their_definitions_or_its_absence_is_said():
    if find_spec("py_sod_metrics") is None:
        with pytest.raises(SaliencyError, match="pip install pysodmetrics"):
            load_package()
        return
    truth = np.zeros((40, 60), bool)
    truth[5:25, 10:40] = True
    grey = np.random.default_rng(1).integers(0, 256, truth.shape).astype(np.uint8)
    grey[truth] |= 128
    structure, f, alignment, error = saliency_curves(grey, truth)
    stretched = (grey / 255 - grey.min() / 255) / (np.ptp(grey) / 255)
    np.testing.assert_allclose(error, abs(stretched - truth).mean())
    np.testing.assert_allclose(f, f_measures(grey, truth), atol=1e-9)
    assert len(set(structure)) == 1 and 0.3 < structure[0] < 0.9
    assert 0.5 < alignment.max() <= 1
    white = 255 * truth.astype(np.uint8)
    right, wrong = (saliency_curves(one, truth).max(axis=1) for one in (white, 255 - white))
    np.testing.assert_allclose(right, [1, 1, 1, 0], atol=1e-3)
    assert wrong[0] < 0.2 and (wrong[1:3] < 0.8).all() and wrong[3] == 1


def test_a_missing_package_is_said_before_the_maps_are_looked_for(score, monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "py_sod_metrics", None)
    with pytest.raises(SystemExit) as stopped:
        score(tmp_path / "nowhere")
    assert str(stopped.value).endswith("pip install pysodmetrics")


def test_one_threshold_holds_for_the_whole_set():
    """The best one of the mean over videos, whatever the number of their frames."""
    one, other = np.zeros((4, 256)), np.zeros((4, 256))
    one[1, [10, 20]], other[1, [20, 30]] = [1.0, 0.7], [0.6, 0.9]
    one[2, 5], other[2, 7] = 0.2, 0.4
    one[[0, 3]], other[[0, 3]] = 0.25, 0.5
    found = at_best_thresholds({"a": [one] * 9, "b": [other]})
    assert len(found["a"]) == 9
    np.testing.assert_array_equal(found["a"][0], [0.25, 0.7, 0.0, 0.25])
    np.testing.assert_array_equal(found["b"], [[0.5, 0.6, 0.4, 0.5]])


@pytest.mark.usefixtures("package")
def test_grey_maps_of_any_method_are_scored(score, maps, tmp_path, capsys):
    score(tmp_path / "maps", "--output", tmp_path / "out")
    videos = {}
    for (sequence, _), pair in maps.items():
        videos.setdefault(sequence, []).append(pair)
    counted = {name: pairs[1:-1] for name, pairs in videos.items()}
    curves = {n: np.mean([f_measures(*p) for p in pairs], axis=0) for n, pairs in counted.items()}
    best = np.mean(list(curves.values()), axis=0).argmax()
    errors = {n: np.mean([abs(g / 255 - t).mean() for g, t in c]) for n, c in counted.items()}
    found = table(tmp_path / "out")
    for name, curve in curves.items():
        expected = [1 - errors[name] / 2, curve[best], curve[best] / 2, errors[name]]
        assert found[name] == pytest.approx(expected)
    means = np.mean([found[name] for name in curves], axis=0)
    assert found["average"] == pytest.approx(means)
    last = capsys.readouterr().out.splitlines()[-1]
    assert last == "S {:.4f}, maxF {:.4f}, maxE {:.4f}, MAE {:.4f}".format(*means)
    page = (tmp_path / "out/report.html").read_text()
    assert "maxF" in page and page.count("data:image/jpeg") >= 6


@pytest.mark.usefixtures("package")
def test_a_networks_probabilities_are_scored_as_if_they_came_from_elsewhere(
    call, score, tiny_settings, tmp_path
):
    checkpoint = save_small(tmp_path / "best.pt", tiny_settings)
    flags = ("--set", "DAVIS_test", "--protocol", "saliency")
    network = ("--checkpoint", checkpoint, "--output", tmp_path / "out", *flags)
    with pytest.raises(SystemExit, match="add --save probabilities"):
        call(evaluate, *network)
    assert not (tmp_path / "out").exists()
    call(evaluate, *network, "--save", "probabilities")
    score(tmp_path / "out/probabilities", "--output", tmp_path / "again")
    assert table(tmp_path / "out") == table(tmp_path / "again")
    page = write_comparison([tmp_path / "out", tmp_path / "again"], tmp_path).read_text()
    assert "same scores in every frame" in page
    # The report shows what was scored, which is not the masks.
    for path in (tmp_path / "out/probabilities").rglob("*.png"):
        other = tmp_path / "inverted" / path.relative_to(tmp_path / "out/probabilities")
        other.parent.mkdir(parents=True, exist_ok=True)
        cv2.imwrite(str(other), 255 - read_grey(path))
    score(tmp_path / "inverted", "--output", tmp_path / "other")
    runs = [tmp_path / "out", tmp_path / "other"]
    page = write_comparison(runs, tmp_path).read_text()
    shutil.rmtree(tmp_path / "out/masks")
    assert "data:image" in page and write_comparison(runs, tmp_path).read_text() == page
    with pytest.raises(SystemExit, match="--binarize: saliency scores grey maps as they are"):
        score(tmp_path / "out/probabilities", "--binarize")


@pytest.mark.usefixtures("package")
def test_networks_of_several_objects_are_refused(call, tiny_settings, tmp_path):
    checkpoint = save_small(tmp_path / "best.pt", tiny_settings, "ssl_uvos")
    flags = ("--protocol", "saliency", "--save", "probabilities", "--output", tmp_path / "out")
    with pytest.raises(SystemExit, match="this network has several"):
        call(evaluate, "--checkpoint", checkpoint, "--set", "DAVIS_test", *flags)


def test_grey_maps_have_8_or_16_bits_and_no_colours(tmp_path):
    levels = np.arange(256, dtype=np.uint8).reshape(16, 16)
    for name, picture in {"a.png": levels, "b.png": levels.astype(np.uint16) * 257}.items():
        cv2.imwrite(str(tmp_path / name), picture)
        np.testing.assert_array_equal(read_grey(tmp_path / name), levels)
    cv2.imwrite(str(tmp_path / "c.png"), np.dstack([levels, levels, levels.T]))
    with pytest.raises(DatasetError, match=r"c\.png: it has colours"):
        read_grey(tmp_path / "c.png")


@pytest.mark.parametrize("name", ["ViSal", "DAVSOD_test", "davsod-easy35"])
def test_sets_of_video_saliency_have_this_protocol(name):
    assert choose_protocol(name, None, every_frame=False)[0].name == "saliency"


def test_validation_in_training_takes_j(tiny_settings, tiny_root):
    sequences = video_sequences(tiny_root, "DAVIS_test")
    scores = [
        validate_videos(network("gsanet"), sequences, one, Process("cpu")).score
        for one in (tiny_settings, tiny_settings.replace(protocol="saliency"))
    ]
    assert scores[0] == scores[1] is not None
