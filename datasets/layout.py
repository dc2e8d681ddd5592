"""The folders of a data set: its images with their masks and flow maps.

There are three layouts, ``<ext>`` being jpg, jpeg or png in any case:

- still images (:func:`still_images`): ``<set>/{RGB,GT}/<name>.<ext>``;
- flat video set (:func:`video_sequences`): ``<set>/{RGB,GT,FLOW}/<sequence>_<frame>.<ext>``;
- nested video set (likewise): ``<set>/<sequence>/{RGB,GT,FLOW}/<sequence>_<frame>.<ext>``.

An image, its mask (GT) and its flow map (FLOW) have the same name up to the suffix. A video set may
also have a folder NEXT beside RGB, which only ``datasets.flow`` reads. It holds, under a frame's
name, the image that follows the frame in the video, if that is no frame of the set. Hidden files
and files that are no pictures are ignored.
"""

import os
import re
import shlex
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path

from datasets.pictures import IMAGE_SUFFIXES, OTHER_SUFFIXES
from datasets.problems import DatasetError, Problems, add_problems, format_problems

PARTS = ("RGB", "GT", "FLOW")  # folders of a still set (without FLOW), a flat set or a sequence

_LAYOUT = "{RGB,GT,FLOW}/<sequence>_<frame>.jpg or .png"  # of a flat set, or in a sequence's folder
_NO_SEQUENCE = "set without any sequence", f"expected {_LAYOUT}, or <sequence>/{_LAYOUT}"
_IN_FLAT = (
    "folder of a sequence in a flat set",
    "move its files into RGB, GT and FLOW of the set, or the folder into a set of its own",
)
_NO_FRAME_NAME = "image whose name is not <sequence>_<frame>", "rename it, as bear_00012.jpg"
_NO_MASK = "sequence without any mask", "add the masks of its annotated frames"
_IMAGE_ALONE = "image without mask", "add it, or remove the image"
_NO_IMAGE = "give it its image's name, or remove it"
_ADVICE = "put the files there, as .jpg, .jpeg or .png; masks are named as their images"
_SAME_NAME = "file with the same name as another but for the suffix", "keep one of the two"
_BROKEN_LINK = "broken link", "mend it, or remove it"
_OTHER_FORMAT = "picture of another format", "convert it to PNG, or to JPEG"


@dataclass(frozen=True)
class Frame:
    """One image with its mask and its flow map."""

    name: str  # the image's file name without suffix, as "bear_00012"
    image: Path
    mask: Path | None
    flow: Path | None
    following: Path | None = None  # the next image of the video, where no next frame has it


@dataclass(frozen=True)
class VideoFiles:
    """The files of one video: its name and its frames in their order in time."""

    name: str
    frames: tuple[Frame, ...]


def frames_of(sequences: Iterable[VideoFiles]) -> list[Frame]:
    """All frames of all sequences."""
    return [frame for sequence in sequences for frame in sequence.frames]


def frame_label(sequence: str, frame: Frame) -> str:
    """The frame's name without its sequence's: ``bear_00012`` of ``bear`` is ``00012``."""
    return frame.name.removeprefix(f"{sequence}_")


def flow_command(data_root: Path, set_name: str) -> str:
    """The command line that makes a video set's flow maps."""
    root, name = shlex.quote(str(data_root)), shlex.quote(set_name)
    return f"python -m datasets.flow --data-root {root} --set {name}"


def subfolders(folder: Path) -> list[str]:
    """Names of the folders and broken links in a folder, sorted.

    Hidden ones and those that macOS packs are left out.
    """
    shown = (path for path in folder.iterdir() if not path.name.startswith((".", "__MACOSX")))
    return sorted(path.name for path in shown if path.is_dir() or is_broken_link(path))


def is_broken_link(path: Path) -> bool:
    """Whether the path is a link to a place that is not there."""
    return path.is_symlink() and not path.exists()


def natural_order(name: str) -> list[str | int]:
    """Sort key that orders the numbers in a name by value: 2 comes before 10."""
    return [int(part) if i % 2 else part for i, part in enumerate(re.split(r"(\d+)", name))]


def is_flat(folder: Path) -> bool:
    """Whether a set's folder holds RGB, GT or FLOW itself, and not in a folder per sequence."""
    return not set(PARTS).isdisjoint(subfolders(folder))


def still_images(data_root: Path, set_name: str, problems: Problems | None = None) -> list[Frame]:
    """Images of a set of still images, as DUTS_train, sorted by name, each with a mask.

    Arguments and errors are those of :func:`video_sequences`.
    """
    folder, found = _set_folder(data_root, set_name), {}
    frames = _read_folder(folder, "all", False, found)
    _tell(found, folder, problems)
    return sorted(frames, key=lambda frame: frame.name)


def video_sequences(
    data_root: Path,
    set_name: str,
    *,
    masks: str = "all",
    flow: bool = True,
    problems: Problems | None = None,
) -> list[VideoFiles]:
    """Sequences of a video set, flat as DAVIS_train or nested as DAVIS_test, sorted by name.

    A set is flat if it holds RGB, GT or FLOW itself, otherwise each of its folders is a sequence.
    In a flat set everything before the last underscore of a name is the sequence's name. Frames are
    ordered by the part after the last underscore, then by the whole name, numbers by value.

    Args:
        data_root: folder that holds the sets.
        set_name: name of the set's folder.
        masks: which images must have a mask: ``"all"``, ``"some"`` in every sequence, or
            ``"none"``. Masks that are there are returned.
        flow: every image must have a flow map. Only the last frame of a sequence may lack it: it
            gets the map of the frame before. If False, flow maps are returned where there are any.
        problems: gets the set's problems, which are raised otherwise.

    Raises:
        DatasetError: there is no such set, a folder is missing or empty, images do not pair up with
            the masks or flow maps that are asked for, or two files share a name; in a flat set, a
            name is not ``<sequence>_<frame>``, or there are folders of further sequences.
    """
    folder, found = _set_folder(data_root, set_name), {}
    if is_flat(folder):
        frames_of = _split(_read_folder(folder, masks, flow, found), found)
        others = (folder / name for name in subfolders(folder) if name not in PARTS)
        add_problems(found, _IN_FLAT, *(other for other in others if (other / "RGB").is_dir()))
    else:
        names = subfolders(folder)
        frames_of = {name: _read_folder(folder / name, masks, flow, found) for name in names}
        if not names:
            add_problems(found, _NO_SEQUENCE, "no folder in it")
    sequences = [
        VideoFiles(name, tuple(sorted(frames, key=_time_order)))
        for name, frames in sorted(frames_of.items())
        if frames
    ]
    if masks == "some" and not found:
        without = (s.name for s in sequences if not any(frame.mask for frame in s.frames))
        add_problems(found, _NO_MASK, *without)
    if flow:
        sequences = [_with_flow_of_last(sequence) for sequence in sequences]
        without = (f.image for s in sequences for f in s.frames if f.flow is None)
        remedy = f"make the flow maps: {flow_command(data_root, set_name)}"
        if any(folder.glob("FLOW/*.flo")) or any(folder.glob("*/FLOW/*.flo")):
            remedy += ", or with --from-flo of the .flo files there"
        add_problems(found, ("image without flow map", remedy), *without)
    _tell(found, folder, problems)
    return sequences


def flow_note(sequences: list[VideoFiles]) -> str | None:
    """Says in how many sequences the last frame is shown the flow map before; None if in none."""
    pairs = [sequence.frames[-2:] for sequence in sequences if len(sequence.frames) > 1]
    count = sum(last.flow is not None and last.flow == before.flow for before, last in pairs)
    lacking = "the last frame has no flow map and is shown the one before"
    return f"in {count} of {len(sequences)} sequences {lacking}" if count else None


def _split(frames: list[Frame], problems: Problems) -> dict[str, list[Frame]]:
    """The frames of a flat set by sequence."""
    sequences: dict[str, list[Frame]] = {}
    for frame in frames:
        sequence, _, number = frame.name.rpartition("_")
        if sequence and number:
            sequences.setdefault(sequence, []).append(frame)
        else:
            add_problems(problems, _NO_FRAME_NAME, frame.image)
    return sequences


def _with_flow_of_last(sequence: VideoFiles) -> VideoFiles:
    """The sequence; if its last frame has no flow map, it gets the one before."""
    *others, last = sequence.frames
    if last.flow is None and others:
        last = replace(last, flow=others[-1].flow)
    return VideoFiles(sequence.name, (*others, last))


def _set_folder(data_root: Path, set_name: str) -> Path:
    """The set's folder, which must exist."""
    folder = data_root / set_name
    if folder.is_dir():
        return folder
    found = "is not a folder"
    if data_root.is_dir():
        found = f"holds: {', '.join(subfolders(data_root)[:10]) or 'no folders'}"
    raise DatasetError(
        f"Data set {set_name} not found. {data_root} {found}. Expected {folder} with "
        f"{{RGB,GT}}/<name>.jpg or .png of still images, with {_LAYOUT} of video, or with "
        f"<sequence>/{_LAYOUT}. Set DATA_ROOT in config.py (or --data-root) to the folder that "
        "holds the sets, or correct the set's name."
    )


def _tell(found: Problems, folder: Path, problems: Problems | None) -> None:
    """Add a set's problems to ``problems``, with paths relative to its folder, or raise them."""
    relative = {
        kind: [item.replace(f"{folder}/", "") for item in items] for kind, items in found.items()
    }
    if problems is not None:
        problems.update(relative)
    elif relative:
        raise DatasetError(format_problems(folder, relative))


def _read_folder(folder: Path, masks: str, flow: bool, problems: Problems) -> list[Frame]:
    """Frames of a folder that holds RGB and other parts; other arguments as `video_sequences`."""
    if is_broken_link(folder):
        add_problems(problems, _BROKEN_LINK, folder)
        return []
    images, truths = (list_pictures(folder / part, problems) for part in ("RGB", "GT"))
    maps = list_pictures(folder / "FLOW", problems if flow else {})
    following = list_pictures(folder / "NEXT", {})
    for part, files in {"RGB": images, "GT": truths}.items():
        if not files and (part == "RGB" or masks != "none"):
            state = "without pictures" if (folder / part).is_dir() else "missing"
            add_problems(problems, (f"{part} folder {state}", _ADVICE), folder / part)
    # A missing or empty folder is one problem, not one for each file of the other.
    if images and truths and masks == "all":
        add_problems(problems, _IMAGE_ALONE, *(images[x] for x in images if x not in truths))
    for partner, files in {"mask": truths, "flow map": maps if flow else {}}.items():
        kind = f"{partner} without image", _NO_IMAGE
        add_problems(problems, kind, *(files[x] for x in files if images and x not in images))
    partners = (truths, maps, following)
    return [Frame(x, path, *(files.get(x) for files in partners)) for x, path in images.items()]


def list_pictures(folder: Path, problems: Problems) -> dict[str, Path]:
    """Pictures in a folder by stem, sorted; none if there is no such folder."""
    names = sorted(os.listdir(folder)) if folder.is_dir() else ()
    shown = [folder / name for name in names if not name.startswith(".")]
    files: dict[str, Path] = {}
    for path in shown:
        if path.suffix.lower() in IMAGE_SUFFIXES and files.setdefault(path.stem, path) != path:
            add_problems(problems, _SAME_NAME, f"{path} beside {files[path.stem].name}")
    others = [path for path in shown if path.suffix.lower() in OTHER_SUFFIXES]
    add_problems(problems, _OTHER_FORMAT, *(path for path in others if path.stem not in files))
    return files


def _time_order(frame: Frame) -> tuple[list[str | int], list[str | int]]:
    return natural_order(frame.name.rpartition("_")[2]), natural_order(frame.name)
