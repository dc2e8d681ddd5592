"""Masks of videos from Python.

::

    from inference import load, segment_video

    network = load()
    for mask in segment_video(network, "clip.mp4"):
        ...

docs/python.md says more.
"""

import runpy
from collections.abc import Iterator
from os import PathLike
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch

from datasets.clips import VideoError
from datasets.progress import Report
from utils.evaluation.clip_predictions import predict_clip
from utils.evaluation.given_flow import estimator_of, flow_of
from utils.evaluation.given_frames import one_by_one, source_of
from utils.evaluation.segmenting import check_numbers, to_labels
from utils.evaluation.streaming import check_streams, predict_stream
from utils.evaluation.trained_network import (
    STARTER,
    TrainedNetwork,
    load_trained_network,
    refuse_stage1,
)
from utils.settings import SettingsError, load_settings


def load(
    checkpoint: str | PathLike = STARTER,
    device: str | torch.device | None = None,
    **changes: Any,
) -> TrainedNetwork:
    """A checkpoint's network, ready to segment, with the settings of its run.

    Args:
        checkpoint: the file, as ``runs/train/best.pt``; a folder of ``python -m utils.describe
            --safetensors``; or the name ``user/model`` of one on huggingface.co. By default the
            small network that comes with the code, see assets/starter.md.
        device: as ``"cuda:1"`` or ``"cpu"``; ``None`` takes a GPU if there is one.
        changes: settings of the evaluation by lower-case name, as ``image_size=512`` or
            ``threshold=0.4``.

    Raises:
        CheckpointError: no such file, a damaged one, or one of stage 1.
        SettingsError: a setting that does not exist, has no effect here, or a value that is not
            allowed.
    """
    try:
        chosen = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
        torch.empty(0, device=chosen)
    except (RuntimeError, AssertionError) as error:  # the latter without CUDA
        reason = str(error).splitlines()[0]
        raise SettingsError(f"device: {device!r} cannot be used ({reason})") from error
    # Not imported: the user's program may have a module ``config`` of its own.
    config = runpy.run_path(str(Path(__file__).with_name("config.py")))
    settings = load_settings(SimpleNamespace(**config)).replace(**changes)
    given = frozenset(name.upper() for name in changes)
    network = load_trained_network(Path(checkpoint), settings, given, (), chosen, from_python=True)
    refuse_stage1(network)
    return network


def segment_video(
    network: TrainedNetwork,
    frames: Any,
    *,
    probabilities: bool = False,
    flow: Any = None,
    progress: bool | Report = False,
) -> Iterator[np.ndarray]:
    """The masks of a video's frames, one after the other.

    Args:
        network: from :func:`load`.
        frames: the path of a video file or of a folder of pictures; or the frames themselves, in
            any iterable or array: RGB as arrays uint8 (H, W, 3) or tensors (3, H, W), uint8 or
            float in [0, 1]. Frames of an iterable that can be read only once, such as a generator,
            are kept in memory.
        probabilities: return probabilities in place of masks.
        flow: how flow maps are made, or the flow maps, see ``utils.evaluation.given_flow.flow_of``.
        progress: show progress bars on stderr; or a function that is called before each frame with
            the work (docs/python.md names them), the number of frames done, and of all or None.

    Returns:
        An iterator of label maps, uint8 (H, W), 0 the background and 1 to K the objects; or of
        probabilities of the K objects, float32 (K, H, W). H and W are the size of the frames.

    Raises:
        UserError: frames or flow maps that cannot be used; the message says why.
        CheckpointError: the network's probabilities are not numbers.
    """
    _check_network(network)
    source = source_of(frames, progress)
    flow_maps = flow_of(flow, network, source)
    predicted = predict_clip(network.segmenter, source, flow_maps, network.batch_size, progress)
    maps = (prediction.probability(source.size) for _, prediction in predicted)
    return _results(network, maps, probabilities)


def segment_stream(
    network: TrainedNetwork, frames: Any, *, probabilities: bool = False, flow: Any = None
) -> Iterator[np.ndarray]:
    """The masks of frames that come one by one, each before the next frame is read.

    The references come from the frames seen so far, see ``models.seen_references``. Flow is the
    motion since the frame before. Memory and the time for a frame stay the same.

    Args:
        network: from :func:`load`; ``gsanet`` or ``dpa``.
        frames: as of :func:`segment_video`, but of any number; none of them is kept.
        probabilities: return probabilities in place of masks.
        flow: the estimator, see ``utils.evaluation.given_flow.estimator_of``.

    Returns:
        An iterator as of :func:`segment_video`.

    Raises:
        UserError: the network needs the whole video. A frame that cannot be used raises it when
            that frame is read.
    """
    _check_network(network)
    check_streams(network, "use segment_video")
    images = one_by_one(frames)
    predicted = predict_stream(network.segmenter, images, estimator_of(flow, network))
    return _results(network, (maps for _, maps in predicted), probabilities)


def _check_network(network: Any) -> None:
    if not isinstance(network, TrainedNetwork):
        raise VideoError(f"network: found {type(network).__name__}, expected the result of load")


def _results(
    network: TrainedNetwork, maps: Iterator[np.ndarray], probabilities: bool
) -> Iterator[np.ndarray]:
    if probabilities:
        return map(check_numbers, maps)
    threshold, stretch = network.settings["THRESHOLD"], network.settings["STRETCH_MASKS"]
    return (to_labels(one, threshold, stretch) for one in maps)
