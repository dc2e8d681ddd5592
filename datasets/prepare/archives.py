"""Finding the frames and masks of an unpacked archive."""

import os
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from datasets.pictures import IMAGE_SUFFIXES
from datasets.problems import Problems, add_problems

# Kinds of problem. These mean that a part of a data set is missing.
_COMPLETE = "complete the download, or take what is there with --partial"
FEWER = ("count below the known one", _COMPLETE)
MISSING_SEQUENCE = ("sequence without frames", _COMPLETE)
MISSING_FRAME = ("frame or mask that a list names and that is not there", _COMPLETE)
NO_MASK = ("image without mask", _COMPLETE)
NO_IMAGE = ("mask without image", _COMPLETE)
PARTIAL = {FEWER, MISSING_SEQUENCE, MISSING_FRAME, NO_MASK, NO_IMAGE}

_MISSING = ("folder or file missing", "check that --source is the unpacked archive")
UNREADABLE_LIST = ("list that is not UTF-8 text", "unpack the archive again")
_EMPTY = ("folder without pictures", "check that --source is the unpacked archive")
_BROKEN_LINK = ("broken link", "mend it, or remove it")
_AMBIGUOUS = ("folder found twice", "give the one that is meant as --source")

# Gives the label map (H, W) that an image's mask is stored as; None where the file can stay as it
# is. Raises DatasetError for a mask that must not be used.
Convert = Callable[[Path, Path], np.ndarray | None]


@dataclass(frozen=True)
class SourceFrame:
    """One image of a data set with its mask, and its place in this project's layout."""

    folder: str  # that will hold its RGB and GT, relative to the data root: "DAVIS_test/cows"
    sequence: str  # "" for still images
    name: str  # without suffix, as "cows_00012"
    image: Path
    mask: Path | None
    convert: Convert | None = None
    following: Path | None = None  # the next image of the video, where no next frame has it

    @property
    def set_name(self) -> str:
        return self.folder.partition("/")[0]


def entries(folder: Path) -> tuple[list[str], list[str]]:
    """Names of the folders and of the files in a folder, sorted; none where it is missing.

    Hidden entries and those that macOS adds to archives are left out.
    """
    _, folders, files = next(os.walk(folder), ("", [], []))
    return tuple(
        sorted(name for name in names if not name.startswith((".", "__MACOSX")))
        for names in (folders, files)
    )


def videos(folder: Path, problems: Problems) -> list[str]:
    """Names of the folders of videos in a folder; a broken link may stand for one."""
    folders, files = entries(folder)
    broken = (folder / name for name in files if not (folder / name).exists())
    add_problems(problems, _BROKEN_LINK, *broken)
    return list(folders)


def locate(
    source: Path, names: Iterable[str], problems: Problems, required: bool = True
) -> Path | None:
    """The only folder that holds one of these folders: the source, or one or two levels below."""
    names, level, found = list(names), [source], {}
    for depth in range(3):
        if depth > 0:
            level = [folder / name for folder in level for name in entries(folder)[0]]
        pairs = [(folder, folder / name) for folder in level for name in reversed(names)]
        found = {folder: path for folder, path in pairs if path.is_dir()}
        if found:
            break
    if len(found) > 1:
        add_problems(problems, _AMBIGUOUS, *found.values())
    elif required and not found:
        wanted = " or ".join(names[:2])
        add_problems(problems, _MISSING, f"{wanted}, neither in {source} nor in folders of it")
    return next(iter(found)) if len(found) == 1 else None


def first(root: Path, names: Iterable[str], problems: Problems) -> Path | None:
    """The first of several files or folders that is there."""
    paths = [root / name for name in names]
    for path in paths:
        if path.exists():
            return path
    add_problems(problems, _MISSING, " or ".join(map(str, paths)))
    return None


def pictures(folder: Path) -> dict[str, Path]:
    """Pictures of a folder by stem."""
    paths = (folder / name for name in entries(folder)[1])
    return {path.stem: path for path in paths if path.suffix.lower() in IMAGE_SUFFIXES}


def numbered(folder: Path) -> dict[int, Path]:
    """Pictures of a folder by the number at the end of their names."""
    found = ((number_of(stem), path) for stem, path in pictures(folder).items())
    return {number: path for number, path in found if number is not None}


def number_of(stem: str) -> int | None:
    """The number at the end of a name."""
    digits = _digits(stem)
    return int(digits) if digits else None


def paired(
    images_folder: Path,
    masks_folder: Path,
    problems: Problems,
    every: bool = False,
    by: Callable[[Path], dict] = numbered,
) -> tuple[dict, dict]:
    """Images and masks of two folders, by number or by stem.

    Masks without an image are problems, and where `every` image must have a mask, images without a
    mask. An empty folder is one problem, and not one for each file of the other folder.
    """
    images, masks = by(images_folder), by(masks_folder)
    for folder, files, others in ((images_folder, images, masks), (masks_folder, masks, images)):
        if not files and (others or every):
            add_problems(problems, _EMPTY if folder.is_dir() else _MISSING, folder)
            return images, masks
    orphans = sorted(masks.keys() - images.keys())
    add_problems(problems, NO_IMAGE, *(masks[key] for key in orphans))
    if every:
        without = sorted(images.keys() - masks.keys())
        add_problems(problems, NO_MASK, *(images[key] for key in without))
    return images, masks


def frames_of(
    folder: str,
    sequence: str,
    images: dict[int, Path],
    masks: dict[int, Path],
    convert: Convert | None = None,
) -> list[SourceFrame]:
    """Frames of a sequence in their order in time, named <sequence>_<number as in the source>."""
    return [
        SourceFrame(
            folder, sequence, f"{sequence}_{_digits(path.stem)}", path, masks.get(number), convert
        )
        for number, path in sorted(images.items())
    ]


def partly_annotated(
    set_name: str,
    sequence: str,
    images_folder: Path,
    masks_folder: Path,
    problems: Problems,
    convert: Convert,
) -> list[SourceFrame]:
    """All frames of a sequence of a test set, of which some have a mask."""
    if not entries(images_folder)[1]:
        add_problems(problems, MISSING_SEQUENCE, images_folder)
        return []
    images, masks = paired(images_folder, masks_folder, problems)
    return frames_of(f"{set_name}/{sequence}", sequence, images, masks, convert)


def _digits(stem: str) -> str:
    return re.search(r"\d*$", stem).group()
