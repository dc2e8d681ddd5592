"""Data sets as downloaded, brought into this project's layout (see `datasets.layout`).

    python -m datasets.prepare davis2016 --source downloads/DAVIS --data-root data

What the authors' archives hold is described in `datasets.sources`. Files are hard links where the
file system has them, so that they take no room, and copies where it has not; only what this project
would not read rightly is converted: pictures that are neither JPEG nor PNG, ground truths of FBMS,
masks with a void label, masks of another size than their images where that is the data set's own
way. A set of several objects needs nothing, for any label but 0 is foreground here. Sequences of a
single frame are left out and named: they have no flow.

The source is checked before anything is written and is never changed; nothing is written outside
the data root. The program can be stopped at any time and started again: a file is there whole or
not at all, and those that are there are left as they are. A file of another content under the same
name is never replaced.
"""

import argparse
import filecmp
import io
import os
import shutil
import sys
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import cv2
import numpy as np
from PIL import Image

from datasets.layout import (
    IMAGE_SUFFIXES,
    DatasetError,
    Frame,
    Problems,
    check_files,
    flow_command,
    format_problems,
    read_mask,
    unwritable,
)
from datasets.progress import print_any_name, progress_bar
from datasets.sources import (
    FEWER,
    PARTIAL,
    SOURCES,
    Known,
    Source,
    SourceFrame,
    open_picture,
    read_foreground,
)

# A file being written; the leading dot hides it from the layout's scan.
_PARTIAL_FILE = ".{name}.partial"

_UNUSABLE = ("file that cannot be used", "unpack the archive again")
_SEVERAL_OBJECTS = (
    "mask of several objects or with a void label, as DAVIS 2017 has them",
    "if this is that archive, prepare it as davis2017",
)
_OTHER_SIZE = ("mask of another size than its image", "unpack the archive again")
_OTHER_FILE = (
    "file that is there with another content or suffix",
    "move it away, or choose another data root",
)
_OUTSIDE = ("folder that is a link or no folder", "move it away, or choose another data root")


@dataclass(frozen=True)
class Prepared:
    """What became of one set."""

    set_name: str
    sequences: int  # 0 for still images
    images: int
    masks: int
    linked: int
    copied: int
    converted: int
    kept: int  # files that were there already
    others: int  # images and masks in the set that are not of this source, and were left alone


@dataclass(frozen=True)
class _File:
    """One file of a set: where it is from, where it goes and, if it is converted, how."""

    source: Path
    destination: Path
    convert: Callable[[Path], np.ndarray] | None = None


def prepare(
    source: Path,
    data_root: Path,
    description: Source,
    *,
    accept_partial: bool = False,
    progress: bool = True,
) -> list[Prepared]:
    """Write a data set in this project's layout.

    Args:
        source: the unpacked archive, or a folder above it.
        data_root: folder that holds this project's sets; made if it is missing.
        description: what the source should hold, one of `datasets.sources.SOURCES`.
        accept_partial: take what is there where sequences, frames that a list names, or masks or
            images of a pair are missing, or a count is below the known one; says what is left out.
        progress: show progress bars.

    Returns:
        For each set what it holds and what was done.

    Raises:
        DatasetError: the source is not what was expected, a file in it cannot be used, or the data
            root holds other files where these should go; nothing has been written then. Or a file
            cannot be written.
    """
    source, data_root = Path(source), Path(data_root)
    if not source.is_dir():
        raise DatasetError(f"{source}: no such folder; give the unpacked archive as --source")
    if _is_within(data_root, source):
        raise DatasetError(
            f"The data root {data_root} is the source folder {source} or lies in it, and sources "
            "are never changed; choose another data root."
        )
    problems: Problems = {}
    frames = description.read(source, problems)
    for set_name, known in description.known.items():
        _compare_counts(set_name, known, frames, problems)
    if accept_partial:
        left_out = {kind: items for kind, items in problems.items() if kind in PARTIAL - {FEWER}}
        for (kind, _), items in left_out.items():
            print(f"left out: {len(items)} x {kind}: {_some(items)}")
        problems = {kind: items for kind, items in problems.items() if kind not in PARTIAL}
    if description.video and not problems:
        frames = _without_single(frames)
    if problems or not frames:
        raise DatasetError(_explain(source, description, problems))

    for folder in sorted({frame.folder.partition("/")[0] for frame in frames}):
        if _is_within(source, data_root / folder):
            raise DatasetError(
                f"The source {source} lies in {data_root / folder}, which this data set is to be "
                "written to; move the source elsewhere, or choose another data root."
            )
    files = _plan(frames, data_root, description, progress)
    missing = _compare_destination(files, data_root, progress)
    _check_sources(frames, missing, progress)

    done = dict.fromkeys((file.destination for file in files), "kept")
    for folder in sorted({file.destination.parent for file in files}):
        folder.mkdir(parents=True, exist_ok=True)
        for leftover in folder.glob(_PARTIAL_FILE.format(name="*")):
            leftover.unlink()
    for file in progress_bar(missing, desc="writing files", unit="file", shown=progress):
        try:
            done[file.destination] = _write(file)
        except OSError as error:
            raise unwritable(file.destination, error) from error

    prepared = []
    for set_name in sorted({frame.folder.partition("/")[0] for frame in frames}):
        sequences, images, masks = _count(set_name, frames)
        folder = data_root / set_name
        actions = [action for path, action in done.items() if path.is_relative_to(folder)]
        prepared.append(
            Prepared(
                set_name,
                sequences,
                images,
                masks,
                linked=actions.count("linked"),
                copied=actions.count("copied"),
                converted=actions.count("converted"),
                kept=actions.count("kept"),
                others=_count_others(folder, done),
            )
        )
    return prepared


def _count(set_name: str, frames: Iterable[SourceFrame]) -> tuple[int, int, int]:
    """Sequences, images and masks of a set."""
    frames = [frame for frame in frames if frame.folder.partition("/")[0] == set_name]
    sequences = {frame.sequence for frame in frames} - {""}
    return len(sequences), len(frames), sum(frame.mask is not None for frame in frames)


def _without_single(frames: list[SourceFrame]) -> list[SourceFrame]:
    """The frames but for those that are alone in their sequence; says which are left out."""
    lengths = Counter((frame.folder, frame.sequence) for frame in frames)
    single = [frame.name for frame in frames if lengths[frame.folder, frame.sequence] == 1]
    if single:
        print(
            f"left out: {len(single)} x sequence of a single frame, which has no flow: "
            f"{_some(single)}"
        )
    return [frame for frame in frames if lengths[frame.folder, frame.sequence] > 1]


def _some(items: list[str]) -> str:
    """The first three."""
    return ", ".join(items[:3]) + (f", ... and {len(items) - 3} more" if len(items) > 3 else "")


def _count_others(folder: Path, ours: dict[Path, str]) -> int:
    """Images and masks in a set's folder but for those of this source."""
    count = 0
    for part, _, names in os.walk(folder):
        if os.path.basename(part) in ("RGB", "GT"):
            count += sum(_is_visible_picture(n) and Path(part, n) not in ours for n in names)
    return count


def _is_visible_picture(name: str) -> bool:
    return not name.startswith(".") and name.lower().endswith(IMAGE_SUFFIXES)


def _compare_counts(
    set_name: str, known: Known, frames: list[SourceFrame], problems: Problems
) -> None:
    """Report what there is less of than is known."""
    found = _count(set_name, frames)
    if not any(found) and (known.optional or problems):
        return  # what is missing was said
    for number, expected, what in zip(found, _numbers(known), ("sequences", "images", "masks")):
        if expected is not None and number < expected:
            item = f"{set_name}: {number:,} {what}, {expected:,} are known"
            problems.setdefault(FEWER, []).append(item)


def _numbers(known: Known) -> tuple[int | None, int | None, int | None]:
    return known.sequences, known.images, known.masks


def _explain(source: Path, description: Source, problems: Problems) -> str:
    """Message about a source: all problems, what was expected and what is there."""
    lines = [format_problems(str(source), problems)] if problems else [f"No frames in {source}."]
    lines += ["Expected there, or one or two folders below:"]
    lines += [f"  {pattern}" for pattern in description.layout]
    lines.append("Found there:")
    entries = sorted(path for path in source.iterdir() if not path.name.startswith("."))
    for path in entries[:10]:
        inside = sorted(p.name for p in path.iterdir())[:5] if path.is_dir() else None
        lines.append(f"  {path.name}" + (f"/ ({', '.join(inside) or 'empty'})" if inside else ""))
    if len(entries) > 10:
        lines.append(f"  ... and {len(entries) - 10} more")
    elif not entries:
        lines.append("  nothing")
    return "\n".join(lines)


def _plan(
    frames: list[SourceFrame], data_root: Path, description: Source, progress: bool
) -> list[_File]:
    """Every file that the sets should hold; the masks that may need conversion are opened."""
    files: list[_File] = []
    problems: Problems = {}
    for frame in progress_bar(frames, desc="reading source", unit="frame", shown=progress):
        folder = data_root / frame.folder
        image_conversion = None if _is_readable(frame.image) else _read_picture
        files.append(_file(frame.image, folder / "RGB" / frame.name, image_conversion))
        if frame.following is not None:
            conversion = None if _is_readable(frame.following) else _read_picture
            files.append(_file(frame.following, folder / "NEXT" / frame.name, conversion))
        if frame.mask is None:
            continue
        try:
            if description.one_object and _has_several_objects(frame.mask):
                problems.setdefault(_SEVERAL_OBJECTS, []).append(str(frame.mask))
                continue
            conversion = _mask_conversion(frame, description)
            if conversion is not None or image_conversion is not None:
                _check_size(frame, conversion, problems)
        except DatasetError as error:
            problems.setdefault(_UNUSABLE, []).append(str(error))
        else:
            files.append(_file(frame.mask, folder / "GT" / frame.name, conversion))
    if problems:
        raise DatasetError(format_problems("the source", problems))
    return files


def _file(source: Path, destination: Path, convert: Callable[[Path], np.ndarray] | None) -> _File:
    """A file that goes to `destination`, which has no suffix yet."""
    suffix = source.suffix if convert is None else ".png"
    return _File(source, destination.with_name(destination.name + suffix), convert)


def _is_readable(path: Path) -> bool:
    """Whether this project reads files of that suffix."""
    return path.suffix.lower() in IMAGE_SUFFIXES


def _mask_conversion(
    frame: SourceFrame, description: Source
) -> Callable[[Path], np.ndarray] | None:
    """How a mask is read that this project would not read rightly as it is, else None."""
    if frame.read_mask is not None:
        return frame.read_mask
    if not _is_readable(frame.mask):
        return read_foreground
    if description.void is not None and _has_void(frame.mask, description):
        return partial(read_foreground, void=description.void)
    if description.resize_masks:
        size = _size(frame.image)
        if _size(frame.mask) != size:
            return partial(_read_resized, size=size)
    return None


def _has_void(path: Path, description: Source) -> bool:
    """Whether a mask has the void label; else a mask without palette has 255 for foreground."""
    with open_picture(path) as picture:
        may_have = picture.mode == "P" or description.void_in_grey
        return may_have and bool((np.asarray(picture) == description.void).any())


def _has_several_objects(path: Path) -> bool:
    """Whether a mask with a palette has several labels, of which one may be void."""
    with open_picture(path) as picture:
        return picture.mode == "P" and len(np.unique(np.asarray(picture))) > 2


def _size(path: Path) -> tuple[int, int]:
    """Width and height of a picture, from its header."""
    with open_picture(path) as picture:
        return picture.size


def _check_size(
    frame: SourceFrame, conversion: Callable[[Path], np.ndarray] | None, problems: Problems
) -> None:
    """Report a mask that, once converted, does not fit its image."""
    size = _size(frame.mask) if conversion is None else conversion(frame.mask).shape[::-1]
    image_size = _size(frame.image)
    if size != image_size:
        item = "{}: {} x {}, its image {} x {}".format(frame.mask, *size, *image_size)
        problems.setdefault(_OTHER_SIZE, []).append(item)


def _read_resized(path: Path, size: tuple[int, int]) -> np.ndarray:
    """Mask brought to (width, height) by nearest neighbour, (H, W) bool."""
    mask = read_mask(path).astype(np.uint8)
    return cv2.resize(mask, size, interpolation=cv2.INTER_NEAREST) != 0


def _read_picture(path: Path) -> np.ndarray:
    """Picture of any format, (H, W, 3) uint8 RGB."""
    with open_picture(path) as picture:
        return np.asarray(picture.convert("RGB"))


def _compare_destination(files: list[_File], data_root: Path, progress: bool) -> list[_File]:
    """Files that are still to be written; DatasetError if others are in the way of any."""
    by_folder: dict[Path, list[_File]] = {}
    for file in files:
        by_folder.setdefault(file.destination.parent, []).append(file)
    problems: Problems = {}
    missing: list[_File] = []
    real_root = Path(os.path.realpath(data_root))
    with progress_bar(total=len(files), desc="comparing", unit="file", shown=progress) as bar:
        for folder, planned in by_folder.items():
            bar.update(len(planned))
            # A link in the data root may lead anywhere, to the source too.
            is_own = Path(os.path.realpath(folder)) == real_root / folder.relative_to(data_root)
            if not is_own or (folder.exists() and not folder.is_dir()):
                problems.setdefault(_OUTSIDE, []).append(str(folder))
                continue
            present: dict[str, list[str]] = {}
            for name in os.listdir(folder) if folder.is_dir() else ():
                if _is_visible_picture(name):
                    present.setdefault(os.path.splitext(name)[0], []).append(name)
            for file in planned:
                names = present.get(file.destination.stem, [])
                if not names:
                    missing.append(file)
                for name in names:
                    if name != file.destination.name or not _is_same(file):
                        problems.setdefault(_OTHER_FILE, []).append(str(folder / name))
    if problems:
        raise DatasetError(format_problems(str(data_root), problems))
    return missing


def _is_same(file: _File) -> bool:
    """Whether the destination, which is there, is what would be written."""
    if not file.destination.is_file():
        return False
    if file.convert is not None:
        try:
            with open_picture(file.destination) as picture:
                present = np.asarray(picture)
        except DatasetError:
            return False
        return np.array_equal(present, _pixels(file.convert(file.source)))
    source, destination = file.source.stat(), file.destination.stat()
    if os.path.samestat(source, destination):
        return True
    # A copy has its source's time, so that its content need not be read again.
    return source.st_size == destination.st_size and (
        source.st_mtime_ns == destination.st_mtime_ns
        or filecmp.cmp(file.source, file.destination, shallow=False)
    )


def _check_sources(frames: list[SourceFrame], missing: list[_File], progress: bool) -> None:
    """Check headers and ends of the files that are to be written as they are, and their sizes."""
    unconverted = {file.source for file in missing if file.convert is None}
    checked = []
    for frame in frames:
        mask = frame.mask if frame.mask in unconverted else None
        if frame.following in unconverted and _is_readable(frame.following):
            checked.append(Frame(frame.name, frame.following, None, None))
        if _is_readable(frame.image) and (frame.image in unconverted or mask is not None):
            checked.append(Frame(frame.name, frame.image, mask, None))
        elif mask is not None:
            checked.append(Frame(frame.name, mask, None, None))
    if checked:
        check_files(checked, progress=progress)


def _write(file: _File) -> str:
    """Write a file whole or not at all; says how."""
    temporary = file.destination.with_name(_PARTIAL_FILE.format(name=file.destination.name))
    if file.convert is not None:
        buffer = io.BytesIO()
        Image.fromarray(_pixels(file.convert(file.source))).save(buffer, "PNG")
        temporary.write_bytes(buffer.getvalue())
        os.replace(temporary, file.destination)
        return "converted"
    try:
        # A link appears at once and never replaces anything. A symbolic link in the source could
        # point to somewhere else when seen from here, so what it points to is linked.
        os.link(os.path.realpath(file.source), file.destination)
        return "linked"
    except (FileExistsError, FileNotFoundError):
        raise
    except OSError:  # another file system, or one without hard links
        shutil.copy2(file.source, temporary)
        os.replace(temporary, file.destination)
        return "copied"


def _pixels(array: np.ndarray) -> np.ndarray:
    """Array as it is stored: a mask as 0 and 255."""
    return array.astype(np.uint8) * 255 if array.dtype == bool else array


def _is_within(path: Path, folder: Path) -> bool:
    return Path(os.path.realpath(path)).is_relative_to(os.path.realpath(folder))


def _describe(result: Prepared, known: Known) -> list[str]:
    """Lines about one set for the user."""
    found = result.sequences, result.images, result.masks
    what = "sequences", "images", "masks"
    counts = ", ".join(f"{n:,} {w}" for n, w in zip(found, what) if n or w != "sequences")
    numbers = [(n, w) for n, w in zip(_numbers(known), what) if n is not None]
    expected = ", ".join(f"{n:,} {w}" for n, w in numbers)
    lines = [f"{result.set_name}: {counts} (known: {expected or 'no numbers'})"]
    if known.note:
        lines.append(f"  {known.note}")
    more = [f"{n:,} {w}" for (n, w), m in zip(zip(_numbers(known), what), found) if n and m > n]
    if more:
        lines.append(f"  more than the known {' and '.join(more)}")
    lines.append(
        f"  {result.linked:,} files linked, {result.copied:,} copied, {result.converted:,} "
        f"converted, {result.kept:,} were there already"
    )
    if result.others:
        lines.append(
            f"  {result.others:,} other pictures in the same folders belong to the set too: they "
            "are not of this source, and were left alone"
        )
    return lines


def main(arguments: list[str] | None = None) -> int:
    """Command line of this module.

    Args:
        arguments: as in `sys.argv[1:]`, which is the default.

    Returns:
        Exit code: 0, or 1 after a message on stderr.
    """
    print_any_name()
    parser = argparse.ArgumentParser(
        prog="python -m datasets.prepare",
        description="Bring a downloaded data set into this project's layout.",
    )
    parser.add_argument("name", metavar="NAME", choices=tuple(SOURCES), help=", ".join(SOURCES))
    parser.add_argument(
        "--source", type=Path, required=True, help="folder with the unpacked archive"
    )
    parser.add_argument("--data-root", type=Path, required=True, help="folder that holds the sets")
    parser.add_argument(
        "--partial", action="store_true", help="accept a data set of which a part is missing"
    )
    options = parser.parse_args(arguments)
    description = SOURCES[options.name]
    try:
        results = prepare(
            options.source, options.data_root, description, accept_partial=options.partial
        )
    except (DatasetError, OSError) as error:
        print(error, file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    for result in results:
        print("\n".join(_describe(result, description.known[result.set_name])))
    for result in results if description.video else ():
        print(f"next: {flow_command(options.data_root, result.set_name)}")
    if not description.video:
        print("next: python pretrain.py (still images need no flow maps)")
    return 0


if __name__ == "__main__":
    sys.exit(main())
