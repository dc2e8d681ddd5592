"""From a user's own frames with a few masks to a fine-tuned network and its scores."""

from pathlib import Path

import torch

import config
import evaluate
import train
from datasets.flow.__main__ import main as make_flow
from datasets.layout import video_sequences
from datasets.prepare.__main__ import main as prepare
from utils.settings import write_settings
from utils.training.checkpoints import load_checkpoint

ROOT = Path(config.__file__).parent


def write_source(source: Path, tiny_root: Path) -> None:
    """The tiny set's training videos as folders of frames, with masks on two frames of each."""
    for video in video_sequences(tiny_root, "DAVIS_train", flow=False):
        for folder in (source / "frames" / video.name, source / "masks" / video.name):
            folder.mkdir(parents=True)
        for number, frame in enumerate(video.frames):
            (source / "frames" / video.name / f"{number}.jpg").symlink_to(frame.image)
            if number in (1, 3):
                (source / "masks" / video.name / f"{number}.png").symlink_to(frame.mask)


def test_fine_tuning_on_a_few_frames(tiny_settings, tiny_root, call, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    write_settings(tiny_settings, Path("settings.py"))
    with monkeypatch.context() as patch:
        patch.setattr(train, "flow_origin", lambda *_: "raft, camera motion kept")
        call(train, "--config", "settings.py")

    write_source(Path("videos"), tiny_root)
    assert prepare(["folder", "--source", "videos", "--data-root", "data", "--set", "own"]) == 0
    assert make_flow(["--data-root", "data", "--set", "own", "--estimator", "dis"]) == 0
    capsys.readouterr()
    own = ("--data-root", "data", "--train-sets", "own", "--val-set", "own")
    files = ("--config", "runs/train/settings.py", ROOT / "recipes/finetune.py")
    start = ("--stage1-checkpoint", "runs/train/last.pt", "--run-name", "own")
    call(train, *files, *start, *own, "--epochs", 2)
    printed = capsys.readouterr().out
    assert "own: 2 sequences (4 of 10 frames with a mask)" in printed
    assert " 0 left at their initial values, 0 of the file not used" in printed
    kinds = "(raft, camera motion kept) than these (dis, camera motion kept)"
    assert f"note: trained on flow maps of another kind {kinds}" in printed

    before, after = (load_checkpoint(Path(f"runs/{run}/last.pt")) for run in ("train", "own"))
    assert [one["flow"].split(",")[0] for one in (before, after)] == ["raft", "dis"]
    assert after["settings"]["LEARNING_RATE"] < before["settings"]["LEARNING_RATE"]
    assert after["settings"]["BACKBONE"] == before["settings"]["BACKBONE"]
    moved = {
        name: (after["weights"][name] - weight).abs().max().item()
        for name, weight in before["weights"].items()
        if weight.dtype == torch.float32 and "running" not in name
    }
    steps = 2 * 1  # Adam moves a weight by about the learning rate in a step
    assert 0 < max(moved.values()) < 2 * steps * after["settings"]["LEARNING_RATE"]

    call(evaluate, "--checkpoint", "runs/own/last.pt", "--set", "own", "--data-root", "data")
    assert "protocol long_videos, as not every frame is annotated" in capsys.readouterr().out
