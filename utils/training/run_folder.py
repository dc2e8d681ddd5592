"""Run folders: which one a run gets, what it takes over when it goes on, and its log file."""

import fcntl
import sys
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path

from tqdm import tqdm

from utils.processes import Process
from utils.settings import Settings, SettingsError, read_settings_file
from utils.training.checkpoints import BEST, LAST, PREVIOUS, CheckpointError

SETTINGS, LOG = "settings.py", "log.txt"


def find_run(name: str, settings: Settings, resume: str | None) -> Path | None:
    """The folder of the run that is to go on; None for a new run.

    Args:
        name: of the run's folder, unless RUN_NAME gives another.
        settings: of a new run.
        resume: a folder; ``"auto"`` for the one that a new run would get, if it was begun before.
    """
    if resume is None:
        return None
    if resume != "auto":
        return Path(resume)
    folder = run_folder(name, settings)
    return folder if (folder / SETTINGS).is_file() else None


def run_folder(name: str, settings: Settings) -> Path:
    """The folder of a new run."""
    return Path(settings.output_dir) / (settings.run_name or name)


def check_run(
    name: str, settings: Settings, resume: Path | None, process: Process, dry_run: bool = False
) -> Path:
    """The run's folder, new or resumed; nothing is written yet. A dry run may name any folder.

    Raises:
        CheckpointError: a new run's folder exists, or the run to resume has only a best.pt left.
        SettingsError: the batch cannot be shared by the processes, or the folder's name is not
            UTF-8.
    """
    shares = process.world_size * settings.accumulation_steps
    if settings.batch_size % shares:
        raise SettingsError(
            f"BATCH_SIZE = {settings.batch_size} cannot be shared evenly by {process.world_size} "
            f"processes with ACCUMULATION_STEPS = {settings.accumulation_steps}; choose a multiple "
            f"of {shares}"
        )
    folder = resume or run_folder(name, settings)
    try:
        str(folder).encode()
    except UnicodeEncodeError:
        raise SettingsError(
            f"the run folder {folder} is not named in UTF-8, so that TensorBoard cannot write to "
            "it; choose another OUTPUT_DIR or RUN_NAME, or rename the folder"
        ) from None
    if resume is not None:
        if (resume / BEST).exists() and not has_checkpoint(resume):
            raise CheckpointError(
                f"{resume} holds {BEST}, but neither {LAST} nor {PREVIOUS}, from one of which a "
                f"run goes on; beginning anew would replace {BEST}. Put {LAST} back, begin another "
                f"run by --run-name NAME, or move {BEST} elsewhere to begin this one anew"
            )
        return resume
    # What a process that was killed at once has left half-written is nothing to protect.
    present = folder.exists() and any(
        p.suffix != ".partial" and p.name != ".lock" for p in folder.iterdir()
    )
    if process.is_main and not dry_run and present:
        begun = has_checkpoint(folder) or (folder / SETTINGS).is_file()
        going_on = f"go on with it by --resume {folder}, or " if begun else ""
        raise CheckpointError(
            f"the run folder {folder} exists already; {going_on}choose another by --run-name "
            "NAME, or remove it"
        )
    return folder


def has_checkpoint(folder: Path) -> bool:
    """Whether a run has come far enough to go on from a checkpoint."""
    return any((folder / name).is_file() for name in (LAST, PREVIOUS))


def resumed_settings(settings: Settings, resume: Path | None, given: Collection[str]) -> Settings:
    """The settings of the run that is resumed, with the changes that were ``given``.

    Only settings in groups marked "resume" in config.py may change. A value that the run has anyway
    is no change, so that the command that started a run can also continue it.

    Args:
        settings: of the command line; they are returned where no run is resumed.
        resume: folder of the run.
        given: names of the settings that came as flags or from files.

    Raises:
        SettingsError: there is no run, or the changes would make it another one.
    """
    if resume is None:
        return settings
    if not (resume / SETTINGS).is_file():
        raise SettingsError(
            f"cannot resume {resume}: there is no {resume / SETTINGS}; --resume takes the folder "
            "of a run that has begun"
        )
    own = read_settings_file(resume / SETTINGS, settings.defaults())
    before, now, resumable = own.as_dict(), settings.as_dict(), settings.marked("resume")
    fixed = sorted(name for name in given if name not in resumable and before[name] != now[name])
    if fixed:
        changes = ", ".join(
            f"{name} is {before[name]!r} there, {now[name]!r} here" for name in fixed
        )
        raise SettingsError(
            f"{changes}: a resumed run keeps its settings; only {', '.join(sorted(resumable))} can "
            "be changed with --resume"
        )
    return own.replace(**{name.lower(): now[name] for name in given})


class RunLog:
    """Lines for the terminal and for the run's ``log.txt``; the main process alone writes any."""

    def __init__(self, folder: Path | None):
        """``folder`` of the run; None for lines that nobody is to see."""
        self.folder = folder

    def __call__(self, line: str) -> None:
        """Print a line, above a progress bar if there is one, and append it to the file."""
        if self.folder is None:
            return
        tqdm.write(line)
        sys.stdout.flush()  # into a file, lines would otherwise wait, and be lost with the process
        try:
            with (self.folder / LOG).open("a", encoding="utf-8", errors="surrogateescape") as file:
                file.write(f"{line}\n")
        except OSError as error:  # a full disk; the next checkpoint will say so, if it lasts
            tqdm.write(f"{self.folder / LOG} could not be written: {error.strerror}")


@contextmanager
def locked(folder: Path, busy: str = "training into") -> Iterator[None]:
    """Keep a folder of results from a second process that would write into it.

    The lock is this process's alone: a loader process that outlives it for a moment does not keep
    the run from going on.

    Args:
        folder: made if need be.
        busy: what the processes do with it, for the message.

    Raises:
        CheckpointError: another process has it.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / ".lock").open("w") as file:
        try:
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except (BlockingIOError, PermissionError):
            raise CheckpointError(
                f"another process is {busy} {folder}; wait until it has ended, or stop it"
            ) from None
        except OSError:  # a file system without locks
            pass
        yield
