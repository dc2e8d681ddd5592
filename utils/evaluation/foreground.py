"""One true object, several proposals: which of them are the foreground.

Label maps are uint8 (H, W). Label 0, where there is no proposal, is never foreground.
"""

from collections.abc import Iterable

import numpy as np

from utils.evaluation.matching import overlap_counts

BORDER, ORACLE = "border", "oracle"
RULES = {
    BORDER: "the foreground is all labels but the largest one and those that own half of the "
    "frames' border (FOREGROUND = border)",
    ORACLE: "the foreground is chosen by the ground truth, which makes scores higher; compare them "
    "only with scores by the same rule (FOREGROUND = oracle)",
}


def choose_foreground(masks: Iterable[tuple[np.ndarray, np.ndarray]], rule: str) -> np.ndarray:
    """The labels of a video that are its foreground.

    Args:
        masks: the label map of each frame, and the true one with the object as 1.
        rule: ``BORDER`` needs no ground truth: all labels but the one with the largest area and
            those that own half of the frames' border or more. ``ORACLE``: the labels whose IoU with
            the true object is larger than that with the true background.

    Returns:
        bool (256,), by label.
    """
    counts, border = np.zeros((256, 2), np.int64), np.zeros(256, np.int64)
    for labels, truth in masks:
        counts += overlap_counts(labels, truth)[:, :2]
        edge = labels[0], labels[-1], labels[1:-1, 0], labels[1:-1, -1]
        border += np.bincount(np.concatenate(edge), minlength=256)
    areas = counts.sum(axis=1)
    if rule == ORACLE:
        unions = areas[:, None] + counts.sum(axis=0) - counts
        background, foreground = (counts / np.maximum(unions, 1)).T
        chosen = foreground > background
    else:
        chosen = (areas > 0) & (2 * border < border.sum())
        chosen[areas.argmax()] = False
    chosen[0] = False
    return chosen
