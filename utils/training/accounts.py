"""What a run counts and says: losses, bad steps, unreadable samples; its log and TensorBoard."""

import math
import resource
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import NoReturn

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset
from torch.utils.tensorboard import SummaryWriter
from torch.utils.tensorboard.summary import hparams

from datasets.files import printable
from datasets.problems import DatasetError
from datasets.sampling import Key
from utils.processes import Process, gather
from utils.settings import Settings
from utils.training.checkpoints import LAST, PREVIOUS
from utils.training.run_folder import LOG, RunLog

LOG_INTERVAL = 10  # steps between two entries in TensorBoard
_NAMED = 24  # samples of a bad step that are named
_MUCH_WAITING = 0.1  # an epoch that waits for data for a larger share of its time says so


class TrainingError(RuntimeError):
    """Training cannot go on; the message says why, and what is left."""


@dataclass
class Validation:
    """Result of one validation, the same in every process.

    Attributes:
        score: mean J in [0, 1], by which the best checkpoint is chosen.
        parts: further scores by name, for the log.
        pictures: for TensorBoard, by name, uint8 RGB (H, W, 3).
        frames: how many were segmented here, and ``of`` how many in all.
    """

    score: float
    parts: dict[str, float] = field(default_factory=dict)
    pictures: dict[str, np.ndarray] = field(default_factory=dict)
    frames: int = 0
    of: int = 0


@dataclass
class Progress:
    """Where training stands. A checkpoint holds it beside the weights and the optimizer.

    Attributes:
        epoch: epochs that are done, with their validation.
        batch: steps of the running epoch that are done.
        step: steps that are done in all.
        best: highest validation score.
        bad_steps: steps that were skipped for their numbers, in all; ``bad_in_row`` at the end.
        bad_files: samples of the running epoch that could not be read.
        good_steps: steps of the running epoch that were not skipped, and ``sums`` of their losses.
    """

    epoch: int = 0
    batch: int = 0
    step: int = 0
    best: float = -1.0
    bad_steps: int = 0
    bad_in_row: int = 0
    bad_files: int = 0
    good_steps: int = 0
    sums: dict[str, float] = field(default_factory=dict)


@dataclass
class Step:
    """A step that the device has been given; its numbers may still be on their way.

    Attributes:
        number: of the step, from 1.
        rate: learning rate.
        names: of the losses.
        numbers: waits for the losses over all processes, the norm of the gradient before clipping,
            how many processes got SIGINT or SIGTERM or want to save, and how many samples had
            faults.
        keys: of the samples in its parts, to name them.
        faults: of samples that could not be read in this process.
    """

    number: int
    rate: float
    names: list[str]
    numbers: Callable[[], list[Tensor]]
    keys: list[list[Key]]
    faults: list[str]


@dataclass
class Pace:
    """How fast the running epoch goes, since its first step in this run.

    Attributes:
        started: when, by ``time.perf_counter``.
        waited: seconds spent waiting for data.
        images: that were computed.
        losses: of the last step that is finished, by name, over all processes.
        norm: of its gradient, before clipping.
    """

    started: float = field(default_factory=time.perf_counter)
    waited: float = 0.0
    images: int = 0
    losses: dict[str, float] = field(default_factory=dict)
    norm: float = math.nan

    def in_words(self, workers: int) -> str:
        """Images per second since the epoch began, and the share of waiting if it is large."""
        seconds = time.perf_counter() - self.started
        line, waiting = f"{self.images / seconds:.1f} images/s", self.waited / seconds
        if waiting > _MUCH_WAITING:
            line += f" ({waiting:.0%} of the time waiting for data: WORKERS = {workers})"
        return line


class Accounts:
    """Counts a run's steps and writes its log and its TensorBoard events.

    Attributes:
        progress: where training stands.
        pace: of the running epoch.
        stop: the signal that one of the processes has got, as of the last finished step.
        save: whether a process wants to save, likewise.
        saved_step: number of steps in the last checkpoint; 0 for none.
    """

    def __init__(
        self,
        settings: Settings,
        dataset: Dataset,
        run_dir: Path,
        process: Process,
        steps_per_epoch: int,
    ):
        self.settings = settings
        self.dataset = dataset
        self.run_dir = run_dir
        self.process = process
        self.steps_per_epoch = steps_per_epoch
        self.progress = Progress()
        self.pace = Pace()
        self.stop: signal.Signals | None = None
        self.save = False
        self.saved_step = 0
        self.log = RunLog(run_dir if process.is_main else None)
        self.writer: SummaryWriter | None = None

    def finish(self, step: Step) -> None:
        """Read the numbers of a step and count it.

        Raises:
            TrainingError: too many steps in a row had numbers that are not finite.
            DatasetError: too many samples could not be read.
        """
        p, pace = self.progress, self.pace
        numbers = step.numbers()[0].tolist()
        *values, norm, interrupted, terminated, due, num_faults = numbers
        terms = dict(zip(step.names, values))
        pace.images += self.settings.batch_size
        pace.losses, pace.norm = terms, norm
        if all(map(math.isfinite, (*values, norm))):
            p.bad_in_row = 0
            p.good_steps += 1
            for name, value in terms.items():
                p.sums[name] = p.sums.get(name, 0.0) + value
        else:
            self._count_bad(step, terms["total"], norm)
        if num_faults:
            self._count_faults(step, int(num_faults))
        if terminated or interrupted:
            self.stop = signal.SIGTERM if terminated else signal.SIGINT
        self.save = bool(due)
        if self.writer and (step.number == 1 or step.number % LOG_INTERVAL == 0):
            seconds = time.perf_counter() - pace.started
            for name, value in {
                **{f"loss/{name}": value for name, value in terms.items()},
                "learning_rate": step.rate,
                "gradient_norm": norm,
                "images_per_second": pace.images / seconds,
                "share_of_time_waiting_for_data": pace.waited / seconds,
                "peak_memory_gib": peak_memory(self.process.device),
                "bad_steps": p.bad_steps,
            }.items():
                self.writer.add_scalar(name, value, step.number)

    def finish_epoch(
        self, validation: Validation | None, is_best: bool, pace: str, rate: float
    ) -> None:
        """The epoch's line and its entries in TensorBoard; then the next epoch's counts begin."""
        p, s = self.progress, self.settings
        means = {name: value / max(1, p.good_steps) for name, value in p.sums.items()}
        p.epoch += 1
        p.batch = p.bad_files = p.good_steps = 0
        p.sums = {}
        if not self.process.is_main:
            return
        terms = ", ".join(f"{name} {value:.3f}" for name, value in means.items() if name != "total")
        line = f"epoch {p.epoch}/{s.epochs}  step {p.step}  "
        line += f"loss {means.get('total', math.nan):.3f} ({terms})  lr {rate:.1e}  {pace}"
        for name, value in means.items():
            self.writer.add_scalar(f"epoch/{name}", value, p.step)
        if validation is not None:
            line += f"  validation J {validation.score:.4f}{' (best)' if is_best else ''}"
            self.writer.add_scalar("validation/J", validation.score, p.step)
            for name, value in validation.parts.items():
                self.writer.add_scalar(printable(f"validation/{name}"), value, p.step)
            for name, picture in validation.pictures.items():
                self.writer.add_image(printable(name), picture, p.step, dataformats="HWC")
        if p.bad_steps:
            line += f"  {p.bad_steps} steps skipped"
        self.log(line)

    def finish_run(self) -> None:
        """The settings with the final score, for TensorBoard's table of runs."""
        settings = {
            name: value if isinstance(value, int | float) else printable(str(value))
            for name, value in self.settings.as_dict().items()
        }
        for summary in hparams(settings, {"validation/best_J": self.progress.best}):
            self.writer.file_writer.add_summary(summary)
        self.writer.add_scalar("validation/best_J", self.progress.best, self.progress.step)

    def give_up(self, why: str) -> NoReturn:
        """Raise TrainingError, with what may help and what is left."""
        left = "nothing was saved before."
        if self.saved_step:
            left = (
                f"{self.run_dir / LAST} is of step {self.saved_step}. If its weights are "
                f"spoilt too, remove it: --resume then goes on from {PREVIOUS}, the one before."
            )
        raise TrainingError(
            f"{why}. A lower LEARNING_RATE, CLIP_GRADIENT, or MIXED_PRECISION = False may help; "
            f"{left}"
        )

    def _count_bad(self, step: Step, loss: float, norm: float) -> None:
        """Say that a step with bad numbers was left out; give up if there were too many."""
        p, s = self.progress, self.settings
        p.bad_steps += 1
        p.bad_in_row += 1
        what, value = ("gradient", norm) if math.isfinite(loss) else ("loss", loss)
        names = [self.dataset.name(index) for part in step.keys for _, index, *_ in part]
        names = [name for one in gather(names, self.process) for name in one]
        more = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
        self.log(
            f"epoch {p.epoch + 1}, step {step.number}: the {what} is {value}; step skipped, "
            f"{p.bad_steps} in all. Samples: {', '.join(names[:_NAMED])}{more}"
        )
        if p.bad_in_row > s.max_bad_steps:
            self.give_up(
                f"{p.bad_in_row} steps in a row had a loss or gradient that is not finite "
                f"(MAX_BAD_STEPS = {s.max_bad_steps}); {self.run_dir / LOG} names their samples"
            )

    def _count_faults(self, step: Step, number: int) -> None:
        """Note samples that could not be read and were replaced; stop if there are too many."""
        p, s = self.progress, self.settings
        faults = [fault for one in gather(step.faults, self.process) for fault in one]
        for fault in faults:
            self.log(f"epoch {p.epoch + 1}, step {step.number}: {fault} (another sample taken)")
        p.bad_files += number
        if p.bad_files > s.bad_file_share * self.steps_per_epoch * s.batch_size:
            raise DatasetError(
                f"{p.bad_files} samples of epoch {p.epoch + 1} could not be read, more than "
                f"BAD_FILE_SHARE = {s.bad_file_share} of it; the last: {faults[-1]}"
            )


def peak_memory(device: torch.device) -> float:
    """Largest memory so far in GiB: of tensors on the GPU, or of this process on the CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**30
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
        # A process inherits ru_maxrss from the one that has started it, but not this.
        return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM")) / 2**20
    except (OSError, StopIteration):
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20  # Linux counts KiB
