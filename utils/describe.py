"""Says what a checkpoint is, and writes it in the layout of a model on huggingface.co.

- ``python -m utils.describe runs/train/best.pt``
- ``python -m utils.describe runs/train/best.pt --safetensors OUT_DIR``
- ``python -m utils.describe runs/train/best.pt --half OUT_FILE``: a small checkpoint
"""

import argparse
import json
from pathlib import Path
from typing import Any

import config
from datasets.files import write_text
from errors import UserError
from utils.evaluation.output_folder import check_output
from utils.scripts import run_script
from utils.settings import Settings, load_settings
from utils.training.checkpoints import (
    PUBLISHED,
    CheckpointError,
    build_from_checkpoint,
    find_checkpoint,
    load_checkpoint,
    not_finite,
    save_checkpoint,
    values_of,
    write_published,
)
from utils.training.samples import network_name

CONFIG, CARD = "config.json", "README.md"
NOT_KNOWN = "not known"
LICENCES = (
    "The code is under Apache-2.0. The weights also come from the backbone's published weights and "
    "from the data sets, which have licences of their own; some allow research only."
)
_CARD = """---
library_name: pytorch
pipeline_tag: image-segmentation
license: other
license_name: see-licence-below
license_link: README.md
tags:
- video-object-segmentation
- {model}
---

# {network}

A network for unsupervised video object segmentation: it masks the prominent objects of a video.

| | |
| --- | --- |
{rows}

## Use

With the code of the version above, from its folder:

{use}

The header of `model.safetensors` holds the network's arguments and the settings of its training, so
that this file alone is enough. `config.json` is a copy of them.

## Licence

{licences}
"""
_USE = """```python
from inference import load, segment_video

network = load("FOLDER")
for mask in segment_video(network, "clip.mp4"):
    print(mask.shape, mask.mean())
```

`load` also takes this model's name on the hub."""
_USE_OF_STAGE1 = """```
python train.py --stage1-checkpoint FOLDER
```

This is the network of stage 1, which segments no videos."""


def main() -> None:
    """Describe a checkpoint and, if asked to, write it for publication."""
    parser = argparse.ArgumentParser(
        prog="python -m utils.describe", description=__doc__.split("\n")[0]
    )
    parser.add_argument("checkpoint", type=Path, metavar="FILE", help="checkpoint to describe")
    text = "also write model.safetensors, config.json and README.md into this new folder"
    parser.add_argument("--safetensors", type=Path, metavar="OUT_DIR", help=text)
    text = "also write a checkpoint in half precision, without the state of the training"
    parser.add_argument("--half", type=Path, metavar="OUT_FILE", help=text)
    arguments = parser.parse_args()
    path, output = find_checkpoint(arguments.checkpoint), arguments.safetensors
    checkpoint, settings = load_checkpoint(path), load_settings(config)
    print(f"{path}, {path.stat().st_size / 1e6:.1f} MB")
    for name, text in describe(checkpoint, settings).items():
        print(f"{name + ':':<12}{text}")
    if output is not None:
        publish(checkpoint, output, settings)
        print(f"written: {output / PUBLISHED}, {output / CONFIG}, {output / CARD}")
    if half := arguments.half:
        write_half(checkpoint, half, settings)
        print(f"written: {half}, {half.stat().st_size / 1e6:.1f} MB")


def describe(checkpoint: dict[str, Any], settings: Settings) -> dict[str, str]:
    """Texts about a checkpoint, by name; ``settings`` are those of ``config.py``."""
    of_run, defaults = checkpoint["settings"], settings.as_dict()
    # A checkpoint that names its flow maps says so in a line of its own.
    unnamed = ("FLOW_ESTIMATOR", "REMOVE_CAMERA_MOTION") if checkpoint.get("flow") else ()
    own = {
        name: value
        for name, value in of_run.items()
        if name not in unnamed and (name not in defaults or defaults[name] != value)
    }
    done, score = _training(checkpoint.get("progress"), of_run)
    version, commit = (checkpoint.get(name) or NOT_KNOWN for name in ("version", "commit"))
    return {
        "network": network_name(checkpoint["model"], checkpoint["arguments"]),
        "parameters": _parameters(checkpoint),
        "arguments": _listed(checkpoint["arguments"]),
        "settings": f"as in config.py but for {_listed(own) or 'none'}",
        "data": _data(checkpoint.get("script"), of_run),
        "flow maps": checkpoint.get("flow") or NOT_KNOWN,
        "training": done,
        "validation": score,
        "code": f"version {version}, commit {commit}",
        "licences": LICENCES,
    }


def publish(checkpoint: dict[str, Any], output: Path, settings: Settings) -> None:
    """Write ``model.safetensors``, ``config.json`` and ``README.md`` into a new folder.

    Settings and arguments that are paths of this machine are left out.

    Raises:
        CheckpointError: the folder holds files.
        DatasetError: it is a file, or lies in one.
        OSError: it cannot be written.
    """
    check_output(output)
    if output.is_dir() and any(output.iterdir()):
        raise CheckpointError(f"{output} holds files; give --safetensors a new or empty folder")
    checkpoint = _without_paths(checkpoint, settings)
    card = describe(checkpoint, settings)
    write_published(output / PUBLISHED, checkpoint, card)
    write_text(output / CONFIG, json.dumps(values_of(checkpoint), indent=1) + "\n")
    texts = {name: text.replace("|", r"\|") for name, text in card.items()}
    licences = texts.pop("licences")
    text = _CARD.format(
        model=checkpoint["model"],
        network=texts["network"],
        rows="\n".join(f"| {name} | {text} |" for name, text in texts.items()),
        use=_USE_OF_STAGE1 if checkpoint.get("script") == "pretrain.py" else _USE,
        licences=licences,
    )
    write_text(output / CARD, text)


def write_half(checkpoint: dict[str, Any], path: Path, settings: Settings) -> None:
    """Write a checkpoint whose filters and matrices are float16; the network computes in float32.

    Settings and arguments that are paths of this machine are left out.

    Raises:
        CheckpointError: there is a file, it cannot be written, or a weight is too large.
    """
    if path.exists():
        raise CheckpointError(f"{path} is there already; give --half a new name")
    weights = {
        name: tensor.half() if tensor.is_floating_point() and tensor.ndim > 1 else tensor
        for name, tensor in checkpoint["weights"].items()
    }
    if large := list(not_finite(weights)):
        raise CheckpointError(f"{large[0]} has numbers that are too large for half precision")
    values = values_of(_without_paths(checkpoint, settings))
    save_checkpoint(path, {**values, "weights": weights})


def _without_paths(checkpoint: dict[str, Any], settings: Settings) -> dict[str, Any]:
    """The checkpoint without settings and arguments that are paths of this machine."""
    paths = {*settings.paths(), *map(str.lower, settings.paths())}
    kept = {
        part: {n: v for n, v in checkpoint[part].items() if n not in paths}
        for part in ("settings", "arguments")
    }
    return {**checkpoint, **kept}


def _parameters(checkpoint: dict[str, Any]) -> str:
    try:
        network = build_from_checkpoint(checkpoint)
    except UserError as error:
        return f"{NOT_KNOWN}; {error}"
    return f"{sum(parameter.numel() for parameter in network.parameters()):,}"


def _data(script: str | None, settings: dict[str, Any]) -> str:
    if script == "pretrain.py":
        share = settings["PRETRAIN_VAL_SHARE"]
        return f"{settings['PRETRAIN_SET']} (pretrain.py), validated on a share of {share} of it"
    if script == "train.py":
        sets = ", ".join(settings["TRAIN_SETS"])
        if settings.get("STILL_SHARE"):
            sets += f", still images of {settings['PRETRAIN_SET']}"
        return f"{sets} (train.py), validated on {settings['VAL_SET']}"
    return NOT_KNOWN


def _training(progress: dict[str, Any] | None, settings: dict[str, Any]) -> tuple[str, str]:
    """How far training is, and its score."""
    if not progress:
        return NOT_KNOWN, NOT_KNOWN
    done = f"{progress['epoch']} of {settings['EPOCHS']} epochs, {progress['step']} steps"
    best = progress["best"]
    return done, f"highest J so far {best:.4f}" if best >= 0 else "none"


def _listed(values: dict[str, Any]) -> str:
    return ", ".join(f"{name} = {value!r}" for name, value in values.items())


if __name__ == "__main__":
    run_script(main)
