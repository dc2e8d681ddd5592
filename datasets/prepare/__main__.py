"""Bring a downloaded data set, or videos of your own, into this project's layout.

    python -m datasets.prepare davis2016 --source downloads/DAVIS --data-root data
    python -m datasets.prepare folder --source my_videos --data-root data --set mine

Files become hard links where the file system has them, and copies elsewhere. Masks that this
project would not read rightly are converted, and so are BMP images. Sequences of a single frame
have no flow and are left out. The source is checked before anything is written and is never
changed. The program can be stopped and started again. Equal files that are there are kept.
"""

import argparse
import shutil
import sys
from contextlib import suppress
from functools import partial
from pathlib import Path

from datasets.known_sets import KNOWN_SETS, is_still_set
from datasets.layout import flow_command
from datasets.prepare.folder import read_folder
from datasets.prepare.sources import SOURCES, Source
from datasets.prepare.writing import Prepared, prepare
from datasets.progress import print_any_name
from errors import UserError

FOLDER = "folder"  # the name of videos of the user's own


def main(arguments: list[str] | None = None) -> int:
    """Run the command with arguments as in `sys.argv[1:]`. Returns its exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m datasets.prepare",
        description="Bring a data set, or videos of your own, into this project's layout.",
    )
    names = (*SOURCES, FOLDER)
    parser.add_argument("name", metavar="NAME", choices=names, help=", ".join(names))
    add = parser.add_argument
    add("--source", type=Path, required=True, help="folder with the unpacked archive")
    add("--data-root", type=Path, required=True, help="folder that holds the sets")
    add("--partial", action="store_true", help="accept a data set of which a part is missing")
    add("--set", metavar="NAME", help=f"with {FOLDER}: name of the set, which it needs")
    options = parser.parse_args(arguments)
    if (options.name == FOLDER) != bool(options.set):
        parser.error(f"--set goes with {FOLDER}, and {FOLDER} with --set NAME")
    print_any_name()
    try:
        results = _prepare(options)
    except (UserError, OSError) as error:
        print(error, file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    for result in results:
        known = KNOWN_SETS.get(result.set_name)
        beside = f" (known: {_in_words(known)})" if known else ""
        print(f"{result.set_name}: {_in_words(result.counts)}{beside}")
        print(f"  files: {_in_words(result.files)}")
        if not is_still_set(result.set_name):
            print(f"next: {flow_command(options.data_root, result.set_name)}")
    return 0


def _prepare(options: argparse.Namespace) -> list[Prepared]:
    """Do what the command line asks for."""
    source, data_root, accept = options.source, options.data_root, options.partial
    if options.name != FOLDER:
        return prepare(source, data_root, SOURCES[options.name], accept_partial=accept)
    new = not data_root.exists()
    data_root.mkdir(parents=True, exist_ok=True)
    # Beside the set, so that decoded frames become links; a killed program leaves them there.
    decoded = data_root / f".{Path(options.set).name}.decoded"
    try:
        shutil.rmtree(decoded, ignore_errors=True)
        decoded.mkdir()
        read = partial(read_folder, set_name=options.set, decoded=decoded)
        return prepare(source, data_root, Source(read, ()), accept_partial=accept)
    finally:
        shutil.rmtree(decoded, ignore_errors=True)
        if new:
            with suppress(OSError):  # it is not empty
                data_root.rmdir()


def _in_words(counts: dict[str, int]) -> str:
    return ", ".join(f"{number:,} {name}" for name, number in counts.items())


if __name__ == "__main__":
    sys.exit(main())
