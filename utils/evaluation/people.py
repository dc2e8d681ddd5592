"""CRW's two benchmarks of people: VIP's classes of clothes and limbs, JHMDB's joints."""

from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np
import torch

from datasets.masks import read_label_map
from datasets.people import jhmdb_videos, read_joints, vip_videos
from datasets.pictures import read_image, read_size
from datasets.progress import progress_bar
from models.backbones.feature_map import FeatureMap
from models.propagation import Recipe, propagate
from utils.evaluation.parts import correct_keypoints, joint_positions, mean_class_iou
from utils.evaluation.propagating import feature_maps, propagate_video

VIP_SIZE, JHMDB_SIZE = 560, 320  # sides of the frames that the encoder sees, in pixels
NUM_CLASSES = 20  # of VIP
_SIGMA = 0.5  # of a joint's Gaussian, in cells of the label grid


def score_vip(source: Path, features: FeatureMap, recipe: Recipe, **options) -> str:
    """mIoU of VIP's 20 classes in the videos of its validation list, in words.

    Frames become squares of 560 pixels. Predictions are compared at the size of the true labels.
    """
    videos = vip_videos(source)

    def squares(paths: list[Path]) -> Iterator[np.ndarray]:
        for path in paths:
            yield cv2.resize(read_image(path), (VIP_SIZE, VIP_SIZE))

    def pairs() -> Iterator[tuple[np.ndarray, np.ndarray]]:
        for video in videos:
            given = _resized(read_label_map(video.labels[0]), (VIP_SIZE, VIP_SIZE))
            given[given >= NUM_CLASSES] = 0
            found = propagate_video(squares(video.images), given, features, recipe, **options)
            for labels, truth in zip(found, map(read_label_map, video.labels)):
                yield _resized(labels, truth.shape), truth

    total = sum(len(video.images) for video in videos)
    shown = progress_bar(pairs(), desc="propagating", total=total, unit="frame")
    return f"mIoU {mean_class_iou(shown, NUM_CLASSES):.3f} in {len(videos)} videos of VIP"


def score_jhmdb(source: Path, features: FeatureMap, recipe: Recipe, **options) -> str:
    """PCK at 0.1 and 0.2 of JHMDB's 15 joints in the test videos of its first split, in words.

    Frames become squares of 320 pixels. Each joint is a label of its own.
    """
    videos = jhmdb_videos(source)
    side = JHMDB_SIZE // (recipe.stride or features.stride)

    def pairs() -> Iterator[tuple[np.ndarray, np.ndarray]]:
        for video in videos:
            truth = read_joints(video)
            height, width = read_size(video.images[0])
            scale = np.array([width, height]) / side  # pixels of a cell, x and y
            given = joint_maps(truth[0] / scale, side)
            images = map(read_image, video.images[: len(truth)])
            maps = feature_maps(images, features, (JHMDB_SIZE,) * 2, (side, side), **options)
            found = [joint_positions(one[1:]).cpu() for one in propagate(maps, given, recipe)]
            yield torch.stack(found).numpy() * scale, truth

    results = list(progress_bar(pairs(), desc="propagating", total=len(videos), unit="video"))
    shares = [f"PCK@{alpha} {correct_keypoints(results, alpha):.3f}" for alpha in (0.1, 0.2)]
    return f"{', '.join(shares)} in {len(videos)} videos of JHMDB"


def joint_maps(joints: np.ndarray, side: int) -> torch.Tensor:
    """Maps (1 + J, side, side) of joints x, y (J, 2) in cells; the first one is the background.

    A joint's map is a Gaussian around the nearest cell, four cells wide and four high as in CRW:
    two before the middle and one behind it. The background is 1 where all joints are 0. A joint
    outside of the frame has an empty map.
    """
    cells = torch.arange(side, dtype=torch.float32)
    x, y = torch.from_numpy(np.round(joints)).float().T[..., None]
    dx, dy = (cells - x)[:, None, :], (cells - y)[:, :, None]
    inside = (dx >= -2) & (dx <= 1) & (dy >= -2) & (dy <= 1)
    maps = torch.exp(-(dx**2 + dy**2) / (2 * _SIGMA**2)) * inside
    return torch.cat([(maps.sum(dim=0, keepdim=True) == 0).float(), maps])


def _resized(labels: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    return cv2.resize(labels, size[::-1], interpolation=cv2.INTER_NEAREST)
