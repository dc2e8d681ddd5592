"""Bring a downloaded data set into this project's layout (see `datasets.layout`).

    python -m datasets.prepare davis2016 --source downloads/DAVIS --data-root data

Files become hard links where the file system has them, and copies elsewhere. Only masks that this
project would not read rightly are converted. Sequences of a single frame have no flow: they are
left out and named. The source is checked before anything is written and is never changed. The
program can be stopped and started again. A file that is there already is kept.
"""

import argparse
import sys
from pathlib import Path

from datasets.known_sets import KNOWN_SETS, is_still_set
from datasets.layout import flow_command
from datasets.prepare.sources import SOURCES
from datasets.prepare.writing import prepare
from datasets.problems import DatasetError
from datasets.progress import print_any_name


def main(arguments: list[str] | None = None) -> int:
    """Run the command with arguments as in `sys.argv[1:]`. Returns its exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m datasets.prepare",
        description="Bring a downloaded data set into this project's layout.",
    )
    parser.add_argument("name", metavar="NAME", choices=tuple(SOURCES), help=", ".join(SOURCES))
    add = parser.add_argument
    add("--source", type=Path, required=True, help="folder with the unpacked archive")
    add("--data-root", type=Path, required=True, help="folder that holds the sets")
    add("--partial", action="store_true", help="accept a data set of which a part is missing")
    options = parser.parse_args(arguments)
    print_any_name()
    description, partial = SOURCES[options.name], options.partial
    try:
        results = prepare(options.source, options.data_root, description, accept_partial=partial)
    except (DatasetError, OSError) as error:
        print(error, file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    for result in results:
        known = _in_words(KNOWN_SETS[result.set_name])
        print(f"{result.set_name}: {_in_words(result.counts)} (known: {known})")
        print(f"  files: {_in_words(result.files)}")
        if not is_still_set(result.set_name):
            print(f"next: {flow_command(options.data_root, result.set_name)}")
    return 0


def _in_words(counts: dict[str, int]) -> str:
    return ", ".join(f"{number:,} {name}" for name, number in counts.items())


if __name__ == "__main__":
    sys.exit(main())
