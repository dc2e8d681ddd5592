"""``record.json`` in a run's folder: when, how and on what data the run was started.

It has an entry for each start. The settings are in ``settings.py`` beside it.
"""

import hashlib
import json
import os
import platform
import shlex
import subprocess
import sys
from collections.abc import Mapping, Sequence
from datetime import datetime, timezone
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from datasets.files import write_text
from datasets.layout import Frame
from datasets.problems import DatasetError

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
    found = {}
    for name, frames in frames_by_set.items():
        parts = {
            "images": [frame.image for frame in frames],
            "masks": [frame.mask for frame in frames if frame.mask is not None],
            "flow_maps": [frame.flow for frame in frames if frame.flow is not None],
        }
        try:
            files = [(path, os.stat(path).st_size) for part in parts.values() for path in part]
        except OSError as error:
            raise DatasetError(f"{error.filename}: {error.strerror}") from error
        lines = sorted(f"{os.path.relpath(path, data_root)}\0{size}\n" for path, size in files)
        digest = hashlib.sha256("".join(lines).encode("utf-8", "surrogateescape")).hexdigest()
        counts = {part: len(paths) for part, paths in parts.items()}
        found[name] = {**counts, "bytes": sum(size for _, size in files), "hash": digest[:16]}
    return found


def write_record(
    run_dir: Path, fingerprints: Mapping[str, Mapping[str, Any]], device: str, processes: int = 1
) -> None:
    """Add this start of a run to its record; ``device`` is the device with its precision."""
    gpus = range(torch.cuda.device_count())
    versions = {"python": platform.python_version(), "torch": str(torch.__version__)}
    versions |= {name: version(name) for name in ("torchvision", "timm", "numpy")}
    start = {
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "command": shlex.join(sys.argv),
        "commit": git_commit(Path(__file__).parent),
        "versions": versions,
        "device": device,
        "gpus": [torch.cuda.get_device_name(gpu) for gpu in gpus],
        "processes": processes,
        "data": dict(fingerprints),
    }
    starts = [*_read_starts(run_dir), start]
    write_text(run_dir / RECORD, json.dumps({"starts": starts}, indent=1) + "\n")


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


def git_commit(folder: Path) -> str | None:
    """The commit of a folder's code, with ``-dirty`` if tracked files were changed since.

    None where the folder is not in a git checkout, or git is missing or slow.
    """
    command = ["git", "-C", str(folder), "-c", "safe.directory=*"]
    command += ["describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
    try:
        found = subprocess.run(
            command, capture_output=True, timeout=_GIT_SECONDS, check=True, text=True
        )
        return found.stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return None


def _read_starts(run_dir: Path) -> list[dict[str, Any]]:
    """The starts recorded so far."""
    file = run_dir / RECORD
    return json.loads(file.read_text(encoding="utf-8"))["starts"] if file.is_file() else []
