"""What the scripts share: errors as messages, and the data sets with their checks."""

import sys
from collections.abc import Callable

from datasets.layout import DatasetError, Frame, Sequence, check_files
from models import ModelError
from utils.checkpoints import CheckpointError
from utils.distributed import Process, end_process
from utils.settings import SettingsError

USER_ERRORS = (DatasetError, ModelError, CheckpointError, SettingsError)


def run_script(main: Callable[[], None]) -> None:
    """Run a script's ``main``; what the user can mend ends it with a message and status 1."""
    try:
        main()
    except USER_ERRORS as error:
        # A loader process sends its whole traceback as the message; the error itself is its end.
        message = str(error).rpartition(f"{type(error).__name__}: ")[2].strip()
        sys.exit(f"error: {message}")
    except KeyboardInterrupt:
        sys.exit(130)
    finally:
        end_process()


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
