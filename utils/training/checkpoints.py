"""Checkpoints: files with a network's weights, its arguments, and where its training stood.

They are zip archives as torch.save writes them, in which every record has a checksum. torch.load
does not look at it; ``load_checkpoint`` does. For publication they are files of safetensors, which
have no checksums: the values of a checkpoint stand in the header as JSON.
"""

import json
import pickle
import re
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import Tensor, nn

from datasets.files import replacing, write_bytes
from errors import UserError
from models import build_model, model_class
from models.interface import Network

LAST, BEST = "last.pt", "best.pt"
PUBLISHED = "model.safetensors"
_VALUES = "checkpoint"  # what the header's JSON is called
_HUB_NAME = re.compile(r"\w[\w.-]*/\w[\w.-]*")
_SUFFIXES = (".pt", ".pth", ".safetensors")

_PARTS = {"model": str, "arguments": dict, "settings": dict, "weights": dict}
_OPTIONAL = {"flow": str | None, "script": str | None, "progress": dict | None}
_OPTIONAL |= {"version": str | None, "commit": str | None}  # of the code that trained it


class CheckpointError(UserError):
    """A checkpoint that is missing, damaged, of another network, or that cannot be written."""


def save_checkpoint(path: Path, checkpoint: dict[str, Any]) -> None:
    """Write a checkpoint, of tensors, plain values, and lists and dictionaries of them.

    At any time the file is the old checkpoint or the new one, and whole.

    Raises:
        CheckpointError: it could not be written, as on a full disk.
    """
    try:
        # Through a file of our own: torch's message about a failed write does not say why.
        with replacing(path, durable=True) as file:
            torch.save(checkpoint, file)
    except (OSError, RuntimeError) as error:
        cause: BaseException | None = error
        while cause is not None and not isinstance(cause, OSError):
            cause = cause.__context__  # torch's complaint about the archive hides the disk's
        why = (cause and cause.strerror) or _first_line(error)
        raise CheckpointError(f"{path} could not be written: {why}") from error


def load_checkpoint(path: Path) -> dict[str, Any]:
    """Read a checkpoint onto the CPU; code in it is never run.

    ``path`` is that of :func:`find_checkpoint`.

    Raises:
        CheckpointError: no such file, a damaged one, one with NaN or infinite numbers, or not a
            checkpoint of this project.
    """
    path = find_checkpoint(path)
    if not path.is_file():
        raise CheckpointError(f"there is no checkpoint {path}")
    published = path.suffix == Path(PUBLISHED).suffix
    try:
        if published:
            checkpoint = _read_published(path)
        else:
            with zipfile.ZipFile(path) as archive:
                if damaged := archive.testzip():
                    raise zipfile.BadZipFile(f"the checksum of its record {damaged} is wrong")
            checkpoint = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        # All three readers raise many kinds for damaged files and for pickles with code.
        writer = "safetensors" if published else "torch.save"
        why = f"it is damaged or no file of {writer} ({_first_line(error)})"
        if isinstance(error, pickle.UnpicklingError):
            why = "it holds more than tensors and plain values, and code in it is never run"
        raise CheckpointError(f"{path} cannot be read as a checkpoint: {why}") from error
    parts = checkpoint if isinstance(checkpoint, dict) else {}
    kinds = _PARTS | _OPTIONAL
    if wrong := [name for name, kind in kinds.items() if not isinstance(parts.get(name), kind)]:
        raise CheckpointError(
            f"{path} is not a checkpoint of this project: it lacks {', '.join(wrong)}, or has them "
            "in another form"
        )
    if spoilt := list(not_finite(checkpoint)):
        raise CheckpointError(
            f"{path} holds numbers that are not finite (NaN or infinity), in {len(spoilt)} tensors "
            f"such as {spoilt[0]}: its training has broken down; use an earlier checkpoint"
        )
    return checkpoint


def find_checkpoint(path: Path) -> Path:
    """The file of a checkpoint, which need not exist.

    ``path`` is that file, a folder with a published checkpoint, or a model of huggingface.co by its
    name ``user/model``, which is downloaded once, if there is no folder ``user``.

    Raises:
        CheckpointError: a folder without a published checkpoint, or a failed download.
    """
    path = Path(path)
    if path.is_dir():
        if not (path / PUBLISHED).is_file():
            raise CheckpointError(
                f"{path} is a folder; give the {BEST} or {LAST} in it, or a folder with {PUBLISHED}"
            )
        return path / PUBLISHED
    name = str(path)
    # In a folder that exists, the file is misspelt; without internet a download fails after long.
    is_local = path.exists() or (path.parent.name != "" and path.parent.is_dir())
    if is_local or path.suffix in _SUFFIXES or not _HUB_NAME.fullmatch(name):
        return path
    missing = f"there is no file or folder {name}, and no model {name} could be downloaded"
    try:
        import huggingface_hub

        return Path(huggingface_hub.hf_hub_download(name, PUBLISHED))
    except ImportError as error:
        raise CheckpointError(
            f"{missing} without the package huggingface_hub: pip install huggingface_hub"
        ) from error
    except Exception as error:
        # It raises many kinds without internet, for models that do not exist or are private.
        raise CheckpointError(
            f"{missing} from huggingface.co ({type(error).__name__}: {_first_line(error)})"
        ) from error


def write_published(path: Path, checkpoint: dict[str, Any], notes: dict[str, str]) -> None:
    """Write a checkpoint as a file of safetensors that ``load_checkpoint`` reads.

    Args:
        checkpoint: from ``load_checkpoint``; the state of its training is left out.
        notes: further texts for the header, by name.
    """
    weights = {name: tensor.clone().contiguous() for name, tensor in checkpoint["weights"].items()}
    header = {**notes, "format": "pt", _VALUES: json.dumps(values_of(checkpoint))}
    write_bytes(path, safetensors.torch.save(weights, header), durable=True)


def values_of(checkpoint: dict[str, Any]) -> dict[str, Any]:
    """The values of a checkpoint without the weights and the state of the optimizer."""
    names = (_PARTS | _OPTIONAL).keys() - {"weights"}
    return {name: value for name, value in checkpoint.items() if name in names}


def _read_published(path: Path) -> dict[str, Any]:
    with safetensors.safe_open(path, "pt") as file:
        values = json.loads((file.metadata() or {}).get(_VALUES, "{}"))
    return {**values, "weights": safetensors.torch.load_file(path)}


def not_finite(value: Any, name: str = "") -> Iterator[str]:
    """Names of the tensors with NaN or infinity in them, at any depth of dictionaries and lists."""
    if isinstance(value, Tensor):
        if not value.isfinite().all():
            yield name
    elif isinstance(value, dict | list | tuple):
        for key, part in value.items() if isinstance(value, dict) else enumerate(value):
            yield from not_finite(part, f"{name}.{key}" if name else str(key))


def build_from_checkpoint(checkpoint: dict[str, Any], **changes: Any) -> Network:
    """The network that a checkpoint holds, with its weights.

    Args:
        checkpoint: from ``load_checkpoint``.
        changes: constructor arguments to take in place of the checkpoint's, of those that the
            network calls ``changeable``.

    Raises:
        CheckpointError: the network does not take its arguments, or the weights do not fit.
    """
    random_weights = model_class(checkpoint["model"]).random_weights
    arguments = checkpoint["arguments"] | changes | random_weights
    try:
        network = build_model(checkpoint["model"], **arguments)
    except (AttributeError, KeyError, RuntimeError, TypeError, ValueError) as error:
        raise CheckpointError(
            "the checkpoint's arguments give no network; it is damaged or was made by another "
            f"version of the code ({type(error).__name__}: {_first_line(error)})"
        ) from error
    load_weights(network, checkpoint["weights"])
    return network


def load_weights(model: nn.Module, weights: dict[str, Tensor]) -> None:
    """Fill a network with a checkpoint's weights.

    Raises:
        CheckpointError: the weights do not fit.
    """
    try:
        model.load_state_dict(weights)
    except (AttributeError, RuntimeError, TypeError) as error:
        raise CheckpointError(
            "the checkpoint's weights do not fit the network that its settings describe; it was "
            f"made by another version of the code ({str(error).splitlines()[-1].strip()[:300]})"
        ) from error


def check_same_network(
    path: Path | str, checkpoint: dict[str, Any], model: str, arguments: dict[str, Any]
) -> None:
    """Raise CheckpointError unless the checkpoint is of this network, backbone and width."""
    there, here = {"model": checkpoint["model"]}, {"model": model}
    for name in ("backbone", "channels"):
        there[name], here[name] = checkpoint["arguments"].get(name), arguments.get(name)
    differing = [
        f"{name.upper()} is {there[name]!r} there, {here[name]!r} here"
        for name in here
        if there[name] != here[name]
    ]
    if differing:
        raise CheckpointError(
            f"{path} is of another network: {', '.join(differing)}. Take the settings of its run "
            "(--config RUN/settings.py), or another checkpoint or none (--stage1-checkpoint)"
        )


def _first_line(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).split("\n")[0]
