"""Where a run comes from: ``record.json`` in its folder, with an entry for each of its starts.

An entry has the date, the command line, the code's git commit, versions, hardware, and the data's
fingerprint; the settings are in ``settings.py`` beside it. No host or user name is written down.
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
from concurrent.futures import ThreadPoolExecutor
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

RECORD = "record.json"

_GIT_SECONDS = 5  # after which a git command on a slow disk is given up
_THREADS = 16  # that wait for the disk; network file systems answer many at a time
_CHUNK = 2000  # files asked for at a time, since handing over single ones costs more than asking


def fingerprint(
    frames_by_set: Mapping[str, Sequence[Frame]], data_root: Path
) -> dict[str, dict[str, Any]]:
    """What each set consists of, so that changed data is noticed; no file is read.

    Args:
        frames_by_set: the frames in use, by the set's name.
        data_root: the folder that holds the sets.

    Returns:
        By set: the numbers of ``images``, ``masks`` and ``flow_maps``, their ``bytes`` in all, and
        a ``hash`` of 16 hexadecimal digits over the files' names and sizes. It depends neither on
        the frames' order nor on where the data root is.

    Raises:
        DatasetError: a file that is not there.
    """
    return {name: _fingerprint(frames, data_root) for name, frames in frames_by_set.items()}


def write_record(
    run_dir: Path, fingerprints: Mapping[str, Mapping[str, Any]], processes: int = 1
) -> None:
    """Add this start of a run to its ``record.json``, which is replaced whole or not at all.

    A damaged record is kept as ``record.damaged.json``, and a new one begun.

    Args:
        run_dir: the run's folder; made if need be.
        fingerprints: of the data, from :func:`fingerprint`.
        processes: that train together. Hardware is that of this process's machine alone.
    """
    run_dir.mkdir(parents=True, exist_ok=True)
    path = run_dir / RECORD
    starts = _read_starts(path)
    if starts is None:
        os.replace(path, path.with_suffix(".damaged.json"))
        starts = []
    start = {
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "command": _without_home(shlex.join(sys.argv)),
        "git": git_state(Path(__file__).parent),
        "versions": _versions(),
        "hardware": {**_hardware(), "processes": processes},
        "data": dict(fingerprints),
    }
    write_text(path, json.dumps({"starts": [*starts, start]}, indent=1) + "\n")


def changed_data(run_dir: Path, fingerprints: Mapping[str, Mapping[str, Any]]) -> str | None:
    """A sentence about how the data differs from that of the run's first start.

    Returns:
        None where it is the same, or where there is no record to compare with.
    """
    starts = _read_starts(run_dir / RECORD)
    if not starts:
        return None
    then = starts[0]["data"]
    changes = []
    for name in sorted({*then, *fingerprints}):
        old, new = then.get(name), fingerprints.get(name)
        if old == new:
            continue
        if old is None or new is None:
            changes.append(f"{name} is {'no longer used' if new is None else 'new'}")
        elif (before := _counts(old)) != (now := _counts(new)):
            changes.append(f"{name} had {before}, and has {now}")
        else:
            changes.append(f"{name} has {now} as before, but some have another name or size")
    if not changes:
        return None
    return f"the data has changed since {run_dir} was started: {'; '.join(changes)}"


def git_state(folder: Path) -> dict[str, Any] | None:
    """The ``commit`` that a folder's code is of, and whether it is ``dirty``: changed since.

    Files that git does not track are not looked for, since data may lie among them. None where
    the folder is not in a git checkout, or git is missing or slow.
    """
    # Variables that git sets for its hooks would point to another checkout. No lock is taken that
    # someone at work in this one could run into. In a container the files are often another's.
    environment = {name: value for name, value in os.environ.items() if name[:4] != "GIT_"}
    environment["GIT_OPTIONAL_LOCKS"] = "0"

    def git(*arguments: str) -> str:
        return subprocess.run(
            ["git", "-C", str(folder), "-c", "safe.directory=*", *arguments],
            env=environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=_GIT_SECONDS,
            check=True,
        ).stdout.decode(errors="replace")

    try:
        if not git("ls-files", "--", "."):
            return None  # a checkout of something else, in which the code was unpacked
        commit = git("rev-parse", "--verify", "HEAD").strip()
        return {"commit": commit, "dirty": bool(git("status", "--porcelain", "-uno"))}
    except (OSError, subprocess.SubprocessError):
        return None


def _fingerprint(frames: Sequence[Frame], data_root: Path) -> dict[str, Any]:
    parts = {
        "images": [frame.image for frame in frames],
        "masks": [frame.mask for frame in frames if frame.mask is not None],
        "flow_maps": [frame.flow for frame in frames if frame.flow is not None],
    }
    files = [os.fspath(path) for paths in parts.values() for path in paths]
    chunks = [files[start : start + _CHUNK] for start in range(0, len(files), _CHUNK)]
    with ThreadPoolExecutor(_THREADS) as pool:
        sizes = [size for chunk in pool.map(_sizes, chunks) for size in chunk]
    root = os.path.join(os.fspath(data_root), "")
    names = (
        file[len(root) :] if file.startswith(root) else os.path.relpath(file, root)
        for file in files
    )
    lines = sorted(f"{name.replace(os.sep, '/')}\0{size}\n" for name, size in zip(names, sizes))
    digest = hashlib.sha256("".join(lines).encode("utf-8", "surrogateescape"))
    counts = {part: len(paths) for part, paths in parts.items()}
    return {**counts, "bytes": sum(sizes), "hash": digest.hexdigest()[:16]}


def _sizes(files: list[str]) -> list[int]:
    try:
        return [os.stat(file).st_size for file in files]
    except OSError as error:
        raise DatasetError(f"{error.filename}: {error.strerror}") from error


def _counts(one: Mapping[str, Any]) -> str:
    return ", ".join(
        f"{one.get(part)} {part.replace('_', ' ')}" for part in ("images", "masks", "flow_maps")
    )


def _read_starts(path: Path) -> list[dict[str, Any]] | None:
    """Those recorded so far; None if the file is damaged."""
    try:
        starts = json.loads(path.read_text(encoding="utf-8"))["starts"]
    except FileNotFoundError:
        return []
    except (ValueError, KeyError, TypeError):
        return None
    whole = isinstance(starts, list) and all(
        isinstance(start, dict)
        and isinstance(start.get("data"), dict)
        and all(isinstance(one, dict) for one in start["data"].values())
        for start in starts
    )
    return starts if whole else None


def _versions() -> dict[str, str]:
    modules = {
        "torch": torch,
        "torchvision": torchvision,
        "timm": timm,
        "numpy": numpy,
        "opencv": cv2,
    }
    versions = {"python": platform.python_version()}
    versions |= {name: str(module.__version__) for name, module in modules.items()}
    if torch.cuda.is_available():
        versions["cuda"] = str(torch.version.cuda)
        versions["cudnn"] = str(torch.backends.cudnn.version())
    return versions


def _hardware() -> dict[str, Any]:
    gpus = []
    if torch.cuda.is_available():
        gpus = [torch.cuda.get_device_properties(i) for i in range(torch.cuda.device_count())]
    return {
        "cpu": cpu_model(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else None,
        "cores_of_machine": os.cpu_count(),
        "memory_gib": round(psutil.virtual_memory().total / 2**30, 1),
        "gpus": [
            {"name": gpu.name, "memory_gib": round(gpu.total_memory / 2**30, 1)} for gpu in gpus
        ],
    }


def cpu_model() -> str:
    """The processor's name, as Linux or else Python has it."""
    try:
        found = re.search(r"model name\s*: (.+)", Path("/proc/cpuinfo").read_text())
    except OSError:
        found = None
    return found[1].strip() if found else platform.processor() or platform.machine()


def _without_home(command: str) -> str:
    """``~`` for the user's folder, which has the user's name."""
    home = os.path.expanduser("~").rstrip("/")
    if not home:
        return command
    # Whole names only: /home/me is neither in /home/memory nor in /mnt/home/me.
    return re.sub(rf"(?<![\w./~-]){re.escape(home)}(?![^/'\s])", "~", command)
