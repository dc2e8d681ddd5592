"""Both stages and the evaluation give what they gave before the code was reorganised.

``recorded.json`` was written with the version before that, by the same commands: losses and
validation scores of both stages, the pixels of each mask, the scores and the files. On one machine
all was the same bit for bit. The tolerances are for other processors and versions of the packages:
with the oldest ones, losses differ by up to 0.6 %. Data and first weights are made here for that.
"""

import csv
import json
import re
import sys
import zlib
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

import evaluate
import pretrain
import train
from utils.scripts import run_script

RECORDED = json.loads((Path(__file__).parent / "recorded.json").read_text())
SETTINGS = (
    *("--backbone", "mobilenetv3_small_100", "--pretrained-backbone", "false"),
    *("--image-size", 64, "--channels", 16, "--num-clusters", 8, "--num-neighbours", 4),
    *("--batch-size", 4, "--learning-rate", 1e-4, "--epochs", 2, "--decoder-image", "true"),
)


def call(monkeypatch, script, *flags):
    machine = ("--gpu", "", "--workers", 0)
    monkeypatch.setattr(sys, "argv", [f"{script.__name__}.py", *map(str, (*machine, *flags))])
    run_script(script.main)


def write_data(root):
    """Disks that move over noise, and their flow, drawn without OpenCV: 48 x 64 pixels."""
    rng, (y, x) = np.random.default_rng(0), np.mgrid[:48, :64]

    def frame(centre, colour):
        inside = (x - centre[0]) ** 2 + (y - centre[1]) ** 2 < 12**2
        image = np.where(inside[..., None], colour, rng.integers(0, 120, (48, 64, 3)))
        flow = np.where(inside[..., None], (255, 90, 60), 255)
        return {"RGB": image, "GT": inside * 255, "FLOW": flow}

    def write(folder, name, pictures):
        for part, picture in pictures.items():
            (folder / part).mkdir(parents=True, exist_ok=True)
            Image.fromarray(picture.astype(np.uint8)).save(folder / part / f"{name}.png")

    for number in range(6):
        still = frame(rng.integers(14, 34, 2), rng.integers(100, 255, 3))
        still.pop("FLOW")
        write(root / "DUTS_train", f"still{number}", still)
    for name in ("DAVIS_train", "DAVIS_test"):
        for sequence in ("one", "two"):
            colour, start = rng.integers(100, 255, 3), rng.integers(14, 28, 2)
            for t in range(5):
                folder = root / name / sequence if name == "DAVIS_test" else root / name
                write(folder, f"{sequence}_{t:05d}", frame(start + 2 * t, colour))


@torch.no_grad()
def with_weights_by_name(network):
    """The network with random weights that follow from their names; norms begin as usual."""
    for name, parameter in network.named_parameters():
        if parameter.ndim == 1:
            parameter.fill_(float(name.endswith("weight")))
        else:
            rng = np.random.default_rng(zlib.crc32(name.encode()))
            values = rng.normal(0, parameter[0].numel() ** -0.5, parameter.shape)
            parameter.copy_(torch.from_numpy(values))
    return network


def scalars(folder):
    events = EventAccumulator(str(folder), size_guidance={"scalars": 0})
    events.Reload()
    return {tag: [s.value for s in events.Scalars(tag)] for tag in events.Tags()["scalars"]}


@pytest.mark.parametrize("model", ["gsanet", "dpa"])
def test_results_are_those_of_before(model, tmp_path, monkeypatch):
    recorded, data_root = RECORDED[model], tmp_path / "data"
    write_data(data_root)
    for script in (pretrain, train):
        build = script.build_model
        monkeypatch.setattr(
            script,
            "build_model",
            lambda *names, build=build, **arguments: with_weights_by_name(
                build(*names, **arguments)
            ),
        )
    settings = ("--model", model, "--data-root", data_root, "--output-dir", tmp_path, *SETTINGS)
    call(monkeypatch, pretrain, *settings)
    stage1 = tmp_path / "pretrain" / "last.pt"
    call(monkeypatch, train, *settings, "--stage1-checkpoint", stage1)
    results = tmp_path / "results"
    data = ("--data-root", data_root, "--set", "DAVIS_test")
    checkpoint = tmp_path / "train" / "last.pt"
    call(monkeypatch, evaluate, *data, "--checkpoint", checkpoint, "--output", results)

    for stage, expected in recorded["scalars"].items():
        found = scalars(tmp_path / stage)
        for tag, values in expected.items():
            assert found[tag] == pytest.approx(values, rel=0.01), (stage, tag)
    for name, pixels in recorded["foreground"].items():
        mask = cv2.imread(str(results / "masks" / name), cv2.IMREAD_UNCHANGED)
        assert (mask > 0).sum() == pytest.approx(pixels, rel=0.01), name
    with (results / "scores.csv").open(newline="") as file:
        rows = {row["sequence"]: row for row in csv.DictReader(file)}
    assert rows.keys() == recorded["scores"].keys()
    for name, (j, f) in recorded["scores"].items():
        assert float(rows[name]["J_mean"]) == pytest.approx(j, abs=1e-3)
        assert float(rows[name]["F_mean"]) == pytest.approx(f, abs=1e-3)
    files = (path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*"))
    files = {re.sub(r"events.*", "events", name) for name in files}
    assert files >= set(recorded["files"])
