"""The training loop of all networks: epochs of steps, validation, checkpoints.

The step itself is ``Trainer.step`` in ``utils/training/step.py``.
"""

import signal
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch.utils.data import Dataset
from torch.utils.tensorboard import SummaryWriter

from datasets.progress import progress_bar
from models.interface import Network
from utils.processes import Process, gather, num_cores, wait_for_all
from utils.settings import Settings, write_settings
from utils.training.accounts import Accounts, Pace, Validation
from utils.training.checkpoints import LAST, CheckpointError
from utils.training.interrupts import Interrupted, Interrupts
from utils.training.run_folder import SETTINGS
from utils.training.samples import batches_of, make_loader
from utils.training.state import restore, save
from utils.training.step import Trainer

Validate = Callable[[Network, bool], Validation]


@dataclass
class Training:
    """A run with Adam and a cosine schedule (Sec. 4.4): its state, and its loop.

    All random numbers follow from the seed, the step and the process. So a run that continues from
    a checkpoint computes the same as without the break.
    """

    network: Network  # on the CPU
    dataset: Dataset  # samples of the kind that the network needs
    validate: Validate  # scores the network, in every process; with True it is short
    settings: Settings
    identity: dict[str, Any]  # kept in checkpoints: model, arguments, script, flow, version, commit
    run_dir: Path  # gets the files that docs/training.md lists
    process: Process

    def __post_init__(self) -> None:
        s, process = self.settings, self.process
        self.batches = batches_of(self.dataset, s, process)
        self.trainer = Trainer(self.network, s, process, s.epochs * len(self.batches))
        self.accounts = Accounts(s, self.dataset, self.run_dir, process)
        self.interrupts = Interrupts()
        self.begun: tuple | None = None  # the last step, whose numbers are not read yet
        self.saved_at = time.monotonic()
        self.heard = False  # whether this process has noticed a signal and saved

    def run(self, resume: bool = False, record: Callable[[], None] = lambda: None) -> None:
        """Train for ``settings.epochs`` epochs, or until interrupted.

        With ``resume`` from the run's last checkpoint, if there is one. ``record`` is called in the
        main process when training begins.

        Raises:
            TrainingError: numbers that are not finite, in too many steps in a row, in all steps of
                the last epoch, or in the weights.
            DatasetError: a file cannot be read.
            CheckpointError: a checkpoint cannot be read or written.
            Interrupted: Ctrl-C or SIGTERM; a checkpoint has been written.
        """
        resuming = restore(self) if resume and (self.run_dir / LAST).is_file() else None
        if self._is_finished():
            return
        p = self.accounts.progress
        with ExitStack() as stack:
            stack.enter_context(self.interrupts)
            if self.process.is_main:
                write_settings(self.settings, self.run_dir / SETTINGS)
                record()
                if resuming:
                    self.accounts.log(resuming)
                writer = SummaryWriter(self.run_dir, purge_step=p.step + 1)
                self.accounts.writer = stack.enter_context(writer)
            samples = self._samples()
            while p.epoch < self.settings.epochs:
                self._train_epoch(samples)
                self._finish_epoch()

    def _is_finished(self) -> bool:
        """Whether there is nothing left to train; says so."""
        p, epochs = self.accounts.progress, self.settings.epochs
        if len(set(gather((p.epoch, p.batch, p.step, p.best), self.process))) > 1:
            raise CheckpointError(
                f"the processes do not find the same checkpoint in {self.run_dir}; do all machines "
                "see the same folder?"
            )
        if p.epoch >= epochs and self.process.is_main:
            print(
                f"{self.run_dir} is finished, with {p.epoch} epochs; nothing in it is changed. "
                f"A larger EPOCHS continues it: --resume {self.run_dir} --epochs N"
            )
        return p.epoch >= epochs

    def _samples(self) -> Iterator[dict[str, Any]]:
        """Every part of every step that is still to do, of one loader that works ahead."""
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
        self.trainer.network.train()
        bar = progress_bar(
            total=len(self.batches) * s.batch_size,
            initial=p.batch * s.batch_size,
            desc=f"epoch {p.epoch + 1}/{s.epochs}",
            unit="image",
            shown=self.process.is_main and sys.stderr.isatty(),  # a log has the epochs' lines
            leave=False,
        )
        accounts.pace = pace = Pace(time.perf_counter())
        with bar:
            for keys in self.batches.epoch(p.epoch, p.batch):
                self._heed_signal()
                before = time.perf_counter()
                try:
                    parts = [next(samples) for _ in keys]
                except RuntimeError:
                    self._stop_if_loaders_were_ended()
                    raise
                pace.waited += time.perf_counter() - before
                requests = self._requests()
                step = self.trainer.step(parts, requests)
                p.step, p.batch = step.number, p.batch + 1
                self._read_step()  # the step before; so a GPU always has one step queued
                self.begun = step, keys
                if any(requests) and self.process.world_size == 1:
                    self._read_step()  # at once: no other process votes
                bar.update(s.batch_size)
                if pace.losses:
                    bar.set_postfix(loss=f"{pace.losses['total']:.3f}", refresh=False)
                if accounts.stop:
                    self._save()
                    wait_for_all(self.process)  # torchrun ends the others when the first one ends
                    self._stop(accounts.stop)
                if accounts.save:
                    self._save()
        self._read_step()

    def _heed_signal(self) -> None:
        """Save after a signal, before the next step begins. A single process then stops.

        Several processes vote, and stop after at most two more steps. They save first, because
        torchrun kills them after 30 seconds.
        """
        pending = self.interrupts.pending
        if pending is not None and not self.heard:
            self.heard = True
            self._save_alone()
            if self.process.world_size == 1:
                self._stop(pending)

    def _stop_if_loaders_were_ended(self) -> None:
        """Save and stop if there was a signal: it ends loader processes after 20 seconds."""
        if self.interrupts.pending is not None:
            self._save_alone()
            # Without asking the other processes, which may have stopped.
            self._stop(self.interrupts.pending, together=False)

    def _save_alone(self) -> None:
        """Save without the other processes, which may not have noticed the signal.

        If the last step's numbers are bad, nothing is saved: all processes report them together.
        """
        alone = self.process.world_size > 1
        if not (alone and self.begun is not None and not self.begun[0].is_finite()):
            self._save()

    def _requests(self) -> list[bool]:
        """Whether this process wants all to stop after SIGINT, after SIGTERM, and to save."""
        pending, p = self.interrupts.pending, self.accounts.progress
        minutes = (time.monotonic() - self.saved_at) / 60
        due = self.process.is_main and minutes >= self.settings.checkpoint_minutes
        due = due and not p.bad_in_row  # while numbers are bad nothing is saved
        return [pending == signal.SIGINT, pending == signal.SIGTERM, due]

    def _read_step(self) -> None:
        """Read and count the numbers of the step that was begun last, if that is not done."""
        if self.begun is not None:
            begun, self.begun = self.begun, None
            self.accounts.finish(*begun)

    def _finish_epoch(self) -> None:
        """Validate if it is time to, report, and save."""
        s, accounts, p = self.settings, self.accounts, self.accounts.progress
        pace = accounts.pace.in_words(min(s.workers, num_cores()))
        last = p.epoch + 1 == s.epochs
        if last and not p.good_steps:
            accounts.give_up(f"no step of epoch {p.epoch + 1}, the last, had finite numbers")
        validation = None
        if last or (p.epoch + 1) % s.validate_every == 0:
            self._save()  # so that stopping during validation loses nothing
            self._stop(self._asked_to_stop())
            validation = self._validated()
        score = None if validation is None else validation.score
        is_best = score is not None and score > p.best
        if is_best:
            p.best = score
        rate = self.trainer.learning_rate(p.step - 1)
        accounts.finish_epoch(validation, is_best, pace, rate)
        if is_best:
            self._save(best=True)
        self._save()
        self._stop(self._asked_to_stop())

    def _validated(self) -> Validation:
        """The validation; a signal to all processes may end it."""
        try:
            return self.validate(self.trainer.in_evaluation_mode(), False)
        except RuntimeError:
            self._stop_if_loaders_were_ended()
            raise

    def _save(self, best: bool = False) -> None:
        self._read_step()
        save(self, best)

    def _asked_to_stop(self) -> int | None:
        """The signal that one of the processes has got, the same in all of them."""
        return max(filter(None, gather(self.interrupts.pending, self.process)), default=None)

    def _stop(self, signum: int | None, together: bool = True) -> None:
        """Stop, everything being saved, if a signal asks for it."""
        if signum is None:
            return
        p, saved = self.accounts.progress, self.accounts.saved_step
        line = f"stopped after step {p.step}"
        if p.epoch < self.settings.epochs:
            line += f"; continue by --resume {self.run_dir}"
            if saved < p.step:
                line += f", after step {saved}, before the bad numbers"
        self.accounts.log(line)
        raise Interrupted(signum, together)
