"""Clips: a video file, or a folder of frames, that is read frame by frame as often as needed.

:func:`check_clip` reads a clip once from beginning to end, so that its faults are known before
hours of work begin; :meth:`Clip.frames` then gives its frames. No more than a few frames are in
memory at any time.

FFmpeg reads the files, by way of PyAV. Frames are turned upright as the file says. EXIF orientation
of pictures in a folder is ignored, as in data sets.
"""

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from fractions import Fraction
from functools import cached_property, partial
from itertools import dropwhile, pairwise
from pathlib import Path

import av
import numpy as np
from av.container import InputContainer

from datasets.containers import is_cut_off
from datasets.layout import natural_order, subfolders
from datasets.pictures import IMAGE_SUFFIXES, OTHER_SUFFIXES, read_image
from datasets.problems import DatasetError
from datasets.progress import progress_bar
from errors import UserError

_REPAIR = "get a whole copy, or keep what can be read: ffmpeg -i FILE -c:v libx264 repaired.mp4"


class VideoError(UserError):
    """A clip cannot be read, or its results not written; the message says what to do."""


@dataclass
class ClipFrame:
    """One frame of a clip."""

    name: str  # for its mask's file: its number from 0, or in a folder the picture's own name
    time: int  # of presentation, from 0, in units of ``Clip.time_base``
    duration: int  # in the same units; 0 where the file does not say
    read: Callable[[], np.ndarray]  # makes the image

    @cached_property
    def image(self) -> np.ndarray:
        """uint8 RGB (H, W, 3), upright. Made when first asked for.

        Raises:
            VideoError: the picture cannot be read.
        """
        return self.read()


@dataclass(frozen=True)
class Clip:
    """A clip that :func:`check_clip` has found whole."""

    source: Path  # the file or folder
    count: int  # of its frames, at least 2
    size: tuple[int, int]  # (H, W) in pixels, upright
    rate: Fraction  # frames per second; the mean where ``constant`` is False
    constant: bool  # whether frames come at a constant rate
    time_base: Fraction  # seconds in a unit of ``ClipFrame.time``: 1 / rate, or the file's own
    aspect: Fraction = Fraction(1)  # width of a pixel over its height, upright
    turns: int = 0  # quarter turns to the left that make a file's frames upright
    pictures: tuple[Path, ...] | None = None  # of a folder, in order; None for a file

    def frames(self) -> Iterator[ClipFrame]:
        """All frames in order. A frame is converted when its image is asked for.

        Raises:
            VideoError: the clip cannot be read any more as it was when it was checked.
        """
        if self.pictures is not None:
            for time, path in enumerate(self.pictures):
                yield ClipFrame(path.stem, time, 1, partial(_read_picture, path))
            return
        number = start = 0
        # Frame threads are faster, but lose errors at a file's end; it has been checked already.
        with _open_video(self.source, threads="AUTO") as (container, stream):
            for packet in _from_keyframe(container.demux(stream)):
                for frame in _decoded(packet, self.source, number):
                    name, read = f"{number:05d}", partial(_upright, frame, self.turns)
                    if self.constant:
                        yield ClipFrame(name, number, 1, read)
                    else:
                        start = start if number else frame.pts
                        yield ClipFrame(name, frame.pts - start, frame.duration or 0, read)
                    number += 1
        if number != self.count:
            raise VideoError(
                f"{self.source}: {number} frames, but {self.count} when it was checked; leave the "
                "file alone while it is segmented"
            )


def check_clip(source: Path, frame_rate: float = 24.0) -> Clip:
    """Read a clip to its end, count its frames and find its faults.

    Args:
        source: a video file that FFmpeg can read, or a folder of pictures (.jpg, .jpeg or .png),
            in the order of the numbers in their names.
        frame_rate: frames per second of a folder; files have their own.

    Returns:
        The clip. A file's rate counts as constant if every frame's time is that of a constant rate,
        up to rounding to the file's time base, or if the times are missing or not in order.

    Raises:
        VideoError: nothing is there, it is no video, it is damaged or cut off, it has a single
            frame, or its frames differ in size.
    """
    if source.is_dir():
        return _with_two(_check_folder(source, frame_rate))
    if not source.is_file():
        raise VideoError(
            f"{source}: neither a file nor a folder; expected a video file or a folder of pictures "
            "on this machine (download a stream or a web address first)"
        )
    if source.stat().st_size == 0:
        raise VideoError(f"{source}: empty (0 bytes); get a whole copy")
    return _with_two(_check_file(source))


def _with_two(clip: Clip) -> Clip:
    """The clip, if it has at least two frames."""
    if clip.count < 2:
        raise VideoError(
            f"{clip.source}: 1 frame; a clip needs at least two, because a frame's flow is its "
            "motion to the next one"
        )
    return clip


def _check_folder(folder: Path, frame_rate: float) -> Clip:
    if not frame_rate > 0:
        raise VideoError(f"frame rate {frame_rate}: expected frames per second, such as 24")
    shown = [path for path in sorted(folder.iterdir()) if not path.name.startswith(".")]
    paths = [path for path in shown if path.suffix.lower() in IMAGE_SUFFIXES]
    stems = {path.stem for path in paths}
    for path in shown:
        if path.suffix.lower() in OTHER_SUFFIXES and path.stem not in stems:
            raise VideoError(
                f"{path}: a picture of another format; convert it to PNG, or to JPEG, or remove it"
            )
    if not paths:
        inside = [folder / name for name in subfolders(folder)]
        hint = f"; it holds folders, is one of them meant, as {inside[0]}?" if inside else ""
        raise VideoError(f"{folder}: no pictures (.jpg, .jpeg or .png) in this folder{hint}")
    paths.sort(key=lambda path: (natural_order(path.stem), path.name))
    for path, following in pairwise(paths):
        if path.stem == following.stem:
            raise VideoError(
                f"{following} and {path.name} would give masks of one name; keep one of them"
            )
    size = None
    for path in progress_bar(paths, desc="checking", unit="frame"):
        found = _read_picture(path).shape[:2]
        size = size or found
        if found != size:
            raise _size_error(str(path), found, size)
    rate = Fraction(frame_rate).limit_denominator(1001)
    return Clip(folder, len(paths), size, rate, True, 1 / rate, pictures=tuple(paths))


def _check_file(path: Path) -> Clip:
    times: list[int | None] = []
    size, turns = None, 0
    # Without frame threads every decoding error is seen, also those at the end.
    with _open_video(path, threads="SLICE") as (container, stream):
        with progress_bar(total=stream.frames or None, desc="checking", unit="frame") as bar:
            for packet in _from_keyframe(container.demux(stream)):
                for frame in _decoded(packet, path, len(times)):
                    if frame.is_corrupt:
                        raise VideoError(f"{path}: frame {len(times)} is damaged; {_REPAIR}")
                    if size is None:
                        size, turns = (frame.height, frame.width), frame.rotation // 90 % 4
                    if size != (frame.height, frame.width):
                        where = f"{path}: frame {len(times)}"
                        raise _size_error(where, (frame.height, frame.width), size)
                    times.append(frame.pts)
                    bar.update()
                if packet.is_corrupt:
                    raise VideoError(
                        f"{path}: cut off or damaged after {len(times)} frames; {_REPAIR}"
                    )
        aspect = stream.sample_aspect_ratio or Fraction(1)
        codec = stream.codec_context.name
        rate, constant = _rate(stream, times)
        time_base = 1 / rate if constant else stream.time_base
    if not times:
        raise VideoError(
            f"{path}: no frame of it can be decoded ({codec}): get a whole copy, or convert it to "
            "MP4 or to a folder of PNG pictures with another program"
        )
    if turns % 2:
        size, aspect = size[::-1], 1 / aspect
    return Clip(path, len(times), size, rate, constant, time_base, aspect, turns)


def _from_keyframe(packets: Iterable[av.Packet]) -> Iterator[av.Packet]:
    """Packets from the first keyframe on; those before it need frames that the clip lacks."""
    return dropwhile(lambda packet: not packet.is_keyframe, packets)


def _decoded(packet: av.Packet, path: Path, count: int) -> list[av.VideoFrame]:
    """The frames that a packet completes; ``count`` have come before.

    Those that cannot be decoded before the first whole frame are left out, for the same reason.
    """
    try:
        frames = packet.decode()
        return frames if count else [frame for frame in frames if not frame.is_corrupt]
    except av.FFmpegError as error:
        if not count:
            return []
        raise VideoError(
            f"{path}: cut off or damaged after {count} frames ({error.strerror}); {_REPAIR}"
        ) from error


def _rate(stream: av.VideoStream, times: list[int | None]) -> tuple[Fraction, bool]:
    """Frames per second, and whether frames are to be taken as coming at that rate."""
    stated = (stream.guessed_rate, stream.average_rate, stream.base_rate)
    candidates = [rate for rate in dict.fromkeys(stated) if rate]
    ordered = None not in times and all(before < after for before, after in pairwise(times))
    if not ordered or len(times) < 2:
        return candidates[0] if candidates else Fraction(25), True
    for rate in candidates:
        step = 1 / (rate * stream.time_base)
        rounding = 0 if step.denominator == 1 else 1
        if all(abs(t - times[0] - n * step) <= rounding for n, t in enumerate(times)):
            return rate, True
    mean = (len(times) - 1) / ((times[-1] - times[0]) * stream.time_base)
    return mean.limit_denominator(1_000_000), False


@contextmanager
def _open_video(path: Path, threads: str) -> Iterator[tuple[InputContainer, av.VideoStream]]:
    """A file's container and its best video stream; FFmpeg's errors become VideoErrors."""
    fault, advice = "no video, or one without its beginning or its index", "get a whole copy"
    try:
        # The prefix keeps a colon in a name from being taken for a protocol.
        with av.open(f"file:{path}", metadata_errors="replace") as container:
            stream = container.streams.best("video")
            if stream is None or container.format.name == "tty":  # FFmpeg reads text as a film
                raise VideoError(
                    f"{path}: no video stream; expected a video file or a folder of pictures"
                )
            if is_cut_off(path, stream):
                raise VideoError(f"{path}: cut off, its end is missing; {_REPAIR}")
            if stream.codec_context is None:
                raise VideoError(
                    f"{path}: FFmpeg has no decoder for its video; convert it to H.264 elsewhere"
                )
            stream.thread_type = threads
            if threads == "SLICE":  # frame threads never go on after an error
                stream.codec_context.options = {"err_detect": "explode"}  # conceal nothing
            fault, advice = "cut off or damaged", _REPAIR
            yield container, stream
    except av.FFmpegError as error:
        raise VideoError(
            f"{path}: {fault}: FFmpeg cannot read it ({error.strerror}); {advice}"
        ) from error


def _upright(frame: av.VideoFrame, turns: int) -> np.ndarray:
    """uint8 RGB (H, W, 3)."""
    return np.ascontiguousarray(np.rot90(frame.to_ndarray(format="rgb24"), turns))


def _read_picture(path: Path) -> np.ndarray:
    try:
        return read_image(path)
    except DatasetError as error:
        raise VideoError(str(error)) from error


def _size_error(where: str, found: tuple[int, int], size: tuple[int, int]) -> VideoError:
    return VideoError(
        f"{where} is {found[1]} x {found[0]} pixels, those before it {size[1]} x {size[0]}; all "
        "frames of a clip must be of one size: resize them, or cut the clip there"
    )
