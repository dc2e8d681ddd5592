"""What the scripts share: the start of a training run, checks of the data, errors as messages."""

import errno
import re
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from types import ModuleType
from typing import Any

from torch.utils.data import Dataset

from datasets.file_checks import check_files
from datasets.flow.origin import stale_flow
from datasets.layout import Frame, Sequence, flow_note
from datasets.progress import print_any_name
from errors import UserError
from models.interface import Network
from utils.processes import Process, end_process, launch_processes, start_process
from utils.settings import Settings, parse_settings, settings_parser
from utils.training.checkpoints import BEST
from utils.training.interrupts import Interrupted
from utils.training.loop import Validate, fit
from utils.training.record import changed_data, check_script, fingerprint, write_record
from utils.training.run_folder import check_run, find_run, has_checkpoint, locked, resumed_settings
from utils.training.samples import network_arguments, without_effect

_UNWRITABLE = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO, errno.EROFS)
_FORBIDDEN = (errno.EACCES, errno.EPERM)  # of reading as of writing
_MESSAGES = {  # by what the message of the error, or of its cause, has in it
    r"Bus error|out of shared memory|memory\(shm\)|torch_\d+_.*No space left": (
        "Loader processes hand over samples in shared memory, /dev/shm, which is full. In Docker, "
        "where it has 64 MB, start the container with --shm-size 8g or --ipc=host; elsewhere fewer "
        "WORKERS (0 takes none) or a smaller BATCH_SIZE need less of it."
    ),
    r"DataLoader worker .*(killed|exited)": (
        "A loader process died; is there memory for WORKERS of them?"
    ),
    r"out of memory|DefaultCPUAllocator": (
        "The memory is too small. In training, a smaller BATCH_SIZE or IMAGE_SIZE needs less, and "
        "so does a larger ACCUMULATION_STEPS; in validation and evaluation a smaller "
        "EVAL_BATCH_SIZE or IMAGE_SIZE."
    ),
}


@dataclass(frozen=True)
class Run:
    """A training run that is about to start."""

    script: str  # the file that trains it
    settings: Settings  # of this run, or of the run that is resumed
    process: Process
    folder: Path
    resumed: bool
    has_weights: bool  # there is a checkpoint to continue from
    dry_run: bool

    def network_arguments(self, **arguments: Any) -> dict[str, Any]:
        """Arguments of the network's constructor; a checkpoint needs no ImageNet weights."""
        arguments = network_arguments(self.settings, **arguments)
        if self.has_weights and "pretrained_backbone" in arguments:
            arguments["pretrained_backbone"] = False
        return arguments

    def train(
        self,
        network: Network,
        arguments: dict[str, Any],
        dataset: Dataset,
        validate: Validate,
        frames: dict[str, list[Frame]],
        flow: str | None,
    ) -> None:
        """Train the network as :func:`fit` does, and print the best score.

        Args:
            network: made from ``arguments``, which checkpoints keep.
            dataset, validate: see :func:`fit`.
            frames: of training and validation by the set's name, for the run's record.
            flow: kind of the flow maps, kept in checkpoints.
        """
        identity = {"script": self.script, "model": self.settings.model, "arguments": arguments}
        writes = self.process.is_main and not self.dry_run
        with locked(self.folder) if writes else nullcontext():
            progress = fit(
                network,
                dataset,
                validate,
                self.settings,
                {**identity, "flow": flow},
                self.folder,
                self.process,
                resume=self.resumed,
                dry_run=self.dry_run,
                record=lambda: self._record(frames),
            )
        if writes:
            print(f"best validation J {progress.best:.4f}: {self.folder / BEST}")

    def _record(self, frames: dict[str, list[Frame]]) -> None:
        found = fingerprint(frames, Path(self.settings.data_root))
        if changed := changed_data(self.folder, found):
            print(changed)
        write_record(self.folder, found, self.process.world_size)


def start_training(config: ModuleType, name: str, description: str) -> Run | None:
    """Read the settings of a training script, find its device and its run folder.

    Args:
        config: the module ``config``.
        name: of the script, and of the run's folder, unless RUN_NAME gives another.
        description: for ``--help``.

    Returns:
        The run; ``None`` if it was left to processes that have been started, and have ended.
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
        help="check everything, try two steps and one batch of validation, and write nothing",
    )
    settings, arguments = parse_settings(parser, config)
    resume = find_run(name, settings, arguments.resume)
    settings = resumed_settings(settings, resume, arguments.given | arguments.in_files)
    if resume is not None:
        check_script(resume, f"{name}.py")
    if launch_processes(settings.gpu):
        return None
    process = start_process(settings.gpu)
    folder = check_run(name, settings, resume, process, arguments.dry_run)
    resumed = resume is not None
    has_weights = resumed and has_checkpoint(folder)
    if process.is_main and (unheard := without_effect(arguments.given, settings.model)):
        print(f"without effect on {settings.model}: {', '.join(unheard)}")
    script, dry_run = f"{name}.py", arguments.dry_run
    return Run(script, settings, process, folder, resumed, has_weights, dry_run)


def compare_flow(trained_on: str | None, given: str | None) -> None:
    """Say when a network is shown another kind of flow maps than it was trained on.

    Both are in the words of ``origin_in_words``, or ``None`` where it is not known. Simulated flow
    maps may stand for any estimator's, but not for those with another camera motion.
    """
    if not trained_on or not given:
        return
    (one, _, camera), (other, _, other_camera) = (x.partition(", ") for x in (trained_on, given))
    if camera != other_camera or (one != other and "simulated" not in (one, other)):
        print(f"note: trained on flow maps of another kind ({trained_on}) than these ({given})")


def check_data(frames: list[Frame], process: Process | None = None, flow: bool = True) -> None:
    """Check every file's header before anything starts, in the main process.

    Without ``flow``, flow maps are not looked at.

    Raises:
        DatasetError: files that are unreadable, truncated, or of another size than their image.
    """
    if process is None or process.is_main:
        check_files(frames if flow else [replace(frame, flow=None) for frame in frames])


def note_flow(set_name: str, sequences: list[Sequence]) -> None:
    """Say which sequences of a set lack a flow map, and which maps are of other images."""
    if note := flow_note(sequences):
        print(f"note: {set_name}: {note}")
    with ThreadPoolExecutor() as pool:
        stale = [path for paths in pool.map(stale_flow, sequences) for path in paths]
    if stale:
        print(
            f"note: {set_name}: {len(stale)} flow maps are of other images than are there now, "
            f"such as {stale[0]}; python -m datasets.flow makes them anew"
        )


def frames_of(sequences: list[Sequence]) -> list[Frame]:
    """All frames of all sequences."""
    return [frame for sequence in sequences for frame in sequence.frames]


def run_script(main: Callable[[], None]) -> None:
    """Run a script's ``main``; an error that the user can mend ends it with a message, status 1."""
    print_any_name()
    try:
        main()
    except Interrupted as interrupted:
        sys.exit(interrupted.exit_code)
    except Exception as error:
        if not (message := _message(error)):
            raise
        sys.exit(f"error: {message}")
    except KeyboardInterrupt:
        sys.exit(130)
    finally:
        end_process()


def _message(error: Exception) -> str | None:
    """The message for an error that the user can mend."""
    # The end of a loader process interrupts anything, which may then fail in its own words.
    for cause in reversed(_causes(error)):
        for pattern, advice in _MESSAGES.items():
            if re.search(pattern, str(cause)):
                return f"{str(cause).strip().splitlines()[-1]}\n{advice}"
    if isinstance(error, UserError):
        # A loader process sends its whole traceback as the message; the error itself is its end.
        return str(error).rpartition(f"{type(error).__name__}: ")[2].strip()
    if isinstance(error, OSError) and error.errno in (*_UNWRITABLE, *_FORBIDDEN):
        done = "written" if error.errno in _UNWRITABLE else "read or written"
        remedy = "; make room there" if error.errno in (errno.ENOSPC, errno.EDQUOT) else ""
        return f"{error.filename or 'a file'} could not be {done}: {error.strerror}{remedy}"
    return None


def _causes(error: BaseException) -> list[BaseException]:
    """The error, its cause, the cause of that, and so on."""
    cause = error.__cause__ or error.__context__
    return [error, *(_causes(cause) if cause else [])]
