"""Run folders: the folder of a new or resumed run, its settings, its log and its lock."""

import fcntl
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path

from datasets.files import printable
from utils.processes import Process
from utils.settings import Settings, SettingsError, read_settings_file
from utils.training.checkpoints import BEST, LAST, CheckpointError

SETTINGS, LOG = "settings.py", "log.txt"


def find_run(name: str, settings: Settings, resume: str | None) -> Path | None:
    """The folder of the run to resume; None for a new run.

    ``"auto"`` stands for the folder of a new run, if that run was begun before.
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
        if (resume / BEST).exists() and not (resume / LAST).exists():
            raise CheckpointError(
                f"{resume} holds {BEST}, but no {LAST} to continue from. Put {LAST} back, or begin "
                "another run by --run-name NAME"
            )
        return resume
    # Hidden files are the lock and half-written files of a process that was killed.
    if process.is_main and not dry_run and any(folder.glob("[!.]*")):
        going_on = f"continue it by --resume {folder}, or " if (folder / SETTINGS).exists() else ""
        raise CheckpointError(
            f"the run folder {folder} exists already; {going_on}choose another by --run-name "
            "NAME, or remove it"
        )
    return folder


def resumed_settings(settings: Settings, resume: Path | None, given: Collection[str]) -> Settings:
    """The settings of the run that is resumed, with the changes that were ``given``.

    ``settings`` are those of the command line, ``given`` the names of those that came as flags or
    from files. Only settings in groups marked "resume" in config.py may change. The run's own value
    is no change, so that the command that started a run can also continue it.

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
    now, resumable = settings.as_dict(), settings.marked("resume")
    if fixed := settings.differences(own, set(given).difference(resumable)):
        raise SettingsError(
            f"{fixed}: a resumed run keeps its settings; only {', '.join(sorted(resumable))} can "
            "be changed with --resume"
        )
    return own.replace(**{name.lower(): now[name] for name in given})


@contextmanager
def locked(folder: Path, busy: str = "training into") -> Iterator[None]:
    """Keep a second process from writing into a folder of results, which is made if need be.

    Loader processes do not inherit the lock. ``busy`` says in the message what the other process
    does. A folder that was made here is removed if there is an error before anything is in it.

    Raises:
        CheckpointError: another process has the folder.
    """
    new, lock = not folder.exists(), folder / ".lock"
    folder.mkdir(parents=True, exist_ok=True)
    with lock.open("w") as file:
        try:
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except (BlockingIOError, PermissionError):
            raise CheckpointError(
                f"another process is {busy} {folder}; wait until it has ended, or stop it"
            ) from None
        except OSError:  # a file system without locks
            pass
        try:
            yield
        except BaseException:
            if new and [*folder.iterdir()] == [lock]:  # nothing was begun
                lock.unlink()
                folder.rmdir()
            raise
