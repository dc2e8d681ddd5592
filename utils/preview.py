"""Pictures of training samples: what the network will see.

``python -m utils.preview --output preview``, with any setting of config.py as a flag; ``--help``
lists them. Samples are made and augmented as in pretrain.py (stage 1) and train.py (stage 2).
"""

from pathlib import Path

import numpy as np
from torch import Tensor

import config
from datasets.files import write_picture
from datasets.flow.origin import flow_origin
from datasets.layout import still_images
from datasets.samples import StillImages, VideoFrames, VideoWindows
from models import build_model, model_class
from utils.evaluation.output_folder import check_output
from utils.reports.pictures import draw_overlay, draw_row
from utils.scripts import run_script
from utils.settings import Settings, SettingsError, parse_settings, positive, settings_parser
from utils.training.samples import (
    augmentation_from,
    network_arguments,
    split_frames,
    stills_of,
    training_sequences,
    training_stills,
    videos_of,
)


def main() -> None:
    """Read the settings and draw samples of each set."""
    parser = settings_parser(config, __doc__.split("\n")[0])
    add = parser.add_argument
    folder = "folder for the pictures, one for each set"
    add("--output", type=Path, required=True, metavar="FOLDER", help=folder)
    stages = "stages whose samples are shown (default: all)"
    add("--stage", type=int, nargs="+", choices=(1, 2), help=stages)
    add("--samples", type=positive, default=6, metavar="N", help="drawn of each set (default: 6)")
    settings, arguments = parse_settings(parser, config)
    for name in (settings.pretrain_set, *settings.train_sets):
        check_output(arguments.output, Path(settings.data_root) / name)
    stages = [2] if model_class(settings.model).stage1 is None else [1, 2]
    if unknown := set(arguments.stage or stages) - set(stages):
        raise SettingsError(
            f"--stage {min(unknown)}: MODEL = {settings.model!r} is trained in one stage, by "
            "train.py; leave --stage out"
        )
    wanted = sorted(set(arguments.stage or stages))
    for title, samples, flow in [one for stage in wanted for one in samples_of(stage, settings)]:
        order = np.random.default_rng(settings.seed).permutation(len(samples)).tolist()
        rows = [draw_sample(samples[0, index]) for index in order[: arguments.samples]]
        file = arguments.output / f"{title.replace(' ', '_')}.png"
        write_picture(file, np.vstack(rows))
        print(f"{file}: {len(rows)} of {len(samples)} samples, flow: {flow or 'none'}")


def samples_of(
    stage: int, settings: Settings
) -> list[tuple[str, StillImages | VideoFrames | VideoWindows, str | None]]:
    """Title, samples and kind of flow maps (None without flow) of each set of a stage.

    Raises:
        DatasetError: a set is missing or incomplete.
    """
    s, root, augmentation = settings, Path(settings.data_root), augmentation_from(settings)
    kind = model_class(s.model)
    own = kind.stage1
    if stage == 1:
        frames, _ = split_frames(still_images(root, s.pretrain_set), s.pretrain_val_share, s.seed)
        return [(f"stage 1 {s.pretrain_set}", stills_of(frames, s, augmentation), None)]
    needs = build_model(s.model, **network_arguments(s, **kind.random_weights)).needs
    found = [
        (
            f"stage 2 {name}" if own else name,
            videos_of([sequences], s, needs, augmentation),
            (flow_origin(root, name) or "of unknown origin") if needs.flow else None,
        )
        for name, sequences in zip(s.train_sets, training_sequences(s, needs))
    ]
    if stills := training_stills(s, needs):
        samples = videos_of([], s, needs, augmentation, stills)
        found.append((f"stage 2 {s.pretrain_set}", samples, "without motion"))
    return found


def draw_sample(sample: dict[str, Tensor]) -> np.ndarray:
    """A training sample as a row of pictures, uint8 RGB: image with object, flow, references.

    Of a window, its frames, each with its flow map if there is one.
    """
    panels = []
    if sample["image"].ndim == 4:
        for number, image in enumerate(sample["image"], 1):
            panels.append((f"frame {number}", _picture(image)))
            if "flow" in sample:
                panels.append((f"its flow {number}", _picture(sample["flow"][number - 1])))
        return draw_row(panels)
    panels.append(("image", draw_overlay(_picture(sample["image"]), sample["labels"].numpy(), 1)))
    if "flow" in sample:
        panels.append(("optical flow", _picture(sample["flow"])))
        pairs = zip(sample["reference_images"], sample["reference_flows"])
        for number, (reference, flow) in enumerate(pairs, 1):
            panels.append((f"reference {number}", _picture(reference)))
            panels.append((f"its flow {number}", _picture(flow)))
    return draw_row(panels)


def _picture(tensor: Tensor) -> np.ndarray:
    return tensor.permute(1, 2, 0).contiguous().numpy()


if __name__ == "__main__":
    run_script(main)
