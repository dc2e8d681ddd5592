"""Bring a downloaded data set into this project's layout (see `datasets.layout`).

    python -m datasets.prepare davis2016 --source downloads/DAVIS --data-root data

Files become hard links where the file system has them, and copies elsewhere. Only masks that this
project would not read rightly are converted. Sequences of a single frame have no flow: they are
left out and named. The source is checked before anything is written and is never changed. The
program can be stopped and started again. A file with other content is never replaced.
"""

import argparse
import sys
from pathlib import Path

from datasets.layout import flow_command
from datasets.prepare.sources import SOURCES, Known
from datasets.prepare.writing import Prepared, prepare
from datasets.problems import DatasetError
from datasets.progress import print_any_name


def main(arguments: list[str] | None = None) -> int:
    """Run the command with arguments as in `sys.argv[1:]`. Returns its exit code."""
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
    print_any_name()
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


def _describe(result: Prepared, known: Known) -> list[str]:
    """Lines about one set for the user."""
    found = (result.sequences, result.images, result.masks)
    limits = [(number, limit, what) for number, (limit, what) in zip(found, known.numbers())]
    counts = [f"{number:,} {what}" for number, _, what in limits if number or what != "sequences"]
    expected = [f"{limit:,} {what}" for _, limit, what in limits if limit is not None]
    lines = [
        f"{result.set_name}: {', '.join(counts)} (known: {', '.join(expected) or 'no numbers'})"
    ]
    done = [f"{result.files[how]:,} {how}" for how in ("copied", "converted")]
    lines.append(
        f"  {result.files['linked']:,} files linked, {', '.join(done)}, {result.files['kept']:,} "
        "were there already"
    )
    return lines


if __name__ == "__main__":
    sys.exit(main())
