"""Any video: from a clip to masks and a film that shows them, in bounded memory."""

import os
import shutil
import tempfile
import time
from collections import deque
from collections.abc import Callable, Generator, Iterator
from collections.abc import Sequence as Items
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import TypeVar

import av
import cv2
import numpy as np
from torch.utils.data import default_collate
from tqdm import tqdm

from datasets.clips import Clip, ClipFrame, VideoError, check_clip
from datasets.flow.colour_wheel import flow_to_picture
from datasets.flow.estimators import Estimator
from datasets.flow.pairs import motion_pairs
from datasets.progress import progress_bar
from datasets.samples import show
from utils.evaluation.segmenting import Segmenter, Views, to_labels
from utils.reports.pictures import draw_overlay, write_mask
from utils.transfer import one_ahead

MASKS, OVERLAY = "masks", "overlay.mp4"
_PARTIAL = ".partial-"  # what the names of folders with unfinished results begin with
_BT709 = 1  # FFmpeg's number of it, for matrix, primaries and transfer alike
_LIMITED = 1  # of the range 16 to 235

Item = TypeVar("Item")


@dataclass(frozen=True)
class VideoResult:
    """What :func:`segment_video` has written.

    Attributes:
        masks: folder of the masks.
        overlay: the film.
        frames: how many.
        rate: frames per second of segmenting: decoding, flow, network and writing.
    """

    masks: Path
    overlay: Path
    frames: int
    rate: float


def segment_video(
    segmenter: Segmenter,
    source: Path,
    output: Path,
    *,
    estimator: Estimator | None,
    batch_size: int = 4,
    threshold: float = 0.5,
    stretch: bool = False,
    frame_rate: float = 24.0,
) -> VideoResult:
    """Segment a video file or a folder of frames: masks, and a film with the object tinted.

    Three times through the clip: the first checks and counts it, the second takes the references
    uniformly over all of it (Sec. 4.4), the third segments. Flow is made on the way, as
    ``datasets.flow`` makes it: to the next frame, and for the last frame back, negated. Memory does
    not grow with the clip.

    ``output/masks/<name>.png`` are as large as the upright frames: 0 and 255, or label maps of
    several objects. Names are numbers from 00000, or in a folder the pictures' own.
    ``output/overlay.mp4`` is H.264 that browsers play, without sound, upright, with the source's
    frame times and shape of pixels. H.264 in yuv420p needs even sides: odd ones are repeated once
    at the right or bottom, in the film alone.
    Both appear, and take the place of an earlier run's, when they are whole.

    Args:
        segmenter: the network.
        source: what ``datasets.clips.check_clip`` takes.
        output: folder; made where it is missing.
        estimator: of flow, from ``datasets.flow``; ``None`` for a network that needs no flow.
        batch_size: frames that go through the network together.
        threshold, stretch: of ``utils.evaluation.segmenting.to_labels``.
        frame_rate: frames per second of a folder of frames.

    Raises:
        VideoError: the clip is unusable, or the results cannot be written. Nothing new is left
            then under the final names.
    """
    _check_output(source, output)
    clip = check_clip(source, frame_rate)
    with _published_when_whole(output) as partial, _film(partial / OVERLAY, clip) as add_to_film:
        frames = _ClipFrames(segmenter, clip, estimator, batch_size)
        with closing(frames) as video, _progress("segmenting", clip.count) as bar:
            start = None  # the references come first
            for results in one_ahead(segmenter.segment(video)):
                start = start or time.monotonic()
                for result in results:
                    frame = video.waiting.popleft()
                    labels = to_labels(result.probability(clip.size), threshold, stretch)
                    path = partial / MASKS / f"{frame.name}.png"
                    write_mask(path, labels, result.num_objects)
                    add_to_film(draw_overlay(frame.image, labels > 0), frame)
                    bar.update()
            seconds = time.monotonic() - start
    return VideoResult(output / MASKS, output / OVERLAY, clip.count, clip.count / seconds)


def read_ahead(items: Generator[Item], count: int) -> Iterator[Item]:
    """The generator's items in order, up to ``count`` of them made ahead in a thread.

    An error in it is raised where its item would have come. When this iterator ends or is closed,
    the thread has ended and the generator is closed.
    """
    end = object()
    with closing(items), ThreadPoolExecutor(1) as thread:
        waiting = deque(thread.submit(next, items, end) for _ in range(count))
        try:
            while (item := waiting.popleft().result()) is not end:
                waiting.append(thread.submit(next, items, end))
                yield item
        finally:
            for future in waiting:
                future.cancel()


class _ClipFrames:
    """A clip as a ``ViewedVideo``, with flow made on the way; read ahead while it is segmented.

    Its batches can be read once.

    Attributes:
        waiting: frames whose batch has been read and whose result has not been used yet.
    """

    def __init__(
        self, segmenter: Segmenter, clip: Clip, estimator: Estimator | None, batch_size: int
    ):
        self.segmenter = segmenter
        self.clip = clip
        self.estimator = estimator if segmenter.network.needs.flow else None
        self.batch_size = batch_size
        self.waiting: deque[ClipFrame] = deque()
        self._ahead = read_ahead(self._shown(), 2 * batch_size)

    def close(self) -> None:
        """End the reading ahead; a network that fails does not read to the end."""
        self._ahead.close()

    def __len__(self) -> int:
        return self.clip.count

    def at(self, positions: Items[int]) -> Views:
        views, last = {}, max(positions)
        with closing(self.clip.frames()) as frames, _progress("references", last + 1) as bar:
            for position, (frame, other, sign) in enumerate(motion_pairs(frames)):
                if position in positions:
                    views[position] = self._views(frame, other, sign)
                bar.update()
                if position == last:
                    break
        return default_collate([views[position] for position in positions])

    def __iter__(self) -> Iterator[Views]:
        while batch := list(islice(self._ahead, self.batch_size)):
            self.waiting.extend(frame for frame, _ in batch)
            yield default_collate([views for _, views in batch])

    def _shown(self) -> Generator[tuple[ClipFrame, Views]]:
        with closing(self.clip.frames()) as frames:
            for frame, other, sign in motion_pairs(frames):
                yield frame, self._views(frame, other, sign)

    def _views(self, frame: ClipFrame, other: ClipFrame, sign: int) -> Views:
        flow = None
        if self.estimator is not None:
            flow = flow_to_picture(sign * self.estimator(frame.image, other.image))
        recolour = self.segmenter.recolour_flow
        return [show(frame.image, flow, view, recolour) for view in self.segmenter.views]


@contextmanager
def _film(path: Path, clip: Clip) -> Iterator[Callable[[np.ndarray, ClipFrame], None]]:
    """Writes pictures, uint8 RGB (H, W, 3), at their frames' times: an MP4 for browsers."""
    height, width = clip.size
    with av.open(f"file:{path}", "w", format="mp4", options={"movflags": "+faststart"}) as film:
        stream = film.add_stream("libx264", rate=clip.rate)
        stream.width, stream.height = width + width % 2, height + height % 2
        stream.pix_fmt = "yuv420p"
        # Without B frames packets come in the frames' order, and the MP4 ends when its last frame
        # does, which with a variable rate it otherwise would not.
        stream.options = {"crf": "20", "preset": "veryfast", "bf": "0"}
        codec = stream.codec_context
        codec.time_base = stream.time_base = clip.time_base
        codec.sample_aspect_ratio = clip.aspect
        codec.color_range = _LIMITED
        codec.colorspace = codec.color_primaries = codec.color_trc = _BT709
        held: list[av.Packet] = []  # the last packet, until its duration is known
        duration = 0

        def write(packets: list[av.Packet]) -> None:
            held.extend(packets)
            while len(held) > 1:
                film.mux(held.pop(0))

        def add(picture: np.ndarray, frame: ClipFrame) -> None:
            nonlocal duration
            padding = (0, height % 2, 0, width % 2)
            picture = cv2.copyMakeBorder(picture, *padding, cv2.BORDER_REPLICATE)
            converted = av.VideoFrame.from_ndarray(picture, format="rgb24").reformat(
                format="yuv420p", dst_colorspace="ITU709", dst_color_range="MPEG"
            )
            converted.pts, converted.time_base = frame.time, clip.time_base
            duration = frame.duration
            write(stream.encode(converted))

        yield add
        write(stream.encode())
        if duration:
            held[0].duration = duration
        film.mux(held)


def _check_output(source: Path, output: Path) -> None:
    """Refuse, before anything is read, an output whose files are not for this run to replace."""
    if "libx264" not in av.codecs_available:
        raise VideoError("this PyAV cannot write H.264 (libx264): pip install --force-reinstall av")
    if output.exists() and not output.is_dir():
        raise VideoError(f"{output} is a file; expected a folder, which may be missing yet")
    masks, overlay = output / MASKS, output / OVERLAY
    for path in (masks, overlay, *output.glob(f"{_PARTIAL}*")):
        if path.resolve() in (source.resolve(), *source.resolve().parents):
            raise VideoError(f"{source} would be replaced by the results; choose another --output")
    # Files that --video has not made, such as a test set's masks, are not removed.
    if overlay.exists() and not masks.is_dir():
        raise VideoError(
            f"{overlay} is there without masks, so no earlier video's result; choose another "
            "--output, or move it away"
        )
    if masks.is_dir():
        foreign = next((path for path in masks.iterdir() if path.suffix != ".png"), None)
        if foreign is None and not overlay.exists():
            foreign = next(masks.iterdir(), None)
        if foreign is not None:
            raise VideoError(
                f"{masks} holds {foreign.name}, which is not an earlier video's result; choose "
                "another --output, or remove that folder"
            )


@contextmanager
def _published_when_whole(output: Path) -> Iterator[Path]:
    """A hidden folder in ``output`` for the results, moved to their names if nothing goes wrong."""
    partial = None
    try:
        output.mkdir(parents=True, exist_ok=True)
        for leftover in output.glob(f"{_PARTIAL}*-*"):
            if _is_of_a_dead_process(leftover):
                shutil.rmtree(leftover)
        partial = Path(tempfile.mkdtemp(prefix=f"{_PARTIAL}{os.getpid()}-", dir=output))
        yield partial
        for name in (OVERLAY, MASKS):
            final, aside = output / name, partial / f"earlier-{name}"
            if final.exists():
                final.rename(aside)
            try:
                (partial / name).rename(final)
            except BaseException:
                if aside.exists():
                    aside.rename(final)
                raise
    except (OSError, av.FFmpegError) as error:
        raise VideoError(f"{output}: the results could not be written ({error})") from error
    finally:
        if partial is not None:
            shutil.rmtree(partial, ignore_errors=True)


def _is_of_a_dead_process(leftover: Path) -> bool:
    """Whether a folder is of a run that was killed, and of none that is under way."""
    number = leftover.name.removeprefix(_PARTIAL).partition("-")[0]
    if not number.isdecimal():
        return False
    try:
        os.kill(int(number), 0)
    except ProcessLookupError:
        return True
    except OSError:
        return False
    return int(number) == os.getpid()


def _progress(what: str, frames: int) -> tqdm:
    """A bar that shows frames per second, never seconds per frame."""
    layout = "{l_bar}{bar}| {n_fmt}/{total_fmt} [{elapsed}<{remaining}, {rate_noinv_fmt}]"
    return progress_bar(desc=what, total=frames, unit="frame", bar_format=layout)
