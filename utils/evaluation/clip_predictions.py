"""From the frames of one video to a network's predictions, in bounded memory.

``evaluate.py --video`` and ``inference.segment_video`` both use :func:`predict_clip`.
"""

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from itertools import chain, islice
from typing import Any, Protocol

import numpy as np
from torch.utils.data import default_collate

from datasets.clips import ClipFrame
from datasets.flow.colour_wheel import flow_to_picture
from datasets.flow.estimators import Estimator
from datasets.flow.pairs import motion_pairs
from datasets.progress import Report, progress_bar
from datasets.threads import read_ahead
from utils.evaluation.segmenting import FramePrediction, Segmenter, Views
from utils.transfer import one_ahead

# A frame, and a function that makes its flow map, uint8 RGB of any size, or None without flow.
FrameWithFlow = tuple[ClipFrame, Callable[[], np.ndarray | None]]
# Adds flow maps to all frames of a video, in order.
FlowMaps = Callable[[Iterable[ClipFrame]], Iterator[FrameWithFlow]]


class VideoSource(Protocol):
    """Frames of one size that can be read again: a ``Clip`` of files, or ``GivenFrames``.

    Attributes:
        count: number of frames.
        size: their height and width in pixels.
    """

    count: int
    size: tuple[int, int]

    def frames(self) -> Iterator[ClipFrame]:
        """All frames in order; a generator."""


def without_flow(frames: Iterable[ClipFrame]) -> Iterator[FrameWithFlow]:
    """The ``FlowMaps`` of networks that take none."""
    return ((frame, lambda: None) for frame in frames)


def estimated_flow(estimator: Estimator) -> FlowMaps:
    """Flow maps of the motion from each frame to the next one, made when they are asked for.

    The last frame's is the reverse of the motion to the frame before it. A video needs two frames.
    """

    def picture(frame: ClipFrame, other: ClipFrame, sign: int) -> np.ndarray:
        return flow_to_picture(sign * estimator(frame.image, other.image))

    def with_flow(frames: Iterable[ClipFrame]) -> Iterator[FrameWithFlow]:
        for frame, other, sign in motion_pairs(frames):
            yield frame, lambda pair=(frame, other, sign): picture(*pair)

    return with_flow


def predict_clip(
    segmenter: Segmenter,
    source: VideoSource,
    flow_maps: FlowMaps,
    batch_size: int,
    progress: bool | Report,
) -> Iterator[tuple[ClipFrame, FramePrediction]]:
    """Each frame of a video in order, with the network's scores of it.

    Networks with references read frames for them first; references are uniform over the whole
    video (Sec. 4.4). All frames are then read to segment them. If the network looks ahead, they
    are read again for the results.
    Memory does not grow with a video of files. Networks that look ahead also keep features of every
    frame.

    Args:
        segmenter: the network and its views.
        source: the video.
        flow_maps: adds the flow maps to its frames.
        batch_size: frames that the network takes at once.
        progress: show progress bars, or a function that is told of each frame.
    """
    video = _ViewedClip(segmenter, source, flow_maps, batch_size, progress)
    with (
        closing(source.frames()) as frames,
        closing(source.frames()) as again,
        read_ahead(video.read(frames)) as video.batches,
    ):
        # A network that looks ahead reads the whole video first; its frames are then read again.
        looks_ahead = segmenter.network.looks_ahead
        results = chain.from_iterable(one_ahead(segmenter.segment(video)))
        for result in video.bar(results, "segmenting", source.count):
            yield next(again) if looks_ahead else video.waiting.popleft(), result


@dataclass
class _ViewedClip:
    """A video as a ``ViewedVideo``. Its batches can be read once.

    Attributes:
        batches: from :meth:`read`.
        waiting: frames whose batch has been read and whose result has not been used yet; none if
            the network looks ahead.
    """

    segmenter: Segmenter
    source: VideoSource
    flow_maps: FlowMaps
    batch_size: int
    progress: bool | Report
    batches: Iterator[Views] = field(default_factory=lambda: iter(()))
    waiting: deque[ClipFrame] = field(default_factory=deque)

    def __len__(self) -> int:
        return self.source.count

    def at(self, positions: Sequence[int]) -> Views:
        last, views = max(positions), {}
        with closing(self.source.frames()) as frames:
            needed = islice(self.flow_maps(frames), last + 1)
            for position, frame in enumerate(self.bar(needed, "references", last + 1)):
                if position in positions:
                    views[position] = self._views(*frame)
        return default_collate([views[position] for position in positions])

    def __iter__(self) -> Iterator[Views]:
        return self.batches

    def read(self, frames: Iterator[ClipFrame]) -> Iterator[Views]:
        """The batches of the frames: decoding, flow and the views."""
        looks_ahead = self.segmenter.network.looks_ahead
        if looks_ahead:
            frames = iter(self.bar(frames, "reading", len(self)))
        frames_with_flow = self.flow_maps(frames)
        while batch := list(islice(frames_with_flow, self.batch_size)):
            if not looks_ahead:
                self.waiting.extend(frame for frame, _ in batch)
            yield default_collate([self._views(*frame) for frame in batch])

    def bar(self, items: Iterable[Any], work: str, count: int) -> Iterable[Any]:
        """The items, with a progress bar."""
        return progress_bar(items, shown=self.progress, desc=work, total=count, unit="frame")

    def _views(self, frame: ClipFrame, flow_map: Callable[[], np.ndarray | None]) -> Views:
        return self.segmenter.views_of(frame.image, flow_map())
