"""Samples: what the training loop and the evaluation get of each frame."""

from collections.abc import Sequence as Items
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from datasets.augmentation import Augmentation, Geometry, whole_frame
from datasets.colour_wheel import change_motion
from datasets.layout import DatasetError, Frame, Sequence, read_image, read_mask
from datasets.sampling import Key
from datasets.simulated_motion import MotionSimulation

Pictures = tuple[np.ndarray, np.ndarray | None, np.ndarray | None]  # image, flow map, mask


class StillImages(Dataset):
    """Stage 1's samples: still images with masks (Sec. 4.3), alone or as pseudo-clips.

    Args:
        frames: images with masks, from ``datasets.layout.still_images``.
        size: side of the square samples in pixels, of keys that do not have another.
        augmentation: random changes; ``None`` only resizes. The frames of a pseudo-clip are cropped
            and rotated alike, before anything moves, so that references are resampled only once;
            the rest is drawn anew for each of them.
        seed: of augmentation and motion.
        simulation: what moves how much in pseudo-clips; ``None`` gives the image alone.
        num_references: N_R, frames of the pseudo-clip at random times.
    """

    def __init__(
        self,
        frames: Items[Frame],
        size: int,
        augmentation: Augmentation | None = None,
        seed: int = 0,
        simulation: MotionSimulation | None = None,
        num_references: int = 3,
    ):
        self.frames = list(frames)
        self.size = size
        self.augmentation = self._of_clips = self._of_frames = augmentation
        if augmentation is not None:
            self._of_clips, self._of_frames = augmentation.in_two()
        self.seed = seed
        self.simulation = simulation
        self.num_references = num_references
        self.set_sizes = [len(self.frames)]

    def __len__(self) -> int:
        return len(self.frames)

    def name(self, index: int) -> str:
        """The frame that sample ``index`` is of."""
        return self.frames[index].name

    def __getitem__(self, key: Key) -> dict[str, Tensor]:
        """Sample ``index`` of ``epoch``, for the key (epoch, index) or (epoch, index, size).

        Returns:
            ``image`` float (3, S, S) in [0, 1]; ``mask`` float (1, S, S) of zeros and ones. With
            simulated motion also what :class:`VideoFrames` gives.

        Raises:
            DatasetError: a file cannot be read.
        """
        epoch, index, size = (*key, self.size)[:3]
        rng = np.random.default_rng([self.seed, epoch, index])
        image, _, mask = _read_frame(self.frames[index], mask=True)
        if self.simulation is None:
            image, _, mask = _augmented((image, None, mask), size, self.augmentation, rng)
            return {"image": to_tensor(image), "mask": _mask_tensor(mask)}
        image, _, mask = _augmented((image, None, mask), size, self._of_clips, rng)
        clip = self.simulation.draw(rng, image, mask)
        times = self.simulation.draw_times(rng, self.num_references)
        target, *references = (
            _augmented(pictures, size, self._of_frames, rng)
            for pictures in [
                (image, clip.flow_picture(rng, 0), mask),
                *((clip.frame(time), clip.flow_picture(rng, time), None) for time in times),
            ]
        )
        return _sample(target, references)


class VideoFrames(Dataset):
    """Stage 2's samples: a target frame with mask and flow, and reference frames with flow.

    Args:
        sets: for each training set its sequences, from ``datasets.layout.video_sequences``.
        size: side of the square samples in pixels, of keys that do not have another.
        num_references: N_R, random other frames of the target's sequence (Sec. 4.4). A sequence
            that has fewer gives some of them twice.
        augmentation: random changes, drawn anew for the target and each reference; ``None`` only
            resizes.
        seed: of references and augmentation.
    """

    def __init__(
        self,
        sets: Items[Items[Sequence]],
        size: int,
        num_references: int = 3,
        augmentation: Augmentation | None = None,
        seed: int = 0,
    ):
        self.targets = [
            (sequence, position)
            for sequences in sets
            for sequence in sequences
            for position in range(len(sequence.frames))
        ]
        self.set_sizes = [sum(len(s.frames) for s in sequences) for sequences in sets]
        self.size = size
        self.num_references = num_references
        self.augmentation = augmentation
        self.seed = seed

    def __len__(self) -> int:
        return len(self.targets)

    def name(self, index: int) -> str:
        """The frame that sample ``index`` is of."""
        sequence, position = self.targets[index]
        return sequence.frames[position].name

    def __getitem__(self, key: Key) -> dict[str, Tensor]:
        """Sample ``index`` of ``epoch``, for the key (epoch, index) or (epoch, index, size).

        Returns:
            ``image``, ``flow`` float (3, S, S) and ``reference_images``, ``reference_flows`` float
            (R, 3, S, S), all in [0, 1]; ``mask`` float (1, S, S) of zeros and ones.

        Raises:
            DatasetError: a file cannot be read.
        """
        epoch, index, size = (*key, self.size)[:3]
        rng = np.random.default_rng([self.seed, epoch, index])
        sequence, position = self.targets[index]
        target = self._load(rng, size, sequence.frames[position], mask=True)
        references = [
            self._load(rng, size, sequence.frames[other], mask=False)
            for other in random_references(len(sequence.frames), position, self.num_references, rng)
        ]
        return _sample(target, references)

    def _load(self, rng: np.random.Generator, size: int, frame: Frame, mask: bool) -> Pictures:
        return _augmented(_read_frame(frame, mask), size, self.augmentation, rng)


class Tolerant(Dataset):
    """Samples of a data set in which files may turn out to be unreadable.

    Such a sample is replaced by the next one that can be read. Every sample also has ``fault``: the
    error's message, or nothing.
    """

    _TRIES = 10

    def __init__(self, dataset: StillImages | VideoFrames):
        self.dataset = dataset

    def __len__(self) -> int:
        return len(self.dataset)

    def name(self, index: int) -> str:
        """The frame that sample ``index`` is of."""
        return self.dataset.name(index)

    def __getitem__(self, key: Key) -> dict[str, Tensor | str]:
        """The sample for the key, or one of the ten after it.

        Raises:
            DatasetError: none of them can be read.
        """
        epoch, index, *size = key
        fault = ""
        for offset in range(self._TRIES):
            try:
                sample = self.dataset[(epoch, (index + offset) % len(self.dataset), *size)]
                return {**sample, "fault": fault}
            except DatasetError as error:
                fault = fault or str(error)
        raise DatasetError(f"{fault}; nor can the {self._TRIES - 1} samples after it")


class TestFrames(Dataset):
    """Frames in order, as the network is shown them in test; the masks stay on disk.

    Args:
        frames: with or without flow maps.
        views: of each frame, from ``datasets.augmentation.whole_frame``; several for test-time
            augmentation.
        recolour_flow: a mirrored flow map's colours follow its motion, as in training.
    """

    __test__ = False  # not a test case, whatever pytest thinks of the name

    def __init__(self, frames: Items[Frame], views: Items[Geometry], recolour_flow: bool = True):
        self.frames = list(frames)
        self.views = list(views)
        self.recolour_flow = recolour_flow

    def __len__(self) -> int:
        return len(self.frames)

    def __getitem__(self, index: int) -> list[dict[str, Tensor]]:
        """For each view ``image`` and, where the frame has one, ``flow``, as ``show`` gives them.

        Raises:
            DatasetError: a file cannot be read, or the two differ in size.
        """
        image, flow, _ = _read_frame(self.frames[index], mask=False)
        return [show(image, flow, view, self.recolour_flow) for view in self.views]


def show(
    image: np.ndarray, flow: np.ndarray | None, view: Geometry, recolour_flow: bool = True
) -> dict[str, Tensor]:
    """One view of a frame, as a network takes it.

    Args:
        image, flow: uint8 RGB (H, W, 3); no flow for networks without motion.
        view: from ``datasets.augmentation.whole_frame``.
        recolour_flow: a mirrored flow map's colours follow its motion, as in training.

    Returns:
        ``image`` and, if there is one, ``flow``: float (3, S, S) in [0, 1].
    """
    shown = {"image": to_tensor(view.apply(image))}
    if flow is not None:
        flow = view.apply(flow)
        if view.flip and recolour_flow:
            flow = change_motion(flow, view.linear)
        shown["flow"] = to_tensor(flow)
    return shown


def load_frame(
    frame: Frame,
    size: int,
    augmentation: Augmentation | None = None,
    rng: np.random.Generator | None = None,
    mask: bool = True,
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """Read and resize a frame, its flow map if it has one, and its mask if wanted.

    Returns:
        Image and flow map, float (3, S, S) in [0, 1], and mask, float (1, S, S) of zeros and ones.

    Raises:
        DatasetError: a file cannot be read, or the three differ in size.
    """
    image, flow, truth = _augmented(_read_frame(frame, mask), size, augmentation, rng)
    return (
        to_tensor(image),
        None if flow is None else to_tensor(flow),
        None if truth is None else _mask_tensor(truth),
    )


def _augmented(
    pictures: Pictures,
    size: int,
    augmentation: Augmentation | None,
    rng: np.random.Generator | None,
) -> Pictures:
    """A frame as it is shown, uint8 (S, S, 3) and bool (S, S), from pictures of any sizes."""
    image, flow, truth = pictures
    if augmentation is not None:
        return augmentation(rng, size, image, flow, truth)
    view = whole_frame(size)
    image = view.apply(image)
    flow = None if flow is None else view.apply(flow)
    if truth is not None:
        truth = view.apply(truth.astype(np.uint8) * 255) > 127
    return image, flow, truth


def _sample(target: Pictures, references: list[Pictures]) -> dict[str, Tensor]:
    """What a network gets of a target and its references, all uint8 (S, S, 3) and bool (S, S)."""
    image, flow, mask = target
    return {
        "image": to_tensor(image),
        "flow": to_tensor(flow),
        "reference_images": to_tensor(np.stack([reference[0] for reference in references])),
        "reference_flows": to_tensor(np.stack([reference[1] for reference in references])),
        "mask": _mask_tensor(mask),
    }


def _read_frame(frame: Frame, mask: bool) -> Pictures:
    """Image, flow map if there is one, and mask if wanted, all of one size."""
    image = read_image(frame.image)
    flow = None if frame.flow is None else read_image(frame.flow)
    truth = read_mask(frame.mask) if mask else None
    for path, partner in ((frame.flow, flow), (frame.mask, truth)):
        if partner is not None and partner.shape[:2] != image.shape[:2]:
            raise size_error(frame.image, image, path, partner)
    return image, flow, truth


def to_tensor(picture: np.ndarray) -> Tensor:
    """uint8 RGB (..., H, W, 3) to float (..., 3, H, W) in [0, 1]."""
    tensor = torch.from_numpy(picture).movedim(-1, -3)
    # Written in the channels' order at once: copying bytes into it first takes longer.
    return torch.empty(tensor.shape).copy_(tensor).div_(255)


def _mask_tensor(mask: np.ndarray) -> Tensor:
    return torch.from_numpy(mask).unsqueeze(0).float()


def size_error(
    image_path: Path, image: np.ndarray, path: Path, partner: np.ndarray
) -> DatasetError:
    """The error for a mask or flow map that is not as large as its image."""
    return DatasetError(
        f"{path} has {partner.shape[1]} x {partner.shape[0]} pixels, but {image_path} has "
        f"{image.shape[1]} x {image.shape[0]}; they must be of one size"
    )


def random_references(length: int, target: int, count: int, rng: np.random.Generator) -> list[int]:
    """``count`` random frames of a sequence other than the target; repeats only if too few."""
    others = [position for position in range(length) if position != target] or [target]
    return rng.choice(others, size=count, replace=len(others) < count).tolist()


def uniform_references(length: int, count: int) -> list[int]:
    """``count`` frames spread evenly over a sequence: the middles of equal parts (Sec. 4.4)."""
    return [int((part + 0.5) * length / count) for part in range(count)]
