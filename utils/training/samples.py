"""From settings to a network's samples: data sets, augmentation, batches, loader."""

import inspect
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

from datasets.augmentation import Augmentation, Size
from datasets.known_sets import is_still_set
from datasets.layout import Frame, VideoFiles, frames_of, is_flat, still_images, video_sequences
from datasets.problems import DatasetError
from datasets.samples import StillImages, VideoFrames, VideoWindows
from datasets.sampling import EpochBatches
from models import MODELS, model_class
from models.interface import REFERENCES, WINDOWS, Needs
from utils.processes import Process, num_cores
from utils.settings import Settings, SettingsError
from utils.training.interrupts import prepare_loader_process


def batches_of(dataset: Dataset, settings: Settings, process: Process) -> EpochBatches:
    """The keys of this process's share of each batch, epoch by epoch.

    Prints a note if there are too few images for STILL_SHARE.
    """
    batches = EpochBatches(
        dataset.set_sizes,
        settings.batch_size,
        settings.seed,
        settings.balance_sets,
        process.rank,
        process.world_size,
        settings.accumulation_steps,
        settings.image_sizes,
        settings.still_share if isinstance(dataset, VideoFrames) and dataset.stills else None,
    )
    *_, last = taken = batches.taken()
    if process.is_main and last < sum(taken) * (batches.last_share or 0) - 1:
        print(
            f"note: {settings.pretrain_set} has {last} images, {last / sum(taken):.0%} of an "
            f"epoch's samples and not STILL_SHARE = {settings.still_share}"
        )
    return batches


def make_loader(dataset: Dataset, batches: Any, workers: int, device: torch.device) -> DataLoader:
    """Loader of the given batches of keys, in order."""
    return DataLoader(
        dataset,
        batch_sampler=batches,
        num_workers=min(workers, num_cores()),
        pin_memory=device.type == "cuda",
        worker_init_fn=prepare_loader_process,
    )


def network_arguments(settings: Settings, **arguments: Any) -> dict[str, Any]:
    """The settings that the network's constructor takes, and further arguments."""
    accepted = inspect.signature(model_class(settings.model)).parameters
    given = {name.lower(): value for name, value in settings.as_dict().items()}
    return {**{name: given[name] for name in accepted if name in given}, **arguments}


def network_name(model: str, arguments: dict[str, Any]) -> str:
    """For example "gsanet with mit_b2"; a network may have no choice of backbone."""
    return f"{model} with {arguments['backbone']}" if "backbone" in arguments else model


def without_effect(names: Iterable[str], model: str) -> list[str]:
    """Those of the settings, by upper-case name, that only other networks' constructors take.

    Raises:
        ModelError: there is no such network.
    """
    own = inspect.signature(model_class(model)).parameters
    others = {name for network in MODELS.values() for name in inspect.signature(network).parameters}
    return sorted(name for name in names if name.lower() in others - own.keys())


def augmentation_from(settings: Settings) -> Augmentation:
    """The training augmentation."""
    return Augmentation(
        **{name: getattr(settings, name) for name in Augmentation.__dataclass_fields__}
    )


def split_frames(frames: list[Frame], share: float, seed: int) -> tuple[list[Frame], list[Frame]]:
    """Frames for training and a random but fixed share for validation, at least one."""
    order = np.random.default_rng(seed).permutation(len(frames))
    count = min(max(1, round(len(frames) * share)), len(frames) - 1)
    return [frames[i] for i in order[count:]], [frames[i] for i in order[:count]]


def input_size(height: int, width: int | None) -> Size:
    """The size of a network's input by IMAGE_SIZE and IMAGE_WIDTH."""
    return height if width in (None, height) else (height, width)


def _sample_size(settings: Settings) -> Size:
    s = settings
    size = input_size(s.image_size, s.image_width)
    if s.image_sizes is not None and not isinstance(size, int):
        raise SettingsError("IMAGE_SIZES needs a square input; set IMAGE_WIDTH = None")
    return size


def stills_of(
    frames: list[Frame], settings: Settings, augmentation: Augmentation | None = None
) -> StillImages:
    """Samples of still images."""
    return StillImages(frames, _sample_size(settings), augmentation, settings.seed)


def training_sequences(settings: Settings, needs: Needs) -> list[list[VideoFiles]]:
    """The sequences of each of TRAIN_SETS, with what the network needs.

    A nested set may have masks on some frames only; these are the targets. A flat set needs a mask
    of every frame.

    Raises:
        DatasetError: a set is missing or incomplete, or holds still images.
    """
    root, found = Path(settings.data_root), []
    for name in settings.train_sets:
        if is_still_set(name):
            raise DatasetError(
                f"{name} is a set of still images, and TRAIN_SETS are videos; pretrain.py trains "
                "on still images (PRETRAIN_SET)"
            )
        nested = (root / name).is_dir() and not is_flat(root / name)
        some = needs.samples == REFERENCES and nested
        masks = ("some" if some else "all") if needs.masks else "none"
        found.append(video_sequences(root, name, masks=masks, flow=needs.flow))
    return found


def count_in_words(name: str, sequences: list[VideoFiles]) -> str:
    """A training set's sequences, and how many frames have masks if only some do."""
    frames = frames_of(sequences)
    masks = sum(frame.mask is not None for frame in frames)
    some = f" ({masks} of {len(frames)} frames with a mask)" if 0 < masks < len(frames) else ""
    return f"{name}: {len(sequences)} sequences{some}"


def training_stills(settings: Settings, needs: Needs) -> list[Frame]:
    """The images of PRETRAIN_SET, if STILL_SHARE asks for them in stage 2.

    Raises:
        DatasetError: the set is missing or incomplete.
        SettingsError: the network's samples are windows of videos.
    """
    if not settings.still_share:
        return []
    if needs.samples != REFERENCES:
        raise SettingsError(
            f"STILL_SHARE = {settings.still_share}: {settings.model} learns from videos alone; set "
            "it to 0"
        )
    return still_images(Path(settings.data_root), settings.pretrain_set)


def validation_sequences(settings: Settings, needs: Needs) -> list[VideoFiles]:
    """The sequences of VAL_SET. Networks that learn without masks take a set without masks, too.

    Raises:
        DatasetError: the set is missing or incomplete.
    """
    root, name = Path(settings.data_root), settings.val_set
    if not needs.masks:
        sequences = video_sequences(root, name, masks="none", flow=needs.flow)
        if not any(frame.mask for sequence in sequences for frame in sequence.frames):
            return sequences
    return video_sequences(root, name, masks="some", flow=needs.flow)


def videos_of(
    sets: list[list[VideoFiles]],
    settings: Settings,
    needs: Needs,
    augmentation: Augmentation | None = None,
    stills: Sequence[Frame] = (),
) -> VideoFrames | VideoWindows:
    """Samples of videos, of the kind that the network needs, and of still images among them."""
    size, seed = _sample_size(settings), settings.seed
    if needs.samples == WINDOWS:
        kinds = {"labels": needs.masks, "flow": needs.flow}
        return VideoWindows(
            sets, size, needs.frames, needs.gap, **kinds, augmentation=augmentation, seed=seed
        )
    return VideoFrames(sets, size, settings.num_references, augmentation, seed, stills)
