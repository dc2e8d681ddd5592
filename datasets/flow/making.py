"""Writing the flow maps of a video set."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from pathlib import Path

import cv2
import numpy as np

from datasets.files import write_bytes
from datasets.flow.colour_wheel import UNKNOWN, flow_to_picture
from datasets.flow.estimators import Estimator, FlowError
from datasets.flow.origin import flow_origin, image_record, is_stale, set_origin, stale_flow
from datasets.flow.pairs import check_sequence, image_pairs, images_of
from datasets.known_sets import is_still_set
from datasets.layout import Frame, VideoFiles, video_sequences
from datasets.pictures import read_image, read_size
from datasets.problems import DatasetError, Problems, format_problems
from datasets.progress import progress_bar
from datasets.threads import read_ahead, write_behind

# The direction of motion is in the chroma, which JPEG by default stores at half the resolution.
_JPEG = [
    *(cv2.IMWRITE_JPEG_QUALITY, 95),
    *(cv2.IMWRITE_JPEG_SAMPLING_FACTOR, cv2.IMWRITE_JPEG_SAMPLING_FACTOR_444),
]
_RUN = 8  # neighbouring frames that one process makes; each image is then read once


def make_flow(
    data_root: Path, set_name: str, estimator: Estimator, overwrite: bool = False
) -> tuple[int, int, int]:
    """Write the flow map of every frame of a video set as `FLOW/<frame>.jpg`.

    The set needs no masks. With `overwrite` flow maps that are there already are made anew,
    whatever their extension. Returns and raises as `check_set` and `make_share`.
    """
    sequences = video_sequences(data_root, set_name, masks="none", flow=False)
    check_set(data_root / set_name, sequences, overwrite)
    return make_share(sequences, estimator, overwrite, title=f"{set_name} flow")


def check_set(folder: Path, sequences: list[VideoFiles], overwrite: bool) -> None:
    """Refuse a set whose flow maps cannot be made, before anything is written.

    Raises DatasetError if it is a published set of still images, a sequence has a single frame, or
    an image is unreadable or of another size than the others of its sequence. Sequences that keep
    all their flow maps are not checked.
    """
    if is_still_set(folder.name):
        raise DatasetError(f"{folder} is a set of still images, which need no flow")
    problems: Problems = {}
    with ThreadPoolExecutor() as pool:
        for sequence, stale in zip(sequences, pool.map(stale_flow, sequences)):
            if overwrite or stale or any(frame.flow is None for frame in sequence.frames):
                images = images_of(sequence)
                sizes = dict(zip(images, pool.map(read_size, images)))
                check_sequence(sequence, sizes, problems)
    if problems:
        raise DatasetError(format_problems(folder, problems))


def make_share(
    sequences: list[VideoFiles],
    estimator: Estimator,
    overwrite: bool,
    share: tuple[int, int] = (0, 1),
    title: str = "flow",
) -> tuple[int, int, int]:
    """Write the flow maps of one process's share of the frames, checked with `check_set`.

    ``share`` is which process this is, from 0, and how many there are; the first shows its progress
    under a ``title``. Returns the numbers of flow maps that were written, that were kept, and of
    those written that took the place of a map of other images. Raises DatasetError and FlowError.
    """
    rank, processes = share
    pairs = [pair for sequence in sequences for pair in image_pairs(sequence)]
    mine = [pair for number, pair in enumerate(pairs) if number // _RUN % processes == rank]
    read = lru_cache(maxsize=2)(read_image)  # neighbouring pairs share an image

    def images() -> Iterator[tuple[np.ndarray, np.ndarray, bool] | None]:
        """The images of each pair, and whether its map is stale; None if its map is kept."""
        for frame, other, _ in mine:
            stale = not overwrite and is_stale(frame, other)
            made = frame.flow is None or overwrite or stale
            yield (read(frame.image), read(other), stale) if made else None

    written = renewed = 0
    bar = progress_bar(mine, desc=title, unit="frame", shown=rank == 0)
    with read_ahead(images()) as ready, write_behind() as behind:
        for (frame, other, sign), pair in zip(bar, ready):
            if pair is None:
                continue
            first, second, stale = pair
            try:
                flow = sign * estimator(first, second)
            except FlowError as error:
                raise FlowError(f"{frame.image}: {error}") from error
            behind(_replace_map, frame, flow, image_record(frame.image, other))
            written += 1
            renewed += stale
    return written, len(mine) - written, renewed


def convert_flo(data_root: Path, set_name: str, overwrite: bool = False) -> tuple[int, int]:
    """Write `FLOW/<frame>.jpg` for every frame that has a Middlebury file `FLOW/<frame>.flo`.

    Flow maps that are there already are kept, unless `overwrite` is given. Returns the numbers of
    flow maps that were written and that were kept. Raises DatasetError if no frame has such a file,
    one cannot be read or is of another size than its frame, or maps of another kind would be kept.
    """
    folder = data_root / set_name
    sequences = video_sequences(data_root, set_name, masks="none", flow=False)
    frames = [frame for sequence in sequences for frame in sequence.frames]
    frames = [frame for frame in frames if _map_of(frame, ".flo").is_file()]
    if not frames:
        raise DatasetError(
            f"{folder} has no .flo files: expected FLOW/<frame>.flo, or <sequence>/FLOW/<frame>.flo"
        )
    new = [frame for frame in frames if overwrite or frame.flow is None]
    if len(new) < len(frames) and (known := flow_origin(data_root, set_name)):
        raise DatasetError(
            f"{folder}: it has flow maps of another kind ({known}); pass --overwrite to replace "
            "them by those of the .flo files"
        )
    set_origin(folder, None)  # their origin is unknown
    for frame in progress_bar(new, desc=f"{set_name} flow", unit="frame"):
        _replace_map(frame, read_flo(_map_of(frame, ".flo"), read_size(frame.image)))
    return len(new), len(frames) - len(new)


def read_flo(path: Path, size: tuple[int, int]) -> np.ndarray:
    """Read a flow map of this (height, width) in Middlebury's format (Baker et al., IJCV 2011).

    Returns (H, W, 2) float32 motion in pixels, x to the right and y down; 0 where it is unknown.
    Raises DatasetError if the file has another format or size, or is cut off.
    """
    height, width = size
    content = path.read_bytes()  # OpenCV fails at names that are not UTF-8
    header = b"PIEH" + np.array([width, height], "<i4").tobytes()
    if content[:12] != header or len(content) != 12 + 8 * width * height:
        raise DatasetError(
            f"{path}: no whole .flo file (Middlebury's format) of its image's size, {width} x "
            f"{height}; make it anew at that size"
        )
    flow = np.frombuffer(content, "<f4", offset=12).reshape(height, width, 2)
    return np.where(np.abs(flow).max(axis=2, keepdims=True) < UNKNOWN, flow, np.float32(0))


def _map_of(frame: Frame, suffix: str = ".jpg") -> Path:
    return frame.image.parent.parent / "FLOW" / f"{frame.name}{suffix}"


def _replace_map(frame: Frame, flow: np.ndarray, comment: bytes = b"") -> None:
    """Write a frame's flow map, in the place of the one that may be there."""
    path = _map_of(frame)
    if frame.flow not in (None, path):
        frame.flow.unlink()  # two flow maps of one frame would be an error in the layout
    picture = cv2.cvtColor(flow_to_picture(flow), cv2.COLOR_RGB2BGR)
    jpeg = cv2.imencode(".jpg", picture, _JPEG)[1].tobytes()
    if comment:  # the first segment after the file's start
        jpeg = jpeg[:2] + b"\xff\xfe" + (2 + len(comment)).to_bytes(2, "big") + comment + jpeg[2:]
    write_bytes(path, jpeg)
