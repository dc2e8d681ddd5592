"""Kill a training run again and again, and see that it ends as if nothing had happened.

    python tests/soak.py --kills 30 --folder FOLDER

Trains the smallest network on synthetic data, once without a break and once with SIGKILLs at random
moments, each followed by ``--resume``; exit code 0 if both end with the same weights to the last
bit. ``make test`` runs a short form of it.
"""

import argparse
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from datasets.flow.estimators import dis_estimator  # noqa: E402
from datasets.flow.making import make_flow  # noqa: E402
from datasets.synthetic import write_synthetic  # noqa: E402
from utils.training.checkpoints import load_checkpoint  # noqa: E402


def train(folder: Path, name: str, *flags: str, wait: bool = True) -> subprocess.Popen:
    """Start train.py on the folder's data; its output is appended to ``<name>.txt``."""
    network = "--backbone mobilenetv3_small_050 --pretrained-backbone false --channels 16"
    command = (
        f"--data-root {folder / 'data'} --output-dir {folder / 'runs'} --run-name {name} "
        f"--stage1-checkpoint none {network} --num-clusters 8 --num-neighbours 4 --image-size 64 "
        "--guided-slots false --batch-size 2 --gpu= --workers 1 --validate-every 2 "
        "--ema-decay 0.9 --checkpoint-minutes 0.002"
    )
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    with (folder / f"{name}.txt").open("a") as log:
        process = subprocess.Popen(
            [sys.executable, str(ROOT / "train.py"), *command.split(), *flags],
            cwd=folder,
            env=environment,
            stdout=log,
            stderr=log,
            start_new_session=True,  # so that its loader processes can be killed with it
        )
    if wait:
        check(folder, name, process)
    return process


def check(folder: Path, name: str, process: subprocess.Popen) -> None:
    """Wait for the end of a run that nobody kills."""
    if process.wait():
        sys.exit(f"training failed: {(folder / f'{name}.txt').read_text()[-2000:]}")


def wait_for(process: subprocess.Popen, happened: Callable[[], bool]) -> None:
    """Wait until something has happened, or the process has ended."""
    while process.poll() is None and not happened():
        time.sleep(0.01)


def progress(folder: Path) -> str:
    """How far the killed run had come, for people."""
    try:
        now = load_checkpoint(folder / "runs/killed/last.pt")["progress"]
    except ValueError:
        return "before its first checkpoint"
    return f"step {now['step']}, epoch {now['epoch']}"


def soak(folder: Path, kills: int, epochs: int, seed: int = 0) -> bool:
    """Whether a run that was killed so often ends as one that was not."""
    folder.mkdir(parents=True, exist_ok=True)
    write_synthetic(
        folder / "data",
        seed=1,
        stills=2,
        train_sequences=2,
        test_sequences=1,
        frames=6,
        height=48,
        width=64,
    )
    for name in ("DAVIS_train", "DAVIS_test"):
        make_flow(folder / "data", name, dis_estimator())
    length = ("--epochs", str(epochs))
    started = time.monotonic()
    process = train(folder, "straight", *length, wait=False)
    wait_for(process, lambda: (folder / "runs/straight/last.pt").exists())
    startup = time.monotonic() - started
    check(folder, "straight", process)
    training = time.monotonic() - started - startup
    rng = random.Random(seed)
    last = folder / "runs/killed/last.pt"
    for number in range(kills):
        before = last.stat().st_mtime_ns if last.exists() else 0
        process = train(folder, "killed", *length, "--resume", "auto", wait=False)
        if number % 4 == 3:  # any moment of the start
            when, seconds = "started", rng.uniform(0, startup)
        else:  # any moment of the steps, of epochs' ends and of checkpoints being written
            when, seconds = "at work", rng.uniform(0, 1.5 * training / kills)
            wait_for(process, lambda: last.exists() and last.stat().st_mtime_ns != before)  # noqa: B023
        try:
            process.wait(seconds)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        print(f"kill {number + 1}: {when} for {seconds:.2f} s, {progress(folder)}", flush=True)
    train(folder, "killed", *length, "--resume", "auto")
    same = True
    for name in ("last.pt", "best.pt"):
        first, second = (load_checkpoint(folder / f"runs/{run}" / name) for run in RUNS)
        same &= first["progress"] == second["progress"]
        same &= all(
            (first["weights"][key] == second["weights"][key]).all() for key in first["weights"]
        )
    print("the same to the last bit" if same else "DIFFERENT")
    return same


RUNS = ("straight", "killed")

if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--kills", type=int, default=30)
    parser.add_argument("--epochs", type=int, default=60)
    parser.add_argument("--folder", type=Path, required=True, help="for data and runs")
    options = parser.parse_args()
    sys.exit(0 if soak(options.folder, options.kills, options.epochs) else 1)
