"""A dry run: everything is checked, two steps are tried, and the time of a whole run estimated."""

import math
import time
from typing import TYPE_CHECKING

from torch import nn

from utils.processes import num_cores
from utils.training.accounts import peak_memory
from utils.training.run_folder import RunLog
from utils.training.samples import make_loader

if TYPE_CHECKING:
    from utils.training.loop import Training


def try_out(training: "Training") -> None:
    """Two steps, one batch of validation, and an estimate of the whole run; nothing is written.

    Of several sizes the largest is tried, which takes the most memory.

    Raises:
        TrainingError: numbers that are not finite.
    """
    s, accounts, device = training.settings, training.accounts, training.process.device
    accounts.log = RunLog(None)
    training.batches.sizes = s.image_sizes and [max(s.image_sizes)]
    training.network.train()
    for keys in (training.batches.epoch(0)[:2] * 2)[:2]:  # the second one's times count
        started = time.perf_counter()
        parts = list(make_loader(training.dataset, keys, 0, device))
        loading = time.perf_counter() - started
        training.step(parts, keys)
        training.finish_step()
        if accounts.progress.bad_steps:
            accounts.give_up("the loss or gradient of the dry run's steps is not finite")
        computing = time.perf_counter() - started - loading
    workers = min(s.workers, num_cores())
    # Loader processes work ahead of the steps.
    per_step = max(computing, loading / workers) if workers else computing + loading
    started = time.perf_counter()
    validation = training.validation(quick=True)
    per_frame = (time.perf_counter() - started) / max(1, validation.frames)
    if not training.process.is_main:
        return
    steps, times = len(training.batches), math.ceil(s.epochs / s.validate_every)
    total = s.epochs * steps * per_step
    total += times * validation.of * per_frame / training.process.world_size
    losses = ", ".join(f"{name} {value:.3f}" for name, value in accounts.pace.losses.items())
    print(
        f"dry run: {count_parameters(training.network)}; {losses}, "
        f"gradient norm {accounts.pace.norm:.2f}\n"
        f"step {per_step:.2f} s ({s.batch_size / per_step:.1f} images/s; {loading:.2f} s to "
        f"load, {computing:.2f} s to compute), validation {1000 * per_frame:.0f} ms a frame, "
        f"peak memory {peak_memory(device):.2f} GiB\n"
        f"the whole run: {s.epochs} epochs of {steps} steps and {times} "
        f"validations of {validation.of} frames, about {_duration(total)}"
    )


def count_parameters(network: nn.Module) -> str:
    """For example "24.7 M parameters"."""
    return f"{sum(p.numel() for p in network.parameters()) / 1e6:.1f} M parameters"


def _duration(seconds: float) -> str:
    """For example "3 h 05 min"."""
    minutes = round(seconds / 60)
    return f"{minutes // 60} h {minutes % 60:02d} min" if minutes >= 60 else f"{minutes} min"
