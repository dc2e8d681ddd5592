"""Any video: from a clip to masks and a film that shows them, in bounded memory."""

import shutil
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import av

from datasets.clips import VideoError, check_clip
from datasets.flow.estimators import Estimator, build_estimator
from datasets.flow.origin import compare_flow, origin_in_words
from utils.evaluation.clip_predictions import estimated_flow, predict_clip, without_flow
from utils.evaluation.segmenting import Segmenter, to_labels
from utils.evaluation.soft_masks import PROBABILITIES, to_grey, write_soft_masks
from utils.evaluation.trained_network import TrainedNetwork, refuse_stage1
from utils.reports.film import open_film
from utils.reports.pictures import draw_overlay, write_mask
from utils.settings import Settings
from utils.training.interrupts import terminated_in_order
from utils.training.run_folder import locked

MASKS, OVERLAY = "masks", "overlay.mp4"
_PARTIAL = ".partial"  # folder of unfinished results


def evaluate_video(trained: TrainedNetwork, source: Path, output: Path, settings: Settings) -> None:
    """Write masks and a film of any video into ``output``, as :func:`segment_video` does.

    Raises:
        CheckpointError: the network is of stage 1, or another process writes into ``output``.
    """
    refuse_stage1(trained)
    segmenter, estimator = trained.segmenter, None
    origin = origin_in_words(settings.flow_estimator, settings.remove_camera_motion)
    flow = f"; flow: {origin}" if segmenter.network.needs.flow else ""
    print(f"{trained.method}, from {trained.checkpoint}, on {segmenter.device}{flow}")
    if flow:
        compare_flow(trained.flow, origin)
        estimator = build_estimator(
            settings.flow_estimator,
            settings.flow_weights and Path(settings.flow_weights),
            str(segmenter.device),
            settings.remove_camera_motion,
        )
    with locked(output, "writing into"), terminated_in_order():
        count, rate = segment_video(segmenter, source, output, settings, estimator)
    print(f"{count} frames, {rate:.1f} a second")
    print(f"masks: {output / MASKS}")
    if settings.save:
        print(f"probabilities: {output / PROBABILITIES}")
    print(f"overlay: {output / OVERLAY}")


def segment_video(
    segmenter: Segmenter,
    source: Path,
    output: Path,
    settings: Settings,
    estimator: Estimator | None,
) -> tuple[int, float]:
    """Segment a video file or a folder of frames: masks, and a film with the objects tinted.

    The clip is read three times: to check and count it, for the references, which are uniform over
    all of it (Sec. 4.4), and to segment it. Flow is made on the way, if there is an ``estimator``.
    Memory does not grow with the clip, but for what a network keeps that looks ahead.

    ``output/masks/<name>.png`` are as large as the upright frames: 0 and 255, or label maps of
    several objects. Names are numbers from 00000, or in a folder the pictures' own. With
    ``settings.save`` probabilities are written as well. Results appear, and replace an earlier
    run's, when they are complete. One process at a time may write into ``output``.

    Returns:
        The number of frames, and frames per second: decoding, flow, network and writing.

    Raises:
        VideoError: the clip is unusable, or the results cannot be written.
    """
    check_results(source, output)
    clip = check_clip(source, settings.frame_rate)
    flow_maps = without_flow if estimator is None else estimated_flow(estimator)
    batch_size = settings.eval_batch_size
    with (
        published_when_whole(output) as partial,
        open_film(partial / OVERLAY, clip) as add_to_film,
        closing(predict_clip(segmenter, clip, flow_maps, batch_size, progress=True)) as predicted,
    ):
        start = time.monotonic()
        for frame, result in predicted:
            probability = result.probability(clip.size)
            labels = to_labels(probability, settings.threshold, settings.stretch_masks)
            name = f"{frame.name}.png"
            write_mask(partial / MASKS / name, labels, result.num_objects)
            if settings.save:
                soft = to_grey(probability, settings.save)
                write_soft_masks(partial / PROBABILITIES / name, soft)
            add_to_film(draw_overlay(frame.image, labels, result.num_objects))
        seconds = time.monotonic() - start
    return clip.count, clip.count / seconds


def check_results(source: Path, output: Path) -> None:
    """Check, before anything is read, that only results of an earlier video would be replaced."""
    results = [output / name for name in (MASKS, OVERLAY, PROBABILITIES)]
    for path in (*results, output / _PARTIAL):
        if path.resolve() in (source.resolve(), *source.resolve().parents):
            raise VideoError(f"{source} would be replaced by the results; choose another --output")
    found = [path for path in results if path.exists()]
    if found and not {*results[:2]} <= {*found}:
        raise VideoError(
            f"{found[0]} is not an earlier video's result, which is {MASKS} and {OVERLAY} "
            "together; choose another --output"
        )


@contextmanager
def published_when_whole(output: Path) -> Iterator[Path]:
    """A hidden folder in ``output`` for the results, moved to their names if nothing goes wrong."""
    partial = output / _PARTIAL
    shutil.rmtree(partial, ignore_errors=True)  # of a run that was killed
    try:
        partial.mkdir(parents=True)
        yield partial
        for folder in (MASKS, PROBABILITIES):
            shutil.rmtree(output / folder, ignore_errors=True)
        for path in (partial / name for name in (PROBABILITIES, OVERLAY, MASKS)):
            if path.exists():
                path.replace(output / path.name)
    except (OSError, av.FFmpegError) as error:
        raise VideoError(f"{output}: the results could not be written ({error})") from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)
