"""What SSL-UVOS learns from features of moving disks, in minutes and without DINO's weights.

    python -m tools.ssl_uvos_toy --check plain --seeds 0 1 2

Trains the block on clips of two disks whose features are a prototype of each kind plus noise, then
clusters held-out videos. Checks: ``plain`` (noise 0.3, 50 steps), ``graded`` (noise 1.0, 50 to 400
steps: a learning curve to compare variants with), ``noisy`` (noise 1.0 in training, 0.3 in the
test, 100 steps), ``occlusion`` (as plain; one disk is hidden for four frames).
"""

import argparse
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from models.ssl_uvos.attention_maps import AttentionMaps
from models.ssl_uvos.block import SpatioTemporalBlock
from models.ssl_uvos.network import SSLUVOS

# Noise in training, noise in the test, and after how many steps the test is.
CHECKS = {
    "plain": (0.3, 0.3, [0, 50]),
    "graded": (1.0, 1.0, [0, 50, 100, 200, 400]),
    "noisy": (1.0, 0.3, [0, 100]),
    "occlusion": (0.3, 0.3, [50]),
}
SIDE, CHANNELS, RADIUS = 12, 32, 2.5  # tokens
HIDDEN = slice(4, 8)  # frames of the occlusion
RATE = 3e-3
CLIPS, HELD_OUT, FRAMES = 4, 8, 12  # clips of a step; videos and their frames


class Toy(NamedTuple):
    """A video of features."""

    keys: Tensor  # (T, N, C)
    class_tokens: Tensor  # (T, C)
    labels: np.ndarray  # (T, N): 0 background, 1 and 2 the disks


def two_disks(seed: int, frames: int, noise: float, hidden: slice = slice(0)) -> Toy:
    """Two disks of different kinds that bounce over one of two backgrounds.

    In the ``hidden`` frames the first disk has the features of the background.
    """
    rng = np.random.default_rng(seed)
    prototypes = np.random.default_rng(0).normal(size=(6, CHANNELS))
    prototypes /= np.linalg.norm(prototypes, axis=1, keepdims=True) / np.sqrt(CHANNELS)
    kinds = [rng.integers(2), *(2 + rng.permutation(4)[:2])]
    start, speed = rng.uniform(2, SIDE - 2, (2, 2)), rng.uniform(-0.7, 0.7, (2, 2))
    y, x = np.mgrid[:SIDE, :SIDE]
    labels = np.zeros((frames, SIDE, SIDE), int)
    for t in range(frames):
        for number in (0, 1):
            where = start[number] + speed[number] * t
            where = np.abs((where - 1.5) % (2 * (SIDE - 4)) - (SIDE - 4)) + 1.5  # bounces
            inside = (y - where[0]) ** 2 + (x - where[1]) ** 2 <= RADIUS**2
            labels[t][inside] = number + 1
    gone = labels[hidden]
    gone[gone == 1] = 0
    features = prototypes[np.array(kinds)[labels]]
    features = features + noise * rng.normal(size=features.shape)
    keys = torch.from_numpy(features).float().flatten(1, 2)
    return Toy(keys, keys.mean(dim=1), labels.reshape(frames, -1))


class ToyNetwork(SSLUVOS):
    """The network behind its encoder: frames are features already."""

    def __init__(self):
        super().__init__("vit_tiny_patch16_224", pretrained_backbone=False, key_frame_step=4)
        self.block = SpatioTemporalBlock(CHANNELS, heads=4)

    def clusters(self, keys: Tensor) -> np.ndarray:
        """The cluster of each token of a video (T, N, C), numbered by size: (T, N)."""
        self.eval()
        with torch.inference_mode():
            queries, columns = self.block.queries_and_keys(keys)
            columns = torch.cat(list(columns[:: self.key_frame_step]), dim=1)
            scores, _ = self._scores(AttentionMaps(queries, columns))
        return scores.argmax(dim=1).view(keys.shape[:2]).numpy()


def train(
    network: ToyNetwork, optimizer: torch.optim.Optimizer, steps: range, noise: float
) -> None:
    """Steps with clips of three frames, two apart."""
    network.train()
    for step in steps:
        clips = [two_disks(CLIPS * step + number, 5, noise) for number in range(CLIPS)]
        losses = network.loss_of_features(
            torch.stack([clip.keys[::2] for clip in clips]),
            torch.stack([clip.class_tokens[::2] for clip in clips]),
        )
        optimizer.zero_grad()
        sum(losses.values()).backward()
        optimizer.step()


def optimizer_of(network: ToyNetwork) -> torch.optim.Optimizer:
    """AdamW with the network's own groups."""
    groups = [{"weight_decay": 0.0, **group} for group in network.parameter_groups()]
    return torch.optim.AdamW(groups, lr=RATE)


def video_iou(clusters: np.ndarray, labels: np.ndarray) -> float:
    """Mean over both disks of the IoU over the whole video with the best cluster."""
    found = [clusters == number for number in np.unique(clusters)]
    disks = [labels == number for number in (1, 2)]
    return float(np.mean([max((f & d).sum() / (f | d).sum() for f in found) for d in disks]))


def held_out(network: ToyNetwork, noise: float, hidden: slice = slice(0)) -> list[tuple]:
    """Of each held-out video: the IoU, the number of clusters, and whether disk 1 keeps its one."""
    results = []
    for seed in range(HELD_OUT):
        video = two_disks(1000 + seed, FRAMES, noise, hidden)
        clusters = network.clusters(video.keys)
        first = video.labels == 1
        seen = [
            np.bincount(clusters[part][first[part]], minlength=1).argmax()
            for part in (slice(hidden.start), slice(hidden.stop, None))
            if first[part].any()
        ]
        count = len(np.unique(clusters))
        results.append((video_iou(clusters, video.labels), count, len(set(seen)) == 1))
    return results


def main() -> None:
    """Print a line for each seed and number of steps."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--check", choices=CHECKS, default="plain")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    arguments = parser.parse_args()
    noise, test_noise, numbers = CHECKS[arguments.check]
    hidden = HIDDEN if arguments.check == "occlusion" else slice(0)
    print("seed  steps      J  clusters of the 8 videos")
    for seed in arguments.seeds:
        torch.manual_seed(seed)
        network, done = ToyNetwork(), 0
        optimizer = optimizer_of(network)
        for steps in numbers:
            bar = tqdm(range(done, steps), unit="step", leave=False, disable=None)
            train(network, optimizer, bar, noise)
            done = steps
            results = held_out(network, test_noise, hidden)
            j, counts = np.mean([one[0] for one in results]), [one[1] for one in results]
            line = f"{seed:4}  {steps:5}  {j:5.2f}  {' '.join(map(str, counts))}"
            if hidden.stop:
                kept = [same for _, count, same in results if count == 3]
                line += f"; same cluster after the occlusion: {sum(kept)} of {len(kept)} with three"
            print(line, flush=True)


if __name__ == "__main__":
    main()
