"""Clips: a video file, or a folder of frames, that is read frame by frame as often as needed.

:func:`check_clip` reads a clip once from beginning to end, so that its faults are known before
hours of work begin; :meth:`Clip.frames` then gives its frames. No more than a few frames are in
memory at any time. FFmpeg reads the files, by way of PyAV. Frames are turned upright as the file
says. EXIF orientation of pictures in a folder is ignored, as in data sets.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from fractions import Fraction
from functools import cached_property, partial
from itertools import dropwhile, pairwise
from pathlib import Path

import av
import numpy as np

from datasets.containers import is_cut_off
from datasets.layout import list_pictures, natural_order
from datasets.pictures import read_image
from datasets.problems import Problems, format_problems
from datasets.progress import Report, progress_bar
from errors import UserError

# FFmpeg reads text as a film. Playlists name other files, which an upload must not show.
_NO_FILMS = ("tty", "hls", "dash", "concat", "sdp", "imf")
_SLOWEST = Fraction(1, 1001)  # frames per second
_REPAIR = "get a whole copy, or keep what can be read: ffmpeg -i FILE -c:v libx264 repaired.mp4"


class VideoError(UserError):
    """A clip cannot be read, or its results not written; the message says what to do."""


@dataclass
class ClipFrame:
    """One frame of a clip."""

    name: str  # for its mask's file: its number from 0, or in a folder the picture's own name
    read: Callable[[], np.ndarray]  # makes the image

    @cached_property
    def image(self) -> np.ndarray:
        """uint8 RGB (H, W, 3), upright. Made when first asked for."""
        return self.read()


@dataclass(frozen=True)
class Clip:
    """A clip that :func:`check_clip` has found whole."""

    source: Path  # the file or folder
    count: int  # of its frames, at least 2
    size: tuple[int, int]  # (H, W) in pixels, upright
    rate: Fraction  # frames per second; the mean if it varies
    aspect: Fraction = Fraction(1)  # width of a pixel over its height, upright
    turns: int = 0  # quarter turns to the left that make a file's frames upright
    pictures: tuple[Path, ...] = ()  # of a folder, in order

    def frames(self) -> Iterator[ClipFrame]:
        """All frames in order. A frame is converted when its image is asked for."""
        for path in self.pictures:
            yield ClipFrame(path.stem, partial(read_image, path))
        if not self.pictures:
            # Frame threads are faster, but lose errors at a file's end; it has been checked.
            with _open_video(self.source, threads="AUTO") as stream:
                number = -1
                for number, frame in enumerate(_decode(stream, self.source)):
                    yield ClipFrame(f"{number:05d}", partial(upright, frame, self.turns))
            if number + 1 != self.count:
                raise VideoError(
                    f"{self.source}: {self.count} frames at first, {number + 1} now; it has been "
                    f"changed, or is damaged: {_REPAIR}"
                )


def check_clip(source: Path, frame_rate: float = 24.0, progress: bool | Report = True) -> Clip:
    """Read a clip to its end, count its frames and find its faults.

    The source is a video file that FFmpeg can read, or a folder of pictures (.jpg, .jpeg or .png)
    in the order of the numbers in their names, to be shown at ``frame_rate`` frames per second.
    ``progress`` shows a bar, or is a function that is told of each frame.

    Raises:
        UserError: nothing is there, it is no video, it is damaged, it has a single frame, or its
            frames differ in size.
    """
    if source.is_dir():
        clip = _check_folder(source, frame_rate, progress)
    elif source.is_file():
        clip = _check_file(source, progress)
    else:
        raise VideoError(
            f"{source}: neither a file nor a folder; expected a video file or a folder of pictures"
        )
    if clip.count < 2:
        raise VideoError(f"{source}: {clip.count} frame; a clip needs at least two")
    return clip


def _check_folder(folder: Path, frame_rate: float, progress: bool | Report) -> Clip:
    problems: Problems = {}
    paths = list(list_pictures(folder, problems).values())
    if problems:
        raise VideoError(format_problems(folder, problems))
    if not paths:
        raise VideoError(f"{folder}: no pictures (.jpg, .jpeg or .png) in this folder itself")
    paths.sort(key=lambda path: (natural_order(path.stem), path.name))
    size = read_image(paths[0]).shape[:2]
    for path in progress_bar(
        paths, shown=progress, total=len(paths), desc="checking", unit="frame"
    ):
        check_same_size(f"{folder}: {path.name}", read_image(path).shape[:2], size)
    rate = Fraction(frame_rate).limit_denominator(1001)
    return Clip(folder, len(paths), size, rate, pictures=tuple(paths))


def _check_file(path: Path, progress: bool | Report) -> Clip:
    times: list[int | None] = []
    size, turns = None, 0
    # Without frame threads every decoding error is seen, also those at the end.
    with _open_video(path, threads="SLICE") as stream:
        if is_cut_off(path, stream):
            raise VideoError(f"{path}: cut off, its end is missing; {_REPAIR}")
        aspect = stream.sample_aspect_ratio or Fraction(1)
        stream.codec_context.options = {"err_detect": "explode"}  # conceal nothing
        frames, total = _decode(stream, path), stream.frames or None
        bar = progress_bar(frames, shown=progress, total=total, desc="checking", unit="frame")
        for frame in bar:
            if size is None:
                size, turns = (frame.height, frame.width), frame.rotation // 90 % 4
            check_same_size(f"{path}: frame {len(times)}", (frame.height, frame.width), size)
            times.append(frame.pts)
        rate, codec = _rate(stream, times), stream.codec_context.name
    if size is None:
        raise VideoError(
            f"{path}: no frame of it can be decoded ({codec}): get a whole copy, or convert it to "
            "MP4 with another program"
        )
    if turns % 2:
        size, aspect = size[::-1], 1 / aspect
    return Clip(path, len(times), size, rate, aspect, turns)


def _decode(stream: av.VideoStream, path: Path) -> Iterator[av.VideoFrame]:
    """Frames from the first whole one on. Those before it need frames that the clip lacks."""
    count, damage = 0, ""
    packets = stream.container.demux(stream)
    for packet in dropwhile(lambda packet: not packet.is_keyframe, packets):
        fault = "damaged" if packet.is_corrupt else ""
        try:
            frames = packet.decode()
        except av.FFmpegError as error:
            frames, fault = [], error.strerror
        whole = [frame for frame in frames if not frame.is_corrupt]
        if not damage:
            yield from whole
            count += len(whole)
        if count and len(whole) < len(frames):
            fault = "damaged"
        if count or packet.is_keyframe:
            damage = damage or fault
        if damage and (count or whole):
            raise VideoError(
                f"{path}: cut off or damaged after {count} frames ({damage}); {_REPAIR}"
            )


def _rate(stream: av.VideoStream, times: list[int | None]) -> Fraction:
    """Frames per second: the rate that the file states, or the mean if that is another."""
    stated = stream.guessed_rate or stream.average_rate or Fraction(25)
    in_order = None not in times and all(a <= b for a, b in pairwise(times))
    if len(times) < 2 or not in_order or times[-1] == times[0]:
        return stated
    mean = (len(times) - 1) / ((times[-1] - times[0]) * stream.time_base)
    return stated if abs(mean / stated - 1) < 0.02 else max(mean.limit_denominator(1001), _SLOWEST)


@contextmanager
def _open_video(path: Path, threads: str) -> Iterator[av.VideoStream]:
    """A file's best video stream; FFmpeg's errors become VideoErrors."""
    try:
        # The prefix keeps a colon in a name from being taken for a protocol.
        with av.open(f"file:{path}", metadata_errors="replace") as container:
            stream = container.streams.best("video")
            no_film = container.format.name in _NO_FILMS
            if stream is None or stream.codec_context is None or no_film:
                raise VideoError(
                    f"{path}: no video stream that FFmpeg can decode; expected a video file or a "
                    "folder of pictures"
                )
            stream.thread_type = threads
            yield stream
    except av.FFmpegError as error:
        raise VideoError(
            f"{path}: no video, cut off or damaged: FFmpeg cannot read it ({error.strerror}); "
            f"{_REPAIR}"
        ) from error


def upright(frame: av.VideoFrame, turns: int) -> np.ndarray:
    """A decoded frame, turned to the left by quarter turns: uint8 RGB (H, W, 3)."""
    return np.ascontiguousarray(np.rot90(frame.to_ndarray(format="rgb24"), turns))


def check_same_size(name: str, found: tuple[int, int], size: tuple[int, int]) -> None:
    """Raise VideoError unless a frame of (H, W) pixels has the size of those before it."""
    if found != size:
        raise VideoError(
            f"{name} is {found[1]} x {found[0]} pixels, those before it {size[1]} x {size[0]}; all "
            "frames of a video must be of one size: resize them, or cut the video"
        )
