"""Pictures of training samples, and numbers about their flow maps.

``python -m utils.preview --output preview``, with any setting of config.py as a flag; ``--help``
lists them. Samples are made and augmented as in pretrain.py (stage 1) and train.py (stage 2). The
numbers show how close simulated motion (PRETRAIN_MOTION) comes to the motion of the videos.
"""

from pathlib import Path

import cv2
import numpy as np
from torch import Tensor

import config
from datasets.files import write_picture
from datasets.flow.colour_wheel import picture_to_flow
from datasets.flow.origin import flow_origin, origin_in_words
from datasets.layout import still_images
from datasets.progress import progress_bar
from datasets.samples import StillImages, VideoFrames, VideoWindows
from models import build_model, model_class
from utils.evaluation.set_evaluation import check_output
from utils.reports.pictures import draw_overlay, draw_row
from utils.scripts import run_script
from utils.settings import Settings, parse_settings, positive, settings_parser
from utils.training.samples import (
    augmentation_from,
    network_arguments,
    split_frames,
    stills_of,
    training_sequences,
    videos_of,
)

_MARGIN = 0.02  # width of the band on either side of the object's edge, as a share of the side
_LEAST_PIXELS = 50  # smaller objects and backgrounds have no numbers
_LEAST_MOTION = 0.05  # of the object relative to its surroundings; below, the edge has no sharpness


def main() -> None:
    """Read the settings, draw samples of each set, print the table."""
    parser = settings_parser(config, __doc__.split("\n")[0])
    add = parser.add_argument
    folder = "folder for the pictures, one for each set"
    add("--output", type=Path, required=True, metavar="FOLDER", help=folder)
    stages = "stages whose samples are shown (default: both)"
    add("--stage", type=int, nargs="+", choices=(1, 2), default=[1, 2], help=stages)
    add("--samples", type=positive, default=6, metavar="N", help="drawn of each set (default: 6)")
    number = "samples whose flow maps are measured (default: 120)"
    add("--flow-maps", type=positive, default=120, metavar="N", help=number)
    settings, arguments = parse_settings(parser, config)
    for name in (settings.pretrain_set, *settings.train_sets):
        check_output(arguments.output, Path(settings.data_root) / name)
    columns = {}
    for title, samples, flow in [
        one for stage in sorted(set(arguments.stage)) for one in samples_of(stage, settings)
    ]:
        order = np.random.default_rng(settings.seed).permutation(len(samples)).tolist()
        rows = [draw_sample(samples[0, index]) for index in order[: arguments.samples]]
        file = arguments.output / f"{title.replace(' ', '_')}.png"
        write_picture(file, np.vstack(rows))
        print(f"{file}: {len(rows)} of {len(samples)} samples, flow: {flow or 'none'}")
        if flow and not isinstance(samples, VideoWindows):
            bar = progress_bar(order[: arguments.flow_maps], desc=title, unit="flow map")
            found = (samples[0, index] for index in bar)
            columns[title] = [
                flow_traits(_picture(one["flow"]), one["labels"].numpy() > 0) for one in found
            ]
    if columns:
        print(table(columns))


def samples_of(
    stage: int, settings: Settings
) -> list[tuple[str, StillImages | VideoFrames | VideoWindows, str | None]]:
    """Title, samples and kind of flow maps (None without flow) of each set of a stage.

    There are none of a stage 1 that the network does not have.

    Raises:
        DatasetError: a set is missing or incomplete.
    """
    s, root, augmentation = settings, Path(settings.data_root), augmentation_from(settings)
    own = model_class(s.model).stage1
    if stage == 1 and own is None:
        return []
    alone = own if stage == 1 and s.pretrain_motion != "simulated" else {}
    needs = build_model(s.model, **network_arguments(s, **alone, pretrained_backbone=False)).needs
    if stage == 1:
        frames, _ = split_frames(still_images(root, s.pretrain_set), s.pretrain_val_share, s.seed)
        samples = stills_of(frames, s, needs, augmentation)
        flow = origin_in_words("simulated", s.remove_camera_motion) if samples.simulation else None
        return [(f"stage 1 {s.pretrain_set}", samples, flow)]
    return [
        (
            f"stage 2 {name}" if own else name,
            videos_of([sequences], s, needs, augmentation),
            (flow_origin(root, name) or "of unknown origin") if needs.flow else None,
        )
        for name, sequences in zip(s.train_sets, training_sequences(s, needs))
    ]


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


def flow_traits(picture: np.ndarray, mask: np.ndarray) -> dict[str, float]:
    """Numbers about a flow map, as shares of the motion that has a full colour.

    Args:
        picture: of the colour wheel, uint8 RGB (S, S, 3).
        mask: of the object, bool (S, S).

    Returns:
        By name; nothing for a map without object or background. A band around the object's edge,
        where flow maps err, is left out. ``sharpness of the edge`` is the change of motion across
        that band, as a share of the change between object and background.
    """
    flow = picture_to_flow(picture)
    margin = max(1, round(_MARGIN * len(mask)))
    inside, outside = _shrunk(mask, margin), _shrunk(~mask, margin)
    if min(inside.sum(), outside.sum()) < _LEAST_PIXELS:
        return {}
    lengths = np.linalg.norm(flow, axis=2)
    change = flow[inside].mean(axis=0) - flow[outside].mean(axis=0)
    against = float(np.linalg.norm(change))
    traits = {
        "motion of the object": float(lengths[inside].mean()),
        "motion around it": float(lengths[outside].mean()),
        "object against around": against,
        "unevenness on the object": _unevenness(flow[inside]),
        "unevenness around it": _unevenness(flow[outside]),
    }
    if against > _LEAST_MOTION:
        near = flow[mask & ~inside].mean(axis=0) - flow[~mask & ~outside].mean(axis=0)
        traits["sharpness of the edge"] = float(near @ change) / against**2
    return traits


def table(columns: dict[str, list[dict[str, float]]]) -> str:
    """Percentiles of the traits of each set's flow maps, and how many maps have the trait."""
    rows = [["", *columns]]
    for name in dict.fromkeys(n for found in columns.values() for one in found for n in one):
        row = [name]
        for found in columns.values():
            values = [traits[name] for traits in found if name in traits]
            percentiles = np.percentile(values, [10, 50, 90]) if values else []
            row.append("  ".join([f"{v:4.2f}" for v in percentiles] + [f"({len(values)})"]))
        rows.append(row)
    widths = [max(map(len, column)) for column in zip(*rows)]
    lines = ["  ".join(cell.ljust(w) for cell, w in zip(row, widths)).rstrip() for row in rows]
    head = "flow maps, as shares of full colour: 10th, 50th, 90th percentile (number of maps)"
    return "\n".join([head, *lines])


def _unevenness(flow: np.ndarray) -> float:
    """Root of the mean squared difference from the mean motion, of motions (N, 2)."""
    return float(np.sqrt(flow.var(axis=0).sum()))


def _shrunk(mask: np.ndarray, by: int) -> np.ndarray:
    """The mask without a band of ``by`` pixels inside its edge."""
    return cv2.erode(mask.astype(np.uint8), np.ones((3, 3), np.uint8), iterations=by) > 0


def _picture(tensor: Tensor) -> np.ndarray:
    return tensor.permute(1, 2, 0).contiguous().numpy()


if __name__ == "__main__":
    run_script(main)
