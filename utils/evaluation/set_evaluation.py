"""Evaluation of a test set: masks by a network, or masks that exist; scores and a report."""

from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import torch

from datasets.file_checks import check_files
from datasets.files import write_picture
from datasets.flow.origin import compare_flow, flow_origin, note_flow
from datasets.known_sets import is_still_set, published_sequences
from datasets.layout import Frame, VideoFiles, frame_label, frames_of, video_sequences
from datasets.masks import read_labels
from datasets.problems import DatasetError
from datasets.progress import progress_bar
from models.interface import Indicator, Network
from precision import device_in_words, precision
from utils.evaluation.matching import matching_labels
from utils.evaluation.output_folder import (
    IDENTITY,
    MASKS,
    PANELS,
    begin_evaluation,
    file_version,
    is_made_here,
)
from utils.evaluation.protocols import (
    SALIENCY,
    Protocol,
    choose_protocol,
)
from utils.evaluation.results import (
    SCORES,
    Evaluation,
    count_false_alarms,
    false_alarm_line,
    score_table,
    write_evaluation,
)
from utils.evaluation.saliency import load_package
from utils.evaluation.scoring import overlap, score_masks
from utils.evaluation.segmenting import (
    FrameResult,
    Segmenter,
    means_of_indicators,
    predict_sequences,
    to_labels,
)
from utils.evaluation.soft_masks import PROBABILITIES, to_grey, write_soft_masks
from utils.evaluation.trained_network import TrainedNetwork
from utils.evaluation.validation import check_tracks
from utils.processes import Process, gather, num_cores
from utils.reports.pages import write_report
from utils.reports.pictures import draw_frame, write_mask
from utils.settings import Settings, SettingsError
from utils.training.record import fingerprint
from utils.training.run_folder import locked


@dataclass(frozen=True)
class VideoSet:
    """A set to evaluate; without any mask it is segmented and not scored."""

    name: str
    root: Path
    sequences: list[VideoFiles]
    protocol: Protocol

    @property
    def frames(self) -> list[Frame]:
        return frames_of(self.sequences)

    @property
    def is_annotated(self) -> bool:
        return any(frame.mask for frame in self.frames)


def evaluate_set(
    trained: TrainedNetwork, set_name: str, output: Path, settings: Settings, process: Process
) -> None:
    """Segment a set, then score the masks of the annotated frames.

    Writes masks, soft masks, panels, result files and a report into ``output``. The processes
    share the sequences. An evaluation that was stopped continues: finished sequences are not
    repeated.
    """
    videos = read_set(set_name, settings, process, trained.segmenter.network.needs.flow)
    if process.is_main:
        check_files(videos.frames, flow=trained.segmenter.network.needs.flow)
    flow, protocol = flow_origin(videos.root, set_name), videos.protocol
    if videos.is_annotated:
        check_tracks(trained.segmenter.network, protocol)
    saliency = videos.is_annotated and protocol.objects == SALIENCY
    if saliency:
        check_saliency(trained.segmenter.network, settings)
    used = trained.settings | {"DATA_ROOT": str(videos.root.resolve()), "PROTOCOL": protocol.name}
    used |= {
        "FOREGROUND": settings.foreground,
        "PRECISION": precision(process.device, settings.mixed_precision),
    }
    if process.is_main:
        where = device_in_words(process.device, settings.mixed_precision)
        print(f"{trained.method}, from {trained.checkpoint}, on {where}")
        compare_flow(trained.flow, flow)
    identity = {
        "checkpoint": file_version(trained.checkpoint),
        "set": set_name,
        "data": fingerprint({set_name: videos.frames}, videos.root),
        "flow": flow,
        "panel_step": settings.panel_step,
        "save": settings.save,
        "rule": protocol.rule,
        **used,
    }
    with locked(output, "evaluating into") if process.is_main else nullcontext():
        if process.is_main:
            begin_evaluation(output, identity)
        write_masks(trained.segmenter, videos.sequences, output, settings, process)
        if not process.is_main:
            return
        print(f"masks: {output / MASKS}")
        if settings.save:
            print(f"probabilities: {output / PROBABILITIES}")
        if settings.panel_step:
            print(f"panels: {output / PANELS}")
        if not videos.is_annotated:
            # The identity stays, so that a repetition knows the masks as its own.
            print(f"{set_name} has no masks, so nothing was scored")
            return
        source = {"method": trained.method, "settings": used}
        source["checkpoint"] = str(trained.checkpoint.resolve())
        source["proposals"] = not trained.segmenter.network.needs.masks
        _score(videos, output / (PROBABILITIES if saliency else MASKS), output, **source)
        (output / IDENTITY).unlink()


def evaluate_masks(
    masks: Path,
    set_name: str,
    output: Path | None,
    settings: Settings,
    binarize: bool,
    method: str | None = None,
    checkpoint: str | None = None,
) -> None:
    """Score masks that exist; without ``output`` the scores are only printed.

    ``method`` is a line for people that says where the masks are from. If the caller has made them
    in ``output``, ``checkpoint`` is what it made them with.

    Raises:
        DatasetError: the set has no masks, they do not fit, or ``output`` is another evaluation's.
    """
    videos = read_set(set_name, settings, Process(torch.device("cpu")), flow=False)
    check_files(videos.frames, flow=False)
    if not videos.is_annotated:
        raise DatasetError(f"{set_name} has no ground truth to score masks against")
    if binarize and videos.protocol.objects == SALIENCY:
        raise SettingsError("--binarize: saliency scores grey maps as they are; leave it out")
    used = {"BINARIZE": binarize, "FOREGROUND": settings.foreground}
    with locked(output, "evaluating into") if output else nullcontext():
        if output and not checkpoint and is_made_here(output):
            raise DatasetError(
                f"{output} holds the masks and the record of an evaluation; choose another "
                f"--output for the scores of {masks}"
            )
        source = {"method": method or f"masks in {masks}", "checkpoint": checkpoint}
        _score(videos, masks, output, settings=used, **source)


def read_set(set_name: str, settings: Settings, process: Process, flow: bool) -> VideoSet:
    """A set and its protocol, which is printed.

    Raises:
        DatasetError: the masks do not fit the frames, or the protocol needs more of them.
    """
    root = Path(settings.data_root)
    if is_still_set(set_name):
        raise DatasetError(
            f"{set_name} is a set of still images, and this scores videos; pretrain.py scores the "
            "images that it keeps back (PRETRAIN_VAL_SHARE)"
        )
    sequences = video_sequences(root, set_name, masks="none", flow=flow)
    annotated = [frame.mask is not None for frame in frames_of(sequences)]
    protocol, reason = choose_protocol(set_name, settings.protocol, all(annotated))
    if process.is_main and flow:
        note_flow(set_name, sequences)
    if not any(annotated):
        return VideoSet(set_name, root, sequences, protocol)
    if process.is_main:
        published = published_sequences(set_name) or 0
        if len(sequences) < published:
            print(f"note: {len(sequences)} of the {published} sequences of {set_name}")
        print(f"protocol {protocol.name}, {reason}: {protocol.rule}")
        if protocol.warning:
            print(f"warning: {protocol.warning}")
    if protocol.objects == SALIENCY:
        load_package()
    wanted = "all" if protocol.every_frame else "some"
    sequences = video_sequences(root, set_name, masks=wanted, flow=flow)
    return VideoSet(set_name, root, sequences, protocol)


def write_masks(
    segmenter: Segmenter,
    sequences: Sequence[VideoFiles],
    output: Path,
    settings: Settings,
    process: Process,
) -> None:
    """Write masks, soft masks and panels of sequences that lack some; the processes share them."""
    mine = _share_of_unfinished(sequences, output / MASKS, process)
    step = settings.panel_step
    with_panel = {frame for s in mine for frame in (s.frames[::step] if step else ())}

    indicators: dict[str, dict[str, Indicator]] = {}
    numbers: dict[str, np.ndarray] = {}  # by sequence, so that an object keeps its colour

    def labelled(result: FrameResult) -> tuple[FrameResult, np.ndarray, Any, Any]:
        probability = result.probability()
        labels = to_labels(probability, settings.threshold, settings.stretch_masks)
        soft = to_grey(probability, settings.save) if settings.save else None
        indicators[result.sequence] = result.prediction.indicators
        matched = result.sequence in numbers or result.prediction.num_objects == 1
        if result.frame.mask and not matched:
            truth = read_labels(result.frame.mask)
            numbers[result.sequence] = matching_labels(labels, truth)
        return result, labels, soft, numbers.get(result.sequence)

    def write(item: tuple[FrameResult, np.ndarray, Any, Any]) -> None:
        result, labels, soft, own_numbers = item
        frame, maps = result.frame, result.prediction.maps
        num_objects = result.prediction.num_objects
        name = Path(result.sequence, f"{frame_label(result.sequence, frame)}.png")
        if frame in with_panel:
            panel = draw_frame(frame, labels, maps, num_objects, own_numbers)
            write_picture(output / PANELS / name, panel)
        if soft is not None:
            write_soft_masks(output / PROBABILITIES / name, soft)
        write_mask(output / MASKS / name, labels, num_objects)  # last: it marks the frame as done

    results = predict_sequences(
        segmenter, mine, batch_size=settings.eval_batch_size, workers=settings.workers
    )
    bar = progress_bar(
        overlap(write, map(labelled, results), num_cores()),
        total=len(frames_of(mine)),
        desc="segmenting",
        unit="frame",
        shown=process.is_main,
    )
    for _ in bar:
        pass
    every = chain(*gather(list(indicators.values()), process))  # waits for all processes, too
    if process.is_main:
        for note in means_of_indicators(list(every))[1]:
            print(f"mean over videos: {note}")


def _share_of_unfinished(
    sequences: Sequence[VideoFiles], masks: Path, process: Process
) -> list[VideoFiles]:
    """This process's share of the sequences that lack masks."""
    finished = [
        sequence.name
        for sequence in sequences
        if len(list((masks / sequence.name).glob("*.png"))) == len(sequence.frames)
    ]
    # As the main process saw it, because other processes may have finished more since.
    finished = set(gather(finished, process)[0])
    if finished and process.is_main:
        print(f"{len(finished)} of {len(sequences)} sequences were done before")
    # By length, so that the processes end at about the same time.
    todo = sorted((s for s in sequences if s.name not in finished), key=lambda s: len(s.frames))
    return todo[process.rank :: process.world_size]


def check_saliency(network: Network, settings: Settings) -> None:
    """Check, before any work is done, that a network's results can be scored as saliency.

    Raises:
        SettingsError: soft masks are not saved, or the network has several objects.
    """
    if not network.needs.masks:
        raise SettingsError(
            "saliency scores grey maps of one object, and this network has several; --protocol "
            "davis2016 or long_videos scores its masks"
        )
    if not settings.save:
        raise SettingsError(
            "saliency scores soft masks: add --save probabilities; --protocol davis2016 or "
            "long_videos scores masks"
        )


def _score(
    videos: VideoSet,
    masks: Path,
    output: Path | None,
    *,
    settings: dict[str, Any],
    proposals: bool = False,
    **source: Any,
) -> None:
    """Score masks, write the result files, print the table, and the average as the last line."""
    alarms: dict[Path, float] = {}
    scores = score_masks(
        masks,
        videos.sequences,
        videos.protocol,
        binarize=settings.get("BINARIZE", False),
        foreground=settings["FOREGROUND"],
        proposals=proposals,
        false_alarms=alarms,
    )
    evaluation = Evaluation(
        set_name=videos.name,
        data_root=str(videos.root.resolve()),
        protocol=videos.protocol,
        masks=str(masks.resolve()),
        scores=scores,
        false_alarms=count_false_alarms(alarms.values()),
        settings=settings,
        **source,
    )
    print(score_table(evaluation))
    if line := false_alarm_line(evaluation):
        print(line)
    if output is None:
        print("(--output DIR also writes the scores, those of every frame, and a report)")
    else:
        write_evaluation(evaluation, output)
        print(f"scores: {output / SCORES}")
        print(f"report: {write_report(evaluation, output)}")
    average = evaluation.rows[-1]
    if len(evaluation.protocol.overall) < len(evaluation.protocol.measures):
        print(", ".join(f"{m} {one.mean:.4f}" for m, one in average.statistics.items()))
    else:
        print(f"{evaluation.title} {average.mean:.4f}")
