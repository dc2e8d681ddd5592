"""What a forward pass asks of a GPU, counted without one: operations, and bytes read and written.

    python tests/gpu_traffic.py --batch 16

At stride 4 a network's time on a GPU is that of its memory, and a frame by itself waits for the
many operations to be launched one after the other. Both can be counted by fake tensors. Mixed
precision, without torch.compile, each operation by itself; attention counts as the one that it is
on a GPU. Views are free, and caches are not thought of.
"""

import argparse
import sys
from collections import Counter
from pathlib import Path

import torch
import torch.nn.functional as F
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from models import MODELS, build_model
from models.precision import with_weights_as
from tests.models.fake_gpu import bfloat16_autocast, fake_gpu

NUM_REFERENCES = 3
SHOWN = 12  # kinds of operations
NO_WORK = {"empty_like", "new_empty", "_unsafe_view"}


class Counted(TorchDispatchMode):
    """Operations and their bytes, by name and the type of what comes out."""

    def __init__(self):
        super().__init__()
        self.operations, self.bytes = Counter(), Counter()

    def add(self, name, tensors, result):
        kind = name, str(result.dtype).removeprefix("torch.")
        self.operations[kind] += 1
        self.bytes[kind] += sum(x.numel() * x.element_size() for x in (*tensors, result))

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        tensors = [x for x in tree_leaves((args, kwargs)) if isinstance(x, torch.Tensor)]
        results = [x for x in tree_leaves(result) if isinstance(x, torch.Tensor)]
        name = function.__name__.partition(".")[0]
        if results and tensors and not function.is_view and name not in NO_WORK:
            self.add(name, tensors, results[0])
        return result


class OneAttention(TorchFunctionMode):
    """Attention as one operation; without a GPU torch takes it apart."""

    def __init__(self, counted):
        super().__init__()
        self.counted = counted

    def __torch_function__(self, function, types, args=(), kwargs=None):
        if function is not F.scaled_dot_product_attention or len(args) > 3 or kwargs:
            return function(*args, **(kwargs or {}))
        query, key, value = (x.to(torch.bfloat16) for x in args)
        result = query.new_empty(*query.shape[:-1], value.shape[-1])
        self.counted.add("attention", (query, key, value), result)
        return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--model", choices=[*MODELS], default="gsanet")
    parser.add_argument("--backbone", default="mit_b2")
    parser.add_argument("--what", choices=["inference", "training"], default="inference")
    parser.add_argument("--size", type=int, default=512, help="side of the input in pixels")
    parser.add_argument("--batch", type=int, default=16, help="frames, or training samples")
    options = parser.parse_args()
    training = options.what == "training"
    model = build_model(options.model, backbone=options.backbone, pretrained_backbone=False)
    model.train(training)
    if not training:
        model = with_weights_as(model, torch.bfloat16)
    counted = Counted()
    with fake_gpu(model), torch.set_grad_enabled(training), bfloat16_autocast():
        frames = torch.empty(options.batch, 3, options.size, options.size, device="cuda")
        references = frames.new_empty(options.batch, NUM_REFERENCES, *frames.shape[1:])
        with OneAttention(counted):
            if training:
                with counted:
                    model(frames, frames, references, references)
            else:
                encoded = model.encode_references(references[:1], references[:1])
                with counted:
                    model.segment(frames, frames, encoded.expand(options.batch))
    total, unit = counted.bytes.total(), "sample" if training else "frame"
    print(
        f"{options.model}, {options.backbone}, {options.size} pixels, {options.what} in batches of "
        f"{options.batch}: {counted.operations.total()} operations in a forward pass, "
        f"{total / options.batch / 1e9:.2f} GB a {unit}"
    )
    for kind, size in counted.bytes.most_common(SHOWN):
        print(f"{size / total:6.1%} {counted.operations[kind]:6d}  {' '.join(kind)}")


if __name__ == "__main__":
    main()
