"""A camera, an address, a pipe or a file, segmented frame by frame as it comes."""

import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np

from datasets.clips import VideoError
from datasets.live import LiveVideo, open_live
from datasets.progress import progress_bar
from utils.evaluation.streaming import predict_stream
from utils.evaluation.trained_network import TrainedNetwork
from utils.evaluation.video import (
    OVERLAY,
    FrameWriter,
    announced,
    check_results,
    estimator_of,
    published_when_whole,
)
from utils.reports.film import open_film
from utils.settings import Settings
from utils.training.interrupts import Interrupts
from utils.training.run_folder import locked


def evaluate_live(trained: TrainedNetwork, source: str, output: Path, settings: Settings) -> None:
    """Write masks and a film until the source ends, or until Ctrl-C or SIGTERM.

    References come from the frames seen so far (``models.seen_references``). Latency and memory
    stay the same. Of a source that does not wait, the newest frame is taken, and those that came
    while another was in work are left out.

    Raises:
        VideoError: the source cannot be used, or the network needs the whole video.
    """
    if not trained.segmenter.network.streams_frames:
        raise VideoError(
            f"{trained.method}: needs the whole video before its first result; leave out --stream, "
            "or record the source first"
        )
    estimator = estimator_of(trained, settings)
    check_results(Path(source), output)
    with (
        locked(output, "writing into"),
        open_live(source) as video,
        Interrupts() as interrupts,
        published_when_whole(output) as partial,
        open_film(partial / OVERLAY, video) as add_to_film,
        progress_bar(desc="segmenting, Ctrl-C ends it", unit="frame") as bar,
    ):
        writer = FrameWriter(partial, settings, add_to_film)
        shown = _Shown(video, lambda: interrupts.pending is not None)
        start = time.monotonic()
        for number, probability in enumerate(predict_stream(trained.segmenter, shown, estimator)):
            writer.write(f"{number:05d}", shown.last, probability)
            bar.update()
        seconds = time.monotonic() - start
        if not bar.n:
            raise VideoError(f"{source}: stopped before its first frame was segmented")
    announced(output, bar.n, bar.n / seconds, settings)


class _Shown:
    """The frames of a live video; ``last`` is the one that was read last."""

    def __init__(self, video: LiveVideo, stop: Callable[[], bool]):
        self.frames = video.frames(stop)
        self.last: np.ndarray | None = None

    def __iter__(self) -> Iterator[np.ndarray]:
        for image in self.frames:
            self.last = image
            yield image
