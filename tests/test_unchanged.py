"""Both stages and the evaluation give what they gave before the code was reorganised.

``recorded.json`` was written with the version before that, by the same commands: the losses, norms
and validation scores of both stages, the pixels of each mask, the scores and the files. On one
machine all was the same bit for bit. Processors round differently, which training enlarges; hence
the wide tolerances. Other versions of PyTorch and timm begin with other random weights.
"""

import csv
import json
import re
import sys
from pathlib import Path

import cv2
import pytest
import timm
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

import evaluate
import pretrain
import train
from utils.scripts import run_script

RECORDED = json.loads((Path(__file__).parent / "recorded.json").read_text())
SETTINGS = (
    *("--backbone", "mobilenetv3_small_100", "--pretrained-backbone", "false"),
    *("--image-size", 64, "--channels", 16, "--num-clusters", 8, "--num-neighbours", 4),
    *("--batch-size", 4, "--learning-rate", 1e-3, "--epochs", 2, "--decoder-image", "true"),
)


def call(monkeypatch, script, *flags):
    machine = ("--gpu", "", "--workers", 0)
    monkeypatch.setattr(sys, "argv", [f"{script.__name__}.py", *map(str, (*machine, *flags))])
    run_script(script.main)


def scalars(folder):
    events = EventAccumulator(str(folder), size_guidance={"scalars": 0})
    events.Reload()
    return {tag: [s.value for s in events.Scalars(tag)] for tag in events.Tags()["scalars"]}


@pytest.mark.skipif(
    (torch.__version__[:5], timm.__version__) != ("2.14.", "1.0.31"),
    reason="recorded with other versions of PyTorch and timm",
)
@pytest.mark.parametrize("model", ["gsanet", "dpa"])
def test_results_are_those_of_before(model, tiny_root, tmp_path, monkeypatch):
    recorded = RECORDED[model]
    settings = ("--model", model, "--data-root", tiny_root, "--output-dir", tmp_path, *SETTINGS)
    call(monkeypatch, pretrain, *settings)
    stage1 = tmp_path / "pretrain" / "last.pt"
    call(monkeypatch, train, *settings, "--stage1-checkpoint", stage1)
    results = tmp_path / "results"
    data = ("--data-root", tiny_root, "--set", "DAVIS_test")
    checkpoint = tmp_path / "train" / "last.pt"
    call(monkeypatch, evaluate, *data, "--checkpoint", checkpoint, "--output", results)

    for stage, expected in recorded["scalars"].items():
        found = scalars(tmp_path / stage)
        for tag, values in expected.items():
            assert found[tag] == pytest.approx(values, rel=0.03, abs=0.03), (stage, tag)
    for name, pixels in recorded["foreground"].items():
        mask = cv2.imread(str(results / "masks" / name), cv2.IMREAD_UNCHANGED)
        assert (mask > 0).sum() == pytest.approx(pixels, rel=0.15, abs=50), name
    with (results / "scores.csv").open(newline="") as file:
        rows = {row["sequence"]: row for row in csv.DictReader(file)}
    assert rows.keys() == recorded["scores"].keys()
    for name, (j, f) in recorded["scores"].items():
        assert float(rows[name]["J_mean"]) == pytest.approx(j, abs=0.05)
        assert float(rows[name]["F_mean"]) == pytest.approx(f, abs=0.05)
    files = (path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*"))
    files = {re.sub(r"events.*", "events", name) for name in files}
    assert files >= set(recorded["files"])
