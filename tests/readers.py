"""What a user sees in files of masks and flow maps, calculated in other ways than the code does."""

from pathlib import Path

import cv2
import numpy as np
from torchvision.utils import _make_colorwheel

from datasets.masks import read_labels


def read_mask(path: Path) -> np.ndarray:
    """All objects of a true mask as one, bool (H, W)."""
    return ~np.isin(read_labels(path), (0, 255))


def picture_to_flow(picture: np.ndarray) -> np.ndarray:
    """Motion (H, W, 2) that a colour-wheel picture shows; 1 is the frame's largest motion."""
    wheel = _make_colorwheel().numpy().astype(np.float32) / 255
    pictures = (wheel[None], np.float32(picture / 255))
    rim, hue = (cv2.cvtColor(one, cv2.COLOR_RGB2HSV)[..., 0] for one in pictures)
    angle = np.interp(hue, rim[0], np.linspace(0, 2 * np.pi, len(wheel)))
    length = (picture.max(axis=2) - picture.min(axis=2)) / np.float32(255)
    return length[..., None] * np.stack([np.cos(angle), np.sin(angle)], axis=2)
