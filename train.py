"""Stage 2: train both streams on video, starting from stage 1 (Sec. 4.3).

Edit config.py and run ``python train.py``; ``--help`` lists every setting.
"""

from pathlib import Path

import numpy as np
import torch

import config
from datasets.layout import Sequence, read_image, read_mask, video_sequences
from datasets.samples import VideoFrames
from models import build_model
from utils.checkpoints import check_same_network, load_checkpoint, start_from_stage1
from utils.evaluation import Segmenter, predict_sequences, to_mask
from utils.metrics import region_similarity
from utils.pictures import draw_panels
from utils.scripts import check_data, frames_of, run_script, start_training
from utils.settings import Settings
from utils.training import (
    Validation,
    augmentation_from,
    count_parameters,
    fit,
)


def main() -> None:
    """Read the settings, check the data, train."""
    run = start_training(config, "train", "Stage 2: both streams on video.")
    if run is None:
        return
    settings, process = run.settings, run.process

    data_root = Path(settings.data_root)
    train_sets = [video_sequences(data_root, name) for name in settings.train_sets]
    val_sequences = video_sequences(data_root, settings.val_set)
    check_data([frame for s in [*train_sets, val_sequences] for frame in frames_of(s)], process)

    torch.manual_seed(settings.seed)
    network = run.network_arguments(motion=True)
    checkpoint = None
    if settings.stage1_checkpoint is not None and not run.resumed:
        checkpoint = load_checkpoint(Path(settings.stage1_checkpoint))
        check_same_network(checkpoint, settings.model, network)
        network["pretrained_backbone"] = False  # stage 1's weights take their place
    model = build_model(settings.model, **network)
    if process.is_main:
        counts = [f"{name}: {len(s)} sequences" for name, s in zip(settings.train_sets, train_sets)]
        print(
            f"stage 2: {settings.model} with {settings.backbone}, {count_parameters(model)}, "
            f"{', '.join(counts)}, validation on {settings.val_set}: {len(val_sequences)}, "
            f"on {process.device}; run folder {run.folder}"
        )
    if checkpoint is not None:
        loaded = start_from_stage1(model, checkpoint["weights"])
        if process.is_main:
            print(f"stage 1 from {settings.stage1_checkpoint}: {loaded}")
    dataset = VideoFrames(
        train_sets,
        settings.image_size,
        settings.num_references,
        augmentation_from(settings),
        settings.seed,
    )
    progress = fit(
        model,
        dataset,
        lambda model: validate(model, val_sequences, settings),
        settings,
        {"model": settings.model, "arguments": network},
        run.folder,
        process,
        resume=run.resumed,
    )
    if process.is_main:
        print(f"best validation J {progress.best:.4f}: {run.folder / 'best.pt'}")


def validate(model: torch.nn.Module, sequences: list[Sequence], settings: Settings) -> Validation:
    """Mean J over the sequences, each the mean over its frames, at the frames' own size."""
    scores: dict[str, list[float]] = {sequence.name: [] for sequence in sequences}
    panel = None
    segmenter = Segmenter(model, settings.image_size, mixed_precision=settings.mixed_precision)
    for result in predict_sequences(
        segmenter,
        sequences,
        settings.num_references,
        batch_size=settings.eval_batch_size,
        workers=settings.workers,
        frame_step=settings.val_frame_step,
    ):
        truth = read_mask(result.frame.mask)
        probability = result.prediction.probability(truth.shape)
        mask = to_mask(probability, settings.threshold, settings.stretch_masks)
        scores[result.sequence].append(region_similarity(mask, truth))
        if panel is None:
            image, flow = read_image(result.frame.image), read_image(result.frame.flow)
            panel = draw_panels(image, flow, mask, truth, result.prediction.maps)
    parts = {f"J {name}": float(np.mean(values)) for name, values in scores.items()}
    return Validation(float(np.mean(list(parts.values()))), parts, panel)


if __name__ == "__main__":
    run_script(main)
