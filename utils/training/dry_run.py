"""A dry run: two steps, a short validation, and an estimate of the time of a whole run."""

import math
import time
from collections.abc import Callable
from datetime import timedelta

from torch import nn
from torch.utils.data import Dataset

from datasets.sampling import EpochBatches
from models.interface import Network
from utils.processes import num_cores
from utils.training.accounts import MAY_HELP, TrainingError, Validation, peak_memory
from utils.training.samples import make_loader
from utils.training.step import Trainer


def try_out(
    trainer: Trainer,
    dataset: Dataset,
    batches: EpochBatches,
    validate: Callable[[Network, bool], Validation],
) -> None:
    """Try the steps and the validation of a run, and print the estimate; nothing is written.

    Of several sizes the largest is tried, which takes the most memory.

    Raises:
        TrainingError: numbers that are not finite.
    """
    s, process = trainer.settings, trainer.process
    batches.sizes = s.image_sizes and [max(s.image_sizes)]
    trainer.network.train()
    trainer.steps = max(0, trainer.num_steps - 2)  # in the first steps a part may be frozen
    for keys in (batches.epoch(0)[:2] * 2)[:2]:  # the second one's times count
        started = time.perf_counter()
        parts = list(make_loader(dataset, keys, 0, process.device))
        loaded = time.perf_counter()
        step = trainer.step(parts)
        losses, norm, _ = step.read()
        if not step.is_finite():
            raise TrainingError(
                f"the loss or gradient of the dry run's steps is not finite. {MAY_HELP}"
            )
        computing, loading = time.perf_counter() - loaded, loaded - started
    workers = min(s.workers, num_cores())
    # Loader processes work ahead of the steps.
    per_step = max(computing, loading / workers) if workers else computing + loading
    started = time.perf_counter()
    validation = validate(trainer.in_evaluation_mode(), True)
    per_frame = (time.perf_counter() - started) / max(1, validation.frames)
    if not process.is_main:
        return
    steps, times = len(batches), math.ceil(s.epochs / s.validate_every)
    total = s.epochs * steps * per_step
    total += times * validation.of * per_frame / process.world_size
    terms = ", ".join(f"{name} {value:.3f}" for name, value in losses.items())
    print(
        f"dry run: {count_parameters(trainer.network)}; {terms}, gradient norm {norm:.2f}\n"
        f"step {per_step:.2f} s ({s.batch_size / per_step:.1f} images/s; {loading:.2f} s to "
        f"load, {computing:.2f} s to compute), validation {1000 * per_frame:.0f} ms a frame, "
        f"peak memory {peak_memory(process.device):.2f} GiB\n"
        f"the whole run: {s.epochs} epochs of {steps} steps and {times} validations of "
        f"{validation.of} frames, about {timedelta(seconds=round(total))} (hours:minutes:seconds)"
    )


def count_parameters(network: nn.Module) -> str:
    """For example "24.7 M parameters"."""
    return f"{sum(p.numel() for p in network.parameters()) / 1e6:.1f} M parameters"
