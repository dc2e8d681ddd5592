"""Scores of frames, and of the masks in a folder."""

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import cv2
import numpy as np

from datasets.layout import Frame, VideoFiles, frame_label
from datasets.masks import (
    VOID,
    NotBinaryError,
    one_object,
    read_binary_mask,
    read_labels,
    read_proposals,
)
from datasets.pictures import read_size
from datasets.problems import DatasetError, format_problems
from datasets.progress import progress_bar
from utils.evaluation.foreground import BORDER, RULES, choose_foreground
from utils.evaluation.matching import (
    FramePairs,
    adjusted_rand_index,
    matched,
    matched_per_frame,
    mean_iou,
    overlap_counts,
    score_pairs,
    video_pairs,
)
from utils.evaluation.metrics import MEASURES
from utils.evaluation.protocols import (
    MATCHED,
    MATCHED_PER_FRAME,
    NUMBERED,
    ONE,
    SALIENCY,
    WHOLE_VIDEO,
    Protocol,
    SequenceScores,
)
from utils.evaluation.saliency import at_best_thresholds, read_grey, saliency_curves
from utils.processes import num_cores

Item, Result = TypeVar("Item"), TypeVar("Result")
# Sequence, frame, and a number for each measure, the pairs of objects, or counts of pixels.
FrameScores = tuple[str, str, list[float] | FramePairs | np.ndarray | None]
Fault = tuple[tuple[str, str], str]  # a kind of problem with its advice, and the file
SEVERAL = "several proposals"  # in the place of the scores of a frame, if one object is expected

# What is wrong with a mask, and what to do.
_MISSING = "mask that is missing", "write DIR/<sequence>/<frame>.png for each frame that counts"
_UNREADABLE = "file that cannot be read", "replace it"
_OTHER_SIZE = "mask of another size than the true mask", "write each mask at its frame's size"
_NOT_BINARY = (
    "mask that is neither binary nor numbers of proposals",
    "write 0 and one other value, or numbers in a palette, or pass --binarize, which cuts grey "
    "masks at 0.5",
)


def overlap(
    function: Callable[[Item], Result], items: Iterable[Item], workers: int
) -> Iterator[Result]:
    """``function`` of each item, in order, computed by threads while later items are made.

    At most twice as many items as workers wait at a time, so memory stays bounded. Threads are
    enough, because reading, OpenCV and NumPy release Python's lock.
    """
    pending: deque = deque()
    pool = ThreadPoolExecutor(workers)
    try:
        for item in items:
            pending.append(pool.submit(function, item))
            if len(pending) > 2 * workers:
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()
    finally:
        pool.shutdown(cancel_futures=True)


def read_truth(path: Path, protocol: Protocol) -> np.ndarray:
    """A true mask as a label map, uint8 (H, W), with void; or all objects as one, as 1."""
    labels = read_labels(path)
    return one_object(labels).view(np.uint8) if protocol.one_object else labels


def read_result(path: Path, protocol: Protocol, binarize: bool = False) -> np.ndarray:
    """A result's mask as a label map, uint8 (H, W), whose numbers may have gaps.

    ``binarize`` cuts a grey mask at the middle of its range. Otherwise grey masks of protocols of
    one object hold 0 and one other value, or numbers of proposals below 32. For saliency the grey
    map is returned.
    """
    if protocol.objects == SALIENCY:
        return read_grey(path)
    if protocol.objects != ONE and not binarize:
        return read_proposals(path)
    try:
        return read_binary_mask(path, binarize).view(np.uint8)
    except NotBinaryError:
        with suppress(DatasetError):  # whose advice is for true masks
            labels = read_labels(path)
            if labels.max() > 1:
                return labels
        raise


def score_frame(
    labels: np.ndarray, truth: np.ndarray, protocol: Protocol
) -> list[float] | FramePairs | np.ndarray | None:
    """The scores of a frame, from two maps (H, W), in the form that the protocol needs.

    One object: a number for each measure, or None if the true map holds no object and the protocol
    leaves such frames out. Several objects: all pairs. A whole video: counts of pixels. Saliency:
    the curves of the measures.
    """
    if protocol.objects == WHOLE_VIDEO:
        counts = overlap_counts(labels, truth)
        return counts[: int(labels.max()) + 1, : int(truth.max()) + 1]
    if protocol.per_object:
        return score_pairs(labels, truth)
    if protocol.objects == SALIENCY:
        return saliency_curves(labels, truth)
    # Objects are foreground; 255 is void.
    found, true = (cv2.inRange(one, 1, 254) for one in (labels, truth))
    if not protocol.empty_truths and not true.any():
        return None
    return [MEASURES[measure](found, true) for measure in protocol.measures]


def collect_scores(frames: Iterable[FrameScores], protocol: Protocol) -> dict[str, SequenceScores]:
    """Scores by sequence, or by object, as judo_2; frames without scores are left out."""
    found: dict[str, list[tuple[str, list[float] | FramePairs | np.ndarray]]] = {}
    for sequence, frame, scores in frames:
        if scores is not None:
            found.setdefault(sequence, []).append((frame, scores))
    names_of = {sequence: tuple(frame for frame, _ in scored) for sequence, scored in found.items()}
    values_of = {sequence: [values for _, values in scored] for sequence, scored in found.items()}
    if protocol.objects == SALIENCY and found:
        values_of = at_best_thresholds(values_of)
    collected = {}
    for sequence, values in values_of.items():
        names = names_of[sequence]
        if protocol.per_object:
            objects = zip(*_of_objects(values, protocol))
            rows = {f"{sequence}_{number}": both for number, both in enumerate(objects, 1)}
        elif protocol.objects == WHOLE_VIDEO:
            video = _of_video(values)
            rows = {} if video is None else {sequence: video}
        else:
            rows = {sequence: np.array(values).T.copy()}
        for row, columns in rows.items():
            collected[row] = SequenceScores(names, dict(zip(protocol.measures, columns)))
    return collected


def _of_objects(frames: Sequence[FramePairs], protocol: Protocol) -> tuple[np.ndarray, np.ndarray]:
    """J and F of the objects of a video, (K, T) each."""
    if protocol.objects == MATCHED_PER_FRAME:
        return matched_per_frame(video_pairs(frames, most=VOID))
    video = video_pairs(frames, numbered=protocol.objects == NUMBERED)
    if protocol.objects == MATCHED:
        return matched(video)
    same = np.arange(video.region.shape[1])
    return video.region[same, same], video.boundary[same, same]


def _of_video(frames: Sequence[np.ndarray]) -> np.ndarray | None:
    """FG-ARI and mIoU of a whole video from its frames' counts: (2, T), the same in all frames.

    None if it has no object.
    """
    total = np.zeros((256, 256), np.int64)
    for counts in frames:
        total[: counts.shape[0], : counts.shape[1]] += counts
    if not total[:, 1:].any():
        return None
    return np.repeat([[adjusted_rand_index(total)], [mean_iou(total)]], len(frames), axis=1)


def score_masks(
    folder: Path,
    sequences: Sequence[VideoFiles],
    protocol: Protocol,
    *,
    binarize: bool = False,
    foreground: str = BORDER,
    proposals: bool = False,
    false_alarms: dict[Path, float] | None = None,
    progress: bool = True,
) -> dict[str, SequenceScores]:
    """Score the masks ``folder/<sequence>/<frame>.png`` of the frames that count.

    A frame's name may be given with or without its sequence's (``bear_00012`` or ``00012``).
    Masks of other frames are not read.

    Args:
        binarize: as of :func:`read_result`.
        foreground: the rule of :func:`choose_foreground`, where a protocol of one object meets
            masks of several; it is printed.
        proposals: the masks hold proposals, also in videos that have only one.
        false_alarms: gets, by mask, the share of pixels that are masked where the true mask holds
            no object, whether the protocol counts such frames or not.

    Raises:
        DatasetError: before any scoring begins: masks that are missing, have another size than
            the true mask, or have an unreadable header. After it: masks that are damaged inside or
            not binary, or no frame that counts. The message counts all and lists the first ten.
    """
    if not folder.is_dir():
        raise DatasetError(f"{folder} is not a folder: expected <sequence>/<frame>.png in it")

    jobs = [(s.name, frame) for s in sequences for frame in protocol.frames_to_score(s)]
    files = list(overlap(lambda job: _find_mask(folder, *job), jobs, num_cores()))
    _refuse(folder, files)
    items = [(*job, file) for job, file in zip(jobs, files)]

    def score_all(items: Sequence[Item], score: Callable[[Item], FrameScores | Fault]) -> list:
        bar = progress_bar(
            overlap(score, items, num_cores()),
            total=len(items),
            desc="scoring",
            unit="frame",
            shown=progress,
        )
        results = list(bar)
        _refuse(folder, results)
        return results

    alarms = {} if false_alarms is None else false_alarms
    results = score_all(items, _Scorer(protocol, alarms, binarize, proposals))
    several = {sequence for sequence, _, scores in results if scores is SEVERAL}
    if several:
        print(
            f"note: masks of {len(several)} of {len(sequences)} sequences hold proposals; "
            f"{RULES[foreground]}"
        )
        items = [item for item in items if item[0] in several]
        chosen = {name: _foreground_of(name, items, protocol, foreground) for name in several}
        again = iter(score_all(items, _Scorer(protocol, alarms, chosen=chosen)))
        results = [next(again) if result[0] in several else result for result in results]
    scores = collect_scores(results, protocol)
    _check_scored(scores, sequences, protocol)
    if binarize and not any(
        values.any() for one in scores.values() for values in one.values.values()
    ):
        print("note: all scores are 0; masks that hold 0 and 1 need no --binarize")
    return scores


@dataclass(frozen=True)
class _Scorer:
    """Scores a mask: sequence, frame, and file.

    Attributes:
        protocol, false_alarms, binarize, proposals: as of :func:`score_masks`.
        chosen: the labels that are foreground, by sequence.
    """

    protocol: Protocol
    false_alarms: dict[Path, float]
    binarize: bool = False
    proposals: bool = False
    chosen: Mapping[str, np.ndarray] = field(default_factory=dict)

    def __call__(self, item: tuple[str, Frame, Path]) -> FrameScores | Fault:
        sequence, frame, path = item
        try:
            truth = read_truth(frame.mask, self.protocol)
            scores = self._scores(sequence, path, truth)
        except NotBinaryError as error:
            return _NOT_BINARY, str(error)
        except DatasetError as error:
            return _UNREADABLE, str(error)
        return sequence, frame_label(sequence, frame), scores

    def _scores(self, sequence: str, path: Path, truth: np.ndarray) -> Any:
        if sequence in self.chosen:
            labels = self.chosen[sequence][read_proposals(path)].view(np.uint8)
        else:
            labels = read_result(path, self.protocol, self.binarize)
            if self.protocol.objects == ONE and (self.proposals or labels.max() > 1):
                return SEVERAL
        if not one_object(truth).any() and (known := truth != VOID).any():
            least = 128 if self.protocol.objects == SALIENCY else 1  # of a pixel that is masked
            self.false_alarms[path] = float(np.mean(labels[known] >= least))
        return score_frame(labels, truth, self.protocol)


def _foreground_of(
    name: str, items: Sequence[tuple[str, Frame, Path]], protocol: Protocol, rule: str
) -> np.ndarray:
    """The labels of a sequence that are its foreground, bool (256,)."""
    masks = (
        (read_proposals(path), read_truth(frame.mask, protocol))
        for sequence, frame, path in items
        if sequence == name
    )
    return choose_foreground(masks, rule)


def _find_mask(folder: Path, sequence: str, frame: Frame) -> Path | Fault:
    """A frame's mask, of which the header is checked."""
    names = frame_label(sequence, frame), frame.name
    short, full = (folder / sequence / f"{name}.png" for name in names)
    path = short if short.exists() else full
    if not path.exists():
        return _MISSING, str(short)
    try:
        size, true_size = read_size(path), read_size(frame.mask)
    except DatasetError as error:
        return _UNREADABLE, str(error)
    if size != true_size:
        (height, width), (true_height, true_width) = size, true_size
        item = f"{path}: {width} x {height}, {frame.mask} {true_width} x {true_height}"
        return _OTHER_SIZE, item
    return path


def _refuse(folder: Path, results: Sequence[Path | FrameScores | Fault]) -> None:
    """Raise DatasetError if there are faults among the results."""
    problems: dict[tuple[str, str], list[str]] = {}
    for result in results:
        if isinstance(result, tuple) and len(result) == 2:
            problems.setdefault(result[0], []).append(result[1])
    if problems:
        raise DatasetError(f"{format_problems(str(folder), problems)}\nNothing was scored.")


def _check_scored(
    scores: dict[str, SequenceScores], sequences: Sequence[VideoFiles], protocol: Protocol
) -> None:
    """Print the sequences without a frame that counts; raise DatasetError if none has one."""
    scored = {protocol.sequence_of(row) for row in scores}
    without = [one.name for one in sequences if one.name not in scored]
    if not scores:
        raise DatasetError(
            f"nothing was scored: in all {len(without)} sequences no frame counts by "
            f"{protocol.name}. It leaves out frames whose ground truth is empty, or the ends of a "
            "sequence; --protocol takes other rules"
        )
    if without:
        print(
            f"note: {len(without)} of {len(sequences)} sequences have no frame that counts: "
            f"{', '.join(without)}"
        )
