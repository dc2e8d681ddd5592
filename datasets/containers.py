"""Video files that lack their end, in containers of which FFmpeg reads the rest without an error.

Most of these are chains of elements whose headers state their sizes. A file that is cut off ends
within an element, even where every frame that is left can be decoded.
"""

from collections.abc import Callable
from functools import partial
from mmap import ACCESS_READ, mmap
from pathlib import Path

import av

_REST = 64  # bytes at a GIF's end in which its last block is looked for: some have bytes after it
_ASF_DATA = bytes.fromhex("3626b2758e66cf11a6d900aa0062ce6c")  # the identity of a data object
_ASF_DATA_HEADER = 50  # bytes
_HEADER = 27 + 255  # bytes; the longest header of an element, an Ogg page's


def is_cut_off(path: Path, stream: av.VideoStream) -> bool:
    """Whether a file, of which this is the opened video, surely lacks its end.

    False also where that cannot be known: in other containers, or if the chain holds something
    unknown.
    """
    container, position = stream.container.format.name, 0
    length_of = _LENGTHS.get(container)
    with path.open("rb") as file, mmap(file.fileno(), 0, access=ACCESS_READ) as data:
        if container == "gif":  # an image ends with a block of length 0, the file with ";"
            return b"\0;" not in data[-_HEADER:].rstrip(b"\0\r\n")[-_REST:]
        if container == "mpegts":  # packets of 188 bytes, or with 16 more for error correction
            return all(data[-length : 1 - length] != b"\x47" for length in (188, 204))
        if container == "yuv4mpegpipe":
            planes = stream.format.components
            frame = sum(plane.width * plane.height * -(-plane.bits // 8) for plane in planes)
            position, length_of = data.find(b"\n") + 1, partial(_y4m_frame, frame=frame)
        while length_of and position < len(data):
            length = length_of(data[position : position + _HEADER])
            if not length:
                return False
            position += length
        return position > len(data)


def _y4m_frame(header: bytes, frame: int) -> int:
    """y4m: a line, "FRAME" and perhaps parameters, and the picture's bytes."""
    if header[:5] != b"FRAME"[: len(header)]:
        return 0
    return (header.find(b"\n") + 1 or len(header)) + frame


def _ebml_element(header: bytes) -> int:
    """Matroska, WebM: an element of unknown size, as in live recordings, is followed inside."""
    start = 9 - header[0].bit_length()  # after the identity
    sized = header[start : start + 1]
    if start > 4 or not sized or not sized[0]:
        return 0
    width = 9 - sized[0].bit_length()
    unknown = (1 << 7 * width) - 1
    size = int.from_bytes(header[start : start + width], "big") & unknown
    return start + width + (0 if size == unknown else size)


def _asf_object(header: bytes) -> int:
    """WMV: the size follows an identity of 16 bytes and counts both.

    A data object that a pipe got states the size of its own header.
    """
    size = int.from_bytes(header[16:24], "little")
    return 0 if header[:16] == _ASF_DATA and size <= _ASF_DATA_HEADER else size


def _ogg_page(header: bytes) -> int:
    if header[:4] != b"OggS" or len(header) < 27:
        return 0
    segments = header[26]
    return 27 + segments + sum(header[27 : 27 + segments])


# Bytes of an element with its header, by FFmpeg's name of the format; 0 where it does not say.
_LENGTHS: dict[str, Callable[[bytes], int]] = {
    "matroska,webm": _ebml_element,
    "asf": _asf_object,
    "ogg": _ogg_page,
}
