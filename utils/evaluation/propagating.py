"""From a video's frames and its first mask to the label maps of all frames."""

from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from datasets.masks import VOID, has_colours, read_labels
from datasets.problems import DatasetError
from models.backbones.feature_map import FeatureMap
from models.ops import resize
from models.precision import full_precision
from models.propagation import Recipe, input_size, label_map, labels_on_grid, propagate
from utils.evaluation.segmenting import inference


def read_first_mask(path: Path, size: tuple[int, int]) -> np.ndarray:
    """A video's first mask as a label map, uint8 (H, W), without void.

    Raises:
        DatasetError: it cannot be read, has another size than the frames, several colours, or no
            object.
    """
    if has_colours(path):
        raise DatasetError(
            f"{path}: its colours do not number objects; write the numbers of objects, as a "
            "palette PNG, or as grey values below 32"
        )
    labels = read_labels(path)
    if labels.shape != size:
        raise DatasetError(
            f"{path}: the first mask has {labels.shape[1]} x {labels.shape[0]} pixels, the frames "
            f"{size[1]} x {size[0]}; resize the mask by the nearest pixel, or draw it anew"
        )
    labels = np.where(labels == VOID, 0, labels).astype(np.uint8)
    if not labels.any():
        raise DatasetError(f"{path}: no object in the first mask; there is nothing to propagate")
    return labels


def propagate_video(
    images: Iterable[np.ndarray],
    first: np.ndarray,
    features: FeatureMap,
    recipe: Recipe,
    batch_size: int = 4,
    mixed_precision: bool = False,
) -> Iterator[np.ndarray]:
    """The label map of every frame, uint8 (H, W), from the first one, which is returned as it is.

    ``images`` are uint8 (H, W, 3). Memory does not grow with the video. Objects that are not in
    the first mask are never found.
    """
    device, size = features.normalise.mean.device, first.shape
    shown = input_size(size, features.stride, recipe.resize)
    stride = recipe.stride or features.stride
    grid = tuple(max(1, side // stride) for side in shown)
    numbers = torch.from_numpy(np.unique(first)).to(device)
    given = labels_on_grid(torch.from_numpy(first).to(device), numbers, grid, recipe.resize)
    maps = feature_maps(images, features, shown, grid, batch_size, mixed_precision)
    for t, labels in enumerate(propagate(maps, given, recipe)):
        yield label_map(labels, numbers, shown, size, recipe).cpu().numpy() if t else first


def feature_maps(
    images: Iterable[np.ndarray],
    features: FeatureMap,
    shown: tuple[int, int],
    grid: tuple[int, int],
    batch_size: int = 4,
    mixed_precision: bool = False,
) -> Iterator[Tensor]:
    """Features (C, h, w) on the ``grid`` of each of the images, which are ``shown`` at a size."""
    device, images = features.normalise.mean.device, iter(images)
    while batch := list(islice(images, batch_size)):
        stacked = torch.from_numpy(np.stack(batch)).permute(0, 3, 1, 2).to(device)
        with inference(device, mixed_precision):
            found = features(stacked, shown)
            if found.shape[2:] != grid:
                found = resize(full_precision(found), grid)
        yield from found
