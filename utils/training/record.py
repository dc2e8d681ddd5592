"""``record.json`` in a run's folder: when, how and on what data the run was started.

It has an entry for each start. The settings are in ``settings.py`` beside it.
"""

import hashlib
import json
import os
import platform
import re
import shlex
import subprocess
import sys
from collections.abc import Mapping, Sequence
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import cv2
import numpy
import psutil
import timm
import torch
import torchvision

from datasets.files import write_text
from datasets.layout import Frame
from datasets.problems import DatasetError
from utils.processes import num_cores
from utils.training.checkpoints import CheckpointError

RECORD = "record.json"

_GIT_SECONDS = 5  # after which a git command on a slow disk is given up


def fingerprint(
    frames_by_set: Mapping[str, Sequence[Frame]], data_root: Path
) -> dict[str, dict[str, Any]]:
    """Numbers and a hash by which changed data is noticed; no file is read.

    Returns:
        By set: the numbers of ``images``, ``masks`` and ``flow_maps``, their ``bytes`` in all, and
        a ``hash`` of the files' names and sizes, whatever their order and the data root.

    Raises:
        DatasetError: a file that is not there.
    """
    return {name: _fingerprint(frames, data_root) for name, frames in frames_by_set.items()}


def write_record(
    run_dir: Path, fingerprints: Mapping[str, Mapping[str, Any]], processes: int = 1
) -> None:
    """Add this start of a run, by that many processes, to its record."""
    start = {
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "command": shlex.join(sys.argv),
        "git": git_state(Path(__file__).parent),
        "versions": _versions(),
        "hardware": {**_hardware(), "processes": processes},
        "data": dict(fingerprints),
    }
    starts = [*_read_starts(run_dir), start]
    write_text(run_dir / RECORD, json.dumps({"starts": starts}, indent=1) + "\n")


def check_script(run_dir: Path, script: str) -> None:
    """Raise CheckpointError if the record says that another script began the run."""
    for start in _read_starts(run_dir):
        begun_by = Path(shlex.split(start["command"])[0]).name
        if begun_by != script and begun_by in ("pretrain.py", "train.py"):
            raise CheckpointError(
                f"{run_dir} is a run of {begun_by}, not of {script}; continue it by python "
                f"{begun_by} --resume {run_dir}"
            )


def changed_data(run_dir: Path, fingerprints: Mapping[str, Mapping[str, Any]]) -> str | None:
    """A sentence about how the data differs from that of the run's first start, or None."""
    starts = _read_starts(run_dir)
    then = starts[0]["data"] if starts else fingerprints
    changed = sorted(n for n in {*then, *fingerprints} if then.get(n) != fingerprints.get(n))
    if not changed:
        return None
    return (
        f"the data has changed since {run_dir} was started: {', '.join(changed)}; "
        f"{run_dir / RECORD} has the numbers of files"
    )


def git_state(folder: Path) -> dict[str, Any] | None:
    """The ``commit`` of a folder's code, and whether tracked files are ``dirty``: changed since.

    None where the folder is not in a git checkout, or git is missing or slow.
    """

    def git(*arguments: str) -> str:
        return subprocess.run(
            ["git", "-C", str(folder), "-c", "safe.directory=*", *arguments],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=_GIT_SECONDS,
            check=True,
            text=True,
        ).stdout

    try:
        if not git("ls-files", "--", "."):
            return None  # a checkout of something else, in which the code was unpacked
        commit = git("rev-parse", "--verify", "HEAD").strip()
        return {"commit": commit, "dirty": bool(git("status", "--porcelain", "-uno"))}
    except (OSError, subprocess.SubprocessError):
        return None


def cpu_model() -> str:
    """The processor's name, as Linux or else Python has it."""
    try:
        found = re.search(r"model name\s*: (.+)", Path("/proc/cpuinfo").read_text())
    except OSError:
        found = None
    return found[1].strip() if found else platform.processor() or platform.machine()


def _fingerprint(frames: Sequence[Frame], data_root: Path) -> dict[str, Any]:
    parts = {
        "images": [frame.image for frame in frames],
        "masks": [frame.mask for frame in frames if frame.mask is not None],
        "flow_maps": [frame.flow for frame in frames if frame.flow is not None],
    }
    files = [path for part in parts.values() for path in part]
    try:
        sizes = [os.stat(file).st_size for file in files]
    except OSError as error:
        raise DatasetError(f"{error.filename}: {error.strerror}") from error
    names = (Path(os.path.relpath(file, data_root)).as_posix() for file in files)
    lines = sorted(f"{name}\0{size}\n" for name, size in zip(names, sizes))
    digest = hashlib.sha256("".join(lines).encode("utf-8", "surrogateescape"))
    counts = {name: len(part) for name, part in parts.items()}
    return {**counts, "bytes": sum(sizes), "hash": digest.hexdigest()[:16]}


def _read_starts(run_dir: Path) -> list[dict[str, Any]]:
    """The starts recorded so far."""
    try:
        starts = json.loads((run_dir / RECORD).read_text(encoding="utf-8"))["starts"]
        return [start for start in starts if start["command"] and isinstance(start["data"], dict)]
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return []


def _versions() -> dict[str, str]:
    modules = {"torchvision": torchvision, "timm": timm, "numpy": numpy, "opencv": cv2}
    versions = {"python": platform.python_version(), "torch": str(torch.__version__)}
    versions |= {name: module.__version__ for name, module in modules.items()}
    if torch.cuda.is_available():
        versions["cuda"] = str(torch.version.cuda)
        versions["cudnn"] = str(torch.backends.cudnn.version())
    return versions


def _hardware() -> dict[str, Any]:
    gpus = map(torch.cuda.get_device_properties, range(torch.cuda.device_count()))
    return {
        "cpu": cpu_model(),
        "cores": num_cores(),
        "cores_of_machine": os.cpu_count(),
        "memory_gib": round(psutil.virtual_memory().total / 2**30, 1),
        "gpus": [
            {"name": gpu.name, "memory_gib": round(gpu.total_memory / 2**30, 1)} for gpu in gpus
        ],
    }
