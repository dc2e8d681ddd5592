"""Stage 1: train on still images (Sec. 4.3).

Edit config.py and run ``python pretrain.py``; ``--help`` lists every setting.
"""

from pathlib import Path

import torch

import config
from datasets.file_checks import check_files
from datasets.layout import still_images
from datasets.problems import DatasetError
from models import build_model, model_class
from precision import device_in_words
from utils.evaluation.validation import validate_stills
from utils.scripts import run_script
from utils.settings import SettingsError
from utils.training.dry_run import count_parameters
from utils.training.samples import augmentation_from, network_name, split_frames, stills_of
from utils.training.start import start_training


def main() -> None:
    """Read the settings, check the data, train."""
    run = start_training(config, "pretrain", "Stage 1: train on still images.")
    if run is None:
        return
    settings, process = run.settings, run.process
    stage1 = model_class(settings.model).stage1
    if stage1 is None:
        raise SettingsError(f"MODEL = {settings.model!r} is trained in one stage, by train.py")

    if "STAGE1_CHECKPOINT" in run.given:
        raise SettingsError(
            "--stage1-checkpoint: pretrain.py begins with the backbone's weights; train.py starts "
            "from a checkpoint"
        )
    frames = still_images(Path(settings.data_root), settings.pretrain_set)
    if process.is_main:
        check_files(frames)
    if len(frames) < 2:
        raise DatasetError(
            f"{settings.pretrain_set} has one image; two are needed, one of them for validation"
        )
    train_frames, val_frames = split_frames(frames, settings.pretrain_val_share, settings.seed)

    torch.manual_seed(settings.seed)
    arguments = run.network_arguments(**stage1)
    network = build_model(settings.model, **arguments)
    if process.is_main:
        print(
            f"stage 1: {network_name(settings.model, arguments)}, {count_parameters(network)}, "
            f"{len(train_frames)} images for training, {len(val_frames)} for validation, "
            f"on {device_in_words(process.device, settings.mixed_precision)}; "
            f"run folder {run.folder}"
        )
    run.train(
        network,
        arguments,
        stills_of(train_frames, settings, augmentation_from(settings)),
        lambda network, quick: validate_stills(network, val_frames, settings, process, quick),
        {settings.pretrain_set: frames},
    )


if __name__ == "__main__":
    run_script(main)
