"""Devices and processes: which GPUs are used, and when processes are started."""

import signal
import sys

import pytest
import torch
from torch.distributed.elastic.multiprocessing.api import SignalException
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError, ProcessFailure

import utils.processes
from utils.processes import Process, gpu_indices, launch_processes, start_process
from utils.scripts import run_script
from utils.settings import SettingsError

TORCHRUN = {"RANK": "0", "WORLD_SIZE": "2", "MASTER_ADDR": "localhost", "MASTER_PORT": "29500"}


@pytest.fixture
def machine(monkeypatch):
    """Make torch see a number of GPUs, outside any launcher; returns what torchrun was given."""
    started = []
    monkeypatch.setattr(utils.processes, "torchrun", started.append)
    for name in ("RANK", "LOCAL_RANK", "WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)

    def with_gpus(count: int) -> list[list[str]]:
        monkeypatch.setattr(torch.cuda, "is_available", lambda: count > 0)
        monkeypatch.setattr(torch.cuda, "device_count", lambda: count)
        return started

    return with_gpus


@pytest.mark.parametrize("gpu", ["", "0", "0,1", "7"])
def test_without_gpus_the_cpu_is_used(machine, gpu):
    started = machine(0)
    assert gpu_indices(gpu) == []
    assert launch_processes(gpu, 0) is False
    assert started == []
    process = start_process(gpu)
    assert process == Process(torch.device("cpu"), rank=0, world_size=1)
    assert process.is_main


def test_a_missing_gpu_is_mentioned_only_where_one_was_asked_for(machine, capsys):
    machine(0)
    start_process("")
    assert capsys.readouterr().out == ""
    start_process("0,1")
    assert '"0,1"' in (line := capsys.readouterr().out) and "using the CPU" in line


def test_gpus_are_those_that_the_setting_names(machine):
    machine(4)
    assert gpu_indices("") == []
    assert gpu_indices("2") == [2]
    assert gpu_indices("3,0, 1") == [3, 0, 1]


def test_gpus_that_the_machine_lacks_are_refused(machine):
    machine(2)
    with pytest.raises(SettingsError, match=r'GPU is "1,2".*has 2 GPU\(s\), 0 to 1'):
        gpu_indices("1,2")


def test_several_gpus_start_one_process_each_with_the_same_command(machine, monkeypatch):
    started = machine(4)
    monkeypatch.setattr(sys, "argv", ["train.py", "--gpu", "0,2,3", "--epochs", "2"])
    assert launch_processes("0,2,3", 0) is True
    (arguments,) = started
    assert "--nproc-per-node=3" in arguments
    assert arguments[-5:] == ["train.py", "--gpu", "0,2,3", "--epochs", "2"]


def test_a_process_that_fails_ends_the_launcher_without_a_traceback(machine, monkeypatch):
    machine(2)
    failure = ProcessFailure(local_rank=0, pid=1, exitcode=1, error_file="<N/A>")

    def failing(_):
        raise ChildFailedError("train.py", {0: failure})

    monkeypatch.setattr(utils.processes, "torchrun", failing)
    with pytest.raises(SystemExit) as stop:
        run_script(lambda: launch_processes("0,1", 0))
    assert stop.value.code not in (0, None)


@pytest.mark.parametrize("signum, code", [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_to_the_launcher_gives_the_status_of_one_process(
    machine, monkeypatch, signum, code
):
    machine(2)

    def stopped(_):
        raise SignalException("stopped", sigval=signum)

    monkeypatch.setattr(utils.processes, "torchrun", stopped)
    with pytest.raises(SystemExit) as stop:
        run_script(lambda: launch_processes("0,1", after_ctrl_c=130))
    assert stop.value.code == code


def test_one_gpu_and_processes_that_were_started_start_nothing(machine, monkeypatch):
    started = machine(4)
    assert launch_processes("2", 0) is False
    assert launch_processes("", 0) is False
    monkeypatch.setenv("LOCAL_RANK", "1")
    assert launch_processes("0,1", 0) is False
    assert started == []


def test_a_gpu_s_convolutions_are_chosen_by_trying_and_alone_round_to_tf32(machine, monkeypatch):
    machine(4)
    chosen = []
    monkeypatch.setattr(torch.cuda, "set_device", chosen.append)
    monkeypatch.setattr(torch.backends.cudnn, "benchmark", False)
    assert start_process("2") == Process(torch.device("cuda", 2))
    assert chosen == [torch.device("cuda", 2)]
    assert torch.backends.cudnn.benchmark
    assert torch.backends.cudnn.allow_tf32 and not torch.backends.cuda.matmul.allow_tf32


def test_more_processes_than_gpus_are_refused_with_a_message(machine, monkeypatch):
    machine(4)
    for name, value in {**TORCHRUN, "RANK": "1", "LOCAL_RANK": "1"}.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(SettingsError, match="GPU"):
        start_process("0")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"WORLD_SIZE": ""}, "WORLD_SIZE"),
        ({"MASTER_ADDR": ""}, "MASTER_ADDR.* torchrun sets all variables"),
        ({"RANK": "first"}, "first"),
        ({"LOCAL_RANK": "x"}, "LOCAL_RANK: .*'x'; unset it"),
    ],
)
def test_an_environment_that_describes_the_processes_badly_is_refused(
    machine, monkeypatch, changes, message
):
    machine(0)
    for name, value in {**TORCHRUN, **changes}.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(SettingsError, match=message):
        start_process("")


def test_only_the_first_process_is_the_main_one():
    assert Process(torch.device("cpu"), rank=0, world_size=2).is_main
    assert not Process(torch.device("cpu"), rank=1, world_size=2).is_main
