"""Validation during training: the scores that select best.pt."""

from dataclasses import replace
from itertools import chain

import numpy as np

from datasets.layout import Frame, Sequence
from datasets.pictures import read_image
from models.interface import Network
from utils.evaluation.protocols import PROTOCOLS, choose_protocol, summarise
from utils.evaluation.scoring import collect_scores, read_truth, score_frame
from utils.evaluation.segmenting import (
    Segmenter,
    SequenceFrames,
    predict_sequences,
    predict_stills,
    to_labels,
)
from utils.processes import Process, gather
from utils.reports.pictures import draw_frame, draw_iterations, draw_panels
from utils.settings import Settings
from utils.training.accounts import Validation
from utils.training.samples import input_size, make_loader, stills_of

_ALL_ANNOTATED = replace(PROTOCOLS["davis2016"], first_and_last=True, every_frame=False)


def validate_videos(
    network: Network,
    sequences: list[Sequence],
    settings: Settings,
    process: Process,
    quick: bool = False,
) -> Validation:
    """Mean J over the sequences, each the mean over its annotated frames, at their own size.

    On a set whose protocol scores several objects, it is the mean J over the objects.
    The processes share the sequences, and each gets the whole result. ``quick`` is for one batch.
    """
    protocol, _ = choose_protocol(settings.val_set, settings.protocol)
    rules = replace(_ALL_ANNOTATED, objects=protocol.objects)
    step = settings.val_frame_step
    targets = {s.name: rules.frames_to_score(s)[::step] for s in sequences}
    total = sum(map(len, targets.values()))
    mine = sequences[:1] if quick else sequences[process.rank :: process.world_size]
    if quick:
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
    scored, pictures = [], {}
    for result in results:
        frame, prediction = result.frame, result.prediction
        labels = result.labels(settings.threshold, settings.stretch_masks)
        scores = score_frame(labels, read_truth(frame.mask, rules), rules)
        scored.append((result.sequence, frame.name, scores))
        if process.is_main and not pictures:
            num_objects = prediction.num_objects
            pictures["panel"] = draw_frame(frame, labels, prediction.maps, num_objects)
            position = mine[0].frames.index(frame)
            maps = segmenter.maps_by_iteration(SequenceFrames(mine[0], segmenter), position)
            if any(maps):  # networks without slots have none
                pictures["slot maps by iteration"] = draw_iterations(read_image(frame.image), maps)
    scored = list(chain(*gather(scored, process)))
    found = collect_scores(scored, rules)
    # In the set's order, whichever process scored them.
    order = list(targets)
    found = dict(sorted(found.items(), key=lambda row: order.index(rules.sequence_of(row[0]))))
    *rows, average = summarise(found, rules)
    parts = {f"{m} {row.name}": one.mean for row in rows for m, one in row.statistics.items()}
    j, f = (average.statistics[measure].mean for measure in "JF")
    return Validation(j, {"F": f, **parts}, pictures, len(scored), total)


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
    loader = make_loader(stills_of(frames, settings, network.needs), mine, settings.workers, device)
    scores: dict[int, float] = {}
    pictures = {}
    for batch_keys, batch in zip(mine, loader):
        predictions = predict_stills(network, batch, settings.mixed_precision)
        truths = batch["labels"].numpy()
        for (_, index), prediction, truth in zip(batch_keys, predictions, truths):
            labels = to_labels(prediction.probability(truth.shape), settings.threshold)
            scores[index] = score_frame(labels, truth, _ALL_ANNOTATED)[0]
            if process.is_main and not pictures:
                image, flow = (
                    batch[name][0].permute(1, 2, 0).numpy() if name in batch else None
                    for name in ("image", "flow")
                )
                pictures["panel"] = draw_panels(
                    image, flow, labels, truth, prediction.maps, prediction.num_objects
                )
    scores = {index: j for one in gather(scores, process) for index, j in one.items()}
    mean = float(np.mean([scores[index] for index in sorted(scores)]))
    return Validation(mean, pictures=pictures, frames=len(scores), of=len(frames))
