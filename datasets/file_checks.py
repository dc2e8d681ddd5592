"""Checking the files of frames."""

import os
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from pathlib import Path

from datasets.layout import Frame
from datasets.masks import palette_levels, read_labels
from datasets.pictures import open_picture, read_image
from datasets.problems import DatasetError, Kind, Problems, add_problems, format_problems
from datasets.progress import progress_bar

_UNUSABLE = "file that cannot be used", "replace it, or remove its frame"
_OTHER_SIZE = (
    "mask, flow map or next image of another size than its image",
    "resize the mask or next image; make flow maps anew: python -m datasets.flow with --overwrite",
)


def check_files(frames: Iterable[Frame], *, flow: bool = True) -> None:
    """Check every image, mask and, with ``flow``, flow map without decoding it.

    Raises DatasetError with all files that are missing, empty, neither JPEG nor PNG, or cut off,
    all masks with a palette that is refused, and all partners that differ in size.
    """
    frames = [replace(one, following=None, flow=one.flow if flow else None) for one in frames]
    problems: Problems = {}
    find_faults(frames, problems, "checking files")
    if problems:
        raise DatasetError(format_problems(f"the files of {len(frames)} frames", problems))


def find_faults(
    frames: list[Frame], problems: Problems, title: str, *, deep: bool = False
) -> dict[Path, tuple[int, int] | None]:
    """Add the faults of frames' files to ``problems``; with ``deep`` all files are decoded.

    Returns each image's height and width in pixels, None if it cannot be used. ``title`` is that of
    the progress bar.
    """
    sizes = {}
    # Threads are enough: decoders release the lock of Python, and the disk is slow.
    with ThreadPoolExecutor((os.cpu_count() or 1) if deep else 8) as pool:
        results = pool.map(partial(_check_frame, deep), frames)
        results = progress_bar(results, total=len(frames), desc=title, unit="frame")
        for (size, found), frame in zip(results, frames):
            sizes[frame.image] = size
            for kind, item in found:
                add_problems(problems, kind, item)
    return sizes


def _check_frame(deep: bool, frame: Frame) -> tuple[tuple[int, int] | None, list[tuple[Kind, str]]]:
    """The image's size, and (kind of problem, file concerned) for everything that is wrong."""
    found: list[tuple[Kind, str]] = []
    size = None
    for path in filter(None, (frame.image, frame.mask, frame.flow, frame.following)):
        try:
            with open_picture(path) as picture:
                if path == frame.mask:
                    palette_levels(path, picture)
                width, height = picture.size
            if deep:
                (read_labels if path == frame.mask else read_image)(path)
        except DatasetError as error:
            found.append((_UNUSABLE, str(error)))
            continue
        if path == frame.image:
            size = height, width
        elif size and size != (height, width):
            item = f"{path}: {width} x {height}, its image {size[1]} x {size[0]}"
            found.append((_OTHER_SIZE, item))
    return size, found
