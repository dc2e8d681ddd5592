"""Predictions of frames that come one by one, as from a camera, in constant time and memory."""

from collections import deque
from collections.abc import Iterable, Iterator
from itertools import chain

import numpy as np
from torch.utils.data import default_collate

from datasets.clips import VideoError, check_same_size
from datasets.flow.colour_wheel import flow_to_picture
from datasets.flow.estimators import Estimator
from utils.evaluation.segmenting import Segmenter, Views
from utils.evaluation.trained_network import TrainedNetwork


def check_streams(trained: TrainedNetwork, advice: str) -> None:
    """Raise VideoError, with the ``advice``, for a network that needs the whole video."""
    if not trained.segmenter.network.streams_frames:
        raise VideoError(
            f"{trained.method}: needs the whole video before its first result; {advice}"
        )


def predict_stream(
    segmenter: Segmenter, images: Iterable[np.ndarray], estimator: Estimator | None
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Each frame and its probabilities, float32 (K, H, W), before the next frame is read.

    A frame's flow is the reverse of the motion back to the frame before it. The first frame's flow
    shows no motion.

    Args:
        segmenter: a network that has ``segment_stream``, and its views.
        images: frames, uint8 RGB (H, W, 3). Their memory may be used again for later ones.
        estimator: of the flow, for networks that take it.

    Raises:
        VideoError: a frame of another size than those before it.
    """
    images = iter(images)
    first = next(images, None)
    if first is not None:
        size, read = first.shape[:2], deque()
        shown = _shown(segmenter, chain([first], images), size, estimator, read)
        for prediction in segmenter.segment_stream(shown):
            yield read.popleft(), prediction.probability(size)


def _shown(
    segmenter: Segmenter,
    images: Iterable[np.ndarray],
    size: tuple[int, int],
    estimator: Estimator | None,
    read: deque[np.ndarray],
) -> Iterator[Views]:
    """Batches of one frame in all views; all frames must have ``size``. Adds frames to ``read``."""
    before = None
    for number, image in enumerate(images):
        check_same_size(f"frame {number}", image.shape[:2], size)
        flow = None
        if estimator is not None:
            motion = -estimator(image, before) if number else np.zeros((*size, 2), np.float32)
            flow = flow_to_picture(motion)
        before = image.copy()
        read.append(before)
        yield default_collate([segmenter.views_of(image, flow)])
