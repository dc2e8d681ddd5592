"""Speed and memory beside the authors' release and beside FakeFlow, in one run on one CPU.

    python -m tools.compare --gsanet GSANet --fakeflow FakeFlow --size 512

GSANet and FakeFlow are clones of github.com/Hydragon516/GSANet and github.com/suhwan-cho/FakeFlow.
They need transformers and einops, and stay unchanged but for random weights in their encoders.
They compute in float32. This code computes as it does by default, and in float32 too if that
differs.
Every network has its own process, and they take turns, so that other work of the machine slows
down all of them. Times are medians over the turns; memory is each process's peak.
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
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from precision import autocast, in_bfloat16, precision

UNITS = {"inference": "frame", "training": "sample", "loader": "sample"}
LOADED = 40  # samples of a turn of a loader
CPU = torch.device("cpu")

Work = tuple[Callable[[], object], int]  # what is timed, and how many frames or samples it takes
_work: Work  # of the network that this process has


def main() -> None:
    """Start a process for each network, let them take turns, print the table."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    add = parser.add_argument
    add("--gsanet", type=Path, required=True, help="clone of the authors' release")
    add("--fakeflow", type=Path, help="clone of FakeFlow, for inference at 512")
    add("--what", choices=[*UNITS], default="inference")
    add("--data-root", type=Path, help="for the loader: folder with DAVIS_train and its flow maps")
    add("--size", type=int, default=512, help="side of the input in pixels")
    add("--frames", type=int, default=40, help="length of the video")
    text = "samples of a training step, or this code's frames at once (default: 2, or 4)"
    add("--batch", type=int, help=text)
    add("--turns", type=int, default=5)
    add("--threads", type=int, default=os.cpu_count())
    options = parser.parse_args()
    if options.what == "loader" and options.data_root is None:
        parser.error("--what loader needs --data-root, a folder with DAVIS_train and its flow maps")
    options.batch = options.batch or (2 if options.what == "training" else 4)
    makers = {"here": our_loader, "release": loader_of_release}
    if options.what != "loader":
        makers = {"here": ours, "release": release}
        if in_bfloat16(CPU, True):
            makers["float32"] = partial(ours, mixed_precision=False)
    if options.fakeflow and options.what == "inference":
        makers["FakeFlow"] = fakeflow
    context = multiprocessing.get_context("spawn")
    workers = {
        name: ProcessPoolExecutor(1, context, initializer=start, initargs=(make, options))
        for name, make in makers.items()
    }
    times: dict[str, list[float]] = {name: [] for name in workers}
    memory = {}
    for turn in range(options.turns + 1):
        for name, worker in workers.items():
            seconds, memory[name] = worker.submit(take_turn).result()
            times[name].append(seconds)
        print(f"turn {turn}: {', '.join(f'{name} {t[-1]:.3f}' for name, t in times.items())}")
    how = "" if options.what == "loader" else f"mit_b2, here in {precision(CPU, True)}, "
    print(
        f"{options.what} at {options.size}, {how}{options.threads} threads, seconds per "
        f"{UNITS[options.what]}, medians of {options.turns} turns (least to most)"
    )
    for name, (_, *counted) in times.items():  # the first turn is a warm-up
        ratio = statistics.median(a / b for a, b in zip(counted, times["here"][1:]))
        print(
            f"{name:>9}  {statistics.median(counted):.3f} ({min(counted):.3f} to "
            f"{max(counted):.3f})  {ratio:5.2f} x here  peak memory {memory[name]:.2f} GiB"
        )


def start(make: Callable[[argparse.Namespace], Work], options: argparse.Namespace) -> None:
    """In the process of a network: build it."""
    global _work
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    with open(os.devnull, "w") as nowhere, contextlib.redirect_stdout(nowhere):
        _work = make(options)


def take_turn() -> tuple[float, float]:
    """In the process of a network: seconds per unit, and the peak memory so far in GiB."""
    work, units = _work
    begun = time.perf_counter()
    work()
    seconds = (time.perf_counter() - begun) / units
    return seconds, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


def ours(options: argparse.Namespace, mixed_precision: bool = True) -> Work:
    """This repository's GSA-Net."""
    from models import build_model
    from models.losses import segmentation_loss
    from models.precision import with_weights_as
    from utils.processes import start_process

    start_process("")
    model = build_model("gsanet", backbone="mit_b2", pretrained_backbone=False)
    if options.what == "training":

        def loss(image: Tensor, references: Tensor, mask: Tensor) -> Tensor:
            with autocast(CPU, mixed_precision):
                prediction = model(image, image, references, references)
                return sum(segmentation_loss(prediction, mask).values())

        return steps(model, loss, options, fused=True)
    model.eval()
    if in_bfloat16(CPU, mixed_precision):
        model = with_weights_as(model, torch.bfloat16)
    frames = torch.rand(options.batch, 3, options.size, options.size)
    references = torch.rand(1, 3, 3, options.size, options.size)

    @torch.inference_mode()
    def video() -> None:
        with autocast(CPU, mixed_precision):
            encoded = model.encode_references(references, references)
            for _ in range(options.frames // options.batch):
                model.segment(frames, frames, encoded)

    return video, options.frames


def release(options: argparse.Namespace) -> Work:
    """The authors' GSA-Net: 4 references, as its code has them; 3 in training."""
    from transformers import SegformerForImageClassification

    random_encoders(SegformerForImageClassification)
    sys.path.insert(0, str(options.gsanet))
    from loss import structure_loss
    from model.model_for_video import GSANet

    model = GSANet()
    if options.what == "training":

        def loss(image: Tensor, references: Tensor, mask: Tensor) -> Tensor:
            references = references.flatten(1, 2)
            predictions, _ = model(image, image, references, references)
            return sum(structure_loss(prediction, mask) for prediction in predictions)

        return steps(model, loss, options, fused=False)
    model.eval()
    frame = torch.rand(1, 3, options.size, options.size)
    references = torch.rand(1, 12, options.size, options.size)
    return torch.no_grad()(lambda: model(frame, frame, references, references)), 1


def fakeflow(options: argparse.Namespace) -> Work:
    """FakeFlow, which has no references and resizes its input to 512 itself."""
    from transformers import SegformerModel

    random_encoders(SegformerModel)
    sys.path.insert(0, str(options.fakeflow))
    from fakeflow import FakeFlow

    model = FakeFlow("mitb2").eval()
    frame = torch.rand(1, 1, 3, options.size, options.size)
    return torch.no_grad()(lambda: model(frame, frame)), 1


def our_loader(options: argparse.Namespace) -> Work:
    """This repository's samples with the release's augmentations and its four references."""
    import cv2

    from datasets.augmentation import Augmentation
    from datasets.layout import video_sequences
    from datasets.samples import VideoFrames

    cv2.setNumThreads(0)
    augmentation = Augmentation(crop_scale=0.95, sharpness=2.0, recolour_flow=False)
    sequences = video_sequences(options.data_root, "DAVIS_train")
    dataset = VideoFrames([sequences], options.size, 4, augmentation)
    return lambda: [dataset[0, i] for i in spread(len(dataset))], LOADED


def loader_of_release(options: argparse.Namespace) -> Work:
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
    return lambda: [dataset[i] for i in spread(len(dataset))], LOADED


def spread(length: int) -> list[int]:
    """Targets of a turn, evenly spread over the set."""
    return [i * length // LOADED for i in range(LOADED)]


def steps(
    model: torch.nn.Module,
    loss: Callable[..., Tensor],
    options: argparse.Namespace,
    fused: bool,
) -> Work:
    """Training steps on a batch with three references and a disc as mask."""
    size, batch = options.size, options.batch
    y, x = torch.meshgrid(*[torch.linspace(-1, 1, size)] * 2, indexing="ij")
    mask = (x**2 + y**2 < 0.3).float().expand(batch, 1, size, size).contiguous()
    image, references = torch.rand(batch, 3, size, size), torch.rand(batch, 3, 3, size, size)
    optimizer = torch.optim.Adam(model.parameters(), 1e-4, fused=fused)
    model.train()

    def step() -> None:
        optimizer.zero_grad(set_to_none=True)
        loss(image, references, mask).backward()
        optimizer.step()

    return step, batch


def random_encoders(kind: type) -> None:
    """Give mit_b2 random weights instead of downloaded ones."""
    from transformers import SegformerConfig

    settings = SegformerConfig(hidden_sizes=[64, 128, 320, 512], depths=[3, 4, 6, 3])
    kind.from_pretrained = classmethod(lambda cls, *arguments, **names: cls(settings))


if __name__ == "__main__":
    main()
