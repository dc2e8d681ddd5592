"""Optical flow: DIS, RAFT, and the removal of the camera's motion."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import cv2
import numpy as np

from datasets.augmentation import resize
from errors import UserError

# Two frames, (H, W, 3) uint8 RGB, to the motion from the first to the second, (H, W, 2) float32 in
# pixels, x to the right and y down. That of of_small_frames has the size of reduced frames.
Estimator = Callable[[np.ndarray, np.ndarray], np.ndarray]
Encoded = TypeVar("Encoded")

_FLAGS = "(flags: --weights, --estimator; in evaluate.py --flow-weights, --flow-estimator)"
_RAFT_SMALLEST = 128  # pixels; below, RAFT's coarsest correlation map would be empty
_DIS_SMALLEST = 32  # pixels; below, OpenCV fails or crashes, depending on the width
_BORDER = 0.15  # width of the border that shows the scene, as a share of each side
_NO_MEMORY = re.compile("out of memory|DefaultCPUAllocator|_ALLOC_FAILED")  # in torch's errors
_LARGE = 720  # pixels of the shorter side; more take longer, and masks were no better


class FlowError(UserError):
    """A flow estimator cannot be set up or gives no usable motion."""


def build_estimator(
    name: str,
    weights: Path | None = None,
    device: str | None = None,
    remove_camera_motion: bool = False,
    mixed_precision: bool = True,
) -> Estimator:
    """The estimator "raft", as ``raft_estimator`` makes it, or "dis". Raises FlowError."""
    estimator = (
        dis_estimator() if name == "dis" else raft_estimator(weights, device, mixed_precision)
    )
    if not remove_camera_motion:
        return estimator
    return lambda first, second: without_camera_motion(estimator(first, second))


def of_small_frames(estimator: Estimator, at_least: int = 0) -> Estimator:
    """An estimator that first reduces frames whose shorter side has more than 720 pixels.

    Its motion has the size of the reduced frames and is in their pixels. ``at_least`` is the
    longest side of the network's input; if it is more than 720, frames are reduced to it instead.
    RAFT's memory grows with the square of a frame's area.
    """
    shorter = max(_LARGE, at_least)

    def small(frame: np.ndarray) -> np.ndarray:
        scale = min(1, shorter / min(frame.shape[:2]))
        return resize(frame, *(round(side * scale) for side in frame.shape[:2]))

    return lambda first, second: estimator(small(first), small(second))


def dis_estimator() -> Estimator:
    """DIS optical flow of OpenCV (Kroeger et al., ECCV 2016), medium preset, on grey frames."""

    def grey(frame: np.ndarray) -> np.ndarray:
        return cv2.cvtColor(frame, cv2.COLOR_RGB2GRAY)

    def estimate(first: np.ndarray, second: np.ndarray) -> np.ndarray:
        # A new one for each pair: on frames below 48 pixels a used one remembers the last pair.
        dis = cv2.DISOpticalFlow_create(cv2.DISOPTICAL_FLOW_PRESET_MEDIUM)
        return dis.calc(first, second, None)

    return _of_any_size(grey, estimate, _DIS_SMALLEST)


def raft_estimator(
    weights: Path | None = None, device: str | None = None, mixed_precision: bool = True
) -> Estimator:
    """RAFT (Teed and Deng, ECCV 2020), torchvision's `raft_large`: the paper's choice (Sec. 4.3).

    ``weights`` is a file with the network's state dict; None takes torchvision's published weights.
    A device of None takes a GPU if there is one. ``mixed_precision`` is for CPUs: bfloat16 where
    they have it. Raises FlowError if one of them cannot be used.
    """
    # Imported here because it takes seconds and DIS does not need it.
    import torch
    from torchvision.models.optical_flow import Raft_Large_Weights, raft_large

    from datasets.flow.raft import Raft
    from precision import in_bfloat16

    found, wanted = raft_device(device, mixed_precision)
    url = Raft_Large_Weights.DEFAULT.url
    try:
        model = raft_large(weights=None if weights else Raft_Large_Weights.DEFAULT)
        if weights is not None:
            model.load_state_dict(torch.load(weights, map_location="cpu", weights_only=True))
    except Exception as error:  # no network, no such file, or nearly anything for another file
        reason = str(error).strip().split("\n")[0]
        raise FlowError(
            f"the weights of torchvision's raft_large cannot be loaded from {weights or url} "
            f"({reason}): give a copy of {url}, or use DIS, which needs none {_FLAGS}"
        ) from error
    try:
        bfloat16 = in_bfloat16(found, wanted)
        raft = Raft(model, found, torch.bfloat16 if bfloat16 else torch.float32)
    except (RuntimeError, AssertionError) as error:
        raise FlowError(f"there is no device {str(found)!r} for RAFT ({error})") from error

    return _of_any_size(raft.encode, raft.estimate, _RAFT_SMALLEST, multiple=8)


def raft_device(name: str | None, mixed_precision: bool) -> tuple[Any, bool]:
    """RAFT's torch.device (None: a GPU if there is one), and whether bfloat16 is wanted on it.

    bfloat16 is never wanted on GPUs: they have TF32, and bfloat16 was not measured. Raises
    FlowError for a device that torch does not know.
    """
    import torch

    try:
        device = torch.device(name or ("cuda" if torch.cuda.is_available() else "cpu"))
    except RuntimeError as error:
        raise FlowError(f"there is no device {name!r} for RAFT ({error})") from error
    return device, mixed_precision and device.type == "cpu"


def without_camera_motion(flow: np.ndarray) -> np.ndarray:
    """Subtract the motion of the scene, a robust fit to the border; (H, W, 2) float32 in pixels.

    The fit is quadratic in the position, so it also follows a part of the parallax of an uneven
    scene. The border shows the scene more often than the middle does. Resting parts of the scene
    are then nearly white in a flow map.
    """
    height, width = flow.shape[:2]
    y, x = (np.linspace(-1, 1, side, dtype=np.float32) for side in (height, width))
    step = max(1, min(height, width) // 60)  # the fit needs no more than some thousand points
    some_x, some_y = np.meshgrid(x[::step], y[::step])
    border = np.maximum(abs(some_x), abs(some_y)) >= 1 - 2 * _BORDER
    motion = flow[::step, ::step][border].astype(np.float64)
    points = _terms(some_x[border], some_y[border]).astype(np.float64)  # its squares are summed
    weights = np.ones(len(points))
    for _ in range(20):  # iteratively reweighted least squares, Cauchy weights
        weighted = (points * weights[:, None]).T
        fit = np.linalg.lstsq(weighted @ points, weighted @ motion, rcond=None)[0]
        residual = np.linalg.norm(motion - points @ fit, axis=1)
        scale = max(1.5 * float(np.median(residual)), 0.05)  # pixels
        weights = 1 / (1 + (residual / scale) ** 2)
    fit = fit.astype(np.float32)
    # By rows and columns, and one product of the two, instead of six terms of every pixel.
    of_rows = _terms(np.zeros_like(y), y) @ fit
    of_columns = _terms(x, np.zeros_like(x))[:, [1, 3]] @ fit[[1, 3]]
    both = x[:, None] * fit[4]
    return flow - of_rows[:, None] - of_columns - y[:, None, None] * both


def _terms(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """The terms of a quadratic polynomial, (N, 6), at positions (N,)."""
    return np.stack([np.ones_like(x), x, y, x * x, x * y, y * y], axis=-1)


def _of_any_size(
    encode: Callable[[np.ndarray], Encoded],
    estimate: Callable[[Encoded, Encoded], np.ndarray],
    smallest: int,
    multiple: int = 1,
) -> Estimator:
    """Makes an estimator for frames of any size of ``encode`` and ``estimate``.

    The first takes a frame, the second two encoded frames.

    Frames are padded with their border to at least `smallest` pixels and to a multiple of
    `multiple`. Equal frames have no motion. A frame of the pair before is not encoded again.
    FlowError is raised if the motion is not finite, or the memory is too small.
    """
    # The pair before: padded frames, encoded. It is replaced as a whole, as threads may share it.
    last: list[list[tuple[np.ndarray, Encoded]]] = [[]]

    def encoded(padded: np.ndarray) -> Encoded:
        for known, result in last[0]:
            if np.array_equal(known, padded):
                return result
        return encode(padded)

    def between(first: np.ndarray, second: np.ndarray) -> np.ndarray:
        height, width = first.shape[:2]
        if np.array_equal(first, second):
            return np.zeros((height, width, 2), np.float32)
        pad_y, pad_x = (
            max(smallest, -(-side // multiple) * multiple) - side for side in (height, width)
        )
        top, left = pad_y // 2, pad_x // 2
        sides = top, pad_y - top, left, pad_x - left
        padded = [cv2.copyMakeBorder(x, *sides, cv2.BORDER_REPLICATE) for x in (first, second)]
        try:
            last[0] = pair = [(one, encoded(one)) for one in padded]
            flow = estimate(*(result for _, result in pair))
        except RuntimeError as error:
            if not _NO_MEMORY.search(str(error)):
                raise
            flow = None
        if flow is None:
            raise FlowError(
                f"the motion between frames of {width} x {height} pixels needs more memory than "
                f"there is: use smaller frames, a CPU in place of a GPU, or DIS {_FLAGS}"
            )
        flow = flow[top : top + height, left : left + width]
        if not np.isfinite(flow).all():
            raise FlowError(
                f"the motion between frames of {width} x {height} pixels is not finite: look at "
                f"the frames, and use other weights or DIS {_FLAGS}"
            )
        return flow

    return between
