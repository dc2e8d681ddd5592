"""Run folders: the folder of a new or resumed run, its settings, its log and its lock."""

import fcntl
import sys
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path

from tqdm import tqdm

from datasets.files import printable
from utils.processes import Process
from utils.settings import Settings, SettingsError, read_settings_file
from utils.training.checkpoints import BEST, LAST, PREVIOUS, CheckpointError

SETTINGS, LOG = "settings.py", "log.txt"


def find_run(name: str, settings: Settings, resume: str | None) -> Path | None:
    """The folder of the run to resume; None for a new run.

    Args:
        name: of the run's folder, unless RUN_NAME gives another.
        settings: of a new run.
        resume: a folder; ``"auto"`` for the folder of a new run, if that run was begun before.
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
        SettingsError: the processes cannot share the batch, or the folder's name is not UTF-8.
    """
    shares = process.world_size * settings.accumulation_steps
    if settings.batch_size % shares:
        raise SettingsError(
            f"BATCH_SIZE = {settings.batch_size} cannot be shared evenly by {process.world_size} "
            f"processes with ACCUMULATION_STEPS = {settings.accumulation_steps}; choose a multiple "
            f"of {shares}"
        )
    folder = resume or run_folder(name, settings)
    if printable(str(folder)) != str(folder):
        raise SettingsError(
            f"TensorBoard cannot write to {folder}, whose name is not UTF-8; choose another "
            "OUTPUT_DIR or RUN_NAME, or rename the folder"
        )
    if resume is not None:
        if (folder / BEST).exists() and not has_checkpoint(folder):
            raise CheckpointError(
                f"{folder} holds {BEST}, but neither {LAST} nor {PREVIOUS} to continue from. Put "
                f"{LAST} back, or begin another run by --run-name NAME"
            )
        return folder
    # A process that was killed may have left a half-written file or its lock.
    present = folder.exists() and any(
        p.suffix != ".partial" and p.name != ".lock" for p in folder.iterdir()
    )
    if process.is_main and not dry_run and present:
        begun = has_checkpoint(folder) or (folder / SETTINGS).is_file()
        going_on = f"continue it by --resume {folder}, or " if begun else ""
        raise CheckpointError(
            f"the run folder {folder} exists already; {going_on}choose another by --run-name "
            "NAME, or remove it"
        )
    return folder


def has_checkpoint(folder: Path) -> bool:
    """Whether there is a checkpoint to continue from."""
    return any((folder / name).is_file() for name in (LAST, PREVIOUS))


def resumed_settings(settings: Settings, resume: Path | None, given: Collection[str]) -> Settings:
    """The settings of the run that is resumed, with the changes that were ``given``.

    Only settings in groups marked "resume" in config.py may change. The run's own value is no
    change, so that the command that started a run can also continue it.

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
    """Lines for the terminal and for the run's ``log.txt``; without a folder, for neither."""

    def __init__(self, folder: Path | None):
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
    """Keep a second process from writing into a folder of results, which is made if need be.

    Loader processes do not inherit the lock. ``busy`` says in the message what the other process
    does.

    Raises:
        CheckpointError: another process has the folder.
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
