"""Whether a video file has its end, told by its container without decoding anything.

Most containers are chains of elements whose headers state their sizes. A file that is cut off ends
within an element, even where every frame that is left can be decoded. Raw streams and containers
that are not in this module state no sizes: there a cut can only be seen in a frame that it breaks.
"""

from collections.abc import Callable
from pathlib import Path

import av

_HEADER = 27 + 255  # bytes; the longest header of an element, an Ogg page's
_BOXES = b"ftyp styp moov moof mdat free skip wide sidx uuid meta mfra".split()
_TS_PACKETS = (188, 204)  # bytes; of the latter the last 16 are for error correction


def is_cut_off(path: Path, stream: av.VideoStream) -> bool:
    """Whether a file surely lacks its end.

    Args:
        path: the file.
        stream: its video, opened.

    Returns:
        True if the file ends within an element, or without its end marker. False also where that
        cannot be known: the format states no sizes, or the chain holds something unknown.
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


def _box(header: bytes) -> int:
    """MP4, MOV, 3GP: a box of size 0 goes on to the end of the file. Cameras append other data."""
    if header[4:8] not in _BOXES:
        return 0
    size = int.from_bytes(header[:4], "big")
    return int.from_bytes(header[8:16], "big") if size == 1 else size


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


def _riff_chunk(header: bytes) -> int:
    """AVI; those over 1 GB are several chunks. Size 0 or -1: its writer could not go back to it."""
    size = int.from_bytes(header[4:8], "little")
    return 8 + size if header[:4] == b"RIFF" and 0 < size < 0xFFFFFFFF else 0


def _asf_object(header: bytes) -> int:
    """WMV, WMA: the size follows an identity of 16 bytes and counts both."""
    return int.from_bytes(header[16:24], "little")


def _flv_tag(header: bytes) -> int:
    """FLV: after every tag, and after the file's header, there are 4 bytes of its length."""
    if header[:3] == b"FLV":
        return int.from_bytes(header[5:9], "big") + 4
    if header[0] & 31 not in (8, 9, 18):
        return 0
    return 11 + int.from_bytes(header[1:4], "big") + 4


def _ogg_page(header: bytes) -> int:
    if header[:4] != b"OggS" or len(header) < 27:
        return 0
    segments = header[26]
    return 27 + segments + sum(header[27 : 27 + segments])


def _ivf_frame(header: bytes) -> int:
    return 32 if header[:4] == b"DKIF" else 12 + int.from_bytes(header[:4], "little")


# Bytes of an element with its header, by FFmpeg's name of the format; 0 where it does not say.
_LENGTHS: dict[str, Callable[[bytes], int]] = {
    "mov,mp4,m4a,3gp,3g2,mj2": _box,
    "matroska,webm": _ebml_element,
    "avi": _riff_chunk,
    "asf": _asf_object,
    "flv": _flv_tag,
    "ogg": _ogg_page,
    "ivf": _ivf_frame,
}
