"""Measures of grey maps, as video saliency is scored: S, F, E and MAE, by the package pysodmetrics.

- S: structure measure (Fan et al., ICCV 2017).
- F: F-measure with beta^2 = 0.3 (Achanta et al., CVPR 2009), at every threshold.
- E: enhanced-alignment measure (Fan et al., IJCAI 2018), at every threshold.
- MAE: mean absolute error; a lower one is better.
"""

from collections.abc import Mapping
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np

from datasets.pictures import read_image
from datasets.problems import DatasetError
from errors import UserError

_THRESHOLDS = 256


class SaliencyError(UserError):
    """The measures cannot be computed; the message says what to do."""


def load_package() -> Any:
    """The package pysodmetrics.

    Raises:
        SaliencyError: it is not installed.
    """
    try:
        return import_module("py_sod_metrics")
    except ImportError as error:
        raise SaliencyError(
            f"the measures of saliency need the package pysodmetrics ({error}): "
            "pip install pysodmetrics"
        ) from error


def read_grey(path: Path) -> np.ndarray:
    """Read a grey map, uint8 (H, W); of 16 bits the upper 8.

    Raises:
        DatasetError: it cannot be read, or has colours.
    """
    picture = read_image(path)
    if (picture != picture[..., :1]).any():
        raise DatasetError(f"{path}: it has colours; a map of saliency is grey")
    return picture[..., 0]


def saliency_curves(grey: np.ndarray, truth: np.ndarray) -> np.ndarray:
    """S, F, E and MAE of a grey map, float64 (4, 256): a column for each threshold.

    S and MAE need no threshold and are the same in all columns. The map is stretched to the whole
    range first, as in the published codes.

    Args:
        grey: uint8 (H, W).
        truth: (H, W), 0 is the background.
    """
    package = load_package()
    truth = np.where(truth != 0, 255, 0).astype(np.uint8)
    handler = package.FmeasureHandler(with_dynamic=True, with_adaptive=False, beta=0.3)
    meters = {
        "sm": package.Smeasure(),
        "fm": package.FmeasureV2(metric_handlers={"fm": handler}),
        "em": package.Emeasure(),
        "mae": package.MAE(),
    }
    results = {}
    for meter in meters.values():
        meter.step(grey, truth)
        results |= meter.get_results()
    curves = results["sm"], results["fm"]["dynamic"], results["em"]["curve"], results["mae"]
    curves = np.array([np.broadcast_to(one, _THRESHOLDS) for one in curves], float)
    return curves.clip(0, 1)  # E divides by one pixel fewer than there are


def at_best_thresholds(videos: Mapping[str, list[np.ndarray]]) -> dict[str, list[np.ndarray]]:
    """The measures (4,) of frames by video, from their curves (4, 256).

    F and E are taken at one threshold each: where the mean over all videos, each the mean over its
    frames, is highest.
    """
    mean = np.mean([np.mean(frames, axis=0) for frames in videos.values()], axis=0)
    best = mean.argmax(axis=1)
    measures = np.arange(len(best))
    return {name: [one[measures, best] for one in frames] for name, frames in videos.items()}
