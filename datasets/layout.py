"""The folders of a data set: its images with their masks and flow maps.

There are three layouts, ``<ext>`` being jpg, jpeg or png in any case:

- still images (:func:`still_images`): ``<set>/{RGB,GT}/<name>.<ext>``;
- flat video set (:func:`video_sequences`): ``<set>/{RGB,GT,FLOW}/<sequence>_<frame>.<ext>``;
- nested video set (likewise): ``<set>/<sequence>/{RGB,GT,FLOW}/<sequence>_<frame>.<ext>``.

An image, its mask (GT) and its flow map (FLOW) have the same name up to the suffix. A video set may
also have a folder NEXT beside RGB, which only ``datasets.flow`` reads. It holds, under a frame's
name, the image that follows the frame in the video, if that is no frame of the set. Hidden files
and files that are no pictures are ignored. The functions named ``find_...`` return a set's problems
beside its frames; the others raise them as one :class:`DatasetError`.
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

_STILL_LAYOUT = "{RGB,GT}/<name>.jpg or .png"
_FLAT_LAYOUT = "{RGB,GT,FLOW}/<sequence>_<frame>.jpg or .png"
_NESTED_LAYOUT = "<sequence>/{RGB,GT,FLOW}/<sequence>_<frame>.jpg or .png"

_NO_SEQUENCE = "set without any sequence", f"expected {_FLAT_LAYOUT}, or {_NESTED_LAYOUT}"
_NO_FRAME_NAME = (
    "image whose name is not <sequence>_<frame>",
    "rename it, as bear_00012.jpg; a set of photographs is no video set",
)
_NO_MASK = "sequence without any mask", "add the masks of its annotated frames"
_NO_IMAGE = "give it its image's name, add the image to RGB, or remove it"
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
class Sequence:
    """One video: its name and its frames in their order in time."""

    name: str
    frames: tuple[Frame, ...]


def frames_of(sequences: Iterable[Sequence]) -> list[Frame]:
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
    """Names of the folders in a folder, sorted, without hidden ones and those that macOS packs."""
    hidden = (".", "__MACOSX")
    with os.scandir(folder) as entries:
        return sorted(e.name for e in entries if not e.name.startswith(hidden) and e.is_dir())


def natural_order(name: str) -> list[str | int]:
    """Sort key that orders the numbers in a name by value: 2 comes before 10."""
    return [int(part) if i % 2 else part for i, part in enumerate(re.split(r"(\d+)", name))]


def still_images(data_root: Path, set_name: str) -> list[Frame]:
    """Images of a set of still images, as DUTS_train, sorted by name, each with a mask.

    Raises:
        DatasetError: a folder is missing or empty, images and masks do not pair up, or two files
            share a name.
    """
    frames, problems = find_still_images(data_root, set_name)
    _raise_if_any(data_root, set_name, problems)
    return frames


def find_still_images(data_root: Path, set_name: str) -> tuple[list[Frame], Problems]:
    """As :func:`still_images`, and the problems. Raises DatasetError if there is no such set."""
    folder = _set_folder(Path(data_root), set_name, [_STILL_LAYOUT])
    problems: Problems = {}
    frames = _read_folder(folder, {"RGB": "all", "GT": "all"}, "", problems)
    return sorted(frames, key=lambda frame: frame.name), _relative(problems, folder)


def video_sequences(
    data_root: Path, set_name: str, *, masks: str = "all", flow: bool = True
) -> list[Sequence]:
    """Sequences of a video set, flat as DAVIS_train or nested as DAVIS_test.

    A set is flat if it holds RGB, GT or FLOW itself, otherwise each of its folders is a sequence.
    In a flat set everything before the last underscore of a name is the sequence's name. Frames are
    ordered by the part after the last underscore, numbers in it by value.

    Args:
        data_root: folder that holds the sets.
        set_name: name of the set's folder.
        masks: which images must have a mask: ``"all"``, ``"some"`` in every sequence, or
            ``"none"``. Masks that are there are returned.
        flow: every image must have a flow map. Only the last frame of a sequence may lack it: it
            gets the map of the frame before. If False, flow maps are returned where there are any.

    Returns:
        The sequences sorted by name, each with at least one frame.

    Raises:
        DatasetError: a folder is missing or empty, images do not pair up with the masks or flow
            maps that are asked for, two files share a name, or a name in a flat set is not
            ``<sequence>_<frame>``.
    """
    sequences, problems = find_video_sequences(data_root, set_name, masks=masks, flow=flow)
    _raise_if_any(data_root, set_name, problems)
    return sequences


def find_video_sequences(
    data_root: Path, set_name: str, *, masks: str = "all", flow: bool = True
) -> tuple[list[Sequence], Problems]:
    """As :func:`video_sequences`, and the problems. Raises DatasetError if there is no such set."""
    folder = _set_folder(Path(data_root), set_name, [_FLAT_LAYOUT, _NESTED_LAYOUT])
    make_flow = f"make the flow maps: {flow_command(data_root, set_name)}"
    problems: Problems = {}
    # Which frames lack a flow map is told below.
    needs = {"RGB": "all", "GT": masks, "FLOW": "some" if flow else "none", "NEXT": "none"}
    folders = subfolders(folder)
    flat = not set(PARTS).isdisjoint(folders)
    if flat:
        sequences = _split(_read_folder(folder, needs, make_flow, problems), problems)
    else:
        sequences = {
            name: _read_folder(folder / name, needs, make_flow, problems) for name in folders
        }
        broken = sorted(p for p in folder.glob("[!.]*") if p.is_symlink() and not p.exists())
        add_problems(problems, _BROKEN_LINK, *broken)
        if not folders:
            add_problems(problems, _NO_SEQUENCE, "no folder in it")
    if masks == "some" and not problems:
        without = (name for name in sorted(sequences) if not any(f.mask for f in sequences[name]))
        add_problems(problems, _NO_MASK, *without)
    found = [
        Sequence(name, tuple(sorted(frames, key=_time_order)))
        for name, frames in sorted(sequences.items())
        if frames
    ]
    if flow:
        kind = "image without flow map", make_flow
        found = [_with_flow_of_last(sequence) for sequence in found]
        groups = [[f for s in found for f in s.frames]] if flat else [s.frames for s in found]
        for frames in groups:
            if any(frame.flow for frame in frames):  # folders without any were reported as such
                add_problems(problems, kind, *(f.image for f in frames if f.flow is None))
    return found, _relative(problems, folder)


def flow_note(sequences: list[Sequence]) -> str | None:
    """Says in how many sequences the last frame is shown the flow map before; None if in none."""
    pairs = [sequence.frames[-2:] for sequence in sequences if len(sequence.frames) > 1]
    count = sum(last.flow is not None and last.flow == before.flow for before, last in pairs)
    if not count:
        return None
    return (
        f"in {count} of {len(sequences)} sequences the last frame has no flow map and is shown the "
        "one before"
    )


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


def _with_flow_of_last(sequence: Sequence) -> Sequence:
    """The sequence; if its last frame has no flow map, it gets the one before."""
    *others, last = sequence.frames
    if last.flow is None and others:
        last = replace(last, flow=others[-1].flow)
    return Sequence(sequence.name, (*others, last))


def _set_folder(data_root: Path, set_name: str, layouts: list[str]) -> Path:
    """The set's folder, which must exist."""
    folder = data_root / set_name
    if folder.is_dir():
        return folder
    if not data_root.is_dir():
        found = f"{data_root} is not a folder."
    else:
        names = subfolders(data_root)
        more = ", ..." if len(names) > 10 else ""
        found = f"{data_root} holds: {', '.join(names[:10]) or 'no folders'}{more}."
    expected = " or ".join(str(folder / layout) for layout in layouts)
    raise DatasetError(
        f"Data set {set_name} not found. {found} Expected {expected}. Set DATA_ROOT in config.py "
        "(or --data-root) to the folder that holds the sets, or correct the set's name."
    )


def _relative(problems: Problems, folder: Path) -> Problems:
    """The problems with paths relative to the set's folder."""
    return {
        kind: [item.replace(f"{folder}/", "") for item in items] for kind, items in problems.items()
    }


def _raise_if_any(data_root: Path, set_name: str, problems: Problems) -> None:
    if problems:
        raise DatasetError(format_problems(Path(data_root) / set_name, problems))


def _read_folder(
    folder: Path, needs: dict[str, str], make_flow: str, problems: Problems
) -> list[Frame]:
    """Frames of a folder that holds RGB and other parts.

    ``needs`` says for each part of which images it must have a file: "all", "some" or "none".
    """
    advice = {
        "RGB": "put the images there, as .jpg, .jpeg or .png",
        "GT": "put the masks there, named as their images",
        "FLOW": make_flow,
    }
    files: dict[str, dict[str, Path]] = {}
    for part, need in needs.items():
        # Masks are checked even where none is needed: one without image would not be scored.
        told = problems if need != "none" or part == "GT" else {}
        files[part] = _list_files(folder / part, told)
        if need != "none" and not files[part]:
            state = "without pictures" if (folder / part).is_dir() else "missing"
            what_to_do = advice[part]
            if part == "FLOW" and any((folder / part).glob("*.flo")):
                what_to_do += ", or with --from-flo of the .flo files there"
            add_problems(problems, (f"{part} folder {state}", what_to_do), folder / part)
        # A missing or empty folder is one problem, not one for each file of the other.
        elif part != "RGB" and files["RGB"] and files[part]:
            partner = "mask" if part == "GT" else "flow map"
            without = sorted(files["RGB"].keys() - files[part].keys())
            if need == "all":
                kind = f"image without {partner}", "add it, or remove the image"
                add_problems(told, kind, *(files["RGB"][stem] for stem in without))
            orphans = sorted(files[part].keys() - files["RGB"].keys())
            kind = f"{partner} without image", _NO_IMAGE
            add_problems(told, kind, *(files[part][stem] for stem in orphans))
    return [
        Frame(stem, path, *(files.get(part, {}).get(stem) for part in ("GT", "FLOW", "NEXT")))
        for stem, path in files["RGB"].items()
    ]


def _list_files(folder: Path, problems: Problems) -> dict[str, Path]:
    """Pictures in a folder by stem, sorted; none if there is no such folder."""
    files: dict[str, Path] = {}
    others: dict[str, Path] = {}
    for name in sorted(os.listdir(folder)) if folder.is_dir() else ():
        stem, suffix = os.path.splitext(name)
        if name.startswith("."):
            continue
        if suffix.lower() in OTHER_SUFFIXES:
            others[stem] = folder / name
        elif suffix.lower() not in IMAGE_SUFFIXES:
            continue
        elif files.setdefault(stem, folder / name).name != name:
            add_problems(problems, _SAME_NAME, f"{folder / name} beside {files[stem].name}")
    unread = sorted(others.keys() - files.keys())
    add_problems(problems, _OTHER_FORMAT, *(others[stem] for stem in unread))
    return files


def _time_order(frame: Frame) -> tuple[list[str | int], str]:
    return natural_order(frame.name.rpartition("_")[2]), frame.name
