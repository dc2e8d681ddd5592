"""Exported graphs against the network that they come from, by the programs that run them."""

import json
import re
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from models.gsanet import local_extractor
from models.interface import Graph, Network
from models.ops import resize
from models.two_streams import TwoStreams, uniform_references
from tests.models.small_networks import frames_in_memory, network
from utils import export
from utils.export import ExportError, compare
from utils.settings import SettingsError

ROOT = Path(__file__).parents[2]
HEIGHT, WIDTH = 64, 96


def probabilities(model, video):
    with torch.inference_mode():
        found = [resize(p.logits[0], (HEIGHT, WIDTH)) for p in model.segment_video(video)]
    return torch.cat(found).sigmoid()[:, 0].numpy()


# The exporter's time grows with the number of operations; this network has few.
def test_the_documents_program_has_the_networks_masks(tmp_path, monkeypatch):
    monkeypatch.setattr(local_extractor, "KMEANS_ROUNDS", 2)
    model = network("gsanet", backbone="resnet18", num_iterations=1).eval()
    export.export(model.graphs(HEIGHT, WIDTH), tmp_path / "exported", "onnx", {})
    graphs = json.loads((tmp_path / "exported/export.json").read_text())["graphs"]
    assert graphs["frames"]["inputs"]["image"] == ["batch", 3, HEIGHT, WIDTH]
    assert graphs["frames"]["outputs"]["probability"] == ["batch", 1, HEIGHT, WIDTH]
    assert graphs["references"]["outputs"]["rgb_references"][:2] == [1, "references"]
    video = frames_in_memory(5, HEIGHT, WIDTH)
    images, flows = (video.at(range(5))[name].numpy() for name in ("image", "flow"))
    # The middle of the network's own scores, so that there are masks.
    expected = probabilities(model, video)
    middle = float(np.median(expected))
    (program,) = re.findall(r"```python\n(.*?)```", (ROOT / "docs/export.md").read_text(), re.S)
    assert program.count("> 0.5") == 1
    monkeypatch.chdir(tmp_path)
    names = {"images": images, "flows": flows}
    exec(program.replace("> 0.5", f"> {middle}"), names)
    masks, truth = np.stack(names["masks"]), expected > middle
    assert 0.4 < truth.mean() < 0.6
    assert (masks & truth).sum() / (masks | truth).sum() >= 0.999


def test_a_program_of_torch_is_read_again(tmp_path):
    model = network("smtc").eval()
    export.export(model.graphs(HEIGHT, WIDTH), tmp_path, "torch", {})
    (file,) = tmp_path.glob("*.pt2")
    module = torch.export.load(file).module()
    images = frames_in_memory(3, HEIGHT, WIDTH).at(range(3))["image"]
    with torch.inference_mode():
        (found,) = module(images)
        tokens = model.encoder(model.normalise(images), class_token=False)
        expected = tokens.keys.transpose(1, 2).unflatten(2, tokens.grid)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


def test_graphs_of_dpa_have_its_probabilities():
    """Before their export, which takes a minute and compares its result with them."""
    model = network("dpa", backbone="resnet18", graph_rounds=1).eval()
    graphs = model.graphs(HEIGHT, WIDTH)
    references, frames = graphs["references"].module, graphs["frames"].module
    video = frames_in_memory(5, HEIGHT, WIDTH)
    expected = probabilities(model, video)
    shown, batch = video.at(uniform_references(5, 3)), video.at(range(5))
    with torch.inference_mode():
        kept = references(shown["image"], shown["flow"])
        (found,) = frames(batch["image"], batch["flow"], *kept)
    np.testing.assert_allclose(found[:, 0].numpy(), expected, atol=1e-4)


class Doubled(nn.Module):
    """A network of one operation."""

    def forward(self, image):
        return (2 * image.float(),)


def test_a_file_with_other_values_is_not_kept(tmp_path, monkeypatch):
    inputs = {"image": torch.zeros(2, 3, 8, 8, dtype=torch.uint8)}
    graph = Graph(Doubled(), inputs, ("doubled",), {"image": {0: "batch"}})

    def write(graph, path, share):
        path.write_text("a file")

        def run(arrays):
            values = 2.0 * arrays["image"]
            values.flat[: round(share * values.size)] = -1
            return [values]

        return run

    def exported(names, share):
        wrong = (lambda *pair: write(*pair, share), ".x", ())
        monkeypatch.setitem(export.FORMATS, "x", wrong)
        export.export(dict.fromkeys(names, graph), tmp_path, "x", {})
        return sorted(path.name for path in tmp_path.iterdir())

    assert exported(["part", "other"], 0.0005) == ["export.json", "other.x", "part.x"]
    before = (tmp_path / "export.json").read_text()
    with pytest.raises(ExportError, match=r"part\.x: 9\d\.\d+% of its values"):
        exported(["part"], 0.01)
    assert (tmp_path / "export.json").read_text() == before
    # Files of an earlier export are replaced.
    assert exported(["part"], 0.0) == ["export.json", "part.x"]


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("export.json", '{"my": 1}', "not of an export, or is damaged"),
        ("export.json", '{"graphs": ', "not of an export, or is damaged"),
        ("part.x", "mine", r"part\.x is not of an export"),
    ],
)
def test_files_of_others_are_kept(name, text, message, tmp_path, monkeypatch):
    def write(*_):
        pytest.fail("the graph was written before")

    monkeypatch.setitem(export.FORMATS, "x", (write, ".x", ()))
    (tmp_path / name).write_text(text)
    with pytest.raises(ExportError, match=message):
        export.export({"part": None}, tmp_path, "x", {})
    assert [(path.name, path.read_text()) for path in tmp_path.iterdir()] == [(name, text)]


def test_results_of_one_graph_are_inputs_of_the_next():
    first = Graph(Doubled(), {"image": torch.zeros(1, 3, 4, 4).byte()}, ("doubled",), {})
    second = Graph(Doubled(), {"doubled": torch.zeros(1, 3, 4, 4)}, ("twice",), {})
    seen, known = [], {}

    def run(inputs):
        seen.append(*inputs.values())
        return [2.0 * seen[-1]]

    assert compare(first, run, known) == compare(second, run, known) == 1
    np.testing.assert_array_equal(seen[1], 2.0 * seen[0])


def test_a_missing_package_is_named(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "onnxscript", None)
    with pytest.raises(ExportError, match="needs the package onnxscript: pip install onnx "):
        export.export({}, tmp_path, "onnx", {})


def test_the_program_exports_a_checkpoint(call, tmp_path, monkeypatch):
    import pretrain

    flags = ("--backbone", "mobilenetv3_small_100", "--pretrained-backbone", "false")
    small = ("--channels", 16, "--image-size", 64, "--epochs", 1, "--batch-size", 4)
    call(pretrain, *flags, *small, "--output-dir", tmp_path)
    checkpoint = tmp_path / "pretrain/last.pt"
    flags = ("--checkpoint", checkpoint, "--output", tmp_path / "out", "--format", "torch")
    monkeypatch.setattr("sys.argv", ["export", *map(str, flags), "--threshold", "0.3"])
    with pytest.raises(SettingsError, match="--threshold: without effect"):
        export.main()
    monkeypatch.setattr("sys.argv", ["export", *map(str, flags)])
    with monkeypatch.context() as patch, pytest.raises(ExportError, match="no part that can be"):
        patch.setattr(TwoStreams, "graphs", Network.graphs)
        export.main()
    # Also on a processor that evaluates in bfloat16.
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: True)
    export.main()
    described = json.loads((tmp_path / "out/export.json").read_text())
    assert described["network"].startswith("gsanet with mobilenetv3_small_100")
    (graph,) = described["graphs"].values()
    assert graph["inputs"] == {"image": ["batch", 3, 64, 64]}
    assert (tmp_path / "out" / graph["file"]).exists()
