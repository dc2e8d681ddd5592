"""Validation during training: the scores that select best.pt."""

from collections.abc import Iterable
from dataclasses import replace
from itertools import chain, groupby

import numpy as np

from datasets.layout import Frame, VideoFiles, frames_of
from datasets.pictures import read_image
from models.interface import Network
from utils.evaluation.foreground import RULES, choose_foreground
from utils.evaluation.metrics import region_similarity
from utils.evaluation.protocols import (
    MATCHED,
    MATCHED_PER_FRAME,
    ONE,
    PROTOCOLS,
    SALIENCY,
    WHOLE_VIDEO,
    Protocol,
    choose_protocol,
    summarise,
)
from utils.evaluation.scoring import FrameScores, collect_scores, read_truth, score_frame
from utils.evaluation.segmenting import (
    FrameResult,
    Segmenter,
    SequenceFrames,
    means_of_indicators,
    predict_sequences,
    predict_stills,
    to_labels,
)
from utils.processes import Process, gather
from utils.reports.pictures import draw_frame, draw_iterations, draw_panels
from utils.settings import Settings, SettingsError
from utils.training.accounts import Validation
from utils.training.samples import input_size, make_loader, stills_of

_ALL_ANNOTATED = replace(PROTOCOLS["davis2016"], first_and_last=True, every_frame=False)


def check_validation(network: Network, sequences: list[VideoFiles], settings: Settings) -> None:
    """Check that a network can be scored on the validation set. Raises SettingsError."""
    if any(frame.mask for frame in frames_of(sequences)):
        check_tracks(network, choose_protocol(settings.val_set, settings.protocol)[0])


def check_tracks(network: Network, protocol: Protocol) -> None:
    """Refuse rules that need the same object under the same number in all frames.

    Raises:
        SettingsError: the network numbers objects frame by frame, and the protocol is not
            ``per_frame_matching``.
    """
    if not network.tracks_objects and protocol.objects != MATCHED_PER_FRAME:
        raise SettingsError(
            f"the network numbers the objects of each frame anew, which {protocol.name} cannot "
            "score; add --protocol per_frame_matching"
        )


def validate_videos(
    network: Network,
    sequences: list[VideoFiles],
    settings: Settings,
    process: Process,
    quick: bool = False,
) -> Validation:
    """Mean J over the sequences, each the mean over its annotated frames, at their own size.

    On a set whose protocol scores several objects, it is the mean J over the objects. On a set
    without any mask only the network's indicators are there. The processes share the sequences, and
    each gets the whole result. ``quick`` is for one batch, or one sequence if the network looks
    ahead.
    """
    protocol, _ = choose_protocol(settings.val_set, settings.protocol)
    # Their own measures have no J.
    objects = {WHOLE_VIDEO: MATCHED, SALIENCY: ONE}.get(protocol.objects, protocol.objects)
    rules = replace(_ALL_ANNOTATED, objects=objects)
    step = settings.val_frame_step
    with_masks = any(frame.mask for sequence in sequences for frame in sequence.frames)
    targets = {
        s.name: (rules.frames_to_score(s) if with_masks else s.frames)[::step] for s in sequences
    }
    total = sum(map(len, targets.values()))
    mine = sequences[:1] if quick else sequences[process.rank :: process.world_size]
    if quick and not network.looks_ahead:
        targets = {name: frames[: settings.eval_batch_size] for name, frames in targets.items()}
    size = input_size(settings.image_size, settings.image_width)
    segmenter = Segmenter(network, size, mixed_precision=settings.mixed_precision)
    results = predict_sequences(
        segmenter,
        mine,
        batch_size=settings.eval_batch_size,
        workers=settings.workers,
        targets=targets,
    )
    scored, indicators, pictures, count = [], [], {}, 0
    for _, video in groupby(results, lambda result: result.sequence):
        video = list(video)
        labels = [one.labels(settings.threshold, settings.stretch_masks) for one in video]
        first, prediction = video[0].frame, video[0].prediction
        if process.is_main and not pictures:
            num_objects = prediction.num_objects
            pictures["panel"] = draw_frame(first, labels[0], prediction.maps, num_objects)
            position = mine[0].frames.index(first)
            maps = segmenter.maps_by_iteration(SequenceFrames(mine[0], segmenter), position)
            if any(maps):  # networks without slots have none
                pictures["slot maps by iteration"] = draw_iterations(read_image(first.image), maps)
        count += len(video)
        indicators.append(prediction.indicators)
        if with_masks:
            rule = None if network.needs.masks else settings.foreground
            scored += _score_video(video, labels, rules, rule)
    shares = gather((scored, indicators, count), process)
    numbers, notes = means_of_indicators([one for _, some, _ in shares for one in some])
    if not quick:  # in which all processes have the same frames
        count = sum(count for *_, count in shares)
    if not with_masks:
        return Validation(None, numbers, pictures, count, total, notes)
    if rules.objects == MATCHED_PER_FRAME:
        notes.append(f"matched per frame: {protocol.warning}")
    if rules.objects == ONE and not network.needs.masks:
        notes.append(RULES[settings.foreground])
    found = chain(*(some for some, _, _ in shares))
    score, parts = _means(found, list(targets), rules)
    return Validation(score, numbers | parts, pictures, count, total, notes)


def _means(
    found: Iterable[FrameScores], sequences: list[str], rules: Protocol
) -> tuple[float, dict[str, float]]:
    """Mean J, and the further scores by name, of frames that any process has scored."""
    scores = collect_scores(found, rules).items()
    # In the set's order.
    ordered = sorted(scores, key=lambda row: sequences.index(rules.sequence_of(row[0])))
    *rows, average = summarise(dict(ordered), rules)
    j, f = (average.statistics[measure].mean for measure in "JF")
    parts = {f"{m} {row.name}": one.mean for row in rows for m, one in row.statistics.items()}
    return j, {"F": f, **parts}


def _score_video(
    video: list[FrameResult], labels: list[np.ndarray], rules: Protocol, foreground: str | None
) -> list[FrameScores]:
    """The scores of a video's frames; ``foreground`` is the rule for proposals of one object."""
    truths = [read_truth(result.frame.mask, rules) for result in video]
    if rules.objects == ONE and foreground is not None:
        chosen = choose_foreground(zip(labels, truths), foreground)
        labels = [chosen[one].view(np.uint8) for one in labels]
    return [
        (result.sequence, result.frame.name, score_frame(one, truth, rules))
        for result, one, truth in zip(video, labels, truths)
    ]


def validate_stills(
    network: Network,
    frames: list[Frame],
    settings: Settings,
    process: Process,
    quick: bool = False,
) -> Validation:
    """Mean J over the images kept for validation, at the network's input size.

    The processes share the batches, and each gets the whole result. ``quick`` is for one batch.
    """
    size = settings.eval_batch_size
    keys = [(0, index) for index in range(len(frames))]
    batches = [keys[first : first + size] for first in range(0, len(keys), size)]
    mine = batches[:1] if quick else batches[process.rank :: process.world_size]
    device = next(network.parameters()).device
    loader = make_loader(stills_of(frames, settings), mine, settings.workers, device)
    scores: dict[int, float] = {}
    pictures = {}
    for batch_keys, batch in zip(mine, loader):
        predictions = predict_stills(network, batch, settings.mixed_precision)
        truths = batch["labels"].numpy()
        for (_, index), prediction, truth in zip(batch_keys, predictions, truths):
            probability = prediction.probability(truth.shape)
            labels = to_labels(probability, settings.threshold, settings.stretch_masks)
            scores[index] = region_similarity(labels, truth)
            if process.is_main and not pictures:
                image = batch["image"][0].permute(1, 2, 0).numpy()
                pictures["panel"] = draw_panels(
                    image, None, labels, truth, prediction.maps, prediction.num_objects
                )
    scores = {index: j for one in gather(scores, process) for index, j in one.items()}
    mean = float(np.mean([scores[index] for index in sorted(scores)]))
    return Validation(mean, pictures=pictures, frames=len(scores), of=len(frames))
