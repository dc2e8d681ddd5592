"""Masks of downloads that `datasets.masks.read_labels` alone would not read rightly.

Each `convert_...` function takes an image and its mask. It returns the label map that the mask is
stored as, or None if the file can stay as it is.
"""

from pathlib import Path

import cv2
import numpy as np
from PIL import Image

from datasets.masks import VOID, one_object, read_label_map, read_labels, with_palette
from datasets.pictures import open_picture, read_size
from datasets.problems import DatasetError


def convert_void(image: Path, mask: Path, grey: bool = False) -> np.ndarray | None:
    """255 is void, also where no other label is beside it; without a palette only if `grey`.

    A mask that holds nothing but void becomes background.
    """
    with open_picture(mask) as picture:
        palette = picture.mode == "P"
    if not (palette or grey):
        return None
    labels = read_label_map(mask)
    if not (labels == VOID).any():
        return None
    if not one_object(labels).any():
        return np.zeros_like(labels)
    return None if palette else labels


def convert_size(image: Path, mask: Path) -> np.ndarray | None:
    """A mask of another size than its image is resized by nearest neighbour."""
    height, width = read_size(image)
    if read_size(mask) == (height, width):
        return None
    return cv2.resize(read_labels(mask), (width, height), interpolation=cv2.INTER_NEAREST)


def refuse_several_objects(image: Path, mask: Path) -> None:
    """Refuse a mask that has a palette and several objects, or an object and void.

    Raises:
        DatasetError: it is such a mask.
    """
    with open_picture(mask) as picture:
        several = picture.mode == "P" and len(picture.getcolors()) > 2
    if several:
        raise DatasetError(
            f"{mask}: mask of several objects or with a void label, as DAVIS 2017 has them; if "
            "this is that archive, prepare it as davis2017 or davis2016_from_2017"
        )


def open_any(path: Path) -> Image.Image:
    """A decoded picture of any format, as the PGM of FBMS and the BMP of SegTrack v2.

    Raises:
        DatasetError: it cannot be read.
    """
    try:
        with Image.open(path) as picture:
            return picture.copy()
    except (OSError, SyntaxError, ValueError) as error:
        raise DatasetError(f"{path}: cannot be read ({error})") from error


def mask_picture(labels: np.ndarray) -> Image.Image:
    """A label map as it is stored: 0 and 255, or DAVIS's palette for several objects and void."""
    if labels.max(initial=0) <= 1:
        return Image.fromarray(labels * np.uint8(255))
    return with_palette(labels)
