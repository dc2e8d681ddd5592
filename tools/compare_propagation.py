"""Time of label propagation beside CRW's code, on the same random features.

    python -m tools.compare_propagation --crw DIR    # a checkout of github.com/ajabri/videowalk

CRW's part is the one that finds the nearest tokens (``mem_efficient_batched_affinity``); ours
propagates the labels, too. Both run in turns with CRW's values for DAVIS. Prints the seconds and
ratio of each round.
"""

import argparse
import importlib.util
import statistics
import sys
import time
from pathlib import Path
from types import ModuleType

import torch
import torch.nn.functional as F
from torch import Tensor

from models.propagation import RECIPES, propagate

RECIPE, FIRST = RECIPES["crw"], [0]


def moving_features(frames: int, height: int, width: int, channels: int) -> Tensor:
    """Unit features (T, C, h, w) that move by a token in each frame, with noise."""
    torch.manual_seed(0)
    still = torch.randn(channels, height, width)
    moved = torch.stack([still.roll(t, dims=2) for t in range(frames)])
    return F.normalize(moved + 0.5 * torch.randn_like(moved), dim=1)


def window(height: int, width: int) -> Tensor:
    """CRW's mask of the keys (h * w) of each query: 0 inside the disk, -1e10 outside."""
    y, x = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    places = torch.stack([y.flatten(), x.flatten()], dim=1)
    far = (places[:, None] - places[None]).square().sum(dim=2) >= RECIPE.radius**2
    return -1e10 * far[None, None].float()


def theirs(module: ModuleType, features: Tensor) -> None:
    """CRW's search for all frames at once, as its test.py calls it."""
    count = RECIPE.context
    padded = torch.cat([features[:1].expand(count, -1, -1, -1), features]).transpose(0, 1)[None]
    context = module.context_index_bank(count, FIRST, len(features))
    keys = padded[:, :, torch.cat(context, dim=-1)].flatten(-2)
    queries = padded[:, :, count:].flatten(-2)
    mask = window(*features.shape[2:])
    module.mem_efficient_batched_affinity(
        queries, keys, mask, RECIPE.temperature, RECIPE.top_k, FIRST, "cpu"
    )


def ours(features: Tensor) -> None:
    """Labels of two objects and the background in all frames."""
    first = torch.zeros(3, *features.shape[2:])
    first[0] = 1
    for _ in propagate(features, first, RECIPE):
        pass


def read_module(checkout: Path) -> ModuleType:
    """CRW's ``utils/test_utils.py``, without the package for pictures that it imports."""
    sys.modules.setdefault("imageio", ModuleType("imageio"))
    spec = importlib.util.spec_from_file_location("crw", checkout / "code/utils/test_utils.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def main() -> None:
    """Print seconds and ratios."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--crw", type=Path, required=True, metavar="DIR", help="CRW's checkout")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--frames", type=int, default=30)
    parser.add_argument("--grid", type=int, nargs=2, default=(30, 53), metavar=("ROWS", "COLUMNS"))
    parser.add_argument("--channels", type=int, default=384)
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    module = read_module(options.crw)
    features = moving_features(options.frames, *options.grid, options.channels)
    ratios = []
    for number in range(options.rounds):
        seconds = []
        for run in (lambda: theirs(module, features), lambda: ours(features)):
            start = time.perf_counter()
            run()
            seconds.append(time.perf_counter() - start)
        ratios.append(seconds[0] / seconds[1])
        print(f"round {number + 1}: CRW {seconds[0]:.2f} s, here {seconds[1]:.2f} s", end=", ")
        print(f"ratio {ratios[-1]:.2f}", flush=True)
    print(f"median ratio {statistics.median(ratios):.2f}")


if __name__ == "__main__":
    main()
