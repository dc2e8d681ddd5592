"""Checkpoints: files with a network's weights, what it is, and where its training stood.

A run's folder holds ``last.pt`` and, where a save was asked to keep it, the one before as
``previous.pt``. They are zip archives as torch.save writes them, in which every record, pickle and
tensors alike, carries its CRC-32; torch.load ignores these, ``load_checkpoint`` checks them.
"""

import errno
import inspect
import os
import pickle
import re
import zipfile
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any, BinaryIO

import torch
from torch import Tensor, nn

from models import build_model, model_class
from models.interface import Network
from utils.settings import SettingsError, config_kinds

LAST, PREVIOUS, BEST = "last.pt", "previous.pt", "best.pt"

# What a checkpoint must hold, and those settings of its run that an evaluation cannot do without.
_PARTS = {"model": str, "arguments": dict, "weights": dict, "settings": dict}
_SETTINGS = ("IMAGE_SIZE", "NUM_REFERENCES", "RECOLOUR_FLOW")


class CheckpointError(ValueError):
    """A checkpoint that is missing, damaged, of another network, or that cannot be written."""


def save_checkpoint(path: Path, checkpoint: dict[str, Any], keep_previous: bool = False) -> None:
    """Write ``checkpoint`` so that ``path`` is at any time either the old file or the new one.

    Args:
        path: the file; what an earlier process left half-written beside it is overwritten.
        checkpoint: what ``load_checkpoint`` will read: tensors, numbers, strings, and lists and
            dictionaries of them.
        keep_previous: the old file becomes ``previous.pt`` beside it. Whenever the process dies,
            one of the two is there and whole. A damaged old file is not kept: ``previous.pt``,
            from which training has then gone on, stays.

    Raises:
        CheckpointError: it could not be written, as on a full disk; says what is whole still.
    """
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        # Through a file of our own, since torch's says of a failed write neither what nor why.
        with temporary.open("wb") as file:
            torch.save(checkpoint, file)
            file.flush()
            os.fsync(file.fileno())
        if keep_previous and _is_whole(path):
            _keep(path, path.with_name(PREVIOUS))
        os.replace(temporary, path)
    except (OSError, RuntimeError) as error:
        older = [path.name, PREVIOUS] if keep_previous else [path.name]
        raise CheckpointError(_write_failure(path, error, older)) from error
    finally:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)
    _flush_folder(path.parent)


def load_checkpoint(path: Path) -> dict[str, Any]:
    """Read a checkpoint that ``save_checkpoint`` wrote, onto the CPU; code in it is never run.

    Its parts have the types that the code expects, and all of its tensors are finite.

    Raises:
        CheckpointError: no such file, a damaged one, one with NaN or infinite numbers, or not a
            checkpoint of this project.
    """
    path = Path(path)
    if path.is_dir():
        raise CheckpointError(f"{path} is a folder; give the best.pt or last.pt in it")
    if not path.is_file():
        raise CheckpointError(f"there is no checkpoint {path}")
    try:
        with path.open("rb") as file:
            _check_records(file)
            file.seek(0)
            checkpoint = torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:
        # zipfile and torch.load raise many kinds for damaged files and for pickles with code.
        raise CheckpointError(
            f"{path} cannot be read as a checkpoint: {_read_failure(error)}"
        ) from error
    if fault := _fault(checkpoint):
        raise CheckpointError(f"{path} is not a checkpoint of this project: {fault}")
    if spoilt := list(not_finite(checkpoint)):
        raise CheckpointError(
            f"{path} holds numbers that are not finite (NaN or infinity), in {len(spoilt)} tensors "
            f"such as {spoilt[0]}: its training has broken down; use an earlier checkpoint"
        )
    return checkpoint


def not_finite(value: Any, name: str = "") -> Iterator[str]:
    """Names of the tensors with NaN or infinity in them, at any depth of dictionaries and lists."""
    if isinstance(value, Tensor):
        if not value.isfinite().all():
            yield name
    elif isinstance(value, dict | list | tuple):
        for key, part in value.items() if isinstance(value, dict) else enumerate(value):
            yield from not_finite(part, f"{name}.{key}" if name else str(key))


def load_last(run_dir: Path) -> tuple[dict[str, Any], Path, str | None]:
    """The newest usable checkpoint of a run: ``last.pt``, or else ``previous.pt``.

    Returns:
        The checkpoint, its file, and, where that is not ``last.pt``, a sentence that says why.

    Raises:
        CheckpointError: neither can be used; the message says what is wrong with each.
    """
    last, previous = Path(run_dir) / LAST, Path(run_dir) / PREVIOUS
    try:
        return load_checkpoint(last), last, None
    except CheckpointError as error:
        trouble = str(error)
    try:
        checkpoint = load_checkpoint(previous)
    except CheckpointError as error:
        raise CheckpointError(f"{run_dir} cannot be resumed: {trouble}; {error}") from error
    return checkpoint, previous, f"{trouble}; the one before it, {previous}, is used instead"


def build_from_checkpoint(checkpoint: dict[str, Any], **changes: Any) -> Network:
    """The network that a checkpoint holds, with its weights.

    Arguments that are newer than the checkpoint come from the settings of its run.

    Args:
        checkpoint: from ``load_checkpoint``.
        changes: constructor arguments to take in place of the checkpoint's, of those that the
            network calls ``changeable``.

    Raises:
        CheckpointError: the network does not take its arguments, or the weights do not fit.
    """
    kind = model_class(checkpoint["model"])
    accepted = inspect.signature(kind).parameters
    of_the_run = {name.lower(): value for name, value in checkpoint["settings"].items()}
    arguments = {name: of_the_run[name] for name in accepted if name in of_the_run}
    arguments |= kind.upgraded(checkpoint["arguments"])
    if unknown := sorted(map(str, arguments.keys() - accepted.keys())):
        raise CheckpointError(
            f"the checkpoint's network has {', '.join(unknown)}, which this code's "
            f"{checkpoint['model']} does not know: it was made by another version of the code"
        )
    for name, value in arguments.items():
        if accepted[name].annotation is bool and not isinstance(value, bool):
            raise CheckpointError(f"the network's {name} is {value!r}, not True or False")
    arguments |= changes
    if "pretrained_backbone" in accepted:
        arguments["pretrained_backbone"] = False
    network = build_model(checkpoint["model"], **arguments)
    load_weights(network, checkpoint["weights"])
    return network


def load_weights(model: nn.Module, weights: dict[str, Tensor]) -> None:
    """Fill a network with a checkpoint's weights.

    Raises:
        CheckpointError: the weights do not fit.
    """
    try:
        model.load_state_dict(weights)
    except RuntimeError as error:
        raise CheckpointError(
            "the checkpoint's weights do not fit the network that its settings describe; it was "
            f"made by another version of the code ({str(error).splitlines()[-1].strip()[:300]})"
        ) from error


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


def check_same_script(checkpoint: dict[str, Any], identity: dict[str, Any], folder: Path) -> None:
    """Raise CheckpointError if the checkpoint in the run's folder is of another script's run.

    Older checkpoints do not name their script; a network of stage 1 can only be pretrain.py's.
    """
    own = identity.get("script")
    stage1 = (model_class(checkpoint["model"]).stage1 or {"": None}).items()
    of_stage1 = stage1 <= checkpoint["arguments"].items()
    other = checkpoint.get("script", "pretrain.py" if of_stage1 else own)
    if own is not None and other != own:
        raise CheckpointError(
            f"{folder} is a run of {other}, not of {own}: python {other} --resume {folder} goes "
            "on with it, and nothing in it is changed"
        )


def check_same_order(checkpoint: dict[str, Any], model: nn.Module) -> None:
    """Raise CheckpointError unless tensors come in the same order in the checkpoint and ``model``.

    Optimizers keep their state by position: where a version of timm or of this code has changed
    the order of a network's parameters, weights go from one to the other, training does not.
    """
    weights = checkpoint["weights"]
    if list(weights) != [name for name in model.state_dict() if name in weights]:
        raise CheckpointError(
            "the checkpoint's tensors come in another order than the network's, so its optimizer "
            "state cannot be used; resume with the versions that the run was started with "
            "(record.json in its folder has them)"
        )


def _fault(checkpoint: Any) -> str | None:
    """What of a checkpoint the rest of the code could not use, in words."""
    parts = checkpoint if isinstance(checkpoint, dict) else {}
    if lacking := sorted(_PARTS.keys() - parts.keys()):
        return f"it lacks {', '.join(lacking)}"
    optional = {"progress": dict, "training": dict, "flow": str | None, "script": str}
    for name, kind in {**_PARTS, **optional}.items():
        if name in parts and not isinstance(parts[name], kind):
            return f"its {name} is of the type {type(parts[name]).__name__}"
    if not all(isinstance(n, str) and isinstance(w, Tensor) for n, w in parts["weights"].items()):
        return "its weights are not all tensors with names"
    arguments = {str(name).upper(): value for name, value in parts["arguments"].items()}
    settings = {name: parts["settings"].get(name) for name in _SETTINGS}
    for name, value in {**settings, **arguments}.items():
        if kind := config_kinds().get(name):
            try:
                kind.check(value, f"its {name} is {value!r}")
            except SettingsError as error:
                return str(error)
    return None


def _check_records(file: BinaryIO) -> None:
    """Raise BadZipFile unless every record of the archive agrees with its checksum."""
    with zipfile.ZipFile(file) as archive:
        damaged = archive.testzip()
    if damaged is not None:
        raise zipfile.BadZipFile(f"its record {damaged} does not agree with its checksum")


def _is_whole(path: Path) -> bool:
    try:
        with path.open("rb") as file:
            _check_records(file)
    except Exception:  # of many kinds, as in load_checkpoint; also where there is no file
        return False
    return True


def _keep(path: Path, previous: Path) -> None:
    """Make a file known as ``previous`` too, or only, where the file system has no hard links."""
    link = previous.with_name(f".{previous.name}.tmp")
    link.unlink(missing_ok=True)
    try:
        os.link(path, link)
    except OSError:
        os.replace(path, previous)
        return
    os.replace(link, previous)


def _flush_folder(folder: Path) -> None:
    """See to it that renamed files keep their new names when the power fails."""
    with suppress(OSError):  # not every system opens or flushes folders
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def _write_failure(path: Path, error: BaseException, older: list[str]) -> str:
    cause: BaseException | None = error
    while cause is not None and not isinstance(cause, OSError):
        cause = cause.__context__  # torch's complaint about the archive hides the disk's
    message = f"{path} could not be written: {(cause and cause.strerror) or _first_line(error)}"
    if cause is not None and cause.errno in (errno.ENOSPC, errno.EDQUOT):
        message += "; make room on the disk"
    whole = [name for name in older if _is_whole(path.with_name(name))]
    if whole:
        message += f"; the older {' and '.join(whole)} {'is' if len(whole) == 1 else 'are'} whole"
    return message


def _read_failure(error: Exception) -> str:
    if isinstance(error, pickle.UnpicklingError):
        found = re.search(r"GLOBAL (\S+)", str(error))
        return (
            f"it holds {found[1] if found else 'more than tensors and plain values'}, and what "
            "might be code is never run"
        )
    if isinstance(error, zipfile.BadZipFile):
        return f"it is damaged or no file of torch.save ({_first_line(error)})"
    return _first_line(error)


def _first_line(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).split("\n")[0]
