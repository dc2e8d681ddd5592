"""Masks, scores and pictures of a test set or a video, or the scores of masks that exist.

- ``python evaluate.py --checkpoint FILE --set DAVIS_test --output DIR``
- ``python evaluate.py --masks DIR --set DAVIS_test --output DIR``
- ``python evaluate.py --video CLIP``, also of a camera; ``--checkpoint FILE`` for your own network
- ``python evaluate.py --compare DIR1 DIR2 ... --output DIR``

``--help`` lists the settings that have an effect.
"""

import argparse
from datetime import timedelta
from pathlib import Path

import config
from datasets.live import is_live
from utils.evaluation.live import evaluate_live
from utils.evaluation.output_folder import check_output
from utils.evaluation.set_evaluation import evaluate_masks, evaluate_set
from utils.evaluation.trained_network import STARTER, load_trained_network, refuse_flags
from utils.evaluation.video import evaluate_video
from utils.processes import launch_processes, start_process
from utils.reports.pages import write_comparison
from utils.scripts import run_script
from utils.settings import Settings, SettingsError, parse_settings, settings_parser
from utils.training.checkpoints import find_checkpoint


def main() -> None:
    """Read the settings, then do one of four jobs."""
    settings, arguments = parse_settings(evaluation_parser(), config)
    check_arguments(arguments, settings)
    set_name, output = arguments.set or settings.val_set, arguments.output
    if arguments.video:
        clip = Path(arguments.video).absolute()
        output = output or Path(f"{clip.name if clip.is_dir() else clip.stem}_masks")
    elif arguments.checkpoint and output is None:
        path, results = arguments.checkpoint, f"{set_name}{'_tta' * arguments.tta}"
        is_local = find_checkpoint(path).is_relative_to(path)  # or of huggingface.co
        output = path.parent / results if is_local else Path("_".join([*path.parts, results]))
    if output is not None:
        a_set = not (arguments.compare or arguments.video)
        check_output(output, Path(settings.data_root, set_name) if a_set else None)
    network = (arguments.checkpoint or STARTER, settings, arguments.given)

    if arguments.compare:
        print(f"comparison: {write_comparison(arguments.compare, output)}")
    elif arguments.masks:
        evaluate_masks(arguments.masks, set_name, output, settings, arguments.binarize)
    elif arguments.video:
        device = start_process(settings.gpu.split(",")[0]).device
        trained = load_trained_network(*network, ("video",), device, arguments.tta)
        if arguments.stream or is_live(arguments.video):
            refuse_flags(arguments.given & {"FRAME_RATE", "EVAL_BATCH_SIZE"})
            evaluate_live(trained, arguments.video, output, settings)
        else:
            if Path(arguments.video).is_file():  # which has a rate of its own
                refuse_flags(arguments.given & {"FRAME_RATE"})
            evaluate_video(trained, Path(arguments.video), output, settings)
    elif not launch_processes(settings.gpu, after_ctrl_c=130):
        process = start_process(settings.gpu, timedelta(days=30))  # sequences differ in length
        trained = load_trained_network(*network, ("set", "panels"), process.device, arguments.tta)
        evaluate_set(trained, set_name, output, settings, process)


def evaluation_parser() -> argparse.ArgumentParser:
    """The flags of this script, and those of all settings."""
    effective = ("test", "objects", "masks", "machine", "set", "panels", "tta", "video")
    parser = settings_parser(
        config,
        "Masks, scores and pictures for a test set or a video. The network's settings are the "
        "checkpoint's, unless flags below change them. Flags without effect are refused.",
        listed=effective,
    )
    what = parser.add_mutually_exclusive_group()
    where = parser.add_mutually_exclusive_group()
    network = "network to evaluate (default for --video: assets/starter.pt)"
    what.add_argument("--checkpoint", type=a_path, metavar="FILE", help=network)
    what.add_argument("--masks", type=a_path, metavar="DIR", help="score these masks instead")
    several = "compare evaluations, given by their --output folders"
    what.add_argument("--compare", type=a_path, metavar="DIR", nargs="+", help=several)
    where.add_argument("--set", type=not_empty, metavar="NAME", help="test set (default: VAL_SET)")
    clip = "video file or folder of frames, instead of a set; or a camera (0), an rtsp:// or other "
    clip += "address, or - for a pipe"
    where.add_argument("--video", type=not_empty, metavar="CLIP", help=clip)
    each = "with --video FILE: segment frame by frame, without looking ahead, as of a camera"
    parser.add_argument("--stream", action="store_true", help=each)
    results = "folder for results (default: beside the checkpoint; of a clip NAME: NAME_masks)"
    parser.add_argument("--output", type=a_path, metavar="DIR", help=results)
    parser.add_argument("--tta", action="store_true", help="test-time augmentation")
    cut = "with --masks: cut grey masks at 0.5"
    parser.add_argument("--binarize", action="store_true", help=cut)
    return parser


def not_empty(text: str) -> str:
    """A flag's text, which must not be empty."""
    if not text.strip():
        raise argparse.ArgumentTypeError("expected text that is not empty")
    return text


def a_path(text: str) -> Path:
    """A flag's text as a path; "" is not the current folder."""
    return Path(not_empty(text))


def check_arguments(arguments: argparse.Namespace, settings: Settings) -> None:
    """Refuse combinations of arguments of which one would have no effect."""
    network = arguments.checkpoint or arguments.video
    live = arguments.video and is_live(arguments.video)
    something = network or arguments.masks or arguments.compare
    for given, needed, message in (
        (True, something, "expected --video, --checkpoint, --masks or --compare"),
        (
            arguments.video,
            not (arguments.masks or arguments.compare),
            "--video takes no --masks or --compare",
        ),
        (arguments.stream, arguments.video, "--stream needs --video"),
        (live, arguments.output, "--video of a camera, an address or a pipe needs --output"),
        (arguments.tta, network, "--tta needs a network"),
        (arguments.binarize, arguments.masks, "--binarize needs --masks"),
        (arguments.compare, arguments.output, "--compare needs --output"),
        (arguments.compare, not arguments.set, "--compare takes no --set"),
        (arguments.set, "VAL_SET" not in arguments.given, "--set takes the place of --val-set"),
    ):
        if given and not needed:
            raise SettingsError(f"{message}; python evaluate.py --help says more")
    if arguments.compare:
        refuse_flags(arguments.given)
    elif arguments.masks:
        refuse_flags(arguments.given - set(settings.marked("set")))


if __name__ == "__main__":
    run_script(main)
