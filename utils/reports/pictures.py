"""Pictures of a frame: a row of labelled panels, and the frame with its objects tinted."""

import string
from pathlib import Path

import cv2
import numpy as np

from datasets.augmentation import resize
from datasets.files import write_picture

PANEL_WIDTH = 240
LABEL_HEIGHT = 22
OVERLAY_COLOUR = (255, 0, 128)  # a pink that hardly anything filmed has


def draw_panels(
    image: np.ndarray,
    flow: np.ndarray | None,
    prediction: np.ndarray,
    truth: np.ndarray | None,
    maps: dict[str, np.ndarray],
    num_objects: int = 1,
) -> np.ndarray:
    """A row of labelled panels: image, flow map, predicted mask, true mask, then the maps.

    Args:
        image, flow: uint8 RGB (H, W, 3); no flow map for still images.
        prediction: as :func:`draw_mask` takes it.
        truth: likewise, or ``None`` where there is no annotation.
        maps: by name, float (h, w) in [0, 1], shown as heat maps over the image; for GSA-Net the
            foreground and background slot of both streams.
        num_objects: of the video (K).

    Returns:
        uint8 RGB.
    """
    small = panel_sized(image)
    no_truth = np.full_like(small, 128)
    panels = [
        ("RGB image", small),
        *([] if flow is None else [("optical flow", flow)]),
        ("prediction", draw_mask(prediction, num_objects)),
        ("ground truth", no_truth if truth is None else draw_mask(truth, num_objects)),
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
    height = panel_sized(panels[0][1]).shape[0]
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
    small = panel_sized(image)
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


def draw_mask(labels: np.ndarray, num_objects: int = 1) -> np.ndarray:
    """A mask as a panel: a single object white on black, several in the colours of DAVIS's palette.

    Args:
        labels: bool (H, W), or uint8 (H, W) with 0 for background, 1 to K for the objects and 255
            for void, which is drawn as background.
        num_objects: of the video (K), so that colours stay the same in all of its frames.

    Returns:
        uint8 RGB, PANEL_WIDTH wide.
    """
    if num_objects > 1:
        return panel_sized(_coloured(labels, num_objects))
    white = cv2.inRange(labels.astype(np.uint8), 1, 1)
    # One channel is resized faster than three.
    return cv2.cvtColor(panel_sized(white), cv2.COLOR_GRAY2RGB)


def draw_overlay(image: np.ndarray, labels: np.ndarray, num_objects: int = 1) -> np.ndarray:
    """A frame with its objects half tinted and outlined: in OVERLAY_COLOUR if there is only one.

    Args:
        image: uint8 RGB (H, W, 3).
        labels, num_objects: as in :func:`draw_mask`; outlines lie inside the objects.

    Returns:
        uint8 RGB (H, W, 3), equal to the image outside the objects.
    """
    labels = labels.astype(np.uint8)
    objects = cv2.inRange(labels, 1, num_objects)
    colours = _coloured(labels, num_objects)
    overlay = cv2.copyTo(cv2.addWeighted(image, 0.5, colours, 0.5, 0), objects, image.copy())
    width = max(1, round(min(labels.shape) / 250))  # pixels
    # Labels change where an object ends, but not within it.
    kernel = np.ones((3, 3), np.uint8)
    changes = cv2.morphologyEx(labels & objects, cv2.MORPH_GRADIENT, kernel, iterations=width)
    return cv2.copyTo(colours, changes & objects, overlay)


def write_mask(path: Path, labels: np.ndarray, num_objects: int) -> None:
    """Write a label map, uint8 (H, W), as PNG: 0 and 255 for one object, else as it is."""
    write_picture(path, labels * np.uint8(255) if num_objects == 1 else labels)


def panel_sized(picture: np.ndarray) -> np.ndarray:
    """The picture (H, W) or (H, W, 3), PANEL_WIDTH wide."""
    height = max(1, round(PANEL_WIDTH * picture.shape[0] / picture.shape[1]))
    return resize(picture, height, PANEL_WIDTH)


def _coloured(labels: np.ndarray, num_objects: int) -> np.ndarray:
    """Labels (H, W) as colours, uint8 RGB: DAVIS's palette, or OVERLAY_COLOUR if K = 1."""
    palette = np.zeros((256, 3), np.uint8)
    objects = np.arange(1, num_objects + 1)
    # The bits of a label, three by three, are the bits of its colour from the highest on.
    for bit in range(8):
        palette[objects, bit % 3] |= ((objects >> bit & 1) << (7 - bit // 3)).astype(np.uint8)
    palette = palette.clip(max=191)
    if num_objects == 1:
        palette[1] = OVERLAY_COLOUR
    return cv2.LUT(cv2.cvtColor(labels.astype(np.uint8), cv2.COLOR_GRAY2RGB), palette[None])


def _with_label(picture: np.ndarray, label: str) -> np.ndarray:
    band = np.full((LABEL_HEIGHT, picture.shape[1], 3), 255, np.uint8)
    cv2.putText(band, label, (4, 15), cv2.FONT_HERSHEY_SIMPLEX, 0.45, (0, 0, 0), 1, cv2.LINE_AA)
    return np.vstack([picture, band])
