"""Soft masks: probabilities of objects as grey pictures, beside the masks."""

from pathlib import Path

import numpy as np

from datasets.files import write_picture

PROBABILITIES = "probabilities"  # the folder


def to_grey(probability: np.ndarray, save: str) -> np.ndarray:
    """Probabilities in [0, 1] as grey values, rounded to the nearest one.

    ``save`` is the setting SAVE: ``probabilities`` gives uint8 from 0 to 255, ``probabilities16``
    uint16 from 0 to 65535. Halves are rounded down. A value is then above the middle of the range,
    and so in the mask that ``--binarize`` makes, exactly if the probability is above 0.5.
    """
    kind = np.uint16 if save == "probabilities16" else np.uint8
    return np.ceil(probability * np.float32(np.iinfo(kind).max) - np.float32(0.5)).astype(kind)


def write_soft_masks(path: Path, pictures: np.ndarray) -> None:
    """Write the grey pictures (K, H, W) of a frame's objects as PNG.

    One object gets the name ``path``; of several, object 2 of ``00012.png`` gets ``00012_2.png``.
    """
    for number, picture in enumerate(pictures, 1):
        several = len(pictures) > 1
        write_picture(path.with_name(f"{path.stem}_{number}.png") if several else path, picture)
