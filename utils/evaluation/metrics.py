"""The measures of the DAVIS 2016 benchmark: region similarity J and boundary accuracy F.

As defined by Perazzi et al., "A Benchmark Dataset and Evaluation Methodology for Video Object
Segmentation", CVPR 2016, and as the benchmark's own evaluator computes them. Masks are ``(H, W)``
arrays; every value but 0 is foreground. All scores lie in [0, 1], decay in [-1, 1].
"""

import math
from dataclasses import dataclass
from functools import lru_cache

import cv2
import numpy as np

BOUND_SHARE = 0.008  # how far apart boundaries may be, as a share of the image's diagonal


@dataclass(frozen=True)
class Statistics:
    """A measure over a sequence: its mean, the share of frames above 0.5, its loss over time."""

    mean: float
    recall: float
    decay: float


def region_similarity(prediction: np.ndarray, truth: np.ndarray) -> float:
    """J: intersection over union of two masks ``(H, W)``; 1 where both are empty."""
    prediction, truth = _as_mask(prediction), _as_mask(truth)
    union = cv2.countNonZero(prediction | truth)
    return cv2.countNonZero(prediction & truth) / union if union else 1.0


def boundary_accuracy(
    prediction: np.ndarray, truth: np.ndarray, bound_share: float = BOUND_SHARE
) -> float:
    """F: harmonic mean of the precision and recall of the boundary pixels of two masks ``(H, W)``.

    A boundary pixel is matched if the other mask has one within ``bound_share`` of the image
    diagonal, rounded up to whole pixels. F is 1 where neither mask has a boundary, 0 where only one
    has.
    """
    prediction, truth = _as_mask(prediction), _as_mask(truth)
    reach = disk(math.ceil(bound_share * math.hypot(*truth.shape)))
    # Outside the foregrounds' common box, one pixel wider, there is no boundary.
    left, top, width, height = cv2.boundingRect(prediction | truth)
    box = np.s_[max(top - 1, 0) : top + height + 1, max(left - 1, 0) : left + width + 1]
    found, true = boundary(prediction[box]), boundary(truth[box])
    num_found, num_true = cv2.countNonZero(found), cv2.countNonZero(true)
    if num_found == 0 or num_true == 0:
        return float(num_found == num_true)
    precision = cv2.countNonZero(found & cv2.dilate(true, reach)) / num_found
    recall = cv2.countNonZero(true & cv2.dilate(found, reach)) / num_true
    return 2 * precision * recall / (precision + recall) if precision + recall else 0.0


def statistics(values: np.ndarray) -> Statistics:
    """Mean, recall (share of frames above 0.5) and decay of a measure ``(T,)``, T > 0.

    Decay is the mean of the first quarter of the frames minus the mean of the last. As in the
    benchmark's evaluator, neighbouring quarters share a frame.
    """
    # The small term rounds halves up; round() alone would take them to the even neighbour.
    edges = np.round(np.linspace(1, len(values), 5) + 1e-10).astype(int) - 1
    first, last = values[: edges[1] + 1], values[edges[3] :]
    return Statistics(
        mean=float(np.mean(values)),
        recall=float(np.mean(values > 0.5)),
        decay=float(np.mean(first) - np.mean(last)),
    )


def _as_mask(mask: np.ndarray) -> np.ndarray:
    """A mask as uint8 of zeros and ones."""
    return np.ascontiguousarray(mask != 0).view(np.uint8)


def boundary(mask: np.ndarray) -> np.ndarray:
    """Pixels that differ from their right, lower or lower right neighbour, uint8 (H, W).

    A neighbour outside the image counts as equal.
    """
    boundary = np.zeros_like(mask)
    boundary[:, :-1] = mask[:, :-1] ^ mask[:, 1:]
    boundary[:-1] |= mask[:-1] ^ mask[1:]
    boundary[:-1, :-1] |= mask[:-1, :-1] ^ mask[1:, 1:]
    return boundary


@lru_cache
def disk(radius: int) -> np.ndarray:
    """Pixels within ``radius`` of the middle one, uint8 (2 * radius + 1, 2 * radius + 1)."""
    y, x = np.ogrid[-radius : radius + 1, -radius : radius + 1]
    return (x**2 + y**2 <= radius**2).astype(np.uint8)


MEASURES = {"J": region_similarity, "F": boundary_accuracy}
