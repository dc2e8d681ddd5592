"""Writing the frames of an archive in this project's layout."""

import filecmp
import io
import os
import shutil
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
from PIL import Image

from datasets.files import write_bytes
from datasets.known_sets import KNOWN_SETS, is_still_set
from datasets.pictures import IMAGE_SUFFIXES, read_size
from datasets.prepare.archives import INCOMPLETE, SourceFrame, folders
from datasets.prepare.masks import mask_picture, open_any
from datasets.prepare.sources import Source
from datasets.problems import DatasetError, Problems, add_problems, format_problems
from datasets.progress import progress_bar

_UNUSABLE = ("file that cannot be used", "if it is damaged, unpack the archive again")
_CHANGED = (
    "file that is there already and differs from the source",
    "remove the set's RGB and GT folders and start again, or choose another --data-root",
)


@dataclass(frozen=True)
class Prepared:
    """The contents of a set, and how its files were made."""

    set_name: str
    counts: dict[str, int]  # of "sequences" (of video alone), "images" and "masks"
    files: Counter  # how many were "linked", "copied", "converted", or "kept", as they were there


@dataclass(frozen=True)
class _File:
    """One file of a set."""

    source: Path
    destination: Path
    content: bytes | None = None  # of a converted picture; None: the file stays as it is


def prepare(
    source: Path, data_root: Path, description: Source, *, accept_partial: bool = False
) -> list[Prepared]:
    """Write a data set in this project's layout. Equal files that are there already are kept.

    The source is the unpacked archive, or a folder above it, and its description is one of
    `datasets.prepare.sources.SOURCES`. With ``accept_partial`` missing parts are printed, and the
    rest is taken.

    Raises:
        DatasetError: the source is not as described, a file in it cannot be used, or a set has
            another file of the same name; nothing has been written then.
    """
    if not source.is_dir():
        raise DatasetError(f"{source}: no such folder; give the unpacked archive as --source")
    frames = _read(source, description, accept_partial)
    files = _plan(frames, data_root)
    names = sorted({frame.set_name for frame in frames})
    done = {name: Counter() for name in names}
    for file in progress_bar(files, desc="writing files", unit="file"):
        done[file.destination.relative_to(data_root).parts[0]][_write(file)] += 1
    for name in names:
        paths = (data_root / name).rglob("RGB/[!.]*")
        images = {path for path in paths if path.suffix.lower() in IMAGE_SUFFIXES}
        if others := len(images - {file.destination for file in files}):
            print(f"note: images in {name} that the source does not have: {others:,}")
    return [Prepared(name, _count(name, frames), done[name]) for name in names]


def _read(source: Path, description: Source, accept_partial: bool) -> list[SourceFrame]:
    """Frames of the source; DatasetError if there are none, or something is wrong with it."""
    problems: Problems = {}
    frames = description.read(source, problems)
    for set_name in description.sets:
        found = _count(set_name, frames)
        for what, known in KNOWN_SETS[set_name].items() if found["images"] else ():
            if found[what] < known:
                item = f"{set_name}: {found[what]:,} {what}, {known:,} are known"
                add_problems(problems, INCOMPLETE, item)
    if accept_partial and (missing := problems.pop(INCOMPLETE, None)):
        print(f"accepted: {format_problems(source, {(INCOMPLETE[0], 'by --partial'): missing})}")
    lengths = Counter((frame.folder, frame.sequence) for frame in frames if frame.sequence)
    single = [frame for frame in frames if lengths[frame.folder, frame.sequence] == 1]
    if single:
        names = ", ".join(frame.name for frame in single[:3])
        print(f"left out: {len(single)} x sequence of a single frame, which has no flow: {names}")
        frames = [frame for frame in frames if lengths[frame.folder, frame.sequence] != 1]
    if problems or not frames:
        message = format_problems(source, problems) if problems else f"No frames in {source}."
        found = ", ".join(folders(source, {})[:10]) or "none"
        raise DatasetError(
            f"{message}\nFolders there: {found}. docs/data.md says what is expected there, or one "
            "or two folders below."
        )
    return frames


def _count(set_name: str, frames: list[SourceFrame]) -> dict[str, int]:
    """Sequences, images and masks of a set."""
    frames = [frame for frame in frames if frame.set_name == set_name]
    counts = {"images": len(frames), "masks": sum(frame.mask is not None for frame in frames)}
    if is_still_set(set_name):
        return counts
    return {"sequences": len({frame.sequence for frame in frames}), **counts}


def _plan(frames: list[SourceFrame], data_root: Path) -> list[_File]:
    """Every file that the sets should hold. Reads all headers, and masks that may be converted."""
    problems: Problems = {}
    with ThreadPoolExecutor() as pool:
        planned = pool.map(partial(_plan_frame, data_root, problems), frames)
        bar = progress_bar(planned, total=len(frames), desc="reading source", unit="frame")
        files = [file for of_frame in bar for file in of_frame]
    if problems:
        raise DatasetError(format_problems("the source", problems))
    changed = [f.destination for f in files if f.destination.parent.name != "NEXT" and _differs(f)]
    if changed:
        raise DatasetError(format_problems(data_root, {_CHANGED: changed}))
    return files


def _plan_frame(data_root: Path, problems: Problems, frame: SourceFrame) -> list[_File]:
    """The files that a frame becomes."""
    folder, files, sizes, content = data_root / frame.folder, [], [], None
    try:
        for part, path in (("RGB", frame.image), ("NEXT", frame.following)):
            if path is None:
                continue
            if path.suffix.lower() in IMAGE_SUFFIXES:
                files.append(_File(path, folder / part / f"{frame.name}{path.suffix}"))
                sizes.append(read_size(path))
            else:
                picture = open_any(path).convert("RGB")
                files.append(_File(path, folder / part / f"{frame.name}.png", _as_png(picture)))
                sizes.append((picture.height, picture.width))
        if frame.mask is None:
            return files
        suffix, mask_size = frame.mask.suffix, None
        labels = frame.convert and frame.convert(frame.image, frame.mask)
        if labels is not None:
            suffix, mask_size = ".png", labels.shape
            content = _as_png(mask_picture(labels))
        (height, width), size = mask_size or read_size(frame.mask), sizes[0]
    except DatasetError as error:
        add_problems(problems, _UNUSABLE, str(error))
        return []
    if (height, width) != size:
        item = f"{frame.mask}: {width} x {height}, its image {size[1]} x {size[0]}"
        add_problems(problems, _UNUSABLE, item)
    return [*files, _File(frame.mask, folder / "GT" / f"{frame.name}{suffix}", content)]


def _as_png(picture: Image.Image) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, "PNG")
    return buffer.getvalue()


def _differs(file: _File) -> bool:
    """Whether a file is there already with other content."""
    if not file.destination.exists():
        return False
    if file.content is not None:  # other versions may encode the same pixels in another way
        sources = file.destination, io.BytesIO(file.content)
        try:
            return not np.array_equal(*(np.asarray(Image.open(source)) for source in sources))
        except (OSError, SyntaxError):  # a damaged file
            return True
    paths = file.source, file.destination
    return not (os.path.samefile(*paths) or filecmp.cmp(*paths))


def _write(file: _File) -> str:
    """Write a file whole or not at all. Returns how."""
    if file.destination.exists():
        # The image after a frame is another one where `train_all_frames` came later. Without that
        # archive again, the images that are there stay, as they are the nearer ones.
        if "train_all_frames" not in file.source.parts or not _differs(file):
            return "kept"
        file.destination.unlink()
    if file.content is not None:
        write_bytes(file.destination, file.content)
        return "converted"
    file.destination.parent.mkdir(parents=True, exist_ok=True)
    try:
        # A link appears at once. A symbolic link in the source could point to somewhere else when
        # seen from here, so the file that it points to is linked.
        os.link(os.path.realpath(file.source), file.destination)
        return "linked"
    except OSError:  # another file system, or one without hard links
        write_bytes(file.destination, file.source.read_bytes())
        shutil.copystat(file.source, file.destination)
        return "copied"
