"""Masks and images of downloads in the formats that `datasets.layout` does not read rightly."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import cv2
import numpy as np
from PIL import Image

from datasets.layout import DatasetError, read_mask

# Reads a picture: a mask as (H, W) bool, an image as (H, W, 3) uint8 RGB.
Reader = Callable[[Path], np.ndarray]


@contextmanager
def open_picture(path: Path) -> Iterator[Image.Image]:
    """A picture of any format, not yet decoded. Its faults become DatasetErrors."""
    try:
        with Image.open(path) as picture:
            yield picture
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise DatasetError(f"{path}: cannot be read ({error})") from error


def read_picture(path: Path) -> np.ndarray:
    """An image of any format, (H, W, 3) uint8 RGB."""
    with open_picture(path) as picture:
        return np.asarray(picture.convert("RGB"))


def read_labels(path: Path) -> np.ndarray:
    """Labels of a mask in any format.

    Returns:
        (H, W) int64: palette index, grey value, or 65536 R + 256 G + B of a colour picture.

    Raises:
        DatasetError: the file cannot be decoded.
    """
    with open_picture(path) as picture:
        if picture.mode in ("1", "L", "P") or picture.mode.startswith("I"):
            return np.asarray(picture).astype(np.int64)
        return np.asarray(picture.convert("RGB")).astype(np.int64) @ (65536, 256, 1)


def read_foreground(path: Path, void: int | None = None) -> np.ndarray:
    """A mask with any number of objects as foreground, (H, W) bool: all labels but 0 and `void`.

    In a colour picture, void is that value in all channels.
    """
    labels = read_labels(path)
    if void is not None and labels.max(initial=0) > 0xFFFF:
        void *= 0x010101
    return (labels != 0) & (labels != void)


def void_reader(image: Path, mask: Path, grey: bool = False) -> Reader | None:
    """How a mask is read in which 255 is void: None where it holds no void.

    In a mask without a palette 255 is an object, unless `grey`.
    """
    with open_picture(mask) as picture:
        if (picture.mode == "P" or grey) and (np.asarray(picture) == 255).any():
            return partial(read_foreground, void=255)
    return None


def resizing_reader(image: Path, mask: Path) -> Reader | None:
    """How a mask is read that may be smaller than its image; None where it is not."""
    with open_picture(image) as picture:
        size = picture.size
    with open_picture(mask) as picture:
        return None if picture.size == size else partial(_read_resized, size=size)


def only_one_object(image: Path, mask: Path) -> None:
    """Refuse a mask that has a palette and several objects, or an object and void.

    Raises:
        DatasetError: it is such a mask.
    """
    with open_picture(mask) as picture:
        several = picture.mode == "P" and len(picture.getcolors()) > 2
    if several:
        raise DatasetError(
            f"{mask}: mask of several objects or with a void label, as DAVIS 2017 has them; if "
            "this is that archive, prepare it as davis2017"
        )


def _read_resized(path: Path, size: tuple[int, int]) -> np.ndarray:
    """A mask brought to (width, height) by nearest neighbour, (H, W) bool."""
    mask = read_mask(path).astype(np.uint8)
    return cv2.resize(mask, size, interpolation=cv2.INTER_NEAREST) != 0
