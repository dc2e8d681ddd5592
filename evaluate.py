"""Masks, scores and pictures for a test set or a video, or the scores of masks that exist already.

- ``python evaluate.py --checkpoint FILE --set DAVIS_test --output DIR``
- ``python evaluate.py --masks DIR --set DAVIS_test``
- ``python evaluate.py --checkpoint FILE --video CLIP --output DIR``
- ``python evaluate.py --compare DIR1 DIR2 ... --output DIR``

``--help`` lists every setting.
"""

import argparse
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

import config
from datasets.flow import camera_free, dis_estimator, raft_estimator
from datasets.layout import (
    Sequence,
    frame_label,
    read_image,
    read_mask,
    read_size,
    video_sequences,
)
from utils.checkpoints import CheckpointError, build_from_checkpoint, load_checkpoint
from utils.distributed import start_process
from utils.evaluation import FrameResult, Segmenter, predict_sequences, to_mask
from utils.pictures import draw_panels, write_picture
from utils.protocols import Protocol, SequenceScores, choose_protocol
from utils.report import write_comparison, write_report
from utils.results import Evaluation, remove_evaluation, score_table, write_evaluation
from utils.scoring import collect_scores, num_cores, overlap, score_frame, score_masks
from utils.scripts import check_data, frames_of, run_script
from utils.settings import Settings, SettingsError, parse_settings, settings_parser
from utils.video import segment_video

# Settings of the network's run that a flag changes for an evaluation.
_OF_THE_RUN = ("IMAGE_SIZE", "NUM_REFERENCES", "NUM_ITERATIONS", "RECOLOUR_FLOW")
# Settings that the evaluation itself has.
_OWN = ("THRESHOLD", "STRETCH_MASKS", "MIXED_PRECISION")
_TTA = ("TTA_SCALES", "TTA_FLIP")
_VIDEO = ("FLOW_ESTIMATOR", "REMOVE_CAMERA_MOTION")


def main() -> None:
    """Read the settings, then segment a video, compare, or segment and score a set."""
    parser = settings_parser(
        config,
        "Masks, scores and pictures for a test set or a video. The network and its settings are "
        "the checkpoint's; --image-size, --num-references and --num-iterations change them.",
    )
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--checkpoint", type=Path, metavar="FILE", help="network to evaluate")
    what.add_argument(
        "--masks", type=Path, metavar="DIR", help="score DIR/<sequence>/<frame>.png instead"
    )
    what.add_argument(
        "--compare",
        type=Path,
        metavar="DIR",
        nargs="+",
        help="one report of several evaluations, given by their --output folders",
    )
    where = parser.add_mutually_exclusive_group()
    where.add_argument("--set", metavar="NAME", help="test set (default: VAL_SET)")
    where.add_argument(
        "--video", type=Path, metavar="CLIP", help="a video file, or a folder of frames, instead"
    )
    parser.add_argument(
        "--output",
        type=Path,
        metavar="DIR",
        help="where all results go (default: beside the checkpoint, in a folder named as the set)",
    )
    parser.add_argument(
        "--tta", action="store_true", help="test-time augmentation: TTA_SCALES and TTA_FLIP"
    )
    parser.add_argument(
        "--binarize", action="store_true", help="with --masks: cut grey masks at 0.5"
    )
    settings, arguments = parse_settings(parser, config)
    _check_together(arguments)
    if arguments.compare:
        report = write_comparison(arguments.compare, arguments.output)
        print(f"comparison: {report}")
    elif arguments.video:
        segment_clip(arguments, settings)
    else:
        evaluate_set(arguments, settings)


def evaluate_set(arguments: argparse.Namespace, settings: Settings) -> None:
    """Score a set's masks, which the checkpoint's network makes first or which are there."""
    set_name = arguments.set or settings.val_set
    data_root = Path(settings.data_root)
    segmenting = arguments.checkpoint is not None
    sequences = video_sequences(data_root, set_name, masks="some", flow=segmenting)
    every_frame = all(frame.mask for frame in frames_of(sequences))
    protocol, why = choose_protocol(set_name, settings.protocol, every_frame)
    if protocol.every_frame and not every_frame:
        video_sequences(data_root, set_name, masks="all", flow=segmenting)  # names what is missing
    frames = frames_of(sequences)
    check_data(frames if segmenting else [replace(frame, flow=None) for frame in frames])
    print(f"protocol {protocol.name}, {why}: {protocol.rule}")

    output = arguments.output
    if segmenting:
        tta = "_tta" if arguments.tta else ""
        output = output or arguments.checkpoint.parent / f"{set_name}{tta}"
        segmenter, method, used = load_segmenter(arguments, settings)
        remove_evaluation(output)  # so that no scores of an earlier run stand beside new masks
        scores = segment_and_score(segmenter, used, sequences, protocol, settings, output)
        masks = output / "masks"
    else:
        method, used, masks = f"masks in {arguments.masks}", {}, arguments.masks
        scores = score_masks(masks, sequences, protocol, binarize=arguments.binarize)
    evaluation = Evaluation(
        method=method,
        set_name=set_name,
        data_root=str(data_root.resolve()),
        protocol=protocol,
        masks=str(masks.resolve()),
        scores=scores,
        checkpoint=str(arguments.checkpoint.resolve()) if segmenting else None,
        settings=used,
    )
    print(score_table(evaluation))
    if output is not None:
        write_evaluation(evaluation, output)
        print(f"scores: {output / 'scores.csv'}")
        print(f"report: {write_report(evaluation, output)}")
    if segmenting:
        print(f"masks: {masks}")
        if settings.panel_step:
            print(f"panels: {output / 'panels'}")
    print(f"{evaluation.title} {evaluation.rows[-1].mean:.4f}")


def load_segmenter(
    arguments: argparse.Namespace, settings: Settings
) -> tuple[Segmenter, str, dict[str, Any]]:
    """The checkpoint's network, at the input size and with the references of its run.

    IMAGE_SIZE, NUM_REFERENCES and NUM_ITERATIONS (T, Figure 7) given as flags take their place.

    Returns:
        The network; what it is, in a line; and the settings that make the masks, by name.

    Raises:
        CheckpointError: the file is no checkpoint, or one of stage 1.
    """
    checkpoint = load_checkpoint(arguments.checkpoint)
    if not checkpoint["arguments"]["motion"]:
        raise CheckpointError(
            f"{arguments.checkpoint} is of stage 1, which has no flow stream; evaluate a "
            "checkpoint that train.py has made"
        )
    given = {name: getattr(settings, name.lower()) for name in arguments.given}
    own = (*_OWN, *(_TTA if arguments.tta else ()), *(_VIDEO if arguments.video else ()))
    used = checkpoint["settings"] | {name: given[name] for name in _OF_THE_RUN if name in given}
    used |= {name: getattr(settings, name.lower()) for name in own}
    changes = {}
    if "NUM_ITERATIONS" in given:
        changes["num_iterations"] = settings.num_iterations
    process = start_process(settings.gpu.split(",")[0])
    views = {"scales": used["TTA_SCALES"], "flip": used["TTA_FLIP"]} if arguments.tta else {}
    segmenter = Segmenter(
        build_from_checkpoint(checkpoint, **changes).to(process.device).eval(),
        used["IMAGE_SIZE"],
        recolour_flow=used["RECOLOUR_FLOW"],
        mixed_precision=settings.mixed_precision,
        **views,
    )
    sizes = sorted({view.size for view in segmenter.views})
    method = (
        f"{checkpoint['model']} with {checkpoint['arguments']['backbone']}, "
        f"{', '.join(map(str, sizes))} pixels{' and mirrored' if views.get('flip') else ''}, "
        f"{used['NUM_REFERENCES']} reference frames"
    )
    print(f"{method}, from {arguments.checkpoint}, on {process.device}")
    return segmenter, method, used


def segment_and_score(
    segmenter: Segmenter,
    used: dict[str, Any],
    sequences: list[Sequence],
    protocol: Protocol,
    settings: Settings,
    output: Path,
) -> dict[str, SequenceScores]:
    """Write masks and panels below ``output``; return the scores of the annotated frames."""
    step = settings.panel_step
    with_panel = {
        frame for sequence in sequences for frame in (sequence.frames[::step] if step else ())
    }

    def masks() -> Iterator[tuple[FrameResult, np.ndarray]]:
        for result in predict_sequences(
            segmenter,
            sequences,
            used["NUM_REFERENCES"],
            batch_size=settings.eval_batch_size,
            workers=settings.workers,
        ):
            probability = result.prediction.probability(read_size(result.frame.image))
            yield result, to_mask(probability, settings.threshold, settings.stretch_masks)

    def finish(item: tuple[FrameResult, np.ndarray]) -> tuple[str, str, tuple[float, ...] | None]:
        result, mask = item
        frame, label = result.frame, frame_label(result.sequence, result.frame)
        truth = None if frame.mask is None else read_mask(frame.mask)
        write_picture(
            output / "masks" / result.sequence / f"{label}.png", mask.astype(np.uint8) * 255
        )
        panel_path = output / "panels" / result.sequence / f"{label}.png"
        panel_path.unlink(missing_ok=True)  # an earlier evaluation's may be there
        if frame in with_panel:
            panel = draw_panels(
                read_image(frame.image),
                read_image(frame.flow),
                mask,
                truth,
                result.prediction.maps,
            )
            write_picture(panel_path, panel)
        scores = None if truth is None else score_frame(mask, truth, protocol.measures)
        return result.sequence, label, scores

    bar = tqdm(
        overlap(finish, masks(), num_cores()),
        total=len(frames_of(sequences)),
        desc="segmenting",
        unit="frame",
        dynamic_ncols=True,
    )
    return collect_scores(bar, protocol.measures)


def segment_clip(arguments: argparse.Namespace, settings: Settings) -> None:
    """Masks and a playable overlay of any video."""
    output = arguments.output or arguments.checkpoint.parent / arguments.video.stem
    segmenter, _, used = load_segmenter(arguments, settings)
    if settings.flow_estimator == "dis":
        estimator = dis_estimator()
    else:
        weights = settings.flow_weights
        estimator = raft_estimator(weights and Path(weights), str(segmenter.device))
    result = segment_video(
        segmenter,
        arguments.video,
        output,
        num_references=used["NUM_REFERENCES"],
        estimator=camera_free(estimator) if settings.remove_camera_motion else estimator,
        batch_size=settings.eval_batch_size,
        threshold=settings.threshold,
        stretch=settings.stretch_masks,
        frame_rate=settings.frame_rate,
    )
    print(f"{result.frames} frames, {result.rate:.1f} a second")
    print(f"masks: {result.masks}")
    print(f"overlay: {result.overlay}")


def _check_together(arguments: argparse.Namespace) -> None:
    """Arguments that say nothing together are an error, lest one of them be thought heard."""
    for given, needed, names in (
        (arguments.video, arguments.checkpoint, "--video needs --checkpoint"),
        (arguments.tta, arguments.checkpoint, "--tta needs --checkpoint"),
        (arguments.binarize, arguments.masks, "--binarize needs --masks"),
        (arguments.compare, arguments.output, "--compare needs --output"),
    ):
        if given and not needed:
            raise SettingsError(f"{names}; python evaluate.py --help says more")


if __name__ == "__main__":
    run_script(main)
