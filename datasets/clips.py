"""Clips: a video file, or a folder of frames, that is read frame by frame as often as needed.

:func:`check_clip` reads a clip once from beginning to end, so that whatever is wrong with it is
known before hours of work begin; :meth:`Clip.frames` then gives its frames. No more than a few
frames are in memory at any time.

FFmpeg reads the files, by way of PyAV. Frames are turned upright as the file's display matrix says.
EXIF orientation of pictures in a folder is ignored, as in data sets (``datasets.layout``).
"""

import math
import re
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from fractions import Fraction
from functools import cached_property, partial
from itertools import dropwhile
from pathlib import Path

import av
import numpy as np
from av.container import InputContainer
from av.sidedata.sidedata import Type as SideData
from tqdm import tqdm

from datasets.containers import is_cut_off
from datasets.layout import subfolders
from datasets.pictures import IMAGE_SUFFIXES, read_image
from datasets.problems import DatasetError
from datasets.progress import progress_bar

# Suffixes of pictures that are not read, and that must not be left out in silence.
_OTHER_FORMATS = (
    *(".avif", ".bmp", ".gif", ".heic", ".heif", ".jfif", ".jp2", ".jpe", ".jxl"),
    *(".pbm", ".pgm", ".pnm", ".ppm", ".tga", ".tif", ".tiff", ".webp"),
)
_COVER = av.stream.Disposition.attached_pic | av.stream.Disposition.timed_thumbnails
_REPAIR = "get a whole copy, or keep what can be read: ffmpeg -i FILE -c:v libx264 repaired.mp4"

Orientation = tuple[bool, bool, bool]  # exchange rows and columns, then mirror x, then mirror y


class VideoError(ValueError):
    """A clip cannot be read, or its results not written; the message says what to do."""


@dataclass
class ClipFrame:
    """One frame of a clip.

    Attributes:
        name: for its mask's file: its number from 0, or in a folder the picture's own name.
        time: of presentation, from 0, in units of ``Clip.time_base``.
        duration: in the same units; 0 where the file does not say.
        read: makes the image.
    """

    name: str
    time: int
    duration: int
    read: Callable[[], np.ndarray]

    @cached_property
    def image(self) -> np.ndarray:
        """uint8 RGB (H, W, 3), upright. Made when first asked for.

        Raises:
            VideoError: the picture cannot be read.
        """
        return self.read()


@dataclass(frozen=True)
class Clip:
    """A clip that :func:`check_clip` has found whole.

    Attributes:
        source: the file or folder.
        count: of its frames, at least 2.
        size: (H, W) in pixels, upright.
        rate: frames per second; the mean where ``constant`` is False.
        constant: whether frames come at a constant rate.
        time_base: seconds in a unit of ``ClipFrame.time``: 1 / rate, or the file's own.
        aspect: width of a pixel over its height, upright.
        orientation: what makes a file's frames upright.
        pictures: of a folder, in order; None for a file.
    """

    source: Path
    count: int
    size: tuple[int, int]
    rate: Fraction
    constant: bool
    time_base: Fraction
    aspect: Fraction = Fraction(1)
    orientation: Orientation = (False, False, False)
    pictures: tuple[Path, ...] | None = None

    def frames(self) -> Iterator[ClipFrame]:
        """All frames in order. Frames that nobody looks at are not converted.

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
                    name, read = f"{number:05d}", partial(_upright, frame, self.orientation)
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
    """Read a clip to its end, count its frames and find whatever is wrong with it.

    Args:
        source: a video file, whatever FFmpeg reads, or a folder of pictures (.jpg, .jpeg or .png),
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
        return _check_folder(source, frame_rate)
    if not source.is_file():
        fault = "neither a file nor a folder" if source.exists() else "no such file"
        raise VideoError(
            f"{source}: {fault}; expected a video file or a folder of pictures on this machine "
            "(download a stream or a web address first)"
        )
    if source.stat().st_size == 0:
        raise VideoError(f"{source}: empty (0 bytes); get a whole copy")
    return _check_file(source)


def _check_folder(folder: Path, frame_rate: float) -> Clip:
    if not frame_rate > 0:
        raise VideoError(f"frame rate {frame_rate}: expected frames per second, such as 24")
    shown = [path for path in sorted(folder.iterdir()) if not path.name.startswith(".")]
    paths = [path for path in shown if path.suffix.lower() in IMAGE_SUFFIXES]
    stems = {path.stem for path in paths}
    for path in shown:
        if path.suffix.lower() in _OTHER_FORMATS and path.stem not in stems:
            raise VideoError(
                f"{path}: a picture of another format; convert it to PNG, or to JPEG, or remove it"
            )
    if not paths:
        inside = [folder / name for name in subfolders(folder)]
        hint = f"; it holds folders, is one of them meant, as {inside[0]}?" if inside else ""
        raise VideoError(f"{folder}: no pictures (.jpg, .jpeg or .png) in this folder{hint}")
    paths.sort(key=lambda path: (_natural_order(path.stem), path.name))
    names: dict[str, Path] = {}
    size = None
    for path in _progress(paths):
        if names.setdefault(path.stem, path) is not path:
            raise VideoError(
                f"{path} and {names[path.stem].name} would give masks of one name; keep one of them"
            )
        found = _read_picture(path).shape[:2]
        size = size or found
        if found != size:
            raise _size_error(str(path), found, size)
    _expect_two(folder, len(paths))
    rate = Fraction(frame_rate).limit_denominator(1001)
    return Clip(folder, len(paths), size, rate, True, 1 / rate, pictures=tuple(paths))


def _check_file(path: Path) -> Clip:
    count = 0
    size = orientation = None
    # Without frame threads every decoding error is seen, also those at the end.
    with _open_video(path, threads="SLICE") as (container, stream):
        times = _Times(stream)
        with _progress(total=stream.frames or None) as bar:
            for packet in _from_keyframe(container.demux(stream)):
                for frame in _decoded(packet, path, count):
                    if frame.is_corrupt:
                        raise VideoError(f"{path}: frame {count} is damaged; {_REPAIR}")
                    size = size or (frame.height, frame.width)
                    if size != (frame.height, frame.width):
                        where = f"{path}: frame {count}"
                        raise _size_error(where, (frame.height, frame.width), size)
                    orientation = orientation or _orientation(frame)
                    times.add(frame)
                    count += 1
                    bar.update()
                if packet.is_corrupt:
                    raise VideoError(f"{path}: cut off or damaged after {count} frames; {_REPAIR}")
        aspect = stream.sample_aspect_ratio or Fraction(1)
        codec = stream.codec_context.name
    if not count:
        raise VideoError(
            f"{path}: no frame of it can be decoded ({codec}): it is damaged, or FFmpeg cannot "
            "decode its kind, as animated WebP; get a whole copy, or convert it to MP4 or to a "
            "folder of PNG pictures with another program"
        )
    _expect_two(path, count)
    rate, constant = times.rate()
    time_base = 1 / rate if constant else times.time_base
    if orientation[0]:
        size, aspect = size[::-1], 1 / aspect
    return Clip(path, count, size, rate, constant, time_base, aspect, orientation)


def _from_keyframe(packets: Iterable[av.Packet]) -> Iterator[av.Packet]:
    """Packets without those before the first keyframe, which need frames that the clip lacks.

    A recorded broadcast begins so, and a clip that was cut out of another without encoding it anew.
    """
    return dropwhile(lambda packet: not packet.is_keyframe, packets)


def _decoded(packet: av.Packet, path: Path, count: int) -> list[av.VideoFrame]:
    """The frames that a packet completes; ``count`` have come before.

    Before the first whole frame, those that cannot be decoded are left out: they are shown before
    the clip's first keyframe, and need frames before it.
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


class _Times:
    """The frames' times of a file: whether they are of a constant rate, told as they come."""

    def __init__(self, stream: av.VideoStream):
        self.time_base = stream.time_base
        stated = (stream.guessed_rate, stream.average_rate, stream.base_rate)
        self.candidates = [rate for rate in dict.fromkeys(stated) if rate]
        self.guess = self.candidates[0] if self.candidates else Fraction(25)
        self.ordered = True
        self.count = 0
        self.first = self.last = 0

    def add(self, frame: av.VideoFrame) -> None:
        """Note the next frame."""
        if frame.pts is None or (self.count and frame.pts <= self.last):
            self.ordered = False
        if self.ordered:
            if not self.count:
                self.first = frame.pts
            self.last = frame.pts
            passed = self.last - self.first
            self.candidates = [rate for rate in self.candidates if self._fits(rate, passed)]
        self.count += 1

    def _fits(self, rate: Fraction, passed: int) -> bool:
        """Whether this many units have passed at a constant rate, up to the units' rounding."""
        step = 1 / (rate * self.time_base)
        return abs(passed - self.count * step) <= (0 if step.denominator == 1 else 1)

    def rate(self) -> tuple[Fraction, bool]:
        """Frames per second, and whether frames are to be taken as coming at that rate."""
        if not self.ordered:
            return self.guess, True
        if self.candidates:
            return self.candidates[0], True
        mean = (self.count - 1) / ((self.last - self.first) * self.time_base)
        return mean.limit_denominator(1_000_000), False


@contextmanager
def _open_video(path: Path, threads: str) -> Iterator[tuple[InputContainer, av.VideoStream]]:
    """A file's container and its best video stream; FFmpeg's errors become VideoErrors."""
    fault, advice = "no video, or one without its beginning or its index", "get a whole copy"
    try:
        # The prefix keeps a colon in a name from being taken for a protocol.
        with av.open(f"file:{path}", metadata_errors="replace") as container:
            is_text = container.format.name == "tty"  # FFmpeg films what a terminal would show
            kind = "text" if is_text else "cover picture"
            videos = [s for s in container.streams.video if not (is_text or s.disposition & _COVER)]
            if not videos:
                kinds = {kind if s.type == "video" else s.type for s in container.streams}
                raise VideoError(
                    f"{path}: no video stream, only {', '.join(sorted(kinds)) or 'an empty file'}; "
                    "expected a video file or a folder of pictures"
                )
            best = container.streams.best("video")
            stream = best if best in videos else videos[0]
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


def _orientation(frame: av.VideoFrame) -> Orientation:
    """What the display matrix says, for the file's first frame alone.

    PyAV's side data and its frame refer to one another, so that frames which have been asked for
    them stay in memory until Python looks for such cycles.
    """
    # Row vectors: (x, y) is shown at (a x + c y, b x + d y).
    try:
        matrix = frame.side_data.get(SideData.DISPLAYMATRIX)
        if matrix is None:
            return False, False, False
        a, b, _, c, d = np.frombuffer(bytes(matrix), np.int32)[:5].tolist()
    except ValueError:  # other side data of a kind that PyAV does not know, such as EXIF
        angle = math.radians(frame.rotation)
        a, b, c, d = math.cos(angle), -math.sin(angle), math.sin(angle), math.cos(angle)
    turned = abs(b) > abs(a)
    return turned, (c if turned else a) < 0, (b if turned else d) < 0


def _upright(frame: av.VideoFrame, orientation: Orientation) -> np.ndarray:
    """uint8 RGB (H, W, 3)."""
    turned, mirror_x, mirror_y = orientation
    image = frame.to_ndarray(format="rgb24")
    if turned:
        image = image.transpose(1, 0, 2)
    return np.ascontiguousarray(image[:: -1 if mirror_y else 1, :: -1 if mirror_x else 1])


def _read_picture(path: Path) -> np.ndarray:
    try:
        return read_image(path)
    except DatasetError as error:
        raise VideoError(str(error)) from error


def _natural_order(name: str) -> list[str | int]:
    """Sort key: numbers in a name by value, 2 before 10."""
    return [int(part) if i % 2 else part for i, part in enumerate(re.split(r"(\d+)", name))]


def _progress(items: Iterable | None = None, total: int | None = None) -> tqdm:
    return progress_bar(items, total=total, desc="checking", unit="frame")


def _expect_two(source: Path, count: int) -> None:
    if count < 2:
        raise VideoError(
            f"{source}: {count or 'no'} frame{'s'[: count != 1]}; a clip needs at least two, "
            "because a frame's flow is its motion to the next one"
        )


def _size_error(where: str, found: tuple[int, int], size: tuple[int, int]) -> VideoError:
    return VideoError(
        f"{where} is {found[1]} x {found[0]} pixels, those before it {size[1]} x {size[0]}; all "
        "frames of a clip must be of one size: resize them, or cut the clip there"
    )
