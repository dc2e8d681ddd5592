"""How fast this device is: times, rates, operations and peak memory of everything that takes time.

``python -m utils.benchmark --image-size 512 --json numbers.json``, with any setting of config.py as
a flag; ``--help`` lists them. Weights are random. The data is synthetic and in a temporary folder,
unless ``--data-root`` is given. Each line of the table comes from a process of its own, so that its
peak memory is that of nothing else.

How the numbers are meant:

- Time per frame is that of a whole sequence: its references encoded once, then all frames in
  batches, from pictures in memory to masks in memory at the network's size.
- A multiply-add is two operations. Those of matrix products, convolutions and attention count.
- The matrix peak is the fastest of some large matrix products, in the type that the network
  computes in. Convolutions may save multiplications (Winograd) and so come out above it.
- The device's limit is, for each part of the network, the larger of its operations over the matrix
  peak and its bytes over the memory bandwidth (of a large copy), summed over the parts. Bytes are
  what matrix products, convolutions and attention read and write: all else could be fused into
  them.
- Pre-processing is reading, resizing and making tensors, post-processing the probability at the
  frame's own size, the mask and writing it. evaluate.py does both beside the network.
- Where the GPU works, its own clock (CUDA events) measures, and nothing waits for it in between.
  Peak memory is that of its tensors, on the CPU that of the process.
"""

import json
import math
import shutil
import signal
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from collections.abc import Sequence as Items
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import chain, count, islice, pairwise
from multiprocessing import get_context
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.data import default_collate
from torch.utils.flop_counter import FlopCounterMode, flop_registry, sdpa_flop_count

import config
from datasets.files import write_picture, write_text
from datasets.flow.estimators import build_estimator
from datasets.flow.making import make_flow
from datasets.layout import Frame, Sequence, frame_label, still_images, video_sequences
from datasets.masks import read_mask
from datasets.pictures import read_size
from datasets.progress import progress_bar
from datasets.samples import StillImages, TestFrames, VideoFrames, VideoWindows
from datasets.sampling import EpochBatches, Key
from datasets.synthetic import MIN_SIZE, write_synthetic
from models import build_model
from models.interface import Needs, Network
from models.two_streams import uniform_references
from utils.evaluation.protocols import PROTOCOLS
from utils.evaluation.scoring import score_masks
from utils.evaluation.segmenting import FramePrediction, Segmenter, Views, to_labels
from utils.processes import Process, gpu_indices, num_cores, start_process
from utils.reports.pictures import write_mask
from utils.scripts import USER_ERRORS, run_script
from utils.settings import Settings, SettingsError, parse_settings, settings_parser
from utils.training.accounts import peak_memory
from utils.training.interrupts import Interrupts
from utils.training.loop import Training
from utils.training.record import cpu_model, git_state
from utils.training.samples import (
    augmentation_from,
    make_loader,
    network_arguments,
    stills_of,
    videos_of,
)
from utils.transfer import one_ahead

REST = "rest of the network"  # what is in none of its parts
BEFORE, AFTER = "pre-processing", "post-processing"

_DISTINCT = 8  # frames that a synthetic sequence has; longer ones are gone through repeatedly
_HELD = 2  # batches of distinct frames that are kept in memory
_WARM_UPS = 2  # runs whose time does not count
_CPU_BATCH = 2  # samples in a training step on the CPU, where BATCH_SIZE would mean minutes
_LOADER_SAMPLES = 16  # that the loader gives in a run
_MATRIX = {"cpu": 2048, "cuda": 8192}  # rows and columns
_COPY = {"cpu": 2**25, "cuda": 2**28}  # float32 numbers, too many for any cache
# The CPU's attention, which not every version of torch counts.
_ATTENTION = {
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: (
        lambda query, key, value, *_, **__: sdpa_flop_count(query, key, value)
    )
}
_ATTEMPTS = 3  # at the highest rate, for each of the repeats


@dataclass(frozen=True)
class Job:
    """What a line of the table is to be measured with.

    Attributes:
        settings: of network, data and training; their data root is there.
        device: to measure.
        frames: in the sequence that is segmented.
        repeats: runs, of which the median is taken.
        folder: for temporary files, of this line alone.
    """

    settings: Settings
    device: torch.device
    frames: int
    repeats: int
    folder: Path


@dataclass(frozen=True)
class Meter:
    """Something that can be read at any moment, and the difference ``between`` two readings."""

    read: Callable[[], Any]
    between: Callable[[Any, Any], Any]


class _Traffic(TorchDispatchMode):
    """Counts the bytes that the operations which FlopCounterMode knows read and write."""

    def __init__(self) -> None:
        super().__init__()
        self.bytes = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        if func._overloadpacket in {*flop_registry, *_ATTENTION}:
            results = result if isinstance(result, tuple | list) else (result,)
            tensors = [*args, *(kwargs or {}).values(), *results]
            self.bytes += sum(one.nbytes for one in tensors if isinstance(one, Tensor))
        return result


def main() -> None:
    """Read the settings, measure line by line, print the table."""
    parser = settings_parser(config, __doc__.split("\n")[0] + " Weights are random.")
    add = parser.add_argument
    lines = f"lines of the table: {', '.join(LINES)} (default: all)"
    add("--only", nargs="+", choices=LINES, metavar="LINE", help=lines)
    add("--json", type=Path, metavar="FILE", help="also write all numbers, with their conditions")
    length = "length of the sequence that is segmented (default: 40)"
    add("--frames", type=int, default=40, metavar="N", help=length)
    runs = "runs, of which the median is taken (default: 3)"
    add("--repeats", type=int, default=3, metavar="N", help=runs)
    size = "of the synthetic frames (default: 480 854, DAVIS's)"
    add("--frame-size", type=int, nargs=2, default=[480, 854], metavar=("H", "W"), help=size)
    settings, arguments = parse_settings(parser, config)
    settings = _checked(settings, arguments)
    own_data = "DATA_ROOT" in arguments.given
    chosen = arguments.only or [*LINES]
    if own_data:
        photos = Path(settings.data_root) / settings.pretrain_set
        if arguments.only is None and not photos.is_dir():
            print(f"note: there is no {photos}, so stills are not measured")
            chosen.remove("stills")
        for line in chosen:
            _check_data(line, settings)  # what is wrong is said at once
    indices = gpu_indices(settings.gpu)
    device = torch.device("cuda", indices[0]) if indices else torch.device("cpu")
    if device.type == "cpu" and "BATCH_SIZE" not in arguments.given:
        settings = settings.replace(batch_size=_CPU_BATCH * settings.accumulation_steps)
    with Interrupts() as interrupts, tempfile.TemporaryDirectory() as folder:
        here = settings
        if not own_data:
            data_root = Path(folder) / "data"
            write_data(data_root, *arguments.frame_size)
            here = settings.replace(
                data_root=str(data_root),
                pretrain_set="DUTS_train",
                train_sets=["DAVIS_train"],
                val_set="DAVIS_test",
            )
        lines = {}
        for line in progress_bar(chosen, desc="benchmark", unit="line"):
            scratch = Path(folder) / line
            scratch.mkdir()
            job = Job(here, device, arguments.frames, arguments.repeats, scratch)
            lines[line] = in_own_process(line, job, interrupts)
    report = {
        **conditions(settings, device),
        "data": settings.data_root if own_data else "synthetic",
        "frame_size": None if own_data else arguments.frame_size,
        "repeats": arguments.repeats,
        "lines": lines,
    }
    print(table(report))
    if arguments.json is not None:
        write_text(arguments.json, json.dumps(report, indent=1) + "\n")


def in_own_process(line: str, job: Job, interrupts: Interrupts) -> dict[str, Any]:
    """Measure a line of the table in a new process, with memory, threads and caches of its own.

    Raises:
        SystemExit: it has died; the message says so.
        Interrupted: Ctrl-C or SIGTERM; it has been ended.
        Whatever a user can mend that it raises.
    """
    # Forked from a server that has imported what takes seconds, and has done nothing else.
    context = get_context("forkserver")
    context.set_forkserver_preload(["utils.scripts", "utils.evaluation.segmenting"])
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=_measure, args=(line, job, sender))
    with interrupts.deferred():
        process.start()  # half started, it could not be ended
        sender.close()  # so that its end is noticed here
        try:
            with interrupts.admitted():
                result = receiver.recv()
        except EOFError:
            process.join()
            sys.exit(
                f"error: the process that measured {line} has ended with status "
                f"{process.exitcode}; was there memory for it? A smaller --image-size, "
                "--batch-size or --eval-batch-size needs less"
            )
        except BaseException:
            process.terminate()
            raise
        finally:
            process.join()
    if isinstance(result, Exception):
        raise result
    return result


def write_data(data_root: Path, height: int, width: int) -> None:
    """Stills and a training and a test sequence with flow maps, all of this size."""
    write_synthetic(
        data_root,
        stills=_DISTINCT,
        train_sequences=1,
        test_sequences=1,
        frames=_DISTINCT,
        height=height,
        width=width,
    )
    for name in ("DAVIS_train", "DAVIS_test"):
        make_flow(data_root, name, build_estimator("dis"))


def conditions(settings: Settings, device: torch.device) -> dict[str, Any]:
    """What the numbers depend on, for JSON: device, versions, code and settings."""
    gpu = device.type == "cuda"
    return {
        "device": {
            "type": device.type,
            "name": torch.cuda.get_device_name(device) if gpu else cpu_model(),
            "cores": num_cores(),
            "threads": torch.get_num_threads(),
        },
        "precision": str(_precision(settings, device)).removeprefix("torch."),
        "torch": torch.__version__,
        "git": git_state(Path(__file__).parent),
        "settings": settings.as_dict(),
    }


def inference(job: Job) -> dict[str, Any]:
    """A sequence through the network, and what its parts take of the time."""
    s, device = job.settings, job.device
    segmenter = build_segmenter(s, device)
    sequence = _sequences_of("inference", s)[0]
    frames, batch_size = sequence.frames, min(s.eval_batch_size, job.frames)
    shown = TestFrames(frames, segmenter.views)
    positions = uniform_references(len(frames), s.num_references)
    references = _loaded(shown, positions, device)
    indices = np.arange(_HELD * batch_size).reshape(_HELD, batch_size) % len(frames)
    held = [_loaded(shown, batch, device) for batch in indices.tolist()]
    video = HeldVideo(references, held, job.frames)
    meter = clock(device)
    runs = _WARM_UPS + 2 * job.repeats
    with progress_bar(total=runs, desc="inference", unit="run") as bar:
        for _ in range(_WARM_UPS):
            predictions = next(segmenter.segment(video))()
            bar.update()
        reset_peak_memory(device)
        seconds = []
        for _ in range(job.repeats):
            seconds.append(taken(meter, lambda: run_sequence(segmenter, video)))
            bar.update()
        memory = peak_memory(device)
        # Inside a compiled network parts can't be told apart, so theirs are the plain network's.
        plain = build_segmenter(s.replace(compile=False), device)
        by_part = []
        for _ in range(job.repeats):
            before = time_before(shown, indices[0].tolist())
            parts = per_frame(plain, meter, references, held[0], job.frames)
            after = time_after(predictions, frames[0], s, job.folder)
            by_part.append({BEFORE: before, **parts, AFTER: after})
            bar.update()
    with operations() as counter:
        counts = per_frame(plain, counter, references, held[0], job.frames)
    rates = np.array(
        [
            matrix_rate(device, _precision(s, device), _ATTEMPTS * job.repeats),
            memory_rate(device, _ATTEMPTS * job.repeats),
        ]
    )
    per_part = {part: statistics.median(one[part] for one in by_part) for part in by_part[0]}
    every_part = sum(per_part.values())
    needed = {part: counted / rates for part, counted in counts.items()}
    limit = sum(float(seconds.max()) for seconds in needed.values())
    own = statistics.median(seconds) / job.frames
    operations_of_frame = sum(float(counted[0]) for counted in counts.values())
    return {
        "batch": batch_size,
        "frames": job.frames,
        "milliseconds_per_frame": 1e3 * own,
        "frames_per_second": 1 / own,
        "gflop_per_frame": operations_of_frame / 1e9,
        "matrix_peak_gflop_per_second": rates[0] / 1e9,
        "share_of_matrix_peak": operations_of_frame / own / rates[0],
        "memory_gb_per_second": rates[1] / 1e9,
        "limit_milliseconds_per_frame": 1e3 * limit,
        "share_of_limit": limit / own,
        "peak_memory_gib": memory,
        "parts": {
            part: {
                "share": seconds / every_part,
                "milliseconds_per_frame": 1e3 * seconds,
                **(
                    {
                        "gflop_per_frame": float(counts[part][0]) / 1e9,
                        "gb_per_frame": float(counts[part][1]) / 1e9,
                        "limit_milliseconds_per_frame": 1e3 * float(needed[part].max()),
                    }
                    if part in counts
                    else {}
                ),
            }
            for part, seconds in per_part.items()
        },
    }


def training(job: Job) -> dict[str, Any]:
    """Steps of train.py: loader, forward pass, loss, backward pass, Adam."""
    s = job.settings
    torch.manual_seed(s.seed)
    process = Process(job.device)
    # The very step that train.py takes, and nothing that looks like it.
    never = s.replace(checkpoint_minutes=1e9)
    network = _build(s)
    run = Training(network, training_set(s, network.needs), never, process)
    run.network.train()
    # On a GPU longer than what the loader has in stock, two batches for each of its processes. On
    # the CPU a step takes long enough for the loader to fill it up again.
    length = 1 + 2 * min(s.workers, num_cores()) if job.device.type == "cuda" else 1
    plan = first_steps(run.batches, _WARM_UPS + job.repeats * length)
    parts = [part for step in plan for part in step]
    stream = iter(make_loader(run.dataset, parts, s.workers, job.device))
    steps, meter = iter(plan), clock(job.device)

    def take(number: int) -> float:
        """That many steps; the seconds that they waited."""
        waited = 0.0
        for step in islice(steps, number):
            before = time.perf_counter()
            samples = [next(stream) for _ in step]
            waited += time.perf_counter() - before
            run.step(samples, step)
            bar.update()
        return waited

    rates, shares = [], []
    with progress_bar(total=len(plan), desc="training", unit="step") as bar:
        take(_WARM_UPS)
        reset_peak_memory(job.device)
        for _ in range(job.repeats):
            before = meter.read()
            waited = take(length)
            seconds = meter.between(before, meter.read())
            rates.append(length * s.batch_size / seconds)
            shares.append(min(1.0, waited / seconds))
    return {
        "batch": s.batch_size,
        "steps": job.repeats * length,
        "workers": min(s.workers, num_cores()),
        "images_per_second": statistics.median(rates),
        "share_waiting_for_data": statistics.median(shares),
        "peak_memory_gib": peak_memory(job.device),
    }


def loader(job: Job) -> dict[str, Any]:
    """Training samples as one core makes them: a target and its references, augmented."""
    return made_by_one_core(job, training_set(job.settings, _build(job.settings).needs))


def stills(job: Job) -> dict[str, Any]:
    """The same of still images: a target and its references, with simulated motion."""
    s = job.settings
    frames = still_images(Path(s.data_root), s.pretrain_set)
    return made_by_one_core(job, stills_of(frames, s, _build(s).needs, augmentation_from(s)))


def made_by_one_core(job: Job, dataset: StillImages | VideoFrames) -> dict[str, Any]:
    """How many samples a second the loader gives on one core."""
    torch.set_num_threads(1)
    cv2.setNumThreads(1)
    s = job.settings
    batches = EpochBatches(dataset.set_sizes, s.batch_size, s.seed, s.balance_sets)
    length = math.ceil(_LOADER_SAMPLES / s.batch_size)
    keys = [step[0] for step in first_steps(batches, 1 + length * job.repeats)]
    stream = iter(make_loader(dataset, keys, 0, torch.device("cpu")))
    next(stream)

    def run() -> None:
        for _ in islice(stream, length):
            bar.update(s.batch_size)

    with progress_bar(desc="samples", unit="sample") as bar:
        seconds = median_of_runs(run, job.repeats)
    return {
        "references": s.num_references,
        "samples_per_second_per_core": length * s.batch_size / seconds,
    }


def flow(job: Job) -> dict[str, Any]:
    """Flow maps of a sequence, from reading its frames to writing the maps."""
    s = job.settings
    sequence = _short(_sequences_of("flow", s)[0])
    images = job.folder / "set" / sequence.name / "RGB"
    images.mkdir(parents=True)
    for frame in sequence.frames:
        shutil.copy(frame.image, images)
    estimators = {"dis": build_estimator("dis")}
    if job.device.type == "cuda":
        estimators["raft"] = build_estimator("raft", _random_raft(job.folder), str(job.device))
    rates = {}
    for name, estimator in estimators.items():

        def run(estimator=estimator) -> None:
            make_flow(job.folder, "set", estimator, overwrite=True)

        run()
        seconds = median_of_runs(run, job.repeats)
        rates[f"{name}_frames_per_second"] = len(sequence.frames) / seconds
    return rates


def scoring(job: Job) -> dict[str, Any]:
    """J and F of masks that are a little off, from reading them; on all cores."""
    s = job.settings
    sequence = _sequences_of("scoring", s)[0]
    annotated = tuple(frame for frame in sequence.frames if frame.mask is not None)
    sequence = _short(replace(sequence, frames=annotated))
    for frame in sequence.frames:
        mask = np.roll(read_mask(frame.mask), 3, axis=1).astype(np.uint8) * 255
        name = f"{frame_label(sequence.name, frame)}.png"
        write_picture(job.folder / sequence.name / name, mask)
    protocol = PROTOCOLS["davis2016"]

    def run() -> None:
        score_masks(job.folder, [sequence], protocol, progress=False)

    run()
    seconds = median_of_runs(run, job.repeats)
    return {"cores": num_cores(), "frames_per_second": len(sequence.frames) / seconds}


LINES: dict[str, Callable[[Job], dict[str, Any]]] = {
    "inference": inference,
    "training": training,
    "loader": loader,
    "stills": stills,
    "flow": flow,
    "scoring": scoring,
}


def build_segmenter(settings: Settings, device: torch.device) -> Segmenter:
    """The network of the settings with random weights, ready for test."""
    torch.manual_seed(settings.seed)
    return Segmenter(
        _build(settings).to(device).eval(),
        settings.image_size,
        recolour_flow=settings.recolour_flow,
        mixed_precision=settings.mixed_precision,
        compile=settings.compile,
    )


def training_set(settings: Settings, needs: Needs) -> VideoFrames | VideoWindows:
    """The samples of train.py."""
    root = Path(settings.data_root)
    sets = [video_sequences(root, name) for name in settings.train_sets]
    return videos_of(sets, settings, needs, augmentation_from(settings))


def first_steps(batches: EpochBatches, number: int) -> list[list[list[Key]]]:
    """The keys of a training's first steps, in as many epochs as it takes."""
    return list(islice(chain.from_iterable(map(batches.epoch, count())), number))


@dataclass
class HeldVideo:
    """A sequence in memory, as the segmenter takes it.

    Attributes:
        references: views of the reference frames.
        held: views of batches of equal size, which come in turn.
        frames: length of the sequence.
    """

    references: Views
    held: list[Views]
    frames: int

    def __len__(self) -> int:
        return self.frames

    def at(self, positions: Items[int]) -> Views:
        return self.references

    def __iter__(self) -> Iterator[Views]:
        size = _length(self.held[0])
        for number, first in enumerate(range(0, self.frames, size)):
            yield _first(self.held[number % len(self.held)], min(size, self.frames - first))


def run_sequence(segmenter: Segmenter, video: HeldVideo) -> None:
    """Segment a sequence: its references, then all frames."""
    for _ in one_ahead(segmenter.segment(video)):
        pass


def per_frame(
    segmenter: Segmenter, meter: Meter, references: Views, batch: Views, frames: int
) -> dict[str, Any]:
    """The cost of a frame of a sequence by part of the network: time, or operations.

    The references belong to the whole sequence, so a frame has only its share of their cost.

    Args:
        segmenter: the network.
        meter: of the cost.
        references: views of the reference frames.
        batch: views of some frames.
        frames: length of the sequence.
    """
    size = _length(batch)
    results = segmenter.segment(HeldVideo(references, [batch], 2 * size))
    # The first batch comes with the references.
    both, often = (by_part(segmenter.network, meter, lambda: next(results)()) for _ in range(2))
    return {part: (both[part] - often[part]) / frames + often[part] / size for part in often}


def by_part(network: Network, meter: Meter, run: Callable[[], object]) -> dict[str, Any]:
    """What ``run`` takes in each part of a network and in the rest of it.

    Args:
        network: one without ``parts()`` is one part, "network". The time of a module inside a
            module of another part counts for it alone.
        meter: of what is to be measured; it is read whenever a module begins or ends.
        run: uses the network.

    Returns:
        By part, also those that were not used; their sum is what ``run`` takes in all.
    """
    parts = network.parts()
    rest = REST if parts else "network"
    working = [rest]
    readings: list[tuple[str, Any]] = []  # from here on this part is at work

    def enter(part: str) -> Callable[..., None]:
        def hook(*_: object) -> None:
            working.append(part)
            readings.append((part, meter.read()))

        return hook

    def leave(*_: object) -> None:
        working.pop()
        readings.append((working[-1], meter.read()))

    handles = []
    for part, modules in parts.items():
        for module in modules:
            handles.append(module.register_forward_pre_hook(enter(part)))
            handles.append(module.register_forward_hook(leave))
    try:
        readings.append((rest, meter.read()))
        run()
        readings.append((rest, meter.read()))
    finally:
        for handle in handles:
            handle.remove()
    totals = dict.fromkeys([*parts, rest], 0)
    for (part, begin), (_, end) in pairwise(readings):
        totals[part] = totals[part] + meter.between(begin, end)
    return totals


def clock(device: torch.device) -> Meter:
    """Seconds: on a GPU between two points of what it has been told to do, which waits for none."""
    if device.type != "cuda":
        return Meter(time.perf_counter, lambda first, second: second - first)

    def read() -> torch.cuda.Event:
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event

    def between(first: torch.cuda.Event, second: torch.cuda.Event) -> float:
        second.synchronize()
        return first.elapsed_time(second) / 1e3

    return Meter(read, between)


@contextmanager
def operations() -> Iterator[Meter]:
    """Operations, and bytes that these read and write, while it is active: int64 (2,)."""
    # The counter takes apart what consists of other operations; the one below sees the result.
    flop = FlopCounterMode(display=False, custom_mapping=_ATTENTION)
    with _Traffic() as traffic, flop as counter:
        yield Meter(
            lambda: np.array([counter.get_total_flops(), traffic.bytes]),
            lambda first, second: second - first,
        )


def time_before(shown: TestFrames, indices: list[int]) -> float:
    """Seconds of a frame before the network: read, resize, make tensors; on the CPU."""
    start = time.perf_counter()
    default_collate([shown[index] for index in indices])
    return (time.perf_counter() - start) / len(indices)


def time_after(
    predictions: list[FramePrediction], frame: Frame, settings: Settings, folder: Path
) -> float:
    """Seconds of a frame after the network, as evaluate.py treats it; on the CPU.

    Args:
        predictions: of some frames.
        frame: whose size they all have.
        settings: threshold and stretching.
        folder: for the masks.
    """
    start = time.perf_counter()
    for number, prediction in enumerate(predictions):
        probability = prediction.probability(read_size(frame.image))
        labels = to_labels(probability, settings.threshold, settings.stretch_masks)
        write_mask(folder / f"{number:05d}.png", labels, prediction.num_objects)
    return (time.perf_counter() - start) / len(predictions)


def matrix_rate(device: torch.device, precision: torch.dtype, repeats: int) -> float:
    """Operations per second of the fastest of some large matrix products."""
    side = _MATRIX[device.type]
    a, b = (torch.randn(side, side, device=device).to(precision) for _ in range(2))
    return 2 * side**3 / _fastest(clock(device), lambda: a @ b, repeats)


def memory_rate(device: torch.device, repeats: int) -> float:
    """Bytes read and written per second in the fastest of some large copies."""
    source = torch.randn(_COPY[device.type], device=device)
    target = torch.empty_like(source)
    return 2 * source.nbytes / _fastest(clock(device), lambda: target.copy_(source), repeats)


def taken(meter: Meter, run: Callable[[], object]) -> Any:
    """What ``run`` takes."""
    before = meter.read()
    run()
    return meter.between(before, meter.read())


def median_of_runs(run: Callable[[], object], repeats: int) -> float:
    """Seconds that ``run`` takes on the CPU."""
    meter = clock(torch.device("cpu"))
    return statistics.median(taken(meter, run) for _ in range(repeats))


def reset_peak_memory(device: torch.device) -> None:
    """Forget what the GPU's memory has held so far; a process's own peak is for its whole life."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)


# Of each number in the table what it is called and its unit; shares are shown in per cent.
_ROWS = {
    "milliseconds_per_frame": ("time per frame", "ms"),
    "frames_per_second": ("rate", "frames/s"),
    "images_per_second": ("rate", "images/s"),
    "samples_per_second_per_core": ("rate of one core", "samples/s"),
    "dis_frames_per_second": ("DIS", "frames/s"),
    "raft_frames_per_second": ("RAFT", "frames/s"),
    "share_waiting_for_data": ("waiting for data", "%"),
    "gflop_per_frame": ("operations per frame", "GFLOP"),
    "matrix_peak_gflop_per_second": ("matrix peak", "GFLOP/s"),
    "share_of_matrix_peak": ("share of the matrix peak", "%"),
    "memory_gb_per_second": ("memory bandwidth", "GB/s"),
    "limit_milliseconds_per_frame": ("device's limit per frame", "ms"),
    "share_of_limit": ("limit's share of the time", "%"),
    "peak_memory_gib": ("peak memory", "GiB"),
}
_CONDITIONS = ("batch", "frames", "steps", "workers", "references", "cores")


def table(report: dict[str, Any]) -> str:
    """The numbers of a report, as its JSON has them, for people."""
    device, s = report["device"], report["settings"]
    side = s["IMAGE_SIZE"]
    place = f"{device['cores']} cores"
    if device["type"] == "cpu":
        place = f"{device['threads']} threads on {place}"
    head = [
        f"{device['name']}, {place}, torch {report['torch']}, {report['precision']}",
        f"{s['MODEL']} with {s['BACKBONE']}, {side} x {side}, {s['NUM_REFERENCES']} references; "
        f"data: {report['data']}; medians of {report['repeats']}",
    ]
    rows: list[tuple[str, str, str]] = []
    for line, numbers in report["lines"].items():
        under = ", ".join(f"{name} {numbers[name]}" for name in _CONDITIONS if name in numbers)
        first = f"{line}{' (' * bool(under)}{under}{')' * bool(under)}"
        for name, (label, unit) in _ROWS.items():
            if name in numbers:
                rows.append((first, label, f"{_figure(numbers[name], unit)} {unit}"))
                first = ""
        for part, own in numbers.get("parts", {}).items():
            values = [f"{_figure(own['share'], '%')} %"]
            values.append(f"{_figure(own['milliseconds_per_frame'], 'ms')} ms")
            if "gflop_per_frame" in own:
                values.append(f"{_figure(own['gflop_per_frame'], 'GFLOP')} GFLOP")
            rows.append(("", f"  {part}", ", ".join(values)))
    widths = [max((len(row[column]) for row in rows), default=0) for column in (0, 1)]
    body = [f"{a:<{widths[0]}}  {b:<{widths[1]}}  {c}".rstrip() for a, b, c in rows]
    return "\n".join([*head, "", *body])


def _figure(value: float, unit: str) -> str:
    """Three figures, as 1230, 12.3 and 0.0123; shares in per cent with one decimal."""
    if unit == "%":
        return f"{100 * value:.1f}"
    digits = 2 - math.floor(math.log10(abs(value))) if value else 0
    return f"{value:.{min(max(digits, 0), 6)}f}"


def _checked(settings: Settings, arguments: Any) -> Settings:
    """The settings with random weights, if all that is asked for can be done."""
    for flag, value, least in (
        ("--frames", arguments.frames, 1),
        ("--repeats", arguments.repeats, 1),
        ("--frame-size", min(arguments.frame_size), MIN_SIZE),
    ):
        if value < least:
            raise SettingsError(f"{flag} {value}: expected {least} or above")
    if len(settings.gpu.split(",")) > 1:
        raise SettingsError(f"--gpu {settings.gpu}: one device is measured; name one GPU")
    if settings.batch_size % settings.accumulation_steps:
        raise SettingsError(
            f"BATCH_SIZE = {settings.batch_size} is no multiple of ACCUMULATION_STEPS = "
            f"{settings.accumulation_steps}; change one of the two"
        )
    wanted = {"PRETRAINED_BACKBONE": settings.pretrained_backbone, "BACKBONE_WEIGHTS": True}
    for name in sorted(arguments.given & wanted.keys()):
        if wanted[name]:
            flag = "--" + name.lower().replace("_", "-")
            raise SettingsError(f"{flag}: weights are random here; leave it out")
    if arguments.json is not None:
        if not arguments.json.absolute().parent.is_dir():
            raise SettingsError(f"--json {arguments.json}: its folder is not there; make it first")
        if arguments.json.is_dir():
            raise SettingsError(f"--json {arguments.json} is a folder; expected a file's name")
    return settings.replace(pretrained_backbone=False, backbone_weights=None)


def _measure(line: str, job: Job, sender: Connection) -> None:
    """What the process of a line does."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the one that has started it
    signal.signal(signal.SIGTERM, lambda *_: sys.exit())  # which tells this one, to end in order
    start_process("" if job.device.type == "cpu" else job.settings.gpu)
    try:
        result = LINES[line](job)
    except USER_ERRORS as error:
        result = error
    except SystemExit:
        return  # and so let go of the loader, which ends its processes
    sender.send(result)


def _precision(settings: Settings, device: torch.device) -> torch.dtype:
    """What matrices are multiplied in."""
    mixed = settings.mixed_precision and device.type == "cuda"
    return torch.bfloat16 if mixed else torch.float32


def _build(settings: Settings) -> Network:
    return build_model(settings.model, **network_arguments(settings))


def _loaded(shown: TestFrames, indices: list[int], device: torch.device) -> Views:
    """Frames as the loader of evaluate.py hands them over."""
    views = default_collate([shown[index] for index in indices])
    if device.type != "cuda":
        return views
    return [{name: tensor.pin_memory() for name, tensor in view.items()} for view in views]


def _first(views: Views, number: int) -> Views:
    """The views of the first frames of a batch."""
    return [{name: tensor[:number] for name, tensor in view.items()} for view in views]


def _length(views: Views) -> int:
    return len(views[0]["image"])


def _sequences_of(line: str, settings: Settings) -> list[Sequence]:
    """What a line of the table is measured with, if the data root has all of it."""
    root = Path(settings.data_root)
    if line in ("training", "loader"):
        return [one for name in settings.train_sets for one in video_sequences(root, name)]
    masks = "some" if line == "scoring" else "none"
    return video_sequences(root, settings.val_set, masks=masks, flow=line == "inference")


def _check_data(line: str, settings: Settings) -> None:
    """Raise DatasetError unless the data root has what a line of the table is measured with."""
    if line == "stills":
        still_images(Path(settings.data_root), settings.pretrain_set)
    else:
        _sequences_of(line, settings)


def _short(sequence: Sequence) -> Sequence:
    return replace(sequence, frames=sequence.frames[:_DISTINCT])


def _fastest(meter: Meter, run: Callable[[], object], repeats: int) -> float:
    """Seconds of the fastest of some runs: whatever disturbs them makes them slower only."""
    run()
    return min(taken(meter, run) for _ in range(repeats))


def _random_raft(folder: Path) -> Path:
    """A file of RAFT's weights that needs no download: its time does not depend on them."""
    from torchvision.models.optical_flow import raft_large

    torch.manual_seed(0)
    path = folder / "raft.pth"
    torch.save(raft_large().state_dict(), path)
    return path


if __name__ == "__main__":
    run_script(main)
