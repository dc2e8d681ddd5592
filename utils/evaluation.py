"""From a network and a set of sequences to probabilities, one frame after the other."""

from collections.abc import Callable, Iterator, Mapping
from collections.abc import Sequence as Items
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, default_collate

from datasets.augmentation import whole_frame
from datasets.layout import Frame, Sequence
from datasets.samples import TestFrames, uniform_references
from models.blocks import resize
from models.precision import with_weights_as
from models.prediction import References
from utils.checkpoints import CheckpointError
from utils.distributed import num_cores
from utils.interrupts import prepare_loader_process
from utils.transfer import fetch, one_ahead, send

SIZE_STEP = 32  # pixels; what the input's side must be a multiple of


@dataclass
class FramePrediction:
    """What a network says of one frame.

    Attributes:
        logits: of foreground, float32 (1, h, w) at the network's input size; one for each view,
            mirrored back where the view is mirrored.
        maps: ``Prediction.maps`` of the first view, float32 (h', w') in [0, 1].
    """

    logits: list[Tensor]
    maps: dict[str, np.ndarray]

    def probability(self, size: tuple[int, int]) -> np.ndarray:
        """Probability of foreground at ``size``, the frame's own: float32 (H, W) in [0, 1].

        The mean over the views.
        """
        views = [resize(logits.unsqueeze(0), size).sigmoid()[0, 0] for logits in self.logits]
        return (views[0] if len(views) == 1 else torch.stack(views).mean(dim=0)).numpy()


@dataclass
class FrameResult:
    """A frame of a sequence and what a network says of it."""

    sequence: str
    frame: Frame
    prediction: FramePrediction


class Segmenter:
    """A network, and the views in which it is shown each frame.

    With several scales or the flip, references and targets are shown alike in every view, and the
    views' probabilities are averaged: test-time augmentation, the starred rows of Table 1.

    Args:
        model: a network with ``encode_references`` and ``segment``, in evaluation mode. One
            without motion, as stage 1 alone makes it, is shown the frame and nothing else.
        image_size: side of the square network input in pixels at scale 1.
        scales: of the input; its side is rounded to a multiple of 32.
        flip: show every scale mirrored too.
        recolour_flow: a mirrored flow map's colours follow its motion, as in training.
        mixed_precision: bfloat16 on a GPU, by a copy of the network as it is now.
        compile: segment by torch.compile, on a GPU with CUDA graphs. References are encoded once
            per sequence, too seldom to gain from it.
    """

    def __init__(
        self,
        model: nn.Module,
        image_size: int,
        *,
        scales: Items[float] = (1.0,),
        flip: bool = False,
        recolour_flow: bool = True,
        mixed_precision: bool = False,
        compile: bool = False,
    ):
        self.device = next(model.parameters()).device
        if mixed_precision and self.device.type == "cuda":
            model = with_weights_as(model, torch.bfloat16)
        self.model = model
        self.views = [
            whole_frame(max(1, round(image_size * scale / SIZE_STEP)) * SIZE_STEP, mirrored)
            for scale in scales
            for mirrored in ((False, True) if flip else (False,))
        ]
        self.recolour_flow = recolour_flow
        self.mixed_precision = mixed_precision
        self.motion = getattr(model, "motion", True)
        self._segment = model.segment if self.motion else model
        if compile:
            mode = "reduce-overhead" if self.device.type == "cuda" else None
            self._segment = torch.compile(self._segment, mode=mode)

    def encode_references(self, views: Items[dict[str, Tensor]]) -> list[References]:
        """Reference frames of one sequence, for :meth:`segment`.

        Args:
            views: for each of ``self.views``, ``image`` and ``flow`` float (R, 3, S, S) in [0, 1].
        """
        if not self.motion:
            return [References({}) for _ in views]
        with inference(self.device, self.mixed_precision):
            return [
                self.model.encode_references(
                    send(view["image"].unsqueeze(0), self.device),
                    send(view["flow"].unsqueeze(0), self.device),
                )
                for view in views
            ]

    def segment(
        self, views: Items[dict[str, Tensor]], references: Items[References]
    ) -> Callable[[], list[FramePrediction]]:
        """Begin to segment frames of the sequence that the references are of.

        Args:
            views: for each of ``self.views``, ``image`` and ``flow`` float (B, 3, S, S) in [0, 1].
            references: from :meth:`encode_references`.

        Returns:
            What waits for a prediction of each of the B frames, on the CPU.
        """
        fetched, names = [], []
        for geometry, view, encoded in zip(self.views, views, references):
            shown = [send(view["image"], self.device)]
            if self.motion:
                flow = send(view["flow"], self.device)
                shown += [flow, encoded.expand(len(flow))]
            with inference(self.device, self.mixed_precision):
                prediction = self._segment(*shown)
            finest = prediction.logits[0].float()
            wanted = [finest.flip(-1) if geometry.flip else finest]
            if not fetched:
                names = list(prediction.maps)
                wanted += [m.float() for m in prediction.maps.values()]
            # View by view: CUDA graphs write their next results where these are.
            fetched.append(fetch(wanted))

        def predictions() -> list[FramePrediction]:
            numbers = [wait() for wait in fetched]
            maps = {name: m.numpy() for name, m in zip(names, numbers[0][1:])}
            return [
                FramePrediction(
                    [view[0][row] for view in numbers], {name: m[row] for name, m in maps.items()}
                )
                for row in range(len(numbers[0][0]))
            ]

        return predictions


def predict_sequences(
    segmenter: Segmenter,
    sequences: Items[Sequence],
    num_references: int,
    *,
    batch_size: int = 4,
    workers: int = 0,
    targets: Mapping[str, Items[Frame]] | None = None,
) -> Iterator[FrameResult]:
    """Segment every frame of every sequence, in order.

    References are taken uniformly over a sequence and encoded once. Memory does not grow with the
    length of a sequence. The network is one batch ahead of the results, so that a GPU is busy with
    the next one while they are used.

    Args:
        segmenter: the network.
        sequences: with flow maps, if the network takes them.
        num_references: N_R.
        batch_size: frames that go through the network together.
        workers: loader processes; 0 loads here.
        targets: only these frames, by the sequence's name.
    """
    names, frames, references, batches = [], [], [], []
    for sequence in sequences:
        start = len(frames)
        chosen = sequence.frames if targets is None else targets[sequence.name]
        if not chosen:
            continue
        names += [sequence.name] * len(chosen)
        frames += chosen
        batches += [
            list(range(first, min(first + batch_size, start + len(chosen))))
            for first in range(start, start + len(chosen), batch_size)
        ]
        references += [
            sequence.frames[position]
            for position in uniform_references(len(sequence.frames), num_references)
        ]
    reference_loader = iter(
        DataLoader(
            TestFrames(references, segmenter.views, segmenter.recolour_flow),
            batch_size=num_references,
            num_workers=min(workers, 1),
            worker_init_fn=prepare_loader_process,
        )
    )
    loader = DataLoader(
        TestFrames(frames, segmenter.views, segmenter.recolour_flow),
        batch_sampler=batches,
        num_workers=min(workers, num_cores()),
        pin_memory=segmenter.device.type == "cuda",
        worker_init_fn=prepare_loader_process,
    )

    def begun() -> Iterator[Callable[[], list[FrameResult]]]:
        current, encoded = None, None
        for indices, views in zip(batches, loader):
            if names[indices[0]] != current:
                current = names[indices[0]]
                encoded = segmenter.encode_references(next(reference_loader))
            predictions = segmenter.segment(views, encoded)
            yield lambda indices=indices, wait=predictions: [
                FrameResult(names[index], frames[index], prediction)
                for index, prediction in zip(indices, wait())
            ]

    for results in one_ahead(begun()):
        yield from results


def maps_by_iteration(
    segmenter: Segmenter, sequence: Sequence, frame: Frame, num_references: int
) -> list[dict[str, np.ndarray]]:
    """A frame's maps after each iteration of the network, float32 (h, w) in [0, 1] by name.

    None at all for networks without such a thing (``maps_by_iteration``).
    """
    iterate = getattr(segmenter.model, "maps_by_iteration", None)
    if iterate is None:
        return []
    view = segmenter.views[:1]
    positions = uniform_references(len(sequence.frames), num_references)
    references = [sequence.frames[position] for position in positions]
    shown = [default_collate(list(TestFrames(frames, view))) for frames in (references, [frame])]
    encoded = segmenter.encode_references(shown[0])[0]
    target = {name: send(tensor, segmenter.device) for name, tensor in shown[1][0].items()}
    with inference(segmenter.device, segmenter.mixed_precision):
        maps = iterate(target["image"], target["flow"], encoded)
    return [{name: m[0].float().cpu().numpy() for name, m in after.items()} for after in maps]


def predict_stills(
    model: nn.Module, batches: DataLoader, mixed_precision: bool = False
) -> Iterator[tuple[dict[str, Tensor], Tensor, dict[str, Tensor]]]:
    """Each batch of stage 1's samples with its probabilities, (B, 1, S, S), and the network's maps.

    ``batches`` gives what ``datasets.samples.StillImages`` does; results are on the CPU.
    """
    device = next(model.parameters()).device

    def begun() -> Iterator[Callable[[], tuple[dict[str, Tensor], Tensor, dict[str, Tensor]]]]:
        for batch in batches:
            shown = {name: send(x, device) for name, x in batch.items() if name != "mask"}
            with inference(device, mixed_precision):
                prediction = model(**shown)
            probability = prediction.logits[0].float().sigmoid()
            names, maps = list(prediction.maps), [m.float() for m in prediction.maps.values()]
            fetched = fetch([probability, *maps])

            def result(batch=batch, names=names, fetched=fetched):
                probability, *maps = fetched()
                return batch, probability, dict(zip(names, maps))

            yield result

    yield from one_ahead(begun())


def to_mask(probability: np.ndarray, threshold: float = 0.5, stretch: bool = False) -> np.ndarray:
    """Probabilities (H, W) to a mask, bool (H, W).

    Args:
        probability: in [0, 1].
        threshold: foreground is what lies above it.
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
    return probability > threshold


@contextmanager
def inference(device: torch.device, mixed_precision: bool) -> Iterator[None]:
    """Context of a forward pass without gradients, in bfloat16 on GPUs if wanted."""
    enabled = mixed_precision and device.type == "cuda"
    with torch.inference_mode(), torch.autocast(device.type, torch.bfloat16, enabled=enabled):
        yield
