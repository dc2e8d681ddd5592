"""The origin of a set's flow maps: the estimator, and whether camera motion was removed."""

import json
from pathlib import Path

from datasets.files import write_text
from datasets.layout import Sequence
from datasets.problems import DatasetError

_ORIGIN = ".flow.json"  # in the set's folder


def flow_origin(data_root: Path, set_name: str) -> str | None:
    """The origin of a set's flow maps, as "dis, camera motion removed"; None if unknown."""
    try:
        return json.loads((data_root / set_name / _ORIGIN).read_text(encoding="utf-8"))["made_by"]
    except (OSError, ValueError, KeyError, TypeError):
        return None


def origin_in_words(estimator: str, remove_camera_motion: bool) -> str:
    """The estimator's name and whether camera motion is kept, as `flow_origin` tells it."""
    return f"{estimator}, camera motion {'removed' if remove_camera_motion else 'kept'}"


def begin_origin(folder: Path, made_by: str, sequences: list[Sequence], overwrite: bool) -> None:
    """Note the origin of a set's flow maps, before the first of them is written.

    Nothing is noted while maps are overwritten; call `set_origin` after the last one. An unknown
    origin of maps that are kept stays unknown. Raises DatasetError for maps of another kind.
    """
    known = flow_origin(folder.parent, folder.name)
    if not any(frame.flow for sequence in sequences for frame in sequence.frames):
        set_origin(folder, made_by)
    elif overwrite:
        set_origin(folder, None)
    elif known not in (None, made_by):
        raise DatasetError(
            f"{folder}: its flow maps are of another kind ({known}) than those that are to be "
            f"made ({made_by}); pass --overwrite to make all of them anew"
        )


def set_origin(folder: Path, made_by: str | None) -> None:
    """Note the origin of all flow maps of a set; None removes the note."""
    path = folder / _ORIGIN
    if made_by is None:
        path.unlink(missing_ok=True)
    else:
        write_text(path, json.dumps({"made_by": made_by}) + "\n")
