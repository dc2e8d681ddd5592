"""From a network and a set of sequences to probabilities, one frame after the other."""

from collections.abc import Iterator
from collections.abc import Sequence as Items
from contextlib import contextmanager
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from datasets.layout import Frame, Sequence
from datasets.samples import TestFrames, uniform_references
from models.mask_decoder import resize
from models.prediction import References


@dataclass
class FrameResult:
    """What a network says of one frame.

    Attributes:
        sequence, frame: which one it is.
        logits: of foreground, float32 (1, h, w) at the network's input size.
        maps: ``Prediction.maps`` of the frame, float32 (h', w') in [0, 1].
    """

    sequence: str
    frame: Frame
    logits: Tensor
    maps: dict[str, np.ndarray] = field(default_factory=dict)

    def probability(self, size: tuple[int, int]) -> np.ndarray:
        """Probability of foreground at ``size``, the frame's own: float32 (H, W) in [0, 1]."""
        return resize(self.logits.unsqueeze(0), size).sigmoid()[0, 0].numpy()


def predict_sequences(
    model: nn.Module,
    sequences: Items[Sequence],
    image_size: int,
    num_references: int,
    *,
    batch_size: int = 4,
    workers: int = 0,
    frame_step: int = 1,
    mixed_precision: bool = False,
) -> Iterator[FrameResult]:
    """Segment every ``frame_step``-th frame of every sequence, in order.

    References are taken uniformly over a sequence and encoded once. Memory does not grow with the
    length of a sequence.

    Args:
        model: a network with ``encode_references`` and ``segment``, in evaluation mode.
        sequences: with flow maps.
        image_size: side of the square network input in pixels.
        num_references: N_R.
        batch_size: frames that go through the network together.
        workers: loader processes; 0 loads here.
        frame_step: 1 for every frame.
        mixed_precision: bfloat16 on a GPU.
    """
    device = next(model.parameters()).device
    frames, references, batches = [], [], []
    for sequence in sequences:
        start = len(frames)
        chosen = sequence.frames[::frame_step]
        frames += chosen
        batches += [
            list(range(first, min(first + batch_size, start + len(chosen))))
            for first in range(start, start + len(chosen), batch_size)
        ]
        references += [
            sequence.frames[position]
            for position in uniform_references(len(sequence.frames), num_references)
        ]
    names = [sequence.name for sequence in sequences for _ in sequence.frames[::frame_step]]
    reference_loader = iter(
        DataLoader(
            TestFrames(references, image_size),
            batch_size=num_references,
            num_workers=min(workers, 1),
        )
    )
    current, encoded = None, None
    loader = DataLoader(
        TestFrames(frames, image_size),
        batch_sampler=batches,
        num_workers=workers,
        pin_memory=device.type == "cuda",
    )
    for indices, batch in zip(batches, loader):
        batch = {name: tensor.to(device, non_blocking=True) for name, tensor in batch.items()}
        with inference(device, mixed_precision):
            if names[indices[0]] != current:
                current = names[indices[0]]
                encoded = _encode(model, next(reference_loader), device)
            prediction = model.segment(batch["image"], batch["flow"], encoded.expand(len(indices)))
        logits = prediction.logits[0].float().cpu()
        maps = {name: values.float().cpu().numpy() for name, values in prediction.maps.items()}
        for row, index in enumerate(indices):
            yield FrameResult(
                names[index],
                frames[index],
                logits[row],
                {name: values[row] for name, values in maps.items()},
            )


def predict_stills(
    model: nn.Module, batches: DataLoader, mixed_precision: bool = False
) -> Iterator[tuple[dict[str, Tensor], Tensor]]:
    """Each batch of stage 1's samples with its probabilities, (B, 1, S, S) on the CPU.

    ``batches`` gives what ``datasets.samples.StillImages`` does.
    """
    device = next(model.parameters()).device
    for batch in batches:
        with inference(device, mixed_precision):
            prediction = model(batch["image"].to(device, non_blocking=True))
        yield batch, prediction.logits[0].float().sigmoid().cpu()


def to_mask(probability: np.ndarray, threshold: float = 0.5, stretch: bool = False) -> np.ndarray:
    """Probabilities (H, W) to a mask, bool (H, W).

    Args:
        probability: in [0, 1].
        threshold: foreground is what lies above it.
        stretch: first stretch the frame's probabilities to [0, 1], as the authors' release does;
            then every frame has some foreground.
    """
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


def _encode(model: nn.Module, frames: dict[str, Tensor], device: torch.device) -> References:
    return model.encode_references(
        frames["image"].unsqueeze(0).to(device), frames["flow"].unsqueeze(0).to(device)
    )
