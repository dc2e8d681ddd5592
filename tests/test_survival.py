"""Training as real processes that are killed, told to stop, lose a part, or work together."""

import json
import multiprocessing
import os
import signal
import socket
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import psutil
import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

import config
from datasets.layout import video_sequences
from datasets.samples import VideoFrames
from datasets.synthetic import write_synthetic
from models.gsanet.network import GSANet
from utils import __version__
from utils.processes import end_process, start_process
from utils.settings import write_settings
from utils.training import accounts
from utils.training.checkpoints import load_checkpoint
from utils.training.interrupts import Interrupted
from utils.training.loop import Training
from utils.training.samples import network_arguments

ROOT = Path(config.__file__).parent
TORCHRUN = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2")


@pytest.fixture
def start():
    """Starts a Python command in a session of its own; what it prints goes to a file."""
    started = []

    def run(folder: Path, *command, log: str = "log.txt") -> subprocess.Popen:
        with (folder / log).open("w") as file:
            process = subprocess.Popen(
                [sys.executable, *map(str, command)],
                cwd=folder,
                env={**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""},
                stdout=file,
                stderr=file,
                start_new_session=True,
            )
        started.append(process)
        return process

    yield run
    for process in started:  # a test that has failed must not leave them running
        if process.poll() is None:
            for child in psutil.Process(process.pid).children(recursive=True):
                child.kill()
            process.kill()
            process.wait()


def until(happened, process: subprocess.Popen, seconds: float = 120) -> None:
    """Wait until something has happened; it must, before the process ends."""
    end = time.monotonic() + seconds
    while not happened():
        assert process.poll() is None, "the process has ended"
        assert time.monotonic() < end, "it did not happen in time"
        time.sleep(0.02)


@pytest.fixture
def endless(tmp_path, tiny_settings):
    """Command of a long run, with a checkpoint after nearly every step."""
    settings = tiny_settings.replace(epochs=5000, validate_every=5000, checkpoint_minutes=1e-4)
    write_settings(settings, tmp_path / "settings.py")
    return (ROOT / "pretrain.py", "--config", tmp_path / "settings.py")


@pytest.fixture
def long_epochs(tmp_path, tiny_settings, endless):
    """The same with epochs of 100 steps, so that loader processes are always at work."""
    write_synthetic(
        tmp_path / "data",
        seed=1,
        stills=210,
        train_sequences=1,
        test_sequences=1,
        frames=2,
        height=48,
        width=64,
    )
    return (*endless, "--data-root", tmp_path / "data", "--batch-size", "2")


def free_port() -> str:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return str(probe.getsockname()[1])


def has_begun(folder: Path):
    return lambda: (folder / "runs/pretrain/last.pt").exists()


def is_running(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def test_a_run_that_is_killed_again_and_again_ends_bit_for_bit_as_one_that_is_not(
    start, tmp_path, tiny_settings
):
    """Kills between and within epochs, right after a checkpoint of the run was written."""
    settings = tiny_settings.replace(
        epochs=4, batch_size=2, workers=1, validate_every=2, checkpoint_minutes=1e-6
    )
    write_settings(settings, tmp_path / "settings.py")
    command = (ROOT / "train.py", "--config", tmp_path / "settings.py", "--resume", "auto")
    assert start(tmp_path, *command, "--run-name", "straight", log="straight.txt").wait(120) == 0
    runs, killed = tmp_path / "runs", (*command, "--run-name", "killed")
    last = runs / "killed/last.pt"
    for kills in range(2):
        before = last.stat().st_mtime_ns if last.exists() else 0
        process = start(tmp_path, *killed, log=f"{kills}.txt")
        until(lambda: last.exists() and last.stat().st_mtime_ns > before, process)  # noqa: B023
        time.sleep(0.05 * kills)
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    assert start(tmp_path, *killed).wait(120) == 0
    assert "resuming runs/killed after epoch" in (tmp_path / "log.txt").read_text()
    for name in ("last.pt", "best.pt"):
        first, second = (load_checkpoint(runs / run / name) for run in ("straight", "killed"))
        assert first["version"] == second["version"] == __version__
        assert isinstance(first["commit"], str | None)
        assert first["progress"] == second["progress"]
        assert all(torch.equal(t, second["weights"][n]) for n, t in first["weights"].items())


@pytest.mark.parametrize(("signum", "code"), [(signal.SIGINT, 0), (signal.SIGTERM, 143)])
def test_a_process_that_is_told_to_stop_saves_and_says_how_to_go_on(
    start, tmp_path, long_epochs, signum, code
):
    process = start(tmp_path, *long_epochs, "--workers", "2")
    until(has_begun(tmp_path), process)
    # As a terminal or a cluster does: to the loader processes too.
    os.killpg(process.pid, signum)
    assert process.wait(60) == code
    printed = (tmp_path / "log.txt").read_text()
    step = load_checkpoint(tmp_path / "runs/pretrain/last.pt")["progress"]["step"]
    assert f"stopped after step {step}; continue by --resume runs/pretrain" in printed
    assert "Traceback" not in printed


def test_a_second_start_is_refused_and_changes_nothing_in_the_folder(start, tmp_path, endless):
    process = start(tmp_path, *endless)
    until(has_begun(tmp_path), process)
    folder = tmp_path / "runs/pretrain"
    names = ("settings.py", "record.json")
    before = [(folder / name).read_text() for name in names]
    second = (ROOT / "pretrain.py", "--resume", "runs/pretrain", "--epochs", "6000")
    assert start(tmp_path, *second, log="second.txt").wait(60) == 1
    assert "another process is training into" in (tmp_path / "second.txt").read_text()
    assert [(folder / name).read_text() for name in names] == before


def test_a_loader_process_that_dies_ends_the_run_with_the_reason(start, tmp_path, endless):
    process = start(tmp_path, *endless, "--workers", "1")
    until(has_begun(tmp_path), process)
    for child in psutil.Process(process.pid).children(recursive=True):
        child.kill()
    assert process.wait(60) == 1
    printed = (tmp_path / "log.txt").read_text()
    assert "DataLoader worker" in printed
    assert "is there memory for WORKERS of them?" in printed
    assert "Traceback" not in printed


def test_a_process_of_several_that_dies_ends_the_others_with_the_reason(start, tmp_path, endless):
    process = start(tmp_path, *TORCHRUN, *endless)
    until(has_begun(tmp_path), process)
    ranks = [child.pid for child in psutil.Process(process.pid).children()]
    assert len(ranks) == 2
    os.kill(ranks[1], signal.SIGKILL)
    assert process.wait(60) != 0
    assert not any(is_running(pid) for pid in ranks)
    assert "SIGKILL" in (tmp_path / "log.txt").read_text()


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM])
def test_processes_that_are_told_to_stop_do_so_at_the_same_step(start, tmp_path, endless, signum):
    process = start(tmp_path, *TORCHRUN, *endless)
    until(has_begun(tmp_path), process)
    os.killpg(process.pid, signum)
    assert process.wait(60) != 0  # torchrun's own
    step = load_checkpoint(tmp_path / "runs/pretrain/last.pt")["progress"]["step"]
    printed = (tmp_path / "log.txt").read_text()
    assert printed.count(f"stopped after step {step}; continue by --resume runs/pretrain") == 1
    assert "closed by peer" not in printed


def test_two_launchers_with_a_folder_in_common_are_two_nodes(start, tmp_path, tiny_settings):
    settings = tiny_settings.replace(epochs=2, batch_size=2)
    write_settings(settings, tmp_path / "settings.py")
    launcher = ["-m", "torch.distributed.run", "--nnodes", "2", "--nproc-per-node", "1"]
    launcher += ["--rdzv-id", "run", "--rdzv-backend", "c10d"]
    launcher += ["--rdzv-endpoint", f"127.0.0.1:{free_port()}"]
    command = (*launcher, ROOT / "pretrain.py", "--config", tmp_path / "settings.py")
    nodes = [start(tmp_path, *command, log=f"{name}.txt") for name in ("first", "second")]
    assert [node.wait(120) for node in nodes] == [0, 0]
    printed = "".join((tmp_path / f"{name}.txt").read_text() for name in ("first", "second"))
    assert printed.count("epoch 2/2") == 1
    record = json.loads((tmp_path / "runs/pretrain/record.json").read_text())
    assert [one["processes"] for one in record["starts"]] == [2]


def test_torchrun_starts_anew_what_has_died_and_auto_goes_on(start, tmp_path, tiny_settings):
    settings = tiny_settings.replace(
        epochs=6,
        batch_size=4,
        accumulation_steps=2,
        validate_every=6,
        checkpoint_minutes=1e-4,
    )
    write_settings(settings, tmp_path / "settings.py")
    command = (ROOT / "pretrain.py", "--config", tmp_path / "settings.py", "--resume", "auto")
    whole = start(tmp_path, *TORCHRUN, *command, "--run-name", "whole", log="whole.txt")
    assert whole.wait(120) == 0
    process = start(tmp_path, *TORCHRUN, "--max-restarts", "2", *command)
    until(has_begun(tmp_path), process)
    os.kill(psutil.Process(process.pid).children()[0].pid, signal.SIGKILL)
    assert process.wait(120) == 0
    printed = (tmp_path / "log.txt").read_text()
    assert printed.count("resuming runs/pretrain after epoch") == 1
    first, second = (
        load_checkpoint(tmp_path / "runs" / name / "last.pt") for name in ("whole", "pretrain")
    )
    assert first["progress"] == second["progress"]
    assert all(torch.equal(t, second["weights"][name]) for name, t in first["weights"].items())


class Frozen(GSANet):
    """Its norms keep their statistics: torch synchronises the norms of no CPU."""

    def train(self, mode=True):
        super().train(mode)
        for module in self.modules():
            if isinstance(module, torch.nn.modules.batchnorm._BatchNorm):
                module.eval()
        return self


class Spoilt(VideoFrames):
    """One of its frames is no picture; the last process is told to stop at one of its samples."""

    taken = 0

    def __init__(self, spoilt, told, process, *arguments):
        super().__init__(*arguments)
        self.spoilt = spoilt
        self.told = told if process.rank == process.world_size - 1 else -1

    def __getitem__(self, key):
        sample = super().__getitem__(key)
        if key[1] == self.spoilt:
            sample["image"] = torch.full(sample["image"].shape, torch.nan)
        self.taken += 1
        if self.taken == self.told:
            os.kill(os.getpid(), signal.SIGTERM)
        return sample


def train_frozen(settings, folder, spoilt, told, environment) -> None:
    """A process of a run in ``folder``, begun or resumed."""
    torch.set_num_threads(1)
    log = os.open(folder.with_suffix(".txt"), os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(log, sys.stdout.fileno())
    os.dup2(log, sys.stderr.fileno())
    os.environ.update(environment)
    accounts.LOG_INTERVAL = 1
    process = start_process("")
    torch.manual_seed(0)
    model = Frozen(**network_arguments(settings, motion=True))
    sequences = video_sequences(Path(settings.data_root), "DAVIS_train")
    dataset = Spoilt(spoilt, told, process, [sequences], settings.image_size, 2)
    identity = {"model": "gsanet", "arguments": {"motion": True}}
    with suppress(Interrupted):
        run = Training(model, dataset, validate, settings, identity, folder, process)
        run.run(resume=True)
    end_process()


def validate(*_) -> accounts.Validation:
    return accounts.Validation(0.5)


def run_frozen(settings, folder: Path, processes: int, spoilt=-1, told=-1) -> str:
    """That run by some processes; returns what they printed."""
    # Forked from a process that has imported everything, they start at once.
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__])
    log = folder.with_suffix(".txt")
    log.unlink(missing_ok=True)
    group = {"WORLD_SIZE": str(processes), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": free_port()}
    started = []
    for rank in map(str, range(processes)):
        environment = {**group, "RANK": rank, "LOCAL_RANK": rank} if processes > 1 else {}
        arguments = (settings, folder, spoilt, told, environment)
        started.append(context.Process(target=train_frozen, args=arguments, daemon=True))
        started[-1].start()
    for process in started:
        process.join(300)
        if process.exitcode != 0:  # the others would wait for it
            for other in started:
                other.kill()
    assert [process.exitcode for process in started] == [0] * processes, log.read_text()
    return log.read_text()


def test_two_processes_have_the_losses_of_one_with_their_batches_together(tmp_path, tiny_settings):
    """16 steps; also in two parts each, which is four processes' shares in two."""
    losses = {}
    for name, processes, parts in (("one", 1, 1), ("two", 2, 1), ("parts", 2, 2)):
        settings = tiny_settings.replace(
            epochs=8, validate_every=8, learning_rate=1e-4, accumulation_steps=parts
        )
        printed = run_frozen(settings, tmp_path / name, processes)
        assert printed.count("epoch 8/8") == 1
        events = EventAccumulator(str(tmp_path / name), size_guidance={"scalars": 0})
        events.Reload()
        losses[name] = [event.value for event in events.Scalars("loss/total")]
    assert len(losses["one"]) == 16
    assert losses["one"][0] - losses["one"][-1] > 0.05
    for name in ("two", "parts"):
        assert losses[name] == pytest.approx(losses["one"], abs=1e-4)


def test_processes_that_stop_and_save_all_the_time_agree_and_lose_nothing(tmp_path, tiny_settings):
    """Numbers are read a step later; in each epoch one process has a frame that is no picture."""
    settings = tiny_settings.replace(
        epochs=3, batch_size=2, validate_every=3, checkpoint_minutes=1e-6
    )
    run_frozen(settings, tmp_path / "straight", 2, spoilt=1)
    straight = load_checkpoint(tmp_path / "straight/last.pt")
    assert straight["progress"]["bad_steps"] == 3 and straight["progress"]["step"] == 15
    lines = (tmp_path / "straight/log.txt").read_text().splitlines()
    skipped = [line for line in lines if "step skipped" in line]
    assert len(skipped) == 3
    assert all(line.count(",") == 2 + 1 for line in skipped)  # both processes' samples are named

    # Told in a step whose numbers are bad, which is reported by both processes together.
    printed = run_frozen(settings, tmp_path / "early", 2, spoilt=1, told=1)
    assert "stopped after step" in printed and "step skipped" in printed

    assert "stopped after step" in run_frozen(settings, tmp_path / "told", 2, spoilt=1, told=7)
    progress = load_checkpoint(tmp_path / "told/last.pt")["progress"]
    assert progress["epoch"] == 1 and 0 < progress["batch"] < 5
    assert "resuming" in run_frozen(settings, tmp_path / "told", 2, spoilt=1)
    told = load_checkpoint(tmp_path / "told/last.pt")
    assert told["progress"] == straight["progress"]
    assert all(torch.equal(t, straight["weights"][name]) for name, t in told["weights"].items())
