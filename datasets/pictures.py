"""Reading pictures from JPEG and PNG files.

EXIF orientation is ignored everywhere, so that images, masks and flow maps stay aligned. A file
that is missing, cut off, damaged or no picture raises a DatasetError.
"""

import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

import cv2
import numpy as np
import simplejpeg
from PIL import Image, UnidentifiedImageError

from datasets.problems import DatasetError

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png")
# Pictures that are not read. They are reported, because frames would be left out in silence.
OTHER_SUFFIXES = (
    *(".avif", ".bmp", ".gif", ".heic", ".heif", ".jfif", ".jp2", ".jpe", ".jxl"),
    *(".pbm", ".pgm", ".pnm", ".ppm", ".tga", ".tif", ".tiff", ".webp"),
)
_PNG_END, _JPEG_END = b"IEND\xae\x42\x60\x82", b"\xff\xd9"


def read_image(path: Path) -> np.ndarray:
    """Read an image or a flow map: uint8 RGB (H, W, 3), without transparency."""
    with open_picture(path) as picture:
        if picture.format != "PNG":
            return decode_jpeg(path, picture)
        verify_png(path)
        # OpenCV is faster than Pillow. It gets bytes, because it fails at names that are not UTF-8.
        flags = cv2.IMREAD_COLOR | cv2.IMREAD_IGNORE_ORIENTATION
        bgr = cv2.imdecode(np.fromfile(path, np.uint8), flags)
    if bgr is None:
        raise DatasetError(f"{path}: cannot be decoded; replace this file")
    return cv2.cvtColor(bgr, cv2.COLOR_BGR2RGB)


def read_size(path: Path) -> tuple[int, int]:
    """Height and width of a picture in pixels, from its header."""
    with open_picture(path) as picture:
        return picture.height, picture.width


@contextmanager
def open_picture(path: Path) -> Iterator[Image.Image]:
    """A complete JPEG or PNG, not yet decoded. Its faults become DatasetErrors."""
    try:
        if not stat.S_ISREG(path.stat().st_mode):  # opening a pipe would wait for its other end
            raise DatasetError(f"{path}: not a regular file; replace it by a JPEG or PNG")
        with path.open("rb") as file, Image.open(file, formats=("JPEG", "PNG")) as picture:
            if not _is_complete(file, picture.format == "PNG"):
                raise DatasetError(f"{path}: truncated, its end is missing; replace this file")
            yield picture
    except FileNotFoundError:
        fault = "a link to a file that is not there" if path.is_symlink() else "no such file"
        raise DatasetError(f"{path}: {fault}") from None
    except UnidentifiedImageError:
        fault = "not a JPEG or PNG, or cut off early" if path.stat().st_size else "empty (0 bytes)"
        raise DatasetError(f"{path}: {fault}; replace this file") from None
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError, cv2.error) as error:
        raise DatasetError(f"{path}: cannot be read ({error}); replace this file") from error


def decode_jpeg(path: Path, picture: Image.Image) -> np.ndarray:
    """uint8 RGB (H, W, 3) of an opened JPEG.

    Other decoders fill damaged parts with something and report nothing.
    """
    try:
        return simplejpeg.decode_jpeg(path.read_bytes(), "RGB")
    except ValueError as error:
        if "Corrupt JPEG data" in str(error) or "Premature end" in str(error):
            raise DatasetError(f"{path}: damaged inside ({error}); replace this file") from None
    return np.array(picture.convert("RGB"))  # CMYK, or unusual headers


def verify_png(path: Path) -> None:
    """Compare the checksums of a PNG, which decoders do not."""
    try:
        with Image.open(path, formats=("PNG",)) as picture:
            picture.verify()
    except SyntaxError as error:
        raise DatasetError(f"{path}: damaged inside ({error}); replace this file") from None


def _is_complete(file: BinaryIO, is_png: bool) -> bool:
    """Whether the end marker follows the pixels. Keeps the file's position."""
    end = _PNG_END if is_png else _JPEG_END
    position = file.tell()
    file.seek(-len(end), os.SEEK_END)
    complete = file.read() == end
    if not complete:  # some programs append data of their own, phones a film
        file.seek(0)
        content = file.read()
        complete = content.find(end, 0 if is_png else _first_scan(content)) >= 0
    file.seek(position)
    return complete


def _first_scan(jpeg: bytes) -> int:
    """The position of the pixels, behind the headers, of which one may hold a small JPEG."""
    position = 2
    while (marker := jpeg[position : position + 2])[:1] == b"\xff" and marker != b"\xff\xda":
        if marker == b"\xff\xff":  # the first byte fills a gap
            position += 1
        else:
            position += 2 + int.from_bytes(jpeg[position + 2 : position + 4], "big")
    return position
