"""Frames of evaluations on a page: which ones, and their pictures as small JPEGs."""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np

from datasets.layout import frame_label, video_sequences
from datasets.masks import VOID, one_object, read_labels
from datasets.pictures import read_image
from datasets.problems import DatasetError
from utils.evaluation.matching import matching_labels
from utils.evaluation.protocols import NUMBERED, SALIENCY
from utils.evaluation.results import Evaluation
from utils.evaluation.scoring import read_result, read_truth
from utils.reports.pictures import PANEL_WIDTH, draw_mask, panel_sized

JPEG_QUALITY = 80

Scores = dict[str, float]
Tile = tuple[str, bytes | None, Scores]  # name, JPEG (None if its file is gone), scores


class Run(NamedTuple):
    """An evaluation on a page."""

    label: str
    folder: Path
    evaluation: Evaluation


def frame_means(evaluation: Evaluation) -> dict[str, np.ndarray]:
    """The overall score of every frame (T,), by sequence."""
    scores, overall = evaluation.scores.items(), evaluation.protocol.overall
    return {name: np.mean([one.values[m] for m in overall], axis=0) for name, one in scores}


def pick_frames(
    values: Mapping[str, np.ndarray], number: int, per_sequence: int
) -> list[tuple[str, int]]:
    """The frames with the highest values (T,) by sequence, highest first: sequence, position.

    Every sequence's highest goes before any second one. Frames of a sequence are more than a tenth
    of it apart, because neighbours look alike.
    """
    ranked = []
    for name, one in values.items():
        left = np.arange(len(one))
        for rank in range(per_sequence):
            if len(left):
                position = int(left[one[left].argmax()])
                ranked.append((rank, -one[position], name, position))
                left = left[abs(left - position) > len(one) // 10]
    chosen = sorted(ranked)[:number]
    return [(name, position) for _, _, name, position in sorted(chosen, key=lambda it: it[1:])]


def show_frames(
    runs: Sequence[Run], chosen: Sequence[tuple[str, int]]
) -> list[tuple[str, Scores, list[Tile]]]:
    """Frames, chosen by sequence and position: name, the first run's scores, and pictures.

    A single run shows the frame's panel, if there is one. Otherwise the pictures come from the data
    and the masks.
    """
    first = runs[0].evaluation
    try:
        root = Path(first.data_root)
        sequences = video_sequences(root, first.set_name, masks="none", flow=False, problems={})
    except (DatasetError, OSError):
        sequences = []
    files = {(s.name, frame_label(s.name, frame)): frame for s in sequences for frame in s.frames}
    true = partial(read_truth, protocol=first.protocol)
    shown = []
    objects = 1 if first.protocol.one_object else VOID - 1
    for row, position in chosen:
        sequence = first.protocol.sequence_of(row)
        frame = first.scores[row].frames[position]
        found = files.get((sequence, frame))
        tiles = _panel(runs[0], sequence, frame) if len(runs) == 1 else []
        if not tiles:
            tiles.append(_tile("RGB image", read_image, found and found.image, objects))
            if found and found.flow:
                tiles.append(_tile("optical flow", read_image, found.flow, objects))
            tiles.append(_tile("ground truth", true, found and found.mask, objects))
            begin = first.scores[row].frames[0]
            start = files.get((sequence, begin))
            for run in runs:
                path, scores = _mask_file(run, sequence, frame), _scores(run, row, position)
                read = _reader(run)
                numbered = run.evaluation.protocol.objects == NUMBERED
                if objects > 1 and start and start.mask and not numbered:
                    read = _with_true_numbers(read, _mask_file(run, sequence, begin), start.mask)
                tiles.append(_tile(run.label, read, path, objects, scores))
        shown.append((f"{row} {frame}", _scores(runs[0], row, position), tiles))
    return shown


def _reader(run: Run) -> Callable[[Path], np.ndarray]:
    """Reads a run's masks as its evaluation did."""
    evaluation = run.evaluation
    if evaluation.protocol.objects == SALIENCY:
        return read_image
    binarize = evaluation.settings.get("BINARIZE", False)
    return partial(read_result, protocol=evaluation.protocol, binarize=binarize)


def _with_true_numbers(
    read: Callable[[Path], np.ndarray], mask: Path, truth: Path
) -> Callable[[Path], np.ndarray]:
    """Reads masks with the numbers of the objects that they overlap in the first frame."""

    def numbered(path: Path) -> np.ndarray:
        return matching_labels(read(mask), read_labels(truth))[read(path)]

    return numbered


def _scores(run: Run, sequence: str, position: int) -> Scores:
    values = run.evaluation.scores[sequence].values
    values = {measure: float(one[position]) for measure, one in values.items()}
    overall = float(np.mean([values[measure] for measure in run.evaluation.protocol.overall]))
    return {run.evaluation.title: overall, **values}


def _panel(run: Run, sequence: str, frame: str) -> list[Tile]:
    """The pictures of a network's panel, which have labels."""
    path = run.folder / "panels" / sequence / f"{frame}.png"
    if run.evaluation.checkpoint is None or not path.is_file():
        return []
    panel = read_image(path)
    parts = np.split(panel, range(PANEL_WIDTH, panel.shape[1], PANEL_WIDTH), axis=1)
    return [("", _jpeg(part), {}) for part in parts]


def _mask_file(run: Run, sequence: str, frame: str) -> Path:
    # The folder of a network's evaluation may have been moved together with its masks.
    masks = Path(run.evaluation.masks)
    masks = run.folder / masks.name if run.evaluation.checkpoint else masks
    path = masks / sequence / f"{frame}.png"
    return path if path.is_file() else path.with_name(f"{sequence}_{frame}.png")


def _tile(
    name: str,
    read: Callable[[Path], np.ndarray],
    path: Path | None,
    num_objects: int,
    scores: Scores | None = None,
) -> Tile:
    """A picture from a file: an image or a label map."""
    try:
        picture = read(path) if path else None
    except DatasetError:
        picture = None
    if picture is not None and picture.ndim == 2:
        # Masks of several objects may be those of a set of one.
        several = one_object(picture).any() and picture[picture < VOID].max() > 1
        picture = draw_mask(picture, VOID - 1 if several else num_objects)
    elif picture is not None:
        picture = panel_sized(picture)
    return name, None if picture is None else _jpeg(picture), scores or {}


def _jpeg(picture: np.ndarray) -> bytes:
    pixels = cv2.cvtColor(picture, cv2.COLOR_RGB2BGR)
    return cv2.imencode(".jpg", pixels, [cv2.IMWRITE_JPEG_QUALITY, JPEG_QUALITY])[1].tobytes()
