"""What the scripts share: how training starts, errors as messages, checks of the data."""

import errno
import re
import sys
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

from datasets.clips import VideoError
from datasets.file_checks import check_files
from datasets.flow.estimators import FlowError
from datasets.layout import Frame, Sequence
from datasets.problems import DatasetError
from datasets.progress import print_any_name
from models import ModelError
from utils.evaluation.results import ResultsError
from utils.processes import Process, end_process, launch_processes, start_process
from utils.settings import Settings, SettingsError, parse_settings, settings_parser
from utils.training.accounts import TrainingError
from utils.training.checkpoints import CheckpointError
from utils.training.interrupts import Interrupted
from utils.training.record import changed_data, fingerprint, write_record
from utils.training.run_folder import check_run, find_run, has_checkpoint, locked, resumed_settings
from utils.training.samples import network_arguments, without_effect

USER_ERRORS = (
    DatasetError,
    FlowError,
    ModelError,
    CheckpointError,
    SettingsError,
    ResultsError,
    TrainingError,
    VideoError,
)

_UNWRITABLE = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO, errno.EROFS)
_SHARED_MEMORY = (
    "Loader processes hand over samples in shared memory, /dev/shm, which is full. In Docker, "
    "where it has 64 MB, start the container with --shm-size 8g or --ipc=host; elsewhere fewer "
    "WORKERS (0 takes none) or a smaller BATCH_SIZE need less of it."
)
_FORBIDDEN = (errno.EACCES, errno.EPERM)  # of reading as of writing


@dataclass(frozen=True)
class Run:
    """A training run that is about to start.

    Attributes:
        settings: of this run, or of the one that is resumed.
        process: this process.
        folder: of the run.
        resumed: whether it goes on.
        has_weights: whether it has a checkpoint to go on from, and does not begin anew.
        dry_run: whether it is only to be tried.
    """

    settings: Settings
    process: Process
    folder: Path
    resumed: bool
    has_weights: bool
    dry_run: bool

    def network_arguments(self, **arguments: Any) -> dict[str, Any]:
        """What builds the network; a checkpoint's needs no ImageNet weights."""
        arguments = network_arguments(self.settings, **arguments)
        if self.has_weights and "pretrained_backbone" in arguments:
            arguments["pretrained_backbone"] = False
        return arguments

    def locked(self) -> AbstractContextManager[None]:
        """Keeps other processes out of the run's folder; a dry run does not need that."""
        writes = self.process.is_main and not self.dry_run
        return locked(self.folder) if writes else nullcontext()

    def record(self, sets: dict[str, list[Frame]]) -> None:
        """Write down how and with what data the run was started; say how the data has changed."""
        found = fingerprint(sets, Path(self.settings.data_root))
        changed = changed_data(self.folder, found)
        if changed:
            print(changed)
        write_record(self.folder, found, self.process.world_size)


def start_training(config: ModuleType, name: str, description: str) -> Run | None:
    """Read the settings of a training script, find its device and its run folder.

    Args:
        config: the module ``config``.
        name: of the run's folder, unless RUN_NAME gives another.
        description: for ``--help``.

    Returns:
        The run; ``None`` if it was left to processes that have been started, and have ended.
    """
    parser = settings_parser(config, description)
    parser.add_argument(
        "--resume",
        metavar="RUN_DIR",
        help="go on with this run; auto: with the run of this name if it was begun, else begin it",
    )
    parser.add_argument(
        "--dry-run",
        action="store_true",
        help="check everything, try two steps and one batch of validation, and write nothing",
    )
    settings, arguments = parse_settings(parser, config)
    resume = find_run(name, settings, arguments.resume)
    settings = resumed_settings(settings, resume, arguments.given | arguments.in_files)
    if launch_processes(settings.gpu):
        return None
    process = start_process(settings.gpu)
    folder = check_run(name, settings, resume, process, arguments.dry_run)
    has_weights = resume is not None and has_checkpoint(folder)
    if process.is_main and (unheard := without_effect(arguments.given, settings.model)):
        print(f"without effect on {settings.model}: {', '.join(unheard)}")
    return Run(settings, process, folder, resume is not None, has_weights, arguments.dry_run)


def compare_flow(trained_on: str | None, given: str | None) -> None:
    """Say when a network is shown another kind of flow maps than it was trained on.

    Both as ``origin_in_words`` tells them, or ``None``, unknown. Simulated flow maps
    may stand for any estimator's, but not for those with another camera motion.
    """
    if not trained_on or not given:
        return
    (one, _, camera), (other, _, other_camera) = (x.partition(", ") for x in (trained_on, given))
    if camera != other_camera or (one != other and "simulated" not in (one, other)):
        print(f"note: trained on flow maps of another kind ({trained_on}) than these ({given})")


def run_script(main: Callable[[], None]) -> None:
    """Run a script's ``main``; what the user can mend ends it with a message and status 1."""
    print_any_name()
    try:
        main()
    except Interrupted as interrupted:
        sys.exit(interrupted.exit_code)
    except Exception as error:
        if not (message := _loader_death(error) or _mendable(error)):
            raise
        sys.exit(f"error: {message}")
    except KeyboardInterrupt:
        sys.exit(130)
    finally:
        end_process()


def _mendable(error: Exception) -> str | None:
    """What to say of an error that the user can mend."""
    if isinstance(error, USER_ERRORS):
        # A loader process sends its whole traceback as the message; the error itself is its end.
        return str(error).rpartition(f"{type(error).__name__}: ")[2].strip()
    if isinstance(error, OSError) and error.errno in (*_UNWRITABLE, *_FORBIDDEN):
        done = "written" if error.errno in _UNWRITABLE else "read or written"
        return f"{error.filename or 'a file'} could not be {done}: {error.strerror}"
    return None


def _loader_death(error: BaseException | None) -> str | None:
    """What to say if the cause is a loader process that was killed, mostly for want of memory."""
    # It breaks into whatever is being done, which may fail for that in its own words.
    death, errors, seen = None, [error], set()
    while errors:
        error = errors.pop()
        if error is None or id(error) in seen:
            continue
        seen.add(id(error))
        errors += [error.__cause__, error.__context__]
        if re.search(r"DataLoader worker .*(killed|exited)", str(error)):
            death = f"{error}\nA loader process died; is there memory for WORKERS of them?"
        if re.search(r"Bus error|shared memory|torch_\d+_.*No space left", str(error)):
            return f"{str(error).strip().splitlines()[-1]}\n{_SHARED_MEMORY}"
    return death


def check_data(frames: list[Frame], process: Process | None = None) -> None:
    """Look at every file's header before anything starts, in the main process.

    Raises:
        DatasetError: files that are unreadable, truncated, or of another size than their image.
    """
    if process is None or process.is_main:
        check_files(frames)


def frames_of(sequences: list[Sequence]) -> list[Frame]:
    """All frames of all sequences."""
    return [frame for sequence in sequences for frame in sequence.frames]
