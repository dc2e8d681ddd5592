"""What programs print: progress bars, one look everywhere, and any file's name.

Where the output is no terminal, a bar is a line now and then.
"""

import io
import sys
from collections.abc import Iterable
from typing import Any, TextIO

from tqdm import tqdm

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
    """Let ``print`` escape what the output cannot show, as names that are not UTF-8."""
    if isinstance(sys.stdout, io.TextIOWrapper):  # it is None where it was closed
        sys.stdout.reconfigure(errors="backslashreplace")


def progress_bar(items: Iterable[Any] | None = None, *, shown: bool = True, **options: Any) -> tqdm:
    """A tqdm bar on stderr; in a log, a line every half minute.

    Args:
        items: what to go through; without, the caller updates the bar.
        shown: False for none.
        options: tqdm's own: ``total``, ``desc``, ``unit``, ...
    """
    stream = sys.stderr
    if not stream.isatty():
        options = {
            "file": _Lines(stream),
            "mininterval": _LINE_EVERY,
            "maxinterval": _LINE_EVERY,
            "ncols": 100,
            **options,
        }
    else:
        options = {"dynamic_ncols": True, **options}
    return tqdm(items, disable=not shown, **options)
