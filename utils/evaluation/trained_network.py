"""A checkpoint's network, ready to segment, with the settings of its run and of the evaluation."""

from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from models.interface import REFERENCES, STILLS, WINDOWS, Network
from utils.evaluation.segmenting import Segmenter
from utils.settings import Settings, SettingsError, flag_name
from utils.training.checkpoints import (
    CheckpointError,
    build_from_checkpoint,
    find_checkpoint,
    load_checkpoint,
)
from utils.training.samples import input_size, network_name, without_effect

STARTER = Path(__file__).parents[2] / "assets" / "starter.pt"  # described in starter.md
_NEEDED = ("IMAGE_SIZE", "NUM_REFERENCES", "RECOLOUR_FLOW")  # settings of the checkpoint's run
_OF_PROGRAMS = ("GPU", "WORKERS")  # without effect from Python


@dataclass(frozen=True)
class TrainedNetwork:
    """A network to evaluate."""

    checkpoint: Path
    segmenter: Segmenter
    method: str  # a line for people
    settings: dict[str, Any]  # all that make the masks, by name
    batch_size: int  # frames that it takes at once
    flow: str | None  # kind of the flow maps of its training; None if it is not known


def load_trained_network(
    path: Path,
    settings: Settings,
    given: Collection[str],
    groups: Collection[str],
    device: torch.device,
    tta: bool = False,
    from_python: bool = False,
) -> TrainedNetwork:
    """The checkpoint's network, with the input size and the references of its run.

    Args:
        path: of the checkpoint, as of ``find_checkpoint``.
        settings: of the evaluation.
        given: names of the settings that came as flags. Those of the groups "test" of config.py
            and the network's ``changeable`` replace the checkpoint's.
        groups: words of further groups of config.py that have an effect on this evaluation.
        device: where the network computes.
        tta: test-time augmentation.
        from_python: the flags are arguments of a function, and are named so in errors.

    Raises:
        CheckpointError: the file is no checkpoint, or its settings are not those of a run.
        SettingsError: a flag without effect that differs from the checkpoint's setting.
    """
    path = find_checkpoint(path)
    checkpoint = load_checkpoint(path)
    network, before = build_from_checkpoint(checkpoint), checkpoint["settings"]
    try:
        settings.replace(**{name.lower(): before.get(name) for name in _NEEDED})
    except SettingsError as error:
        raise CheckpointError(f"{path}: a setting of its run is damaged: {error}") from error
    flags = {name: getattr(settings, name.lower()) for name in given}
    masks = settings.marked("masks", *["tta"] * tta)
    heard = _with_effect(network, checkpoint, settings, {*masks, *settings.marked(*groups)})
    heard -= {*_OF_PROGRAMS} if from_python else set()
    unheard = [n for n in given if n not in heard and before.get(n) != flags[n]]
    refuse_flags(unheard, str.lower if from_python else flag_name)
    if tta and network.looks_ahead:
        raise SettingsError(
            f"--tta: {checkpoint['model']} finds the objects of each view by itself, so that views "
            "cannot be averaged; leave it out"
        )
    if changes := {n.lower(): v for n, v in flags.items() if n.lower() in network.changeable}:
        network = build_from_checkpoint(checkpoint, **changes)
    changed = {*settings.marked("test"), *(name.upper() for name in network.changeable)}
    used = _used(checkpoint, settings, {n: v for n, v in flags.items() if n in changed}, masks, tta)
    segmenter = _segmenter(network.to(device).eval(), used, settings)
    name = network_name(checkpoint["model"], checkpoint["arguments"])
    method = f"{name}, {_seen_by(segmenter, used)}"
    return TrainedNetwork(
        path, segmenter, method, used, settings.eval_batch_size, checkpoint.get("flow")
    )


def _used(
    checkpoint: dict[str, Any],
    settings: Settings,
    changes: dict[str, Any],
    masks: Iterable[str],
    tta: bool,
) -> dict[str, Any]:
    """All settings that make the masks, by name: of the run, with the evaluation's own."""
    elsewhere = settings.marked("masks", "tta", "machine", "set", "panels", "video", "output")
    used = {n: value for n, value in checkpoint["settings"].items() if n not in elsewhere} | changes
    used |= {"TTA": tta} | {name: getattr(settings, name.lower()) for name in masks}
    flow = checkpoint.get("flow")
    return used | {"FLOW_MAPS": flow} if flow else used


def _segmenter(network: Network, used: dict[str, Any], settings: Settings) -> Segmenter:
    tta = used["TTA"]
    return Segmenter(
        network,
        input_size(used["IMAGE_SIZE"], used.get("IMAGE_WIDTH")),
        recolour_flow=used["RECOLOUR_FLOW"],
        mixed_precision=settings.mixed_precision,
        compile=settings.compile,
        **({"scales": used["TTA_SCALES"], "flip": used["TTA_FLIP"]} if tta else {}),
    )


def _with_effect(
    network: Network, checkpoint: dict[str, Any], settings: Settings, heard: set[str]
) -> set[str]:
    """The names of settings that have an effect on an evaluation, among them those in ``heard``."""
    heard = {*heard, *settings.marked("test", "machine")}
    if not network.needs.flow:
        heard -= set(settings.marked("flow"))
    if not network.compilable:
        heard.discard("COMPILE")
    if network.needs.masks:
        heard.discard("FOREGROUND")  # it finds one object
    heard |= {name.upper() for name in network.changeable}
    fixed = {name.upper() for name in checkpoint["arguments"] if name not in network.changeable}
    return heard - fixed.union(without_effect(heard, checkpoint["model"]))


def _seen_by(segmenter: Segmenter, used: dict[str, Any]) -> str:
    """Sizes and frames that the network sees, for people."""
    sides = {view.size: view.sides[::-1].tolist() for view in segmenter.views}
    sizes = ", ".join(" x ".join(map(str, dict.fromkeys(one))) for one in sorted(sides.values()))
    mirrored = " and mirrored" if any(view.flip for view in segmenter.views) else ""
    frames = {
        STILLS: "stage 1: images alone",
        REFERENCES: f"{used['NUM_REFERENCES']} reference frames",
        WINDOWS: "whole videos",
    }
    return f"{sizes} pixels{mirrored}, {frames[segmenter.network.needs.samples]}"


def refuse_stage1(trained: TrainedNetwork) -> None:
    """Raise CheckpointError for a network of stage 1, which segments no videos."""
    if trained.segmenter.network.needs.samples == STILLS:
        raise CheckpointError(
            f"{trained.checkpoint} is of stage 1, which has no flow stream; a video needs a "
            "checkpoint of train.py"
        )


def refuse_flags(names: Iterable[str], spelled: Callable[[str], str] = flag_name) -> None:
    """Raise SettingsError if there are flags without effect, given by their settings' names.

    ``spelled`` is how the user writes a setting.
    """
    flags = [spelled(name) for name in sorted(names)]
    if flags:
        raise SettingsError(
            f"{', '.join(flags)}: without effect on what is asked for; leave it out"
        )
