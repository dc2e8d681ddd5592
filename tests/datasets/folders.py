"""Small data sets on disk, for the tests of this folder."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from datasets.layout import (
    Frame,
)
from datasets.problems import DatasetError

HEIGHT, WIDTH = 12, 20


def noise(height: int = HEIGHT, width: int = WIDTH) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)


def write(path: Path, pixels: np.ndarray | None = None) -> Path:
    """A picture in the format that the suffix names, RGB or grey."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(noise() if pixels is None else pixels).save(path)
    return path


def make_flat(root: Path, names: list[str], suffix: str = ".jpg") -> Path:
    """A complete flat set named "videos"; returns its folder."""
    for name in names:
        write(root / "videos/RGB" / f"{name}{suffix}")
        write(root / "videos/GT" / f"{name}.png", noise()[..., 0])
        write(root / "videos/FLOW" / f"{name}.jpg")
    return root / "videos"


def make_nested(root: Path, sequences: dict[str, list[str]]) -> Path:
    """A complete nested set named "videos"; returns its folder."""
    for sequence, names in sequences.items():
        for part in ("RGB", "GT", "FLOW"):
            for name in names:
                write(root / "videos" / sequence / part / f"{name}.png", noise()[..., 0])
    return root / "videos"


def names_of(sequences) -> dict[str, list[str]]:
    return {sequence.name: [frame.name for frame in sequence.frames] for sequence in sequences}


def complaint(call, *args, **kwargs) -> str:
    with pytest.raises(DatasetError) as caught:
        call(*args, **kwargs)
    return str(caught.value)


def frame_of(image: Path, mask: Path | None = None, flow: Path | None = None) -> Frame:
    return Frame(image.stem, image, mask, flow)
