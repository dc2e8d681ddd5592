"""Video files that lack their end, in containers of which FFmpeg reads the rest without an error.

Most of these are chains of elements whose headers state their sizes. A file that is cut off ends
within an element, even where every frame that is left can be decoded.
"""

from collections.abc import Callable
from pathlib import Path

import av

_HEADER = 27 + 255  # bytes; the longest header of an element, an Ogg page's
_TS_PACKETS = (188, 204)  # bytes; of the latter the last 16 are for error correction


def is_cut_off(path: Path, stream: av.VideoStream) -> bool:
    """Whether a file surely lacks its end.

    Args:
        path: the file.
        stream: its video, opened.

    Returns:
        True if the file ends within an element, or without its end marker. False also where that
        cannot be known: in other containers, or if the chain holds something unknown.
    """
    container, size = stream.container.format.name, path.stat().st_size
    with path.open("rb") as file:
        if container in ("gif", "mpegts"):
            file.seek(max(0, size - max(_TS_PACKETS)))
            end = file.read()
            if container == "gif":  # an image ends with a block of length 0, the file with ";"
                return not end.rstrip(b"\0\r\n").endswith(b"\0;")
            return all(end[-length : 1 - length] != b"\x47" for length in _TS_PACKETS)
        if container == "yuv4mpegpipe":
            frame = len("FRAME\n") + sum(
                plane.width * plane.height * -(-plane.bits // 8)
                for plane in stream.format.components
            )
            return (size - len(file.readline())) % frame > 0
        length_of = _LENGTHS.get(container)
        position = 0
        while length_of and position < size:
            file.seek(position)
            length = length_of(file.read(_HEADER))
            if not length:
                return False
            position += length
    return position > size


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
    """WMV: the size follows an identity of 16 bytes and counts both."""
    return int.from_bytes(header[16:24], "little")


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
