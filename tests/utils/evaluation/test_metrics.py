"""J, F and their statistics, against direct calculations and the DAVIS authors' own evaluator."""

import json
import math
from pathlib import Path

import cv2
import numpy as np
import pytest

from utils.evaluation.metrics import MEASURES, boundary_accuracy, region_similarity, statistics

SHARED = Path(__file__).resolve().parents[4] / "shared"
GOLDEN = SHARED / "golden" / "davis16_scores"


def slow_j(a, b):
    """Intersection over union with sets of pixels."""
    a, b = (set(zip(*np.nonzero(mask), strict=True)) for mask in (a, b))
    return len(a & b) / len(a | b) if a | b else 1.0


def slow_boundary(mask):
    """Boundary pixels one by one, as the evaluator's definition reads."""
    height, width = mask.shape
    pixels = []
    for y in range(height):
        for x in range(width):
            steps = [(0, 1), (1, 0), (1, 1)]
            if y == height - 1:
                steps = [(0, 1)]
            elif x == width - 1:
                steps = [(1, 0)]
            inside = [(y + dy, x + dx) for dy, dx in steps if y + dy < height and x + dx < width]
            if any(mask[y, x] != mask[place] for place in inside):
                pixels.append((y, x))
    return pixels


def slow_f(a, b, bound_share):
    """F with the distance between every two boundary pixels."""
    radius = math.ceil(bound_share * math.sqrt(a.shape[0] ** 2 + a.shape[1] ** 2))
    a, b = slow_boundary(a), slow_boundary(b)
    if not a or not b:
        return 1.0 if not a and not b else 0.0

    def matched(these, those):
        near = [any((y - v) ** 2 + (x - u) ** 2 <= radius**2 for v, u in those) for y, x in these]
        return sum(near) / len(near)

    precision, recall = matched(a, b), matched(b, a)
    return 0.0 if precision + recall == 0 else 2 * precision * recall / (precision + recall)


def random_mask(rng, height, width):
    """A few discs, some of them cut off by the image's edge, and a little noise."""
    y, x = np.mgrid[:height, :width]
    mask = rng.random((height, width)) < 0.01
    for _ in range(rng.integers(0, 3)):
        centre = rng.uniform((0, 0), (height, width))
        mask |= (y - centre[0]) ** 2 + (x - centre[1]) ** 2 < rng.uniform(2, height / 2) ** 2
    return mask


@pytest.mark.parametrize("seed", range(12))
def test_j_and_f_agree_with_direct_calculations(seed):
    """Small masks of any shape, at bounds of one to several pixels."""
    rng = np.random.default_rng(seed)
    height, width = rng.integers(12, 40, size=2)
    a, b = random_mask(rng, height, width), random_mask(rng, height, width)
    assert region_similarity(a, b) == pytest.approx(slow_j(a, b), abs=1e-12)
    assert boundary_accuracy(a, b) == pytest.approx(slow_f(a, b, 0.008), abs=1e-12)
    for bound in (0.03, 0.1):
        assert boundary_accuracy(a, b, bound) == pytest.approx(slow_f(a, b, bound), abs=1e-12)


def test_empty_and_full_masks():
    """A full mask has no boundary, for the image's edge is none."""
    empty, full, square = (np.zeros((20, 30), bool) for _ in range(3))
    full[:] = True
    square[5:9, 5:9] = True
    assert (region_similarity(empty, empty), boundary_accuracy(empty, empty)) == (1, 1)
    assert (region_similarity(empty, square), boundary_accuracy(empty, square)) == (0, 0)
    assert (region_similarity(square, empty), boundary_accuracy(square, empty)) == (0, 0)
    assert (region_similarity(square, square), boundary_accuracy(square, square)) == (1, 1)
    assert (region_similarity(full, empty), boundary_accuracy(full, empty)) == (0, 1)


def test_a_boundary_is_matched_within_the_bound_and_not_beyond():
    """480p has a bound of 8 pixels; a shift of 8 still matches wholly, of 9 only at the corners."""
    truth = np.zeros((480, 854), bool)
    truth[100:300, 200:500] = True
    assert boundary_accuracy(np.roll(truth, 8, axis=1), truth) == 1
    assert 0.5 < boundary_accuracy(np.roll(truth, 9, axis=1), truth) < 1
    far = np.zeros_like(truth)
    far[400:450, 600:700] = True
    assert boundary_accuracy(far, truth) == 0


def test_any_value_but_zero_is_foreground():
    """Masks as they are read from files: 0 and 255, or labels."""
    mask = np.zeros((20, 30), np.uint8)
    mask[5:9, 5:9] = 255
    labels = np.where(mask > 0, 2, 0)
    assert region_similarity(mask, labels) == 1
    assert boundary_accuracy(mask, labels) == 1


def test_statistics_of_known_values():
    """Eight frames in overlapping quarters: [0:3] is the first, [5:8] the last."""
    found = statistics(np.array([0.8, 0.7, 0.6, 0.5, 0.4, 0.3, 0.2, 0.1]))
    # Edges are linspace(1, 8, 5) = 1, 2.75, 4.5, 6.25, 8, rounded to 1, 3, 5, 6, 8.
    assert found.mean == pytest.approx(0.45)
    assert found.recall == pytest.approx(3 / 8)  # 0.5 itself is not above 0.5
    assert found.decay == pytest.approx((0.8 + 0.7 + 0.6) / 3 - (0.3 + 0.2 + 0.1) / 3)


def test_statistics_of_a_long_sequence():
    """More frames than an 8-bit index counts."""
    values = np.linspace(1, 0, 1002)
    found = statistics(values)
    assert found.decay == pytest.approx(0.75, abs=0.01)


@pytest.mark.parametrize(
    ("values", "mean", "recall", "decay"),
    [
        ([0.8], 0.8, 1, 0),
        ([0.8, 0.2], 0.5, 0.5, 0.6),
        # The edges 1.5 and 2.5 both round up, to frames 2 and 3.
        ([0.9, 0.6, 0.3], 0.6, 2 / 3, 0.75 - 0.3),
    ],
)
def test_statistics_of_short_sequences(values, mean, recall, decay):
    found = statistics(np.array(values))
    assert (found.mean, found.recall, found.decay) == pytest.approx((mean, recall, decay))


@pytest.mark.skipif(not GOLDEN.is_dir(), reason=f"needs the reference scores in {GOLDEN}")
def test_agreement_with_the_davis_evaluator():
    """Every frame and all statistics of another method's masks, to 1e-9."""
    expected = json.loads((GOLDEN / "expected.json").read_text())
    assert expected
    for sequence, reference in expected.items():
        masks = sorted((GOLDEN / "masks" / sequence).glob("*.png"))
        truths = [
            SHARED / "data/uvos/DAVIS_test" / sequence / "GT" / f"{sequence}_{path.name}"
            for path in masks
        ]
        assert len(masks) == len(reference["J"])
        pairs = [(read_mask(a), read_mask(b)) for a, b in zip(masks, truths)]
        for measure, function in MEASURES.items():
            values = np.array([function(*pair) for pair in pairs])
            np.testing.assert_allclose(values, reference[measure], rtol=0, atol=1e-9)
            for kind, some in (("davis16", values[1:-1]), ("all_frames", values)):
                found = vars(statistics(some))
                assert found == pytest.approx(reference[kind][measure], rel=0, abs=1e-9)


def read_mask(path):
    """A mask file as (H, W)."""
    mask = cv2.imread(str(path), cv2.IMREAD_GRAYSCALE)
    assert mask is not None, path
    return mask
