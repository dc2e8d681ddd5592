"""Runs a script's ``main``; errors that the user can mend become messages."""

import errno
import re
import sys
from collections.abc import Callable

from datasets.progress import print_any_name
from errors import UserError
from utils.processes import end_process
from utils.training.interrupts import Interrupted

# Full disks and missing permissions; other numbers may be faults of the code.
_OF_THE_DISK = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO, errno.EROFS)
_OF_THE_DISK += (errno.EACCES, errno.EPERM)
_ADVICE = {  # by the words of the error, or of its cause
    r"Bus error|out of shared memory|memory\(shm\)|torch_\d+_.*No space left": (
        "Loader processes hand over samples in shared memory, /dev/shm, which is full. In Docker, "
        "start the container with --shm-size 8g or --ipc=host; elsewhere, fewer WORKERS (0 takes "
        "none) or a smaller BATCH_SIZE need less of it."
    ),
    r"DataLoader worker .*(killed|exited)": (
        "A loader process died; is there memory for WORKERS of them?"
    ),
    r"out of memory|DefaultCPUAllocator|process pool was terminated": (
        "The memory is too small. In training, a smaller BATCH_SIZE or IMAGE_SIZE needs less, and "
        "so does a larger ACCUMULATION_STEPS; in validation and evaluation a smaller "
        "EVAL_BATCH_SIZE or IMAGE_SIZE."
    ),
}


def run_script(main: Callable[[], None]) -> None:
    """Run a script's ``main``; an error that the user can mend ends it with a message, status 1."""
    print_any_name()
    try:
        main()
        # Only where all processes get here. NCCL waits for the others: if one has failed, it would
        # wait forever, and the message would not be printed.
        end_process()
    except Interrupted as interrupted:
        if interrupted.together:
            end_process()
        sys.exit(interrupted.exit_code)
    except Exception as error:
        if not (message := _message(error)):
            raise
        sys.exit(f"error: {message}")
    except KeyboardInterrupt:
        sys.exit(130)


def _message(error: Exception) -> str | None:
    """The message for an error that the user can mend."""
    # The end of a loader process interrupts anything, which may then fail in its own words.
    for cause in reversed(_causes(error)):
        for pattern, advice in _ADVICE.items():
            if re.search(pattern, str(cause)):
                return f"{str(cause).strip().splitlines()[-1]}\n{advice}"
    if isinstance(error, UserError):
        # A loader process sends its whole traceback as the message; the error itself is its end.
        return str(error).rpartition(f"{type(error).__name__}: ")[2].strip()
    if isinstance(error, OSError) and error.errno in _OF_THE_DISK:
        return f"{error.filename or 'a file'} could not be read or written: {error.strerror}"
    return None


def _causes(error: BaseException) -> list[BaseException]:
    """The error, its cause, the cause of that, and so on."""
    cause = error.__cause__ or error.__context__
    return [error, *(_causes(cause) if cause else [])]
