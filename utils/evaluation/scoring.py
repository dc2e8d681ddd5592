"""Scores of masks on all cores, and the checks that masks from elsewhere must pass first."""

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from collections.abc import Sequence as Items
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

import numpy as np

from datasets.layout import Frame, Sequence, frame_label
from datasets.masks import NotBinaryError, read_binary_mask, read_mask
from datasets.pictures import IMAGE_SUFFIXES, read_size
from datasets.problems import DatasetError, format_problems
from datasets.progress import progress_bar
from utils.evaluation.metrics import MEASURES
from utils.evaluation.protocols import Protocol, SequenceScores
from utils.processes import num_cores

Item, Result = TypeVar("Item"), TypeVar("Result")
Problem = tuple[tuple[str, str], str]  # (what is wrong, what to do), which file

_NOT_BINARY = (
    "mask that is not binary",
    "write 0 and one other value, or pass --binarize, which cuts grey masks at 0.5",
)
_UNREADABLE = "file that cannot be read", "replace it"
_OTHER_SIZE = (
    "mask of another size than the ground truth",
    "write each mask at its frame's size",
)


def overlap(
    function: Callable[[Item], Result], items: Iterable[Item], workers: int
) -> Iterator[Result]:
    """``function`` of each item, in order, computed by threads while later items are made.

    At most twice as many items as workers wait at a time, so memory stays bounded. Threads are
    enough because what is done to masks (reading, OpenCV, NumPy) gives other threads way.

    Raises:
        Whatever ``function`` or ``items`` raise; what has not begun then is dropped.
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


def score_frame(
    mask: np.ndarray, truth: np.ndarray, protocol: Protocol
) -> tuple[float, ...] | None:
    """The protocol's measures of one mask against the true one, both (H, W).

    None where the true one holds no object and the protocol leaves such frames out.
    """
    if not protocol.empty_truths and not truth.any():
        return None
    return tuple(MEASURES[measure](mask, truth) for measure in protocol.measures)


def collect_scores(
    frames: Iterable[tuple[str, str, tuple[float, ...] | None]], measures: Items[str]
) -> dict[str, SequenceScores]:
    """Scores by sequence from ``(sequence, frame, scores)``; frames without scores are left out."""
    found: dict[str, list[tuple[str, tuple[float, ...]]]] = {}
    for sequence, frame, scores in frames:
        if scores is not None:
            found.setdefault(sequence, []).append((frame, scores))
    return {
        sequence: SequenceScores(
            tuple(frame for frame, _ in scored),
            {
                measure: np.array([scores[column] for _, scores in scored])
                for column, measure in enumerate(measures)
            },
        )
        for sequence, scored in found.items()
    }


def score_masks(
    folder: Path,
    sequences: Items[Sequence],
    protocol: Protocol,
    *,
    binarize: bool = False,
    progress: bool = True,
) -> dict[str, SequenceScores]:
    """Score the masks ``folder/<sequence>/<frame>.png`` of the frames that count.

    A frame's name may be given with or without its sequence's (``bear_00012`` or ``00012``). Masks
    of other frames are not read. Names and sizes are checked before anything is scored. Once
    something is wrong, the masks that are left are read and no longer scored.

    Args:
        folder: of the masks; they may have one value besides 0, or a palette with one entry
            besides the first.
        sequences: of the set, with masks on the annotated frames.
        protocol: the set's rules, which say what frames count.
        binarize: take what lies above the middle of grey masks as foreground.
        progress: show a progress bar.

    Raises:
        DatasetError: masks that are missing, belong to no frame, are not binary, are of another
            size than the ground truth, or cannot be read; the message has all of them. No frame
            counts, because all ground truth is empty.
    """
    found, problems = _find_masks(folder, sequences, protocol)
    jobs = []
    for job in found:
        if (problem := _size_problem(job[2], job[1].mask)) is None:
            jobs.append(job)
        else:
            problems.setdefault(problem[0], []).append(problem[1])

    def score(job: tuple[str, Frame, Path]) -> tuple[str, str, tuple[float, ...] | None] | Problem:
        sequence, frame, path = job
        scores = None
        try:
            mask = read_binary_mask(path, binarize)
            if not problems:
                scores = score_frame(mask, read_mask(frame.mask), protocol)
        except NotBinaryError as error:
            return _NOT_BINARY, str(error)
        except DatasetError as error:
            return _UNREADABLE, str(error)
        nonlocal some_foreground
        some_foreground |= bool(mask.any())
        return sequence, frame_label(sequence, frame), scores

    some_foreground = False
    results = []
    bar = progress_bar(
        overlap(score, jobs, num_cores()),
        total=len(jobs),
        desc="checking masks" if problems else "scoring",
        unit="frame",
        shown=progress,
    )
    for result in bar:
        if len(result) == 2:
            problems.setdefault(result[0], []).append(result[1])
        else:
            results.append(result)
    if problems:
        raise DatasetError(f"{format_problems(str(folder), problems)}\nNothing was scored.")
    if binarize and not some_foreground:
        raise DatasetError(
            f"{folder}: no mask lies above one half of its range (127 of 255, or 32767 of 65535 "
            "with 16 bits) anywhere. Are these numbers of objects? Write 0 and 255 then. Nothing "
            "was scored."
        )
    scores = collect_scores(results, protocol.measures)
    check_scored(scores, sequences, protocol)
    return scores


def check_scored(
    scores: Mapping[str, SequenceScores], sequences: Items[Sequence], protocol: Protocol
) -> None:
    """Say which annotated sequences have no frame that counts.

    Raises:
        DatasetError: none has one.
    """
    without = [one.name for one in sequences if one.name not in scores]
    if not scores:
        raise DatasetError(
            f"the ground truth of all {len(without)} sequences is empty, and {protocol.name} "
            "leaves such frames out: nothing was scored"
        )
    if without:
        print(
            f"note: {len(without)} of {len(sequences)} sequences do not count, because their "
            f"ground truth is empty: {', '.join(without)}"
        )


def _find_masks(
    folder: Path, sequences: Items[Sequence], protocol: Protocol
) -> tuple[list[tuple[str, Frame, Path]], dict[tuple[str, str], list[str]]]:
    """The masks of the frames that count, as (sequence, frame, file), and what is wrong."""
    if not folder.is_dir():
        raise DatasetError(
            f"{folder} is not a folder: expected the masks as <sequence>/<frame>.png in it"
        )
    problems: dict[tuple[str, str], list[str]] = {}
    found = []
    expected = {sequence.name for sequence in sequences}
    for name in sorted(path.name for path in folder.iterdir() if path.is_dir()):
        if name not in expected and not name.startswith("."):
            kind = "folder that is no sequence of the set", "remove it, or pass the right --set"
            problems.setdefault(kind, []).append(str(folder / name))
    for sequence in sequences:
        masks = folder / sequence.name
        files = {path.name for path in masks.iterdir()} if masks.is_dir() else set()
        wanted = set(protocol.frames_to_score(sequence))
        for frame in sequence.frames:
            names = [f"{frame_label(sequence.name, frame)}.png", f"{frame.name}.png"]
            present = [name for name in dict.fromkeys(names) if name in files]
            files -= set(present)
            if len(present) > 1:
                kind = "mask that is there twice", "keep one of the two"
                problems.setdefault(kind, []).append(f"{masks / present[0]} and {present[1]}")
            elif present and frame in wanted:
                found.append((sequence.name, frame, masks / present[0]))
            elif not present and frame in wanted:
                kind = "mask that is missing", "write one for each frame that counts"
                problems.setdefault(kind, []).append(str(masks / names[0]))
        for name in sorted(files):
            if Path(name).suffix.lower() in IMAGE_SUFFIXES and not name.startswith("."):
                kind = "mask of no frame of the set", "remove it, or name it <frame>.png"
                problems.setdefault(kind, []).append(str(masks / name))
    if not found:
        inside = sorted(path.name for path in folder.iterdir())
        raise DatasetError(
            f"{folder} holds no mask of the set: expected <sequence>/<frame>.png, as "
            f"{folder / sequences[0].name / frame_label(sequences[0].name, sequences[0].frames[0])}"
            f".png; there is {', '.join(inside[:5]) or 'nothing'}"
            + (f", ... and {len(inside) - 5} more" if len(inside) > 5 else "")
        )
    return found, problems


def _size_problem(mask: Path, truth: Path) -> Problem | None:
    try:
        (height, width), (true_height, true_width) = read_size(mask), read_size(truth)
    except DatasetError as error:
        return _UNREADABLE, str(error)
    if (height, width) == (true_height, true_width):
        return None
    return _OTHER_SIZE, f"{mask}: {width} x {height}, {truth} {true_width} x {true_height}"
