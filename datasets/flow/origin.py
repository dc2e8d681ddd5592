"""The origin of flow maps: the estimator of a set's maps, and the two images of each map."""

import json
import os
import zlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from datasets.files import write_text
from datasets.flow.pairs import image_pairs
from datasets.layout import Frame, VideoFiles, flow_note
from datasets.problems import DatasetError

ESTIMATORS = "raft", "dis"
_ORIGIN = ".flow.json"  # in the set's folder

# Begins the JPEG comment of a flow map. The sizes and checksums of its two images follow.
_RECORD = b"flow between images "
_TAIL = 8192  # bytes at a file's end; with the file's size they tell one image from another


def flow_origin(data_root: Path, set_name: str) -> str | None:
    """The origin of a set's flow maps, as "dis, camera motion removed"; None if unknown."""
    try:
        return json.loads((data_root / set_name / _ORIGIN).read_text(encoding="utf-8"))["made_by"]
    except (OSError, ValueError, KeyError, TypeError):
        return None


def origin_in_words(estimator: str, remove_camera_motion: bool) -> str:
    """The estimator's name and whether camera motion is kept, as `flow_origin` tells it."""
    return f"{estimator}, camera motion {'removed' if remove_camera_motion else 'kept'}"


def kind_of_flow(
    trained_on: str | None, estimator: str | None, remove_camera_motion: bool | None
) -> tuple[str, bool]:
    """The estimator of a video's flow maps, and whether it removes the camera's motion.

    ``None`` stands for the kind that the network was trained on, in the words of
    ``origin_in_words``. DIS takes the place of an estimator that is not known here.
    """
    made_by, _, _ = (trained_on or "").partition(", ")
    known = made_by if made_by in ESTIMATORS else "dis"
    removed = (trained_on or "").startswith(origin_in_words(made_by, True))
    if remove_camera_motion is not None:
        removed = remove_camera_motion
    return estimator or known, removed


def compare_flow(trained_on: str | None, given: str | None, whose: str = "these") -> None:
    """Say when a network is shown another kind of flow maps than it was trained on.

    Both are in the words of ``origin_in_words``, or ``None`` where it is not known; ``whose`` says
    which maps are given.
    """
    if trained_on and given and trained_on != given:
        print(f"note: trained on flow maps of another kind ({trained_on}) than {whose} ({given})")


def note_flow(set_name: str, sequences: list[VideoFiles]) -> None:
    """Say which sequences of a set lack a flow map, and which maps are of other images."""
    if note := flow_note(sequences):
        print(f"note: {set_name}: {note}")
    with ThreadPoolExecutor() as pool:
        stale = [path for paths in pool.map(stale_flow, sequences) for path in paths]
    if stale:
        print(
            f"note: {set_name}: {len(stale)} flow maps are of other images than are there now, "
            f"such as {stale[0]}; python -m datasets.flow makes them anew"
        )


def begin_origin(folder: Path, made_by: str, sequences: list[VideoFiles], overwrite: bool) -> None:
    """Note the origin of a set's flow maps, before the first of them is written.

    While maps are overwritten, the note says that the set is a mixture; call `set_origin` after the
    last one. An unknown origin of maps that are there stays unknown. Raises DatasetError if maps of
    another kind would be kept.
    """
    known = flow_origin(folder.parent, folder.name)
    if not any(frame.flow for sequence in sequences for frame in sequence.frames):
        set_origin(folder, made_by)
    elif known not in (None, made_by):
        if not overwrite:
            raise DatasetError(
                f"{folder}: its flow maps are of another kind ({known}) than those that are to be "
                f"made ({made_by}); pass --overwrite to make all of them anew"
            )
        set_origin(folder, f"{known}, in part replaced by {made_by}")


def set_origin(folder: Path, made_by: str | None) -> None:
    """Note the origin of all flow maps of a set; None removes the note."""
    path = folder / _ORIGIN
    if made_by is None:
        path.unlink(missing_ok=True)
    else:
        write_text(path, json.dumps({"made_by": made_by}) + "\n")


def image_record(*images: Path) -> bytes:
    """The comment of a flow map that is made from these images. It does not hold their names."""
    identities = []
    for path in images:
        with path.open("rb") as file:
            size = file.seek(0, os.SEEK_END)
            file.seek(max(0, size - _TAIL))
            identities.append(f"{size}-{zlib.crc32(file.read()):08x}")
    return _RECORD + " ".join(identities).encode()


def is_stale(frame: Frame, other: Path) -> bool:
    """Whether a frame's flow map records that it was made from other images than these two.

    Maps without a record were made elsewhere, and count as right.
    """
    # The last frame may be shown the map of the frame before.
    if frame.flow is None or frame.flow.stem != frame.name:
        return False
    if not all(path.is_file() for path in (frame.flow, frame.image, other)):
        return False  # a pipe would be waited for; the fault is reported where the file is used
    try:
        with frame.flow.open("rb") as file:
            head = file.read(256)
        return _RECORD in head and image_record(frame.image, other) not in head
    except OSError:
        return False


def stale_flow(sequence: VideoFiles) -> list[Path]:
    """Flow maps of a sequence that were made from other images than those that are there now."""
    return [frame.flow for frame, other, _ in image_pairs(sequence) if is_stale(frame, other)]
