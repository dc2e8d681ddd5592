"""Ctrl-C and SIGTERM: stop where nothing is lost."""

import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

import cv2

_GRACE = 20  # seconds


class Interrupted(Exception):
    """Training was asked to stop, and has.

    Attributes:
        exit_code: 0 after Ctrl-C, 143 after SIGTERM.
        together: all processes stop here.
    """

    def __init__(self, signum: int, together: bool = True):
        super().__init__(signal.Signals(signum).name)
        self.together = together
        self.exit_code = 0 if signum == signal.SIGINT else 128 + signum


class Interrupts:
    """Notes Ctrl-C and SIGTERM in ``pending`` while it is active; for the main thread.

    The training loop stops after its step. A second Ctrl-C raises KeyboardInterrupt at once, but
    not under torchrun.
    """

    def __init__(self) -> None:
        self.pending: int | None = None
        self._before: dict[int, object] = {}

    def __enter__(self) -> "Interrupts":
        for signum in (signal.SIGINT, signal.SIGTERM):
            self._before[signum] = signal.signal(signum, self._note)
        return self

    def __exit__(self, *_: object) -> None:
        for signum, handler in self._before.items():
            signal.signal(signum, handler)

    def _note(self, signum: int, frame: FrameType | None) -> None:
        if self.pending is not None:
            # Under torchrun a signal comes twice: to the whole group, and handed on by torchrun.
            if signum == signal.SIGINT and "LOCAL_RANK" not in os.environ:
                raise KeyboardInterrupt
        else:
            self.pending = signum


@contextmanager
def terminated_in_order() -> Iterator[None]:
    """SIGTERM raises SystemExit with status 143, so that unfinished results are removed."""
    before = signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def prepare_loader_process(_: int = 0) -> None:
    """For loader processes: use one core each, and leave signals to the main process.

    After SIGTERM they load for some more seconds, so that the main process can finish its step.
    Then they end without an error, which would interrupt a main process that still works.
    """
    cv2.setNumThreads(0)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    # A thread also ends a process that waits for a disk.
    end = threading.Timer(_GRACE, os._exit, (0,))
    end.daemon = True
    signal.signal(signal.SIGTERM, lambda *_: end.is_alive() or end.start())
