"""Checking the files of frames."""

from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor

from datasets.layout import Frame
from datasets.masks import read_labels
from datasets.pictures import read_image, read_size
from datasets.problems import DatasetError, Kind, Problems, add_problems, format_problems
from datasets.progress import progress_bar

_THREADS = 8  # more than cores: they wait for the disk

_UNUSABLE = "file that cannot be used", "replace it, or remove its frame"
_OTHER_SIZE = (
    "mask or flow map of another size than its image",
    "resize the mask; make flow maps anew: python -m datasets.flow with --overwrite",
)


def check_files(frames: Iterable[Frame], *, progress: bool = True) -> None:
    """Check every image, mask and flow map without decoding it.

    Raises:
        DatasetError: files are missing, empty, neither JPEG nor PNG, or cut off, or partners differ
            in size. The message has all.
    """
    frames = list(frames)
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


def check_frame(
    frame: Frame, deep: bool = False
) -> tuple[tuple[int, int] | None, list[tuple[Kind, str]]]:
    """Check the files of one frame, as :func:`check_files` does; with ``deep`` decode them.

    Returns:
        The image's height and width in pixels, None if it cannot be used, and (kind of problem,
        file concerned) for everything that is wrong.
    """
    found: list[tuple[Kind, str]] = []
    size = None
    for path in filter(None, (frame.image, frame.mask, frame.flow)):
        try:
            height, width = read_size(path)
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
