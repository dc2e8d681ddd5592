"""Pictures of a frame: a row of labelled panels, and the frame with its objects tinted.

Masks are label maps, uint8 (H, W): 0 background, 1 to K objects, 255 void, which is drawn as
background. ``num_objects`` is the video's K, so that colours are the same in all of its frames.
Pictures are uint8 RGB (H, W, 3), maps float (h, w) in [0, 1].
"""

import string
from pathlib import Path

import cv2
import numpy as np

from datasets.augmentation import resize
from datasets.files import replacing, write_picture
from datasets.layout import Frame
from datasets.masks import VOID, davis_palette, one_object, read_labels, with_palette
from datasets.pictures import read_image

PANEL_WIDTH = 240
LABEL_HEIGHT = 22
Colour = tuple[int, int, int]  # red, green and blue, 0 to 255
OVERLAY_COLOUR: Colour = (255, 0, 128)  # a pink that hardly anything filmed has


def draw_panels(
    image: np.ndarray,
    flow: np.ndarray | None,
    labels: np.ndarray,
    truth: np.ndarray | None,
    maps: dict[str, np.ndarray],
    num_objects: int,
    numbers: np.ndarray | None = None,
) -> np.ndarray:
    """A row of labelled panels: image, flow map, predicted mask, true mask, then the maps.

    Without flow map there is no panel of it; without true mask its panel is grey. Maps are heat
    maps over the image; for GSA-Net the foreground and background slot of both streams.
    ``numbers`` are other ones for the predicted labels, so that their colours match the true ones.
    """
    small = panel_sized(image)
    objects = num_objects if num_objects == 1 else VOID - 1
    if numbers is not None:
        labels = numbers[labels]
    no_truth = np.full_like(small, 128)
    panels = [
        ("RGB image", small),
        *([] if flow is None else [("optical flow", flow)]),
        ("prediction", draw_mask(labels, objects)),
        ("ground truth", no_truth if truth is None else draw_mask(truth, objects)),
        *((name, heat_map(values, small)) for name, values in maps.items()),
    ]
    letters = string.ascii_uppercase
    return draw_row([(f"{x}  {name}", picture) for x, (name, picture) in zip(letters, panels)])


def draw_frame(
    frame: Frame,
    labels: np.ndarray,
    maps: dict[str, np.ndarray],
    num_objects: int,
    numbers: np.ndarray | None = None,
) -> np.ndarray:
    """:func:`draw_panels` of a frame on disk."""
    flow = None if frame.flow is None else read_image(frame.flow)
    truth = None
    if frame.mask is not None:
        truth = read_labels(frame.mask)
        truth = truth if num_objects > 1 else one_object(truth).view(np.uint8)
    return draw_panels(read_image(frame.image), flow, labels, truth, maps, num_objects, numbers)


def draw_row(panels: list[tuple[str, np.ndarray]]) -> np.ndarray:
    """Pictures side by side, each under its label; all get the size of the first, PANEL_WIDTH wide.

    Args:
        panels: labels and pictures.
    """
    height = len(panel_sized(panels[0][1]))
    return np.hstack(
        [_with_label(resize(picture, height, PANEL_WIDTH), label) for label, picture in panels]
    )


def draw_iterations(image: np.ndarray, maps: list[dict[str, np.ndarray]]) -> np.ndarray:
    """A row of heat maps for each named map, after 0, 1, ... T iterations (Figure 8)."""
    small = panel_sized(image)
    return np.vstack(
        [
            draw_row(
                [(f"{name}, t = {t}", heat_map(after[name], small)) for t, after in enumerate(maps)]
            )
            for name in maps[0]
        ]
    )


def heat_map(values: np.ndarray, image: np.ndarray) -> np.ndarray:
    """Values (h, w) in [0, 1] as colours, blue to red, half transparent over the image."""
    height, width = image.shape[:2]
    levels = (values.clip(0, 1) * 255).round().astype(np.uint8)
    levels = cv2.resize(levels, (width, height), interpolation=cv2.INTER_LINEAR)
    colours = cv2.cvtColor(cv2.applyColorMap(levels, cv2.COLORMAP_JET), cv2.COLOR_BGR2RGB)
    return cv2.addWeighted(image, 0.5, colours, 0.5, 0)


def draw_mask(labels: np.ndarray, num_objects: int) -> np.ndarray:
    """A mask as a panel: one object white on black, several in the colours of DAVIS's palette."""
    if num_objects > 1:
        return panel_sized(_coloured(labels, num_objects))
    # One channel is resized faster than three.
    return cv2.cvtColor(panel_sized(cv2.inRange(labels, 1, 1)), cv2.COLOR_GRAY2RGB)


def draw_overlay(
    image: np.ndarray, labels: np.ndarray, num_objects: int, colour: Colour = OVERLAY_COLOUR
) -> np.ndarray:
    """The image with its objects half tinted and outlined: in ``colour`` if there is one.

    Outlines lie inside the objects. Outside the objects the picture equals the image.
    """
    objects = cv2.inRange(labels, 1, num_objects)
    colours = _coloured(labels, num_objects, colour)
    overlay = cv2.copyTo(cv2.addWeighted(image, 0.5, colours, 0.5, 0), objects, image.copy())
    width = max(1, round(min(labels.shape) / 250))  # pixels
    # Labels change where an object ends, but not within it.
    kernel = np.ones((3, 3), np.uint8)
    changes = cv2.morphologyEx(labels & objects, cv2.MORPH_GRADIENT, kernel, iterations=width)
    return cv2.copyTo(colours, changes & objects, overlay)


def write_mask(path: Path | str, labels: np.ndarray, num_objects: int) -> None:
    """Write a label map as PNG: 0 and 255 for one object, several with DAVIS's palette."""
    path = Path(path)
    if num_objects == 1:
        write_picture(path, labels * np.uint8(255))
        return
    with replacing(path) as file:
        with_palette(labels).save(file, "PNG")


def panel_sized(picture: np.ndarray) -> np.ndarray:
    """The picture or mask, PANEL_WIDTH wide."""
    height = max(1, round(PANEL_WIDTH * picture.shape[0] / picture.shape[1]))
    return resize(picture, height, PANEL_WIDTH)


def _coloured(labels: np.ndarray, num_objects: int, colour: Colour = OVERLAY_COLOUR) -> np.ndarray:
    """Labels as colours: DAVIS's palette, or ``colour`` if there is one object."""
    palette = davis_palette()
    palette[num_objects + 1 :] = 0
    if num_objects == 1:
        palette[1] = colour
    return cv2.LUT(cv2.cvtColor(labels, cv2.COLOR_GRAY2RGB), palette[None])


def _with_label(picture: np.ndarray, label: str) -> np.ndarray:
    band = np.full((LABEL_HEIGHT, picture.shape[1], 3), 255, np.uint8)
    cv2.putText(band, label, (4, 15), cv2.FONT_HERSHEY_SIMPLEX, 0.45, (0, 0, 0), 1, cv2.LINE_AA)
    return np.vstack([picture, band])
