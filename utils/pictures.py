"""Pictures: the eight result panels A to H, side by side and labelled; a mask over its frame."""

import os
import string
from pathlib import Path

import cv2
import numpy as np

from datasets.augmentation import resize

PANEL_WIDTH = 240
LABEL_HEIGHT = 22
OVERLAY_COLOUR = (255, 0, 128)  # a pink that hardly anything filmed has


def draw_panels(
    image: np.ndarray,
    flow: np.ndarray | None,
    prediction: np.ndarray,
    truth: np.ndarray | None,
    maps: dict[str, np.ndarray],
) -> np.ndarray:
    """A row of labelled panels: image, flow map, predicted mask, true mask, then the maps.

    Args:
        image, flow: uint8 RGB (H, W, 3); no flow map for still images.
        prediction: bool (H, W).
        truth: bool (H, W), or ``None`` where there is no annotation.
        maps: by name, float (h, w) in [0, 1], shown as heat maps over the image; for GSA-Net the
            foreground and background slot of both streams.

    Returns:
        uint8 RGB.
    """
    small = _small(image)
    panels = [
        ("RGB image", small),
        *([] if flow is None else [("optical flow", flow)]),
        ("prediction", _grey(prediction)),
        ("ground truth", np.full_like(small, 128) if truth is None else _grey(truth)),
        *((name, heat_map(values, small)) for name, values in maps.items()),
    ]
    return draw_row(
        [
            (f"{letter}  {name}", picture)
            for letter, (name, picture) in zip(string.ascii_uppercase, panels)
        ]
    )


def draw_row(panels: list[tuple[str, np.ndarray]]) -> np.ndarray:
    """Pictures side by side, each under its label.

    Args:
        panels: label and uint8 RGB (H, W, 3); all get the size of the first one, PANEL_WIDTH wide.

    Returns:
        uint8 RGB.
    """
    height = _small(panels[0][1]).shape[0]
    return np.hstack(
        [_with_label(resize(picture, height, PANEL_WIDTH), label) for label, picture in panels]
    )


def draw_iterations(image: np.ndarray, maps: list[dict[str, np.ndarray]]) -> np.ndarray:
    """A row of heat maps for each named map, from the slots' beginning on (Figure 8).

    Args:
        image: uint8 RGB (H, W, 3).
        maps: after 0, 1, ... T iterations, by name, float (h, w) in [0, 1].

    Returns:
        uint8 RGB.
    """
    small = _small(image)
    rows = [
        [
            _with_label(heat_map(after[name], small), f"{name}, t = {count}")
            for count, after in enumerate(maps)
        ]
        for name in maps[0]
    ]
    return np.vstack([np.hstack(row) for row in rows])


def heat_map(values: np.ndarray, image: np.ndarray) -> np.ndarray:
    """Values (h, w) in [0, 1] as colours, blue to red, half transparent over the image."""
    height, width = image.shape[:2]
    levels = (values.clip(0, 1) * 255).round().astype(np.uint8)
    levels = cv2.resize(levels, (width, height), interpolation=cv2.INTER_LINEAR)
    colours = cv2.cvtColor(cv2.applyColorMap(levels, cv2.COLORMAP_JET), cv2.COLOR_BGR2RGB)
    return cv2.addWeighted(image, 0.5, colours, 0.5, 0)


def draw_overlay(image: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """A frame with its object half tinted and outlined in OVERLAY_COLOUR.

    Args:
        image: uint8 RGB (H, W, 3).
        mask: bool (H, W); the outline lies inside it.

    Returns:
        uint8 RGB (H, W, 3), equal to the image outside the mask.
    """
    overlay = image.copy()
    tint = cv2.addWeighted(image, 0.5, np.full_like(image, OVERLAY_COLOUR), 0.5, 0)
    overlay[mask] = tint[mask]
    width = max(1, round(min(mask.shape) / 250))  # pixels
    inside = cv2.erode(mask.astype(np.uint8), np.ones((3, 3), np.uint8), iterations=width)
    overlay[mask & (inside == 0)] = OVERLAY_COLOUR
    return overlay


def write_mask(path: Path, labels: np.ndarray, num_objects: int) -> None:
    """Write a label map, uint8 (H, W), as PNG: 0 and 255 for one object, else as it is."""
    write_picture(path, labels * np.uint8(255) if num_objects == 1 else labels)


def write_picture(path, picture: np.ndarray) -> None:
    """Write uint8 RGB (H, W, 3) or grey (H, W), whole or not at all; the folder is made.

    Raises:
        OSError: it could not be written.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    if picture.ndim == 3:
        picture = cv2.cvtColor(picture, cv2.COLOR_RGB2BGR)
    done, encoded = cv2.imencode(path.suffix, picture)
    if not done:
        raise OSError(f"{path} could not be encoded")
    partial = path.with_name(f".{path.name}.partial")
    partial.write_bytes(encoded.tobytes())
    os.replace(partial, path)


def _small(picture: np.ndarray) -> np.ndarray:
    """The picture as large as a panel."""
    height = max(1, round(PANEL_WIDTH * picture.shape[0] / picture.shape[1]))
    return resize(picture, height, PANEL_WIDTH)


def _grey(mask: np.ndarray) -> np.ndarray:
    """A mask as a panel."""
    return np.repeat(_small(mask.astype(np.uint8) * 255)[..., None], 3, axis=2)


def _with_label(picture: np.ndarray, label: str) -> np.ndarray:
    band = np.full((LABEL_HEIGHT, picture.shape[1], 3), 255, np.uint8)
    cv2.putText(band, label, (4, 15), cv2.FONT_HERSHEY_SIMPLEX, 0.45, (0, 0, 0), 1, cv2.LINE_AA)
    return np.vstack([picture, band])
