"""The training loop of all networks; the scripts say what is trained, this module how."""

import copy
import math
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import torch
from timm.layers import convert_sync_batchnorm
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.nn.utils import clip_grad_norm_
from torch.optim import AdamW
from torch.utils.data import Dataset
from torch.utils.tensorboard import SummaryWriter
from tqdm import tqdm

from datasets.samples import Tolerant
from datasets.sampling import EpochBatches, Key
from models.interface import Network
from utils.processes import Process, gather, wait_for_all
from utils.settings import Settings, SettingsError, write_settings
from utils.training.accounts import Accounts, Pace, Progress, Step, Validation
from utils.training.checkpoints import CheckpointError
from utils.training.dry_run import try_out
from utils.training.interrupts import Interrupted, Interrupts
from utils.training.run_folder import SETTINGS, has_checkpoint
from utils.training.samples import make_loader
from utils.training.state import move_towards, restore, save
from utils.transfer import fetch, send

Validate = Callable[[Network, bool], Validation]


def fit(
    network: Network,
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
    """Train a network for ``settings.epochs`` epochs with Adam and a cosine schedule (Sec. 4.4).

    Writes ``settings.py``, ``log.txt``, TensorBoard events, ``last.pt`` (and an earlier one as
    ``previous.pt``) after every epoch and every ``CHECKPOINT_MINUTES`` unless numbers are bad, and
    ``best.pt`` by validation score into ``run_dir``; prints a line per epoch.

    All random numbers follow from the seed, the step and the process. So a run that goes on from a
    checkpoint computes the same as without the break.

    Args:
        network: on the CPU.
        dataset: of ``datasets.samples``, of the kind that the network needs.
        validate: scores the network, called in every process; with True it only tries one batch.
        settings: see config.py.
        identity: kept in checkpoints, to build the network again: ``model`` and ``arguments``; also
            the ``script``, which goes on with its own runs alone.
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
    training = Training(network, dataset, settings, process, run_dir)
    training.validate, training.identity = validate, identity
    if dry_run:
        try_out(training)
    else:
        training.run(resume, record)
    return training.accounts.progress


class LossOf(nn.Module):
    """A network's loss as a module, which processes share and torch.compile compiles."""

    def __init__(self, network: Network):
        super().__init__()
        self.network = network

    def forward(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        """The named terms of ``Network.loss``."""
        return self.network.loss(batch)


class Training:
    """The state of a run, and its loop."""

    def __init__(
        self,
        network: Network,
        dataset: Dataset,
        settings: Settings,
        process: Process,
        run_dir: Path = Path(),
    ):
        s = self.settings = settings
        self.process = process
        self.run_dir = run_dir
        self.dataset = Tolerant(dataset) if s.bad_file_share > 0 else dataset
        self.batches = EpochBatches(
            dataset.set_sizes,
            s.batch_size,
            s.seed,
            s.balance_sets,
            process.rank,
            process.world_size,
            s.accumulation_steps,
            s.image_sizes,
        )
        self.network = network.to(process.device)
        self.loss = _shared(self.network, process)
        if s.compile:
            sizes = len(s.image_sizes or ())
            # Each size is compiled by itself, and torch would give up after a few.
            torch._dynamo.config.cache_size_limit += sizes
            self.loss.compile(dynamic=False if sizes else None)
        # After sharing, which replaces norms by synchronised ones on GPUs.
        groups = self.network.parameter_groups()
        self.parameters = [parameter for group in groups for parameter in group["params"]]
        self.optimizer = AdamW(
            groups,
            lr=s.learning_rate,
            betas=(s.adam_beta1, s.adam_beta2),
            eps=s.adam_epsilon,
            weight_decay=0.0,
            fused=True,
        )
        self.buffers = list(self.network.buffers())
        self.buffers_before = [buffer.clone() for buffer in self.buffers]
        self.average = None if s.ema_decay is None else copy.deepcopy(self.network)
        self.averaged = torch.zeros((), device=process.device)  # number of averaged steps
        self.accounts = Accounts(s, self.dataset, run_dir, process, len(self.batches))
        self.rate = s.learning_rate  # of the last step
        self.begun: Step | None = None
        self.interrupts = Interrupts()
        self.saved_at = time.monotonic()

    @property
    def result(self) -> Network:
        """The network that is validated and kept: the moving average if there is one."""
        return self.network if self.average is None else self.average

    def run(self, resume: bool, record: Callable[[], None]) -> None:
        """Train to the end, or until interrupted."""
        restored = restore(self) if resume and has_checkpoint(self.run_dir) else []
        p, epochs = self.accounts.progress, self.settings.epochs
        if len(set(gather((p.epoch, p.batch, p.step, p.best), self.process))) > 1:
            raise CheckpointError(
                f"the processes do not find the same checkpoint in {self.run_dir}; do all nodes "
                "see the same folder?"
            )
        if epochs < p.epoch + (p.batch > 0):
            raise SettingsError(
                f"EPOCHS = {epochs}, but {self.run_dir} is in epoch {p.epoch + 1} already; choose "
                "at least that"
            )
        if p.epoch == epochs:
            if self.process.is_main:
                print(
                    f"{self.run_dir} is finished, with {p.epoch} epochs; nothing in it is changed. "
                    f"A larger EPOCHS goes on: --resume {self.run_dir} --epochs N"
                )
            return
        with ExitStack() as stack:
            stack.enter_context(self.interrupts)
            if self.process.is_main:
                # The settings first: then a run that is killed right now can go on.
                write_settings(self.settings, self.run_dir / SETTINGS)
                record()
                for line in restored:
                    self.accounts.log(line)
                writer = SummaryWriter(self.run_dir, purge_step=p.step + 1)
                self.accounts.writer = stack.enter_context(writer)
            with self.interrupts.deferred():
                samples = self._samples()
                while p.epoch < epochs:
                    self._train_epoch(samples)
                    self._finish_epoch()

    def _samples(self) -> Iterator[dict[str, Any]]:
        """Every part of every step that is still to do.

        One loader for all epochs: it works ahead during validation too, and an epoch does not begin
        by waiting for its processes to start and each to make a first batch.
        """
        s, p = self.settings, self.accounts.progress
        first, start = p.epoch, p.batch
        parts = (
            keys
            for epoch in range(first, s.epochs)
            for step in self.batches.epoch(epoch, start if epoch == first else 0)
            for keys in step
        )
        yield from make_loader(self.dataset, parts, s.workers, self.process.device)

    def _train_epoch(self, samples: Iterator[dict[str, Any]]) -> None:
        """The steps of the running epoch that are still to do."""
        s, accounts, p = self.settings, self.accounts, self.accounts.progress
        self.network.train()
        bar = tqdm(
            total=len(self.batches) * s.batch_size,
            initial=p.batch * s.batch_size,
            desc=f"epoch {p.epoch + 1}/{s.epochs}",
            unit="image",
            disable=None if self.process.is_main else True,  # None: silent where it is no terminal
            leave=False,
            dynamic_ncols=True,
        )
        accounts.pace = pace = Pace(time.perf_counter())
        with bar:
            for keys in self.batches.epoch(p.epoch, p.batch):
                before = time.perf_counter()
                parts = [next(samples) for _ in keys]
                pace.waited += time.perf_counter() - before
                self.step(parts, keys)
                bar.update(s.batch_size)
                if pace.losses:
                    bar.set_postfix(loss=f"{pace.losses['total']:.3f}", refresh=False)
                if accounts.stop:
                    self._save()
                    wait_for_all(self.process)  # torchrun ends the others when the first one ends
                    self._stop(accounts.stop)
                if accounts.save:
                    self._save()
        self.finish_step()

    def step(self, parts: list[dict[str, Any]], keys: list[list[Key]]) -> None:
        """Begin a step of the optimizer, and finish the one before.

        Nothing here waits for a GPU: it gets the work of this step before the numbers of the last
        one are read. So the device itself leaves out a step with bad numbers.

        Args:
            parts: samples of the batch, in the parts that it is computed in.
            keys: of the samples, to name them.
        """
        s, p, device = self.settings, self.accounts.progress, self.process.device
        seed = np.random.SeedSequence([s.seed, p.step, self.process.rank]).generate_state(1)
        torch.manual_seed(int(seed[0]))
        self._set_learning_rate()
        if self.buffers:
            torch._foreach_copy_(self.buffers_before, self.buffers)
        faults = [fault for part in parts for fault in part.pop("fault", []) if fault]

        self.optimizer.zero_grad(set_to_none=True)
        sums: dict[str, Tensor] = {}
        for number, part in enumerate(parts, 1):
            batch = {name: send(tensor, device) for name, tensor in part.items()}
            with self._gradients_kept_here(number < len(parts)):
                with self._mixed_precision():
                    terms = self.loss(batch)
                total = sum(terms.values())
                (total / len(parts)).backward()
            for name, value in {"total": total, **terms}.items():
                sums[name] = sums.get(name, 0) + value.detach() / len(parts)
        limit = math.inf if s.clip_gradient is None else s.clip_gradient
        norm = clip_grad_norm_(self.parameters, limit)
        told, asked = self._agree(sums, norm, len(faults))
        bad = ~told[: -len(asked)].isfinite().all()
        # As torch's gradient scaler does it for optimizers that are fused.
        self.optimizer.found_inf = bad.float()
        self.optimizer.step()
        self._undo_forward_pass_if(bad)
        p.step += 1
        p.batch += 1
        with torch.no_grad():
            self.network.after_step(p.step)

        begun = Step(p.step, self.rate, list(sums), fetch([told]), keys, faults)
        self.finish_step()
        self.begun = begun
        if any(asked) and self.process.world_size == 1:
            self.finish_step()  # at once, since there is nobody to agree with

    def finish_step(self) -> None:
        """Read the numbers of the step that was begun last, if that is not done, and count them."""
        step, self.begun = self.begun, None
        if step is not None:
            self.accounts.finish(step)

    def _set_learning_rate(self) -> None:
        s = self.settings
        steps, floor = s.epochs * len(self.batches), s.min_learning_rate / s.learning_rate
        factor = cosine_factor(self.accounts.progress.step, steps, floor)
        self.rate = s.learning_rate * factor
        for group in self.optimizer.param_groups:
            group["lr"] = self.rate * group.get("rate", 1.0)

    def _gradients_kept_here(self, more_to_come: bool):
        """Context of a part of a batch: processes share gradients with the last part alone."""
        if more_to_come and isinstance(self.loss, DistributedDataParallel):
            return self.loss.no_sync()
        return nullcontext()

    def _mixed_precision(self) -> torch.autocast:
        kind = self.process.device.type
        enabled = self.settings.mixed_precision and kind == "cuda"
        return torch.autocast(kind, torch.bfloat16, enabled=enabled)

    def _agree(
        self, sums: dict[str, Tensor], norm: Tensor, faults: int
    ) -> tuple[Tensor, list[int | bool]]:
        """The step's numbers over all processes, and after them what this process asks for.

        It may ask to stop (SIGINT, SIGTERM) or to save, and tells how many samples had faults.
        """
        s, pending = self.settings, self.interrupts.pending
        # While numbers are bad nothing is saved.
        minutes = (time.monotonic() - self.saved_at) / 60
        due = self.process.is_main and not self.accounts.progress.bad_in_row
        due = due and minutes >= s.checkpoint_minutes
        asked = [pending == signal.SIGINT, pending == signal.SIGTERM, due, faults]
        told = torch.stack([*sums.values(), norm.float(), *norm.new_zeros(len(asked)).float()])
        if any(asked):  # which is rare: numbers from the CPU make a GPU wait
            told[-len(asked) :] = told.new_tensor(asked)
        if self.process.world_size > 1:
            # The norm is alike everywhere; the loss and the requests are not.
            torch.distributed.all_reduce(told)
            told[: -len(asked)] /= self.process.world_size
        return told, asked

    def _undo_forward_pass_if(self, bad: Tensor) -> None:
        """Where ``bad`` is true, norms' statistics and the average stay as they were."""
        for buffer, before in zip(self.buffers, self.buffers_before):
            torch.where(bad, before, buffer, out=buffer)
        if self.average is not None:
            # The average begins with the result of the first good step.
            weight = torch.where(self.averaged > 0, 1 - self.settings.ema_decay, 1.0)
            move_towards(self.average, self.network, torch.where(bad, 0.0, weight))
            self.averaged += ~bad

    def _finish_epoch(self) -> None:
        """Validate if it is time to, report, and save."""
        s, accounts, p = self.settings, self.accounts, self.accounts.progress
        pace = accounts.pace.in_words(s.workers)
        last = p.epoch + 1 == s.epochs
        if last and not p.good_steps:
            accounts.give_up(f"no step of epoch {p.epoch + 1}, the last, had finite numbers")
        validation = None
        if last or (p.epoch + 1) % s.validate_every == 0:
            self._save()  # so that stopping during validation loses nothing
            self._stop(self._asked_to_stop())
            try:
                # Several processes wait for one another, so that none may leave by itself.
                alone = self.process.world_size == 1
                with self.interrupts.admitted() if alone else nullcontext():
                    validation = self.validation()
            except Interrupted:
                self._stop(self.interrupts.pending)
        is_best = validation is not None and validation.score > p.best
        if is_best:
            p.best = validation.score
        accounts.finish_epoch(validation, is_best, pace, self.rate)
        if is_best:
            self._save(best=True)
        self._save()
        if last and self.process.is_main:
            accounts.finish_run()
        self._stop(self._asked_to_stop())

    def _save(self, best: bool = False) -> None:
        self.finish_step()
        save(self, best)

    def _asked_to_stop(self) -> int | None:
        """The signal that one of the processes has got, the same in all of them."""
        return max(filter(None, gather(self.interrupts.pending, self.process)), default=None)

    def _stop(self, signum: int | None) -> None:
        """Stop, everything being saved, if a signal asks for it."""
        if signum is not None:
            p, saved = self.accounts.progress, self.accounts.saved_step
            going_on = (
                f"; --resume {self.run_dir} goes on" if p.epoch < self.settings.epochs else ""
            )
            if going_on and saved < p.step:
                going_on += f" after step {saved}, before the bad numbers"
            self.accounts.log(f"stopped after step {p.step}{going_on}")
            raise Interrupted(signum)

    def validation(self, quick: bool = False) -> Validation:
        """The validation's result; every process has the main one's network for it."""
        if self.process.world_size > 1:
            # Without synchronised norms each process has statistics of its own samples.
            for buffer in self.result.buffers():
                torch.distributed.broadcast(buffer, 0)
        self.result.eval()
        return self.validate(self.result, quick)


def cosine_factor(step: int, total: int, floor: float) -> float:
    """Learning rate of a step, as a share of the first: from 1 to ``floor`` at the last step."""
    done = min(step / max(1, total - 1), 1.0)
    return floor + (1 - floor) * (1 + math.cos(math.pi * done)) / 2


def _shared(network: Network, process: Process) -> nn.Module:
    """The network's loss, with gradients that all processes share."""
    if process.world_size == 1:
        return LossOf(network)
    if process.device.type == "cuda":
        # timm's: it keeps the activations in its own norms.
        loss = LossOf(convert_sync_batchnorm(network))
        return DistributedDataParallel(loss, device_ids=[process.device.index])
    return DistributedDataParallel(LossOf(network))
