"""Check a data root: its sets, their missing parts, and their faults.

    python -m datasets.check --data-root data
    python -m datasets.check --data-root data --set DAVIS_train DAVIS_test --deep

Prints a table of the sets, notes, and all problems. By default the files are not decoded: it finds
missing files, cut files and wrong sizes, but no damage inside a file. `--deep` decodes every file.
It finds any damage in PNG files; in JPEG files a few changed bytes can go unnoticed.

A set is nested if it has a folder per sequence, otherwise flat. A flat set without flow maps counts
as still images, unless it has the name of a published video set. A flat set must have a mask for
every image. A nested one need not: test sets may be annotated on some frames only.
"""

import argparse
import sys
from dataclasses import dataclass, field
from pathlib import Path

from datasets.file_checks import find_faults
from datasets.flow.origin import stale_flow
from datasets.flow.pairs import check_sequence
from datasets.known_sets import is_still_set, published_sequences
from datasets.layout import (
    Frame,
    VideoFiles,
    flow_command,
    flow_note,
    is_flat,
    still_images,
    subfolders,
    video_sequences,
)
from datasets.pictures import IMAGE_SUFFIXES
from datasets.problems import DatasetError, Problems, add_problems, format_problems
from datasets.progress import print_any_name

STILLS, FLAT, NESTED = "stills", "video, flat", "video, nested"  # kinds of set

_STALE = (
    "flow map of other images than are there now",
    "run python -m datasets.flow, which makes it anew",
)
_ROW = "{:<20}  {:<13}  {:>9}  {:>8}  {:>8}  {:>9}  {:>8}"


@dataclass
class SetReport:
    """The contents and problems of one set; `sequences` and `flow_maps` are "-" for stills."""

    name: str
    kind: str  # STILLS, FLAT or NESTED
    sequences: int | str
    frames: int
    masks: int
    flow_maps: int | str
    problems: Problems
    notes: list[str] = field(default_factory=list)


def check_set(data_root: Path, name: str, *, deep: bool = False) -> SetReport:
    """Check a set: its folders, then every file; with `deep` every file is decoded.

    Raises DatasetError if there is no such set.
    """
    problems: Problems = {}
    kind, frames, sequences = _list_set(data_root, name, problems)
    title = f"{'decoding' if deep else 'checking'} {name}"
    sizes = find_faults(frames, problems, title, deep=deep)
    for sequence in sequences:
        check_sequence(sequence, sizes, problems)
        add_problems(problems, _STALE, *stale_flow(sequence))
    masks = sum(frame.mask is not None for frame in frames)
    flow_maps = len({frame.flow for frame in frames} - {None})
    of_video = ("-", "-") if kind == STILLS else (len(sequences), flow_maps)
    report = SetReport(name, kind, of_video[0], len(frames), masks, of_video[1], problems)
    if frames and not flow_maps and not is_still_set(name):
        video = "if it is a video set: " if kind == STILLS else ""
        report.notes.append(f"no flow maps; {video}{flow_command(data_root, name)}")
    if note := flow_note(sequences):
        report.notes.append(note)
    if kind == NESTED and masks < len(frames):
        used = "only those are scored or learnt from"
        report.notes.append(f"masks for {masks} of {len(frames)} frames; {used}")
    return report


def format_table(reports: list[SetReport]) -> str:
    """The reports as a table; "-" stands for parts that a set of still images does not have."""
    rows = [("set", "kind", "sequences", "frames", "masks", "flow maps", "problems")]
    for r in reports:
        number = sum(map(len, r.problems.values()))
        rows.append((r.name, r.kind, r.sequences, r.frames, r.masks, r.flow_maps, number))
    return "\n".join(_ROW.format(*row) for row in rows)


def _list_set(
    data_root: Path, name: str, problems: Problems
) -> tuple[str, list[Frame], list[VideoFiles]]:
    """A set's kind, frames and sequences, from its folders."""
    sequences = video_sequences(data_root, name, masks="none", flow=False, problems={})
    flat = is_flat(data_root / name)
    # Flow maps that fit no frame count, so that they are reported.
    flow_maps = (data_root / name).glob("FLOW/[!.]*" if flat else "*/FLOW/[!.]*")
    has_flow = any(path.suffix.lower() in IMAGE_SUFFIXES for path in flow_maps)
    has_masks = any(frame.mask for sequence in sequences for frame in sequence.frames)
    if flat and not has_flow and not published_sequences(name):
        return STILLS, still_images(data_root, name, problems), []
    masks = "all" if flat else "some" if has_masks else "none"
    sequences = video_sequences(data_root, name, masks=masks, flow=has_flow, problems=problems)
    frames = [frame for sequence in sequences for frame in sequence.frames]
    return FLAT if flat else NESTED, frames, sequences


def main(arguments: list[str] | None = None) -> int:
    """Run the command with arguments as in `sys.argv[1:]`. Returns its exit code."""
    print_any_name()
    parser = argparse.ArgumentParser(
        prog="python -m datasets.check",
        description="Check the sets of a data root: their contents, missing and damaged files.",
    )
    add = parser.add_argument
    add("--data-root", type=Path, required=True, help="folder that holds the sets")
    add("--set", nargs="+", metavar="NAME", help="sets to check (default: all folders of the root)")
    add("--deep", action="store_true", help="decode every file, not only its header")
    options = parser.parse_args(arguments)
    try:
        if not options.data_root.is_dir():
            raise DatasetError(
                f"{options.data_root}: no such folder; expected the one with the sets"
            )
        names = options.set or [
            name for name in subfolders(options.data_root) if (options.data_root / name).is_dir()
        ]
        reports = [check_set(options.data_root, name, deep=options.deep) for name in names]
        if not reports:
            raise DatasetError(f"{options.data_root} holds no set; each set is a folder")
    except (DatasetError, OSError) as error:
        print(error, file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    print(format_table(reports))
    for report in reports:
        for note in report.notes:
            print(f"note: {report.name}: {note}")
    for report in reports:
        if report.problems:
            print(f"\n{format_problems(options.data_root / report.name, report.problems)}")
    return int(any(report.problems for report in reports))


if __name__ == "__main__":
    sys.exit(main())
