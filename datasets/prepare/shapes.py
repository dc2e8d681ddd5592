"""Label maps of the polygons and run lengths of annotation files."""

from collections.abc import Iterable
from typing import Any

import cv2
import numpy as np

from datasets.masks import VOID

_SAMPLES = 3  # to the pixel's side; odd, so that one of them is the pixel's centre

Shape = list | dict  # polygons (x, y, x, y, ...) in pixels from the corner, or COCO's run lengths


def draw_shapes(objects: Iterable[tuple[int, Shape]], size: tuple[int, int]) -> np.ndarray:
    """A label map uint8 (H, W) of objects' numbers and shapes; of two that overlap, the later one.

    Raises ValueError, KeyError or TypeError for a shape that is not as its format says.
    """
    labels = np.zeros(size, np.uint8)
    for number, shape in objects:
        if not 0 < number < VOID:
            raise ValueError(f"object number {number}; expected 1 to {VOID - 1}")
        if isinstance(shape, dict):
            labels[_of_runs(shape, size)] = number
        else:
            for polygon in shape:
                labels[_of_polygon(polygon, size)] = number
    return labels


def circle(centre: list[float], edge: list[float]) -> np.ndarray:
    """The polygon (64, 2) of a circle through a point."""
    radius = np.hypot(edge[0] - centre[0], edge[1] - centre[1])
    angles = np.linspace(0, 2 * np.pi, 64, endpoint=False)
    return np.array(centre) + radius * np.stack([np.cos(angles), np.sin(angles)], axis=1)


def _of_polygon(polygon: list[float], size: tuple[int, int]) -> np.ndarray:
    """The pixels whose centre is inside, bool (H, W)."""
    points = np.array(polygon, np.float64).reshape(-1, 2)
    if len(points) < 3 or not np.isfinite(points).all():
        raise ValueError("polygon of fewer than three points, or with numbers that are not finite")
    # OpenCV fills the line around a polygon, too. On a finer grid that line meets no centre.
    fine = np.zeros([side * _SAMPLES for side in size], np.uint8)
    cv2.fillPoly(fine, [np.round(points * _SAMPLES - 0.5).astype(np.int32)], 1)
    return fine[_SAMPLES // 2 :: _SAMPLES, _SAMPLES // 2 :: _SAMPLES] > 0


def _of_runs(shape: dict[str, Any], size: tuple[int, int]) -> np.ndarray:
    """COCO's run lengths of background and object in turn, down the columns: bool (H, W)."""
    counts = shape["counts"]
    if isinstance(counts, str):
        counts = _unpacked(counts)
    runs = np.array(counts, np.int64)
    if list(shape["size"]) != list(size) or (runs < 0).any() or runs.sum() != size[0] * size[1]:
        raise ValueError(f"run lengths of another size than {size[1]} x {size[0]}")
    return np.repeat(np.arange(len(runs)) % 2 > 0, runs).reshape(size[::-1]).T


def _unpacked(text: str) -> list[int]:
    """COCO's packed run lengths, five bits a character.

    From the fourth on, a number is the difference to the run two before it.
    """
    runs, value, shift = [], 0, 0
    for character in text:
        bits = ord(character) - 48
        value |= (bits & 31) << shift
        shift += 5
        if not bits & 32:  # the number's last character, whose fifth bit is its sign
            value -= (bits & 16) << (shift - 4)
            runs.append(value + (runs[-2] if len(runs) > 2 else 0))
            value = shift = 0
    if shift:
        raise ValueError("packed run lengths that are cut off")
    return runs
