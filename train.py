"""Stage 2, or the only stage: train on video (Sec. 4.3).

Edit config.py and run ``python train.py``; ``--help`` lists every setting.
"""

from itertools import chain
from pathlib import Path

import torch

import config
from datasets.file_checks import check_files
from datasets.flow.origin import compare_flow, flow_origin, note_flow
from datasets.layout import frames_of
from models import build_model, model_class
from precision import device_in_words
from utils.evaluation.validation import check_validation, validate_videos
from utils.scripts import run_script
from utils.training.checkpoints import (
    CheckpointError,
    check_same_network,
    find_checkpoint,
    load_checkpoint,
)
from utils.training.dry_run import count_parameters
from utils.training.samples import (
    augmentation_from,
    count_in_words,
    network_name,
    training_sequences,
    training_stills,
    validation_sequences,
    videos_of,
)
from utils.training.start import start_training


def main() -> None:
    """Read the settings, check the data, train."""
    run = start_training(config, "train", "Stage 2, or the only stage: train on video.")
    if run is None:
        return
    settings, process = run.settings, run.process

    torch.manual_seed(settings.seed)
    arguments = run.network_arguments()
    checkpoint = None
    kind = model_class(settings.model)
    has_stage1 = kind.stage1 is not None
    if settings.stage1_checkpoint is not None and not run.has_weights:
        stage1 = find_checkpoint(Path(settings.stage1_checkpoint))
        if not stage1.exists():
            first = "run pretrain.py first, or " if has_stage1 else ""
            raise CheckpointError(
                f"there is no checkpoint {stage1} to start from; {first}pass --stage1-checkpoint "
                "with another file, or with none"
            )
        checkpoint = load_checkpoint(stage1)
        check_same_network(stage1, checkpoint, settings.model, arguments)
        arguments |= kind.random_weights
    network = build_model(settings.model, **arguments)

    data_root, needs = Path(settings.data_root), network.needs
    train_sets = training_sequences(settings, needs)
    stills = training_stills(settings, needs)
    val_sequences = validation_sequences(settings, needs)
    if not run.resumed:
        check_validation(network, val_sequences, settings)
    sets = dict(zip(settings.train_sets, train_sets)) | {settings.val_set: val_sequences}
    frames = {name: frames_of(sequences) for name, sequences in sets.items()}
    if stills:
        frames[settings.pretrain_set] = stills
    if process.is_main:
        check_files(chain.from_iterable(frames.values()), flow=needs.flow)
    made_by = flow_origin(data_root, settings.train_sets[0]) if needs.flow else None

    if process.is_main:
        counts = [count_in_words(*one) for one in zip(settings.train_sets, train_sets)]
        counts += [f"{settings.pretrain_set}: {len(stills)} images"] if stills else []
        print(
            f"{'stage 2: ' if has_stage1 else ''}{network_name(settings.model, arguments)}, "
            f"{count_parameters(network)}, "
            f"{', '.join(counts)}, validation on {settings.val_set}: {len(val_sequences)}, "
            f"on {device_in_words(process.device, settings.mixed_precision)}; "
            f"run folder {run.folder}"
        )
    if checkpoint is not None:
        loaded = network.start_from(checkpoint["weights"])
        if loaded.loaded + loaded.copied == 0:
            raise CheckpointError(f"no tensor in {settings.stage1_checkpoint} fits the network")
        if process.is_main:
            what = "stage 1" if has_stage1 else "weights"
            print(f"{what} from {settings.stage1_checkpoint}: {loaded}")
            if has_stage1 and checkpoint.get("script") == run.script:
                print(
                    f"note: {settings.stage1_checkpoint} is of stage 2 (train.py), so all its "
                    "weights are taken"
                )
            compare_flow(checkpoint.get("flow"), made_by)
    for name, sequences in sets.items() if process.is_main and needs.flow else ():
        note_flow(name, sequences)
        compare_flow(made_by, flow_origin(data_root, name), f"those of {name}")
    run.train(
        network,
        arguments,
        videos_of(train_sets, settings, needs, augmentation_from(settings), stills),
        lambda network, quick: validate_videos(network, val_sequences, settings, process, quick),
        frames,
        made_by,
    )


if __name__ == "__main__":
    run_script(main)
