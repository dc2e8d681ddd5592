"""Masks, scores and pictures for a test set or a video, or the scores of masks that exist already.

- ``python evaluate.py --checkpoint FILE --set DAVIS_test --output DIR``
- ``python evaluate.py --masks DIR --set DAVIS_test --output DIR``
- ``python evaluate.py --checkpoint FILE --video CLIP --output DIR``
- ``python evaluate.py --compare DIR1 DIR2 ... --output DIR``

``--help`` lists every setting.
"""

import argparse
from contextlib import nullcontext
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import config
from datasets.flow.estimators import build_estimator
from datasets.flow.origin import flow_origin, origin_in_words
from datasets.layout import Sequence, flow_note, video_sequences
from datasets.prepare.sources import published_sequences
from datasets.problems import DatasetError
from models.interface import REFERENCES, STILLS, WINDOWS
from utils.evaluation.protocols import Protocol, choose_protocol
from utils.evaluation.results import Evaluation, score_table, write_evaluation
from utils.evaluation.scoring import check_scored, score_masks
from utils.evaluation.segmenting import Segmenter
from utils.evaluation.set_evaluation import (
    MASKS,
    PANELS,
    check_folder,
    check_output,
    evaluate_sequences,
    finish_evaluation,
)
from utils.evaluation.video import segment_video
from utils.processes import Process, launch_processes, start_process
from utils.reports.pages import write_comparison, write_report
from utils.scripts import check_data, compare_flow, frames_of, run_script
from utils.settings import Settings, SettingsError, parse_settings, settings_parser
from utils.training.checkpoints import CheckpointError, build_from_checkpoint, load_checkpoint
from utils.training.interrupts import terminated_in_order
from utils.training.record import fingerprint
from utils.training.run_folder import locked
from utils.training.samples import network_name

# Settings that have no effect on a network without flow.
_FLOW = ("FLOW_ESTIMATOR", "FLOW_WEIGHTS", "REMOVE_CAMERA_MOTION")


def main() -> None:
    """Read the settings, then segment a video, compare, or segment and score a set."""
    parser = settings_parser(
        config,
        "Masks, scores and pictures for a test set or a video. The network and its settings are "
        "the checkpoint's; those under 'Input and references' can be changed by flags. Flags that "
        "have no effect on what is asked for are refused.",
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
        help="where results go; default for a set: beside the checkpoint, in a folder named as the "
        "set; with --masks the scores are only printed without it",
    )
    parser.add_argument(
        "--tta", action="store_true", help="test-time augmentation: TTA_SCALES and TTA_FLIP"
    )
    parser.add_argument(
        "--binarize", action="store_true", help="with --masks: cut grey masks at 0.5"
    )
    settings, arguments = parse_settings(parser, config)
    _check_together(arguments, settings)
    if arguments.output is not None:
        check_folder(arguments.output)
    if arguments.compare:
        report = write_comparison(arguments.compare, arguments.output)
        print(f"comparison: {report}")
    elif arguments.masks:
        score_set(arguments, settings)
    elif arguments.video:
        segment_clip(arguments, settings)
    elif not launch_processes(settings.gpu):
        evaluate_set(arguments, settings)


def evaluate_set(arguments: argparse.Namespace, settings: Settings) -> None:
    """Segment a set with the checkpoint's network and score what is annotated."""
    set_name, data_root = arguments.set or settings.val_set, Path(settings.data_root)
    tta = "_tta" if arguments.tta else ""
    output = arguments.output or arguments.checkpoint.parent / f"{set_name}{tta}"
    check_output(output, data_root, set_name)
    process = start_process(settings.gpu, timedelta(days=30))  # sequences differ in length
    segmenter, method, used = load_segmenter(arguments, settings, process)
    sequences, protocol = read_set(
        data_root, set_name, settings.protocol, process, flow=segmenter.network.needs.flow
    )
    check_data(frames_of(sequences), process)
    used |= {"DATA_ROOT": str(data_root.resolve()), "PROTOCOL": protocol.name}
    if process.is_main:
        print(f"{method}, from {arguments.checkpoint}, on {process.device}")
        compare_flow(used.get("FLOW_MAPS"), flow_origin(data_root, set_name))
    with locked(output, "evaluating into") if process.is_main else nullcontext():
        scores = evaluate_sequences(
            segmenter,
            sequences,
            protocol,
            output,
            process,
            {
                "checkpoint": _identity(arguments.checkpoint),
                "set": set_name,
                "data": fingerprint({set_name: frames_of(sequences)}, data_root),
                "flow": flow_origin(data_root, set_name),
                "panel_step": settings.panel_step,
                "rule": protocol.rule,
                **used,
            },
            batch_size=settings.eval_batch_size,
            workers=settings.workers,
            threshold=settings.threshold,
            stretch=settings.stretch_masks,
            panel_step=settings.panel_step,
        )
        if not process.is_main:
            return
        print(f"masks: {output / MASKS}")
        if settings.panel_step:
            print(f"panels: {output / PANELS}")
        if not any(frame.mask for frame in frames_of(sequences)):
            # Its notes stay, so that a repetition knows these masks as its own.
            print(f"{set_name} has no masks, so nothing was scored")
            return
        check_scored(scores, sequences, protocol)
        evaluation = Evaluation(
            method=method,
            set_name=set_name,
            data_root=str(data_root.resolve()),
            protocol=protocol,
            masks=str((output / MASKS).resolve()),
            scores=scores,
            checkpoint=str(arguments.checkpoint.resolve()),
            settings=used,
        )
        show_scores(evaluation, output)
        finish_evaluation(output)
    print_result(evaluation)


def score_set(arguments: argparse.Namespace, settings: Settings) -> None:
    """Score masks that are there."""
    set_name, data_root = arguments.set or settings.val_set, Path(settings.data_root)
    if arguments.output is not None:
        check_output(arguments.output, data_root, set_name)
    process = Process("cpu")
    sequences, protocol = read_set(data_root, set_name, settings.protocol, process, flow=False)
    check_data([replace(frame, flow=None) for frame in frames_of(sequences)])
    if not any(frame.mask for frame in frames_of(sequences)):
        raise DatasetError(f"{set_name} has no ground truth to score masks against")
    output = arguments.output
    with nullcontext() if output is None else locked(output, "evaluating into"):
        evaluation = Evaluation(
            method=f"masks in {arguments.masks}",
            set_name=set_name,
            data_root=str(data_root.resolve()),
            protocol=protocol,
            masks=str(arguments.masks.resolve()),
            scores=score_masks(arguments.masks, sequences, protocol, binarize=arguments.binarize),
            settings={"BINARIZE": arguments.binarize},
        )
        show_scores(evaluation, output)
    print_result(evaluation)


def read_set(
    data_root: Path, set_name: str, chosen: str | None, process: Process, flow: bool
) -> tuple[list[Sequence], Protocol]:
    """A set's sequences and the rules of its scores, which are printed.

    A set without any masks is not scored; one with some has some in every sequence.

    Raises:
        DatasetError: the masks do not fit the frames, or are too few for the rules.
    """
    sequences = video_sequences(data_root, set_name, masks="none", flow=flow)
    if process.is_main and flow and (note := flow_note(sequences)):
        print(f"note: {set_name}: {note}")
    annotated = [frame.mask is not None for frame in frames_of(sequences)]
    protocol, why = choose_protocol(set_name, chosen, all(annotated))
    if not any(annotated):
        truths = {frame.image.parent.with_name("GT") for frame in frames_of(sequences)}
        if any(file for folder in truths for file in folder.glob("[!.]*")):
            video_sequences(data_root, set_name, masks="some", flow=flow)  # says why none fits
        return sequences, protocol
    try:
        wanted = "all" if protocol.every_frame else "some"
        sequences = video_sequences(data_root, set_name, masks=wanted, flow=flow)
    except DatasetError as error:
        if not protocol.every_frame or all(annotated):
            raise
        raise DatasetError(
            f"{error}\nThe rules of {protocol.name} want every frame annotated; --protocol "
            "long_videos scores those that are."
        ) from error
    if process.is_main:
        published = published_sequences(set_name) or 0
        if len(sequences) < published:
            print(
                f"note: {len(sequences)} of the {published} sequences that {set_name} has elsewhere"
            )
        print(f"protocol {protocol.name}, {why}: {protocol.rule}")
    return sequences, protocol


def show_scores(evaluation: Evaluation, output: Path | None) -> None:
    """Print the score table and write the result files, if there is a folder for them."""
    print(score_table(evaluation))
    if output is None:
        print("(--output DIR also writes the scores, those of every frame, and a report)")
        return
    write_evaluation(evaluation, output)
    print(f"scores: {output / 'scores.csv'}")
    print(f"report: {write_report(evaluation, output)}")


def print_result(evaluation: Evaluation) -> None:
    """The last line: the average's mean over the measures."""
    print(f"{evaluation.title} {evaluation.rows[-1].mean:.4f}")


def load_segmenter(
    arguments: argparse.Namespace, settings: Settings, process: Process
) -> tuple[Segmenter, str, dict[str, Any]]:
    """The checkpoint's network, at the input size and with the references of its run.

    IMAGE_SIZE, NUM_REFERENCES, NUM_ITERATIONS (T, Figure 7) and RECOLOUR_FLOW given as flags take
    their place.

    Returns:
        The network; what it is, in a line; and what makes the masks, by name: the network's and its
        training's settings, those of this evaluation, and FLOW_MAPS, the kind that it was
        trained on.

    Raises:
        CheckpointError: the file is no checkpoint, or it is to segment a video and has no flow
            stream.
        SettingsError: a flag that says otherwise than the checkpoint and has no effect.
    """
    checkpoint = load_checkpoint(arguments.checkpoint)
    network = build_from_checkpoint(checkpoint)
    needs, changeable = network.needs, network.changeable
    given = {name: getattr(settings, name.lower()) for name in arguments.given}
    if changes := {n.lower(): v for n, v in given.items() if n.lower() in changeable}:
        network = build_from_checkpoint(checkpoint, **changes)
    if arguments.video and needs.samples == STILLS:
        raise CheckpointError(
            f"{arguments.checkpoint} is of stage 1, which has no flow stream; --video takes a "
            "checkpoint that train.py has made"
        )
    trained = checkpoint["settings"]
    given = {name: getattr(settings, name.lower()) for name in arguments.given}
    masks = ("masks", "tta") if arguments.tta else ("masks",)
    where = "video" if arguments.video else "set"
    heard = set(settings.marked("test", "machine", where, *masks))
    heard -= {"NUM_REFERENCES", "NUM_ITERATIONS"} - {name.upper() for name in changeable}
    if not needs.flow:
        heard -= {"RECOLOUR_FLOW", *_FLOW}
    _refuse_unheard(
        {name for name in given if name not in heard and trained.get(name) != given[name]}
    )
    foreign = settings.marked("masks", "tta", "machine", "set", "video", "output")
    used = {name: value for name, value in trained.items() if name not in foreign}
    used |= {name: given[name] for name in settings.marked("test") if name in given}
    used |= {"TTA": arguments.tta}
    used |= {name: getattr(settings, name.lower()) for name in settings.marked(*masks)}
    if checkpoint.get("flow"):
        used["FLOW_MAPS"] = checkpoint["flow"]
    views = {"scales": used["TTA_SCALES"], "flip": used["TTA_FLIP"]} if arguments.tta else {}
    segmenter = Segmenter(
        network.to(process.device).eval(),
        used["IMAGE_SIZE"],
        recolour_flow=used["RECOLOUR_FLOW"],
        mixed_precision=settings.mixed_precision,
        compile=settings.compile,
        **views,
    )
    sizes = sorted({view.size for view in segmenter.views})
    seen = {
        STILLS: "stage 1: images alone",
        REFERENCES: f"{used['NUM_REFERENCES']} reference frames",
        WINDOWS: "whole videos",
    }
    method = (
        f"{network_name(checkpoint['model'], checkpoint['arguments'])}, "
        f"{', '.join(map(str, sizes))} pixels{' and mirrored' if views.get('flip') else ''}, "
        f"{seen[needs.samples]}"
    )
    return segmenter, method, used


def segment_clip(arguments: argparse.Namespace, settings: Settings) -> None:
    """Masks and a playable overlay of any video."""
    process = start_process(settings.gpu.split(",")[0])
    segmenter, method, used = load_segmenter(arguments, settings, process)
    what, estimator = f"{method}, from {arguments.checkpoint}, on {process.device}", None
    if segmenter.network.needs.flow:
        made_by = origin_in_words(settings.flow_estimator, settings.remove_camera_motion)
        print(f"{what}; flow: {made_by}")
        compare_flow(used.get("FLOW_MAPS"), made_by)
        weights = settings.flow_weights
        estimator = build_estimator(
            settings.flow_estimator,
            weights and Path(weights),
            str(process.device),
            settings.remove_camera_motion,
        )
    else:
        print(what)
    with locked(arguments.output, "writing into"), terminated_in_order():
        result = segment_video(
            segmenter,
            arguments.video,
            arguments.output,
            estimator=estimator,
            batch_size=settings.eval_batch_size,
            threshold=settings.threshold,
            stretch=settings.stretch_masks,
            frame_rate=settings.frame_rate,
        )
    print(f"{result.frames} frames, {result.rate:.1f} a second")
    print(f"masks: {result.masks}")
    print(f"overlay: {result.overlay}")


def _identity(checkpoint: Path) -> list[str | int]:
    """Tells whether a checkpoint is still the same file."""
    status = checkpoint.stat()
    return [str(checkpoint.resolve()), status.st_size, status.st_mtime_ns]


def _refuse_unheard(names: set[str]) -> None:
    if names:
        flags = ", ".join("--" + name.lower().replace("_", "-") for name in sorted(names))
        raise SettingsError(f"{flags}: without effect on what is asked for; leave it out")


def _check_together(arguments: argparse.Namespace, settings: Settings) -> None:
    """Arguments that say nothing together are an error, lest one of them be thought heard."""
    for given, needed, names in (
        (arguments.video, arguments.checkpoint, "--video needs --checkpoint"),
        (arguments.video, arguments.output, "--video needs --output"),
        (arguments.tta, arguments.checkpoint, "--tta needs --checkpoint"),
        (arguments.binarize, arguments.masks, "--binarize needs --masks"),
        (arguments.compare, arguments.output, "--compare needs --output"),
        (arguments.compare, not arguments.set, "--compare takes no --set"),
        (arguments.set, "VAL_SET" not in arguments.given, "--set takes the place of --val-set"),
    ):
        if given and not needed:
            raise SettingsError(f"{names}; python evaluate.py --help says more")
    if arguments.masks or arguments.compare:
        heard = set(settings.marked("set")) - {"PANEL_STEP"} if arguments.masks else set()
        _refuse_unheard(arguments.given - heard)


if __name__ == "__main__":
    run_script(main)
