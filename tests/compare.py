"""Speed and memory beside the authors' release and beside FakeFlow, in one run on one machine.

    python tests/compare.py --gsanet GSANet --fakeflow FakeFlow --size 512

Clones of github.com/Hydragon516/GSANet and github.com/suhwan-cho/FakeFlow lie outside this
repository and stay as they are, but for random weights in their encoders; they need transformers
and einops. Every network has a process of its own, and they take turns, so that whatever else
the machine does hits all of them. Times are medians of the turns, memory is each process's peak.
"""

import argparse
import contextlib
import multiprocessing
import os
import resource
import statistics
import sys
import time
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
OURS, RELEASE, FAKEFLOW = "ours", "release", "FakeFlow"

UNITS = {"inference": "frame", "training": "sample", "loader": "sample"}
LOADED = 40  # samples that a loader gives in a turn


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--gsanet", type=Path, required=True, help="clone of the authors' release")
    parser.add_argument("--fakeflow", type=Path, help="clone of FakeFlow, for inference at 512")
    parser.add_argument("--what", choices=[*UNITS], default="inference")
    parser.add_argument("--data-root", type=Path, help="for the loader: has DAVIS_train with FLOW")
    parser.add_argument("--size", type=int, default=512, help="side of the input in pixels")
    parser.add_argument("--frames", type=int, default=40, help="length of the sequence")
    parser.add_argument("--batch", type=int, default=1, help="frames that go through ours together")
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument(
        "--cpu-time",
        action="store_true",
        help="count the time that a process computes, with --threads 1 on a busy machine",
    )
    options = parser.parse_args()
    if options.what == "loader" and options.data_root is None:
        parser.error("--what loader needs --data-root, a folder with DAVIS_train and its flow maps")
    networks = [OURS, RELEASE]
    if options.fakeflow and options.what == "inference":
        networks.append(FAKEFLOW)
    context = multiprocessing.get_context("spawn")
    pipes, processes = {}, []
    for name in networks:
        pipes[name], other = context.Pipe()
        processes.append(context.Process(target=serve, args=(name, options, other), daemon=True))
        processes[-1].start()
        pipes[name].recv()  # built, and warm
    times: dict[str, list[float]] = {name: [] for name in networks}
    memory: dict[str, float] = {}
    for turn in range(options.turns):
        for name in networks:
            pipes[name].send(True)
            seconds, memory[name] = pipes[name].recv()
            times[name].append(seconds)
        line = "  ".join(f"{name} {times[name][-1]:.3f}" for name in networks)
        print(f"turn {turn + 1}/{options.turns}: {line}", file=sys.stderr, flush=True)
    for pipe in pipes.values():
        pipe.send(False)
    print(
        f"{options.what} at {options.size}, mit_b2, float32, {options.threads} threads, seconds "
        f"per {UNITS[options.what]}, medians of {options.turns} turns (least to most)"
    )
    for name in networks:
        median = statistics.median(times[name])
        ratios = [theirs / own for theirs, own in zip(times[name], times[OURS])]
        print(
            f"{name:>9}  {median:7.3f} ({min(times[name]):.3f} to {max(times[name]):.3f})  "
            f"{statistics.median(ratios):5.2f} x ours  peak memory {memory[name]:.2f} GiB"
        )


def serve(name: str, options: argparse.Namespace, pipe: Connection) -> None:
    """In a process of its own: build a network, then measure whenever asked."""
    import torch

    options.clock = time.process_time if options.cpu_time else time.perf_counter
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    make = {OURS: ours, RELEASE: release, FAKEFLOW: fakeflow}[name]
    if options.what == "loader":
        make = {OURS: our_loader, RELEASE: loader_of_release}[name]
    # What the others print while they are built is not for the table.
    with open(os.devnull, "w") as nowhere, contextlib.redirect_stdout(nowhere):
        measure = make(options)
    measure()
    pipe.send(True)
    while pipe.recv():
        seconds = measure()
        pipe.send((seconds, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20))


def ours(options: argparse.Namespace) -> Callable[[], float]:
    """This repository's GSA-Net: seconds per frame of a sequence, or per sample of a step."""
    import torch

    from models import build_model
    from models.losses import segmentation_loss
    from utils.processes import start_process

    start_process("")
    model = build_model("gsanet", backbone="mit_b2", pretrained_backbone=False)
    if options.what == "training":
        image, references, mask = samples(options.size, 3)
        optimizer = torch.optim.Adam(model.parameters(), 1e-4, fused=True)
        model.train()

        def step() -> None:
            optimizer.zero_grad(set_to_none=True)
            prediction = model(image, image, references, references)
            sum(segmentation_loss(prediction, mask).values()).backward()
            optimizer.step()

        return lambda: timed(options, step) / len(image)
    model.eval()
    frames = torch.rand(options.batch, 3, options.size, options.size)
    three = torch.rand(1, 3, 3, options.size, options.size)

    def sequence() -> float:
        with torch.inference_mode():
            start = options.clock()
            encoded = model.encode_references(three, three).expand(options.batch)
            begun = options.clock() - start
            each = timed(options, lambda: model.segment(frames, frames, encoded)) / options.batch
        # The frames of a sequence cost the same, and its references are encoded once.
        return begun / options.frames + each

    return sequence


def release(options: argparse.Namespace) -> Callable[[], float]:
    """The authors' GSA-Net with as many references as its code has (4), 3 in training."""
    import torch
    from transformers import SegformerForImageClassification

    random_encoders(SegformerForImageClassification)
    sys.path.insert(0, str(options.gsanet))
    from loss import structure_loss
    from model.model_for_video import GSANet

    model = GSANet()
    if options.what == "training":
        image, references, mask = samples(options.size, 3)
        references = references.flatten(1, 2)
        optimizer = torch.optim.Adam(model.parameters(), 1e-4)
        model.train()

        def step() -> None:
            optimizer.zero_grad()
            predictions, _ = model(image, image, references, references)
            sum(structure_loss(prediction, mask) for prediction in predictions).backward()
            optimizer.step()

        return lambda: timed(options, step) / len(image)
    model.eval()
    frame = torch.rand(1, 3, options.size, options.size)
    four = torch.rand(1, 12, options.size, options.size)

    def one() -> None:
        with torch.no_grad():
            model(frame, frame, four, four)

    return lambda: timed(options, one)


def our_loader(options: argparse.Namespace) -> Callable[[], float]:
    """This repository's samples with the release's augmentations and its four references."""
    import cv2

    from datasets.augmentation import Augmentation
    from datasets.layout import video_sequences
    from datasets.samples import VideoFrames

    cv2.setNumThreads(0)
    augmentation = Augmentation(crop_scale=0.95, sharpness=2.0, recolour_flow=False)
    sequences = video_sequences(options.data_root, "DAVIS_train")
    dataset = VideoFrames([sequences], options.size, 4, augmentation)
    return lambda: timed(options, lambda: [dataset[0, i] for i in spread(len(dataset))]) / LOADED


def loader_of_release(options: argparse.Namespace) -> Callable[[], float]:
    """The samples of the authors' train.py, of the same frames."""
    sys.path.insert(0, str(options.gsanet))
    import config

    config.DATA |= {
        "data_root": str(options.data_root),
        "DAVIS_train_main": "DAVIS_train",
        "DAVIS_train_sub": None,
    }
    config.TRAIN["img_size"] = options.size
    from dataloader.data_for_video import SalObjDataset

    dataset = SalObjDataset()
    return lambda: timed(options, lambda: [dataset[i] for i in spread(len(dataset))]) / LOADED


def spread(length: int) -> list[int]:
    """Targets of a turn, from all over the set."""
    return [i * length // LOADED for i in range(LOADED)]


def fakeflow(options: argparse.Namespace) -> Callable[[], float]:
    """FakeFlow, which has no references and resizes its input to 512 itself."""
    import torch
    from transformers import SegformerModel

    random_encoders(SegformerModel)
    sys.path.insert(0, str(options.fakeflow))
    from fakeflow import FakeFlow

    model = FakeFlow("mitb2").eval()
    frame = torch.rand(1, 1, 3, options.size, options.size)

    def one() -> None:
        with torch.no_grad():
            model(frame, frame)

    return lambda: timed(options, one)


def random_encoders(kind: type) -> None:
    """Have mit_b2 built with random weights where it would be downloaded."""
    from transformers import SegformerConfig

    settings = SegformerConfig(hidden_sizes=[64, 128, 320, 512], depths=[3, 4, 6, 3])
    kind.from_pretrained = classmethod(lambda cls, *arguments, **names: cls(settings))


def samples(size: int, references: int, batch: int = 2) -> tuple:
    """Frames (B, 3, S, S), their references (B, R, 3, S, S) and a disc as mask (B, 1, S, S)."""
    import torch

    y, x = torch.meshgrid(*[torch.linspace(-1, 1, size)] * 2, indexing="ij")
    mask = (x**2 + y**2 < 0.3).float().expand(batch, 1, size, size).contiguous()
    return torch.rand(batch, 3, size, size), torch.rand(batch, references, 3, size, size), mask


def timed(options: argparse.Namespace, work: Callable[[], object]) -> float:
    """Seconds by the clock that was asked for."""
    start = options.clock()
    work()
    return options.clock() - start


if __name__ == "__main__":
    main()
