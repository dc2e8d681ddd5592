"""Standard streams that are closed or no longer read, and Ctrl-C while modules are imported."""

import atexit
import os
import select
import signal
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import TracebackType


def set_up_program() -> None:
    """Let a program end without a traceback at ``| head -1`` and at an early Ctrl-C.

    Its status is then that of any program that the signal ends (141, 130). Messages for a closed
    standard error (``2>&-``) go to standard output.
    """
    # A file that is opened later must not become stream 1 or 2, which libraries in C write to.
    while os.open(os.devnull, os.O_RDWR) <= 2:
        pass
    sys.stdout = sys.stdout or Path(os.devnull).open("w")  # noqa: SIM115
    sys.stderr = sys.stderr or sys.stdout
    sys.excepthook = partial(_end, sys.excepthook)
    atexit.register(_is_read)


def _end(
    report: Callable[..., object],
    kind: type[BaseException],
    error: BaseException,
    trace: TracebackType | None,
) -> None:
    """Report an exception that nothing has caught, by the hook that was there before.

    Ctrl-C and a missing reader end the program without a report.
    """
    if issubclass(kind, KeyboardInterrupt):
        return  # Python itself then ends by the signal
    if issubclass(kind, BrokenPipeError) and not _is_read():
        signal.signal(signal.SIGPIPE, signal.SIG_DFL)
        os.kill(os.getpid(), signal.SIGPIPE)
    report(kind, error, trace)


def _is_read() -> bool:
    """Whether the standard streams still have readers. Output for missing readers is discarded."""
    poll = select.poll()
    for number in (1, 2):
        poll.register(number, 0)
    gone = [number for number, event in poll.poll(0) if event & (select.POLLERR | select.POLLHUP)]
    for number in gone:
        os.dup2(os.open(os.devnull, os.O_WRONLY), number)
    return not gone
