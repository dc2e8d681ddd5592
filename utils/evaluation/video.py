"""Any video: from a clip to masks and a film that shows them, in bounded memory."""

import csv
import shutil
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path

import av
import numpy as np

from datasets.clips import Clip, VideoError, check_clip
from datasets.flow.estimators import Estimator, build_estimator, of_small_frames
from datasets.flow.origin import compare_flow, kind_of_flow, origin_in_words
from datasets.progress import Report
from precision import device_in_words
from utils.evaluation.clip_predictions import estimated_flow, predict_clip, without_flow
from utils.evaluation.output_folder import MASKS
from utils.evaluation.segmenting import Segmenter, to_labels
from utils.evaluation.soft_masks import PROBABILITIES, to_grey, write_soft_masks
from utils.evaluation.trained_network import TrainedNetwork, refuse_stage1
from utils.reports.film import open_film
from utils.reports.pictures import OVERLAY_COLOUR, Colour, draw_overlay, write_mask
from utils.settings import Settings
from utils.training.interrupts import terminated_in_order
from utils.training.run_folder import locked

OVERLAY, MASKED = "overlay.mp4", "masked.csv"
_SHARE, _HIGHEST = "masked_share", "highest_probability"  # columns of MASKED
_PARTIAL = ".partial"  # folder of unfinished results
_MOVING = ".moving"  # in it, if a run was killed while it replaced earlier results


def evaluate_video(trained: TrainedNetwork, source: Path, output: Path, settings: Settings) -> None:
    """Write masks and a film of any video into ``output``, as :func:`write_video` does.

    Raises:
        CheckpointError: the network is of stage 1, or another process writes into ``output``.
    """
    estimator = settings_estimator(trained, settings)
    with locked(output, "writing into"), terminated_in_order():
        count, rate = write_video(trained.segmenter, source, output, settings, estimator)
    print_results(output, count, rate)
    print_certainty(output)


def settings_estimator(trained: TrainedNetwork, settings: Settings) -> Estimator | None:
    """The estimator of the network's flow, by the settings; None for one without flow. Prints both.

    It reduces large frames, see :func:`datasets.flow.estimators.of_small_frames`.

    Raises:
        CheckpointError: the network is of stage 1.
    """
    refuse_stage1(trained)
    device, takes_flow = trained.segmenter.device, trained.segmenter.network.needs.flow
    kind = kind_of_flow(trained.flow, settings.flow_estimator, settings.remove_camera_motion)
    origin = origin_in_words(*kind)
    flow = f"; flow: {origin}" if takes_flow else ""
    where = device_in_words(device, settings.mixed_precision)
    print(f"{trained.method}, from {trained.checkpoint}, on {where}{flow}")
    if not takes_flow:
        return None
    compare_flow(trained.flow, origin)
    if not (trained.flow or settings.flow_estimator):
        print(
            "note: the checkpoint does not name its flow maps, so DIS makes them; "
            "--flow-estimator raft takes RAFT"
        )
    weights = settings.flow_weights and Path(settings.flow_weights)
    if weights and kind[0] == "dis":
        print(
            "note: FLOW_WEIGHTS are RAFT's, but DIS makes the flow maps; add --flow-estimator raft"
        )
    estimator = build_estimator(kind[0], weights, str(device), kind[1], settings.mixed_precision)
    return of_small_frames(estimator, trained.segmenter.largest_side)


def print_results(output: Path, count: int, rate: float) -> None:
    """Print how many frames there were, how many a second, and where the results are."""
    print(f"{count} frames, {rate:.1f} a second")
    print(f"masks: {output / MASKS}")
    if (output / PROBABILITIES).is_dir():
        print(f"probabilities: {output / PROBABILITIES}")
    print(f"overlay: {output / OVERLAY}")


def print_certainty(output: Path) -> None:
    """Print where the table of the frames is, and :func:`certainty`."""
    print(f"masked share and highest probability of each frame: {output / MASKED}")
    if text := certainty(output / MASKED):
        print(text)


def certainty(table: Path) -> str:
    """How sure the network was in frames without a mask; "" if there are none."""
    with table.open(newline="", encoding="utf-8", errors="surrogateescape") as file:
        rows = csv.DictReader(file)
        empty = [float(row[_HIGHEST]) for row in rows if not float(row[_SHARE])]
    if not empty:
        return ""
    return (
        f"frames without a mask: {len(empty)}; their highest probability is "
        f"{sum(empty) / len(empty):.2f} on average, at most {max(empty):.2f}"
    )


def write_video(
    segmenter: Segmenter,
    source: Path,
    output: Path,
    settings: Settings,
    estimator: Estimator | None,
) -> tuple[int, float]:
    """Segment a video file or a folder of frames, as :func:`write_frames` does.

    Returns:
        The number of frames, and frames per second: decoding, flow, network and writing.

    Raises:
        VideoError: the clip is unusable, or the results cannot be written.
    """
    check_results(source, output)
    clip = check_clip(source, settings.frame_rate)
    if (output / MASKS).exists():
        print(f"note: {output} has results of an earlier video; they will be replaced")
    start = time.monotonic()
    deque(write_frames(segmenter, clip, output, settings, estimator), maxlen=0)
    return clip.count, clip.count / (time.monotonic() - start)


def write_frames(
    segmenter: Segmenter,
    clip: Clip,
    output: Path,
    settings: Settings,
    estimator: Estimator | None,
    colour: Colour = OVERLAY_COLOUR,
    progress: bool | Report = True,
) -> Iterator[np.ndarray]:
    """Write masks of a video and a film with its objects tinted, frame by frame.

    The clip is read as by :func:`predict_clip`. Flow is made on the way, if there is an
    ``estimator``. Memory does not grow with the clip. Networks that look ahead also keep features
    of every frame.

    ``output/masks/<name>.png`` are as large as the upright frames: 0 and 255, or label maps of
    several objects. Names are numbers from 00000, or in a folder the pictures' own. With
    ``settings.save`` probabilities are written as well. ``masked.csv`` tells how much is masked.
    Results appear, and replace an earlier run's, when they are complete. Closing the iterator
    before leaves nothing. One process at a time may write into ``output``.

    Args:
        segmenter: the network.
        clip: the video.
        output: folder of the results.
        settings: of the evaluation.
        estimator: of the flow; ``None`` for networks that take none.
        colour: of the tinted object, if there is only one.
        progress: show progress bars, or a function that is told of each frame.

    Returns:
        An iterator of the tinted frames, uint8 RGB (H, W, 3).

    Raises:
        VideoError: the clip is unusable, or the results cannot be written.
    """
    flow_maps = without_flow if estimator is None else estimated_flow(estimator)
    batch_size = settings.eval_batch_size
    with (
        published_when_whole(output) as partial,
        open_film(partial / OVERLAY, clip) as add_to_film,
        closing(predict_clip(segmenter, clip, flow_maps, batch_size, progress)) as predicted,
        closing(FrameWriter(partial, settings, add_to_film, colour)) as writer,
    ):
        for frame, result in predicted:
            yield writer.write(frame.name, frame.image, result.probability(clip.size))


@dataclass
class FrameWriter:
    """Writes the results of a video's frames into a folder and a film."""

    folder: Path
    settings: Settings
    add_to_film: Callable[[np.ndarray], None]
    colour: Colour = OVERLAY_COLOUR

    def __post_init__(self) -> None:
        path = self.folder / MASKED
        self._table = path.open("w", newline="", encoding="utf-8", errors="surrogateescape")
        self._rows = csv.writer(self._table)
        self._rows.writerow(["frame", _SHARE, _HIGHEST])

    def write(self, name: str, image: np.ndarray, probability: np.ndarray) -> np.ndarray:
        """Write the mask of one frame, and what else is wanted. Returns the tinted picture.

        Args:
            name: of the frame, without suffix.
            image: uint8 RGB (H, W, 3).
            probability: of each object, float32 (K, H, W).
        """
        s, count = self.settings, len(probability)
        labels = to_labels(probability, s.threshold, s.stretch_masks)
        write_mask(self.folder / MASKS / f"{name}.png", labels, count)
        if s.save:
            soft = to_grey(probability, s.save)
            write_soft_masks(self.folder / PROBABILITIES / f"{name}.png", soft)
        masked, highest = (labels > 0).mean(), probability.max(initial=0)
        self._rows.writerow([name, f"{masked:.6g}", f"{highest:.6f}"])
        shown = draw_overlay(image, labels, count, self.colour)
        self.add_to_film(shown)
        return shown

    def close(self) -> None:
        """Close the table of the frames."""
        self._table.close()


def check_results(source: Path, output: Path) -> None:
    """Check, before anything is read, that only results of an earlier video would be replaced."""
    results = [output / name for name in (MASKS, OVERLAY, PROBABILITIES, MASKED)]
    for path in (*results, output / _PARTIAL):
        if path.resolve() in (source.resolve(), *source.resolve().parents):
            raise VideoError(f"{source} would be replaced by the results; choose another --output")
        if path.is_symlink():
            raise VideoError(
                f"{path} is a link, which results would replace: remove it, or make {output} a link"
            )
    found = [path for path in results if path.exists()]
    if found and not {*results[:2]} <= {*found} and not (output / _PARTIAL / _MOVING).exists():
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
        (partial / _MOVING).touch()
        for folder in (MASKS, PROBABILITIES):
            shutil.rmtree(output / folder, ignore_errors=True)
        (output / MASKED).unlink(missing_ok=True)
        for path in (partial / name for name in (PROBABILITIES, MASKED, OVERLAY, MASKS)):
            if path.exists():
                path.replace(output / path.name)
    except (OSError, av.FFmpegError) as error:
        raise VideoError(f"{output}: the results could not be written ({error})") from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)
