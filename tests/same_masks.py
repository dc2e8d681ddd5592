"""Do the fast ways of segmenting give the masks of the plain one? On a trained network.

    python tests/same_masks.py --checkpoint demo/runs/train/last.pt --data-root demo/data

Intersection over union of every frame's mask with that of the network segmenting frame by frame in
float32, for what may be chosen for speed. On the CPU, which evaluate.py never lets compute in
bfloat16, that is by autocast.
"""

import argparse
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from datasets.layout import Sequence, video_sequences
from models.interface import Network
from models.precision import with_weights_as
from utils.evaluation import segmenting
from utils.evaluation.segmenting import Segmenter, predict_sequences
from utils.training.checkpoints import build_from_checkpoint, load_checkpoint

Masks = dict[tuple[str, str], np.ndarray]  # by sequence and frame


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--checkpoint", type=Path, required=True, help="of train.py")
    parser.add_argument("--data-root", type=Path, required=True)
    parser.add_argument("--set", default="DAVIS_test", help="with flow maps")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--batch", type=int, default=4, help="frames in a batch")
    options = parser.parse_args()
    checkpoint = load_checkpoint(options.checkpoint)
    sequences = video_sequences(options.data_root, options.set)
    device = torch.device(options.device)

    def network() -> Network:
        return build_from_checkpoint(checkpoint).eval().to(device)

    size = checkpoint["settings"]["IMAGE_SIZE"]

    def masks(network: Network, batch: int = options.batch, **fast: bool) -> Masks:
        return segmented(Segmenter(network, size, **fast), sequences, batch)

    plain = masks(network(), batch=1)
    report("frames in batches", plain, masks(network()))
    report("torch.compile", plain, masks(network(), compile=True))
    if device.type == "cuda":
        report("bfloat16", plain, masks(network(), mixed_precision=True))
        report("both", plain, masks(network(), mixed_precision=True, compile=True))
    else:
        segmenting.inference = bfloat16_on_the_cpu
        report("bfloat16", plain, masks(with_weights_as(network(), torch.bfloat16)))


def segmented(segmenter: Segmenter, sequences: list[Sequence], batch: int) -> Masks:
    """Every frame's mask at the frame's own size."""
    return {
        (one.sequence, one.frame.name): one.labels() > 0
        for one in predict_sequences(segmenter, sequences, batch_size=batch)
    }


def report(name: str, plain: Masks, fast: Masks) -> None:
    """Print the overlap's mean and its least."""
    overlaps = []
    for key, mask in plain.items():
        union = (mask | fast[key]).sum()
        overlaps.append((mask & fast[key]).sum() / union if union else 1.0)
    mean, least = np.mean(overlaps), min(overlaps)
    print(f"{name:20} IoU {mean:.5f}, least of {len(plain)} frames {least:.5f}", flush=True)


@contextmanager
def bfloat16_on_the_cpu(device: torch.device, mixed_precision: bool) -> Iterator[None]:
    with torch.inference_mode(), torch.autocast(device.type, torch.bfloat16):
        yield


if __name__ == "__main__":
    main()
