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
    """J of eq. 6: intersection over union of masks ``(H, W)``; 1 where both are empty."""
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
    return Boundary(prediction, bound_share).accuracy(Boundary(truth, bound_share))


class Boundary:
    """The boundary of a mask (H, W) and the pixels near it; see :func:`boundary_accuracy`."""

    def __init__(self, mask: np.ndarray, bound_share: float = BOUND_SHARE):
        mask = _as_mask(mask)
        radius = math.ceil(bound_share * math.hypot(*mask.shape))
        # Outside the mask's box, one pixel wider, there is no boundary.
        self.box = _grown(mask, 1)
        self.line = _boundary(mask[self.box])
        self.count = cv2.countNonZero(self.line)
        self.near = np.zeros_like(mask)
        self.near[self.box] = self.line
        around = _grown(self.near, radius)
        if self.count:
            self.near[around] = cv2.dilate(self.near[around], _disk(radius))

    def accuracy(self, other: "Boundary") -> float:
        """F of two masks of one size."""
        if self.count == 0 or other.count == 0:
            return float(self.count == other.count)
        precision, recall = self._share_near(other), other._share_near(self)
        return 2 * precision * recall / (precision + recall) if precision + recall else 0.0

    def _share_near(self, other: "Boundary") -> float:
        """Share of this boundary's pixels that lie near the other one."""
        return cv2.countNonZero(self.line & other.near[self.box]) / self.count


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


def _grown(mask: np.ndarray, margin: int) -> tuple[slice, slice]:
    """The box around a mask, wider by ``margin`` pixels on each side."""
    left, top, width, height = cv2.boundingRect(mask)
    rows = slice(max(top - margin, 0), top + height + margin)
    return rows, slice(max(left - margin, 0), left + width + margin)


def _as_mask(mask: np.ndarray) -> np.ndarray:
    """A mask as uint8 of zeros and ones."""
    return np.ascontiguousarray(mask != 0).view(np.uint8)


def _boundary(mask: np.ndarray) -> np.ndarray:
    """Pixels that differ from their right, lower or lower right neighbour, uint8 (H, W).

    A neighbour outside the image counts as equal.
    """
    boundary = np.zeros_like(mask)
    boundary[:, :-1] = mask[:, :-1] ^ mask[:, 1:]
    boundary[:-1] |= mask[:-1] ^ mask[1:]
    boundary[:-1, :-1] |= mask[:-1, :-1] ^ mask[1:, 1:]
    return boundary


@lru_cache
def _disk(radius: int) -> np.ndarray:
    """Pixels within ``radius`` of the middle one, uint8 (2 * radius + 1, 2 * radius + 1)."""
    y, x = np.ogrid[-radius : radius + 1, -radius : radius + 1]
    return (x**2 + y**2 <= radius**2).astype(np.uint8)


MEASURES = {"J": region_similarity, "F": boundary_accuracy}
