"""The two images that each flow map of a video is made from."""

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from itertools import pairwise
from pathlib import Path
from typing import TypeVar

from datasets.layout import Frame, VideoFiles
from datasets.problems import Problems, add_problems

Item = TypeVar("Item")

_SINGLE = (
    "sequence of a single frame, which has no flow",
    "add the frames that follow, or remove it; photographs need no flow",
)
_SIZES_DIFFER = (
    "frame of another size than most of its sequence",
    "bring them to the same size; photographs are no sequence and need no flow",
)


def motion_pairs(frames: Iterable[Item]) -> Iterator[tuple[Item, Item, int]]:
    """Pairs each frame with the frame after it, and the last frame with the one before it.

    Takes at least two frames, and reads them one ahead. Yields (frame, other, sign): the frame's
    flow is sign * the motion from the frame to the other.
    """
    pair = None
    for pair in pairwise(frames):
        yield *pair, 1
    yield pair[1], pair[0], -1


def image_pairs(sequence: VideoFiles) -> Iterator[tuple[Frame, Path, int]]:
    """Pairs each frame of a sequence with another image, as `motion_pairs` does.

    A frame's `following` image takes the place of the next frame. A sequence of a single frame
    gives no pair.
    """
    for frame, other, sign in motion_pairs(sequence.frames) if len(sequence.frames) > 1 else ():
        yield (frame, frame.following, 1) if frame.following else (frame, other.image, sign)


def images_of(sequence: VideoFiles) -> list[Path]:
    """All images that a sequence's flow maps are made from."""
    return [path for frame in sequence.frames for path in (frame.image, frame.following) if path]


def check_sequence(
    sequence: VideoFiles, sizes: Mapping[Path, tuple[int, int] | None], problems: Problems
) -> None:
    """Add to ``problems`` why no flow maps can be made for a sequence.

    ``sizes`` are (height, width) by image; images of unknown size are missing or have None.
    """
    if len(sequence.frames) == 1:
        add_problems(problems, _SINGLE, sequence.frames[0].image)
    known = {path: size for path in images_of(sequence) if (size := sizes.get(path)) is not None}
    for usual, _ in Counter(known.values()).most_common(1):
        for path, size in known.items():
            if size != usual:
                item = f"{path}: {size[1]} x {size[0]}, most {usual[1]} x {usual[0]}"
                add_problems(problems, _SIZES_DIFFER, item)
