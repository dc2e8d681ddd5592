"""The Python of README.md, docs/python.md and the notebook, as a reader runs it."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import matplotlib
import numpy as np
import pytest
from matplotlib import pyplot as plt

import inference
from datasets.layout import video_sequences
from tests.small_checkpoints import save_small
from tests.utils.evaluation.test_video import write_clip

ROOT = Path(inference.__file__).parent


@pytest.fixture
def place(tiny_root, tiny_settings, tmp_path):
    """A folder with a clip of four frames, a network, and another network as the demo's."""
    write_clip(tmp_path / "clip.mp4", 4)
    for name in ("runs/train/best.pt", "demo/runs/train/last.pt"):
        (tmp_path / name).parent.mkdir(parents=True)
        save_small(tmp_path / name, tiny_settings.replace(stretch_masks=True))
    (tmp_path / "demo/data").symlink_to(tiny_root)
    (tmp_path / "docs").mkdir()
    return tmp_path


def blocks(document: str) -> list[str]:
    """The blocks of Python in a document."""
    text = (ROOT / document).read_text(encoding="utf-8")
    return re.findall(r"^```python\n(.*?)^```$", text, flags=re.MULTILINE | re.DOTALL)


def test_the_readmes_python_runs_and_prints_nothing_of_its_own(place):
    """In a program that has a module ``config`` of its own."""
    (block,) = blocks("README.md")
    (place / "program.py").write_text(block)
    (place / "config.py").write_text("raise RuntimeError('the wrong config')\n")
    done = subprocess.run(
        [sys.executable, "program.py"],
        cwd=place,
        env={**os.environ, "PYTHONPATH": str(ROOT), "CUDA_VISIBLE_DEVICES": ""},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    assert re.fullmatch(r"(\(48, 80\) 0\.\d+\n){4}", done.stdout)


def test_the_blocks_of_the_page_about_python_run_one_after_the_other(place, monkeypatch, capsys):
    monkeypatch.chdir(place)
    space = {}
    for block in blocks("docs/python.md"):
        exec(block, space)
    masks = np.load("masks.npz")["masks"]
    assert masks.shape == (4, 48, 80) and 0 < masks.mean() < 1
    assert capsys.readouterr().out.count("(48, 80)") == 4


def test_the_notebook_runs_on_the_demos_network_and_data(place, monkeypatch, capsys, tiny_root):
    matplotlib.use("Agg")
    monkeypatch.chdir(place / "docs")
    monkeypatch.setattr(sys, "path", sys.path[:])
    monkeypatch.setattr(plt, "show", lambda: None)
    cells = notebook()["cells"]
    space = {}
    for cell in cells:
        if cell["cell_type"] == "code":
            exec("".join(cell["source"]), space)
    assert "gsanet with mit_b0" in capsys.readouterr().out
    count = len(video_sequences(tiny_root, "DAVIS_test")[0].frames)
    assert len(space["masks"]) == len(space["probabilities"]) == count
    figures = [plt.figure(number) for number in plt.get_fignums()]
    shown = [ax.get_images()[0].get_array() for figure in figures for ax in figure.axes]
    assert len(figures) == 2 and all(np.ptp(picture) > 0 for picture in shown)
    plt.close("all")


def notebook() -> dict:
    return json.loads((ROOT / "docs/segment_video.ipynb").read_text(encoding="utf-8"))


def test_the_notebook_holds_the_outputs_of_a_run():
    code = [cell for cell in notebook()["cells"] if cell["cell_type"] == "code"]
    assert [cell["execution_count"] for cell in code] == list(range(1, len(code) + 1))
    outputs = [output for cell in code for output in cell["outputs"]]
    assert not any(output["output_type"] == "error" for output in outputs)
    pictures = [output["data"]["image/png"] for output in outputs if "data" in output]
    assert 1 <= len(pictures) <= 2 and sum(map(len, pictures)) < 150_000
