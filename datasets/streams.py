"""How a program uses its standard streams, and how it ends when nobody reads them or wants it."""

import atexit
import os
import select
import signal
import sys
from pathlib import Path
from types import TracebackType


def set_up_program() -> None:
    """Prepare for closed standard streams, readers that leave (``| head -1``) and early Ctrl-C.

    Messages for a closed standard error (``2>&-``) go to standard output. Ctrl-C while modules are
    still imported, and output that is no longer read, end the program without a traceback and with
    the status of any program that the signal ends (130, 141).
    """
    # A file that is opened later must not become stream 1 or 2, which libraries in C write to.
    while (descriptor := os.open(os.devnull, os.O_RDWR)) <= 2:
        pass
    os.close(descriptor)
    sys.stdout = sys.stdout or Path(os.devnull).open("w")  # noqa: SIM115
    sys.stderr = sys.stderr or sys.stdout
    sys.excepthook = _end
    atexit.register(_is_read)


def _end(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    """Report an exception that nothing has caught, as Python does, but for those two."""
    if issubclass(kind, KeyboardInterrupt):
        return  # Python itself then ends by the signal
    if issubclass(kind, BrokenPipeError) and not _is_read():
        signal.signal(signal.SIGPIPE, signal.SIG_DFL)
        os.kill(os.getpid(), signal.SIGPIPE)
    sys.__excepthook__(kind, error, trace)


def _is_read() -> bool:
    """Whether the readers of the standard streams are still there; nothing is written any more."""
    poll = select.poll()
    for number in (1, 2):
        poll.register(number, 0)
    gone = [number for number, event in poll.poll(0) if event & (select.POLLERR | select.POLLHUP)]
    for number in gone:
        os.dup2(os.open(os.devnull, os.O_WRONLY), number)  # for what Python has not written yet
    return not gone
