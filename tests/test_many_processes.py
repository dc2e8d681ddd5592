"""Flow making and evaluation by two processes, started by torchrun as a user would."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import torch

import config
import evaluate
from datasets.flow.__main__ import main as make_flow
from datasets.flow.origin import flow_origin
from models import build_model
from utils.settings import write_settings
from utils.training.checkpoints import save_checkpoint
from utils.training.samples import network_arguments

ROOT = Path(config.__file__).parent
TORCHRUN = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2")


def by_two(*command) -> subprocess.CompletedProcess:
    """A Python command, run by two processes on the CPU."""
    return subprocess.run(
        [sys.executable, *TORCHRUN, *map(str, command)],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""},
        capture_output=True,
        text=True,
        timeout=300,
    )


def files(folder: Path, *names: str) -> dict[str, bytes]:
    """Contents of all files below a folder, or below these in it."""
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for name in names or (".",)
        for path in sorted([folder / name, *(folder / name).rglob("*")])
        if path.is_file()
    }


def test_two_processes_make_the_flow_maps_of_one(tiny_root, tmp_path, capsys):
    shutil.copytree(tiny_root / "DAVIS_test", tmp_path / "DAVIS_test")
    folders = sorted((tmp_path / "DAVIS_test").glob("*/FLOW"))
    alone = files(tmp_path / "DAVIS_test")
    for folder in folders:
        shutil.rmtree(folder)
    flags = ("--data-root", str(tmp_path), "--set", "DAVIS_test", "--estimator", "dis")
    made = by_two("-m", "datasets.flow", *flags)
    assert made.returncode == 0, made.stderr
    assert made.stdout == "DAVIS_test: 10 flow maps written, 0 were there already\n"
    assert "8/8" in made.stderr and made.stderr.count("0/8") == 1  # one bar, of the first share
    origin = (tmp_path / "DAVIS_test/.flow.json").read_bytes()
    assert files(tmp_path / "DAVIS_test") == {**alone, ".flow.json": origin}

    # What is there is kept, by another number of processes too; other kinds are not mixed in.
    sorted(folders[1].iterdir())[3].unlink()
    assert make_flow([*flags]) == 0
    assert "1 flow maps written, 9 were there already" in capsys.readouterr().out
    refused = by_two("-m", "datasets.flow", *flags, "--remove-camera-motion")
    assert refused.returncode == 1
    assert refused.stderr.count("pass --overwrite to make all of them anew") == 1
    assert "[rank" not in refused.stderr  # no traceback of the process that was told to wait
    assert flow_origin(tmp_path, "DAVIS_test") == "dis, camera motion kept"
    (tmp_path / "DAVIS_test/.flow.json").unlink()
    assert files(tmp_path / "DAVIS_test") == alone


def test_two_processes_find_the_masks_and_scores_of_one(
    tiny_settings, tmp_path, monkeypatch, capsys
):
    torch.manual_seed(0)
    arguments = network_arguments(tiny_settings, motion=True)
    model = build_model(tiny_settings.model, **arguments)
    checkpoint = {
        "model": tiny_settings.model,
        "arguments": arguments,
        "weights": model.state_dict(),
        "settings": tiny_settings.as_dict(),
    }
    save_checkpoint(tmp_path / "best.pt", checkpoint)
    # Stretched, every mask of a random network has foreground and background.
    write_settings(tiny_settings.replace(stretch_masks=True), tmp_path / "settings.py")
    flags = ("--config", tmp_path / "settings.py", "--checkpoint", tmp_path / "best.pt")
    one, two = tmp_path / "one", tmp_path / "two"

    monkeypatch.setattr(sys, "argv", ["evaluate.py", *map(str, flags), "--output", str(one)])
    evaluate.main()
    result = by_two(ROOT / "evaluate.py", *flags, "--output", two)
    assert result.returncode == 0, result.stderr
    names = ("masks", "panels", "scores.csv", "frames.csv")
    assert len(files(one, "masks")) == 10
    assert files(two, *names) == files(one, *names)
    assert {path.name for path in two.iterdir()} == {path.name for path in one.iterdir()}
    # Nothing is printed twice.
    assert result.stdout.replace(str(two), str(one)) == capsys.readouterr().out
