"""Write the folder `FLOW/` that belongs beside `RGB/`.

    python -m datasets.flow --data-root data --set DAVIS_train --estimator raft

The flow of a frame is its motion to the next image of the video: its image in the folder NEXT, or
the next frame of the set. The flow of the last frame is its motion to the frame before, negated.

The program can be stopped and started again. Maps that are there are kept unless `--overwrite` is
given. A map holds checksums of the two images that it was made from, as a JPEG comment, and is made
anew when they have changed. Maps without a comment were made elsewhere and are kept.

Several processes, on one machine or more that see the same folder, share a set's frames:

    torchrun --standalone --nproc-per-node 2 -m datasets.flow --data-root data --set DAVIS_train
"""

import argparse
import atexit
import os
import sys
from datetime import timedelta
from pathlib import Path

from datasets.flow.estimators import FlowError, build_estimator, raft_device
from datasets.flow.making import check_set, convert_flo, make_share
from datasets.flow.origin import ESTIMATORS, begin_origin, flow_origin, origin_in_words, set_origin
from datasets.layout import video_sequences
from datasets.problems import DatasetError
from datasets.progress import print_any_name


def main(arguments: list[str] | None = None) -> int:
    """Run the command with arguments as in `sys.argv[1:]`. Returns its exit code."""
    options = _parse(arguments)
    print_any_name()
    try:
        if options.from_flo:
            written, kept = convert_flo(options.data_root, options.set, options.overwrite)
            print(f"{options.set}: {written} flow maps written from .flo files, {kept} kept")
        else:
            _make_flow(options)
    except (DatasetError, FlowError, OSError) as error:
        if isinstance(error, OSError):
            error = f"{error}; mend that and start again, which keeps all maps that are finished"
        print(f"\n{error}", file=sys.stderr)  # not at the end of a progress bar's line
        return 1
    except KeyboardInterrupt:
        return 130
    return 0


def _parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m datasets.flow", description="Write the flow maps (FLOW/) of a video set."
    )
    add = parser.add_argument
    add("--data-root", type=Path, required=True, help="folder that holds the sets")
    add("--set", required=True, help="a video set in it, such as DAVIS_train")
    add(
        "--estimator",
        choices=ESTIMATORS,
        default="raft",
        help="raft (default): the paper's choice, wants weights and a GPU; dis: OpenCV's, needs "
        "neither",
    )
    add("--overwrite", action="store_true", help="make existing flow maps anew")
    text = "make the pictures from Middlebury files FLOW/<frame>.flo, and estimate nothing"
    add("--from-flo", action="store_true", help=text)
    add("--weights", type=Path, help="raft: state-dict file, in place of a download")
    text = "subtract the scene's motion, fitted to the border of the frame"
    add("--remove-camera-motion", action="store_true", help=text)
    add("--device", choices=("cpu", "cuda"), help="raft: default is a GPU if any")
    text = "raft on a CPU: bfloat16 where the CPU has it (default: true)"
    add("--mixed-precision", choices=("true", "false"), default="true", help=text)
    return parser.parse_args(arguments)


def _make_flow(options: argparse.Namespace) -> None:
    """Make this process's share of the flow maps. The first process checks, notes and reports."""
    rank, processes = _join()
    folder = options.data_root / options.set
    made_by = origin_in_words(options.estimator, options.remove_camera_motion)
    if rank > 0:
        _add_up(0, processes=processes)  # waits until the set is checked and weights are there
    sequences = video_sequences(options.data_root, options.set, masks="none", flow=False)
    if rank == 0:
        check_set(folder, sequences, options.overwrite)
    device = _device(options.device)
    estimator = build_estimator(
        options.estimator,
        options.weights,
        device,
        options.remove_camera_motion,
        options.mixed_precision == "true",
    )
    if rank == 0:
        if options.estimator == "raft":
            from precision import device_in_words  # takes seconds, and DIS does not need it

            used = raft_device(device, options.mixed_precision == "true")
            print(f"RAFT on {device_in_words(*used)}")
        begin_origin(folder, made_by, sequences, options.overwrite)
        _add_up(0, processes=processes)
    counts = make_share(
        sequences, estimator, options.overwrite, (rank, processes), f"{options.set} flow"
    )
    written, kept, renewed = _add_up(*counts, processes=processes)
    if rank > 0:
        return
    if options.overwrite:  # until now the set was a mixture
        set_origin(folder, made_by)
    print(f"{options.set}: {written} flow maps written, {kept} were there already")
    if written and kept and flow_origin(options.data_root, options.set) is None:
        print(f"note: those that were there were made elsewhere, the new ones by {made_by}")
    if renewed:
        print(f"  {renewed} of those written replace maps of other images than are there now")


def _join() -> tuple[int, int]:
    """Meet the other processes that torchrun has started. Returns this one's rank, and how many."""
    if "LOCAL_RANK" not in os.environ:
        return 0, 1
    try:
        rank, processes, _ = (int(os.environ[n]) for n in ("RANK", "WORLD_SIZE", "LOCAL_RANK"))
        if processes > 1:
            import torch.distributed

            # The slowest process may take days. When one fails, torchrun ends them all.
            torch.distributed.init_process_group("gloo", timeout=timedelta(days=30))
            atexit.register(torch.distributed.destroy_process_group)  # ends the group's threads
    except (KeyError, ValueError) as error:
        raise FlowError(
            f"the environment has LOCAL_RANK, but does not describe several processes: {error}. "
            "torchrun sets all variables; unset LOCAL_RANK to make flow maps in one process"
        ) from error
    return rank, processes


def _add_up(*counts: int, processes: int) -> list[int]:
    """The sums of all processes' counts. Returns when every process has called this function."""
    if processes == 1:
        return list(counts)
    import torch.distributed

    sums = torch.tensor(counts)
    try:
        torch.distributed.all_reduce(sums)
    except RuntimeError as error:  # torch's own message is about a connection
        raise FlowError("stopped, because another process has ended; see its message") from error
    return sums.tolist()


def _device(wanted: str | None) -> str | None:
    """A GPU of its own for each process that torchrun has started, unless the CPU is wanted."""
    if "LOCAL_RANK" not in os.environ or wanted == "cpu":
        return wanted
    import torch

    return f"cuda:{os.environ['LOCAL_RANK']}" if wanted or torch.cuda.is_available() else None


if __name__ == "__main__":
    sys.exit(main())
