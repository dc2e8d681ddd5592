"""How a program ends when its output is no longer read, or by an early Ctrl-C."""

import atexit
import os
import select
import signal
import sys
from types import TracebackType


def set_up_program() -> None:
    """End without a traceback by Ctrl-C during imports, and when a reader leaves (``| head -1``).

    The status is then that of any program that the signal ends (130, 141).
    """
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
    """Whether the readers of the standard streams are still there; if not, closes the streams."""
    poll = select.poll()
    for number in (1, 2):
        poll.register(number, 0)
    gone = [number for number, event in poll.poll(0) if event & (select.POLLERR | select.POLLHUP)]
    for number in gone:
        os.dup2(os.open(os.devnull, os.O_WRONLY), number)  # for what Python has not written yet
    return not gone
