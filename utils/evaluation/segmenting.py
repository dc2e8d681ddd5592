"""From a network and a set of sequences to scores of objects, one frame after the other."""

from collections.abc import Callable, Iterator, Mapping
from collections.abc import Sequence as Items
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice, tee
from typing import Protocol

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, default_collate

from datasets.augmentation import whole_frame
from datasets.layout import Frame, Sequence
from datasets.samples import TestFrames
from models.interface import Network
from models.ops import resize
from models.precision import with_weights_as
from utils.processes import num_cores
from utils.training.checkpoints import CheckpointError
from utils.training.interrupts import prepare_loader_process
from utils.transfer import fetch, one_ahead, send

Views = list[dict[str, Tensor]]  # for each of Segmenter.views the frames as uint8 (B, 3, S, S)


class ViewedVideo(Protocol):
    """A video in all views, on the CPU; otherwise as ``models.interface.Video``."""

    def __len__(self) -> int:
        """Number of frames of the whole video."""

    def at(self, positions: Items[int]) -> Views:
        """The frames at these positions of the whole video."""

    def __iter__(self) -> Iterator[Views]:
        """Batches of the frames that are to be segmented, in order."""


@dataclass
class FramePrediction:
    """Scores of one frame.

    Attributes:
        logits: of the K objects, float32 (K, h, w) at the network's input size; one for each view,
            mirrored back where the view is mirrored.
        maps: ``Prediction.maps`` of the first view, float32 (h', w') in [0, 1].
    """

    logits: list[Tensor]
    maps: dict[str, np.ndarray]

    @property
    def num_objects(self) -> int:
        """K."""
        return len(self.logits[0])

    def probability(self, size: tuple[int, int]) -> np.ndarray:
        """Probability of each object at ``size``, the frame's own: float32 (K, H, W) in [0, 1].

        The mean over the views.
        """
        views = [resize(logits.unsqueeze(0), size).sigmoid()[0] for logits in self.logits]
        return (views[0] if len(views) == 1 else torch.stack(views).mean(dim=0)).numpy()


@dataclass
class FrameResult:
    """A frame of a sequence and the network's scores of it."""

    sequence: str
    frame: Frame
    prediction: FramePrediction


class Segmenter:
    """A network, and the views in which it is shown each frame.

    With several scales or the flip, the whole video is segmented in every view, and the views'
    probabilities are averaged: test-time augmentation, the starred rows of Table 1.

    Args:
        network: in evaluation mode.
        image_size: side of the square network input in pixels at scale 1.
        scales: of the input; its side is rounded to a multiple of the network's ``size_step``.
        flip: show every scale mirrored too.
        recolour_flow: a mirrored flow map's colours follow its motion, as in training.
        mixed_precision: bfloat16 on a GPU, by a copy of the network as it is now.
        compile: segment by torch.compile, on a GPU with CUDA graphs.
    """

    def __init__(
        self,
        network: Network,
        image_size: int,
        *,
        scales: Items[float] = (1.0,),
        flip: bool = False,
        recolour_flow: bool = True,
        mixed_precision: bool = False,
        compile: bool = False,
    ):
        self.device = next(network.parameters()).device
        if mixed_precision and self.device.type == "cuda":
            network = with_weights_as(network, torch.bfloat16)
        self.network = network
        step = network.size_step
        self.views = [
            whole_frame(max(1, round(image_size * scale / step)) * step, mirrored)
            for scale in scales
            for mirrored in ((False, True) if flip else (False,))
        ]
        self.recolour_flow = recolour_flow
        self.mixed_precision = mixed_precision
        if compile:
            network.compile_for_inference("reduce-overhead" if self.device.type == "cuda" else None)

    def segment(self, video: ViewedVideo) -> Iterator[Callable[[], list[FramePrediction]]]:
        """Begin to segment the video's batches, one with each step.

        Calling a result waits for the predictions of the batch's frames, on the CPU.
        """
        copies = tee(video, len(self.views))  # the views take a batch one after the other
        results = [
            self.network.segment_video(_View(video, number, batches, self.device))
            for number, batches in enumerate(copies)
        ]
        while True:
            fetched, names = [], []
            for geometry, predictions in zip(self.views, results):
                with inference(self.device, self.mixed_precision):
                    prediction = next(predictions, None)
                if prediction is None:
                    return
                finest = prediction.logits[0].float()
                wanted = [finest.flip(-1) if geometry.flip else finest]
                if not fetched:
                    names = list(prediction.maps)
                    wanted += [m.float() for m in prediction.maps.values()]
                # View by view: CUDA graphs write their next results where these are.
                fetched.append(fetch(wanted))
            yield lambda fetched=fetched, names=names: _of_frames(fetched, names)

    def maps_by_iteration(self, video: ViewedVideo) -> list[dict[str, np.ndarray]]:
        """The maps of the video's first frame after each round, float32 (h, w) in [0, 1] by name.

        None at all for networks without rounds.
        """
        with inference(self.device, self.mixed_precision):
            rounds = self.network.maps_by_iteration(_View(video, 0, iter(video), self.device))
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

    def at(self, positions: Items[int]) -> dict[str, Tensor]:
        return self._sent(self.video.at(positions))

    def __iter__(self) -> Iterator[dict[str, Tensor]]:
        return map(self._sent, self.batches)

    def _sent(self, views: Views) -> dict[str, Tensor]:
        return {name: send(tensor, self.device) for name, tensor in views[self.number].items()}


def _of_frames(
    fetched: list[Callable[[], list[Tensor]]], names: list[str]
) -> list[FramePrediction]:
    numbers = [wait() for wait in fetched]
    maps = {name: m.numpy() for name, m in zip(names, numbers[0][1:])}
    return [
        FramePrediction(
            [view[0][row] for view in numbers], {name: m[row] for name, m in maps.items()}
        )
        for row in range(len(numbers[0][0]))
    ]


@dataclass
class SequenceFrames:
    """A sequence on disk as a ``ViewedVideo``.

    Attributes:
        sequence: with flow maps, if the network takes them.
        segmenter: has the views.
        batches: of the frames to segment.
    """

    sequence: Sequence
    segmenter: Segmenter
    batches: Iterator[Views]

    def __len__(self) -> int:
        return len(self.sequence.frames)

    def at(self, positions: Items[int]) -> Views:
        chosen = [self.sequence.frames[position] for position in positions]
        frames = TestFrames(chosen, self.segmenter.views, self.segmenter.recolour_flow)
        with ThreadPoolExecutor(len(chosen)) as pool:
            return default_collate(list(pool.map(frames.__getitem__, range(len(chosen)))))

    def __iter__(self) -> Iterator[Views]:
        return self.batches


def sequence_frames(segmenter: Segmenter, sequence: Sequence, *frames: Frame) -> SequenceFrames:
    """A sequence of which some frames are to be segmented, each as a batch of its own."""
    shown = TestFrames(frames, segmenter.views, segmenter.recolour_flow)
    return SequenceFrames(sequence, segmenter, (default_collate([view]) for view in shown))


def predict_sequences(
    segmenter: Segmenter,
    sequences: Items[Sequence],
    *,
    batch_size: int = 4,
    workers: int = 0,
    targets: Mapping[str, Items[Frame]] | None = None,
) -> Iterator[FrameResult]:
    """Segment every frame of every sequence, in order.

    Memory does not grow with the length of a sequence, unless the network looks ahead. The network
    is one batch ahead of the results, so that a GPU computes the next one while they are used.

    Args:
        segmenter: the network.
        sequences: with flow maps, if the network takes them.
        batch_size: frames that go through the network together.
        workers: loader processes; 0 loads here.
        targets: only these frames, by the sequence's name.
    """
    frames: list[Frame] = []
    batches: list[list[int]] = []
    parts: list[tuple[Sequence, int]] = []  # each sequence with its number of batches
    for sequence in sequences:
        start = len(frames)
        frames += sequence.frames if targets is None else targets[sequence.name]
        firsts = range(start, len(frames), batch_size)
        batches += [list(range(first, min(first + batch_size, len(frames)))) for first in firsts]
        parts.append((sequence, len(firsts)))
    loader = DataLoader(
        TestFrames(frames, segmenter.views, segmenter.recolour_flow),
        batch_sampler=batches,
        num_workers=min(workers, num_cores()),
        pin_memory=segmenter.device.type == "cuda",
        worker_init_fn=prepare_loader_process,
    )

    def begun() -> Iterator[Callable[[], list[FrameResult]]]:
        loaded, order = iter(loader), iter(batches)
        for sequence, count in parts:
            if not count:
                continue
            video = SequenceFrames(sequence, segmenter, islice(loaded, count))
            for indices, wait in zip(islice(order, count), segmenter.segment(video)):
                yield lambda name=sequence.name, indices=indices, wait=wait: [
                    FrameResult(name, frames[index], prediction)
                    for index, prediction in zip(indices, wait())
                ]

    for results in one_ahead(begun()):
        yield from results


def to_labels(probability: np.ndarray, threshold: float = 0.5, stretch: bool = False) -> np.ndarray:
    """Probabilities (K, H, W) in [0, 1] to a label map, uint8 (H, W): 0 background, 1 to K.

    Args:
        probability: of each object.
        threshold: a pixel is the most probable object's if its probability lies above this.
        stretch: first stretch the frame's probabilities to [0, 1], as the authors' release does;
            then every frame has some foreground.

    Raises:
        CheckpointError: a probability is not a number.
    """
    if np.isnan(probability).any():
        raise CheckpointError(
            "the network's probabilities are not numbers (NaN), so they give no mask. Its weights "
            "are of a training that went wrong; evaluate an earlier checkpoint, or train again "
            "with a lower LEARNING_RATE"
        )
    if stretch:
        low, high = probability.min(), probability.max()
        probability = (probability - low) / max(high - low, 1e-8)
    if len(probability) == 1:
        return (probability[0] > threshold).astype(np.uint8)
    best = probability.argmax(axis=0)
    above = np.take_along_axis(probability, best[None], axis=0)[0] > threshold
    return np.where(above, best + 1, 0).astype(np.uint8)


@contextmanager
def inference(device: torch.device, mixed_precision: bool) -> Iterator[None]:
    """Context of a forward pass without gradients, in bfloat16 on GPUs if wanted."""
    enabled = mixed_precision and device.type == "cuda"
    with torch.inference_mode(), torch.autocast(device.type, torch.bfloat16, enabled=enabled):
        yield
