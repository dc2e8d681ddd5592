"""Speed and memory of a network on this machine: segmenting and training.

``python -m utils.benchmark --image-size 512 --json numbers.json``, with any setting of config.py as
a flag; ``--help`` lists them. Flags after ``--beside`` change the settings of a second column, as
in ``--beside --backbone resnet101``. Weights are random. Training samples come from synthetic
videos, unless ``--data-root`` is given. Every line of the table is measured in its own process.

- Inference is a whole video, from images in memory to scores in memory: its references are encoded
  once, then its frames are segmented in batches. A multiply-add counts as two operations.
- Training is the step of train.py: samples, forward pass, loss, backward pass, Adam.
- Peak memory is that of a GPU's tensors or, on the CPU, that of the whole process.
"""

import argparse
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial
from itertools import chain, cycle, islice, pairwise
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

import config
from datasets.files import write_text
from datasets.flow.estimators import build_estimator
from datasets.flow.making import make_flow
from datasets.progress import progress_bar
from datasets.synthetic import write_synthetic
from models import build_model, model_class
from models.interface import Network
from precision import precision
from utils.evaluation.output_folder import check_output
from utils.evaluation.segmenting import Segmenter, Views
from utils.processes import Process, gpu_indices, num_cores, start_process
from utils.scripts import run_script
from utils.settings import Settings, SettingsError, parse_settings, positive, settings_parser
from utils.training.accounts import peak_memory
from utils.training.record import git_commit
from utils.training.samples import (
    augmentation_from,
    batches_of,
    input_size,
    make_loader,
    network_arguments,
    training_sequences,
    training_stills,
    videos_of,
)
from utils.training.step import Trainer
from utils.transfer import one_ahead

REST = "rest of the network"  # time that belongs to none of the network's parts
_LATE = 10**6  # number of the first step, at which no part of a network is frozen any more
_WARM_UPS = 2  # runs whose time does not count
_CPU_BATCH = 2  # samples of a training step on the CPU, unless BATCH_SIZE is given


@dataclass(frozen=True)
class Job:
    """Settings of network, data and training, and the conditions of the measurement."""

    settings: Settings
    device: torch.device
    frames: int
    repeats: int


def main() -> None:
    """Read the settings, measure line by line, print the table."""
    parser = settings_parser(config, __doc__.split("\n")[0])
    add = parser.add_argument
    lines = f"lines of the table: {', '.join(LINES)} (default: all)"
    add("--only", nargs="+", choices=LINES, metavar="LINE", help=lines)
    add("--json", type=Path, metavar="FILE", help="also write all numbers and conditions")
    length = "length of the segmented video (default: 40)"
    add("--frames", type=positive, default=40, metavar="N", help=length)
    runs = "timed runs; the result is their median (default: 3)"
    add("--repeats", type=positive, default=3, metavar="N", help=runs)
    second = "flags after this one change the settings of a second column"
    add("--beside", action="store_true", help=second)
    argv = sys.argv[1:]
    cut = argv.index("--beside") if "--beside" in argv else len(argv)
    columns = [parse_settings(parser, config, argv[:cut])]
    if argv[cut:]:
        columns.append(parse_settings(parser, config, argv[:cut] + argv[cut + 1 :]))
    arguments = columns[-1][1]  # which has the flags on both sides
    if arguments.json is not None:
        check_output(arguments.json.parent)
        if arguments.json.is_dir():
            raise SettingsError(f"--json {arguments.json} is a folder; name a file")
    with tempfile.TemporaryDirectory() as folder:
        jobs = [job_of(*column, Path(folder) / "data") for column in columns]
        reports = [report(job, arguments.only or [*LINES]) for job in jobs]
    print(table(reports))
    if arguments.json is not None:
        write_text(arguments.json, json.dumps(reports, indent=1) + "\n")


def job_of(settings: Settings, arguments: argparse.Namespace, videos: Path) -> Job:
    """The job of one column; makes synthetic ``videos`` unless DATA_ROOT is given."""
    if "," in settings.gpu:
        raise SettingsError(f"--gpu {settings.gpu}: the benchmark measures one GPU; name one")
    indices = gpu_indices(settings.gpu)
    device = torch.device("cuda", indices[0]) if indices else torch.device("cpu")
    if device.type == "cpu" and "BATCH_SIZE" not in arguments.given:
        settings = settings.replace(batch_size=_CPU_BATCH * settings.accumulation_steps)
    if "DATA_ROOT" not in arguments.given:
        if unread := sorted(arguments.given & {"TRAIN_SETS", "PRETRAIN_SET"}):
            raise SettingsError(f"{', '.join(unread)}: give --data-root, too")
        sets = {"train_sets": ["DAVIS_train"], "pretrain_set": "DUTS_train"}
        settings = settings.replace(data_root=str(videos), **sets)
        if not videos.exists():
            # The size of DAVIS's frames.
            write_synthetic(videos, 0, 1, 1, 1, frames=8, height=480, width=854)
            make_flow(videos, "DAVIS_train", build_estimator("dis"))
    return Job(settings, device, arguments.frames, arguments.repeats)


def report(job: Job, lines: list[str]) -> dict[str, Any]:
    """Measure one column of the table: conditions and numbers."""
    instructions = torch.backends.cpu.get_cpu_capability()
    cpu = f"CPU ({instructions}), {torch.get_num_threads()} threads on {num_cores()} cores"
    gpu = job.device.type == "cuda"
    bar = progress_bar(lines, desc="benchmark", unit="line")
    return {
        "device": torch.cuda.get_device_name(job.device) if gpu else cpu,
        "precision": precision(job.device, job.settings.mixed_precision),
        "torch": torch.__version__,
        "commit": git_commit(Path(__file__).parent),
        "settings": job.settings.as_dict(),
        "repeats": job.repeats,
        "lines": {line: in_own_process(line, job) for line in bar},
    }


def in_own_process(line: str, job: Job) -> dict[str, float]:
    """Measure a line of the table in a new process, which has a peak memory of its own."""
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        return pool.submit(_measure, line, job).result()


def _measure(line: str, job: Job) -> dict[str, float]:
    start_process("" if job.device.type == "cpu" else job.settings.gpu)
    return LINES[line](job)


def inference(job: Job) -> dict[str, float]:
    """Segmenting of a video, and the time of the network's parts."""
    s, device = job.settings, job.device
    segmenter = segmenter_of(s, device)
    plain = segmenter_of(s.replace(compile=False), device) if s.compile else segmenter
    batch = min(s.eval_batch_size, job.frames)
    video = HeldVideo(s, segmenter.network, job.frames)
    for _ in range(_WARM_UPS):
        run(segmenter, HeldVideo(s, segmenter.network, batch))
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    times = [timed(device, lambda: run(segmenter, video)) for _ in range(job.repeats)]
    memory = peak_memory(device)
    # Not every version of torch counts fused attention.
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        run(plain, video)
    parts = time_by_part(plain, video)  # torch.compile would hide the parts
    seconds = statistics.median(times) / job.frames
    return {
        "frames in a batch": batch,
        "frames of the video": job.frames,
        "ms per frame": 1e3 * seconds,
        "frames per second": 1 / seconds,
        "GFLOP per frame": counter.get_total_flops() / job.frames / 1e9,
        "million parameters": sum(p.numel() for p in plain.network.parameters()) / 1e6,
        "GiB of memory at most": memory,
        **{f"% in {part}": 100 * time / sum(parts.values()) for part, time in parts.items()},
    }


def training(job: Job) -> dict[str, float]:
    """Steps of train.py."""
    s, device = job.settings, job.device
    torch.manual_seed(s.seed)
    network, process = build(s), Process(device)
    sets = training_sequences(s, network.needs)
    stills = training_stills(s, network.needs)
    dataset = videos_of(sets, s, network.needs, augmentation_from(s), stills)
    batches = batches_of(dataset, s, process)
    trainer = Trainer(network, s, process, s.epochs * len(batches))
    trainer.network.train()
    trainer.steps = _LATE
    # On a GPU a run is longer than the stock of the loader, two batches for each of its processes.
    workers = min(s.workers, num_cores())
    length = 1 + 2 * workers if device.type == "cuda" else 1
    plan = list(islice(cycle(batches.epoch(0)), _WARM_UPS + job.repeats * length))
    samples = iter(make_loader(dataset, chain(*plan), s.workers, device))
    steps, waited = iter(plan), 0.0

    def take(number: int) -> None:
        nonlocal waited
        for keys in islice(steps, number):
            before = time.perf_counter()
            parts = [next(samples) for _ in keys]
            waited += time.perf_counter() - before
            trainer.step(parts)

    take(_WARM_UPS)
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    waited = 0.0
    times = [timed(device, lambda: take(length)) for _ in range(job.repeats)]
    seconds = statistics.median(times) / length
    return {
        "samples in a batch": s.batch_size,
        "steps": job.repeats * length,
        "loader processes": workers,
        "seconds per step": seconds,
        "images per second": s.batch_size / seconds,
        "% waiting for data": 100 * waited / sum(times),
        "GiB of memory at most": peak_memory(device),
    }


LINES = {"inference": inference, "training": training}


def build(settings: Settings) -> Network:
    """The network of the settings with random weights."""
    torch.manual_seed(settings.seed)
    random = model_class(settings.model).random_weights
    return build_model(settings.model, **network_arguments(settings, **random))


def segmenter_of(settings: Settings, device: torch.device) -> Segmenter:
    """The network of the settings, for inference."""
    return Segmenter(
        build(settings).to(device).eval().requires_grad_(False),  # or torch's counter fails
        input_size(settings.image_size, settings.image_width),
        mixed_precision=settings.mixed_precision,
        compile=settings.compile,
    )


class HeldVideo:
    """A video of random images in memory, as the segmenter takes it; one batch that repeats."""

    def __init__(self, settings: Settings, network: Network, frames: int):
        self.frames, self.batch = frames, min(settings.eval_batch_size, frames)
        shape = 3, settings.image_size, settings.image_width or settings.image_size
        kinds = ("image", "flow") if network.needs.flow else ("image",)
        held = {kind: torch.randint(256, (self.batch, *shape), dtype=torch.uint8) for kind in kinds}
        pinned = next(network.parameters()).is_cuda
        self.images = {kind: x.pin_memory() if pinned else x for kind, x in held.items()}

    def __len__(self) -> int:
        return self.frames

    def at(self, positions: Sequence[int]) -> Views:
        inside = [position % self.batch for position in positions]
        return [{kind: images[inside] for kind, images in self.images.items()}]

    def __iter__(self) -> Iterator[Views]:
        for first in range(0, self.frames, self.batch):
            left = self.frames - first
            yield [{kind: images[:left] for kind, images in self.images.items()}]


def run(segmenter: Segmenter, video: HeldVideo) -> None:
    """Segment a video, as evaluate.py does."""
    for _ in one_ahead(segmenter.segment(video)):
        pass


def timed(device: torch.device, work: Callable[[], object]) -> float:
    """Seconds that ``work`` takes."""
    before = _now(device)
    work()
    return _now(device) - before


def time_by_part(segmenter: Segmenter, video: HeldVideo) -> dict[str, float]:
    """Seconds of each of ``Network.parts()`` and of the rest of the network for a video.

    The time of a module inside a module of another part counts for the inner one alone.
    """
    network, device = segmenter.network, segmenter.device
    working, readings = [REST], []  # readings: the part that works from a moment on

    def note(part: str) -> None:
        readings.append((part, _now(device)))

    def enter(part: str, *_: object) -> None:
        working.append(part)
        note(part)

    def leave(*_: object) -> None:
        working.pop()
        note(working[-1])

    parts, hooks = network.parts(), []
    for part, module in ((name, module) for name in parts for module in parts[name]):
        hooks.append(module.register_forward_pre_hook(partial(enter, part)))
        hooks.append(module.register_forward_hook(leave))
    note(REST)
    run(segmenter, video)
    note(REST)
    for hook in hooks:
        hook.remove()
    totals = dict.fromkeys([*parts, REST], 0.0)
    for (part, first), (_, last) in pairwise(readings):
        totals[part] += last - first
    return totals


def _now(device: torch.device) -> float:
    """The present moment in seconds, when a GPU has done its work so far."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


def table(reports: list[dict[str, Any]]) -> str:
    """The numbers of one report, or of two side by side, as text."""
    first, rows = reports[0], []
    head = f"torch {first['torch']}\n"
    for one in reports:
        s = one["settings"]
        size = f"{s['IMAGE_SIZE']} x {s.get('IMAGE_WIDTH') or s['IMAGE_SIZE']}"
        network = f"{s['MODEL']} with {s['BACKBONE']}, {size}, N_R = {s['NUM_REFERENCES']}"
        head += f"{network}, {one['precision']}, medians of {one['repeats']}, {one['device']}\n"
    for line in first["lines"]:
        columns = [one["lines"][line] for one in reports]
        rows.append([line, *("" for _ in columns)])
        for name in dict.fromkeys(name for one in columns for name in one):
            figures = (f"{one[name]:.4g}" if name in one else "" for one in columns)
            rows.append([f"  {name}", *figures])
    widths = [max(map(len, column)) for column in zip(*rows)]
    body = ("  ".join(cell.ljust(w) for cell, w in zip(row, widths)).rstrip() for row in rows)
    return "\n".join([head, *body])


if __name__ == "__main__":
    run_script(main)
