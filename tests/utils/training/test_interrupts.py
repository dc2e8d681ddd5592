"""Signals: they wait, and are not lost."""

import ctypes
import multiprocessing
import os
import signal

import pytest

import utils.training.interrupts
from utils.training.interrupts import Interrupted, Interrupts, prepare_loader_process


def send(signum: int) -> None:
    os.kill(os.getpid(), signum)


@pytest.mark.parametrize(("signum", "code"), [(signal.SIGINT, 0), (signal.SIGTERM, 143)])
def test_a_signal_waits_and_has_its_exit_code(signum, code):
    with Interrupts() as interrupts:
        assert interrupts.pending is None
        send(signum)
        assert interrupts.pending == signum
    assert Interrupted(signum).exit_code == code


def test_a_second_ctrl_c_does_not_wait_and_a_second_sigterm_is_no_reason_to_hurry():
    with Interrupts() as interrupts:
        send(signal.SIGTERM)
        send(signal.SIGTERM)
        assert interrupts.pending == signal.SIGTERM
        with pytest.raises(KeyboardInterrupt):
            send(signal.SIGINT)


def test_what_torchrun_hands_on_is_the_same_ctrl_c(monkeypatch):
    monkeypatch.setenv("LOCAL_RANK", "0")
    with Interrupts() as interrupts:
        for signum in (signal.SIGINT, signal.SIGINT, signal.SIGTERM):
            send(signum)
            assert interrupts.pending == signal.SIGINT


def test_handlers_are_put_back():
    before = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)
    with Interrupts():
        assert signal.getsignal(signal.SIGTERM) != before[1]
    assert (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)) == before


def load_on(grace):
    utils.training.interrupts._GRACE = grace
    prepare_loader_process()
    os.kill(os.getpid(), signal.SIGINT)
    os.kill(os.getpid(), signal.SIGTERM)
    # As one that waits in the system, where no handler of Python's can run.
    ctypes.CDLL(None).sleep(60)


def test_a_loader_process_that_hangs_ends_without_an_error_after_a_while():
    process = multiprocessing.get_context("spawn").Process(target=load_on, args=(0.5,))
    process.start()
    process.join(40)
    assert process.exitcode == 0
