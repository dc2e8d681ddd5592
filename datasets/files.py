"""Writing files whole or not at all."""

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

import cv2
import numpy as np


@contextmanager
def replacing(path: Path, durable: bool = False) -> Iterator[BinaryIO]:
    """Open a file that takes the place of ``path`` when it is complete; makes the folder.

    With ``durable`` the content is on the disk before, so that no power failure loses it.

    Raises:
        OSError: the file could not be written, as on a full disk. Its ``filename`` is ``path``.
            Nothing half-written is left.
    """
    partial = path.with_name(f".{path.name}.partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with partial.open("wb") as file:
            yield file
            if durable:
                file.flush()
                os.fsync(file.fileno())
        os.replace(partial, path)
    except OSError as error:
        raise OSError(error.errno, error.strerror or str(error), str(path)) from error
    finally:
        with suppress(OSError):
            partial.unlink(missing_ok=True)


def write_bytes(path: Path, content: bytes, durable: bool = False) -> None:
    """Write a file whole or not at all, as :func:`replacing` does."""
    with replacing(path, durable) as file:
        file.write(content)


def write_text(path: Path, text: str) -> None:
    """Write a text file durably, in UTF-8; names of files that are not UTF-8 keep their bytes."""
    write_bytes(path, text.encode(errors="surrogateescape"), durable=True)


def write_picture(path: Path, picture: np.ndarray) -> None:
    """Write uint8 RGB (H, W, 3) or grey (H, W) in the format of the suffix, as :func:`write_bytes`.

    Raises:
        OSError: the file could not be encoded or written.
    """
    if picture.ndim == 3:
        picture = cv2.cvtColor(picture, cv2.COLOR_RGB2BGR)
    done, encoded = cv2.imencode(path.suffix, picture)
    if not done:
        raise OSError(f"{path} could not be encoded")
    write_bytes(path, encoded.tobytes())


def printable(text: str) -> str:
    r"""The text with bytes of names that are not UTF-8 escaped, as ``\udcff``."""
    return text.encode(errors="backslashreplace").decode()
