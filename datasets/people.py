"""The archives of VIP and JHMDB: videos of people with labels of their parts or joints."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import scipy.io

from datasets.prepare.archives import INCOMPLETE, WRONG, first, folders, locate, numbered
from datasets.problems import DatasetError, Problems, add_problems, format_problems


@dataclass(frozen=True)
class People:
    """A video: its images in order, and one file of labels for each image, or one for all."""

    images: list[Path]
    labels: list[Path]


def vip_videos(source: Path) -> list[People]:
    """The videos of VIP's validation list (CRW's eval/eval_vip.py has the folders).

    Raises:
        DatasetError: something is missing.
    """
    problems: Problems = {}
    root = locate(source, ["Images"], problems)
    labels = root and first(root, ["Category_ids", "Annotations/Category_ids"], problems)
    listed = root and first(root, ["lists/val_videos.txt"], problems)
    videos = []
    for name in listed.read_text().split() if labels and listed else ():
        images, truths = numbered(root / "Images" / name), numbered(labels / name)
        if images and images.keys() == truths.keys():
            numbers = sorted(images)
            videos.append(People([images[n] for n in numbers], [truths[n] for n in numbers]))
        else:
            item = f"{name}: {len(images)} images and {len(truths)} label maps"
            add_problems(problems, INCOMPLETE, item)
    return _complete(videos, source, problems)


def jhmdb_videos(source: Path) -> list[People]:
    """The videos marked 2 (test) in ``splits/<class>_test_split1.txt``.

    Raises:
        DatasetError: something is missing.
    """
    problems: Problems = {}
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
    return _complete(videos, source, problems)


def read_joints(video: People) -> np.ndarray:
    """The joints x, y (T, J, 2) in pixels from 0 of a video of JHMDB.

    Raises:
        DatasetError: the file cannot be read, or has more frames than there are images.
    """
    (path,) = video.labels
    try:
        positions = scipy.io.loadmat(path)["pos_img"]  # (2, J, T), from 1
        if positions.ndim != 3 or len(positions) != 2:
            raise ValueError(f"pos_img is {positions.shape}")
    # SciPy 1.11 raises TypeError for a file of less than four bytes.
    except (OSError, ValueError, TypeError, KeyError, scipy.io.matlab.MatReadError) as error:
        raise DatasetError(f"{path}: no joint_positions.mat of JHMDB ({error})") from error
    if positions.shape[2] > len(video.images):
        raise DatasetError(
            f"{path}: positions in {positions.shape[2]} frames, but the video has "
            f"{len(video.images)} images; unpack the archive again"
        )
    return positions.transpose(2, 1, 0).astype(np.float64) - 1


def _complete(videos: list[People], source: Path, problems: Problems) -> list[People]:
    """The videos; DatasetError if there are problems or no videos."""
    if not problems and not videos:
        add_problems(problems, WRONG, f"{source}: no test video in its lists")
    if problems:
        found = ", ".join(folders(source, {})[:10]) if source.is_dir() else "no folder"
        raise DatasetError(f"{format_problems(source, problems)}\nFolders there: {found}")
    return videos
