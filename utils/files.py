"""Text with any file's name in it: to write it whole or not at all, and to show it."""

import os
from contextlib import suppress
from pathlib import Path


def printable(text: str) -> str:
    r"""The text with bytes of names that are not UTF-8 escaped, as ``\udcff``."""
    return text.encode(errors="backslashreplace").decode()


def write_text(path: Path, text: str) -> None:
    """Write a file, UTF-8, so that it is at any time the old one or the new one; makes its folder.

    Names of files that are not UTF-8 keep their bytes: read them with the same ``errors``.

    Raises:
        OSError: it could not be written, as on a full disk; its ``filename`` is ``path``, whatever
            the system was busy with. Nothing half-written is left.
    """
    partial = path.with_name(f".{path.name}.partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with partial.open("w", encoding="utf-8", errors="surrogateescape", newline="") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, path)
    except OSError as error:
        with suppress(OSError):
            partial.unlink(missing_ok=True)
        raise OSError(error.errno, error.strerror or str(error), str(path)) from error
