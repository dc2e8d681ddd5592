"""Measures of propagated parts of people: mIoU of VIP's classes, PCK of JHMDB's joints.

Both follow the evaluation of CRW.
"""

from collections.abc import Iterable

import numpy as np
import torch
from torch import Tensor


def mean_class_iou(pairs: Iterable[tuple[np.ndarray, np.ndarray]], num_classes: int = 20) -> float:
    """VIP's measure: the mean IoU of classes over all pixels of all frames of all videos.

    Args:
        pairs: predicted and true label maps (H, W) of every frame; the background is class 0.
            True labels from ``num_classes`` on do not count.

    Returns:
        The mean over the classes that occur in either.
    """
    counts = np.zeros((num_classes, num_classes), np.int64)  # true by predicted class
    for predicted, truth in pairs:
        valid = truth < num_classes
        numbers = truth[valid].astype(np.int64) * num_classes + predicted[valid]
        counts += np.bincount(numbers, minlength=counts.size).reshape(counts.shape)
    both = counts.diagonal()
    either = counts.sum(axis=0) + counts.sum(axis=1) - both
    return float((both[either > 0] / either[either > 0]).mean())


def joint_positions(maps: Tensor, cells: int = 3) -> Tensor:
    """Positions x, y (J, 2) of joints, in cells, from their maps (J, h, w).

    They are the mean position of the strongest cells, weighted by their values. A joint whose map
    is empty is at (-1, -1), which does not count.
    """
    values, places = maps.flatten(1).topk(cells)
    total = values.sum(dim=1, keepdim=True)
    places = torch.stack([places % maps.shape[2], places // maps.shape[2]], dim=2)
    mean = (places * values.unsqueeze(2)).sum(dim=1) / total.clamp(min=1e-12)
    return mean.where(total > 0, torch.full_like(mean, -1.0))


def correct_keypoints(videos: Iterable[tuple[np.ndarray, np.ndarray]], alpha: float = 0.1) -> float:
    """JHMDB's measure, PCK: the share of joints that are near enough to the true ones.

    Near enough is ``alpha`` times 0.6 times the diagonal of the box around the frame's true joints.
    A joint that was predicted at a negative x does not count, and is left out of its frame's box.
    First frames, which are given, do not count.

    Args:
        videos: predicted and true positions x, y of every video, (T, J, 2), in pixels.

    Returns:
        The mean over the joints of their shares in all videos.
    """
    right: list[np.ndarray] = []
    known: list[np.ndarray] = []
    for predicted, truth in videos:
        seen = predicted[..., 0] >= 0
        box = np.where(seen[..., None], truth, np.nan)[1:]
        some = seen[1:].any(axis=1)
        diagonal = np.zeros(len(box))
        spans = np.nanmax(box[some], axis=1) - np.nanmin(box[some], axis=1)
        diagonal[some] = np.linalg.norm(spans, axis=1)
        distance = np.linalg.norm(predicted - truth, axis=2)[1:]
        known.append(seen[1:])
        right.append(seen[1:] & (distance <= alpha * 0.6 * diagonal[:, None]))
    counts = np.concatenate(known).sum(axis=0)
    shares = np.concatenate(right).sum(axis=0)[counts > 0] / counts[counts > 0]
    return float(shares.mean())
