"""Checking the files of frames without decoding them."""

from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

from datasets.layout import Frame
from datasets.masks import palette_levels
from datasets.pictures import open_picture
from datasets.problems import DatasetError, Kind, Problems, add_problems, format_problems
from datasets.progress import progress_bar

_THREADS = 8  # more than cores: they wait for the disk

_UNUSABLE = "file that cannot be used", "replace it, or remove its frame"
_OTHER_SIZE = {
    "mask": ("mask of another size than its image", "resize it"),
    "flow map": (
        "flow map of another size than its image",
        "resize it, or make all anew: python -m datasets.flow with --overwrite",
    ),
}


def check_files(frames: Iterable[Frame], *, flow: bool = True, progress: bool = True) -> None:
    """Check every image, mask and, with ``flow``, flow map without decoding it.

    Raises:
        DatasetError: files are missing, empty, neither JPEG nor PNG, or cut off, masks have a
            palette that ``read_labels`` refuses, or partners differ in size. The message has all.
    """
    frames = [frame if flow else replace(frame, flow=None) for frame in frames]
    problems: Problems = {}
    with ThreadPoolExecutor(_THREADS) as pool:
        results = pool.map(check_frame, frames)
        for _, found in progress_bar(
            results, total=len(frames), desc="checking files", unit="frame", shown=progress
        ):
            for kind, item in found:
                add_problems(problems, kind, item)
    if problems:
        raise DatasetError(format_problems(f"the files of {len(frames)} frames", problems))


def check_frame(frame: Frame) -> tuple[dict[str, tuple[int, int]], list[tuple[Kind, str]]]:
    """Check the files of one frame, as :func:`check_files` does.

    Returns:
        (width, height) in pixels of those of "image", "mask" and "flow map" that can be used, and
        (kind of problem, file concerned) for everything that is wrong.
    """
    found: list[tuple[Kind, str]] = []
    sizes: dict[str, tuple[int, int]] = {}
    for part, path in (("image", frame.image), ("mask", frame.mask), ("flow map", frame.flow)):
        if path is None:
            continue
        try:
            with open_picture(path) as picture:
                if part == "mask":
                    palette_levels(path, picture)
                sizes[part] = picture.size
        except DatasetError as error:
            found.append((_UNUSABLE, str(error)))
            continue
        if part != "image" and "image" in sizes and sizes[part] != sizes["image"]:
            (width, height), (image_width, image_height) = sizes[part], sizes["image"]
            item = f"{path}: {width} x {height}, its image {image_width} x {image_height}"
            found.append((_OTHER_SIZE[part], item))
    return sizes, found
