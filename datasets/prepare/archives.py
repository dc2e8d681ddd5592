"""Finding the frames and masks of an unpacked archive."""

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from datasets.layout import is_broken_link, list_pictures, subfolders
from datasets.problems import Problems, add_problems

# Kinds of problem.
INCOMPLETE = "part that is missing", "complete the download, or take what is there with --partial"
WRONG = "folder or file that is not as expected", "check that it is the unpacked archive"

# Gives the label map (H, W) that an image's mask is stored as; None where the file can stay as it
# is. Raises DatasetError for a mask that cannot be used.
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


def folders(folder: Path, problems: Problems) -> list[str]:
    """Names of the folders in a folder, sorted; none where it is missing. Notes broken links."""
    names = subfolders(folder) if folder.is_dir() else []
    broken = [name for name in names if is_broken_link(folder / name)]
    add_problems(problems, WRONG, *(f"{folder / name}: broken link" for name in broken))
    return [name for name in names if name not in broken]


def locate(
    source: Path, names: Iterable[str], problems: Problems, required: bool = True
) -> Path | None:
    """The only folder that holds one of these folders: the source, or one or two levels below."""
    names, level, found = list(names), [source], []
    for _ in range(3):
        found = [folder for folder in level if any((folder / name).is_dir() for name in names)]
        if found:
            break
        level = [folder / name for folder in level for name in folders(folder, {})]
    wanted = " or ".join(names[:2])
    if len(found) > 1:
        item = f"{wanted}, both in {found[0]} and in {found[1]}; give one of them as --source"
        add_problems(problems, WRONG, item)
    elif required and not found:
        add_problems(problems, WRONG, f"{wanted}, neither in {source} nor in folders of it")
    return found[0] if len(found) == 1 else None


def first(root: Path, names: Iterable[str], problems: Problems) -> Path | None:
    """The first of several files or folders that is there."""
    paths = [root / name for name in names]
    for path in paths:
        if path.exists():
            return path
    add_problems(problems, WRONG, f"{' or '.join(map(str, paths))}: missing")
    return None


def pictures(folder: Path) -> dict[str, Path]:
    """Pictures of a folder by stem."""
    return list_pictures(folder, {})


def numbered(folder: Path) -> dict[int, Path]:
    """Pictures of a folder by the number at the end of their names."""
    return {int(digits(stem)): path for stem, path in pictures(folder).items() if digits(stem)}


def digits(stem: str) -> str:
    """The digits at the end of a name."""
    return re.search(r"\d*$", stem).group()


def paired(
    images_folder: Path,
    masks_folder: Path,
    problems: Problems,
    every: bool = False,
    by: Callable[[Path], dict] = numbered,
) -> tuple[dict, dict]:
    """Images and masks of two folders, by number or by stem.

    Masks without an image are problems. With `every` images without a mask are problems, too, and
    are left out.
    """
    images, masks = by(images_folder), by(masks_folder)
    if not images:
        add_problems(problems, INCOMPLETE, f"{images_folder}: no images")
        return {}, {}
    orphans = [f"{masks[key]}: mask without image" for key in masks if key not in images]
    without = [f"{images[key]}: image without mask" for key in images if key not in masks]
    add_problems(problems, INCOMPLETE, *orphans, *(without if every else ()))
    return {key: images[key] for key in sorted(images) if key in masks or not every}, masks


def frames_of(
    folder: str,
    sequence: str,
    images: dict[int, Path],
    masks: dict[int, Path],
    convert: Convert | None = None,
) -> list[SourceFrame]:
    """Frames of a sequence in their order in time, named <sequence>_<number as in the source>."""
    names = {number: f"{sequence}_{digits(path.stem)}" for number, path in images.items()}
    return [
        SourceFrame(folder, sequence, names[number], path, masks.get(number), convert)
        for number, path in sorted(images.items())
    ]
