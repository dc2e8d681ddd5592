"""Small networks and inputs for tests, and what tests compare them by."""

import math
import re

import torch

from models import build_model

# A small form of each network, with a Mix Transformer, which has no batch normalisation.
SMALL = {
    "gsanet": {"channels": 32, "num_clusters": 8, "num_neighbours": 4, "num_iterations": 2},
    "dpa": {"channels": 32, "graph_neighbours": 4, "graph_rounds": 2},
    "smtc": {"backbone": "vit_tiny_patch16_224", "semantic_slots": 6, "instance_slots": 3},
    "ssl_uvos": {"backbone": "vit_tiny_patch16_224", "key_frame_step": 2},
}
TWO_STREAMS = ("gsanet", "dpa")

# Shifts that reach only rounding: a softmax or a normalisation right after them cancels them.
# They belong to published networks, SegFormer's encoder and slot attention.
CANCELLED = re.compile(r"\.encoder\..*\.bias|\.norm_queries\.bias")


def network(name, seed=0, **arguments):
    """A small network of that name."""
    torch.manual_seed(seed)
    small = {"backbone": "mit_b0", "pretrained_backbone": False, **SMALL[name]}
    return build_model(name, **(small | arguments))


def inputs(batch=2, height=64, width=64, references=3, seed=1, dtype=torch.float32):
    """Image, flow, reference images, reference flows: random patches of four pixels, and noise."""
    generator = torch.Generator().manual_seed(seed)

    def pictures(*shape):
        coarse = torch.rand(*shape, height // 4, width // 4, generator=generator, dtype=dtype)
        patches = coarse.repeat_interleave(4, dim=-1).repeat_interleave(4, dim=-2)
        noise = torch.rand(*shape, height, width, generator=generator, dtype=dtype)
        return 0.8 * patches + 0.2 * noise

    frames = [pictures(batch, 3), pictures(batch, 3)]
    return [*frames, *(pictures(batch, references, 3) for _ in range(2))]


class FramesInMemory(list):
    """A video of random frames for ``segment_video``, in batches of two."""

    def at(self, positions):
        return {key: torch.stack([self[p][key] for p in positions]) for key in self[0]}

    def __iter__(self):
        return (self.at(range(i, min(i + 2, len(self)))) for i in range(0, len(self), 2))


def frames_in_memory(length, height=64, width=64):
    """A video of uint8 frames with flow maps."""
    image, flow, _, _ = inputs(length, height, width)
    pairs = zip(*((255 * x).round().byte() for x in (image, flow)))
    return FramesInMemory({"image": one, "flow": other} for one, other in pairs)


def discs(batch=2, size=64):
    y, x = torch.meshgrid(torch.arange(size), torch.arange(size), indexing="ij")
    masks = [(y - 24 - 12 * b) ** 2 + (x - 36 + 8 * b) ** 2 < 15**2 for b in range(batch)]
    return torch.stack(masks)[:, None].float()


def assert_same_prediction(a, b, **tolerance):
    for one, other in zip([*a.logits, *a.auxiliary], [*b.logits, *b.auxiliary], strict=True):
        torch.testing.assert_close(one, other, **tolerance)
    assert a.maps.keys() == b.maps.keys()
    for name, one in a.maps.items():
        torch.testing.assert_close(one, b.maps[name], **tolerance)


def parameters_not_reached(model, floor=0.0):
    """Trainable parameters without gradient, or with none above ``floor`` where there can be."""
    names = []
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        size = None if parameter.grad is None else parameter.grad.abs().max().item()
        if size is None or (not size > floor and not CANCELLED.search(name)):
            names.append(name)
    return names


def without_stochastic_depth(model):
    """Encoders that never leave out a block, so that a training step is the same every time."""
    for stream in (model.rgb_stream, model.flow_stream):
        if stream is not None:
            stream.encoder.eval()
    return model


def randomise(module):
    """Random parameters everywhere, so that no scale of 1 or shift of 0 hides a mistake."""
    generator = torch.Generator().manual_seed(0)
    for parameter in module.parameters():
        parameter.data = 0.6 * torch.randn(parameter.shape, generator=generator)
    return module.double()


def normalised(norm, x):
    """LayerNorm of one feature, a list of numbers."""
    mean = sum(x) / len(x)
    variance = sum((value - mean) ** 2 for value in x) / len(x)
    return [
        (value - mean) / math.sqrt(variance + norm.eps) * weight + bias
        for value, weight, bias in zip(x, norm.weight.tolist(), norm.bias.tolist())
    ]
