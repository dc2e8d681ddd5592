"""Writes a checkpoint's network as graphs that other programs run without this code.

``python -m utils.export --checkpoint runs/train/best.pt --output exported``

Each file is compared with PyTorch after it is written. docs/export.md says how to use them.
"""

import json
import tempfile
import warnings
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

import config
from datasets.files import write_text
from errors import UserError
from models.interface import Graph
from utils.evaluation.output_folder import check_output
from utils.evaluation.trained_network import load_trained_network, refuse_flags
from utils.scripts import run_script
from utils.settings import parse_settings, settings_parser

RECORD = "export.json"
AGREEMENT = 0.999  # least share of an output's values that are as PyTorch's
_TOLERANCE = 1e-3  # of the largest value
Run = Callable[[dict[str, np.ndarray]], list[np.ndarray]]  # a file as a function of its inputs


class ExportError(UserError):
    """A network cannot be exported; the message says why."""


def main() -> None:
    """Read the settings, then write and compare the graphs."""
    parser = settings_parser(config, __doc__.split("\n")[0], listed=("test",))
    add = parser.add_argument
    add("--checkpoint", type=Path, metavar="FILE", required=True, help="network to export")
    add("--output", type=Path, metavar="DIR", required=True, help="folder for the files")
    formats = "onnx for ONNX Runtime, OpenVINO and others; torch for torch.export (default: onnx)"
    add("--format", choices=FORMATS, default="onnx", help=formats)
    settings, arguments = parse_settings(parser, config)
    check_output(arguments.output, None)
    refuse_flags(arguments.given & set(settings.marked("machine", "masks")))
    # Graphs are in float32.
    settings = settings.replace(mixed_precision=False)
    given = (arguments.checkpoint, settings, arguments.given)
    trained = load_trained_network(*given, (), torch.device("cpu"))
    network = trained.segmenter.network
    width, height = (int(side) for side in trained.segmenter.views[0].sides)
    graphs = network.graphs(height, width)
    if not graphs:
        raise ExportError(f"{trained.method}: this network has no part that can be exported")
    print(f"{trained.method}, from {arguments.checkpoint}")
    notes = {"network": trained.method, "settings": trained.settings}
    export(graphs, arguments.output, arguments.format, notes)
    print(f"names and shapes: {arguments.output / RECORD}")


def export(graphs: dict[str, Graph], output: Path, kind: str, notes: dict[str, Any]) -> None:
    """Write graphs into a folder and compare them with PyTorch.

    ``export.json`` gets the ``notes`` and for each graph its file and the shapes of its inputs and
    outputs, with axes of any length by name. The files appear, and replace those of an earlier
    export, when all are complete.

    Raises:
        ExportError: a package is missing, a file's results are not those of PyTorch, or the folder
            has files of these names that are not of an export.
    """
    write, suffix, packages = FORMATS[kind]
    for package in packages:
        try:
            import_module(package)
        except ImportError as error:
            raise ExportError(
                f"--format {kind} needs the package {package}: pip install {' '.join(packages)}"
            ) from error
    replaced = _earlier_files(output)
    for file in (f"{name}{suffix}" for name in graphs):
        if (output / file).exists() and file not in replaced:
            raise ExportError(f"{output / file} is not of an export; choose another --output")
    output.mkdir(parents=True, exist_ok=True)
    described, known = {}, {}
    with tempfile.TemporaryDirectory(dir=output, prefix=".partial") as folder:
        for name, graph in graphs.items():
            file = f"{name}{suffix}"
            agreement = compare(graph, write(graph, Path(folder, file)), known)
            if agreement < AGREEMENT:
                raise ExportError(
                    f"{file}: {agreement:.2%} of its values are as PyTorch's, {AGREEMENT:.2%} are "
                    "needed; nothing was written"
                )
            print(f"{output / file}: {agreement:.2%} of its values are as PyTorch's")
            described[name] = {"file": file, **_shapes(graph, known)}
        for file in replaced:
            (output / file).unlink(missing_ok=True)
        for path in Path(folder).iterdir():
            path.replace(output / path.name)
    text = json.dumps({**notes, "graphs": described}, indent=2, default=str)
    write_text(output / RECORD, text + "\n")


def _earlier_files(output: Path) -> list[str]:
    """The files of an earlier export in the folder, by its record."""
    if not (output / RECORD).exists():
        return []
    try:
        return [one["file"] for one in json.loads((output / RECORD).read_text())["graphs"].values()]
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ExportError(
            f"{output / RECORD} is not of an export, or is damaged; remove it, or choose another "
            "--output"
        ) from error


def compare(graph: Graph, run: Run, known: dict[str, Tensor]) -> float:
    """The share of a file's values that differ from PyTorch's by at most 0.001 of the largest.

    The inputs are random pictures, or the results of earlier graphs in ``known``, to which the
    results of this one are added. Free axes are longer than in the graph's examples.
    """
    generator = torch.Generator().manual_seed(0)
    inputs = {}
    for name, example in graph.inputs.items():
        shape = list(example.shape)
        for axis in graph.free.get(name, {}):
            shape[axis] += 1
        if name in known:
            inputs[name] = known[name]
        else:
            coarse = torch.rand(
                *shape[:2], *(max(2, s // 16) for s in shape[2:]), generator=generator
            )
            smooth = F.interpolate(coarse, shape[2:], mode="bicubic")
            inputs[name] = (255 * smooth.clamp(0, 1)).round().byte()
    with torch.inference_mode():
        expected = graph.module(*inputs.values())
    found = run({name: tensor.numpy() for name, tensor in inputs.items()})
    shares = []
    for name, one, other in zip(graph.outputs, expected, found, strict=True):
        known[name] = one.clone()
        difference = np.abs(one.numpy() - other)
        shares.append(float((difference <= _TOLERANCE * np.abs(one.numpy()).max()).mean()))
    return min(shares)


def _write_onnx(graph: Graph, path: Path) -> Run:
    """Write an ONNX file; returns it as ONNX Runtime runs it."""
    import onnxruntime

    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about names of axes, and packages of torch itself
        program = torch.onnx.export(
            graph.module.eval(),
            tuple(graph.inputs.values()),
            dynamo=True,
            dynamic_shapes=_axes(graph),
            input_names=list(graph.inputs),
            output_names=list(graph.outputs),
            verbose=False,
        )
    program.save(path, external_data=False)
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    return lambda inputs: session.run(list(graph.outputs), inputs)


def _write_torch(graph: Graph, path: Path) -> Run:
    """Write a program of ``torch.export``; returns it as it is read again."""
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about groups of weights in the file
        program = torch.export.export(
            graph.module.eval(), tuple(graph.inputs.values()), dynamic_shapes=_axes(graph)
        ).run_decompositions({})
        torch.export.save(program, path)
    module = torch.export.load(path).module()
    return lambda inputs: [
        x.detach().numpy() for x in module(*map(torch.from_numpy, inputs.values()))
    ]


def _axes(graph: Graph) -> tuple[dict[int, torch.export.Dim], ...]:
    names = {name for axes in graph.free.values() for name in axes.values()}
    dims = {name: torch.export.Dim(name) for name in names}
    return tuple(
        {axis: dims[free] for axis, free in graph.free.get(name, {}).items()}
        for name in graph.inputs
    )


def _shapes(graph: Graph, longer: dict[str, Tensor]) -> dict[str, dict[str, list]]:
    """Sides of inputs and outputs; names for axes that are longer in ``longer`` outputs."""
    with torch.no_grad():
        outputs = dict(zip(graph.outputs, graph.module(*graph.inputs.values())))
    names = {
        graph.inputs[name].shape[axis]: free
        for name, axes in graph.free.items()
        for axis, free in axes.items()
    }
    inputs = {
        name: [graph.free.get(name, {}).get(axis, side) for axis, side in enumerate(tensor.shape)]
        for name, tensor in graph.inputs.items()
    }
    of_outputs = {}
    for name, output in outputs.items():
        sides = zip(output.shape, longer[name].shape)
        of_outputs[name] = [side if side == long else names[side] for side, long in sides]
    return {"inputs": inputs, "outputs": of_outputs}


FORMATS = {
    "onnx": (_write_onnx, ".onnx", ("onnx", "onnxscript", "onnxruntime")),
    "torch": (_write_torch, ".pt2", ()),
}


if __name__ == "__main__":
    run_script(main)
