"""Stage 1: train the RGB encoder and the decoder on still images (Sec. 4.3).

With PRETRAIN_MOTION = "simulated" both streams and all modules, on motion simulated on the images.
Edit config.py and run ``python pretrain.py``; ``--help`` lists every setting.
"""

import datasets  # noqa: F401  # isort: skip  first, for the sake of Ctrl-C
from pathlib import Path

import numpy as np
import torch

import config
from datasets.flow import origin_in_words
from datasets.layout import DatasetError, Frame, still_images
from models import build_model
from utils.checkpoints import BEST
from utils.distributed import Process, gather
from utils.evaluation import predict_stills
from utils.metrics import region_similarity
from utils.pictures import draw_panels
from utils.scripts import check_data, run_script, start_training
from utils.settings import Settings
from utils.training import (
    Validation,
    augmentation_from,
    count_parameters,
    fit,
    make_loader,
    split_frames,
    stills_of,
)


def main() -> None:
    """Read the settings, check the data, train."""
    run = start_training(config, "pretrain", "Stage 1: still images.")
    if run is None:
        return
    settings, process = run.settings, run.process

    frames = still_images(Path(settings.data_root), settings.pretrain_set)
    check_data(frames, process)
    if len(frames) < 2:
        raise DatasetError(
            f"{settings.pretrain_set} has one image; two are needed, one of them for validation"
        )
    train_frames, val_frames = split_frames(frames, settings.pretrain_val_share, settings.seed)

    torch.manual_seed(settings.seed)
    network = run.network_arguments(motion=settings.pretrain_motion != "none")
    model = build_model(settings.model, **network)
    if process.is_main:
        print(
            f"stage 1: {settings.model} with {settings.backbone}, {count_parameters(model)}, "
            f"{'simulated motion, ' if network['motion'] else ''}"
            f"{len(train_frames)} images for training, {len(val_frames)} for validation, "
            f"on {process.device}; run folder {run.folder}"
        )
    flow = origin_in_words("simulated", settings.remove_camera_motion) if model.motion else None
    dataset = stills_of(train_frames, settings, augmentation_from(settings))
    with run.locked():
        progress = fit(
            model,
            dataset,
            lambda model, quick: validate(model, val_frames, settings, process, quick),
            settings,
            {"script": "pretrain.py", "model": settings.model, "arguments": network, "flow": flow},
            run.folder,
            process,
            resume=run.resumed,
            dry_run=run.dry_run,
            record=lambda: run.record({settings.pretrain_set: frames}),
        )
    if process.is_main and not run.dry_run:
        print(f"best validation J {progress.best:.4f}: {run.folder / BEST}")


def validate(
    model: torch.nn.Module,
    frames: list[Frame],
    settings: Settings,
    process: Process,
    quick: bool = False,
) -> Validation:
    """Mean J over the images kept back, at the network's input size.

    The processes share the batches, and each gets the whole result. ``quick`` is for one batch.
    """
    size = settings.eval_batch_size
    keys = [(0, index) for index in range(len(frames))]
    batches = [keys[first : first + size] for first in range(0, len(keys), size)]
    mine = batches[:1] if quick else batches[process.rank :: process.world_size]
    loader = make_loader(
        stills_of(frames, settings),
        mine,
        settings.workers,
        next(model.parameters()).device,
    )
    scores: dict[int, float] = {}
    pictures = {}
    predicted = predict_stills(model, loader, settings.mixed_precision)
    for keys_of_batch, (batch, probabilities, maps) in zip(mine, predicted):
        masks = batch["mask"] > 0.5
        predictions = probabilities > settings.threshold
        for (_, index), prediction, mask in zip(keys_of_batch, predictions.numpy(), masks.numpy()):
            scores[index] = region_similarity(prediction[0], mask[0])
        if process.is_main and not pictures:
            image, flow = (
                (batch[name][0].permute(1, 2, 0).numpy() * 255).round().astype(np.uint8)
                if name in batch
                else None
                for name in ("image", "flow")
            )
            first = {name: values[0].numpy() for name, values in maps.items()}
            prediction, mask = predictions[0, 0].numpy(), masks[0, 0].numpy()
            pictures["panel"] = draw_panels(image, flow, prediction, mask, first)
    scores = {index: j for one in gather(scores, process) for index, j in one.items()}
    mean = float(np.mean([scores[index] for index in sorted(scores)]))
    return Validation(mean, pictures=pictures, frames=len(scores), of=len(frames))


if __name__ == "__main__":
    run_script(main)
