"""Frames and flow estimators for the tests of flow maps."""

from pathlib import Path

import cv2
import numpy as np

STEP = (4, 2)  # pixels to the right and down that the test video moves by from frame to frame


def moving_frames(count: int, height: int = 128, width: int = 144) -> list[np.ndarray]:
    """A textured plane that moves by STEP, (H, W, 3) uint8 RGB each."""
    noise = np.random.default_rng(0).standard_normal((height + 40, width + 80, 3))
    texture = cv2.GaussianBlur(noise, (0, 0), 2)
    texture = (255 * (texture - texture.min()) / np.ptp(texture)).astype(np.uint8)
    corners = [(40 - t * STEP[1], 80 - t * STEP[0]) for t in range(count)]
    return [texture[y : y + height, x : x + width] for y, x in corners]


def write_frames(folder: Path, sequence: str, frames: list[np.ndarray]) -> None:
    """Write frames as folder/<sequence>_<number>.png."""
    folder.mkdir(parents=True, exist_ok=True)
    for t, frame in enumerate(frames):
        cv2.imwrite(str(folder / f"{sequence}_{t:05d}.png"), frame[..., ::-1])


def to_the_right(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Estimator for tests that are not about the motion."""
    return np.full((*first.shape[:2], 2), (1, 0), np.float32)


def names(folder: Path) -> list[str]:
    """Names of all files in a folder, hidden ones too."""
    return sorted(path.name for path in folder.iterdir())
