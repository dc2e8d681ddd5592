"""Validation during training: the scores by which best.pt is chosen."""

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from torch import Tensor
from torch.utils.data import DataLoader

from datasets.layout import Frame, Sequence
from datasets.masks import read_mask
from datasets.pictures import read_image
from models.interface import Network
from utils.evaluation.metrics import boundary_accuracy, region_similarity
from utils.evaluation.segmenting import (
    Segmenter,
    inference,
    predict_sequences,
    sequence_frames,
    to_labels,
)
from utils.processes import Process, gather
from utils.reports.pictures import draw_iterations, draw_panels
from utils.settings import Settings
from utils.training.accounts import Validation
from utils.training.samples import make_loader, stills_of
from utils.transfer import fetch, one_ahead, send


def validate_videos(
    network: Network,
    sequences: list[Sequence],
    settings: Settings,
    process: Process,
    quick: bool = False,
) -> Validation:
    """Mean J over the sequences, each the mean over its annotated frames, at their own size.

    The processes share the sequences, and each gets the whole result. ``quick`` is for one batch.
    """
    size = settings.eval_batch_size
    targets = {
        sequence.name: [frame for frame in sequence.frames if frame.mask][
            :: settings.val_frame_step
        ]
        for sequence in sequences
    }
    total = sum(map(len, targets.values()))
    mine = sequences[:1] if quick else sequences[process.rank :: process.world_size]
    if quick:
        targets = {name: frames[:size] for name, frames in targets.items()}
    segmenter = Segmenter(network, settings.image_size, mixed_precision=settings.mixed_precision)
    results = predict_sequences(
        segmenter, mine, batch_size=size, workers=settings.workers, targets=targets
    )
    scores: dict[str, list[tuple[float, float]]] = {sequence.name: [] for sequence in mine}
    pictures = {}
    for result in results:
        frame, truth = result.frame, read_mask(result.frame.mask)
        probability = result.prediction.probability(truth.shape)
        found = to_labels(probability, settings.threshold, settings.stretch_masks) > 0
        scores[result.sequence].append(
            (region_similarity(found, truth), boundary_accuracy(found, truth))
        )
        if process.is_main and not pictures:
            image = read_image(frame.image)
            flow = None if frame.flow is None else read_image(frame.flow)
            pictures["panel"] = draw_panels(image, flow, found, truth, result.prediction.maps)
            maps = segmenter.maps_by_iteration(sequence_frames(segmenter, mine[0], frame))
            if any(maps):  # networks without slots have none
                pictures["slot maps by iteration"] = draw_iterations(image, maps)
    scores = {name: pairs for one in gather(scores, process) for name, pairs in one.items()}
    means = {name: np.mean(scores[name], axis=0) for name in targets if scores.get(name)}
    parts = {f"{m} {name}": float(v) for name, pair in means.items() for m, v in zip("JF", pair)}
    j, f = np.mean(list(means.values()), axis=0)
    frames = sum(map(len, scores.values()))
    return Validation(float(j), {"F": float(f), **parts}, pictures, frames, total)


def validate_stills(
    network: Network,
    frames: list[Frame],
    settings: Settings,
    process: Process,
    quick: bool = False,
) -> Validation:
    """Mean J over the images kept back, at the network's input size.

    The processes share the batches, and each gets the whole result. ``quick`` is for one batch.
    """
    size = settings.eval_batch_size
    keys = [(0, index) for index in range(len(frames))]
    batches = [keys[first : first + size] for first in range(0, len(keys), size)]
    mine = batches[:1] if quick else batches[process.rank :: process.world_size]
    device = next(network.parameters()).device
    dataset = stills_of(frames, settings, network.needs)
    loader = make_loader(dataset, mine, settings.workers, device)
    scores: dict[int, float] = {}
    pictures = {}
    predicted = predict_stills(network, loader, settings.mixed_precision)
    for keys_of_batch, (batch, probabilities, maps) in zip(mine, predicted):
        truths = (batch["labels"] > 0).numpy()
        found = (probabilities > settings.threshold).any(dim=1).numpy()
        for (_, index), one, truth in zip(keys_of_batch, found, truths):
            scores[index] = region_similarity(one, truth)
        if process.is_main and not pictures:
            image, flow = (
                batch[name][0].permute(1, 2, 0).numpy() if name in batch else None
                for name in ("image", "flow")
            )
            first = {name: values[0].numpy() for name, values in maps.items()}
            pictures["panel"] = draw_panels(image, flow, found[0], truths[0], first)
    scores = {index: j for one in gather(scores, process) for index, j in one.items()}
    mean = float(np.mean([scores[index] for index in sorted(scores)]))
    return Validation(mean, pictures=pictures, frames=len(scores), of=len(frames))


def predict_stills(
    network: Network, batches: DataLoader, mixed_precision: bool = False
) -> Iterator[tuple[dict[str, Tensor], Tensor, dict[str, Tensor]]]:
    """Each batch of stage 1's samples with its probabilities, (B, K, S, S), and the network's maps.

    ``batches`` gives the samples of ``datasets.samples.StillImages``; results are on the CPU.
    """
    device = next(network.parameters()).device

    def begun() -> Iterator[Callable[[], Any]]:
        for batch in batches:
            sent = {name: send(x, device) for name, x in batch.items()}
            with inference(device, mixed_precision):
                prediction = network.predict(sent)
            probability = prediction.logits[0].float().sigmoid()
            names, maps = list(prediction.maps), [m.float() for m in prediction.maps.values()]
            fetched = fetch([probability, *maps])

            def result(batch=batch, names=names, fetched=fetched):
                probability, *maps = fetched()
                return batch, probability, dict(zip(names, maps))

            yield result

    yield from one_ahead(begun())
