"""Time and memory of SSL-UVOS's clustering beside the plain algorithm of the tests.

    python -m tools.compare_clustering --windows 3 --rounds 3

The features are those of moving disks, at the size of a video of 80 frames of 320 x 480 pixels:
2,400 tokens a frame, and a key frame every ten frames. Only the given number of windows of three
frames is clustered, because the time of both grows with their number. Prints the seconds, the ratio
of each round, and on how many tokens both agree.
"""

import argparse
import statistics
import time

import numpy as np
import torch
from torch import Tensor

from models.ssl_uvos.attention_maps import WINDOW, AttentionMaps
from models.ssl_uvos.clustering import distances_to_centres, find_centres
from tests.models.ssl_uvos import plain_clustering

HEADS, SIZE = 8, 48  # of ViT-S
SHARPNESS = 5.0  # length of a feature: a token attends to the tokens of its object
DISTANCE = 1.0


def moving_disks(frames: int, grid: tuple[int, int], key_frames: int) -> tuple[Tensor, Tensor]:
    """Queries (frames, H, N, d) and columns (H, M, d) of six moving disks and a background."""
    rng = np.random.default_rng(0)
    prototypes = rng.normal(size=(7, HEADS, SIZE))
    prototypes *= SHARPNESS / np.linalg.norm(prototypes, axis=2, keepdims=True)
    start, speed = rng.uniform(0.1, 0.9, (6, 2)), rng.uniform(-0.005, 0.005, (6, 2))
    rows, columns = grid
    y, x = np.mgrid[:rows, :columns] / np.reshape(grid, (2, 1, 1))

    def features(t: int) -> Tensor:
        labels = np.zeros(grid, int)
        for number, (top, left) in enumerate(start + speed * t, 1):
            labels[(y - top) ** 2 + (x - left) ** 2 < 0.1**2] = number
        values = prototypes[labels.ravel()] + 0.3 * rng.normal(size=(labels.size, HEADS, SIZE))
        return torch.from_numpy(values).float().transpose(0, 1)

    queries = torch.stack([features(t) for t in range(frames)])
    return queries, torch.cat([features(10 * k) for k in range(key_frames)], dim=1)


def cluster(queries: Tensor, columns: Tensor) -> Tensor:
    """The cluster of every token, as ``segment_video`` finds it, (T * N,)."""
    maps = AttentionMaps(queries, columns)
    centres = find_centres(maps, DISTANCE)
    return torch.cat([distances_to_centres(window, centres).argmin(dim=1) for window in maps])


def main() -> None:
    """Print seconds and ratios."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--windows", type=int, default=3)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--grid", type=int, nargs=2, default=(40, 60), metavar=("ROWS", "COLUMNS"))
    parser.add_argument("--key-frames", type=int, default=8)
    arguments = parser.parse_args()
    frames = WINDOW * arguments.windows
    video = moving_disks(frames, arguments.grid, arguments.key_frames)
    print(f"{video[0].shape[2]} tokens a frame, {frames} frames, {video[1].shape[1]} columns")
    ratios = []
    for number in range(1, arguments.rounds + 1):
        seconds, labels = [], []
        with torch.inference_mode():
            for method in (lambda *v: plain_clustering.partition(*v, DISTANCE, WINDOW), cluster):
                begun = time.perf_counter()
                labels.append(method(*video))
                seconds.append(time.perf_counter() - begun)
        ratios.append(seconds[0] / seconds[1])
        same = (labels[0] == labels[1]).float().mean()
        print(
            f"round {number}: plain {seconds[0]:.1f} s, ours {seconds[1]:.1f} s, {ratios[-1]:.2f} "
            f"times as fast; {len(labels[1].unique())} clusters, {same:.2%} of the tokens agree",
            flush=True,
        )
    print(f"median: {statistics.median(ratios):.2f} times as fast")


if __name__ == "__main__":
    main()
