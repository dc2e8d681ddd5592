"""Segmenting and scoring a test set: by several processes, and going on where it was stopped.

While it is under way, the output folder holds ``.parts``: what the evaluation is, and the scores of
the sequences that are done.
"""

import json
import shutil
from collections.abc import Iterator
from collections.abc import Sequence as Items
from pathlib import Path
from typing import Any

import numpy as np

from datasets.files import write_picture, write_text
from datasets.layout import Sequence, frame_label
from datasets.masks import read_mask
from datasets.pictures import read_image, read_size
from datasets.problems import DatasetError
from datasets.progress import progress_bar
from utils.evaluation.protocols import Protocol, SequenceScores
from utils.evaluation.results import RECORD, remove_evaluation
from utils.evaluation.scoring import collect_scores, overlap, score_frame
from utils.evaluation.segmenting import FrameResult, Segmenter, predict_sequences, to_labels
from utils.processes import Process, gather, num_cores, wait_for_all
from utils.reports.pictures import draw_panels, write_mask

MASKS, PANELS = "masks", "panels"
_PARTS, _WHAT = ".parts", "evaluation.json"

FrameScores = tuple[str, str, tuple[float, ...] | None]  # sequence, frame, by measure


def evaluate_sequences(
    segmenter: Segmenter,
    sequences: Items[Sequence],
    protocol: Protocol,
    output: Path,
    process: Process,
    what: dict[str, Any],
    *,
    batch_size: int = 4,
    workers: int = 0,
    threshold: float = 0.5,
    stretch: bool = False,
    panel_step: int = 1,
) -> dict[str, SequenceScores]:
    """Write masks and panels of every frame; the main process gets the scores of those that count.

    The processes share the sequences. Sequences that an evaluation of the same kind has finished
    before it was stopped are not done again; what another evaluation left in the folder is removed.

    Args:
        segmenter: the network.
        sequences: of the set, with flow maps if the network takes them.
        protocol: says which frames count, and which measures are wanted.
        output: folder; gets ``masks/<sequence>/<frame>.png`` and ``panels``.
        process: this process.
        what: tells this evaluation from others: network, settings; values that JSON can hold.
        batch_size, workers: of ``predict_sequences``.
        threshold, stretch: of ``to_labels``.
        panel_step: a panel is drawn of every n-th frame of a sequence; 0 draws none.

    Raises:
        DatasetError: ``output/masks`` holds something that no evaluation has made.
    """
    parts = output / _PARTS
    if process.is_main:
        _begin(output, json.loads(json.dumps(what, default=str)))
    finished = [
        s.name
        for s in sequences
        if (parts / f"{s.name}.json").is_file() and (output / MASKS / s.name).is_dir()
    ]
    # As the main process saw it: by the time that another looks, more may be finished.
    finished = set(gather(finished, process)[0])
    todo = [s for s in sequences if s.name not in finished]
    # By length, so that the processes end at about the same time.
    shares = sorted(todo, key=lambda s: len(s.frames))
    mine = sorted(shares[process.rank :: process.world_size], key=sequences.index)
    counting = {frame for s in mine for frame in protocol.frames_to_score(s)}
    with_panel = {frame for s in mine for frame in (s.frames[::panel_step] if panel_step else ())}

    def masks() -> Iterator[tuple[FrameResult, np.ndarray]]:
        results = predict_sequences(segmenter, mine, batch_size=batch_size, workers=workers)
        for result in results:
            probability = result.prediction.probability(read_size(result.frame.image))
            yield result, to_labels(probability, threshold, stretch)

    def finish(item: tuple[FrameResult, np.ndarray]) -> FrameScores:
        result, labels = item
        frame, label = result.frame, frame_label(result.sequence, result.frame)
        truth = None if frame.mask is None else read_mask(frame.mask)
        path = output / MASKS / result.sequence / f"{label}.png"
        write_mask(path, labels, result.prediction.num_objects)
        if frame in with_panel:
            panel = draw_panels(
                read_image(frame.image),
                None if frame.flow is None else read_image(frame.flow),
                labels > 0,
                truth,
                result.prediction.maps,
            )
            write_picture(output / PANELS / result.sequence / f"{label}.png", panel)
        scores = score_frame(labels > 0, truth, protocol) if frame in counting else None
        return result.sequence, label, scores

    lengths = {sequence.name: len(sequence.frames) for sequence in mine}
    if finished and process.is_main:
        print(f"{len(finished)} of {len(sequences)} sequences were done before")
    done: dict[str, list[FrameScores]] = {name: [] for name in lengths}
    bar = progress_bar(
        overlap(finish, masks(), num_cores()),
        total=sum(lengths.values()),
        desc="segmenting",
        unit="frame",
        shown=process.is_main,
    )
    for scored in bar:
        name = scored[0]
        done[name].append(scored)
        if len(done[name]) == lengths[name]:
            write_text(parts / f"{name}.json", json.dumps(done.pop(name)))
    wait_for_all(process)
    if not process.is_main:
        return {}
    results = [
        (sequence, frame, None if scores is None else tuple(scores))
        for one in sequences
        for sequence, frame, scores in json.loads((parts / f"{one.name}.json").read_text())
    ]
    return collect_scores(results, protocol.measures)


def finish_evaluation(output: Path) -> None:
    """Remove what was only needed to go on."""
    shutil.rmtree(output / _PARTS, ignore_errors=True)


def _begin(output: Path, what: dict[str, Any]) -> None:
    """Make ready for this evaluation; what it has done before stays, other results go."""
    known = output / _PARTS / _WHAT
    try:
        same = json.loads(known.read_text(encoding="utf-8")) == what
    except (OSError, ValueError):
        same = False
    if same:
        return
    masks = output / MASKS
    ours = known.is_file() or (output / RECORD).is_file()
    if not ours and masks.is_dir() and any(masks.iterdir()):
        raise DatasetError(
            f"{masks} holds files that no evaluation has made; choose another --output, or remove "
            "that folder"
        )
    if ours:
        for folder in (masks, output / PANELS, output / _PARTS):
            shutil.rmtree(folder, ignore_errors=True)
    remove_evaluation(output)
    known.parent.mkdir(parents=True, exist_ok=True)
    write_text(known, json.dumps(what, indent=1))


def check_folder(output: Path) -> None:
    """Refuse, before any work is done, a folder that results cannot go to.

    Raises:
        DatasetError: it is a file, or lies in one.
    """
    for folder in (output, *output.parents):
        if folder.exists() and not folder.is_dir():
            raise DatasetError(f"{folder} is a file; --output takes a folder, which may be missing")


def check_output(output: Path, data_root: Path, set_name: str) -> None:
    """:func:`check_folder`, and whether results would become part of the data set.

    Raises:
        DatasetError: it is a file, or lies in the data set.
    """
    check_folder(output)
    if output.resolve().is_relative_to((data_root / set_name).resolve()):
        raise DatasetError(
            f"{output} lies in the data set {data_root / set_name}, where results would be taken "
            "for sequences; choose another --output"
        )
