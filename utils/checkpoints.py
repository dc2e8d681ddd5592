"""Checkpoints: files with a network's weights, what it is, and where its training stood."""

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from models import build_model


class CheckpointError(ValueError):
    """A checkpoint that is missing, damaged, or of another network than is wanted."""


@dataclass(frozen=True)
class Loaded:
    """How many of a network's tensors came from where.

    Attributes:
        loaded: from the checkpoint under their own name.
        copied: into the flow stream, from the RGB stream's (Sec. 4.3).
        fresh: neither; they keep their initial values.
        unused: tensors of the checkpoint that the network has no place for.
    """

    loaded: int
    copied: int
    fresh: int
    unused: int

    def __str__(self) -> str:
        return (
            f"{self.loaded} tensors loaded, {self.copied} copied from the RGB to the flow stream, "
            f"{self.fresh} left at their initial values, {self.unused} of the file not used"
        )


def save_checkpoint(path: Path, checkpoint: dict[str, Any]) -> None:
    """Write ``checkpoint`` so that ``path`` is at any time either the old file or the new one."""
    temporary = path.with_name(f".{path.name}.tmp")
    torch.save(checkpoint, temporary)
    os.replace(temporary, path)


def load_checkpoint(path: Path) -> dict[str, Any]:
    """Read a checkpoint that ``save_checkpoint`` wrote, onto the CPU; code in it is never run.

    Raises:
        CheckpointError: no such file, or not a checkpoint of this project.
    """
    path = Path(path)
    if not path.is_file():
        raise CheckpointError(f"there is no checkpoint {path}")
    try:
        checkpoint = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        # torch.load raises many kinds for damaged files and for pickles with code in them.
        reason = str(error).strip().split("\n")[0]
        raise CheckpointError(f"{path} cannot be read as a checkpoint: {reason}") from error
    wanted = {"model", "arguments", "weights", "settings"}
    if not isinstance(checkpoint, dict) or not wanted <= checkpoint.keys():
        raise CheckpointError(
            f"{path} is not a checkpoint of this project: it lacks "
            f"{', '.join(sorted(wanted - set(checkpoint if isinstance(checkpoint, dict) else ())))}"
        )
    return checkpoint


def build_from_checkpoint(checkpoint: dict[str, Any], **changes: Any) -> nn.Module:
    """The network that a checkpoint holds, with its weights.

    Args:
        checkpoint: from ``load_checkpoint``.
        changes: constructor arguments to take in place of the checkpoint's, such as
            ``num_iterations``; they must not change the weights' shapes.

    Raises:
        CheckpointError: the weights do not fit.
    """
    arguments = {**checkpoint["arguments"], **changes, "pretrained_backbone": False}
    model = build_model(checkpoint["model"], **arguments)
    try:
        model.load_state_dict(checkpoint["weights"])
    except RuntimeError as error:
        raise CheckpointError(
            "the checkpoint's weights do not fit the network that its settings describe; it was "
            f"made by another version of the code ({str(error).splitlines()[-1].strip()})"
        ) from error
    return model


def check_same_network(checkpoint: dict[str, Any], model: str, arguments: dict[str, Any]) -> None:
    """Raise CheckpointError unless the checkpoint is of this network, backbone and width."""
    has = {"MODEL": checkpoint["model"]}
    wanted = {"MODEL": model}
    for name in ("backbone", "channels"):
        has[name.upper()] = checkpoint["arguments"].get(name)
        wanted[name.upper()] = arguments.get(name)
    differing = [name for name in wanted if has[name] != wanted[name]]
    if differing:
        raise CheckpointError(
            "the checkpoint is of another network: "
            + ", ".join(
                f"{name} is {has[name]!r} there, {wanted[name]!r} here" for name in differing
            )
        )


def start_from_stage1(model: nn.Module, weights: dict[str, Tensor]) -> Loaded:
    """Fill stage 2's network with stage 1's weights, the RGB stream's also into the flow stream.

    Sec. 4.3: "the pretrained parameters of the RGB stream are applied equally to the optical flow
    stream". A tensor called ``flow_stream.x`` that ``weights`` lacks is copied from
    ``rgb_stream.x``.

    Args:
        model: network with streams ``rgb_stream`` and ``flow_stream``.
        weights: stage 1's state dict.

    Raises:
        CheckpointError: nothing fits.
    """
    own = model.state_dict()
    loaded, copied, used = {}, {}, set()
    for name, tensor in own.items():
        twin = name.replace("flow_stream.", "rgb_stream.", 1)
        for source, found in ((name, loaded), (twin, copied)):
            if source in weights and weights[source].shape == tensor.shape:
                found[name] = weights[source]
                used.add(source)
                break
    if not loaded and not copied:
        raise CheckpointError(
            f"none of the {len(weights)} tensors in the checkpoint fits the {len(own)} of the "
            "network; was it made with another MODEL, BACKBONE or CHANNELS?"
        )
    model.load_state_dict({**own, **loaded, **copied})
    return Loaded(
        len(loaded), len(copied), len(own) - len(loaded) - len(copied), len(weights) - len(used)
    )
