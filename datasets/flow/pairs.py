"""The two images that each flow map of a video is made from."""

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from itertools import pairwise
from pathlib import Path
from typing import TypeVar

from datasets.layout import Frame, Sequence
from datasets.problems import Kind

Item = TypeVar("Item")

_SINGLE = (
    "sequence of a single frame, which has no flow",
    "add the frames that follow, or remove it",
)
_SIZES_DIFFER = "frame of another size than most of its sequence", "bring them to the same size"


def motion_pairs(frames: Iterable[Item]) -> Iterator[tuple[Item, Item, int]]:
    """Pairs each frame with the frame after it, and the last frame with the one before it.

    Takes at least two frames, and reads them one ahead. Yields (frame, other, sign): the frame's
    flow is sign * the motion from the frame to the other.
    """
    pair = None
    for pair in pairwise(frames):
        yield *pair, 1
    yield pair[1], pair[0], -1


def image_pairs(sequence: Sequence) -> Iterator[tuple[Frame, Path, int]]:
    """Pairs each frame of a sequence with another image, as `motion_pairs` does.

    A frame's `following` image takes the place of the next frame.
    """
    for frame, other, sign in motion_pairs(sequence.frames):
        yield (frame, frame.following, 1) if frame.following else (frame, other.image, sign)


def sequence_problems(
    sequence: Sequence, sizes: Mapping[Path, tuple[int, int] | None]
) -> Iterator[tuple[Kind, str]]:
    """Tells why no flow maps can be made for a sequence: (kind of problem, image concerned).

    ``sizes`` are (height, width) by image; images of unknown size are missing or have None.
    """
    images = [path for frame in sequence.frames for path in (frame.image, frame.following) if path]
    if len(sequence.frames) == 1:
        yield _SINGLE, str(images[0])
    known = {path: size for path in images if (size := sizes.get(path)) is not None}
    usual = Counter(known.values()).most_common(1)
    for path, (height, width) in known.items():
        if (height, width) != usual[0][0]:
            yield (
                _SIZES_DIFFER,
                f"{path}: {width} x {height}, most {usual[0][0][1]} x {usual[0][0][0]}",
            )
