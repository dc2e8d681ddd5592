"""CRW's two benchmarks of people: VIP's classes of clothes and limbs, JHMDB's joints.

Both are read as their authors' archives unpack. The first frame's labels are given.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import scipy.io
import torch

from datasets.masks import read_label_map
from datasets.pictures import read_image, read_size
from datasets.prepare.archives import INCOMPLETE, WRONG, first, folders, locate, numbered
from datasets.problems import DatasetError, Problems, add_problems, format_problems
from datasets.progress import progress_bar
from models.backbones.feature_map import FeatureMap
from models.propagation import Recipe, propagate
from utils.evaluation.parts import correct_keypoints, joint_positions, mean_class_iou
from utils.evaluation.propagating import feature_maps, propagate_video

VIP_SIZE, JHMDB_SIZE = 560, 320  # sides of the frames that the encoder sees, in pixels
NUM_CLASSES = 20  # of VIP
_SIGMA = 0.5  # of a joint's Gaussian, in cells of the label grid


@dataclass(frozen=True)
class People:
    """A video: its images in order, and the true labels of each as a file, or of all in one."""

    images: list[Path]
    labels: list[Path]


def score_vip(source: Path, features: FeatureMap, recipe: Recipe, **options) -> str:
    """mIoU of VIP's 20 classes in the videos of its validation list, in words.

    Frames become squares of 560 pixels. Predictions are compared at the size of the true labels.
    """
    videos = _videos(source, _find_vip)

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
    videos = _videos(source, _find_jhmdb)
    side = JHMDB_SIZE // (recipe.stride or features.stride)

    def pairs() -> Iterator[tuple[np.ndarray, np.ndarray]]:
        for video in videos:
            truth = read_joints(video.labels[0])[: len(video.images)]
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

    A joint's map is a Gaussian around the nearest cell, cut at two cells. The background is 1 where
    all joints are 0. A joint outside of the frame has an empty map.
    """
    cells = torch.arange(side, dtype=torch.float32)
    x, y = torch.from_numpy(np.round(joints)).float().T[..., None]
    dx, dy = (cells - x)[:, None, :], (cells - y)[:, :, None]
    maps = torch.exp(-(dx**2 + dy**2) / (2 * _SIGMA**2)) * ((dx.abs() <= 2) & (dy.abs() <= 2))
    return torch.cat([(maps.sum(dim=0, keepdim=True) == 0).float(), maps])


def read_joints(path: Path) -> np.ndarray:
    """The joints x, y (T, J, 2) in pixels from 0 of a ``joint_positions.mat`` of JHMDB.

    Raises:
        DatasetError: the file cannot be read.
    """
    try:
        positions = scipy.io.loadmat(path)["pos_img"]  # (2, J, T), from 1
    except (OSError, ValueError, KeyError, scipy.io.matlab.MatReadError) as error:
        raise DatasetError(f"{path}: no joint_positions.mat of JHMDB ({error})") from error
    return positions.transpose(2, 1, 0).astype(np.float64) - 1


def _find_vip(source: Path, problems: Problems) -> list[People]:
    """The videos of VIP's validation list (CRW's eval/eval_vip.py has the folders)."""
    root = locate(source, ["Images"], problems)
    if root is None:
        return []
    labels = first(root, ["Category_ids", "Annotations/Category_ids"], problems)
    listed = first(root, ["lists/val_videos.txt"], problems)
    videos = []
    for name in listed.read_text().split() if labels and listed else ():
        images, truths = numbered(root / "Images" / name), numbered(labels / name)
        if images and images.keys() == truths.keys():
            numbers = sorted(images)
            videos.append(People([images[n] for n in numbers], [truths[n] for n in numbers]))
        else:
            item = f"{name}: {len(images)} images and {len(truths)} label maps"
            add_problems(problems, INCOMPLETE, item)
    return videos


def _find_jhmdb(source: Path, problems: Problems) -> list[People]:
    """The videos marked 2 (test) in ``splits/<class>_test_split1.txt``."""
    root = locate(source, ["joint_positions"], problems)
    videos = []
    for split in sorted((root / "splits").glob("*_test_split1.txt")) if root else ():
        kind = split.name.removesuffix("_test_split1.txt")
        for line in split.read_text().splitlines():
            name, _, part = line.rpartition(" ")
            if part != "2":
                continue
            name = name.strip().removesuffix(".avi")
            images = numbered(root / "Rename_Images" / kind / name)
            joints = root / "joint_positions" / kind / name / "joint_positions.mat"
            if images and joints.is_file():
                videos.append(People([images[number] for number in sorted(images)], [joints]))
            else:
                item = f"{kind}/{name}: {len(images)} images, joint_positions.mat "
                add_problems(problems, INCOMPLETE, item + ("missing", "found")[joints.is_file()])
    if root and not videos:
        add_problems(problems, WRONG, f"{root / 'splits'}: no test video in its lists")
    return videos


def _videos(source: Path, find: Callable[[Path, Problems], list[People]]) -> list[People]:
    """The videos of an archive; DatasetError if something is missing."""
    problems: Problems = {}
    videos = find(source, problems)
    if problems:
        found = ", ".join(folders(source, {})[:10]) if source.is_dir() else "no folder"
        raise DatasetError(f"{format_problems(source, problems)}\nFolders there: {found}")
    return videos


def _resized(labels: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    return cv2.resize(labels, size[::-1], interpolation=cv2.INTER_NEAREST)
