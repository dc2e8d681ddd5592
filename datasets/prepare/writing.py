"""Writing the frames of an archive in this project's layout."""

import filecmp
import io
import os
import shutil
from collections import Counter
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from datasets.files import write_bytes
from datasets.masks import read_labels
from datasets.pictures import read_size
from datasets.prepare.archives import FEWER, PARTIAL, SourceFrame, entries
from datasets.prepare.masks import mask_picture
from datasets.prepare.sources import Source
from datasets.problems import DatasetError, Problems, add_problems, format_problems
from datasets.progress import progress_bar

_UNUSABLE = ("file that cannot be used", "if it is damaged, unpack the archive again")
_OTHER_FILE = (
    "file that is there with another content",
    "move it away, or choose another data root",
)


@dataclass(frozen=True)
class Prepared:
    """The contents of a set, and how its files were made."""

    set_name: str
    counts: dict[str, int]  # of "sequences" (of video alone), "images" and "masks"
    files: Counter  # how many were "linked", "copied", "converted", or "kept", as they were there


@dataclass(frozen=True)
class _File:
    """One file of a set: where it is from, where it goes, and the mask it is converted to."""

    source: Path
    destination: Path
    frame: SourceFrame | None = None  # None: the file stays as it is

    def labels(self) -> np.ndarray:
        return self.frame.convert(self.frame.image, self.source)


def prepare(
    source: Path, data_root: Path, description: Source, *, accept_partial: bool = False
) -> list[Prepared]:
    """Write a data set in this project's layout.

    Args:
        source: the unpacked archive, or a folder above it.
        data_root: folder that holds this project's sets; made if it is missing.
        description: of the data set, one of `datasets.prepare.sources.SOURCES`.
        accept_partial: accept problems of the kinds in `PARTIAL`, and print what is left out.

    Raises:
        DatasetError: the source is not as described, a file in it cannot be used, or the data root
            holds other files where these should go; nothing has been written then.
        OSError: a file cannot be written.
    """
    if not source.is_dir():
        raise DatasetError(f"{source}: no such folder; give the unpacked archive as --source")
    frames = _read(source, description, accept_partial)
    files = _plan(frames, data_root)
    missing = _missing(files, data_root)
    done = dict.fromkeys((file.destination for file in files), "kept")
    for file in progress_bar(missing, desc="writing files", unit="file"):
        done[file.destination] = _write(file)
    return [
        Prepared(
            name,
            count(name, frames),
            Counter(how for path, how in done.items() if path.is_relative_to(data_root / name)),
        )
        for name in sorted({frame.set_name for frame in frames})
    ]


def _read(source: Path, description: Source, accept_partial: bool) -> list[SourceFrame]:
    """Frames of the source; DatasetError if there are none, or something is wrong with it."""
    problems: Problems = {}
    frames = description.read(source, problems)
    for set_name, known in description.known.items():
        found = count(set_name, frames)
        if found["images"] or not (problems or set_name == description.optional):
            for what, number in known.items():
                if found.get(what, 0) < number:
                    item = f"{set_name}: {found.get(what, 0):,} {what}, {number:,} are known"
                    add_problems(problems, FEWER, item)
    if accept_partial:
        for kind in [kind for kind in problems if kind in PARTIAL]:
            items = problems.pop(kind)
            if kind != FEWER:
                _say_left_out(kind[0], items)
    if description.video and not problems:
        lengths = Counter((frame.folder, frame.sequence) for frame in frames)
        single = [frame for frame in frames if lengths[frame.folder, frame.sequence] == 1]
        if single:
            kind = "sequence of a single frame, which has no flow"
            _say_left_out(kind, [frame.name for frame in single])
        frames = [frame for frame in frames if lengths[frame.folder, frame.sequence] > 1]
    if problems or not frames:
        message = format_problems(source, problems) if problems else f"No frames in {source}."
        folders, files = entries(source)
        found = ", ".join([*(f"{name}/" for name in folders), *files][:10]) or "nothing"
        raise DatasetError(
            f"{message}\nFound there: {found}. docs/data.md says what is expected there, or one or "
            "two folders below."
        )
    return frames


def _say_left_out(kind: str, items: list[str]) -> None:
    more = f", ... and {len(items) - 3} more" if len(items) > 3 else ""
    print(f"left out: {len(items)} x {kind}: {', '.join(items[:3])}{more}")


def count(set_name: str, frames: Iterable[SourceFrame]) -> dict[str, int]:
    """Sequences, images and masks of a set."""
    frames = [frame for frame in frames if frame.set_name == set_name]
    sequences = {frame.sequence for frame in frames} - {""}
    counts = {"images": len(frames), "masks": sum(frame.mask is not None for frame in frames)}
    return {"sequences": len(sequences), **counts} if sequences else counts


def _plan(frames: list[SourceFrame], data_root: Path) -> list[_File]:
    """Every file that the sets should hold. Reads all headers, and masks that may be converted."""

    def plan(frame: SourceFrame) -> tuple[list[_File], str]:
        try:
            return _plan_frame(frame, data_root / frame.folder), ""
        except DatasetError as error:
            return [], str(error)

    with ThreadPoolExecutor() as pool:
        planned = pool.map(plan, frames)
        bar = progress_bar(planned, total=len(frames), desc="reading source", unit="frame")
        found, errors = zip(*bar)
    if any(errors):
        raise DatasetError(format_problems("the source", {_UNUSABLE: list(filter(None, errors))}))
    return [file for files in found for file in files]


def _plan_frame(frame: SourceFrame, folder: Path) -> list[_File]:
    """The files that a frame becomes; DatasetError if one cannot be used."""
    files = [
        _File(path, folder / part / f"{frame.name}{path.suffix}")
        for part, path in (("RGB", frame.image), ("NEXT", frame.following))
        if path is not None
    ]
    sizes = [read_size(file.source) for file in files]
    if frame.mask is not None:
        labels = frame.convert and frame.convert(frame.image, frame.mask)
        converted = labels is not None
        suffix = ".png" if converted else frame.mask.suffix
        destination = folder / "GT" / f"{frame.name}{suffix}"
        files.append(_File(frame.mask, destination, frame if converted else None))
        height, width = labels.shape if converted else read_size(frame.mask)
        if (height, width) != sizes[0]:
            raise DatasetError(
                f"{frame.mask}: {width} x {height}, its image {sizes[0][1]} x {sizes[0][0]}"
            )
    return files


def _missing(files: list[_File], data_root: Path) -> list[_File]:
    """Files that are still to be written; DatasetError if others are in the way of any."""
    missing = []
    problems: Problems = {}
    for file in progress_bar(files, desc="comparing", unit="file"):
        if not file.destination.exists():
            missing.append(file)
        elif not _is_same(file):
            add_problems(problems, _OTHER_FILE, file.destination)
    if problems:
        raise DatasetError(format_problems(data_root, problems))
    return missing


def _is_same(file: _File) -> bool:
    """Whether the destination, which is there, has the content that would be written."""
    if file.frame is None:
        # Compares type, size and time first: a copy has the time of its source.
        return filecmp.cmp(file.source, file.destination)
    try:
        return np.array_equal(read_labels(file.destination), file.labels())
    except DatasetError:
        return False


def _write(file: _File) -> str:
    """Write a file whole or not at all. Returns how."""
    if file.frame is not None:
        buffer = io.BytesIO()
        mask_picture(file.labels()).save(buffer, "PNG")
        write_bytes(file.destination, buffer.getvalue())
        return "converted"
    file.destination.parent.mkdir(parents=True, exist_ok=True)
    try:
        # A link appears at once and never replaces anything. A symbolic link in the source could
        # point to somewhere else when seen from here, so the file that it points to is linked.
        os.link(os.path.realpath(file.source), file.destination)
        return "linked"
    except FileExistsError:
        raise
    except OSError:  # another file system, or one without hard links
        write_bytes(file.destination, file.source.read_bytes())
        shutil.copystat(file.source, file.destination)
        return "copied"
