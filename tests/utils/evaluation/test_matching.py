"""Several objects: pairs of masks, assignments, and the DAVIS 2017 evaluator's own numbers."""

import json
from itertools import combinations, permutations
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from utils.evaluation.matching import (
    PairScores,
    adjusted_rand_index,
    assign,
    matched,
    matched_per_frame,
    matching_labels,
    mean_iou,
    overlap_counts,
    score_pairs,
    video_pairs,
)
from utils.evaluation.metrics import boundary_accuracy, region_similarity, statistics
from utils.evaluation.protocols import PROTOCOLS
from utils.evaluation.scoring import collect_scores

GOLDEN = Path(__file__).resolve().parents[4] / "shared" / "golden" / "davis17_scores"


def blobs(seed, labels, size=(40, 60), void=False):
    """A label map of overlapping rectangles, of which some labels may be hidden."""
    rng = np.random.default_rng(seed)
    picture = np.zeros(size, np.uint8)
    for label in range(1, labels + 1):
        top, left = rng.integers(0, size[0] - 5), rng.integers(0, size[1] - 5)
        height, width = rng.integers(4, 20, 2)
        picture[top : top + height, left : left + width] = label
    if void:
        picture[5:9, 10:30] = 255
    return picture


@pytest.mark.parametrize("seed", range(4))
def test_pairs_are_scored_as_one_mask_against_another_outside_void(seed):
    predicted, true = blobs(seed, 5), blobs(seed + 100, 3, void=True)
    frame = score_pairs(predicted, true)
    region, accuracy = frame.of(range(1, 7), range(1, 5))  # the last of each is in no frame
    assert region.shape == accuracy.shape == (6, 4)
    known = true != 255
    for p, k in np.ndindex(6, 4):
        one, other = (predicted == p + 1) & known, (true == k + 1) & known
        assert region[p, k] == region_similarity(one, other)
        assert accuracy[p, k] == pytest.approx(boundary_accuracy(one, other), abs=1e-12)
    assert region[5, 3] == accuracy[5, 3] == 1  # both are empty
    sizes = {p: ((predicted == p) & known).sum() for p in range(1, 6)}
    assert dict(zip(frame.proposals[1:], frame.areas[1:])) == {p: n for p, n in sizes.items() if n}


def test_maps_without_any_background_keep_their_first_label():
    predicted = np.ones((20, 30), np.uint8)
    predicted[:, 20:] = 2
    true = np.where(predicted == 1, 1, 255).astype(np.uint8)  # and void fills the rest
    frame = score_pairs(predicted, true)
    assert (frame.proposals, frame.objects) == ([0, 1], [0, 1])
    assert [values.tolist() for values in matched(video_pairs([frame]))] == [[[1.0]], [[1.0]]]
    assert score_pairs(predicted, predicted).proposals == [0, 1, 2]


def test_proposals_with_large_numbers_count_and_only_the_twenty_largest():
    rng = np.random.default_rng(0)
    true = np.zeros((30, 30), np.uint8)
    true[:10, :10], true[20:, 20:] = 1, 2
    labels = rng.permutation(255)[:30] + 1
    predicted = np.repeat(labels[:, None], 30, axis=1).astype(np.uint8)  # a row each
    predicted[:10, :10] = 255
    frames = [score_pairs(predicted, true)] * 2
    scores = video_pairs(frames)
    assert scores.region.shape == (20, 2, 2)
    assert matched(scores)[0][0].tolist() == [1, 1]
    assert video_pairs(frames, numbered=True).region.shape == (2, 2, 2)


def test_a_number_that_is_left_out_is_an_empty_proposal():
    true = np.zeros((2, 10, 10), np.uint8)
    true[0, :5], true[:, 8:] = 1, 2  # object 1 is in the first frame alone
    predicted = np.where(true == 2, 3, 0)
    pairs = [score_pairs(*frame) for frame in zip(predicted.astype(np.uint8), true)]
    region, _ = matched(video_pairs(pairs))
    assert region.tolist() == [[0, 1], [1, 1]]


def scores_of(region):
    region = np.asarray(region, float)
    return PairScores(region, region.copy())


def test_proposals_are_assigned_once_for_the_whole_video():
    for seed in range(20):
        rng = np.random.default_rng(seed)
        scores = PairScores(rng.random((5, 3, 4)), rng.random((5, 3, 4)))
        quality = (scores.region.mean(axis=2) + scores.boundary.mean(axis=2)) / 2
        best = max(permutations(range(5), 3), key=lambda order: sum(quality[order, range(3)]))
        assert tuple(assign(scores)) == best
        region, accuracy = matched(scores)
        np.testing.assert_array_equal(region, scores.region[best, range(3)])
        np.testing.assert_array_equal(accuracy, scores.boundary[best, range(3)])


def test_matching_each_frame_inflates_scores():
    """Two proposals that are each right in one of two frames."""
    scores = scores_of([[[1, 0]], [[0, 1]]])
    assert matched(scores)[0].mean() == 0.5
    assert matched_per_frame(scores)[0].mean() == 1.0


def test_counts_leave_void_out():
    predicted = np.array([[0, 1, 2, 9], [1, 1, 2, 2]], np.uint8)
    true = np.array([[0, 1, 255, 1], [0, 1, 1, 7]], np.uint8)
    counts = overlap_counts(predicted, true)
    assert counts.sum() == 7 and counts[:, 255].sum() == 0
    assert [counts[0, 0], counts[1, 1], counts[1, 0], counts[2, 7], counts[9, 1]] == [1, 2, 1, 1, 1]


def test_adjusted_rand_index_counts_pairs_of_pixels():
    predicted, true = blobs(3, 3, (7, 9)), blobs(8, 3, (7, 9))
    inside = true.ravel() > 0
    one, other = predicted.ravel()[inside], true.ravel()[inside]
    pairs = [(one[i] == one[j], other[i] == other[j]) for i, j in combinations(range(len(one)), 2)]
    both, found, wanted = (
        np.sum([f(pair) for pair in pairs]) for f in (all, lambda p: p[0], lambda p: p[1])
    )
    expected = found * wanted / len(pairs)
    index = (both - expected) / ((found + wanted) / 2 - expected)
    assert adjusted_rand_index(overlap_counts(predicted, true)) == pytest.approx(index)
    assert adjusted_rand_index(overlap_counts(true, true)) == 1
    one_object = np.array([[0, 0], [0, 9]])
    assert adjusted_rand_index(one_object) == 1


def test_mean_iou_matches_over_the_video_and_counts_missing_objects():
    counts = np.array([[50, 5, 0], [10, 20, 5], [0, 15, 0]])  # proposals 1, 2; objects 1, 2
    first = 20 / 55, 15 / 40  # of object 1 with proposals 1 and 2
    second = 5 / 35, 0
    expected = max(first[0] + second[1], first[1] + second[0]) / 2
    assert mean_iou(counts) == pytest.approx(expected)
    assert mean_iou(np.array([[10, 5, 7], [0, 5, 0]])) == pytest.approx((5 / 10) / 2)


@pytest.mark.skipif(not GOLDEN.is_dir(), reason=f"needs the reference scores in {GOLDEN}")
@pytest.mark.parametrize("task", ["unsupervised", "semi-supervised"])
def test_agreement_with_the_davis_2017_evaluator(task):
    """All statistics of every object, to 1e-9."""
    expected = json.loads((GOLDEN / "expected.json").read_text())[task]
    free = task == "unsupervised"
    truths = GOLDEN / f"truth_{task.replace('-', '_')}"
    found = {"J": {}, "F": {}}
    for folder in sorted(truths.iterdir()):
        true = [np.array(Image.open(path)) for path in sorted(folder.iterdir())]
        masks = GOLDEN / ("proposals" if free else "propagated") / folder.name
        predicted = [np.array(Image.open(path)) for path in sorted(masks.iterdir())]
        if not free:
            true, predicted = true[1:-1], predicted[1:-1]
        pairs = [score_pairs(*frame) for frame in zip(predicted, true)]
        scores = video_pairs(pairs, numbered=not free)
        same = np.arange(scores.region.shape[1])
        pair = matched(scores) if free else (scores.region[same, same], scores.boundary[same, same])
        # The evaluator numbers objects in the order of their proposals.
        order = assign(scores).argsort() if free else same
        for measure, values in zip("JF", pair):
            for number, curve in enumerate(values[order], 1):
                found[measure][f"{folder.name}_{number}"] = statistics(curve)
    for measure, objects in found.items():
        assert objects.keys() == expected[measure]["per_object"].keys()
        for column in ("mean", "recall", "decay"):
            names = expected[measure]["per_object"]
            ours = [getattr(objects[name], column) for name in names]
            np.testing.assert_allclose(ours, expected[measure][column], atol=1e-9)
    both = np.mean([np.mean([one.mean for one in objects.values()]) for objects in found.values()])
    assert both == pytest.approx(expected["JF_mean"], abs=1e-9)


def test_proposals_get_the_numbers_of_the_objects_that_they_overlap():
    """Also beside void, and with more proposals than objects."""
    true = np.zeros((8, 8), np.uint8)
    true[:4, :4], true[4:, 4:], true[7] = 3, 1, 255
    predicted = np.full((8, 8), 1, np.uint8)
    predicted[:4, :5], predicted[4:, 4:], predicted[0, 7] = 7, 200, 3
    numbers = matching_labels(predicted, true)
    assert (numbers[0], numbers[7], numbers[200]) == (0, 3, 1)
    # The two others get the smallest numbers that are free.
    assert (numbers[1], numbers[3]) == (2, 4)
    assert len(set(numbers[:255].tolist())) == 255


def test_matching_each_frame_takes_any_number_of_proposals():
    """The right proposal is the smallest of 30."""
    true = np.zeros((40, 60), np.uint8)
    true[0, :2] = 1
    predicted = np.zeros((40, 60), np.uint8)
    predicted[1:30] = np.arange(2, 31)[:, None]
    predicted[0, :2] = 1
    frames = [score_pairs(predicted, true)] * 2
    scores = {"a": ("0", "1")}
    for name, j in (("per_frame_matching", 1.0), ("davis2017_unsupervised", 0.0)):
        rows = collect_scores([("a", t, f) for t, f in zip(scores["a"], frames)], PROTOCOLS[name])
        np.testing.assert_allclose(rows["a_1"].values["J"], [j, j])
