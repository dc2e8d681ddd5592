"""From a network and a set of sequences to scores of objects, one frame after the other."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from itertools import islice, tee
from typing import Protocol

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import default_collate

from datasets.augmentation import Size, whole_frame
from datasets.layout import Frame, VideoFiles
from datasets.pictures import read_size
from datasets.samples import TestFrames, show
from models.interface import Indicator, Network, Prediction
from models.ops import resize
from models.precision import with_weights_as
from precision import autocast, in_bfloat16
from utils.training.checkpoints import CheckpointError
from utils.training.samples import make_loader
from utils.transfer import fetch, one_ahead, send

Views = list[dict[str, Tensor]]  # for each of Segmenter.views the frames as uint8 (B, 3, S, S)
Fetched = Callable[[], tuple[Tensor, dict[str, Tensor]]]  # waits for logits and maps of a batch


class ViewedVideo(Protocol):
    """As ``models.interface.Video``, but in all views and on the CPU."""

    def __len__(self) -> int: ...

    def at(self, positions: Sequence[int]) -> Views: ...

    def __iter__(self) -> Iterator[Views]: ...


@dataclass
class FramePrediction:
    """Scores of one frame."""

    logits: list[Tensor]  # of each view, float32 (K, h, w), mirrored back
    maps: dict[str, np.ndarray]  # Prediction.maps of the first view, float32 (h, w) in [0, 1]
    # Of the video, in the first view.
    indicators: dict[str, Indicator] = field(default_factory=dict)

    @property
    def num_objects(self) -> int:
        return len(self.logits[0])

    def probability(self, size: tuple[int, int]) -> np.ndarray:
        """Probability of each object at ``size``: float32 (K, H, W), the mean over the views."""
        views = [resize(logits.unsqueeze(0), size).sigmoid()[0] for logits in self.logits]
        return (views[0] if len(views) == 1 else torch.stack(views).mean(dim=0)).numpy()


@dataclass
class FrameResult:
    """A frame of a sequence and the network's scores of it."""

    sequence: str
    frame: Frame
    prediction: FramePrediction

    def probability(self) -> np.ndarray:
        """Probability of each object at the size of the frame's image: float32 (K, H, W)."""
        return self.prediction.probability(read_size(self.frame.image))

    def labels(self, threshold: float = 0.5, stretch: bool = False) -> np.ndarray:
        """The label map (:func:`to_labels`) at the size of the frame's image."""
        return to_labels(self.probability(), threshold, stretch)


class Segmenter:
    """A network in evaluation mode, and the views in which it is shown each frame.

    With several scales or the flip, the whole video is segmented in every view, and the views'
    probabilities are averaged: test-time augmentation, the starred rows of Table 1.

    Args:
        image_size: of the network's input at scale 1. At other scales it is rounded to multiples
            of the network's ``size_step``.
        flip: show every scale mirrored too.
        recolour_flow: a mirrored flow map's colours follow its motion, as in training.
        mixed_precision: bfloat16 where it is faster, by a copy of the network as it is now.
        compile: segment by torch.compile, on a GPU with CUDA graphs.
    """

    def __init__(
        self,
        network: Network,
        image_size: Size,
        *,
        scales: Sequence[float] = (1.0,),
        flip: bool = False,
        recolour_flow: bool = True,
        mixed_precision: bool = False,
        compile: bool = False,
    ):
        self.device = next(network.parameters()).device
        if in_bfloat16(self.device, mixed_precision):
            network = with_weights_as(network, torch.bfloat16)
        self.network = network
        step = network.size_step

        def scaled(scale: float) -> Size:
            sides = (image_size,) if isinstance(image_size, int) else image_size
            sides = tuple(max(1, round(side * scale / step)) * step for side in sides)
            return sides if len(sides) == 2 else sides[0]

        self.views = [
            whole_frame(scaled(scale), mirrored)
            for scale in scales
            for mirrored in ((False, True) if flip else (False,))
        ]
        self.recolour_flow = recolour_flow
        self.mixed_precision = mixed_precision
        if compile:
            network.compile_for_inference("reduce-overhead" if self.device.type == "cuda" else None)

    @property
    def largest_side(self) -> int:
        """The longest side of the network's input over all views, in pixels."""
        return int(max(view.sides.max() for view in self.views))

    def shown(self, frames: Sequence[Frame]) -> TestFrames:
        """The frames in all views, with the flow maps if the network takes them."""
        return TestFrames(frames, self.views, self.network.needs.flow, self.recolour_flow)

    def views_of(self, image: np.ndarray, flow: np.ndarray | None) -> Views:
        """A frame and its flow map, uint8 RGB (H, W, 3), in all views, (3, S, S) each."""
        return [show(image, flow, view, self.recolour_flow) for view in self.views]

    def segment(self, video: ViewedVideo) -> Iterator[Callable[[], list[FramePrediction]]]:
        """Start the video's batches, one with each step; calling a result waits for it."""
        copies = tee(video, len(self.views))  # the views take a batch one after the other
        return self._in_step(
            self.network.segment_video(_View(video, number, batches, self.device))
            for number, batches in enumerate(copies)
        )

    def segment_stream(self, frames: Iterable[Views]) -> Iterator[FramePrediction]:
        """Predictions of frames that come one by one, in batches of one.

        A frame's prediction is returned before the next frame is read.
        """
        copies = tee(frames, len(self.views))
        predictions = self._in_step(
            self.network.segment_stream(map(partial(_sent, number, self.device), copy))
            for number, copy in enumerate(copies)
        )
        return (prediction for wait in predictions for prediction in wait())

    def _in_step(
        self, results: Iterable[Iterator[Prediction]]
    ) -> Iterator[Callable[[], list[FramePrediction]]]:
        """The predictions of all views, batch by batch."""
        results = list(results)
        while True:
            fetched: list[Fetched] = []
            indicators: dict[str, Indicator] = {}
            for geometry, predictions in zip(self.views, results):
                with inference(self.device, self.mixed_precision):
                    prediction = next(predictions, None)
                if prediction is None:
                    return
                # View by view, because CUDA graphs write their next results into the same memory.
                indicators = indicators or prediction.indicators
                fetched.append(_fetch(prediction, geometry.flip, with_maps=not fetched))
            yield lambda fetched=fetched, indicators=indicators: _of_frames(fetched, indicators)

    def maps_by_iteration(self, video: ViewedVideo, position: int) -> list[dict[str, np.ndarray]]:
        """The maps of one frame after each round; empty for networks without rounds."""
        view = _View(video, 0, iter([video.at([position])]), self.device)
        with inference(self.device, self.mixed_precision):
            rounds = self.network.maps_by_iteration(view)
        return [{name: m[0].float().cpu().numpy() for name, m in maps.items()} for maps in rounds]


@dataclass
class _View:
    """One view of a video on the network's device: a ``models.interface.Video``."""

    video: ViewedVideo
    number: int
    batches: Iterator[Views]
    device: torch.device

    def __len__(self) -> int:
        return len(self.video)

    def at(self, positions: Sequence[int]) -> dict[str, Tensor]:
        return _sent(self.number, self.device, self.video.at(positions))

    def __iter__(self) -> Iterator[dict[str, Tensor]]:
        return map(partial(_sent, self.number, self.device), self.batches)


def _sent(number: int, device: torch.device, views: Views) -> dict[str, Tensor]:
    """One of the views on the network's device."""
    return {name: send(tensor, device) for name, tensor in views[number].items()}


@dataclass
class SequenceFrames:
    """A sequence on disk as a ``ViewedVideo``."""

    sequence: VideoFiles
    segmenter: Segmenter
    batches: Iterable[Views] = ()

    def __len__(self) -> int:
        return len(self.sequence.frames)

    def at(self, positions: Sequence[int]) -> Views:
        chosen = [self.sequence.frames[position] for position in positions]
        frames = self.segmenter.shown(chosen)
        with ThreadPoolExecutor(len(chosen)) as pool:
            return default_collate(list(pool.map(frames.__getitem__, range(len(chosen)))))

    def __iter__(self) -> Iterator[Views]:
        return iter(self.batches)


def predict_sequences(
    segmenter: Segmenter,
    sequences: Sequence[VideoFiles],
    *,
    batch_size: int = 4,
    workers: int = 0,
    targets: Mapping[str, Sequence[Frame]] | None = None,
) -> Iterator[FrameResult]:
    """The results of every frame in order, or of the ``targets`` by sequence name alone.

    If the network looks ahead, all frames are segmented, so that targets get the masks of the whole
    video. Otherwise memory does not grow with the length of a sequence. The network is one batch
    ahead of the results, so that a GPU computes the next one while they are used.
    ``workers`` is the number of loader processes; 0 loads in this one.
    """
    frames: list[Frame] = []
    batches: list[list[list[int]]] = []  # of each sequence
    whole = targets is None or segmenter.network.looks_ahead  # which sees other frames' objects
    for sequence in sequences:
        start = len(frames)
        frames += sequence.frames if whole else targets[sequence.name]
        numbers = list(range(start, len(frames)))
        firsts = range(0, len(numbers), batch_size)
        batches.append([numbers[first : first + batch_size] for first in firsts])
    loader = make_loader(
        segmenter.shown(frames),
        [batch for some in batches for batch in some],
        workers,
        segmenter.device,
    )

    def begun() -> Iterator[Callable[[], list[FrameResult]]]:
        loaded = iter(loader)
        for sequence, some in zip(sequences, batches):
            if not some:
                continue
            video = SequenceFrames(sequence, segmenter, islice(loaded, len(some)))
            for numbers, wait in zip(some, segmenter.segment(video)):
                yield lambda name=sequence.name, numbers=numbers, wait=wait: [
                    FrameResult(name, frames[number], prediction)
                    for number, prediction in zip(numbers, wait())
                ]

    for results in one_ahead(begun()):
        for result in results:
            if targets is None or result.frame in targets[result.sequence]:
                yield result


def predict_stills(
    network: Network, batch: dict[str, Tensor], mixed_precision: bool = False
) -> list[FramePrediction]:
    """The predictions of a batch of ``datasets.samples.StillImages``."""
    device = next(network.parameters()).device
    sent = {name: send(tensor, device) for name, tensor in batch.items()}
    with inference(device, mixed_precision):
        return _of_frames([_fetch(network.predict(sent))], {})


def to_labels(probability: np.ndarray, threshold: float = 0.5, stretch: bool = False) -> np.ndarray:
    """Probabilities (K, H, W) in [0, 1] to a label map, uint8 (H, W): 0 background, 1 to K.

    A pixel belongs to the most probable object if its probability is above the threshold.
    ``stretch`` first stretches the frame's probabilities to [0, 1], as the authors' release does;
    then every frame has some foreground.

    Raises:
        CheckpointError: a probability is not a number.
    """
    probability = check_numbers(probability)
    if stretch:
        low, high = probability.min(), probability.max()
        probability = (probability - low) / max(high - low, 1e-8)
    if len(probability) == 1:  # faster
        return (probability[0] > threshold).astype(np.uint8)
    best = probability.argmax(axis=0)
    return np.where(probability.max(axis=0) > threshold, best + 1, 0).astype(np.uint8)


def check_numbers(probability: np.ndarray) -> np.ndarray:
    """The probabilities. Raises CheckpointError if one of them is not a number."""
    if np.isnan(probability).any():
        raise CheckpointError(
            "the network's probabilities are not numbers (NaN), so its training went wrong; "
            "evaluate an earlier checkpoint, or train again with a lower LEARNING_RATE"
        )
    return probability


def means_of_indicators(videos: list[dict[str, Indicator]]) -> tuple[dict[str, float], list[str]]:
    """The means over the videos by name, and each in words, with advice if it is too large."""
    means, notes = {}, []
    for name in videos[0] if videos else ():
        indicators = [video[name] for video in videos if name in video]
        means[name] = float(np.mean([indicator.value for indicator in indicators]))
        notes.append(f"{name} {means[name]:.1f}")
        if means[name] > indicators[0].limit:
            notes[-1] += f", more than {indicators[0].limit:g}: {indicators[0].advice}"
    return means, notes


@contextmanager
def inference(device: torch.device, mixed_precision: bool) -> Iterator[None]:
    """Context of a forward pass without gradients, in the precision of the device."""
    with torch.inference_mode(), autocast(device, mixed_precision):
        yield


def _fetch(prediction: Prediction, mirrored: bool = False, with_maps: bool = True) -> Fetched:
    """Start to copy the finest logits and the maps of a batch to the CPU."""
    logits = prediction.logits[0].float()
    maps = prediction.maps if with_maps else {}
    wait = fetch([logits.flip(-1) if mirrored else logits, *(m.float() for m in maps.values())])

    def result() -> tuple[Tensor, dict[str, Tensor]]:
        logits, *values = wait()
        return logits, dict(zip(maps, values))

    return result


def _of_frames(fetched: list[Fetched], indicators: dict[str, Indicator]) -> list[FramePrediction]:
    """The predictions of a batch's frames from those of its views."""
    views = [wait() for wait in fetched]
    maps = {name: m.numpy() for name, m in views[0][1].items()}
    return [
        FramePrediction(
            [logits[row] for logits, _ in views],
            {name: m[row] for name, m in maps.items()},
            indicators,
        )
        for row in range(len(views[0][0]))
    ]
