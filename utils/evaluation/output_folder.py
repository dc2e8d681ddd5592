"""The folder of an evaluation's results."""

import json
import shutil
from pathlib import Path
from typing import Any

from datasets.files import write_text
from datasets.problems import DatasetError
from utils.evaluation.results import FILES, RECORD
from utils.evaluation.soft_masks import PROBABILITIES

MASKS, PANELS = "masks", "panels"
IDENTITY = ".evaluation.json"  # of an evaluation that is not complete


def check_output(output: Path, data_set: Path | None = None) -> None:
    """Check, before any work is done, that results can go to a folder.

    Raises:
        DatasetError: it is a file, or lies in one, or in the data set.
    """
    for folder in (output, *output.parents):
        if folder.exists() and not folder.is_dir():
            raise DatasetError(f"{folder} is a file; expected a folder, which may be missing")
    if data_set is not None and output.resolve().is_relative_to(data_set.resolve()):
        raise DatasetError(
            f"{output} lies in the data set {data_set}, where results would be taken for "
            "sequences; choose another --output"
        )


def file_version(path: Path) -> list[Any]:
    """A file's path, size and time of change, by which a later file in its place is noticed."""
    status = path.stat()
    return [str(path.resolve()), status.st_size, status.st_mtime_ns]


def begin_evaluation(output: Path, identity: dict[str, Any]) -> None:
    """Keep what this evaluation has done before, or else remove the results of another one.

    Raises:
        DatasetError: masks, soft masks or panels that no evaluation is known to have made.
    """
    identity = json.loads(json.dumps(identity, default=str))
    known = output / IDENTITY
    try:
        if json.loads(known.read_text(encoding="utf-8")) == identity:
            return
    except (OSError, ValueError):
        pass
    for folder in _pictures(output):
        found = list(folder.iterdir()) if folder.is_dir() else []
        if found and not is_made_here(output):
            raise DatasetError(
                f"{folder} holds files that no evaluation is known to have made; choose another "
                "--output, or remove that folder"
            )
        if found:
            print(f"note: {folder}, of an earlier evaluation, is replaced")
        for path in found:  # one by one, as the folder may be a link, which stays
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path)
            else:
                path.unlink()
        if folder.is_dir() and not folder.is_symlink():
            folder.rmdir()
    for name in FILES:
        (output / name).unlink(missing_ok=True)
    write_text(known, json.dumps(identity, indent=1))


def _pictures(output: Path) -> list[Path]:
    """The folders of an evaluation's pictures."""
    return [output / name for name in (MASKS, PROBABILITIES, PANELS)]


def is_made_here(output: Path) -> bool:
    """Whether an evaluation, which may be unfinished, has made the pictures in its folder."""
    try:
        record = json.loads((output / RECORD).read_text(encoding="utf-8"))
        finished = record["checkpoint"] is not None  # masks from elsewhere have none
    except (OSError, ValueError, KeyError, TypeError):
        finished = False
    return finished or (output / IDENTITY).is_file()
