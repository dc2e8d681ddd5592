"""Stage 2: train both streams on video, starting from stage 1 (Sec. 4.3).

Edit config.py and run ``python train.py``; ``--help`` lists every setting.
"""

import datasets  # noqa: F401  # isort: skip  first, for the sake of Ctrl-C
from pathlib import Path

import numpy as np
import torch

import config
from datasets.flow import flow_origin
from datasets.layout import Sequence, flow_note, read_image, read_mask, video_sequences
from models import build_model
from utils.checkpoints import BEST, check_same_network, load_checkpoint, start_from_stage1
from utils.distributed import Process, gather
from utils.evaluation import Segmenter, maps_by_iteration, predict_sequences, to_mask
from utils.metrics import boundary_accuracy, region_similarity
from utils.pictures import draw_iterations, draw_panels
from utils.scripts import check_data, compare_flow, frames_of, run_script, start_training
from utils.settings import Settings
from utils.training import (
    Validation,
    augmentation_from,
    count_parameters,
    fit,
    videos_of,
)


def main() -> None:
    """Read the settings, check the data, train."""
    run = start_training(config, "train", "Stage 2: both streams on video.")
    if run is None:
        return
    settings, process = run.settings, run.process

    data_root = Path(settings.data_root)
    if process.is_main and "YTVOS_train" not in settings.train_sets:
        print(
            f"note: TRAIN_SETS is {' '.join(settings.train_sets)}; the paper's is DAVIS_train "
            "YTVOS_train (Sec. 4.1)"
        )
    train_sets = [video_sequences(data_root, name) for name in settings.train_sets]
    val_sequences = video_sequences(data_root, settings.val_set, masks="some")
    check_data([frame for s in [*train_sets, val_sequences] for frame in frames_of(s)], process)
    made_by = flow_origin(data_root, settings.train_sets[0])

    torch.manual_seed(settings.seed)
    network = run.network_arguments(motion=True)
    checkpoint = None
    if settings.stage1_checkpoint is not None and not run.has_weights:
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
            compare_flow(checkpoint.get("flow"), made_by)
    sets = dict(zip(settings.train_sets, train_sets)) | {settings.val_set: val_sequences}
    for name, sequences in sets.items() if process.is_main else ():
        if note := flow_note(sequences):
            print(f"note: {name}: {note}")
    frames = {name: frames_of(sequences) for name, sequences in sets.items()}
    dataset = videos_of(train_sets, settings, augmentation_from(settings))
    with run.locked():
        progress = fit(
            model,
            dataset,
            lambda model, quick: validate(model, val_sequences, settings, process, quick),
            settings,
            {"script": "train.py", "model": settings.model, "arguments": network, "flow": made_by},
            run.folder,
            process,
            resume=run.resumed,
            dry_run=run.dry_run,
            record=lambda: run.record(frames),
        )
    if process.is_main and not run.dry_run:
        print(f"best validation J {progress.best:.4f}: {run.folder / BEST}")


def validate(
    model: torch.nn.Module,
    sequences: list[Sequence],
    settings: Settings,
    process: Process,
    quick: bool = False,
) -> Validation:
    """Mean J over the sequences, each the mean over its annotated frames, at their own size.

    The processes share the sequences, and each gets the whole result. ``quick`` is for one batch.
    """
    size = settings.eval_batch_size
    targets = {
        sequence.name: [frame for frame in sequence.frames if frame.mask][
            :: settings.val_frame_step
        ]
        for sequence in sequences
    }
    total = sum(map(len, targets.values()))
    mine = sequences[:1] if quick else sequences[process.rank :: process.world_size]
    if quick:
        targets = {name: frames[:size] for name, frames in targets.items()}
    segmenter = Segmenter(model, settings.image_size, mixed_precision=settings.mixed_precision)
    scores: dict[str, list[tuple[float, float]]] = {sequence.name: [] for sequence in mine}
    pictures = {}
    for result in predict_sequences(
        segmenter,
        mine,
        settings.num_references,
        batch_size=size,
        workers=settings.workers,
        targets=targets,
    ):
        frame, truth = result.frame, read_mask(result.frame.mask)
        probability = result.prediction.probability(truth.shape)
        mask = to_mask(probability, settings.threshold, settings.stretch_masks)
        scores[result.sequence].append(
            (region_similarity(mask, truth), boundary_accuracy(mask, truth))
        )
        if process.is_main and not pictures:
            image, flow = read_image(frame.image), read_image(frame.flow)
            pictures["panel"] = draw_panels(image, flow, mask, truth, result.prediction.maps)
            maps = maps_by_iteration(segmenter, mine[0], frame, settings.num_references)
            if any(maps):  # an ablation without slots has none
                pictures["slot maps by iteration"] = draw_iterations(image, maps)
    scores = {name: pairs for one in gather(scores, process) for name, pairs in one.items()}
    means = {name: np.mean(scores[name], axis=0) for name in targets if scores.get(name)}
    parts = {f"{m} {name}": float(v) for name, pair in means.items() for m, v in zip("JF", pair)}
    j, f = np.mean(list(means.values()), axis=0)
    frames = sum(map(len, scores.values()))
    return Validation(float(j), {"F": float(f), **parts}, pictures, frames, total)


if __name__ == "__main__":
    run_script(main)
