"""Label propagation: any number of labels of the first frame follow the features of a video.

It is CRW's algorithm (Jabri et al., 2020) without training: each token of a frame takes the labels
of the most similar tokens of the frames before. DINO's and SMTC's evaluations are recipes of it.
"""

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor

from models.precision import full_precision

FLOOR, SHORT_480 = "floor", "short_480"
_PRODUCTS = 2**24  # similarities that are in memory at a time, 64 MB in float32
_TILE = 8  # least side of a tile of queries, in tokens


@dataclass(frozen=True)
class Recipe:
    """How labels are propagated.

    Attributes:
        context: n, how many frames before a frame lend it labels.
        padded: n copies of the first frame precede the video; False: early frames have fewer maps.
        memory: the first frame always lends labels, too.
        window: ``disk``, tokens less than ``radius`` away; ``square``, at most ``radius`` on each
            axis.
        radius: of the window, in tokens of the label grid.
        window_on_memory: whether the window also limits the first frame as ``memory``.
        top_k: number of most similar tokens that lend labels.
        temperature: of the softmax of their cosines.
        feature: of a transformer's last block, ``tokens``, ``normalised`` ones or ``keys``.
        stride: of the label grid, in pixels; ``None`` takes that of the features.
        resize: ``floor`` makes a frame's sides multiples of the patch, no larger than before;
            labels are resized bilinearly, to the grid and to the frame. ``short_480`` makes the
            shorter side 480 pixels and the other a multiple of 64; labels are resized by the
            nearest pixel to the grid, bilinearly to that size, by the nearest pixel to the frame.
        stretch: stretch each label's map to [0, 1] before the largest one is taken.
        deviation: of the channels of a transformer's images; ``None`` takes its weights' own.
    """

    context: int = 20
    padded: bool = True
    memory: bool = True
    window: str = "disk"
    radius: float = 7
    window_on_memory: bool = False
    top_k: int = 7
    temperature: float = 0.2
    feature: str = "tokens"
    stride: int | None = 16
    resize: str = FLOOR
    stretch: bool = False
    deviation: tuple[float, float, float] | None = None


_CRW = Recipe(stride=8, radius=12, top_k=10, temperature=0.05)
RECIPES = {
    "smtc_a": Recipe(),
    "smtc_b": Recipe(stride=8, radius=35, top_k=28),
    "crw": _CRW,
    "vip": replace(_CRW, context=4),
    "jhmdb": replace(_CRW, context=7, radius=5),
    "dino": Recipe(
        context=7,
        padded=False,
        window="square",
        radius=12,
        window_on_memory=True,
        top_k=5,
        temperature=0.1,
        feature="normalised",
        stride=None,
        resize=SHORT_480,
        stretch=True,
        deviation=(0.228, 0.224, 0.225),
    ),
}


@torch.no_grad()
def propagate(features: Iterable[Tensor], first: Tensor, recipe: Recipe) -> Iterator[Tensor]:
    """The labels of every frame, in order, in memory that does not grow with the video.

    Args:
        features: of every frame, (C, h, w); they are scaled to unit length.
        first: labels of the first frame, (K, h, w), as shares in [0, 1].

    Yields:
        Labels (K, h, w), those of the first frame as they are.

    Raises:
        ValueError: the recipe has neither context nor memory.
    """
    if recipe.context < 1 and not recipe.memory:
        raise ValueError("propagation without context and without memory has no labels to take")
    labels, num = first.flatten(1).T, recipe.context
    for t, frame in enumerate(features):
        frame = F.normalize(full_precision(frame), dim=0).permute(1, 2, 0).contiguous()
        if t == 0:
            origin, labels = frame[None], labels.to(frame)
            # The frames behind the first one, and the labels of all.
            ring = frame.new_zeros(num, *frame.shape)
            table = torch.cat([labels[None], labels.new_zeros(num, *labels.shape)])
        else:
            known = min(t - 1, num)
            groups = [_of_first_frame(frame, origin, t, recipe)]
            if known:
                values, places = nearest(frame, ring[:known], recipe, recipe.window)
                groups.append((values, places + len(labels), torch.ones_like(places)))
            labels = _averaged(groups, table.flatten(0, 1), recipe)
            if num:
                ring[(t - 1) % num] = frame
                table[1 + (t - 1) % num] = labels
        yield labels.T.unflatten(1, frame.shape[:2])


def nearest(
    queries: Tensor, maps: Tensor, recipe: Recipe, window: str | None
) -> tuple[Tensor, Tensor]:
    """The most similar tokens of maps for every query, best first.

    Queries are taken in tiles, which need only the keys in reach of their window: a small part of
    the maps if the window is small, all of them if it is large.

    Args:
        queries: unit features (h, w, C).
        maps: unit features (n, h, w, C).
        window: ``disk``, ``square``, or ``None`` for all tokens.

    Returns:
        Cosines (h * w, k), -inf where the window has fewer tokens, and the tokens' numbers
        among n * h * w.
    """
    n, h, w, _ = maps.shape
    k = min(recipe.top_k, n * h * w)
    values = queries.new_full((h, w, k), -math.inf)
    places = torch.zeros(h, w, k, dtype=torch.long, device=queries.device)
    reach = max(h, w) if window is None else _reach(window, recipe.radius)
    side = max(_TILE, min(reach, 4 * _TILE))
    for rows, key_rows in _stretches(h, side, reach):
        for columns, key_columns in _stretches(w, side, reach):
            tile = rows, columns
            inside = None
            if window is not None:
                places_of = [_positions(s, queries.device) for s in (*tile, key_rows, key_columns)]
                inside = _inside(*places_of, window, recipe.radius)
            best = _best(queries[tile], maps[:, key_rows, key_columns], inside, k)
            number, y, x = _unravel(best[1], key_rows, key_columns)
            size = values[tile].shape[:2]
            values[tile][..., : best[0].shape[1]] = best[0].unflatten(0, size)
            places[tile][..., : best[0].shape[1]] = ((number * h + y) * w + x).unflatten(0, size)
    return values.flatten(0, 1), places.flatten(0, 1)


def _best(queries: Tensor, maps: Tensor, inside: Tensor | None, k: int) -> tuple[Tensor, Tensor]:
    """The k largest cosines of a tile's queries, and the numbers of their keys among the maps'.

    Maps are compared a few at a time, and the best so far are kept. The k best keys lie at the k
    places with the largest maxima over the maps. So only the keys of these places are sorted.
    """
    queries, size = queries.flatten(0, 1), maps[0, ..., 0].numel()
    step = max(1, _PRODUCTS // (len(queries) * size))
    values = numbers = None
    for start in range(0, len(maps), step):
        keys = maps[start : start + step].flatten(0, 2)
        cosines = (queries @ keys.T).unflatten(1, (-1, size))
        of_places = cosines.amax(dim=1)
        if inside is not None:
            of_places.masked_fill_(~inside, -math.inf)
        best, chosen = of_places.topk(min(k, size))
        cosines = cosines.gather(2, chosen.unsqueeze(1).expand(-1, cosines.shape[1], -1))
        cosines = cosines.masked_fill((best == -math.inf).unsqueeze(1), -math.inf).flatten(1)
        found, where = cosines.topk(min(k, cosines.shape[1]))
        kept = chosen.shape[1]
        where = (start + where // kept) * size + chosen.gather(1, where % kept)
        if values is not None:
            found, where = torch.cat([values, found], 1), torch.cat([numbers, where], 1)
            found, order = found.topk(min(k, found.shape[1]))
            where = where.gather(1, order)
        values, numbers = found, where
    return values, numbers


def _of_first_frame(
    frame: Tensor, origin: Tensor, t: int, recipe: Recipe
) -> tuple[Tensor, Tensor, Tensor]:
    """The first frame's most similar tokens, their numbers, and how often each is in the context.

    Copies of the first frame are counted instead of compared again.
    """
    h, w, _ = frame.shape
    queued = 0
    if recipe.padded:
        queued = max(0, recipe.context + 1 - t)
    elif not recipe.memory:  # the frame itself is in the queue
        queued = int(t <= recipe.context)
    free = recipe.memory and not recipe.window_on_memory
    values, places = nearest(frame, origin, recipe, None if free else recipe.window)
    if not free:
        return values, places, torch.full_like(places, queued + recipe.memory)
    own = torch.arange(h * w, device=places.device).unsqueeze(1)
    dy, dx = places // w - own // w, places % w - own % w
    return values, places, 1 + queued * _in_window(dy, dx, recipe.window, recipe.radius)


def _averaged(groups: list[tuple[Tensor, ...]], table: Tensor, recipe: Recipe) -> Tensor:
    """Labels (h * w, K): the mean of the ``top_k`` most similar tokens' by a softmax.

    ``groups`` have cosines, rows of ``table`` and how often each counts, (h * w, k) each.
    """
    values, places, counts = (torch.cat(parts, dim=1) for parts in zip(*groups))
    values = values.masked_fill(counts == 0, -math.inf)
    values, order = values.sort(dim=1, descending=True)
    places, counts = places.gather(1, order), counts.gather(1, order)
    used = (recipe.top_k - (counts.cumsum(1) - counts)).clamp(min=0).minimum(counts)
    weights = used * ((values - values[:, :1]) / recipe.temperature).exp()
    weights = weights / weights.sum(dim=1, keepdim=True)
    return F.embedding_bag(places, table, per_sample_weights=weights, mode="sum")


def _stretches(length: int, side: int, reach: int) -> Iterator[tuple[slice, slice]]:
    """Slices of an axis, ``side`` long, and those of the keys that they reach."""
    for start in range(0, length, side):
        end = min(start + side, length)
        yield slice(start, end), slice(max(0, start - reach), min(length, end + reach))


def _positions(part: slice, device: torch.device) -> Tensor:
    return torch.arange(part.start, part.stop, device=device)


def _inside(
    y: Tensor, x: Tensor, key_y: Tensor, key_x: Tensor, window: str, radius: float
) -> Tensor:
    """Which keys lie in the window of which query, bool (queries, keys), by rows and columns."""
    dy = key_y[None, None, :, None] - y[:, None, None, None]
    dx = key_x[None, None, None, :] - x[None, :, None, None]
    return _in_window(dy, dx, window, radius).flatten(2).flatten(0, 1)


def _in_window(dy: Tensor, dx: Tensor, window: str, radius: float) -> Tensor:
    """Whether a distance in rows and columns lies in the window."""
    if window == "square":
        return (dy.abs() <= radius) & (dx.abs() <= radius)
    return dy**2 + dx**2 < radius**2


def _reach(window: str, radius: float) -> int:
    """The largest whole distance along an axis in the window."""
    return math.floor(radius) if window == "square" else max(0, math.ceil(radius) - 1)


def _unravel(numbers: Tensor, rows: slice, columns: slice) -> tuple[Tensor, Tensor, Tensor]:
    """Map, row and column of keys from their numbers among the keys of a tile."""
    width = columns.stop - columns.start
    size = width * (rows.stop - rows.start)
    rest = numbers % size
    return numbers // size, rows.start + rest // width, columns.start + rest % width


def input_size(size: tuple[int, int], patch: int, resize: str) -> tuple[int, int]:
    """Height and width of a frame as the encoder sees it: whole patches, at least one."""
    if resize == SHORT_480:
        short = min(size)
        size = tuple(480 if s == short else int(s * 480 / short) // 64 * 64 for s in size)
    return tuple(max(1, side // patch) * patch for side in size)


def labels_on_grid(labels: Tensor, numbers: Tensor, grid: tuple[int, int], resize: str) -> Tensor:
    """A label map (H, W) as shares (K, h, w) of the labels ``numbers`` (K,)."""
    maps = (labels == numbers[:, None, None]).float()[None]
    if resize == SHORT_480:
        return F.interpolate(maps, grid, mode="nearest-exact")[0]
    return F.interpolate(maps, grid, mode="bilinear", align_corners=False)[0]


def label_map(
    labels: Tensor,
    numbers: Tensor,
    shown: tuple[int, int],
    size: tuple[int, int],
    recipe: Recipe,
) -> Tensor:
    """Shares (K, h, w) of the labels ``numbers`` as a label map (H, W) of the frame's ``size``.

    ``shown`` is the size that the encoder saw.
    """
    between = shown if recipe.resize == SHORT_480 else size
    maps = F.interpolate(labels[None], between, mode="bilinear", align_corners=False)[0]
    if recipe.stretch:
        low, high = maps.amin((1, 2), keepdim=True), maps.amax((1, 2), keepdim=True)
        maps = torch.where(high > low, (maps - low) / (high - low), maps)
    best = numbers[maps.argmax(dim=0)]
    if between == size:
        return best
    return F.interpolate(best[None, None].float(), size, mode="nearest-exact")[0, 0].to(best)
