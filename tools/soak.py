"""Kill a training run again and again, and check that it ends as a run without a break does.

    python -m tools.soak --kills 30 --folder FOLDER

Trains the smallest network on synthetic data, once without a break and once with SIGKILLs at random
moments, each followed by ``--resume``. Exit code 0 means that both end with the same weights, bit
for bit. ``make test`` runs a short form of it.
"""

import argparse
import os
import random
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from subprocess import Popen, TimeoutExpired

from datasets.flow.estimators import dis_estimator
from datasets.flow.making import make_flow
from datasets.synthetic import write_synthetic
from utils.training.checkpoints import CheckpointError, load_checkpoint

TRAIN = Path(__file__).resolve().parents[1] / "train.py"
SETTINGS = (
    "--stage1-checkpoint none --backbone mobilenetv3_small_050 --pretrained-backbone false "
    "--channels 16 --num-clusters 8 --num-neighbours 4 --image-size 64 --guided-slots false "
    "--batch-size 2 --gpu= --workers 1 --validate-every 2 --ema-decay 0.9 "
    "--checkpoint-minutes 0.002"
)


def soak(folder: Path, kills: int, epochs: int) -> bool:
    """Whether a run that was killed so often ends as one that was not."""
    folder.mkdir(parents=True, exist_ok=True)
    sizes = {"stills": 2, "train_sequences": 2, "test_sequences": 1, "frames": 6}
    write_synthetic(folder / "data", seed=1, height=48, width=64, **sizes)
    for name in ("DAVIS_train", "DAVIS_test"):
        make_flow(folder / "data", name, dis_estimator())
    begun = time.monotonic()
    process = train(folder, "straight", epochs)
    wait_for(process, (folder / "runs/straight/last.pt").exists)
    startup = time.monotonic() - begun
    finish(process, folder, "straight")
    work = time.monotonic() - begun - startup
    for number, rng in enumerate(map(random.Random, range(kills)), 1):
        changed = _change_of(folder / "runs/killed/last.pt")
        process = train(folder, "killed", epochs)
        if number % 4 == 0:  # any moment of the start
            seconds = rng.uniform(0, startup)
        else:  # any moment of steps, of ends of epochs and of checkpoints being written
            seconds = rng.uniform(0, 1.5 * work / kills)
            wait_for(process, changed)
        try:
            process.wait(seconds)
        except TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        print(f"kill {number}: after {seconds:.2f} s, {progress(folder)}", flush=True)
    finish(train(folder, "killed", epochs), folder, "killed")
    same = all(same_checkpoints(folder / "runs", name) for name in ("last.pt", "best.pt"))
    print("the same to the last bit" if same else "DIFFERENT")
    return same


def train(folder: Path, name: str, epochs: int) -> Popen:
    """Start or resume a run on the folder's data; its output is appended to ``<name>.txt``."""
    command = f"{SETTINGS} --epochs {epochs} --run-name {name} --resume auto".split()
    command += ["--data-root", str(folder / "data"), "--output-dir", str(folder / "runs")]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    with (folder / f"{name}.txt").open("a") as log:
        # In a session of its own, so that its loader processes can be killed with it.
        return Popen(
            [sys.executable, str(TRAIN), *command],
            cwd=folder,
            env=environment,
            stdout=log,
            stderr=log,
            start_new_session=True,
        )


def finish(process: Popen, folder: Path, name: str) -> None:
    """Wait for the end of a run that nobody kills."""
    if process.wait():
        sys.exit(f"training failed: {(folder / f'{name}.txt').read_text()[-2000:]}")


def wait_for(process: Popen, happened: Callable[[], bool]) -> None:
    """Wait until something has happened, or the process has ended."""
    while process.poll() is None and not happened():
        time.sleep(0.01)


def _change_of(file: Path) -> Callable[[], bool]:
    """Tells whether a file has been written since now."""
    before = file.stat().st_mtime_ns if file.exists() else 0
    return lambda: file.exists() and file.stat().st_mtime_ns != before


def progress(folder: Path) -> str:
    """How far the killed run has come."""
    try:
        now = load_checkpoint(folder / "runs/killed/last.pt")["progress"]
    except CheckpointError:
        return "while its first or a later checkpoint takes its place"
    return f"step {now['step']}, epoch {now['epoch']}"


def same_checkpoints(runs: Path, name: str) -> bool:
    """Whether both runs have the same progress and weights in a checkpoint."""
    first, second = (load_checkpoint(runs / run / name) for run in ("straight", "killed"))
    weights = zip(first["weights"].values(), second["weights"].values(), strict=True)
    return first["progress"] == second["progress"] and all((a == b).all() for a, b in weights)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--kills", type=int, default=30)
    parser.add_argument("--epochs", type=int, default=60)
    parser.add_argument("--folder", type=Path, required=True, help="for data and runs")
    options = parser.parse_args()
    sys.exit(0 if soak(options.folder, options.kills, options.epochs) else 1)
