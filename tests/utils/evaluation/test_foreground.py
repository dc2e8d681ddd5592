"""The choice of a foreground among proposals, on examples by hand."""

import numpy as np

from utils.evaluation.foreground import BORDER, ORACLE, choose_foreground


def frames():
    """Two frames of 6 x 8 pixels: sky 1, ground 2, a dog 3, a ball that comes and goes 9."""
    for t in range(2):
        labels = np.ones((6, 8), np.uint8)
        labels[4:] = 2
        labels[2:5, 2 + t : 5 + t] = 3
        truth = (labels == 3).astype(np.uint8)
        truth[4] = 0  # the dog's feet are missing in the true mask
        if t:
            labels[1, 7] = 9
        yield labels, truth


def test_the_border_rule_leaves_out_the_largest_label_and_those_at_the_border():
    chosen = np.flatnonzero(choose_foreground(frames(), BORDER))
    # Sky owns 14 and 13 of the 24 border pixels of a frame, ground the rest, the ball one.
    assert chosen.tolist() == [2, 3, 9]
    assert not choose_foreground([(np.full((4, 4), 7, np.uint8),) * 2], BORDER).any()


def test_the_oracle_takes_the_labels_that_fit_the_object_better_than_the_background():
    assert np.flatnonzero(choose_foreground(frames(), ORACLE)).tolist() == [3]


def test_where_there_is_no_proposal_there_is_no_foreground():
    labels = np.zeros((6, 8), np.uint8)
    labels[2:4, 2:4] = 4
    for rule in (BORDER, ORACLE):
        chosen = choose_foreground([(labels, (labels > 0).astype(np.uint8))], rule)
        assert np.flatnonzero(chosen).tolist() == [4]
