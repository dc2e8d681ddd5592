"""A camera, an address, a pipe or a file, segmented frame by frame as it comes."""

import time
from contextlib import closing
from pathlib import Path

from datasets.clips import VideoError
from datasets.live import open_live
from datasets.progress import progress_bar
from utils.evaluation.streaming import check_streams, predict_stream
from utils.evaluation.trained_network import TrainedNetwork
from utils.evaluation.video import (
    OVERLAY,
    FrameWriter,
    check_results,
    print_certainty,
    print_results,
    published_when_whole,
    settings_estimator,
)
from utils.reports.film import open_film
from utils.settings import Settings
from utils.training.interrupts import Interrupts
from utils.training.run_folder import locked


def evaluate_live(trained: TrainedNetwork, source: str, output: Path, settings: Settings) -> None:
    """Write masks and a film until the source ends, or until Ctrl-C or SIGTERM.

    References come from the frames seen so far (``models.seen_references``). Latency and memory
    stay the same. Of a source that does not wait, frames that come while the network works are left
    out, except for the newest.

    Raises:
        VideoError: the source cannot be used, or the network needs the whole video; or the source
            broke off, after the results of the frames before have been written.
    """
    check_streams(trained, "leave out --stream, or record the source first")
    estimator = settings_estimator(trained, settings)
    check_results(Path(source), output)
    with (
        locked(output, "writing into"),
        open_live(source) as video,
        Interrupts() as interrupts,
        published_when_whole(output) as partial,
        open_film(partial / OVERLAY, video) as add_to_film,
        closing(FrameWriter(partial, settings, add_to_film)) as writer,
        progress_bar(desc="segmenting, Ctrl-C ends it", unit="frame") as bar,
    ):
        frames, fault = video.frames(lambda: interrupts.pending is not None), None
        start = time.monotonic()
        try:
            for image, probability in predict_stream(trained.segmenter, frames, estimator):
                writer.write(f"{bar.n:05d}", image, probability)
                bar.update()
        except VideoError as error:
            fault = error
        seconds = time.monotonic() - start
        if not bar.n:
            raise fault or VideoError(f"{source}: stopped before its first frame was segmented")
    print_results(output, bar.n, bar.n / seconds)
    print_certainty(output)
    if video.left_out:
        print(f"{video.left_out} frames left out: the network is slower than the source")
    if video.damaged:
        print(f"damaged packets left out: {len(video.damaged)}")
    if fault is not None:
        raise fault
