"""Frames of a video that a caller gives from Python: a file's name, or pictures in memory."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from datasets.clips import ClipFrame, VideoError, check_clip, check_same_size
from datasets.progress import Report
from utils.evaluation.clip_predictions import VideoSource

_EXPECTED = (
    "expected RGB as a NumPy array uint8 (H, W, 3), or as a tensor (3, H, W), uint8 or float in "
    "[0, 1]"
)


@dataclass(frozen=True)
class GivenFrames:
    """Pictures in memory as a ``VideoSource``; :func:`source_of` makes it."""

    pictures: Sequence[Any]  # as :func:`as_image` takes them, all of one size
    size: tuple[int, int]  # (H, W) in pixels

    @property
    def count(self) -> int:
        """Number of frames."""
        return len(self.pictures)

    def frames(self) -> Iterator[ClipFrame]:
        """All frames in order. A picture is converted when its image is asked for."""
        for number in range(self.count):
            yield ClipFrame(f"{number:05d}", lambda n=number: image_at(self.pictures, n))


def source_of(frames: Any, progress: bool | Report = False) -> VideoSource:
    """The frames of a video file or a folder, given by its path, or pictures given in order.

    Everything is checked here. Lists and arrays are used in place. The pictures of other iterables,
    such as generators, can be read only once; they are copied and stay in memory as uint8.

    Raises:
        UserError: a file or folder that cannot be used, as by ``check_clip``.
        VideoError: no frames, frames that are no RGB pictures, or of different sizes.
    """
    if isinstance(frames, str | PathLike):
        return check_clip(Path(frames), progress=progress)
    pictures = in_memory(frames, "frames", lambda picture, name: as_image(picture, name).copy())
    if not len(pictures):
        raise VideoError("frames: there are none; a video needs at least two")
    size = image_at(pictures, 0).shape[:2]
    for number in range(1, len(pictures)):
        check_same_size(f"frames[{number}]", image_at(pictures, number).shape[:2], size)
    return GivenFrames(pictures, size)


def one_by_one(frames: Any) -> Iterator[np.ndarray]:
    """The frames of a video as uint8 RGB (H, W, 3); each is read when it is asked for.

    ``frames`` is what :func:`source_of` takes. A file or folder is checked first.

    Raises:
        UserError: a file or folder that cannot be used, or frames that cannot be read one by one.
            A frame that is no RGB picture is an error when it is read.
    """
    if isinstance(frames, str | PathLike):
        return (frame.image for frame in check_clip(Path(frames), progress=False).frames())
    if isinstance(frames, Mapping) or not hasattr(frames, "__iter__") or _is_number(frames):
        raise _no_frames("frames", frames)
    return (as_image(frame, f"frames[{number}]") for number, frame in enumerate(frames))


def in_memory(items: Any, name: str, kept: Callable[[Any, str], Any]) -> Sequence[Any]:
    """The items themselves if they can be indexed, or a list of what ``kept`` makes of each item.

    ``kept`` gets an item and its name for errors.

    Raises:
        VideoError: they cannot be read one by one.
    """
    if _is_number(items):
        raise _no_frames(name, items)
    if hasattr(items, "__getitem__") and hasattr(items, "__len__"):
        if not isinstance(items, Mapping):
            return items
    elif hasattr(items, "__iter__"):
        return [kept(item, f"{name}[{number}]") for number, item in enumerate(items)]
    raise _no_frames(name, items)


def _is_number(found: Any) -> bool:
    """Whether it is an array or a tensor without axes, which cannot be read one by one."""
    return getattr(found, "ndim", 1) == 0


def _no_frames(name: str, found: Any) -> VideoError:
    return VideoError(
        f"{name}: found {type(found).__name__}, expected a list, an array, or another iterable"
    )


def image_at(pictures: Sequence[Any], number: int) -> np.ndarray:
    """One of the given frames, as :func:`as_image` returns it."""
    return as_image(pictures[number], f"frames[{number}]")


def as_image(picture: Any, name: str) -> np.ndarray:
    """A given picture as uint8 RGB (H, W, 3); ``name`` is its name in errors.

    Raises:
        VideoError: it is no RGB picture, or has values outside its range.
    """
    if isinstance(picture, Tensor):
        picture = picture.detach().cpu()
        found = f"a tensor {str(picture.dtype).removeprefix('torch.')} {tuple(picture.shape)}"
        if picture.ndim == 3 and len(picture) == 3 and picture.numel():
            if picture.is_floating_point():
                picture = _to_bytes(picture, name)
            if picture.dtype == torch.uint8:
                return np.ascontiguousarray(picture.permute(1, 2, 0).numpy())
    elif isinstance(picture, np.ndarray):
        found = f"an array {picture.dtype} {picture.shape}"
        is_rgb = picture.ndim == 3 and picture.shape[2] == 3 and picture.size
        if is_rgb and picture.dtype == np.uint8:
            return np.ascontiguousarray(picture)
    else:
        found = type(picture).__name__
    raise VideoError(f"{name}: found {found}; {_EXPECTED}")


def _to_bytes(picture: Tensor, name: str) -> Tensor:
    """A float tensor in [0, 1] as uint8."""
    least, most = picture.min().item(), picture.max().item()
    if not 0 <= least <= most <= 1:
        raise VideoError(f"{name}: values from {least:g} to {most:g}; {_EXPECTED}")
    return (picture.float() * 255).round().byte()
