"""Data sets as folders: what a set holds, whether it is complete, and how its files are read.

Three layouts are understood, ``<ext>`` being jpg, jpeg or png in any case:

- still images (:func:`still_images`): ``<set>/{RGB,GT}/<name>.<ext>``;
- flat video set (:func:`video_sequences`): ``<set>/{RGB,GT,FLOW}/<sequence>_<frame>.<ext>``;
- nested video set (likewise): ``<set>/<sequence>/{RGB,GT,FLOW}/<sequence>_<frame>.<ext>``.

An image, its mask (GT) and its flow map (FLOW) have the same name up to the suffix. A video set may
also have a folder NEXT beside RGB, for ``datasets.flow`` alone: under a frame's name the image that
follows it in the video, where that is no frame of the set. Hidden files and files that are no
pictures are ignored; pictures of another format are a problem. Whatever is wrong with a set is
collected and raised as one :class:`DatasetError`; the functions named ``find_...`` return it
instead.

EXIF orientation is ignored everywhere, so that images, masks and flow maps stay aligned.
"""

import os
import re
import shlex
import stat
import zlib
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import BinaryIO

import cv2
import numpy as np
import simplejpeg
from PIL import Image, UnidentifiedImageError

from datasets.progress import progress_bar
from errors import UserError

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png")
PARTS = ("RGB", "GT", "FLOW")  # folders of a still set (without FLOW), a flat set or a sequence

# For each kind of problem, as (what is wrong, what to do), the files or folders concerned.
Problems = dict[tuple[str, str], list[str]]

# Suffixes of pictures that are not read, and that must not be left out in silence.
_OTHER_FORMATS = (
    *(".avif", ".bmp", ".gif", ".heic", ".heif", ".jfif", ".jp2", ".jpe", ".jxl"),
    *(".pbm", ".pgm", ".pnm", ".ppm", ".tga", ".tif", ".tiff", ".webp"),
)
_MOST_OBJECTS = 32  # a grey picture with smaller values alone holds labels
_JPEG_NOISE = 64  # smaller values of a mask as JPEG are the background's: JPEG is lossy
_VOID = 255  # label of palette masks for what is neither object nor background
_LISTED = 10  # entries of a kind of problem that a message names; the rest are counted
_STILL_LAYOUT = "{RGB,GT}/<name>.jpg or .png"
_FLAT_LAYOUT = "{RGB,GT,FLOW}/<sequence>_<frame>.jpg or .png"
_NESTED_LAYOUT = "<sequence>/{RGB,GT,FLOW}/<sequence>_<frame>.jpg or .png"
# What the pixels begin with and what ends the file.
_PNG_MARKERS = b"IDAT", b"IEND\xae\x42\x60\x82"
_JPEG_MARKERS = b"\xff\xda", b"\xff\xd9"

# Kinds of problem with the files themselves: what is wrong, what to do.
_UNUSABLE = "file that cannot be used", "replace it, or remove its frame"
_OTHER_SIZE = {
    "mask": ("mask of another size than its image", "resize it"),
    "flow map": (
        "flow map of another size than its image",
        "resize it, or make all anew: python -m datasets.flow with --overwrite",
    ),
}


class DatasetError(UserError):
    """Something is wrong with the data on disk; the message says what, where and what to do."""


class NotBinaryError(DatasetError):
    """A mask with more than two values; the message says which and how many."""


@dataclass(frozen=True)
class Frame:
    """One image with what belongs to it."""

    name: str  # the image's file name without suffix, as "bear_00012"
    image: Path
    mask: Path | None
    flow: Path | None
    following: Path | None = None  # the next image of the video, where no next frame has it


@dataclass(frozen=True)
class Sequence:
    """One video: its name and its frames in their order in time."""

    name: str
    frames: tuple[Frame, ...]


def frame_label(sequence: str, frame: Frame) -> str:
    """The frame's name without its sequence's: ``bear_00012`` of ``bear`` is ``00012``."""
    return frame.name.removeprefix(f"{sequence}_")


class _Problems:
    """Collects what is wrong with one set, by kind."""

    def __init__(self, data_root: Path, set_name: str) -> None:
        self.folder = data_root / set_name
        self.make_flow = f"make the flow maps: {flow_command(data_root, set_name)}"
        self.found: Problems = {}

    def add(self, kind: str, advice: str, item: str | Path) -> None:
        if isinstance(item, Path):
            item = str(item.relative_to(self.folder))
        self.found.setdefault((kind, advice), []).append(item)


def format_problems(where: str, problems: Mapping[tuple[str, str], list[str]]) -> str:
    """Message about all problems found at one place.

    Args:
        where: the place, as it should appear in the message.
        problems: for each kind, as (what is wrong, what to do), the files or folders concerned.

    Returns:
        Several lines: the number of problems, then each kind with its number, what to do and at
        most the first ten entries.
    """
    total = sum(len(items) for items in problems.values())
    lines = [f"{total} {'problem' if total == 1 else 'problems'} in {where}:"]
    for (kind, advice), items in problems.items():
        lines.append(f"  {len(items)} x {kind} ({advice})")
        lines += [f"    {item}" for item in items[:_LISTED]]
        if len(items) > _LISTED:
            lines.append(f"    ... and {len(items) - _LISTED} more")
    return "\n".join(lines)


def flow_command(data_root: Path, set_name: str) -> str:
    """The command line that makes a video set's flow maps."""
    root, name = shlex.quote(str(data_root)), shlex.quote(set_name)
    return f"python -m datasets.flow --data-root {root} --set {name}"


def subfolders(folder: Path) -> list[str]:
    """Names of the folders in a folder, sorted, without hidden ones and those that macOS packs."""
    hidden = (".", "__MACOSX")
    with os.scandir(folder) as entries:
        return sorted(e.name for e in entries if not e.name.startswith(hidden) and e.is_dir())


def still_images(data_root: Path, set_name: str) -> list[Frame]:
    """Images and masks of a set of still images, as DUTS_train.

    Args:
        data_root: folder that holds the sets.
        set_name: name of the set's folder, which holds RGB and GT.

    Returns:
        The images sorted by name, each with a mask and without flow map.

    Raises:
        DatasetError: a folder is missing or empty, images and masks do not pair up, or two files
            share a name.
    """
    frames, problems = find_still_images(data_root, set_name)
    _raise_if_any(data_root, set_name, problems)
    return frames


def find_still_images(data_root: Path, set_name: str) -> tuple[list[Frame], Problems]:
    """What :func:`still_images` returns, as far as it is there, and what it would raise.

    Raises:
        DatasetError: there is no such set.
    """
    folder = _set_folder(Path(data_root), set_name, [_STILL_LAYOUT])
    problems = _Problems(Path(data_root), set_name)
    frames = _read_folder(folder, ("RGB", "GT"), (), problems)
    return sorted(frames, key=lambda frame: frame.name), problems.found


def video_sequences(
    data_root: Path, set_name: str, *, masks: str = "all", flow: bool = True
) -> list[Sequence]:
    """Sequences of a video set, flat as DAVIS_train or nested as DAVIS_test.

    A set is flat if it holds RGB, GT or FLOW itself, otherwise each of its folders is a sequence.
    In a flat set everything before the last underscore of a name is the sequence's name. Frames are
    ordered by the part after the last underscore, numbers in it by value (2 before 10).

    Args:
        data_root: folder that holds the sets.
        set_name: name of the set's folder.
        masks: which images must have a mask: ``"all"``, ``"some"`` in every sequence (test sets of
            which not every frame is annotated), or ``"none"``. Masks that are there are returned.
        flow: every image must have a flow map. The last frame of a sequence may lack it, as it has
            no next frame: it gets the map of the frame before (see :func:`flow_note`). If False,
            flow maps are returned where there are any.

    Returns:
        The sequences sorted by name, each with at least one frame.

    Raises:
        DatasetError: a folder is missing or empty, images do not pair up with the masks or flow
            maps that are asked for, two files share a name, or a name in a flat set is not
            ``<sequence>_<frame>``.
        ValueError: ``masks`` is none of the three.
    """
    sequences, problems = find_video_sequences(data_root, set_name, masks=masks, flow=flow)
    _raise_if_any(data_root, set_name, problems)
    return sequences


def find_video_sequences(
    data_root: Path, set_name: str, *, masks: str = "all", flow: bool = True
) -> tuple[list[Sequence], Problems]:
    """What :func:`video_sequences` returns, as far as it is there, and what it would raise.

    Raises:
        DatasetError: there is no such set.
        ValueError: ``masks`` is none of the three.
    """
    if masks not in ("all", "some", "none"):
        raise ValueError(f"masks={masks!r}: expected 'all', 'some' or 'none'")
    folder = _set_folder(Path(data_root), set_name, [_FLAT_LAYOUT, _NESTED_LAYOUT])
    problems = _Problems(Path(data_root), set_name)
    required = ("RGB", *(("GT",) if masks != "none" else ()), *(("FLOW",) if flow else ()))
    optional = (*{"GT", "FLOW"}.difference(required), "NEXT")
    partial = ("FLOW", "GT") if masks == "some" else ("FLOW",)
    folders = subfolders(folder)
    sequences: dict[str, list[Frame]] = {}
    flat = bool(set(PARTS) & set(folders))
    if flat:
        for frame in _read_folder(folder, required, optional, problems, partial):
            sequence, _, number = frame.name.rpartition("_")
            if sequence and number:
                sequences.setdefault(sequence, []).append(frame)
            else:
                problems.add(
                    "image whose name is not <sequence>_<frame>",
                    "rename it, as bear_00012.jpg; a set of photographs is no video set",
                    frame.image,
                )
    else:
        for path in sorted(folder.iterdir()):
            if path.is_symlink() and not path.exists() and not path.name.startswith("."):
                problems.add("broken link", "mend it, or remove it", path)
        for name in folders:
            sequences[name] = _read_folder(folder / name, required, optional, problems, partial)
        if not folders:
            problems.add(
                "set without any sequence",
                f"expected {_FLAT_LAYOUT}, or {_NESTED_LAYOUT}",
                "no folder in it",
            )
    if masks == "some" and not problems.found:
        for name, frames in sorted(sequences.items()):
            if all(frame.mask is None for frame in frames):
                problems.add(
                    "sequence without any mask", "add the masks of its annotated frames", name
                )
    found = [
        Sequence(name, tuple(sorted(frames, key=_time_order)))
        for name, frames in sorted(sequences.items())
        if frames
    ]
    if flow:
        found = _with_flow_of_last(found, flat, problems)
    return found, problems.found


def _with_flow_of_last(
    sequences: list[Sequence], flat: bool, problems: _Problems
) -> list[Sequence]:
    """Sequences whose last frame has the map before if it has none; other gaps are reported.

    Folders without any flow map were reported as such, and not each of their images.
    """
    some = any(frame.flow for sequence in sequences for frame in sequence.frames)
    complete = []
    for sequence in sequences:
        *others, last = sequence.frames
        if last.flow is None and others:
            last = replace(last, flow=others[-1].flow)
        complete.append(Sequence(sequence.name, (*others, last)))
        if some if flat else any(frame.flow for frame in sequence.frames):
            for frame in (*others, last):
                if frame.flow is None:
                    problems.add("image without flow map", problems.make_flow, frame.image)
    return complete


def flow_note(sequences: list[Sequence]) -> str | None:
    """Says in how many sequences the last frame is shown the flow map before; None if in none.

    Args:
        sequences: from :func:`video_sequences` with flow maps.
    """
    pairs = [sequence.frames[-2:] for sequence in sequences if len(sequence.frames) > 1]
    count = sum(last.flow is not None and last.flow == before.flow for before, last in pairs)
    if not count:
        return None
    return (
        f"in {count} of {len(sequences)} sequences the last frame has no flow map and is shown the "
        "one before"
    )


def check_files(frames: Iterable[Frame], *, workers: int = 8, progress: bool = True) -> None:
    """Check every image, mask and flow map without decoding it.

    It finds files that are missing, empty, neither JPEG nor PNG, or truncated (their end marker is
    not there), masks with a palette that :func:`read_mask` refuses, and masks and flow maps of
    another size than their image.

    Args:
        frames: what to check.
        workers: threads that read files.
        progress: show a progress bar.

    Raises:
        DatasetError: something was found; the message counts all of it.
    """
    frames = list(frames)
    problems: Problems = {}
    with ThreadPoolExecutor(workers) as pool:
        results = progress_bar(
            pool.map(check_frame, frames),
            total=len(frames),
            desc="checking files",
            unit="frame",
            shown=progress,
        )
        for _, found in results:
            for kind, item in found:
                problems.setdefault(kind, []).append(item)
    if problems:
        raise DatasetError(format_problems(f"the files of {len(frames)} frames", problems))


def check_frame(
    frame: Frame,
) -> tuple[dict[str, tuple[int, int]], list[tuple[tuple[str, str], str]]]:
    """Check the files of one frame without decoding them, as :func:`check_files` does.

    Returns:
        (width, height) in pixels of those of "image", "mask" and "flow map" that can be used, and
        (kind of problem, file concerned) for everything that is wrong.
    """
    found: list[tuple[tuple[str, str], str]] = []
    sizes: dict[str, tuple[int, int]] = {}
    for part, path in (("image", frame.image), ("mask", frame.mask), ("flow map", frame.flow)):
        if path is None:
            continue
        try:
            with _open_picture(path) as (picture, _):
                if part == "mask":
                    _palette_levels(path, picture)
                sizes[part] = picture.size
        except DatasetError as error:
            found.append((_UNUSABLE, str(error)))
            continue
        if part != "image" and "image" in sizes and sizes[part] != sizes["image"]:
            (width, height), (image_width, image_height) = sizes[part], sizes["image"]
            item = f"{path}: {width} x {height}, its image {image_width} x {image_height}"
            found.append((_OTHER_SIZE[part], item))
    return sizes, found


def read_image(path: Path) -> np.ndarray:
    """Read an image or a flow map.

    Returns:
        uint8 RGB of shape (H, W, 3); grey becomes three equal channels, transparency is dropped.

    Raises:
        DatasetError: the file is missing, truncated, damaged or cannot be decoded.
    """
    with _open_picture(path) as (picture, file):
        content = _content(file)
        if picture.format != "PNG":
            return _decode_jpeg(path, picture, content)
        _check_sums(path, content)
        # OpenCV is faster than Pillow. It gets bytes: names that are not UTF-8 end the interpreter.
        flags = cv2.IMREAD_COLOR | cv2.IMREAD_IGNORE_ORIENTATION
        bgr = cv2.imdecode(np.frombuffer(content, np.uint8), flags)
    if bgr is None:
        raise DatasetError(f"{path}: cannot be decoded; replace this file")
    return cv2.cvtColor(bgr, cv2.COLOR_BGR2RGB)


def read_mask(path: Path) -> np.ndarray:
    """Read a mask as foreground and background; several objects become one (Sec. 4.3).

    - One bit, or a palette: every label but 0 is foreground. In a palette 255 beside other objects
      is void, as in DAVIS 2017, and counts as background.
    - Colours: every pixel that is not black is foreground.
    - Grey with 0 and one other value, or with values below 32 alone: labels, as above.
    - Any other grey: what lies above one half of the range (127 of 255, 32767 of 65535) is
      foreground, as masks of photographs have soft edges. If nothing does, or if labels below 32
      stand beside one greater value, the mask is refused, as it may be meant in several ways.

    Grey is also a colour picture with equal channels, and a palette of greys alone whose first
    entry is not black or whose labels are not all below 32. A palette with colours whose first
    entry is not black is refused. Transparency does not count. In JPEG, which is lossy, values
    below 64 are 0.

    Returns:
        bool of shape (H, W), True for foreground.

    Raises:
        DatasetError: the file is missing, truncated or damaged, cannot be decoded, or is refused.
    """
    values, half = _mask_values(path)
    labels = values != 0
    if half is None:
        return labels
    large = values >= _MOST_OBJECTS
    greatest = values == values.max()
    if not large.any() or np.array_equal(labels, greatest):
        return labels
    foreground = values > half
    if not foreground.any() or np.array_equal(large, greatest):
        found = np.unique(values)
        listed = ", ".join(map(str, found[:5])) + (", ..." if len(found) > 5 else "")
        raise DatasetError(
            f"{path}: grey values ({listed}, up to {found[-1]}) that may be labels or soft edges; "
            "write 0 for the background and 255 for objects"
        )
    return foreground


def read_binary_mask(path: Path, binarize: bool = False) -> np.ndarray:
    """Read a mask that holds 0 and at most one other value, in whatever form; for results.

    Args:
        path: PNG or JPEG; palettes, void and colours are understood as in :func:`read_mask`.
        binarize: grey masks are probabilities, whose foreground is what lies above the middle of
            the range; what has a palette, colours or one bit is read as without.

    Returns:
        bool (H, W), True for foreground.

    Raises:
        DatasetError: the file is missing, truncated or damaged, cannot be decoded, or is refused.
        NotBinaryError: it holds more than two values, and is not grey or not to be cut.
    """
    values, half = _mask_values(path)
    if binarize and half is not None:
        return values > half
    largest = values.max()
    foreground = values == largest
    if (foreground | (values == 0)).all():
        return foreground & (largest > 0)
    number = len(np.unique(values))
    if half is None:
        raise NotBinaryError(f"{path}: {number} labels or colours")
    hint = ", perhaps the numbers of objects" if largest < _MOST_OBJECTS else ""
    raise NotBinaryError(f"{path}: {number} values from {values.min()} to {largest}{hint}")


def read_size(path: Path) -> tuple[int, int]:
    """Height and width of a picture in pixels, from its header.

    Raises:
        DatasetError: the file is missing, truncated or no picture.
    """
    with _open_picture(path) as (picture, _):
        return picture.height, picture.width


def unwritable(path: Path, error: OSError) -> DatasetError:
    """The error for a file of a set that the system does not let be written, as on a full disk."""
    return DatasetError(
        f"{path} cannot be written: {error.strerror or error}; mend that and start again, which "
        "keeps what has been written"
    )


def _set_folder(data_root: Path, set_name: str, layouts: list[str]) -> Path:
    """The set's folder, which must exist."""
    folder = data_root / set_name
    if folder.is_dir():
        return folder
    if not data_root.is_dir():
        found = f"{data_root} is not a folder."
    else:
        names = subfolders(data_root)
        more = f", ... and {len(names) - _LISTED} more" if len(names) > _LISTED else ""
        found = f"{data_root} holds: {', '.join(names[:_LISTED]) or 'no folders'}{more}."
    expected = " or ".join(str(folder / layout) for layout in layouts)
    raise DatasetError(
        f"Data set {set_name} not found. {found} Expected {expected}. Set DATA_ROOT in config.py "
        "(or --data-root) to the folder that holds the sets, or correct the set's name."
    )


def _raise_if_any(data_root: Path, set_name: str, problems: Problems) -> None:
    if problems:
        raise DatasetError(format_problems(str(Path(data_root) / set_name), problems))


def _read_folder(
    folder: Path,
    required: tuple[str, ...],
    optional: tuple[str, ...],
    problems: _Problems,
    partial: tuple[str, ...] = (),
) -> list[Frame]:
    """Frames of a folder that holds RGB and, beside it, the folders named in ``required``.

    Those that are also in ``partial`` need not have a file for every image.
    """
    files = {part: _list_files(folder / part, problems, True) for part in required}
    # FLOW is looked at only where flow maps are asked for. Masks always are: one that fits no image
    # would be missing from the scores.
    for part in optional:
        files[part] = _list_files(folder / part, problems if part == "GT" else None, False)
    images = files["RGB"]
    by_name = {stem.casefold(): path for stem, path in images.items()}
    for part, partner, advice in (
        ("GT", "mask", "add the mask to GT, or remove the image"),
        ("FLOW", "flow map", problems.make_flow),
    ):
        # A missing or empty folder is one problem, not one for each file of the other.
        if not images or not files.get(part):
            continue
        for stem in sorted(images.keys() - files[part].keys()):
            if part in required and part not in partial:
                problems.add(f"image without {partner}", advice, images[stem])
        for stem in sorted(files[part].keys() - images.keys()):
            if part in required or part == "GT":
                path = files[part][stem].relative_to(problems.folder)
                problems.add(
                    f"{partner} without image",
                    "give it its image's name, add the image to RGB, or remove it",
                    f"{path}{_likely_image(stem, by_name)}",
                )
    others = [files.get(part, {}) for part in ("GT", "FLOW", "NEXT")]
    return [
        Frame(stem, path, *(part.get(stem) for part in others)) for stem, path in images.items()
    ]


def _likely_image(stem: str, images: dict[str, Path]) -> str:
    """Names the image that a mask or flow map may belong to, or nothing.

    Its name has letters of another case, or additional text at its beginning or end. ``images`` are
    given by their names in lower case.
    """
    name = stem.casefold()
    parts = [name]
    for gap in re.finditer(r"[\W_]+", name):
        parts += name[: gap.start()], name[gap.end() :]
    found = [images[part] for part in sorted(parts, key=len, reverse=True) if part in images]
    return f" (of {found[0].name}?)" if found else ""


def _list_files(folder: Path, problems: _Problems | None, required: bool) -> dict[str, Path]:
    """Pictures in a folder by stem, sorted; nothing is reported where ``problems`` is None."""
    try:
        names = sorted(os.listdir(folder))
    except (FileNotFoundError, NotADirectoryError):
        names = None
    files: dict[str, Path] = {}
    unread: dict[str, Path] = {}
    for name in names or ():
        stem, suffix = os.path.splitext(name)
        if name.startswith("."):
            continue
        if suffix.lower() not in IMAGE_SUFFIXES:
            if suffix.lower() in _OTHER_FORMATS:
                unread[stem] = folder / name
            continue
        if stem not in files:
            files[stem] = folder / name
        elif problems is not None:
            problems.add(
                "file with the same name as another but for the suffix",
                "keep one of the two",
                f"{(folder / name).relative_to(problems.folder)} beside {files[stem].name}",
            )
    for stem in sorted(unread.keys() - files.keys()) if problems is not None else ():
        problems.add("picture of another format", "convert it to PNG, or to JPEG", unread[stem])
    if problems is not None and required and not files:
        advice = {
            "RGB": "put the images there, as .jpg, .jpeg or .png",
            "GT": "put the masks there, named as their images",
            "FLOW": problems.make_flow,
        }[folder.name]
        if folder.name == "FLOW" and any(name.endswith(".flo") for name in names or ()):
            advice += ", or with --from-flo of the .flo files there"
        if names is None:
            problems.add(f"{folder.name} folder missing", advice, folder)
        else:
            others = f" (other entries: {len(names)}, as {names[0]})" if names else ""
            item = f"{folder.relative_to(problems.folder)}{others}"
            problems.add(f"{folder.name} folder without pictures", advice, item)
    return files


def _time_order(frame: Frame) -> tuple[list[str | int], str]:
    """Sort key: the part after the last underscore with numbers as numbers, then the whole name."""
    parts = re.split(r"(\d+)", frame.name.rpartition("_")[2])
    return [int(part) if i % 2 else part for i, part in enumerate(parts)], frame.name


@contextmanager
def _open_picture(path: Path) -> Iterator[tuple[Image.Image, BinaryIO]]:
    """A complete, not yet decoded picture and its file; faults become a DatasetError."""
    try:
        if not stat.S_ISREG(path.stat().st_mode):  # to open a pipe would wait for its other end
            raise DatasetError(f"{path}: not a regular file; replace it by a JPEG or PNG")
        with path.open("rb") as file, Image.open(file, formats=("JPEG", "PNG")) as picture:
            if not _is_complete(file, _PNG_MARKERS if picture.format == "PNG" else _JPEG_MARKERS):
                raise DatasetError(f"{path}: truncated, its end is missing; replace this file")
            yield picture, file
    except DatasetError:
        raise
    except FileNotFoundError:
        fault = "a link to a file that is not there" if path.is_symlink() else "no such file"
        raise DatasetError(f"{path}: {fault}") from None
    except UnidentifiedImageError:
        fault = "not a JPEG or PNG, or cut off early" if path.stat().st_size else "empty (0 bytes)"
        raise DatasetError(f"{path}: {fault}; replace this file") from None
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError, cv2.error) as error:
        raise DatasetError(f"{path}: cannot be read ({error}); replace this file") from error


def _content(file: BinaryIO) -> bytes:
    """All bytes of a file, whose position is kept."""
    position = file.tell()
    file.seek(0)
    content = file.read()
    file.seek(position)
    return content


def _decode_jpeg(path: Path, picture: Image.Image, content: bytes) -> np.ndarray:
    """uint8 RGB (H, W, 3) of a JPEG; one that is damaged inside is refused.

    Other decoders put something in the place of what they cannot decode, and raise nothing.
    """
    try:
        return simplejpeg.decode_jpeg(content, "RGB")
    except ValueError as error:
        if "Corrupt JPEG data" in str(error) or "Premature end" in str(error):
            raise DatasetError(f"{path}: damaged inside ({error}); replace this file") from None
    return np.array(picture.convert("RGB"))  # what is only unusual, or not to be decoded at all


def _check_sums(path: Path, content: bytes) -> None:
    """Compare the checksums of a PNG's parts, which decoders do not do for pixels."""
    start, kind = 8, b""
    while kind != b"IEND":
        end = start + 8 + int.from_bytes(content[start : start + 4], "big")
        kind, stored = content[start + 4 : start + 8], content[end : end + 4]
        if zlib.crc32(memoryview(content)[start + 4 : end]).to_bytes(4, "big") != stored:
            raise DatasetError(f"{path}: damaged inside (wrong checksum); replace this file")
        start = end + 4


def _mask_values(path: Path) -> tuple[np.ndarray, int | None]:
    """Values (H, W) of a mask; beside them one half of the range of grey, None for labels."""
    with _open_picture(path) as (picture, file):
        content, levels = _content(file), _palette_levels(path, picture)
        if picture.format == "PNG":
            _check_sums(path, content)
            values = np.asarray(picture)
        else:
            values = _decode_jpeg(path, picture, content)
            values[values < _JPEG_NOISE] = 0
        mode, bands = picture.mode, picture.getbands()
    if mode == "1":
        return values, None
    if mode == "P":
        void = values == _VOID
        if levels is None or (levels[0] == 0 and (values[~void] < _MOST_OBJECTS).all()):
            others = values * ~void
            return others if others.any() else values, None
        values = levels[values]
    if values.ndim == 3:
        colours = values[..., : sum(band != "A" for band in bands)]
        values = colours[..., 0]
        if (colours != values[..., None]).any():
            return colours.astype(np.int32) @ (1, 256, 65536), None
    return values, (65535 if mode.startswith("I") else 255) // 2


def _palette_levels(path: Path, picture: Image.Image) -> np.ndarray | None:
    """Grey levels (256,) of the entries of a palette of greys; None for others and without one.

    Raises:
        DatasetError: the palette has colours, and its first entry, the background, is not black.
    """
    if picture.mode != "P" or picture.palette is None:
        return None
    colours = np.frombuffer(picture.palette.getdata()[1], np.uint8).reshape(-1, 3)
    if (colours == colours[:, :1]).all():
        return np.pad(colours[:, 0], (0, 256 - len(colours)))
    if colours[0].any():
        raise DatasetError(
            f"{path}: its palette begins with the colour {tuple(colours[0].tolist())}; expected "
            "black, as label 0 is the background; write the mask anew, with 0 and 255"
        )
    return None


def _is_complete(file: BinaryIO, markers: tuple[bytes, bytes]) -> bool:
    """Whether the end marker follows the pixels; the file's position is kept."""
    start, end = markers
    position = file.tell()
    file.seek(-len(end), os.SEEK_END)
    complete = file.read() == end
    if not complete:
        # Some programs append padding or data of their own. An embedded preview has an end marker
        # too, but comes before the pixels.
        file.seek(0)
        content = file.read()
        complete = content.rfind(end) > content.rfind(start)
    file.seek(position)
    return complete
