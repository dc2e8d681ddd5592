"""Check a data root: which sets it holds, how complete they are, and what is wrong with them.

    python -m datasets.check --data-root data
    python -m datasets.check --data-root data --set DAVIS_train DAVIS_test --deep

Prints a table of the sets, what is still to do, and all problems. Nothing is written. By default
the files are not decoded: what is missing, truncated or of another size is found, damage inside a
file is not. `--deep` decodes every file, as training and evaluation do. PNG has checksums, so there
any damage is found; JPEG has none, so a few changed bytes of it can go unnoticed.

A set is nested if it has a folder per sequence, otherwise flat. A flat set with flow maps is a
video set; without, its names and sizes tell (see `looks_like_video`). A flat set must have a mask
for every image. A nested one need not: test sets may be annotated on some frames only.
"""

import argparse
import os
import sys
from collections import Counter
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path

from datasets.flow import sequence_problems, stale_flow
from datasets.layout import (
    IMAGE_SUFFIXES,
    PARTS,
    DatasetError,
    Frame,
    Problems,
    Sequence,
    check_frame,
    find_still_images,
    find_video_sequences,
    flow_command,
    flow_note,
    format_problems,
    read_image,
    read_mask,
    subfolders,
)
from datasets.progress import print_any_name, progress_bar

STILLS, FLAT, NESTED = "stills", "video, flat", "video, nested"  # kinds of set

_HEADER_THREADS = 8  # more than cores: they wait for the disk

_UNREADABLE = "file that cannot be decoded", "look at it; replace it, or remove its frame"
_STALE = (
    "flow map of other images than are there now",
    "run python -m datasets.flow, which makes it anew",
)


@dataclass
class SetReport:
    """What one set holds and what is wrong with it; `sequences` and `flow_maps` None in stills."""

    name: str
    kind: str  # STILLS, FLAT or NESTED
    sequences: int | None
    frames: int
    masks: int
    flow_maps: int | None
    problems: Problems
    notes: list[str] = field(default_factory=list)  # what is no problem, but worth knowing

    @property
    def num_problems(self) -> int:
        """Files or folders with a problem, of all kinds."""
        return sum(len(items) for items in self.problems.values())


@dataclass(frozen=True)
class _Listing:
    """A set's folders, read; where `stills` is not None, its files decide whether it is video."""

    name: str
    nested: bool
    sequences: list[Sequence]
    problems: Problems
    stills: tuple[list[Frame], Problems] | None

    @property
    def frames(self) -> list[Frame]:
        if self.stills is not None:
            return self.stills[0]
        return [frame for sequence in self.sequences for frame in sequence.frames]


@dataclass(frozen=True)
class _Checked:
    """A frame whose files have been looked at."""

    size: tuple[int, int] | None  # (width, height) of the image, None if it cannot be used
    problems: list[tuple[tuple[str, str], str]]
    foreground: str | None = None  # "none" or "all" of the mask's pixels, where it is that


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
    sets = [name for name in folders if _is_set(data_root / name)]
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
    """Check sets: their folders, then every file.

    Args:
        data_root: folder that holds the sets.
        names: of the sets.
        deep: decode every file; else only headers and ends are read.
        progress: show a progress bar on stderr.

    Returns:
        A report for each set, in the order of `names`.

    Raises:
        DatasetError: there is no such set.
    """
    listings = [_list_set(data_root, name) for name in names]
    total = sum(len(listing.frames) for listing in listings)
    reports = []
    # Threads are enough: decoders give other threads way.
    pool = ThreadPoolExecutor((os.cpu_count() or 1) if deep else _HEADER_THREADS)
    try:
        with progress_bar(
            total=total,
            desc="decoding" if deep else "checking",
            unit="frame",
            shown=progress,
        ) as bar:
            for listing in listings:
                look = _decode_frame if deep else _look_at_frame
                checked = []
                for result in pool.map(look, listing.frames):
                    checked.append(result)
                    bar.update()
                found = pool.map(stale_flow, listing.sequences)
                stale = [str(path) for paths in found for path in paths]
                reports.append(_report(data_root, listing, checked, stale))
    finally:
        pool.shutdown(cancel_futures=True)
    return reports


def looks_like_video(
    frames: list[Frame],
    sequences: list[Sequence],
    sizes: Mapping[Path, tuple[int, int] | None],
) -> bool:
    """Whether a flat set without flow maps is a video set, by its names and sizes.

    Underscores and numbers say too little: `ILSVRC2012_test_00000018` is a photo. But the numbers
    of a video's frames rise by a fixed step, and its frames are of one size. So it is a video set
    if at least half of the images are followed by one of the same size, in the same sequence and
    at the step that is commonest in the set. A single sequence does not count: photos of one size
    that are numbered on (`photo_00000`, ...) look the same.

    Args:
        frames: all images of the set.
        sequences: those that are named `<sequence>_<frame>`, as sequences.
        sizes: (width, height) by the image's path.
    """
    steps: Counter[int] = Counter()
    for sequence in sequences:
        for frame, following in pairwise(sequence.frames):
            numbers = [f.name.rpartition("_")[2] for f in (frame, following)]
            if sizes[frame.image] == sizes[following.image] and all(map(str.isdecimal, numbers)):
                steps[int(numbers[1]) - int(numbers[0])] += 1
    return len(sequences) > 1 and 2 * max(steps.values(), default=0) >= len(frames)


def format_table(reports: list[SetReport]) -> str:
    """The reports as a table, a line each; "-" stands for what a set of still images has not."""
    rows = [("set", "kind", "sequences", "frames", "masks", "flow maps", "problems")]
    for report in reports:
        numbers = (report.sequences, report.frames, report.masks, report.flow_maps)
        cells = ("-" if n is None else str(n) for n in (*numbers, report.num_problems))
        rows.append((report.name, report.kind, *cells))
    widths = [max(map(len, column)) for column in zip(*rows)]
    return "\n".join(
        "  ".join(
            cell.ljust(width) if column < 2 else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(row, widths))
        )
        for row in rows
    )


def _is_set(folder: Path) -> bool:
    return _is_flat(folder) or any(_is_flat(folder / name) for name in subfolders(folder))


def _is_flat(folder: Path) -> bool:
    """Whether the folder holds RGB, GT or FLOW; a sequence of a nested set does, too."""
    return not set(PARTS).isdisjoint(subfolders(folder))


def _list_set(data_root: Path, name: str) -> _Listing:
    """Read a set's folders; what must be there depends on what is."""
    sequences, _ = find_video_sequences(data_root, name, masks="none", flow=False)
    nested = not _is_flat(data_root / name)
    has_masks = any(frame.mask for sequence in sequences for frame in sequence.frames)
    # Flow maps that fit no frame count, so that they are reported.
    flow_maps = (data_root / name).glob("*/FLOW/[!.]*" if nested else "FLOW/[!.]*")
    has_flow = any(path.suffix.lower() in IMAGE_SUFFIXES for path in flow_maps)
    masks = "all" if not nested else "some" if has_masks else "none"
    sequences, problems = find_video_sequences(data_root, name, masks=masks, flow=has_flow)
    stills = None if nested or has_flow else find_still_images(data_root, name)
    return _Listing(name, nested, sequences, problems, stills)


def _look_at_frame(frame: Frame) -> _Checked:
    sizes, problems = check_frame(frame)
    return _Checked(sizes.get("image"), problems)


def _decode_frame(frame: Frame) -> _Checked:
    sizes, problems = check_frame(frame)
    foreground = None
    for part, path in (("image", frame.image), ("mask", frame.mask), ("flow map", frame.flow)):
        if part not in sizes:  # it is not there, or its header is a problem already
            continue
        try:
            if part == "mask":
                mask = read_mask(path)
                foreground = "all" if mask.all() else None if mask.any() else "none"
            else:
                read_image(path)
        except DatasetError as error:
            problems.append((_UNREADABLE, str(error)))
    return _Checked(sizes.get("image"), problems, foreground)


def _report(
    data_root: Path, listing: _Listing, checked: list[_Checked], stale: list[str]
) -> SetReport:
    """Put together what the folders and the files of a set have shown."""
    frames, sequences, problems = listing.frames, listing.sequences, listing.problems
    sizes = {frame.image: result.size for frame, result in zip(frames, checked)}
    kind = NESTED if listing.nested else FLAT
    if listing.stills is not None and not looks_like_video(frames, sequences, sizes):
        kind, sequences, problems = STILLS, [], listing.stills[1]
    problems = {kind: list(items) for kind, items in problems.items()}
    for result in checked:
        for problem, item in result.problems:
            problems.setdefault(problem, []).append(item)
    for sequence in sequences:
        for problem, item in sequence_problems(sequence, sizes):
            problems.setdefault(problem, []).append(item)
    if stale:
        problems[_STALE] = stale
    report = SetReport(
        listing.name,
        kind,
        None if kind == STILLS else len(sequences),
        len(frames),
        sum(frame.mask is not None for frame in frames),
        None if kind == STILLS else len({frame.flow for frame in frames} - {None}),
        problems,
    )
    if report.frames and report.flow_maps == 0:
        report.notes.append(f"no flow maps yet: {flow_command(data_root, listing.name)}")
    if note := flow_note(sequences):
        report.notes.append(note)
    if kind == NESTED and report.masks < report.frames:
        report.notes.append(
            f"masks for {report.masks} of {report.frames} frames: it can be segmented"
            + (
                ", and scored where it has masks (not by the rules of DAVIS, which want all)"
                if report.masks
                else ", but not scored"
            )
        )
    for amount, words in (("none", "without foreground"), ("all", "without background")):
        count = sum(result.foreground == amount for result in checked)
        if count:
            report.notes.append(f"{count} of {report.masks} masks {words}")
    return report


def main(arguments: list[str] | None = None) -> int:
    """Command line of this module.

    Args:
        arguments: as in `sys.argv[1:]`, which is the default.

    Returns:
        Exit code: 0; 1 if something is wrong with a set or there is none; 130 after Ctrl-C.
    """
    print_any_name()
    parser = argparse.ArgumentParser(
        prog="python -m datasets.check",
        description="Check the sets of a data root: what is there, what is missing or damaged.",
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
            print(f"\n{format_problems(str(options.data_root / report.name), report.problems)}")
    return int(any(report.problems for report in reports))


if __name__ == "__main__":
    sys.exit(main())
