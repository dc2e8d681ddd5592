"""Flow maps of a video for a caller from Python: made on the way, or given."""

from collections.abc import Iterable, Iterator, Sequence
from functools import partial
from typing import Any

import numpy as np
from torch import Tensor

from datasets.clips import ClipFrame, VideoError
from datasets.flow.colour_wheel import flow_to_picture
from datasets.flow.estimators import Estimator, build_estimator, of_small_frames
from datasets.flow.origin import ESTIMATORS, kind_of_flow
from utils.evaluation.clip_predictions import (
    FlowMaps,
    FrameWithFlow,
    VideoSource,
    estimated_flow,
    without_flow,
)
from utils.evaluation.given_frames import as_image, in_memory
from utils.evaluation.trained_network import TrainedNetwork


def flow_of(flow: Any, trained: TrainedNetwork, source: VideoSource) -> FlowMaps:
    """The flow maps of a video, as a network takes them.

    Args:
        flow: as of :func:`estimator_of`; or flow maps, one for each frame, or one fewer.
        trained: the network.
        source: the video.

    Raises:
        VideoError: flow that cannot be used, or for a network that takes none; a single frame.
        FlowError: the estimator cannot be set up.
    """
    if trained.segmenter.network.needs.flow and not _is_estimator(flow):
        return _given(flow, source)
    estimator = estimator_of(flow, trained)
    if estimator is None:
        return without_flow
    if source.count < 2:
        raise VideoError("frames: there is one; its flow is its motion to the next, so give two")
    return estimated_flow(estimator)


def estimator_of(flow: Any, trained: TrainedNetwork) -> Estimator | None:
    """The estimator of a network's flow; None if it takes none.

    Args:
        flow: its name, ``"raft"`` or ``"dis"``; an ``Estimator``; or ``None`` for that of the
            network's training. DIS takes its place if it is unknown.
            Unless it is a function, it removes the camera's motion if that was done in training,
            and reduces large frames, see ``of_small_frames``.
        trained: the network.

    Raises:
        VideoError: it is none of these, or the network takes no flow.
        FlowError: it cannot be set up.
    """
    if not trained.segmenter.network.needs.flow:
        if flow is not None:
            raise VideoError("flow: this network takes none; leave it out")
        return None
    if callable(flow):
        return _checked(flow)
    if flow is not None and (not isinstance(flow, str) or flow not in ESTIMATORS):
        found = repr(flow) if isinstance(flow, str) else type(flow).__name__
        names = " or ".join(map(repr, ESTIMATORS))
        raise VideoError(f"flow: found {found}, expected {names}, or a function of two frames")
    name, removed = kind_of_flow(trained.flow, flow, None)
    segmenter = trained.segmenter
    estimator = build_estimator(
        name, None, str(segmenter.device), removed, segmenter.mixed_precision
    )
    return of_small_frames(estimator, segmenter.largest_side)


def _checked(estimator: Estimator) -> Estimator:
    """A caller's function, whose result is a VideoError unless it is motion in pixels."""

    def checked(first: np.ndarray, second: np.ndarray) -> np.ndarray:
        motion, (height, width) = estimator(first, second), first.shape[:2]
        shape = np.shape(motion)
        fits = len(shape) == 3 and shape[2] == 2 and min(shape) > 0
        fits = fits and shape[0] <= height and shape[1] <= width
        # Reduced frames keep their shape; each side is rounded to a whole pixel.
        fits = fits and abs(shape[0] * width - shape[1] * height) <= (height + width) / 2
        if not fits or not isinstance(motion, np.ndarray) or motion.dtype.kind != "f":
            raise VideoError(
                f"flow: the function returned {getattr(motion, 'dtype', type(motion).__name__)} "
                f"{shape}; expected float {(height, width, 2)}, or the motion of reduced frames"
            )
        if not np.isfinite(motion).all():
            raise VideoError("flow: the function returned motion that is not finite")
        return motion

    return checked


def _is_estimator(flow: Any) -> bool:
    return flow is None or isinstance(flow, str) or callable(flow)


def _given(flow: Any, source: VideoSource) -> FlowMaps:
    """Flow maps that the caller gives; the last frame may get the map of the frame before it."""
    maps = in_memory(flow, "flow", lambda one, name: flow_picture(one, name, source.size).copy())
    if len(maps) not in (source.count, source.count - 1) or not len(maps):
        raise VideoError(
            f"flow: {len(maps)} flow maps for {source.count} frames; expected one for each frame, "
            "or for each but the last"
        )
    for number in range(len(maps)):
        _at(maps, number, source.size)
    last = len(maps) - 1

    def with_flow(frames: Iterable[ClipFrame]) -> Iterator[FrameWithFlow]:
        for number, frame in enumerate(frames):
            yield frame, partial(_at, maps, min(number, last), source.size)

    return with_flow


def _at(maps: Sequence[Any], number: int, size: tuple[int, int]) -> np.ndarray:
    return flow_picture(maps[number], f"flow[{number}]", size)


def flow_picture(flow: Any, name: str, size: tuple[int, int]) -> np.ndarray:
    """A given flow map as a picture of the colour wheel, uint8 RGB (H, W, 3), of ``size``.

    It may be a field in pixels, x to the right and y down: a float array (H, W, 2) or a tensor
    (2, H, W). Or it is a picture, as ``as_image`` takes it. ``name`` is its name in errors.

    Raises:
        VideoError: it is neither, is of another size, or holds values that are not finite.
    """
    if isinstance(flow, Tensor) and flow.is_floating_point() and flow.shape[:1] == (2,):
        flow = flow.detach().cpu().movedim(0, -1).float().numpy()
    if isinstance(flow, np.ndarray) and flow.dtype.kind == "f":
        if flow.ndim != 3 or flow.shape[2] != 2 or not np.isfinite(flow).all():
            raise VideoError(
                f"{name}: found an array {flow.dtype} {flow.shape}; expected finite motion in "
                "pixels (H, W, 2)"
            )
        picture = flow_to_picture(flow)
    else:
        picture = as_image(flow, name)
    if picture.shape[:2] != size:
        raise VideoError(
            f"{name} is {picture.shape[1]} x {picture.shape[0]} pixels, the frames {size[1]} x "
            f"{size[0]}; give flow maps of the frames' size"
        )
    return picture
