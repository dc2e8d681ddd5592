"""A run's record: data fingerprints, starts, git state; nothing about it stops a run."""

import json
import os
import platform
import shutil
import subprocess
import sys
from dataclasses import replace
from datetime import datetime, timedelta, timezone
from pathlib import Path

import pytest
import torch

from datasets.layout import Frame, frames_of, still_images, video_sequences
from datasets.problems import DatasetError
from utils.training.record import changed_data, fingerprint, git_commit, write_record

SET = {"images": 3, "masks": 3, "flow_maps": 2, "bytes": 1000, "hash": "0123456789abcdef"}


def frames(root: Path) -> dict[str, list[Frame]]:
    return {
        "DUTS_train": still_images(root, "DUTS_train"),
        "DAVIS_train": frames_of(video_sequences(root, "DAVIS_train")),
    }


def starts(run_dir: Path) -> list[dict]:
    return json.loads((run_dir / "record.json").read_text())["starts"]


def test_a_fingerprint_counts_files_and_bytes(tiny_root):
    found = fingerprint(frames(tiny_root), tiny_root)
    sizes = {
        name: [path.stat().st_size for path in (tiny_root / name).rglob("*.*") if path.is_file()]
        for name in found
    }
    for name, images, flow_maps in (("DUTS_train", 6, 0), ("DAVIS_train", 10, 10)):
        digest = found[name].pop("hash")
        assert len(digest) == 16 and int(digest, 16)
        assert found[name] == {
            "images": images,
            "masks": images,
            "flow_maps": flow_maps,
            "bytes": sum(sizes[name]),
        }
        assert len(sizes[name]) == 2 * images + flow_maps


def test_a_fingerprint_depends_on_names_and_sizes_alone(tiny_root, tmp_path, monkeypatch):
    whole = fingerprint(frames(tiny_root), tiny_root)
    root = tmp_path / "elsewhere"
    shutil.copytree(tiny_root, root)
    assert fingerprint(frames(root), root) == whole
    backwards = {name: found[::-1] for name, found in frames(root).items()}
    assert fingerprint(backwards, root) == whole
    monkeypatch.chdir(tmp_path)
    relative = Path("elsewhere")
    assert fingerprint(frames(relative), relative) == whole
    assert fingerprint(frames(relative), root) == whole

    image = sorted((root / "DUTS_train" / "RGB").iterdir())[0]
    image.write_bytes(image.read_bytes() + b"x")
    changed = fingerprint(frames(root), root)
    assert changed["DAVIS_train"] == whole["DAVIS_train"]
    assert changed["DUTS_train"]["hash"] != whole["DUTS_train"]["hash"]
    image.write_bytes(image.read_bytes()[:-1])
    for part in ("RGB", "GT"):
        file = next((root / "DUTS_train" / part).glob(f"{image.stem}.*"))
        file.rename(file.with_stem("renamed"))
    renamed = fingerprint(frames(root), root)["DUTS_train"]
    assert renamed["hash"] not in (whole["DUTS_train"]["hash"], changed["DUTS_train"]["hash"])
    assert {**renamed, "hash": 0} == {**whole["DUTS_train"], "hash": 0}


def test_a_fingerprint_counts_only_the_masks_and_flow_maps_there_are(tiny_root):
    found = frames(tiny_root)["DAVIS_train"]
    found = [replace(found[0], mask=None), replace(found[1], flow=None), *found[2:]]
    counted = fingerprint({"x": found}, tiny_root)["x"]
    assert (counted["images"], counted["masks"], counted["flow_maps"]) == (10, 9, 9)
    assert fingerprint({"x": []}, tiny_root)["x"]["images"] == 0


def test_a_file_that_is_gone_is_named(tiny_root, tmp_path):
    gone = Frame("a", tmp_path / "a.jpg", None, None)
    with pytest.raises(DatasetError, match=r"a\.jpg: No such file"):
        fingerprint({"x": [*frames(tiny_root)["DUTS_train"], gone]}, tiny_root)


def test_each_start_is_added_to_the_record(tmp_path, monkeypatch):
    run_dir = tmp_path / "runs" / "train"
    monkeypatch.setattr(sys, "argv", ["train.py", "--run-name", "two words"])
    write_record(run_dir, {"DAVIS_train": SET}, "cuda:0 in bfloat16", processes=2)
    (first,) = starts(run_dir)
    monkeypatch.setattr(sys, "argv", ["train.py", "--resume", "runs/train"])
    write_record(run_dir, {"DAVIS_train": SET}, "cpu in float32")
    assert starts(run_dir)[0] == first
    assert [start["command"] for start in starts(run_dir)] == [
        "train.py --run-name 'two words'",
        "train.py --resume runs/train",
    ]
    assert os.listdir(run_dir) == ["record.json"]
    since = datetime.now(timezone.utc) - datetime.fromisoformat(first["date"])
    assert timedelta(0) <= since < timedelta(minutes=5)
    assert first["date"].endswith("+00:00")
    assert first["versions"]["python"] == platform.python_version()
    assert first["versions"]["torch"] == torch.__version__
    assert {"torchvision", "timm", "numpy"} <= first["versions"].keys()
    assert len(first["gpus"]) == torch.cuda.device_count()
    assert first["device"] == "cuda:0 in bfloat16"
    assert first["processes"] == 2
    assert first["data"] == {"DAVIS_train": SET}


def test_changed_data_is_told_by_set_and_against_the_first_start(tmp_path):
    assert changed_data(tmp_path, {"DAVIS_train": SET}) is None
    write_record(tmp_path, {"DAVIS_train": SET, "DUTS_train": SET, "old": SET}, "cpu in float32")
    assert changed_data(tmp_path, {"DAVIS_train": SET, "DUTS_train": SET, "old": SET}) is None
    now = {
        "DAVIS_train": {**SET, "images": 4, "flow_maps": 4, "hash": "1"},
        "DUTS_train": {**SET, "bytes": 1001, "hash": "2"},
        "new": SET,
    }
    expected = (
        f"the data has changed since {tmp_path} was started: DAVIS_train, DUTS_train, new, old; "
        f"{tmp_path / 'record.json'} has the numbers of files"
    )
    assert changed_data(tmp_path, now) == expected
    write_record(tmp_path, now, "cpu in float32")
    assert changed_data(tmp_path, now) == expected


def git(folder: Path, *arguments: str) -> str:
    clean = {name: value for name, value in os.environ.items() if name[:4] != "GIT_"}
    command = ["git", "-C", str(folder), "-c", "user.name=x", "-c", "user.email=x@y", *arguments]
    return subprocess.run(command, env=clean, capture_output=True, check=True, text=True).stdout


@pytest.mark.skipif(shutil.which("git") is None, reason="needs git")
def test_the_commit_and_whether_the_code_was_changed_since(tmp_path):
    code = tmp_path / "code"
    (code / "utils").mkdir(parents=True)
    assert git_commit(code) is None
    git(code, "init", "-q")
    assert git_commit(code) is None
    (code / "utils" / "a.py").write_text("a = 1\n")
    assert git_commit(code / "utils") is None
    git(code, "add", ".")
    assert git_commit(code / "utils") is None
    git(code, "commit", "-q", "-m", "first")
    commit = git(code, "rev-parse", "HEAD").strip()
    assert git_commit(code / "utils") == commit
    (code / "data.bin").write_text("not tracked")
    assert git_commit(code) == commit
    (code / "utils" / "a.py").write_text("a = 2\n")
    assert git_commit(code / "utils") == f"{commit}-dirty"


def test_a_missing_or_slow_git_is_no_trouble(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    assert git_commit(Path(__file__).parent) is None
    slow = tmp_path / "git"
    slow.write_text("#!/bin/sh\nwhile :; do :; done\n")
    slow.chmod(0o755)
    monkeypatch.setattr("utils.training.record._GIT_SECONDS", 0.2)
    write_record(tmp_path, {}, "cpu in float32")
    assert starts(tmp_path)[0]["commit"] is None
