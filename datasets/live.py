"""Videos that are read once, as they come: a camera, an address, a pipe, or a file.

FFmpeg reads them, by way of PyAV.
"""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from fractions import Fraction
from itertools import chain
from pathlib import Path
from typing import Any

import av
import numpy as np

from datasets.clips import VideoError, upright

PIPE = "-"
_SECONDS = 10.0  # to wait for an address before it is an error
_WAITING = ("http", "https", "file", "ftp", "sftp")  # addresses that wait for their reader
_UNSTATED_RATE = Fraction(25)  # frames per second
_LOOK = 0.2  # seconds between two looks at whether to stop


def is_live(source: str) -> bool:
    """Whether a name is a camera (``0``, ``/dev/video0``), an address or a pipe, and no file."""
    path = Path(source)
    if path.exists():
        return path.is_fifo() or path.is_char_device()
    return source == PIPE or source.isdecimal() or "://" in source


def _address(source: str) -> tuple[str, dict[str, Any], bool]:
    """FFmpeg's name of a source, its options, and whether the source waits for its reader."""
    path = Path(source)
    if source.isdecimal() and not path.exists():
        path = Path(f"/dev/video{source}")
        if not path.exists():
            raise VideoError(f"{source}: there is no camera {path}")
    if path.is_char_device():
        return str(path), {"format": "v4l2"}, False
    if source == PIPE:
        return "pipe:0", {}, True
    scheme, is_address, _ = source.lower().partition("://")
    if path.exists() or not is_address:
        return f"file:{source}", {}, True
    options = {"options": {"rtsp_transport": "tcp"}} if scheme in ("rtsp", "rtsps") else {}
    return source, options, scheme in _WAITING


@dataclass
class LiveVideo:
    """An open video and its first frame; :func:`open_live` makes it."""

    size: tuple[int, int]  # (H, W) in pixels, upright
    rate: Fraction  # frames per second, as the source says
    aspect: Fraction  # width of a pixel over its height
    waits: bool  # the source waits for its reader; from others only the newest frame is taken
    _read: Iterator[np.ndarray]
    damaged: list[int]  # the bytes of each packet that could not be decoded
    left_out: int = 0  # frames for which the network was too slow
    _news: threading.Condition = field(default_factory=threading.Condition)
    _newest: np.ndarray | None = None
    _fault: BaseException | None = None
    _ended: bool = False
    _reader: threading.Thread | None = None

    def frames(self, stop: Callable[[], bool]) -> Iterator[np.ndarray]:
        """Frames, uint8 RGB (H, W, 3), until the end or until ``stop`` says so.

        Raises:
            VideoError: the source breaks off.
        """
        self._reader = threading.Thread(target=self._collect, args=[stop], daemon=True)
        self._reader.start()
        while not stop():
            with self._news:
                self._news.wait_for(lambda: self._newest is not None or self._ended, _LOOK)
                image, self._newest = self._newest, None
                self._news.notify_all()
                if image is None and self._ended:
                    break
            if image is not None:
                yield image
        self._reader.join(_SECONDS)
        if self._fault is not None and not stop():
            raise self._fault

    @property
    def is_left(self) -> bool:
        """Whether nothing reads the source any more."""
        return self._reader is None or not self._reader.is_alive()

    def _collect(self, stop: Callable[[], bool]) -> None:
        """Read the source in a thread of its own, so that it is not kept waiting by the network."""
        try:
            for image in self._read:
                with self._news:
                    while self.waits and self._newest is not None and not stop():
                        self._news.wait(_LOOK)
                    self.left_out += not self.waits and self._newest is not None
                    self._newest = image
                    self._news.notify_all()
                if stop():
                    break
        except BaseException as error:  # raised again by ``frames``
            self._fault = error
        finally:
            with self._news:
                self._ended = True
                self._news.notify_all()


@contextmanager
def open_live(source: str) -> Iterator[LiveVideo]:
    """Open a camera by its number, an address as ``rtsp://...``, a pipe (``-``), or a file.

    Raises:
        VideoError: it cannot be opened, or has no frame.
    """
    name, options, waits = _address(source)
    if Path(source).is_dir():
        raise VideoError(f"{source} is a folder; --stream takes a video file")
    try:
        container = av.open(name, timeout=_SECONDS, metadata_errors="replace", **options)
    except av.FFmpegError as error:
        raise VideoError(f"{source}: FFmpeg cannot open it ({error.strerror})") from error
    video = None
    try:
        stream = container.streams.best("video")
        if stream is None or stream.codec_context is None:
            raise VideoError(f"{source}: no video stream that FFmpeg can decode")
        damaged: list[int] = []
        decoded = _decoded(stream, source, damaged)
        first = next(decoded, None)
        if first is None:
            raise VideoError(f"{source}: no frame of it can be decoded")
        turns, aspect = first.rotation // 90 % 4, stream.sample_aspect_ratio or Fraction(1)
        images = (upright(frame, turns) for frame in chain([first], decoded))
        size = (first.height, first.width)
        video = LiveVideo(
            size[::-1] if turns % 2 else size,
            _rate(stream),
            1 / aspect if turns % 2 else aspect,
            waits,
            images,
            damaged,
        )
        yield video
    finally:
        # A reader that still waits for the source ends with the process.
        if video is None or video.is_left:
            container.close()


def _rate(stream: av.VideoStream) -> Fraction:
    """Frames per second. Of some sources FFmpeg takes the unit of the frames' times for it."""
    rate = stream.guessed_rate or stream.average_rate or _UNSTATED_RATE
    return _UNSTATED_RATE if rate * stream.time_base == 1 else rate


def _decoded(stream: av.VideoStream, source: str, damaged: list[int]) -> Iterator[av.VideoFrame]:
    """The frames. Damaged packets are noted and left out, as live sources lose some."""
    try:
        for packet in stream.container.demux(stream):
            frames = []
            try:
                frames = packet.decode()
            except av.error.InvalidDataError:
                damaged.append(packet.size)
            yield from frames
    except av.FFmpegError as error:
        raise VideoError(f"{source}: broke off ({error.strerror})") from error
