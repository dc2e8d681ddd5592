"""Label propagation: masks of whole videos from the masks of their first frames.

- ``python -m utils.propagate --set DAVIS17semi_val --recipe smtc_a --output DIR``
- ``python -m utils.propagate --video CLIP --first-mask FILE --output DIR``
- ``python -m utils.propagate --vip DIR``, ``--jhmdb DIR``: scores of CRW's benchmarks of people

Features are those of ``--backbone``, or of the encoder in a ``--checkpoint``. ``--help`` lists the
settings that have an effect. docs/propagation.md says more.
"""

import argparse
import math
import time
from collections.abc import Callable
from contextlib import closing, suppress
from dataclasses import asdict, dataclass, replace
from itertools import tee
from pathlib import Path
from typing import Any

import numpy as np
import torch

import config
from datasets.clips import check_clip
from datasets.file_checks import check_files
from datasets.layout import Frame, VideoFiles, frame_label, frames_of, video_sequences
from datasets.pictures import read_image, read_size
from datasets.problems import DatasetError
from datasets.progress import progress_bar
from models.backbones import build_backbone, weights_file
from models.backbones.feature_map import FEATURES, FeatureMap
from models.backbones.vision_transformer import VisionTransformer
from models.propagation import FLOOR, RECIPES, SHORT_480, Recipe
from precision import device_in_words, precision
from utils.evaluation.output_folder import (
    IDENTITY,
    begin_evaluation,
    check_output,
    file_version,
)
from utils.evaluation.people import score_jhmdb, score_vip
from utils.evaluation.propagating import propagate_video, read_first_mask
from utils.evaluation.scoring import overlap
from utils.evaluation.set_evaluation import evaluate_masks
from utils.evaluation.trained_network import refuse_flags
from utils.evaluation.video import (
    MASKS,
    OVERLAY,
    check_results,
    print_results,
    published_when_whole,
)
from utils.processes import num_cores, start_process
from utils.reports.film import open_film
from utils.reports.pictures import draw_overlay, write_mask
from utils.scripts import run_script
from utils.settings import Settings, SettingsError, parse_settings, positive, settings_parser
from utils.training.checkpoints import build_from_checkpoint, find_checkpoint, load_checkpoint
from utils.training.interrupts import terminated_in_order
from utils.training.record import fingerprint
from utils.training.run_folder import locked

BACKBONE, LEVEL = "vit_small_patch16_224.dino", 16
PROTOCOL = "davis2017_semi_supervised"
_OF_BACKBONE = ("BACKBONE", "PRETRAINED_BACKBONE", "BACKBONE_WEIGHTS", "POSITION_TABLE")


@dataclass(frozen=True)
class Method:
    """How labels are propagated. ``name`` is a line for people."""

    name: str
    encoder: str  # a checkpoint or a backbone
    weights: Any  # what tells the encoder's weights and its precision from others
    features: FeatureMap
    recipe: Recipe
    options: dict[str, Any]  # of ``propagate_video``

    def label_maps(self, images: Any, first: np.ndarray) -> Any:
        """See :func:`propagate_video`."""
        return propagate_video(images, first, self.features, self.recipe, **self.options)


def main() -> None:
    """Read the settings, then propagate the first masks of a set or of one video."""
    settings, arguments = parse_settings(propagation_parser(), config)
    check_arguments(arguments, settings)
    by_default = "vip" if arguments.vip else "jhmdb" if arguments.jhmdb else "smtc_a"
    arguments.recipe = arguments.recipe or by_default
    if arguments.output:
        a_set = Path(settings.data_root, arguments.set) if arguments.set else None
        check_output(arguments.output, a_set)
    recipe = recipe_of(arguments)
    device = start_process(settings.gpu.split(",")[0]).device
    features, source = build_features(arguments, settings, recipe)
    changes = ", ".join(f"{n} {v}" for n, v in recipe_changes(arguments).items())
    name = f"label propagation, {arguments.recipe}{f' with {changes}' * bool(changes)}, {source}"
    print(f"{name}, on {device_in_words(device, settings.mixed_precision)}")
    options = {
        "batch_size": settings.eval_batch_size,
        "mixed_precision": settings.mixed_precision,
    }
    method = Method(
        name,
        source,
        [*weights_version(arguments, settings), precision(device, settings.mixed_precision)],
        features.to(device).eval(),
        recipe,
        options,
    )
    if arguments.vip or arguments.jhmdb:
        score = score_vip if arguments.vip else score_jhmdb
        print(score(arguments.vip or arguments.jhmdb, method.features, recipe, **options))
    elif arguments.video:
        propagate_clip(method, arguments.video, arguments.first_mask, arguments.output, settings)
    else:
        propagate_set(method, arguments.set, arguments.output, settings)


def propagation_parser() -> argparse.ArgumentParser:
    """The flags of this program, and those of all settings."""
    parser = settings_parser(config, __doc__.split("\n")[0], listed=("machine",))
    add = parser.add_argument
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--set", metavar="NAME", help="video set whose first frames have masks")
    what.add_argument("--video", type=Path, metavar="CLIP", help="video file or folder of frames")
    for name in ("vip", "jhmdb"):
        what.add_argument(f"--{name}", type=Path, metavar="DIR", help="its unpacked archive")
    add("--first-mask", type=Path, metavar="FILE", help="with --video: mask of its first frame")
    add("--output", type=Path, metavar="DIR", help="folder for masks, of a set or a video")
    add("--checkpoint", type=Path, metavar="FILE", help="network whose encoder gives the features")
    of_people = "(default: smtc_a; with --vip vip, with --jhmdb jhmdb)"
    add("--recipe", choices=RECIPES, help=of_people)
    level = f"stride of the features of a network that is no transformer (default: {LEVEL})"
    add("--level", type=positive, metavar="N", help=level)
    own = parser.add_argument_group("Changes of the recipe, see models/propagation.py")
    kinds: dict[str, dict[str, Any]] = {
        "context": {"type": int},
        "top_k": {"type": positive},
        "radius": {"type": above_zero},
        "temperature": {"type": above_zero},
        "stride": {"type": positive},
        "window": {"choices": ("disk", "square")},
        "feature": {"choices": FEATURES},
        "resize": {"choices": (FLOOR, SHORT_480)},
    }
    for switch in ("padded", "memory", "window_on_memory", "stretch"):
        kinds[switch] = {"action": argparse.BooleanOptionalAction}
    for name, kind in kinds.items():
        shown = {} if "choices" in kind or "action" in kind else {"metavar": "N"}
        flag = "--" + name.replace("_", "-")
        own.add_argument(flag, dest=f"recipe_{name}", default=None, **kind, **shown)
    return parser


def above_zero(text: str) -> float:
    """The number above 0 of a flag's text."""
    with suppress(ValueError):
        if 0 < float(text) < math.inf:
            return float(text)
    raise argparse.ArgumentTypeError(f"{text}: expected a number above 0")


def recipe_changes(arguments: argparse.Namespace) -> dict[str, Any]:
    """What the flags change of the recipe, by name."""
    return {
        name.removeprefix("recipe_"): value
        for name, value in vars(arguments).items()
        if name.startswith("recipe_") and value is not None
    }


def recipe_of(arguments: argparse.Namespace) -> Recipe:
    """The recipe with the flags' changes.

    Raises:
        SettingsError: frames would have no labels to take.
    """
    recipe = replace(RECIPES[arguments.recipe], **recipe_changes(arguments))
    if recipe.context < (0 if recipe.memory else 1):
        least = "at least 0, and at least 1 with --no-memory"
        raise SettingsError(f"--context {recipe.context}: expected {least}")
    return recipe


def check_arguments(arguments: argparse.Namespace, settings: Settings) -> None:
    """Refuse combinations of arguments of which one would have no effect."""
    if bool(arguments.video) != bool(arguments.first_mask):
        raise SettingsError("--video and --first-mask FILE need each other")
    if bool(arguments.video or arguments.set) != bool(arguments.output):
        raise SettingsError("--set and --video need --output DIR, which has no effect otherwise")
    for name in ("vip", "jhmdb"):  # before weights are loaded
        folder = getattr(arguments, name)
        if folder and not folder.is_dir():
            raise SettingsError(f"--{name} {folder}: no such folder; expected the unpacked archive")
    heard = {*settings.marked("machine"), "MIXED_PRECISION"}
    heard |= {"FRAME_RATE"} if arguments.video else set()
    heard |= {"DATA_ROOT", "PROTOCOL", "FOREGROUND"} if arguments.set else set()
    heard |= set() if arguments.checkpoint else set(_OF_BACKBONE)
    refuse_flags(arguments.given - heard)


def build_features(
    arguments: argparse.Namespace, settings: Settings, recipe: Recipe
) -> tuple[FeatureMap, str]:
    """The features, and a line for people.

    Raises:
        SettingsError: a flag that has no effect on this encoder.
    """
    level = arguments.level or LEVEL
    if arguments.checkpoint:
        encoder = build_from_checkpoint(load_checkpoint(arguments.checkpoint)).image_encoder
        source = str(arguments.checkpoint)
    else:
        chosen = "BACKBONE" in arguments.given | arguments.in_files
        source = settings.backbone if chosen else BACKBONE
        weights = settings.backbone_weights and Path(settings.backbone_weights)
        pretrained = settings.pretrained_backbone
        torch.manual_seed(settings.seed)  # of random weights
        if source.startswith("vit_"):
            table = settings.position_table
            encoder = VisionTransformer(source, pretrained, weights, positions=table)
        else:
            encoder = build_backbone(source, pretrained, weights, strides=(level,))
        source += "" if pretrained else " (random weights)"
    if isinstance(encoder, VisionTransformer):
        if arguments.level:
            raise SettingsError(f"--level: without effect on {source}, which has one; leave it out")
        return FeatureMap(encoder, recipe.feature, deviation=recipe.deviation), source
    if arguments.recipe_feature:
        raise SettingsError(f"--feature: without effect on {source}, no transformer; leave it out")
    return FeatureMap(encoder, recipe.feature, level), f"{source} at stride {level}"


def weights_version(arguments: argparse.Namespace, settings: Settings) -> list[Any]:
    """What tells the weights of :func:`build_features` from others of the same name."""
    if arguments.checkpoint:
        return file_version(find_checkpoint(arguments.checkpoint))
    if not settings.pretrained_backbone:
        return [settings.seed, settings.position_table]
    file = settings.backbone_weights and weights_file(Path(settings.backbone_weights))
    return [file and file_version(file), settings.position_table]


def propagate_set(method: Method, set_name: str, output: Path, settings: Settings) -> None:
    """Write the masks of a set, with DAVIS's palette, and score them if all frames have masks.

    A set that was begun before by the same method is continued.

    Raises:
        DatasetError: a first frame has no mask, or one that cannot be used.
    """
    root = Path(settings.data_root)
    sequences = video_sequences(root, set_name, masks="some", flow=False)
    check_files(frames_of(sequences), flow=False)
    firsts = {sequence.name: _first_of(sequence) for sequence in sequences}
    identity = {"method": method.name, "recipe": asdict(method.recipe), **method.options}
    identity["weights"] = method.weights
    identity["data"] = fingerprint({set_name: frames_of(sequences)}, root)
    with locked(output, "propagating into"), terminated_in_order():
        begin_evaluation(output, identity)
        total = len(frames_of(sequences))
        with progress_bar(desc="propagating", total=total, unit="frame") as bar:
            for sequence in sequences:
                folder = output / MASKS / sequence.name
                if len(list(folder.glob("*.png"))) < len(sequence.frames):
                    _write_sequence(method, sequence, firsts[sequence.name], folder, bar.update)
                else:
                    bar.update(len(sequence.frames))
    print(f"masks: {output / MASKS}")
    if all(frame.mask for frame in frames_of(sequences)):
        used = settings.replace(protocol=settings.protocol or PROTOCOL)
        evaluate_masks(output / MASKS, set_name, output, used, False, method.name, method.encoder)
        (output / IDENTITY).unlink()
    else:
        print(f"not every frame of {set_name} has a mask, so nothing was scored")


def _first_of(sequence: VideoFiles) -> np.ndarray:
    first = sequence.frames[0]
    if first.mask is None:
        raise DatasetError(f"{first.image}: the first frame of {sequence.name} has no mask; add it")
    return read_first_mask(first.mask, read_size(first.image))


def _write_sequence(
    method: Method,
    sequence: VideoFiles,
    first: np.ndarray,
    folder: Path,
    done: Callable[[], Any],
) -> None:
    def image(frame: Frame) -> np.ndarray:
        picture = read_image(frame.image)
        if picture.shape[:2] != first.shape:
            raise DatasetError(f"{frame.image}: another size than the first frame; resize it")
        return picture

    def write(item: tuple[Frame, np.ndarray]) -> None:
        frame, labels = item
        # Two objects at least give it the palette.
        path = folder / f"{frame_label(sequence.name, frame)}.png"
        write_mask(path, labels, max(2, int(first.max())))

    images = overlap(image, sequence.frames, num_cores())
    found = zip(sequence.frames, method.label_maps(images, first))
    for _ in overlap(write, found, num_cores()):
        done()


def propagate_clip(
    method: Method, source: Path, first_mask: Path, output: Path, settings: Settings
) -> None:
    """Write masks and a film of any video, as ``evaluate.py --video`` does.

    Raises:
        VideoError: the clip is unusable, or the results cannot be written.
        DatasetError: the first mask cannot be used.
    """
    for path in (source, first_mask):
        check_results(path, output)
    clip = check_clip(source, settings.frame_rate)
    first = read_first_mask(first_mask, clip.size)
    num_objects, start = int(first.max()), time.monotonic()
    with (
        locked(output, "writing into"),
        terminated_in_order(),
        published_when_whole(output) as partial_output,
        open_film(partial_output / OVERLAY, clip) as add_to_film,
        closing(clip.frames()) as frames,
        progress_bar(desc="propagating", total=clip.count, unit="frame") as bar,
    ):
        shown, read = tee(frames)
        labelled = method.label_maps((frame.image for frame in read), first)
        for frame, labels in zip(shown, labelled):
            write_mask(partial_output / MASKS / f"{frame.name}.png", labels, num_objects)
            add_to_film(draw_overlay(frame.image, labels, num_objects))
            bar.update()
    print_results(output, clip.count, clip.count / (time.monotonic() - start))


if __name__ == "__main__":
    run_script(main)
