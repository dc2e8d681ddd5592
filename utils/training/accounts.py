"""Counts of a run and their reports: losses and bad steps, log and TensorBoard."""

import math
import re
import resource
import signal
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import NoReturn

import numpy as np
import torch
from torch.utils.data import Dataset
from torch.utils.tensorboard import SummaryWriter
from tqdm import tqdm

from datasets.files import printable
from datasets.sampling import Key
from errors import UserError
from utils.processes import Process, gather
from utils.settings import Settings
from utils.training.checkpoints import LAST
from utils.training.run_folder import LOG
from utils.training.step import Step

MAY_HELP = "A lower LEARNING_RATE, CLIP_GRADIENT, or MIXED_PRECISION = False may help"
LOG_INTERVAL = 10  # steps between two entries in TensorBoard


class TrainingError(UserError):
    """Training cannot continue; the message says why, and which checkpoint there is."""


@dataclass
class Validation:
    """Result of one validation, the same in every process."""

    score: float | None  # mean J in [0, 1], by which best.pt is chosen; None without masks
    parts: dict[str, float] = field(default_factory=dict)  # further scores by name
    pictures: dict[str, np.ndarray] = field(default_factory=dict)  # uint8 RGB (H, W, 3) by name
    frames: int = 0  # number of frames that were segmented
    of: int = 0  # number of frames of a whole validation
    notes: list[str] = field(default_factory=list)  # for the log


@dataclass
class Progress:
    """Where training stands. A checkpoint holds it beside the weights and the optimizer."""

    epoch: int = 0  # epochs that are done, with their validation
    batch: int = 0  # steps of the running epoch that are done
    step: int = 0  # steps that are done in all
    best: float = -1.0  # highest validation score
    bad_steps: int = 0  # steps in all that were skipped for their numbers
    bad_in_row: int = 0  # such steps in a row, up to now
    good_steps: int = 0  # steps of the running epoch that were not skipped
    sums: dict[str, float] = field(default_factory=dict)  # of their losses, by name


@dataclass
class Pace:
    """How fast the running epoch goes, since its first step in this process."""

    started: float = 0.0  # by ``time.perf_counter``
    waited: float = 0.0  # seconds of waiting for data
    images: int = 0
    losses: dict[str, float] = field(default_factory=dict)  # of the last finished step

    def in_words(self, workers: int) -> str:
        """Images per second, and the share of the time that was waiting for data."""
        seconds = time.perf_counter() - self.started
        waiting = f"{self.waited / seconds:.0%} waiting for data with WORKERS = {workers}"
        return f"{self.images / seconds:.1f} images/s ({waiting})"


@dataclass
class Accounts:
    """Counts a run's steps and writes its log and its TensorBoard events."""

    settings: Settings
    dataset: Dataset
    run_dir: Path
    process: Process
    progress: Progress = field(default_factory=Progress)
    pace: Pace = field(default_factory=Pace)  # of the running epoch
    stop: signal.Signals | None = None  # a signal that a process got before the last finished step
    save: bool = False  # whether a process wanted to save then
    saved_step: int = 0  # number of steps in the last checkpoint; 0 for none
    writer: SummaryWriter | None = None  # of TensorBoard's events, in the main process

    def log(self, line: str) -> None:
        """In the main process, print a line above any progress bar and append it to ``log.txt``."""
        if not self.process.is_main:
            return
        tqdm.write(line)
        sys.stdout.flush()  # in a file, lines would wait, and be lost with the process
        path = self.run_dir / LOG
        try:
            with path.open("a", encoding="utf-8", errors="surrogateescape") as file:
                file.write(f"{line}\n")
        except OSError as error:  # a full disk; the next checkpoint will say so, if it lasts
            tqdm.write(f"{path} could not be written: {error.strerror}")

    def finish(self, step: Step, keys: list[list[Key]]) -> None:
        """Read the numbers of a step and count it.

        Args:
            step: its requests are SIGINT, SIGTERM, and saving.
            keys: of its samples, by part.

        Raises:
            TrainingError: too many steps in a row had numbers that are not finite.
        """
        p = self.progress
        losses, norm, (interrupted, terminated, due) = step.read()
        self.pace.images += self.settings.batch_size
        self.pace.losses = losses
        if step.is_finite():
            p.bad_in_row = 0
            p.good_steps += 1
            for name, value in losses.items():
                p.sums[name] = p.sums.get(name, 0.0) + value
        else:
            self._count_bad(step.number, keys, losses["total"], norm)
        if terminated or interrupted:
            self.stop = signal.SIGTERM if terminated else signal.SIGINT
        self.save = bool(due)
        if self.writer and (step.number == 1 or step.number % LOG_INTERVAL == 0):
            self._write_events(step, norm)

    def finish_epoch(
        self, validation: Validation | None, is_best: bool, pace: str, rate: float
    ) -> None:
        """Log the epoch, then begin the next epoch's counts."""
        p, s = self.progress, self.settings
        means = {name: value / max(1, p.good_steps) for name, value in p.sums.items()}
        p.epoch += 1
        p.batch = p.good_steps = 0
        p.sums = {}
        if not self.process.is_main:
            return
        terms = ", ".join(f"{name} {value:.3f}" for name, value in means.items() if name != "total")
        line = f"epoch {p.epoch}/{s.epochs}  step {p.step}  "
        line += f"loss {means.get('total', math.nan):.3f} ({terms})  lr {rate:.1e}  {pace}"
        for name, value in means.items():
            self.writer.add_scalar(f"epoch/{name}", value, p.step)
        if validation is not None:
            numbers, score = validation.parts, validation.score
            if score is not None:
                line += f"  validation J {score:.4f}{' (best)' if is_best else ''}"
                numbers = {"J": score, **numbers}
            line += "".join(f"  {note}" for note in validation.notes)
            for name, value in numbers.items():
                self.writer.add_scalar(printable(f"validation/{name}"), value, p.step)
            for name, picture in validation.pictures.items():
                self.writer.add_image(printable(name), picture, p.step, dataformats="HWC")
        if p.bad_steps:
            line += f"  {p.bad_steps} steps skipped"
        self.log(line)

    def give_up(self, why: str) -> NoReturn:
        """Raise TrainingError, with advice and the last checkpoint."""
        left = "nothing was saved before"
        if self.saved_step:
            left = f"{self.run_dir / LAST} is of step {self.saved_step}"
        raise TrainingError(f"{why}. {MAY_HELP}; {left}.")

    def _write_events(self, step: Step, norm: float) -> None:
        pace = self.pace
        seconds = time.perf_counter() - pace.started
        for name, value in {
            **{f"loss/{name}": value for name, value in pace.losses.items()},
            "learning_rate": step.rate,
            "gradient_norm": norm,
            "images_per_second": pace.images / seconds,
            "share_of_time_waiting_for_data": pace.waited / seconds,
            "peak_memory_gib": peak_memory(self.process.device),
            "bad_steps": self.progress.bad_steps,
        }.items():
            self.writer.add_scalar(name, value, step.number)

    def _count_bad(self, number: int, keys: list[list[Key]], loss: float, norm: float) -> None:
        """Log a step that was left out; give up if there were too many in a row."""
        p, s = self.progress, self.settings
        p.bad_steps += 1
        p.bad_in_row += 1
        what, value = ("gradient", norm) if math.isfinite(loss) else ("loss", loss)
        names = [self.dataset.name(index) for part in keys for _, index, *_ in part]
        names = [name for one in gather(names, self.process) for name in one]
        self.log(
            f"epoch {p.epoch + 1}, step {number}: the {what} is {value}; step skipped, "
            f"{p.bad_steps} in all. Samples: {', '.join(names)}"
        )
        if p.bad_in_row > s.max_bad_steps:
            self.give_up(
                f"{p.bad_in_row} steps in a row had a loss or gradient that is not finite "
                f"(MAX_BAD_STEPS = {s.max_bad_steps}); {self.run_dir / LOG} names their samples"
            )


def peak_memory(device: torch.device) -> float:
    """Largest memory so far in GiB: of tensors on the GPU, or of this process on the CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**30
    status = Path("/proc/self/status")
    if not status.exists():
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    # A process inherits ru_maxrss from the one that has started it, but not this.
    return int(re.search(r"VmHWM:\s+(\d+) kB", status.read_text())[1]) / 2**20
