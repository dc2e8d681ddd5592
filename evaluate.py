"""Masks, scores and pictures for a test set, or the scores of masks that exist already.

``python evaluate.py --checkpoint FILE --set DAVIS_test --output DIR`` or
``python evaluate.py --masks DIR --set DAVIS_test``; ``--help`` lists every setting.
"""

import argparse
from collections.abc import Iterable, Iterator
from dataclasses import replace
from itertools import groupby
from pathlib import Path

import numpy as np
from tqdm import tqdm

import config
from datasets.layout import (
    DatasetError,
    Frame,
    Sequence,
    format_problems,
    read_image,
    read_mask,
    video_sequences,
)
from datasets.samples import size_error
from utils.checkpoints import CheckpointError, build_from_checkpoint, load_checkpoint
from utils.distributed import start_process
from utils.evaluation import FrameResult, predict_sequences, to_mask
from utils.metrics import (
    SequenceScores,
    global_mean,
    score_sequence,
    score_table,
    write_scores,
)
from utils.pictures import draw_panels, write_picture
from utils.scripts import check_data, frames_of, run_script
from utils.settings import Settings, parse_settings, settings_parser


def main() -> None:
    """Read the settings, check the data, then segment and score, or score alone."""
    parser = settings_parser(
        config,
        "Masks, scores and pictures for a test set. The network and its settings are the "
        "checkpoint's; --image-size, --num-references and --num-iterations change them as flags.",
    )
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--checkpoint", type=Path, metavar="FILE", help="network to evaluate")
    what.add_argument(
        "--masks", type=Path, metavar="DIR", help="score DIR/<sequence>/<frame>.png instead"
    )
    parser.add_argument("--set", metavar="NAME", help="test set (default: VAL_SET)")
    parser.add_argument(
        "--output",
        type=Path,
        metavar="DIR",
        help="where masks, scores.csv and panels go (default: the checkpoint's folder / the set)",
    )
    settings, arguments = parse_settings(parser, config)
    set_name = arguments.set or settings.val_set
    segmenting = arguments.checkpoint is not None
    sequences = video_sequences(Path(settings.data_root), set_name, flow=segmenting)
    frames = frames_of(sequences)
    check_data(frames if segmenting else [replace(frame, flow=None) for frame in frames])

    output = arguments.output
    if segmenting:
        output = output or arguments.checkpoint.parent / set_name
        scores = segment_and_score(arguments, settings, sequences, output)
    else:
        scores = score_masks(arguments.masks, sequences)
    print(score_table(scores))
    if output is not None:
        output.mkdir(parents=True, exist_ok=True)
        write_scores(output / "scores.csv", scores)
        print(f"scores: {output / 'scores.csv'}")
    if segmenting:
        print(f"masks: {output / 'masks'}")
        if settings.panel_step:
            print(f"panels: {output / 'panels'}")
    print(f"J&F {global_mean(scores):.4f}")


def segment_and_score(
    arguments: argparse.Namespace, settings: Settings, sequences: list[Sequence], output: Path
) -> dict[str, SequenceScores]:
    """Write masks and panels below ``output``; return J and F of every frame by sequence."""
    bar = tqdm(
        segment(arguments, settings, sequences),
        total=len(frames_of(sequences)),
        desc="segmenting",
        dynamic_ncols=True,
    )
    return {
        name: score_sequence(write_results(results, settings, output))
        for name, results in groupby(bar, key=lambda result: result.sequence)
    }


def write_results(
    results: Iterable[FrameResult], settings: Settings, output: Path
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Write the mask and the panel of each frame of a sequence; yield its mask and the true one."""
    for position, result in enumerate(results):
        frame, label = result.frame, frame_label(result.sequence, result.frame)
        truth = read_mask(frame.mask)
        mask = to_mask(result.probability(truth.shape), settings.threshold, settings.stretch_masks)
        write_picture(
            output / "masks" / result.sequence / f"{label}.png", mask.astype(np.uint8) * 255
        )
        if settings.panel_step and position % settings.panel_step == 0:
            panel = draw_panels(
                read_image(frame.image), read_image(frame.flow), mask, truth, result.maps
            )
            write_picture(output / "panels" / result.sequence / f"{label}.png", panel)
        yield mask, truth


def segment(
    arguments: argparse.Namespace, settings: Settings, sequences: list[Sequence]
) -> Iterator[FrameResult]:
    """Results of the checkpoint's network, at the input size and with the references of its run.

    IMAGE_SIZE, NUM_REFERENCES and NUM_ITERATIONS (T, Figure 7) given as flags take their place.
    """
    checkpoint = load_checkpoint(arguments.checkpoint)
    if not checkpoint["arguments"]["motion"]:
        raise CheckpointError(
            f"{arguments.checkpoint} is of stage 1, which has no flow stream; evaluate a "
            "checkpoint that train.py has made"
        )
    changes = {}
    if "NUM_ITERATIONS" in arguments.given:
        changes["num_iterations"] = settings.num_iterations
    model = build_from_checkpoint(checkpoint, **changes)
    process = start_process(settings.gpu.split(",")[0])
    used = {
        name: getattr(settings, name.lower())
        if name in arguments.given
        else checkpoint["settings"][name]
        for name in ("IMAGE_SIZE", "NUM_REFERENCES")
    }
    print(
        f"{checkpoint['model']} with {checkpoint['arguments']['backbone']} from "
        f"{arguments.checkpoint}, {used['IMAGE_SIZE']} pixels, {used['NUM_REFERENCES']} "
        f"reference frames, on {process.device}"
    )
    return predict_sequences(
        model.to(process.device).eval(),
        sequences,
        used["IMAGE_SIZE"],
        used["NUM_REFERENCES"],
        batch_size=settings.eval_batch_size,
        workers=settings.workers,
        mixed_precision=settings.mixed_precision,
    )


def score_masks(folder: Path, sequences: list[Sequence]) -> dict[str, SequenceScores]:
    """J and F of the masks in ``folder``, a file ``<sequence>/<frame>.png`` for each frame.

    Raises:
        DatasetError: masks that are missing, or of another size than the ground truth.
    """
    paths = {}
    missing = []
    for sequence in sequences:
        for frame in sequence.frames:
            names = (frame_label(sequence.name, frame), frame.name)
            candidates = [folder / sequence.name / f"{name}.png" for name in names]
            paths[frame] = next((path for path in candidates if path.is_file()), None)
            if paths[frame] is None:
                missing.append(str(candidates[0]))
    if missing:
        raise DatasetError(
            format_problems(
                str(folder),
                {("masks that are missing", "write one for each frame of the set"): missing},
            )
        )
    with tqdm(total=len(paths), desc="scoring", dynamic_ncols=True) as bar:

        def masks_of(sequence: Sequence) -> Iterator[tuple[np.ndarray, np.ndarray]]:
            for frame in sequence.frames:
                mask, truth = read_mask(paths[frame]), read_mask(frame.mask)
                if mask.shape != truth.shape:
                    raise size_error(frame.mask, truth, paths[frame], mask)
                yield mask, truth
                bar.update()

        return {sequence.name: score_sequence(masks_of(sequence)) for sequence in sequences}


def frame_label(sequence: str, frame: Frame) -> str:
    """The frame's name without its sequence's: ``bear_00012`` of ``bear`` is ``00012``."""
    return frame.name.removeprefix(f"{sequence}_")


if __name__ == "__main__":
    run_script(main)
