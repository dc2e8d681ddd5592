"""From the features of a video's frames to objects, the same in all frames.

Instance maps of frames are probabilities over K = S * P instances, (B, K, h, w). ``scores``
(B, K) are the instances' cosines with their semantic.
"""

from collections.abc import Iterable, Iterator

import torch
from torch import Tensor

from models.backbones.vision_transformer import Tokens
from models.precision import without_autocast
from models.smtc.correspondence import previous_frames
from models.smtc.losses import SCORE, match
from models.smtc.slot_network import CLIP, SlotNetwork

MAX_LABELS = 254  # objects that a label map has room for
STRETCHED_ABOVE = 0.3  # where the release's masks are foreground

Instances = Iterator[tuple[Tensor, Tensor]]  # instance maps and scores


def tracks(
    network: SlotNetwork, frames: Iterable[Tokens], before: Tensor, rounds: int, seed: int
) -> Instances:
    """Instances of each batch of frames, in the order of the video's first frame.

    All frames start with the same noise and see their true predecessor. Inside each semantic, the
    instances of neighbouring frames are matched one to one.

    Args:
        before: keys (1, N, C) in the place of the first frame's predecessor.
    """
    noise = _noise(network, 1, torch.Generator().manual_seed(seed))
    last = None  # the features of the tracks in the frame before, (S, P, C)
    for keys, _, size, _ in frames:
        previous, before = torch.cat([before, keys[:-1]]), keys[-1:]
        of_frames = noise.expand(len(keys), -1, -1, -1)
        found = network(keys, previous, size, rounds, of_frames)
        order = []
        for features in found.features:
            with without_autocast(features):
                links = match((features if last is None else last) @ features.transpose(1, 2))
            last = features.take_along_dim(links[:, :, None], dim=1)
            order.append(links)
        order = torch.stack(order)
        maps = found.instance_maps.take_along_dim(order[..., None], dim=2)
        yield maps.flatten(1, 2).unflatten(2, size), found.scores.gather(2, order).flatten(1)


def release(network: SlotNetwork, frames: Iterable[Tokens], rounds: int, seed: int) -> Instances:
    """Instances in the order of their slots, in chunks of four frames.

    The last frame of a chunk counts as the one before its first. Each frame has its own noise.
    """
    generator = torch.Generator().manual_seed(seed)
    for keys, count, size in chunks(frames):
        before = previous_frames(keys[None], cyclic=True)[0]
        found = network(keys, before, size, rounds, _noise(network, CLIP, generator))
        yield (
            found.instance_maps.flatten(1, 2).unflatten(2, size)[:count],
            found.scores.flatten(1)[:count],
        )


def chunks(frames: Iterable[Tokens]) -> Iterator[tuple[Tensor, int, tuple[int, int]]]:
    """Keys of four frames at a time, how many of them are new, and their h and w.

    A short last chunk is filled with the video's last frames.
    """
    seen, count = torch.empty(0), 0
    for keys, _, size, _ in frames:
        for key in keys.split(1):
            seen = torch.cat([seen, key])[-CLIP:] if count else key
            count += 1
            if count % CLIP == 0:
                yield seen, CLIP, size
    if rest := count % CLIP:
        end = len(seen)
        fill = (max(0, place) for place in range(end - CLIP + rest, end))
        yield seen[[*range(end - rest, end), *fill]], rest, size


def track_weights(maps: Tensor, scores: Tensor) -> Tensor:
    """Area of each track in these frames times its score, (K,). Silent frames add nothing."""
    owned = torch.zeros_like(maps).scatter_(1, maps.argmax(dim=1, keepdim=True), 1.0)
    return (owned.mean(dim=(2, 3)) * scores * (scores >= SCORE)).sum(dim=0)


def track_logits(maps: Tensor, scores: Tensor, chosen: Tensor) -> Tensor:
    """Logits in [-1, 1] of the M chosen tracks, (B, M, h, w), positive on objects.

    A pixel belongs to an object whose map exceeds the maps of all tracks that are not objects. In
    frames where its score is low, a track is silent: it is no object there.
    """
    objects = torch.zeros_like(scores, dtype=torch.bool)
    objects[:, chosen] = scores[:, chosen] >= SCORE
    objects = objects[..., None, None]
    others = maps.masked_fill(objects, 0.0).amax(dim=1, keepdim=True)
    return (maps[:, chosen] - others).masked_fill(~objects[:, chosen], -1.0)


def release_logits(maps: Tensor, scores: Tensor) -> Tensor:
    """The authors' masks (B, K, h, w): of each frame the instances of high score, counted anew.

    Each is stretched to [0, 1] and is foreground above 0.3. Number k of two frames need not be one
    object.
    """
    keep = scores >= SCORE
    order = (~keep).int().argsort(dim=1, stable=True)
    order = order[:, :MAX_LABELS]
    maps = maps.take_along_dim(order[..., None, None], dim=1)
    low, high = maps.amin(dim=(2, 3), keepdim=True), maps.amax(dim=(2, 3), keepdim=True)
    stretched = ((maps - low) / (high - low)).nan_to_num(0.0)  # a constant map is empty
    return (stretched - STRETCHED_ABOVE).masked_fill(~keep.gather(1, order)[..., None, None], -1.0)


def _noise(network: SlotNetwork, frames: int, generator: torch.Generator) -> Tensor:
    """Drawn on the CPU, so that it is the same on all devices."""
    noise = torch.randn(frames, *network.noise_shape, generator=generator)
    return noise.to(network.semantic.mean)
