"""Progress bars with one look everywhere, and printing any file's name."""

import io
import sys
from collections.abc import Callable, Iterable, Iterator
from typing import Any, TextIO

from tqdm import tqdm

# Is called before each item with the work ("segmenting"), the number of items done, and the number
# of all items or None. An exception that it raises ends the work.
Report = Callable[[str, int, int | None], None]
_LINE_EVERY = 30  # seconds, in a log


class _Lines:
    """A stream in which every update is a line of its own, instead of overwriting the last one."""

    def __init__(self, stream: TextIO):
        self.stream = stream

    def write(self, text: str) -> None:
        text = text.strip("\r\n ")
        if text:
            self.stream.write(f"{text}\n")

    def flush(self) -> None:
        self.stream.flush()


def print_any_name() -> None:
    """Let ``print`` escape characters that the output cannot show, as in names of other systems."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")


def progress_bar(
    items: Iterable[Any] | None = None, *, shown: bool | Report = True, **options: Any
) -> tqdm:
    """A tqdm bar on stderr, of ``items`` or updated by the caller; in a log, a line now and then.

    A function in the place of ``shown`` is told of the items instead. ``options`` are tqdm's own:
    ``total``, ``desc``, ``unit``, ...
    """
    if callable(shown):
        items = _reported(items or (), shown, options.get("desc", ""), options.get("total"))
        shown = False
    if sys.stderr.isatty():
        look = {"dynamic_ncols": True}
    else:
        # At position 0 a bar inside another one does not move the cursor.
        look = {"file": _Lines(sys.stderr), "ncols": 100, "position": 0}
        look |= {"mininterval": _LINE_EVERY, "maxinterval": _LINE_EVERY}
    return tqdm(items, disable=not shown, **{**look, **options})


def _reported(items: Iterable[Any], report: Report, work: str, count: int | None) -> Iterator[Any]:
    for done, item in enumerate(items):
        report(work, done, count)
        yield item
