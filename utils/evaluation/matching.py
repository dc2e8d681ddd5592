"""Several objects: which proposal is which object, and the measures of each pair (DAVIS 2017).

Masks are label maps, uint8 ``(H, W)``: 0 background, 1 to K objects, and in a ground truth 255
void, whose pixels count nowhere. An object or proposal that is in no frame is an empty mask.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from datasets.masks import VOID
from utils.evaluation.metrics import Boundary

MOST_PROPOSALS = 20  # of a video; the benchmark's evaluator takes no more


@dataclass(frozen=True)
class PairScores:
    """J and F of every proposal (P) with every object (K) in every frame (T).

    Attributes:
        region: J, float64 (P, K, T) in [0, 1].
        boundary: F, likewise.
    """

    region: np.ndarray
    boundary: np.ndarray


@dataclass(frozen=True)
class FramePairs:
    """J and F of the proposals and objects of one frame, beside an empty mask of each.

    Attributes:
        proposals, objects: their labels, in order; the first one is 0, which is an empty mask.
        areas: pixels of the proposals outside void.
        region: J, float64 (proposals, objects) in [0, 1].
        boundary: F, likewise.
    """

    proposals: list[int]
    objects: list[int]
    areas: np.ndarray
    region: np.ndarray
    boundary: np.ndarray

    def of(self, proposals: Iterable[int], objects: Iterable[int]) -> tuple[np.ndarray, ...]:
        """J and F of the proposals and objects with these labels, empty ones where not here."""
        index = np.ix_(
            [self.proposals.index(p) if p in self.proposals else 0 for p in proposals],
            [self.objects.index(k) if k in self.objects else 0 for k in objects],
        )
        return self.region[index], self.boundary[index]


def score_pairs(predicted: np.ndarray, true: np.ndarray) -> FramePairs:
    """J and F of all pairs of a frame, from label maps of the same size.

    Where both masks are empty a pair scores 1. The boundary of each mask is found once.
    """
    counts = overlap_counts(predicted, true)
    inside = counts.copy()
    inside[0], inside[:, 0] = 0, 0  # the first mask of either kind is empty
    proposals = [0, *(np.flatnonzero(counts[1:].any(axis=1)) + 1).tolist()]
    objects = [0, *(np.flatnonzero(counts[:, 1:].any(axis=0)) + 1).tolist()]
    areas = np.array([0, *counts[proposals[1:]].sum(axis=1)])
    others = np.array([0, *counts[:, objects[1:]].sum(axis=0)])
    common = inside[np.ix_(proposals, objects)]
    union = areas[:, None] + others - common
    region = np.where(union, common / np.maximum(union, 1), 1.0)
    known = true != VOID
    found = [Boundary((predicted == p) & known & (p > 0)) for p in proposals]
    wanted = [Boundary((true == k) & known & (k > 0)) for k in objects]
    accuracy = [[one.accuracy(other) for other in wanted] for one in found]
    return FramePairs(proposals, objects, areas, region, np.array(accuracy))


def video_pairs(
    frames: Sequence[FramePairs], numbered: bool = False, most: int = MOST_PROPOSALS
) -> PairScores:
    """The pairs of a whole video; the objects are 1 to K, the largest label of any frame.

    Args:
        frames: of all frames.
        numbered: the proposals are the objects with the same label, and others do not count.
            Otherwise the proposals are the labels that are found.
        most: if more labels are found, only this number of the largest ones are proposals.
    """
    objects = range(1, max(max(frame.objects) for frame in frames) + 1)
    areas: dict[int, int] = {}
    for frame in frames:
        for label, area in zip(frame.proposals[1:], frame.areas[1:]):
            areas[label] = areas.get(label, 0) + int(area)
    proposals = sorted(sorted(areas, key=lambda label: -areas[label])[:most])
    if areas and max(areas) <= most:
        # As in the benchmark's evaluator, a number that is left out is an empty proposal.
        proposals = list(range(1, max(areas) + 1))
    proposals += [0] * (len(objects) - len(proposals))
    chosen = [frame.of(objects if numbered else proposals, objects) for frame in frames]
    return PairScores(*(np.stack(values, axis=2) for values in zip(*chosen)))


def overlap_counts(predicted: np.ndarray, true: np.ndarray) -> np.ndarray:
    """How many pixels have each pair of labels, int64 (256, 256); void counts nowhere."""
    pairs = predicted.astype(np.uint16) * np.uint16(256) + true
    counts = np.bincount(pairs.ravel(), minlength=2**16).reshape(256, 256)
    counts[:, VOID] = 0
    return counts


def matching_labels(predicted: np.ndarray, true: np.ndarray) -> np.ndarray:
    """New numbers for the predicted labels of a frame, uint8 (256,): those of the true objects.

    Proposals and objects are assigned to each other by IoU. The other proposals get the numbers
    that are left, in order.
    """
    counts = overlap_counts(predicted, true)[:, :VOID]
    common = counts[1:VOID, 1:]
    unions = counts[1:VOID].sum(axis=1)[:, None] + counts[:, 1:].sum(axis=0) - common
    rows, columns = _best_pairs(common / np.maximum(unions, 1))
    known = common[rows, columns] > 0
    numbers = np.zeros(256, np.uint8)
    numbers[rows[known] + 1] = columns[known] + 1
    used = {*np.unique(true).tolist(), *numbers.tolist()}
    others = [p for p in np.unique(predicted).tolist() if 0 < p < VOID and not numbers[p]]
    others += [p for p in range(1, VOID) if not numbers[p] and p not in others]
    free = [number for number in range(1, VOID) if number not in used]
    for label, number in zip(others, free):
        numbers[label] = number
    return numbers


def assign(scores: PairScores) -> np.ndarray:
    """The proposal of each object, over the whole video: int (K,).

    One proposal belongs to at most one object. The assignment has the largest sum of
    (mean J + mean F) / 2. There must be at least as many proposals as objects.
    """
    quality = (scores.region.mean(axis=2) + scores.boundary.mean(axis=2)) / 2
    proposals, objects = _best_pairs(quality)
    return proposals[objects.argsort()]


def matched(scores: PairScores) -> tuple[np.ndarray, np.ndarray]:
    """J and F of each object with its proposal, (K, T) each."""
    proposals, objects = assign(scores), np.arange(scores.region.shape[1])
    return scores.region[proposals, objects], scores.boundary[proposals, objects]


def matched_per_frame(scores: PairScores) -> tuple[np.ndarray, np.ndarray]:
    """J and F of each object with the proposal assigned to it in that frame, (K, T) each.

    This inflates scores: an object may be a different proposal in each frame. The published numbers
    of SMTC and SSL-UVOS follow this rule.
    """
    frames = [
        matched(PairScores(region[..., None], boundaries[..., None]))
        for region, boundaries in zip(
            np.moveaxis(scores.region, 2, 0), np.moveaxis(scores.boundary, 2, 0)
        )
    ]
    return tuple(np.concatenate(values, axis=1) for values in zip(*frames))


def adjusted_rand_index(counts: np.ndarray) -> float:
    """FG-ARI: adjusted Rand index of labels over the pixels of true objects of a whole video.

    Args:
        counts: :func:`overlap_counts`, summed over the frames.

    Returns:
        1 for the same partition, about 0 for a random one. A video with one object that lies in one
        proposal has 1.
    """
    table = counts[:, 1:].astype(np.float64)

    def pairs(values: np.ndarray) -> float:
        return float((values * (values - 1) / 2).sum())

    both, found, true = pairs(table), pairs(table.sum(axis=1)), pairs(table.sum(axis=0))
    everything = pairs(table.sum())
    expected = found * true / everything if everything else 0.0
    best = (found + true) / 2
    return (both - expected) / (best - expected) if best != expected else 1.0


def mean_iou(counts: np.ndarray) -> float:
    """mIoU: mean over the true objects of a video of the IoU with the proposal assigned to it.

    The assignment has the largest sum of IoUs over the whole video. An object without a proposal
    has 0.

    Args:
        counts: :func:`overlap_counts`, summed over the frames.
    """
    counts = counts[:, [0, *np.flatnonzero(counts[:, 1:].any(axis=0)) + 1]]
    common = counts[1:, 1:]
    union = counts[1:].sum(axis=1, keepdims=True) + counts[:, 1:].sum(axis=0) - common
    iou = common / np.maximum(union, 1)
    return float(iou[_best_pairs(iou)].sum() / iou.shape[1])


def _best_pairs(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Rows and columns of a matrix, one to one, with the largest sum."""
    # SciPy takes half a second to import, at the start of every program.
    from scipy.optimize import linear_sum_assignment

    return linear_sum_assignment(values, maximize=True)
