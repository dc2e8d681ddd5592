"""Samples: the tensors that the training loop and the evaluation get of each frame.

A data set is indexed by a key: (epoch, index), or (epoch, index, size) for another size in pixels.
A sample depends on the seed and its key alone. Files that cannot be read raise DatasetErrors.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.random import Generator
from torch import Tensor
from torch.utils.data import Dataset

from datasets.augmentation import Augmentation, Geometry, Size, whole_frame
from datasets.flow.colour_wheel import change_motion
from datasets.layout import Frame, VideoFiles
from datasets.masks import one_object, read_labels
from datasets.pictures import read_image
from datasets.problems import DatasetError
from datasets.sampling import Key

Pictures = tuple[np.ndarray, np.ndarray | None, np.ndarray | None]  # image, flow map, labels


@dataclass(eq=False, repr=False)
class StillImages(Dataset):
    """Stage 1's samples: still images with masks (Sec. 4.3)."""

    frames: Sequence[Frame]  # with masks
    size: Size  # of samples whose key has no other
    augmentation: Augmentation | None = None  # None only resizes
    seed: int = 0  # of the augmentation

    def __post_init__(self) -> None:
        self.set_sizes = [len(self.frames)]

    def __len__(self) -> int:
        return len(self.frames)

    def name(self, index: int) -> str:
        """The frame that sample ``index`` is of."""
        return self.frames[index].name

    def __getitem__(self, key: Key) -> dict[str, Tensor]:
        """``image`` uint8 RGB (3, S, S), ``labels`` uint8 (S, S), 0 background and 1 the object."""
        epoch, index, size = (*key, self.size)[:3]
        rng = np.random.default_rng([self.seed, epoch, index])
        pictures = _read_frame(self.frames[index], labels=True, flow=False)
        image, _, labels = _augmented(pictures, size, self.augmentation, rng)
        return {"image": to_tensor(image), "labels": torch.from_numpy(labels)}


@dataclass(eq=False, repr=False)
class VideoFrames(Dataset):
    """Stage 2's samples: a target frame with mask and flow, and reference frames with flow.

    Frames without a mask are no targets. References are random other frames of the target's
    sequence (Sec. 4.4), with or without a mask. A sequence that has fewer gives some of them twice.
    Still images are further targets: their own references, with flow maps that show no motion. The
    augmentation is drawn anew for each frame.
    """

    sets: Sequence[Sequence[VideoFiles]]  # for each training set its sequences
    size: Size  # of samples whose key has no other
    num_references: int = 3  # N_R
    augmentation: Augmentation | None = None  # None only resizes
    seed: int = 0  # of references and augmentation
    stills: Sequence[Frame] = ()  # with masks; the last of `set_sizes`, if there are any

    def __post_init__(self) -> None:
        targets = [
            [(s, i) for s in videos for i, frame in enumerate(s.frames) if frame.mask is not None]
            for videos in self.sets
        ]
        self.targets = [target for of_set in targets for target in of_set]
        self.set_sizes = [len(of_set) for of_set in targets]
        if self.stills:
            self.set_sizes.append(len(self.stills))

    def __len__(self) -> int:
        return len(self.targets) + len(self.stills)

    def name(self, index: int) -> str:
        """The frame that sample ``index`` is of."""
        if index >= len(self.targets):
            return self.stills[index - len(self.targets)].name
        sequence, position = self.targets[index]
        return sequence.frames[position].name

    def __getitem__(self, key: Key) -> dict[str, Tensor]:
        """``image``, ``flow``, ``reference_images``, ``reference_flows`` and ``labels``.

        The first two are uint8 RGB (3, S, S), those of references (R, 3, S, S). The labels are
        uint8 (S, S), 0 background and 1 the object.
        """
        epoch, index, size = (*key, self.size)[:3]
        rng = np.random.default_rng([self.seed, epoch, index])
        if index >= len(self.targets):
            still = self.stills[index - len(self.targets)]
            image, _, labels = _read_frame(still, labels=True, flow=False)
            at_rest = np.full_like(image, 255)  # no motion is white
            frames = [(image, at_rest, labels), *[(image, at_rest, None)] * self.num_references]
            return _sample([_augmented(frame, size, self.augmentation, rng) for frame in frames])
        sequence, position = self.targets[index]
        frames = sequence.frames
        pictures = _read_frame(frames[position], labels=True, flow=True)
        samples = [_augmented(pictures, size, self.augmentation, rng)]
        for other in random_references(len(frames), position, self.num_references, rng):
            pictures = _read_frame(frames[other], labels=False, flow=True)
            samples.append(_augmented(pictures, size, self.augmentation, rng))
        return _sample(samples)


@dataclass(eq=False, repr=False)
class VideoWindows(Dataset):
    """Windows of neighbouring frames, for networks that learn from a video's continuity.

    The augmentation's geometry is the same for all frames of a window, the rest is drawn anew.
    Raises DatasetError if a set has no sequence that is long enough for a window.
    """

    sets: Sequence[Sequence[VideoFiles]]  # for each training set its sequences
    size: Size  # of samples whose key has no other
    frames: int  # T, the number of frames in a window
    gap: int = 1  # distance of a window's frames in frames of the video, less in short videos
    labels: bool = False  # also give the label maps, with all objects and void
    flow: bool = False  # also give the flow maps
    augmentation: Augmentation | None = None  # None only resizes
    seed: int = 0

    def __post_init__(self) -> None:
        windows = [[w for s in sequences for w in self._windows(s)] for sequences in self.sets]
        self.windows = [window for of_set in windows for window in of_set]
        for number, of_set in enumerate(windows, 1):
            if not of_set:
                raise DatasetError(
                    f"no sequence of set {number} in TRAIN_SETS has the {self.frames} frames that "
                    "a window needs; use longer videos or leave that set out"
                )
        self.set_sizes = [len(of_set) for of_set in windows]
        self._of_windows = self._of_frames = None
        if self.augmentation is not None:
            self._of_windows, self._of_frames = self.augmentation.in_two()

    def _windows(self, sequence: VideoFiles) -> list[tuple[Frame, ...]]:
        gap = max(1, min(self.gap, (len(sequence.frames) - 1) // max(1, self.frames - 1)))
        span = (self.frames - 1) * gap
        starts = range(len(sequence.frames) - span)
        return [sequence.frames[start : start + span + 1 : gap] for start in starts]

    def __len__(self) -> int:
        return len(self.windows)

    def name(self, index: int) -> str:
        """The first frame of window ``index``."""
        return self.windows[index][0].name

    def __getitem__(self, key: Key) -> dict[str, Tensor]:
        """``image`` uint8 RGB (T, 3, S, S), ``flow`` likewise and ``labels`` uint8 (T, S, S)."""
        epoch, index, size = (*key, self.size)[:3]
        pictures = []
        for number, frame in enumerate(self.windows[index]):
            one = _read_frame(frame, self.labels, self.flow, merge=False)
            shared = np.random.default_rng([self.seed, epoch, index])
            own = np.random.default_rng([self.seed, epoch, index, number])
            one = _augmented(one, size, self._of_windows, shared)
            pictures.append(_augmented(one, size, self._of_frames, own))
        images, flows, labels = zip(*pictures)
        sample = {"image": to_tensor(np.stack(images))}
        if self.flow:
            sample["flow"] = to_tensor(np.stack(flows))
        if self.labels:
            sample["labels"] = torch.from_numpy(np.stack(labels))
        return sample


@dataclass(eq=False, repr=False)
class TestFrames(Dataset):
    """Frames in order, as the network is shown them in test; the masks stay on disk."""

    __test__ = False  # pytest would take the class for a test

    frames: Sequence[Frame]
    views: Sequence[Geometry]  # of each frame, several for test-time augmentation
    flow: bool  # read flow maps too; every frame has one then
    recolour_flow: bool = True  # as for :func:`show`

    def __len__(self) -> int:
        return len(self.frames)

    def __getitem__(self, index: int) -> list[dict[str, Tensor]]:
        """For each view what ``show`` gives."""
        image, flow, _ = _read_frame(self.frames[index], labels=False, flow=self.flow)
        return [show(image, flow, view, self.recolour_flow) for view in self.views]


def show(
    image: np.ndarray, flow: np.ndarray | None, view: Geometry, recolour_flow: bool = True
) -> dict[str, Tensor]:
    """One view of a frame, as a network takes it.

    Takes uint8 RGB pictures of any sizes and gives ``image`` and, if there is one, ``flow``, uint8
    RGB (3, S, S). With ``recolour_flow`` a mirrored flow map's colours follow its motion.
    """
    shown = {"image": to_tensor(view.apply(image))}
    if flow is not None:
        flow = view.apply(flow)
        if view.flip and recolour_flow:
            flow = change_motion(flow, view.linear)
        shown["flow"] = to_tensor(flow)
    return shown


def to_tensor(picture: np.ndarray) -> Tensor:
    """uint8 RGB (..., H, W, 3) to a uint8 tensor (..., 3, H, W)."""
    return torch.from_numpy(picture).movedim(-1, -3).contiguous()


def random_references(length: int, target: int, count: int, rng: Generator) -> list[int]:
    """``count`` random frames of a sequence other than the target; repeats only if too few."""
    others = [position for position in range(length) if position != target] or [target]
    return rng.choice(others, size=count, replace=len(others) < count).tolist()


def _read_frame(frame: Frame, labels: bool, flow: bool, merge: bool = True) -> Pictures:
    """Image, and flow map and labels if they are wanted, all of one size.

    With ``merge`` all objects are one.
    """
    image = read_image(frame.image)
    motion = read_image(frame.flow) if flow else None
    truth = read_labels(frame.mask) if labels else None
    for path, partner in ((frame.flow, motion), (frame.mask, truth)):
        if partner is not None and partner.shape[:2] != image.shape[:2]:
            sizes = [f"{x.shape[1]} x {x.shape[0]}" for x in (partner, image)]
            raise DatasetError(
                f"{path} has {sizes[0]} pixels, but {frame.image} has {sizes[1]}; they must be of "
                "one size"
            )
    if truth is not None and merge:
        truth = one_object(truth).view(np.uint8)
    return image, motion, truth


def _augmented(
    pictures: Pictures, size: Size, augmentation: Augmentation | None, rng: Generator
) -> Pictures:
    """A frame at the network's size, uint8 (S, S, 3) and (S, S), from pictures of any sizes."""
    image, flow, labels = pictures
    if augmentation is not None:
        return augmentation(rng, size, image, flow, labels)
    view = whole_frame(size)
    flow = None if flow is None else view.apply(flow)
    return view.apply(image), flow, None if labels is None else view.apply_labels(labels)


def _sample(frames: list[Pictures]) -> dict[str, Tensor]:
    """The tensors of a target, which is the first frame, and its references."""
    images, flows, labels = zip(*frames)
    return {
        "image": to_tensor(images[0]),
        "flow": to_tensor(flows[0]),
        "reference_images": to_tensor(np.stack(images[1:])),
        "reference_flows": to_tensor(np.stack(flows[1:])),
        "labels": torch.from_numpy(labels[0]),
    }
