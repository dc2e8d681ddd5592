"""The measures of the DAVIS 2016 benchmark: region similarity J and boundary accuracy F.

As defined by Perazzi et al., "A Benchmark Dataset and Evaluation Methodology for Video Object
Segmentation", CVPR 2016, and as the benchmark's own evaluator computes them. Masks are ``(H, W)``
arrays; every value but 0 is foreground. All scores lie in [0, 1], decay in [-1, 1].
"""

import csv
import math
from collections.abc import Iterable, Mapping
from dataclasses import astuple, dataclass
from pathlib import Path

import cv2
import numpy as np


@dataclass(frozen=True)
class Statistics:
    """A measure over a sequence: its mean, the share of frames above 0.5, its loss over time."""

    mean: float
    recall: float
    decay: float


@dataclass(frozen=True)
class SequenceScores:
    """J and F of every frame of a sequence, ``(T,)`` float64 each, the first and last included."""

    j: np.ndarray
    f: np.ndarray


def region_similarity(prediction: np.ndarray, truth: np.ndarray) -> float:
    """J: intersection over union of two masks ``(H, W)``; 1 where both are empty.

    Raises:
        ValueError: masks that are not ``(H, W)`` or differ in size.
    """
    prediction, truth = _as_masks(prediction, truth)
    union = np.count_nonzero(prediction | truth)
    return np.count_nonzero(prediction & truth) / union if union else 1.0


def boundary_accuracy(
    prediction: np.ndarray, truth: np.ndarray, bound_share: float = 0.008
) -> float:
    """F: harmonic mean of the precision and recall of the boundary pixels of two masks ``(H, W)``.

    A boundary pixel is matched if the other mask has one within ``bound_share`` of the image
    diagonal, rounded up to whole pixels. F is 1 where neither mask has a boundary, 0 where only one
    has.

    Raises:
        ValueError: masks that are not ``(H, W)`` or differ in size.
    """
    prediction, truth = _as_masks(prediction, truth)
    radius = math.ceil(bound_share * math.hypot(*truth.shape))
    found, true = _boundary(prediction), _boundary(truth)
    num_found, num_true = np.count_nonzero(found), np.count_nonzero(true)
    if num_found == 0 or num_true == 0:
        return float(num_found == num_true)

    # Only distances between boundary pixels count, so the box around all of them is enough.
    rows, columns = np.nonzero(found | true)
    box = np.s_[rows.min() : rows.max() + 1, columns.min() : columns.max() + 1]
    found, true = found[box].view(np.uint8), true[box].view(np.uint8)
    y, x = np.ogrid[-radius : radius + 1, -radius : radius + 1]
    disk = (x**2 + y**2 <= radius**2).astype(np.uint8)
    precision = np.count_nonzero(found & cv2.dilate(true, disk)) / num_found
    recall = np.count_nonzero(true & cv2.dilate(found, disk)) / num_true
    return 2 * precision * recall / (precision + recall) if precision + recall else 0.0


def statistics(values: np.ndarray, first_and_last: bool = False) -> Statistics:
    """Mean, recall (share of frames above 0.5) and decay of a measure ``(T,)`` over a sequence.

    The benchmark leaves the first and the last frame out, as ``first_and_last=False`` does; a
    sequence of one or two frames, of which nothing would be left, then counts whole. Decay is the
    mean of the first quarter of the frames minus that of the last. As in the benchmark's evaluator,
    neighbouring quarters share a frame and NaN values do not enter the means.

    Raises:
        ValueError: no frames.
    """
    values = np.asarray(values, dtype=np.float64)
    if values.ndim != 1 or len(values) == 0:
        raise ValueError(f"statistics of values of shape {values.shape}: expected (T,) with T > 0")
    if not first_and_last and len(values) > 2:
        values = values[1:-1]
    # The small term rounds halves up; round() alone would take them to the even neighbour.
    edges = np.round(np.linspace(1, len(values), 5) + 1e-10).astype(int) - 1
    first, last = values[: edges[1] + 1], values[edges[3] :]
    return Statistics(
        mean=float(np.nanmean(values)),
        recall=float(np.mean(values > 0.5)),
        decay=float(np.nanmean(first) - np.nanmean(last)),
    )


def score_sequence(masks: Iterable[tuple[np.ndarray, np.ndarray]]) -> SequenceScores:
    """J and F of every frame of a sequence, from pairs (prediction, truth) of masks ``(H, W)``.

    Takes one frame at a time, so that generators keep memory bounded.

    Raises:
        ValueError: a frame whose masks differ in size, or no frames.
    """
    j, f = [], []
    for index, (prediction, truth) in enumerate(masks):
        try:
            j.append(region_similarity(prediction, truth))
            f.append(boundary_accuracy(prediction, truth))
        except ValueError as error:
            raise ValueError(f"frame {index}, counted from 0: {error}") from error
    if not j:
        raise ValueError("no frames to score: expected at least one")
    return SequenceScores(np.array(j), np.array(f))


def summarise(
    scores: Mapping[str, SequenceScores], first_and_last: bool = False
) -> dict[str, tuple[Statistics, Statistics]]:
    """Statistics of J and of F by sequence; last, as ``average``, their means over sequences.

    Raises:
        ValueError: no sequences.
    """
    if not scores:
        raise ValueError("no sequences to summarise: expected at least one")
    rows = {
        name: (statistics(one.j, first_and_last), statistics(one.f, first_and_last))
        for name, one in scores.items()
    }
    average_j, average_f = np.mean([[astuple(j), astuple(f)] for j, f in rows.values()], axis=0)
    return rows | {"average": (Statistics(*average_j.tolist()), Statistics(*average_f.tolist()))}


def global_mean(scores: Mapping[str, SequenceScores], first_and_last: bool = False) -> float:
    """J&F: the mean of the average mean J and the average mean F, over sequences."""
    j, f = summarise(scores, first_and_last)["average"]
    return (j.mean + f.mean) / 2


def write_scores(
    path: Path, scores: Mapping[str, SequenceScores], first_and_last: bool = False
) -> None:
    """Write the statistics as CSV at full precision: a row per sequence, the average last."""
    header = [f"{measure}_{name}" for measure in "JF" for name in ("mean", "recall", "decay")]
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["sequence", *header])
        for name, (j, f) in summarise(scores, first_and_last).items():
            writer.writerow([name, *astuple(j), *astuple(f)])


def score_table(scores: Mapping[str, SequenceScores], first_and_last: bool = False) -> str:
    """The rows of ``write_scores`` as an aligned table to print, with J&F of each sequence."""
    summary = summarise(scores, first_and_last)
    width = max(map(len, ["sequence", *summary]))
    header = ["J&F", "J mean", "recall", "decay", "F mean", "recall", "decay"]
    lines = [f"{'sequence':<{width}}" + "".join(f"{title:>8}" for title in header)]
    for name, (j, f) in summary.items():
        numbers = [(j.mean + f.mean) / 2, *astuple(j), *astuple(f)]
        lines.append(f"{name:<{width}}" + "".join(f"{number:8.3f}" for number in numbers))
    lines.insert(-1, "-" * len(lines[0]))
    return "\n".join(lines)


def _as_masks(prediction: np.ndarray, truth: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    prediction, truth = np.asarray(prediction), np.asarray(truth)
    if prediction.ndim != 2 or prediction.shape != truth.shape:
        raise ValueError(
            f"predicted mask of shape {prediction.shape}, ground truth of shape {truth.shape}: "
            "expected two masks (H, W) of the same size"
        )
    return prediction != 0, truth != 0


def _boundary(mask: np.ndarray) -> np.ndarray:
    """Pixels that differ from their right, lower or lower right neighbour.

    A neighbour outside the image counts as equal, so a mask that the image's edge cuts off has no
    boundary there.
    """
    padded = np.pad(mask, ((0, 1), (0, 1)), mode="edge")
    right, below, diagonal = padded[:-1, 1:], padded[1:, :-1], padded[1:, 1:]
    return (mask != right) | (mask != below) | (mask != diagonal)
