"""The training loop of both stages; the scripts say what is trained, this module how."""

import copy
import inspect
import math
import resource
import signal
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, nullcontext
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import torch
from timm.layers import convert_sync_batchnorm
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.nn.utils import clip_grad_norm_
from torch.optim import Adam
from torch.utils.data import DataLoader, Dataset
from torch.utils.tensorboard import SummaryWriter
from torch.utils.tensorboard.summary import hparams
from tqdm import tqdm

from datasets.augmentation import Augmentation
from datasets.layout import DatasetError, Frame, Sequence
from datasets.samples import StillImages, Tolerant, VideoFrames
from datasets.sampling import EpochBatches, Key
from datasets.simulated_motion import MotionSimulation
from models import MODELS, model_class
from utils.checkpoints import (
    BEST,
    LAST,
    PREVIOUS,
    CheckpointError,
    check_same_network,
    check_same_order,
    check_same_script,
    load_last,
    load_weights,
    not_finite,
    save_checkpoint,
)
from utils.distributed import Process, gather, num_cores, wait_for_all
from utils.files import printable
from utils.interrupts import Interrupted, Interrupts, prepare_loader_process
from utils.losses import segmentation_loss
from utils.runs import LOG, SETTINGS, RunLog, has_checkpoint
from utils.settings import Settings, SettingsError, write_settings
from utils.transfer import fetch, send

LOG_INTERVAL = 10  # steps between two entries in TensorBoard
_NAMED = 24  # samples of a bad step that are named
_MUCH_WAITING = 0.1  # share of an epoch's time spent waiting for data that is worth a word


class TrainingError(RuntimeError):
    """Training cannot go on; the message says why, and what is left."""


@dataclass
class Validation:
    """Result of one validation, the same in every process.

    Attributes:
        score: mean J in [0, 1], by which the best checkpoint is chosen.
        parts: further scores by name, for the log.
        pictures: to look at, by name, uint8 RGB (H, W, 3).
        frames: how many were segmented here, and ``of`` how many in all.
    """

    score: float
    parts: dict[str, float] = field(default_factory=dict)
    pictures: dict[str, np.ndarray] = field(default_factory=dict)
    frames: int = 0
    of: int = 0


@dataclass
class Progress:
    """Where training stands: what a checkpoint must hold beside the weights and the optimizer.

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

    started: float
    waited: float = 0.0
    images: int = 0
    losses: dict[str, float] = field(default_factory=dict)
    norm: float = math.nan


Validate = Callable[[nn.Module, bool], Validation]


def fit(
    model: nn.Module,
    dataset: Dataset,
    validate: Validate,
    settings: Settings,
    identity: dict[str, Any],
    run_dir: Path,
    process: Process,
    *,
    resume: bool = False,
    dry_run: bool = False,
    record: Callable[[], None] = lambda: None,
) -> Progress:
    """Train ``model`` for ``settings.epochs`` epochs with Adam and a cosine schedule (Sec. 4.4).

    Writes ``settings.py``, ``log.txt``, TensorBoard events, ``last.pt`` (and as ``previous.pt`` one
    of an earlier step) after every epoch and every ``CHECKPOINT_MINUTES`` unless numbers are bad,
    and ``best.pt`` by validation score into ``run_dir``; prints a line per epoch.

    Whatever is random is drawn from the seed, the step and the process, so that a run which goes on
    from a checkpoint computes what it would have computed without the break.

    Args:
        model: on the CPU; its ``forward`` takes a sample without its mask, as keywords.
        dataset: of ``datasets.samples``.
        validate: scores the model, called in every process; with True it only tries one batch.
        settings: see config.py.
        identity: what rebuilds the network, kept in checkpoints: ``model`` and ``arguments``; also
            the ``script`` that trains it, whose runs alone it goes on with.
        run_dir: made if need be.
        process: this process.
        resume: go on from the run's last checkpoint, or begin if there is none yet. Nothing is
            written before that is known to be possible, nor if the run is finished.
        dry_run: two steps and one batch of validation, with an estimate of the whole run; nothing
            is written.
        record: called in the main process when training begins, to write down where it comes from.

    Raises:
        TrainingError: too many steps in a row, all of the last epoch, a step of the dry run, or the
            weights have numbers that are not finite.
        DatasetError: a file cannot be read, or more than BAD_FILE_SHARE of them.
        CheckpointError: a checkpoint cannot be read or written.
        Interrupted: Ctrl-C or SIGTERM; a checkpoint has been written.
    """
    training = Training(model, dataset, validate, settings, identity, run_dir, process)
    if dry_run:
        training.log = RunLog(None)
        training.try_out()
    else:
        training.run(resume, record)
    return training.progress


class Training:
    """The state of a run and what is done with it."""

    def __init__(
        self,
        model: nn.Module,
        dataset: Dataset,
        validate: Validate,
        settings: Settings,
        identity: dict[str, Any],
        run_dir: Path,
        process: Process,
    ):
        self.dataset = Tolerant(dataset) if settings.bad_file_share > 0 else dataset
        self.validate = validate
        self.settings = settings
        self.identity = identity
        self.run_dir = run_dir
        self.process = process
        self.progress = Progress()
        self.batches = EpochBatches(
            dataset.set_sizes,
            settings.batch_size,
            settings.seed,
            settings.balance_sets,
            process.rank,
            process.world_size,
            settings.accumulation_steps,
            settings.image_sizes,
        )
        self.model = model.to(process.device)
        self.wrapped = _wrap(self.model, process)
        if settings.compile:
            sizes = len(settings.image_sizes or ())
            # Each size is compiled by itself, and torch would give up after a few.
            torch._dynamo.config.cache_size_limit += sizes
            self.wrapped.compile(dynamic=False if sizes else None)
        # After wrapping, which replaces norms by synchronised ones on GPUs.
        self.parameters = [p for p in self.model.parameters() if p.requires_grad]
        self.buffers = list(self.model.buffers())
        self.buffers_before = [buffer.clone() for buffer in self.buffers]
        self.optimizer = Adam(
            self.model.parameters(),
            lr=settings.learning_rate,
            betas=(settings.adam_beta1, settings.adam_beta2),
            eps=settings.adam_epsilon,
            fused=True,
        )
        self.average = None if settings.ema_decay is None else copy.deepcopy(self.model)
        self.averaged = torch.zeros((), device=process.device)  # steps that the average is of
        self.pace = Pace(time.perf_counter())
        self.begun: Step | None = None
        # What one of the processes wants of all of them, as of the last step that is finished.
        self.stop: signal.Signals | None = None
        self.save = False
        self.interrupts = Interrupts()
        self.log = RunLog(run_dir if process.is_main else None)
        self.writer: SummaryWriter | None = None
        self.saved_at, self.saved_step = time.monotonic(), 0
        # Of the last epoch: images per second, and the share of the time spent waiting for data.
        self.speed = self.waiting = 0.0

    @property
    def result(self) -> nn.Module:
        """The network that is validated and kept: the moving average if there is one."""
        return self.model if self.average is None else self.average

    def run(self, resume: bool, record: Callable[[], None]) -> None:
        """Train to the end, or until interrupted."""
        restored = self._restore() if resume and has_checkpoint(self.run_dir) else []
        p = self.progress
        if len(set(gather((p.epoch, p.batch, p.step, p.best), self.process))) > 1:
            raise CheckpointError(
                f"the processes do not find the same checkpoint in {self.run_dir}; do all nodes "
                "see the same folder?"
            )
        if self.settings.epochs < p.epoch + (p.batch > 0):
            raise SettingsError(
                f"EPOCHS = {self.settings.epochs}, but {self.run_dir} is in epoch {p.epoch + 1} "
                "already; choose at least that"
            )
        if p.epoch == self.settings.epochs:
            if self.process.is_main:
                print(
                    f"{self.run_dir} is finished, with {p.epoch} epochs; nothing in it is changed. "
                    f"A larger EPOCHS goes on: --resume {self.run_dir} --epochs N"
                )
            return
        if self.process.is_main:
            # The settings first, so that a run which is killed right now can go on.
            write_settings(self.settings, self.run_dir / SETTINGS)
            record()
            for line in restored:
                self.log(line)
        with ExitStack() as stack:
            stack.enter_context(self.interrupts)
            if self.process.is_main:
                purged = self.progress.step + 1
                self.writer = stack.enter_context(SummaryWriter(self.run_dir, purge_step=purged))
            with self.interrupts.deferred():
                samples = self._samples()
                while self.progress.epoch < self.settings.epochs:
                    self._train_epoch(samples)
                    self._finish_epoch()

    def try_out(self) -> None:
        """Two steps, one batch of validation, and what they say of the whole run.

        Of several sizes the largest is tried, which takes the most memory.
        """
        self.batches.sizes = self.settings.image_sizes and [max(self.settings.image_sizes)]
        self.model.train()
        for step in (self.batches.epoch(0)[:2] * 2)[:2]:  # the second one's times count
            started = time.perf_counter()
            samples = list(make_loader(self.dataset, step, 0, self.process.device))
            loading = time.perf_counter() - started
            self.optimise(samples, step)
            self.finish_step()
            if self.progress.bad_steps:
                self._give_up("the loss or gradient of the dry run's steps is not finite")
            computing = time.perf_counter() - started - loading
        workers = min(self.settings.workers, num_cores())
        # Loader processes work ahead of the steps.
        per_step = max(computing, loading / workers) if workers else computing + loading
        started = time.perf_counter()
        validation = self._validate(quick=True)
        per_frame = (time.perf_counter() - started) / max(1, validation.frames)
        if not self.process.is_main:
            return
        s = self.settings
        steps = s.epochs * len(self.batches)
        times = math.ceil(s.epochs / s.validate_every)
        total = steps * per_step + times * validation.of * per_frame / self.process.world_size
        losses = ", ".join(f"{name} {value:.3f}" for name, value in self.pace.losses.items())
        norm = f"gradient norm {self.pace.norm:.2f}"
        print(f"dry run: {count_parameters(self.model)}; {losses}, {norm}")
        print(
            f"step {per_step:.2f} s ({s.batch_size / per_step:.1f} images/s; {loading:.2f} s to "
            f"load, {computing:.2f} s to compute), validation {1000 * per_frame:.0f} ms a frame, "
            f"peak memory {peak_memory(self.process.device):.2f} GiB"
        )
        print(
            f"the whole run: {s.epochs} epochs of {len(self.batches)} steps and {times} "
            f"validations of {validation.of} frames, about {_duration(total)}"
        )

    def _samples(self) -> Iterator[dict[str, Any]]:
        """Every part of every step that is still to do.

        One loader for all epochs: it works ahead during validation too, and an epoch does not begin
        by waiting for its processes to start and each to make a first batch.
        """
        s, first, start = self.settings, self.progress.epoch, self.progress.batch
        parts = (
            keys
            for epoch in range(first, s.epochs)
            for step in self.batches.epoch(epoch, start if epoch == first else 0)
            for keys in step
        )
        yield from make_loader(self.dataset, parts, s.workers, self.process.device)

    def _train_epoch(self, samples: Iterator[dict[str, Any]]) -> None:
        """The steps of the running epoch that are still to do."""
        s, p = self.settings, self.progress
        self.model.train()
        bar = tqdm(
            total=len(self.batches) * s.batch_size,
            initial=p.batch * s.batch_size,
            desc=f"epoch {p.epoch + 1}/{s.epochs}",
            unit="image",
            disable=None if self.process.is_main else True,  # None: silent where it is no terminal
            leave=False,
            dynamic_ncols=True,
        )
        self.pace = pace = Pace(time.perf_counter())
        with bar:
            for step in self.batches.epoch(p.epoch, p.batch):
                before = time.perf_counter()
                parts = [next(samples) for _ in step]
                pace.waited += time.perf_counter() - before
                self._set_learning_rate()
                self.optimise(parts, step)
                bar.update(s.batch_size)
                if pace.losses:
                    bar.set_postfix(loss=f"{pace.losses['total']:.3f}", refresh=False)
                if self.stop:
                    self._save()
                    wait_for_all(self.process)  # torchrun ends the others when the first one ends
                    self._stop(self.stop)
                if self.save:
                    self._save()
        self.finish_step()
        if pace.images:
            seconds = time.perf_counter() - pace.started
            self.speed, self.waiting = pace.images / seconds, pace.waited / seconds

    def _set_learning_rate(self) -> None:
        s = self.settings
        rate = s.learning_rate * cosine_factor(
            self.progress.step,
            s.epochs * len(self.batches),
            s.min_learning_rate / s.learning_rate,
        )
        for group in self.optimizer.param_groups:
            group["lr"] = rate

    def optimise(self, samples: list[dict[str, Any]], keys: list[list[Key]]) -> None:
        """Begin a step of the optimizer, and finish the one before.

        Nothing in it waits for a GPU: that is given this step's work before the numbers of the last
        one are read. So it is the device that leaves a step with bad numbers out.

        Args:
            samples: the batch, in the parts that it is computed in.
            keys: of the samples, to name them.
        """
        s, p = self.settings, self.progress
        seed = np.random.SeedSequence([s.seed, p.step, self.process.rank]).generate_state(1)
        torch.manual_seed(int(seed[0]))
        if self.buffers:
            torch._foreach_copy_(self.buffers_before, self.buffers)
        self.optimizer.zero_grad(set_to_none=True)
        faults = [fault for part in samples for fault in part.pop("fault", []) if fault]
        sums: dict[str, Tensor] = {}
        for number, part in enumerate(samples, 1):
            with self._gradients_kept_here(number < len(samples)):
                loss = self._loss(part)
                (loss.total / len(samples)).backward()
            for name, value in {"total": loss.total.detach(), **loss.terms}.items():
                sums[name] = sums.get(name, 0) + value / len(samples)
        limit = math.inf if s.clip_gradient is None else s.clip_gradient
        norm = clip_grad_norm_(self.parameters, limit)
        # While numbers are bad nothing is saved.
        minutes = 0 if p.bad_in_row else (time.monotonic() - self.saved_at) / 60
        due = self.process.is_main and minutes >= s.checkpoint_minutes
        pending = self.interrupts.pending
        asked = [pending == signal.SIGINT, pending == signal.SIGTERM, due, len(faults)]
        told = torch.stack([*sums.values(), norm.float(), *norm.new_zeros(len(asked)).float()])
        if any(asked):  # which is rare: numbers from the CPU make a GPU wait
            told[-len(asked) :] = told.new_tensor(asked)
        if self.process.world_size > 1:
            # The norm is alike everywhere; the loss and what is asked for are not.
            torch.distributed.all_reduce(told)
            told[: -len(asked)] /= self.process.world_size
        self._step_unless(~told[: -len(asked)].isfinite().all())
        p.step += 1
        p.batch += 1
        rate = self.optimizer.param_groups[0]["lr"]
        begun = Step(p.step, rate, list(sums), fetch([told]), keys, faults)
        self.finish_step()
        self.begun = begun
        if any(asked) and self.process.world_size == 1:
            self.finish_step()  # at once, since there is nobody to agree with

    def _step_unless(self, bad: Tensor) -> None:
        """The optimizer's step; where ``bad`` is true, it and the forward pass leave no trace."""
        # As torch's gradient scaler does it for optimizers that are fused.
        self.optimizer.found_inf = bad.float()
        self.optimizer.step()
        for buffer, before in zip(self.buffers, self.buffers_before):
            torch.where(bad, before, buffer, out=buffer)
        if self.average is not None:
            # The average begins with what comes out of the first good step.
            weight = torch.where(self.averaged > 0, 1 - self.settings.ema_decay, 1.0)
            _move_towards(self.average, self.model, torch.where(bad, 0.0, weight))
            self.averaged += ~bad

    def finish_step(self) -> None:
        """Read the numbers of the step that was begun last, if that is not done, and act on them.

        Raises:
            TrainingError: too many steps in a row had numbers that are not finite.
            DatasetError: too many samples could not be read.
        """
        step, self.begun = self.begun, None
        if step is None:
            return
        s, p, pace = self.settings, self.progress, self.pace
        numbers = step.numbers()[0].tolist()
        *values, norm, interrupted, terminated, due, num_faults = numbers
        terms = dict(zip(step.names, values))
        pace.images += s.batch_size
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

    def _loss(self, part: dict[str, Tensor]):
        device, s = self.process.device, self.settings
        part = {name: send(tensor, device) for name, tensor in part.items()}
        mask = part.pop("mask")
        enabled = s.mixed_precision and device.type == "cuda"
        with torch.autocast(device.type, torch.bfloat16, enabled=enabled):
            prediction = self.wrapped(**part)
        loss = self.model.loss if s.loss is None else s.loss
        return segmentation_loss(prediction, mask, s.sigma, s.supervise_slot_maps, loss)

    def _gradients_kept_here(self, more_to_come: bool):
        """Context of a part of a batch: processes share gradients with the last part alone."""
        if more_to_come and isinstance(self.wrapped, DistributedDataParallel):
            return self.wrapped.no_sync()
        return nullcontext()

    def _count_bad(self, step: Step, loss: float, norm: float) -> None:
        """Say that a step with bad numbers was left out; raise if there were too many."""
        p, s = self.progress, self.settings
        p.bad_steps += 1
        p.bad_in_row += 1
        what = "gradient" if math.isfinite(loss) else "loss"
        value = norm if math.isfinite(loss) else loss
        names = [self.dataset.name(index) for part in step.keys for _, index, *_ in part]
        names = [name for one in gather(names, self.process) for name in one]
        more = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
        self.log(
            f"epoch {p.epoch + 1}, step {step.number}: the {what} is {value}; step skipped, the "
            f"{_ordinal(p.bad_steps)} in all. Samples: {', '.join(names[:_NAMED])}{more}"
        )
        if p.bad_in_row > s.max_bad_steps:
            self._give_up(
                f"{p.bad_in_row} steps in a row had a loss or gradient that is not finite "
                f"(MAX_BAD_STEPS = {s.max_bad_steps}); {self.run_dir / LOG} names their samples"
            )

    def _give_up(self, why: str) -> NoReturn:
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

    def _count_faults(self, step: Step, number: int) -> None:
        """Note samples that could not be read and were replaced; raise if there are too many."""
        p, s = self.progress, self.settings
        faults = [fault for one in gather(step.faults, self.process) for fault in one]
        for fault in faults:
            self.log(f"epoch {p.epoch + 1}, step {step.number}: {fault} (another sample taken)")
        p.bad_files += number
        allowed = s.bad_file_share * len(self.batches) * s.batch_size
        if p.bad_files > allowed:
            raise DatasetError(
                f"{p.bad_files} samples of epoch {p.epoch + 1} could not be read, more than "
                f"BAD_FILE_SHARE = {s.bad_file_share} of it; the last: {faults[-1]}"
            )

    def _finish_epoch(self) -> None:
        """Validate if it is time to, say what came out, and save."""
        s, p = self.settings, self.progress
        last = p.epoch + 1 == s.epochs
        if last and not p.good_steps:
            self._give_up(f"no step of epoch {p.epoch + 1}, the last, had finite numbers")
        validation = None
        if last or (p.epoch + 1) % s.validate_every == 0:
            self._save()  # so that stopping during validation loses nothing
            self._stop(self._asked_to_stop())
            try:
                # Several processes wait for one another, so that none may leave by itself.
                alone = self.process.world_size == 1
                with self.interrupts.admitted() if alone else nullcontext():
                    validation = self._validate()
            except Interrupted:
                self._stop(self.interrupts.pending)
        means = {name: value / max(1, p.good_steps) for name, value in p.sums.items()}
        is_best = validation is not None and validation.score > p.best
        if is_best:
            p.best = validation.score
        p.epoch += 1
        p.batch = p.bad_files = p.good_steps = 0
        p.sums = {}
        if self.process.is_main:
            self._report(means, validation, is_best)
        if is_best:
            self._save(best=True)
        self._save()
        if last and self.writer:
            self._report_settings()
        self._stop(self._asked_to_stop())

    def _asked_to_stop(self) -> int | None:
        """The signal that one of the processes has got, the same in all of them."""
        return max(filter(None, gather(self.interrupts.pending, self.process)), default=None)

    def _stop(self, signum: int | None) -> None:
        """Stop, everything being saved, if a signal asks for it."""
        if signum is not None:
            p, s = self.progress, self.settings
            going_on = f"; --resume {self.run_dir} goes on" if p.epoch < s.epochs else ""
            if going_on and self.saved_step < p.step:
                going_on += f" after step {self.saved_step}, before the bad numbers"
            self.log(f"stopped after step {p.step}{going_on}")
            raise Interrupted(signum)

    def _validate(self, quick: bool = False) -> Validation:
        """The validation's result; every process has the main one's network for it."""
        if self.process.world_size > 1:
            # Without synchronised norms each process has statistics of its own samples.
            for buffer in self.result.buffers():
                torch.distributed.broadcast(buffer, 0)
        self.result.eval()
        return self.validate(self.result, quick)

    def _report(
        self, means: dict[str, float], validation: Validation | None, is_best: bool
    ) -> None:
        """The epoch's line and its entries in TensorBoard; the epoch is already counted."""
        s, p = self.settings, self.progress
        terms = ", ".join(f"{name} {value:.3f}" for name, value in means.items() if name != "total")
        line = f"epoch {p.epoch}/{s.epochs}  step {p.step}  "
        line += f"loss {means.get('total', math.nan):.3f} ({terms})"
        line += f"  lr {self.optimizer.param_groups[0]['lr']:.1e}  {self.speed:.1f} images/s"
        if self.waiting > _MUCH_WAITING:
            line += f" ({self.waiting:.0%} of the time waiting for data: WORKERS = {s.workers})"
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

    def _report_settings(self) -> None:
        """The settings with the final score, for TensorBoard's table of runs."""
        settings = {
            name: value if isinstance(value, int | float) else printable(str(value))
            for name, value in self.settings.as_dict().items()
        }
        for summary in hparams(settings, {"validation/best_J": self.progress.best}):
            self.writer.file_writer.add_summary(summary)
        self.writer.add_scalar("validation/best_J", self.progress.best, self.progress.step)

    def _save(self, best: bool = False) -> None:
        """Write last.pt, or best.pt, in the main process; previous.pt is of an earlier step.

        No last.pt while numbers are bad: the weights may have been spoilt before that showed, and
        the two must not both be of that time. A run that ends so is saved.

        Raises:
            TrainingError: the numbers to be saved are not finite.
        """
        self.finish_step()
        self.save = False
        p = self.progress
        earlier = self.saved_step < p.step
        if not best and p.bad_in_row and p.epoch < self.settings.epochs:
            return
        checkpoint = {
            **self.identity,
            "settings": self.settings.as_dict(),
            "weights": self.result.state_dict(),
            "progress": asdict(self.progress),
        }
        training = {"optimizer": self.optimizer.state_dict()}
        if self.average is not None:
            training["weights"] = self.model.state_dict()
        # In every process, so that all of them stop.
        if spoilt := list(not_finite({**checkpoint, **training})):
            self._give_up(
                f"after step {p.step} the weights are not finite ({spoilt[0]} and "
                f"{len(spoilt) - 1} more tensors), and are not saved"
            )
        if not best:
            self.saved_step = p.step  # in every process, for their messages
        if not self.process.is_main:
            return
        if best:
            save_checkpoint(self.run_dir / BEST, checkpoint)
            return
        save_checkpoint(
            self.run_dir / LAST,
            {**checkpoint, "training": training},
            keep_previous=earlier,
        )
        self.saved_at = time.monotonic()

    def _restore(self) -> list[str]:
        """Take everything from the run's last checkpoint; returns lines that say so."""
        checkpoint, path, warning = load_last(self.run_dir)
        check_same_script(checkpoint, self.identity, self.run_dir)
        check_same_network(checkpoint, self.identity["model"], self.identity["arguments"])
        try:
            training, weights = checkpoint["training"], checkpoint["weights"]
            load_weights(self.model, training.get("weights", weights))
            check_same_order(checkpoint, self.model)
            if self.average is not None:
                load_weights(self.average, weights)
            # The settings have the rest, which is the same.
            state = {**self.optimizer.state_dict(), "state": training["optimizer"]["state"]}
            self.optimizer.load_state_dict(state)
            for parameter, moments in self.optimizer.state.items():
                if not moments["exp_avg"].shape == moments["exp_avg_sq"].shape == parameter.shape:
                    raise ValueError("the optimizer's state is of another shape than the weights")
                moments["step"].item()
            self.progress = p = Progress(**checkpoint["progress"])
            for name, value in vars(Progress()).items():
                if type(getattr(p, name)) is not type(value):
                    raise TypeError(f"progress: {name} is {getattr(p, name)!r}")
            sum(p.sums.values())
        except (KeyError, TypeError, ValueError, AttributeError, RuntimeError) as error:
            if isinstance(error, CheckpointError):
                raise
            raise CheckpointError(
                f"{path} cannot be resumed: the state of its training is missing or is not as "
                f"this code writes it ({type(error).__name__}, {error})"
            ) from error
        self.averaged.fill_(p.step - p.bad_steps)
        p.bad_in_row = 0
        self.saved_step = p.step
        position = f" and {p.batch} of {len(self.batches)} steps" if p.batch else ""
        going_on = f"resuming {self.run_dir} after epoch {p.epoch}{position}"
        return [*filter(None, [warning]), f"{going_on} of {self.settings.epochs}"]


def _move_towards(average: nn.Module, model: nn.Module, weight: Tensor) -> None:
    """Take parameters and buffers of an average to those of a model by this share of the way."""
    pairs = [
        (old.detach(), new.detach())
        for old, new in zip(
            (*average.parameters(), *average.buffers()), (*model.parameters(), *model.buffers())
        )
    ]
    floats = [pair for pair in pairs if pair[0].is_floating_point()]
    ways = torch._foreach_sub([new for _, new in floats], [old for old, _ in floats])
    torch._foreach_mul_(ways, weight)
    torch._foreach_add_([old for old, _ in floats], ways)
    for old, new in pairs:
        if not old.is_floating_point():  # norms count their batches
            old.copy_(new)


def cosine_factor(step: int, total: int, floor: float) -> float:
    """Learning rate of a step, as a share of the first: from 1 to ``floor`` at the last step."""
    done = min(step / max(1, total - 1), 1.0)
    return floor + (1 - floor) * (1 + math.cos(math.pi * done)) / 2


def make_loader(dataset: Dataset, batches: Any, workers: int, device: torch.device) -> DataLoader:
    """Loader of the given batches of keys, in order."""
    return DataLoader(
        dataset,
        batch_sampler=batches,
        num_workers=min(workers, num_cores()),
        pin_memory=device.type == "cuda",
        worker_init_fn=prepare_loader_process,
    )


def network_arguments(settings: Settings, motion: bool) -> dict[str, Any]:
    """Those settings of config.py that the network's constructor takes, and ``motion``."""
    accepted = inspect.signature(model_class(settings.model)).parameters
    given = {name.lower(): value for name, value in settings.as_dict().items()}
    return {"motion": motion, **{name: given[name] for name in accepted if name in given}}


def without_effect(names: Iterable[str], model: str) -> list[str]:
    """Those of the settings, by upper-case name, that only other networks' constructors take.

    Raises:
        ModelError: there is no such network.
    """
    own = inspect.signature(model_class(model)).parameters
    others = {name for network in MODELS.values() for name in inspect.signature(network).parameters}
    return sorted(name for name in names if name.lower() in others - own.keys())


def augmentation_from(settings: Settings) -> Augmentation:
    """The training augmentation that config.py describes."""
    return Augmentation(
        **{name: getattr(settings, name) for name in Augmentation.__dataclass_fields__}
    )


def simulation_from(settings: Settings) -> MotionSimulation:
    """The motion of still images that config.py describes."""
    strengths = {
        name: getattr(settings, f"simulated_{name}")
        for name in MotionSimulation.__dataclass_fields__
        if name != "camera_removed"
    }
    return MotionSimulation(**strengths, camera_removed=settings.remove_camera_motion)


def split_frames(frames: list[Frame], share: float, seed: int) -> tuple[list[Frame], list[Frame]]:
    """A random but fixed share of the images is kept back for validation, at least one."""
    order = np.random.default_rng(seed).permutation(len(frames))
    count = min(max(1, round(len(frames) * share)), len(frames) - 1)
    return [frames[i] for i in order[count:]], [frames[i] for i in order[:count]]


def stills_of(
    frames: list[Frame], settings: Settings, augmentation: Augmentation | None = None
) -> StillImages:
    """Samples of still images, with simulated motion if PRETRAIN_MOTION says so."""
    simulated = settings.pretrain_motion == "simulated"
    return StillImages(
        frames,
        settings.image_size,
        augmentation,
        settings.seed,
        simulation_from(settings) if simulated else None,
        settings.num_references,
    )


def videos_of(
    sets: list[list[Sequence]], settings: Settings, augmentation: Augmentation | None = None
) -> VideoFrames:
    """Samples of videos: each set's sequences."""
    return VideoFrames(
        sets, settings.image_size, settings.num_references, augmentation, settings.seed
    )


def count_parameters(model: nn.Module) -> str:
    """For example "24.7 M parameters"."""
    return f"{sum(p.numel() for p in model.parameters()) / 1e6:.1f} M parameters"


def _wrap(model: nn.Module, process: Process) -> nn.Module:
    if process.world_size == 1:
        return model
    if process.device.type == "cuda":
        model = convert_sync_batchnorm(model)  # timm's: it keeps the activations in its own norms
        return DistributedDataParallel(model, device_ids=[process.device.index])
    return DistributedDataParallel(model)


def peak_memory(device: torch.device) -> float:
    """Largest memory so far in GiB: of tensors on the GPU, or of this process on the CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**30
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
        # ru_maxrss a process also inherits from the one that has started it.
        return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM")) / 2**20
    except (OSError, StopIteration):
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20  # Linux counts KiB


def _duration(seconds: float) -> str:
    """For example "3 h 05 min"."""
    minutes = round(seconds / 60)
    return f"{minutes // 60} h {minutes % 60:02d} min" if minutes >= 60 else f"{minutes} min"


def _ordinal(number: int) -> str:
    last = number % 10 if number % 100 // 10 != 1 else 0
    return f"{number}{ {1: 'st', 2: 'nd', 3: 'rd'}.get(last, 'th') }"
