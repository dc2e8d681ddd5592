"""Reading masks as label maps: 0 is the background, 1 to K are objects, 255 is void.

There is a reader for each kind of mask: :func:`read_labels` for the true masks of data sets,
:func:`read_label_map` for maps in which each value is a label, :func:`read_binary_mask` for results
of one object.
"""

from pathlib import Path

import cv2
import numpy as np
from PIL import Image

from datasets.pictures import decode_jpeg, open_picture, verify_png
from datasets.problems import DatasetError

VOID = 255  # the label of pixels that are neither object nor background

_WHITE = 0xFFFFFF
_MOST_OBJECTS = 32  # a grey picture with smaller values alone holds labels
_FEW_LEVELS = 8  # a grey mask with at most so many values may hold labels in small areas, too
_LARGE_AREAS = 0.005  # of a mask: more pixels inside areas of one grey level are no soft edges
_MOST_GREYS = 64  # numbers of proposals in a grey mask; more are probabilities
_JPEG_NOISE = 64  # smaller values of a mask as JPEG are the background's, because JPEG is lossy


class NotBinaryError(DatasetError):
    """A mask with more than two values; the message says which and how many."""


def read_labels(path: Path) -> np.ndarray:
    """Read a true mask as a label map.

    - One bit, or a palette: the labels as they are stored. In a palette 255 is void if there are
      other labels beside it, as in DAVIS 2017. Alone it is object 1.
    - Colours: every pixel that is not black is object 1.
    - Grey with values below 32 alone: labels, as they are stored.
    - Grey with 0 and one other value: object 1.
    - Any other grey: values above one half of the range (127 of 255, 32767 of 65535) are object 1,
      because masks of photographs have soft edges. A mask without such values, with labels below
      32 and one greater value, or with areas of one grey level, has two meanings and is refused.

    A colour picture with equal channels is grey. So is a palette of greys whose first entry is not
    black or whose labels are not all below 32. A palette with colours whose first entry is not
    black is refused. Transparency does not count. In JPEG values below 64 are 0.

    Returns uint8 (H, W). Raises DatasetError.
    """
    values, half = _mask_values(path)
    if half is None:
        if values.dtype == np.uint8 and _without_void(values).any():
            return values
        return (values != 0).astype(np.uint8)  # colours do not number their objects
    large = values >= _MOST_OBJECTS
    if not large.any():
        return values.astype(np.uint8)
    greatest = values == values.max()
    if np.array_equal(values != 0, greatest):
        return greatest.astype(np.uint8)
    foreground = values > half
    found = np.flatnonzero(np.bincount(values.ravel()))
    near = half // 8  # values that black or white may have become
    middle = (values > max(near, found[0])) & (values < found[-1] - near)
    least = 0 if len(found) <= _FEW_LEVELS else _LARGE_AREAS
    numbered = middle.mean() > least and _inside_areas(values, middle) > least
    if not foreground.any() or np.array_equal(large, greatest) or numbered:
        listed = ", ".join(map(str, found[:5])) + (", ..." if len(found) > 5 else "")
        raise DatasetError(
            f"{path}: grey values ({listed}, up to {found[-1]}) that may be labels or soft edges; "
            "write 0 for the background and 255 for objects"
        )
    return foreground.astype(np.uint8)


def read_label_map(path: Path) -> np.ndarray:
    """Read a mask whose values are labels in any format, uint8 (H, W); 255 is always void.

    In colours white is void, and any other colour but black is object 1. Raises DatasetError.
    """
    values, _ = _mask_values(path)
    if values.dtype == np.int32:
        return np.where(values == _WHITE, VOID, values != 0).astype(np.uint8)
    return values.astype(np.uint8)


def has_colours(path: Path) -> bool:
    """Whether a mask has several colours beside black, which do not number objects.

    Raises DatasetError if it cannot be read.
    """
    values, _ = _mask_values(path)
    return values.dtype == np.int32 and len(np.unique(values[values != 0])) > 1


def read_proposals(path: Path) -> np.ndarray:
    """Read a result's mask of several objects, whose numbers may have gaps: uint8 (H, W).

    255 is a number like any other; a mask of 0 and 255 has object 1. Raises NotBinaryError for
    several colours, which do not number objects, and for grey masks with more than 64 values, which
    are probabilities.
    """
    values, half = _mask_values(path)
    found = np.unique(values)
    colours = values.dtype == np.int32
    if (colours and len(found) > 2) or (half is not None and len(found) > _MOST_GREYS):
        raise NotBinaryError(f"{path}: {len(found)} {'colours' if colours else 'grey values'}")
    labels = (values != 0) if colours or found[-1] > VOID else values
    only = set(found.tolist()) <= {0, VOID}
    return (labels != 0).astype(np.uint8) if only else labels.astype(np.uint8)


def one_object(labels: np.ndarray) -> np.ndarray:
    """All objects of a label map as one, bool (H, W); void counts as background."""
    return (labels != 0) & (labels != VOID)


def read_binary_mask(path: Path, binarize: bool = False) -> np.ndarray:
    """Read a result's mask, which holds 0 and at most one other value: bool (H, W).

    Palettes, void and colours are understood as in :func:`read_labels`. With ``binarize`` grey
    masks are probabilities: values above the middle of the range are foreground. Raises
    NotBinaryError if there are more values otherwise.
    """
    values, half = _mask_values(path)
    if binarize and half is not None:
        return values > half
    if half is None and values.dtype == np.uint8 and _without_void(values).any():
        values = _without_void(values)
    largest = values.max()
    foreground = values == largest
    if (foreground | (values == 0)).all():
        return foreground & (largest > 0)
    number = len(np.unique(values))
    found = "labels or colours" if half is None else f"values from {values.min()} to {largest}"
    raise NotBinaryError(f"{path}: {number} {found}")


def palette_levels(path: Path, picture: Image.Image) -> np.ndarray | None:
    """Grey levels (256,) of a palette of greys; None for other palettes and without one.

    Raises DatasetError if the palette has colours and its first entry, the background, is not
    black.
    """
    if picture.mode != "P" or picture.palette is None:
        return None
    colours = np.frombuffer(picture.palette.getdata()[1], np.uint8).reshape(-1, 3)
    if (colours == colours[:, :1]).all():
        return np.pad(colours[:, 0], (0, 256 - len(colours)))
    if colours[0].any():
        raise DatasetError(
            f"{path}: its palette begins with the colour {tuple(colours[0].tolist())}; expected "
            "black, as label 0 is the background; write the mask anew, with 0 and 255"
        )
    return None


def _inside_areas(values: np.ndarray, where: np.ndarray) -> float:
    """Share of pixels that are ``where`` and have 9 x 9 neighbours of one grey level."""
    area = np.ones((9, 9), np.uint8)
    return float((where & (cv2.erode(values, area) == cv2.dilate(values, area))).mean())


def _without_void(labels: np.ndarray) -> np.ndarray:
    return labels * (labels != VOID)


def _mask_values(path: Path) -> tuple[np.ndarray, int | None]:
    """Values (H, W) of a mask, and one half of the range if they are grey.

    Labels are uint8. Colours are int32: 65536 B + 256 G + R.
    """
    with open_picture(path) as picture:
        levels = palette_levels(path, picture)
        if picture.format == "PNG":
            verify_png(path)
            values = np.asarray(picture)
        else:
            values = decode_jpeg(path, picture)
            values[values < _JPEG_NOISE] = 0
        mode, bands = picture.mode, picture.getbands()
    if mode == "1":
        return values.astype(np.uint8), None
    if mode == "P":
        if levels is None or (levels[0] == 0 and (_without_void(values) < _MOST_OBJECTS).all()):
            return values, None
        values = levels[values]
    if values.ndim == 3:
        colours = values[..., : sum(band != "A" for band in bands)]
        values = colours[..., 0]
        if (colours != values[..., None]).any():
            return colours.astype(np.int32) @ np.int32([1, 256, 65536]), None
    return values, (65535 if mode.startswith("I") else 255) // 2


def davis_palette() -> np.ndarray:
    """DAVIS's colours of the labels, uint8 (256, 3)."""
    palette, labels = np.zeros((256, 3), np.uint8), np.arange(256)
    # The bits of a label, three by three, are the bits of its colour from the highest on.
    for bit in range(8):
        palette[:, bit % 3] |= ((labels >> bit & 1) << (7 - bit // 3)).astype(np.uint8)
    return palette.clip(max=191)


def with_palette(labels: np.ndarray) -> Image.Image:
    """A label map, uint8 (H, W), as a picture with DAVIS's colours."""
    picture = Image.fromarray(labels)
    picture.putpalette(davis_palette().ravel().tolist())
    return picture
