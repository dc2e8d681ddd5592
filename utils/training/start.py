"""The start of a training run: its settings, its device, its folder and its record."""

import os
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

from torch.utils.data import Dataset

from datasets.layout import Frame
from models import model_class
from models.interface import Network
from precision import device_in_words
from utils import __version__
from utils.processes import Process, gpu_indices, launch_processes, start_process
from utils.settings import Settings, SettingsError, parse_settings, settings_parser
from utils.training.checkpoints import BEST, LAST
from utils.training.dry_run import try_out
from utils.training.loop import Training, Validate
from utils.training.record import changed_data, fingerprint, git_commit, write_record
from utils.training.run_folder import check_run, find_run, locked, resumed_settings
from utils.training.samples import network_arguments, without_effect


@dataclass(frozen=True)
class Run:
    """A training run that is about to start."""

    script: str  # the file that trains it
    given: frozenset[str]  # names of the settings that flags gave
    settings: Settings  # of this run, or of the run that is resumed
    process: Process
    folder: Path
    resumed: bool
    dry_run: bool

    @property
    def has_weights(self) -> bool:
        """Whether there is a checkpoint to continue from."""
        return self.resumed and (self.folder / LAST).is_file()

    def network_arguments(self, **arguments: Any) -> dict[str, Any]:
        """Arguments of the network's constructor; no published weights if a run is continued."""
        others = model_class(self.settings.model).random_weights if self.has_weights else {}
        return network_arguments(self.settings, **arguments, **others)

    def train(
        self,
        network: Network,
        arguments: dict[str, Any],
        dataset: Dataset,
        validate: Validate,
        frames: dict[str, list[Frame]],
        flow: str | None = None,
    ) -> None:
        """Train the network, made from ``arguments``, and print the best score.

        ``frames`` are those of training and validation by the set's name, for the run's record.
        ``flow`` is the kind of the flow maps, kept in checkpoints.
        """
        s = self.settings
        identity = {"script": self.script, "model": s.model, "arguments": arguments, "flow": flow}
        identity |= {"version": __version__, "commit": git_commit(Path(__file__).parent)}
        training = Training(network, dataset, validate, s, identity, self.folder, self.process)
        if self.dry_run:
            return try_out(training.trainer, dataset, training.batches, validate)

        def record() -> None:
            found = fingerprint(frames, Path(s.data_root))
            if changed := changed_data(self.folder, found):
                print(changed)
            device = device_in_words(self.process.device, s.mixed_precision)
            write_record(self.folder, found, device, self.process.world_size)

        with locked(self.folder) if self.process.is_main else nullcontext():
            training.run(self.resumed, record)
        best = training.accounts.progress.best
        if self.process.is_main and best < 0:
            print(f"no masks to validate on, so there is no {BEST}: {self.folder / LAST}")
        elif self.process.is_main:
            print(f"best validation J {best:.4f}: {self.folder / BEST}")


def start_training(config: ModuleType, name: str, description: str) -> Run | None:
    """Read the settings of a training script, find its device and its run folder.

    Args:
        config: the module ``config``.
        name: of the script, and of the run's folder, unless RUN_NAME gives another.
        description: for ``--help``.

    Returns:
        The run; ``None`` if other processes were started for it, which have ended.
    """
    parser = settings_parser(config, description)
    parser.add_argument(
        "--resume",
        metavar="RUN_DIR",
        help="continue this run; auto: continue the run of this name, or begin it",
    )
    parser.add_argument(
        "--dry-run",
        action="store_true",
        help="check everything, try two steps and a short validation, and write nothing",
    )
    settings, arguments = parse_settings(parser, config)
    resume = find_run(name, settings, arguments.resume)
    settings = resumed_settings(settings, resume, arguments.given | arguments.in_files)
    if "LOCAL_RANK" not in os.environ:  # before processes are started
        _check_compile(settings, len(gpu_indices(settings.gpu)))
    if launch_processes(settings.gpu, after_ctrl_c=0):
        return None
    process = start_process(settings.gpu)
    _check_compile(settings, process.world_size)
    folder = check_run(name, settings, resume, process, arguments.dry_run)
    if process.is_main and (unheard := without_effect(arguments.given, settings.model)):
        print(f"without effect on {settings.model}: {', '.join(unheard)}")
    resumed = resume is not None
    given = arguments.given
    return Run(f"{name}.py", given, settings, process, folder, resumed, arguments.dry_run)


def _check_compile(settings: Settings, num_processes: int) -> None:
    if settings.compile and num_processes > 1:
        raise SettingsError(
            f"COMPILE is on, and training would use {num_processes} processes. With several, "
            "torch.compile fails on synchronised norms (github.com/pytorch/pytorch/issues/107372). "
            "Train on one GPU, or with COMPILE = False"
        )
