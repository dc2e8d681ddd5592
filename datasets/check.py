"""Check a data root: its sets, their missing parts, and their faults.

    python -m datasets.check --data-root data
    python -m datasets.check --data-root data --set DAVIS_train DAVIS_test --deep

Prints a table of the sets, notes, and all problems. Nothing is written. By default the files are
not decoded: it finds missing files, cut files and wrong sizes, but no damage inside a file.
`--deep` decodes every file, as training and evaluation do. It finds any damage in PNG files, which
have checksums; in JPEG files a few changed bytes can go unnoticed.

A set is nested if it has a folder per sequence, otherwise flat. A flat set must have a mask for
every image. A nested one need not: test sets may be annotated on some frames only.
"""

import argparse
import os
import sys
from collections import Counter
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path

from datasets.file_checks import check_frame
from datasets.flow.origin import stale_flow
from datasets.flow.pairs import sequence_problems
from datasets.layout import (
    PARTS,
    Frame,
    Sequence,
    find_still_images,
    find_video_sequences,
    flow_command,
    flow_note,
    subfolders,
)
from datasets.masks import read_mask
from datasets.pictures import IMAGE_SUFFIXES, read_image
from datasets.problems import DatasetError, Kind, Problems, add_problems, format_problems
from datasets.progress import print_any_name, progress_bar

STILLS, FLAT, NESTED = "stills", "video, flat", "video, nested"  # kinds of set

_HEADER_THREADS = 8  # more than cores: they wait for the disk

_STALE = (
    "flow map of other images than are there now",
    "run python -m datasets.flow, which makes it anew",
)
_UNREADABLE = "file that cannot be decoded", "look at it; replace it, or remove its frame"


@dataclass
class SetReport:
    """The contents and problems of one set; `sequences` and `flow_maps` are None for stills."""

    name: str
    kind: str  # STILLS, FLAT or NESTED
    sequences: int | None
    frames: int
    masks: int
    flow_maps: int | None
    problems: Problems
    notes: list[str] = field(default_factory=list)


def find_sets(data_root: Path) -> tuple[list[str], list[str]]:
    """Names of a data root's folders: those that are sets, and the others.

    A set holds RGB, GT or FLOW (flat), or folders that do (nested).

    Raises:
        DatasetError: the data root is no folder, or holds no set.
    """
    if not data_root.is_dir():
        raise DatasetError(
            f"{data_root} is not a folder: give the folder that holds the sets as --data-root"
        )
    folders = subfolders(data_root)
    sets = [
        name
        for name in folders
        if _is_flat(data_root / name)
        or any(_is_flat(data_root / name / inner) for inner in subfolders(data_root / name))
    ]
    if not sets:
        raise DatasetError(
            f"{data_root} holds no set; its folders: {', '.join(folders[:10]) or 'none'}. Expected "
            "folders as DUTS_train/{RGB,GT}, DAVIS_train/{RGB,GT,FLOW} or "
            "DAVIS_test/<sequence>/{RGB,GT,FLOW}."
        )
    return sets, [name for name in folders if name not in sets]


def check_sets(
    data_root: Path, names: Iterable[str], *, deep: bool = False, progress: bool = True
) -> list[SetReport]:
    """Check sets: their folders, then every file; with `deep` every file is decoded.

    Returns:
        A report for each set, in the order of `names`.

    Raises:
        DatasetError: there is no such set.
    """
    # Threads are enough: decoders give other threads way.
    pool = ThreadPoolExecutor((os.cpu_count() or 1) if deep else _HEADER_THREADS)
    try:
        return [_check_set(data_root, name, deep, progress, pool) for name in names]
    finally:
        pool.shutdown(cancel_futures=True)


def format_table(reports: list[SetReport]) -> str:
    """The reports as a table; "-" stands for parts that a set of still images does not have."""
    rows = [("set", "kind", "sequences", "frames", "masks", "flow maps", "problems")]
    for report in reports:
        numbers = (report.sequences, report.frames, report.masks, report.flow_maps)
        num_problems = sum(map(len, report.problems.values()))
        cells = ("-" if n is None else str(n) for n in (*numbers, num_problems))
        rows.append((report.name, report.kind, *cells))
    widths = [max(map(len, column)) for column in zip(*rows)]
    return "\n".join(
        "  ".join(
            cell.ljust(width) if column < 2 else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(row, widths))
        )
        for row in rows
    )


def _is_flat(folder: Path) -> bool:
    """Whether the folder holds RGB, GT or FLOW; a sequence of a nested set does, too."""
    return not set(PARTS).isdisjoint(subfolders(folder))


def _check_set(
    data_root: Path, name: str, deep: bool, progress: bool, pool: ThreadPoolExecutor
) -> SetReport:
    kind, frames, sequences, problems = _list_set(data_root, name)
    results = progress_bar(
        pool.map(_decode_frame if deep else check_frame, frames),
        total=len(frames),
        desc=f"{'decoding' if deep else 'checking'} {name}",
        unit="frame",
        shown=progress,
    )
    sizes = {}
    for (sizes_of_parts, found), frame in zip(results, frames):
        sizes[frame.image] = sizes_of_parts.get("image")
        for problem, item in found:
            add_problems(problems, problem, item)
    for sequence in sequences:
        for problem, item in sequence_problems(sequence, sizes):
            add_problems(problems, problem, item)
    for stale in pool.map(stale_flow, sequences):
        add_problems(problems, _STALE, *stale)
    stills = kind == STILLS
    report = SetReport(
        name,
        kind,
        None if stills else len(sequences),
        len(frames),
        sum(frame.mask is not None for frame in frames),
        None if stills else len({frame.flow for frame in frames} - {None}),
        problems,
    )
    if frames and report.flow_maps == 0:
        report.notes.append(f"no flow maps yet: {flow_command(data_root, name)}")
    if note := flow_note(sequences):
        report.notes.append(note)
    if kind == NESTED and report.masks < report.frames:
        consequence = (
            ", and scored where it has masks (not by the rules of DAVIS, which want all)"
            if report.masks
            else ", but not scored"
        )
        report.notes.append(
            f"masks for {report.masks} of {report.frames} frames: it can be segmented{consequence}"
        )
    return report


def _list_set(data_root: Path, name: str) -> tuple[str, list[Frame], list[Sequence], Problems]:
    """A set's kind, frames, sequences and problems, from its folders."""
    sequences, _ = find_video_sequences(data_root, name, masks="none", flow=False)
    flat = _is_flat(data_root / name)
    # Flow maps that fit no frame count, so that they are reported.
    flow_maps = (data_root / name).glob("FLOW/[!.]*" if flat else "*/FLOW/[!.]*")
    has_flow = any(path.suffix.lower() in IMAGE_SUFFIXES for path in flow_maps)
    if flat and not has_flow and not _looks_like_video(sequences):
        frames, problems = find_still_images(data_root, name)
        return STILLS, frames, [], problems
    has_masks = any(frame.mask for sequence in sequences for frame in sequence.frames)
    masks = "all" if flat else "some" if has_masks else "none"
    sequences, problems = find_video_sequences(data_root, name, masks=masks, flow=has_flow)
    frames = [frame for sequence in sequences for frame in sequence.frames]
    return FLAT if flat else NESTED, frames, sequences, problems


def _looks_like_video(sequences: list[Sequence]) -> bool:
    """Whether names tell that a flat set without flow maps is a video set.

    In a video set at least half of the numbers at the names' ends follow the one before at the same
    step. Photographs are numbered with gaps (ILSVRC2012_test_00000018), or as a single sequence.
    """
    ends = [[f.name.rpartition("_")[2] for f in sequence.frames] for sequence in sequences]
    steps = Counter(
        int(second) - int(first)
        for numbers in ends
        for first, second in pairwise(numbers)
        if first.isdecimal() and second.isdecimal()
    )
    return len(sequences) > 1 and 2 * max(steps.values(), default=0) >= sum(map(len, ends))


def _decode_frame(frame: Frame) -> tuple[dict[str, tuple[int, int]], list[tuple[Kind, str]]]:
    """As `check_frame`, but decodes the files."""
    sizes, problems = check_frame(frame)
    for part, path in (("image", frame.image), ("mask", frame.mask), ("flow map", frame.flow)):
        if part in sizes:  # else it is not there, or its header is a problem already
            try:
                read_mask(path) if part == "mask" else read_image(path)
            except DatasetError as error:
                problems.append((_UNREADABLE, str(error)))
    return sizes, problems


def main(arguments: list[str] | None = None) -> int:
    """Run the command with arguments as in `sys.argv[1:]`.

    Returns:
        Exit code: 0; 1 if something is wrong with a set or there is none; 130 after Ctrl-C.
    """
    print_any_name()
    parser = argparse.ArgumentParser(
        prog="python -m datasets.check",
        description="Check the sets of a data root: their contents, missing and damaged files.",
    )
    parser.add_argument("--data-root", type=Path, required=True, help="folder that holds the sets")
    parser.add_argument(
        "--set", nargs="+", metavar="NAME", help="sets to check (default: all in the data root)"
    )
    parser.add_argument(
        "--deep", action="store_true", help="decode every file, not only its header"
    )
    options = parser.parse_args(arguments)
    try:
        names, others = options.set, []
        if names is None:
            names, others = find_sets(options.data_root)
        reports = check_sets(options.data_root, names, deep=options.deep)
    except (DatasetError, OSError) as error:
        print(error, file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    print(format_table(reports))
    for report in reports:
        for note in report.notes:
            print(f"note: {report.name}: {note}")
    for name in others:
        print(f"note: {name}: not checked, it is no set (no {', '.join(PARTS)} in it)")
    for report in reports:
        if report.problems:
            print(f"\n{format_problems(options.data_root / report.name, report.problems)}")
    return int(any(report.problems for report in reports))


if __name__ == "__main__":
    sys.exit(main())
