"""Label propagation against a dense reference, and by hand."""

import gc
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

from models import propagation
from models.propagation import RECIPES, Recipe, input_size, label_map, labels_on_grid, propagate

SMALL = {
    "smtc_a": replace(RECIPES["smtc_a"], context=4, radius=2.5, top_k=5),
    "smtc_b": replace(RECIPES["smtc_b"], context=3, radius=6, top_k=9),
    "dino": replace(RECIPES["dino"], context=2, radius=2),
    "no memory": Recipe(context=3, padded=False, memory=False, radius=3, top_k=4),
    "padded, no memory": Recipe(context=3, memory=False, radius=3, top_k=6),
    "padded, windowed memory": Recipe(context=5, window_on_memory=True, radius=2, top_k=8),
    "memory alone": Recipe(context=0, padded=False, top_k=3),
    "few tokens": Recipe(context=2, padded=False, radius=1, window_on_memory=True, top_k=20),
}


def video(frames=9, h=11, w=13, channels=6, labels=3, seed=0):
    generator = torch.Generator().manual_seed(seed)
    features = torch.randn(frames, channels, h, w, generator=generator, dtype=torch.float64)
    first = torch.rand(labels, h, w, generator=generator, dtype=torch.float64)
    return features, first / first.sum(0)


def dense(features, first, recipe):
    """Every frame's context with all its copies, compared at once."""
    frames, _, h, w = features.shape
    tokens = F.normalize(features, dim=1).flatten(2).transpose(1, 2)
    y, x = torch.meshgrid(torch.arange(h), torch.arange(w), indexing="ij")
    places = torch.stack([y, x], dim=-1).flatten(0, 1).double()
    if recipe.window == "square":
        window = torch.cdist(places, places, p=float("inf")) <= recipe.radius
    else:
        window = torch.cdist(places, places) < recipe.radius - 1e-9
    labels = [first.flatten(1).T]
    for t in range(1, frames):
        earlier = range(t - recipe.context, t)
        if recipe.padded:
            queue = [max(0, number) for number in earlier]
        else:
            queue = [number for number in earlier if number >= (1 if recipe.memory else 0)]
        context = [(number, True) for number in queue]
        context += [(0, recipe.window_on_memory)] * recipe.memory
        cosines = [
            (tokens[t] @ tokens[number].T).masked_fill(limited & ~window, -1e10)
            for number, limited in context
        ]
        cosines = torch.cat(cosines, dim=1)
        values, where = cosines.topk(min(recipe.top_k, cosines.shape[1]), dim=1)
        weights = (values / recipe.temperature).softmax(dim=1)
        table = torch.cat([labels[number] for number, _ in context])
        labels.append((weights[..., None] * table[where]).sum(dim=1))
    return torch.stack([one.T.unflatten(1, (h, w)) for one in labels])


@pytest.mark.parametrize("budget", [2**24, 500])
@pytest.mark.parametrize("name", SMALL)
def test_streaming_equals_a_dense_reference(name, budget, monkeypatch):
    monkeypatch.setattr(propagation, "_PRODUCTS", budget)  # few maps at a time
    features, first = video()
    found = torch.stack(list(propagate(iter(features), first, SMALL[name])))
    torch.testing.assert_close(found, dense(features, first, SMALL[name]), atol=1e-6, rtol=0)


def test_tiles_of_any_size_give_the_same(monkeypatch):
    features, first = video()
    recipe = replace(SMALL["smtc_a"], radius=4)
    expected = dense(features, first, recipe)
    for side in (1, 3, 100):
        monkeypatch.setattr(propagation, "_TILE", side)
        torch.testing.assert_close(torch.stack(list(propagate(features, first, recipe))), expected)


def one_hot(frames):
    """Features of a grid of numbers: tokens are alike if their numbers are equal."""
    numbers = torch.tensor(frames)
    return F.one_hot(numbers, int(numbers.max()) + 1).permute(0, 3, 1, 2).double()


def test_a_disk_is_strict_and_a_square_is_not():
    # The token 1 is at a distance of exactly 2 in the first frame, the nearest others are 0.
    features = one_hot([[[1, 0, 0, 0, 0]], [[0, 0, 1, 0, 0]]])
    first = torch.tensor([[[0.0, 1, 1, 1, 1]], [[1.0, 0, 0, 0, 0]]]).double()
    alone = Recipe(context=1, padded=False, memory=False, radius=2, top_k=1)
    (_, disk), (_, wider), (_, square) = (
        propagate(features, first, recipe)
        for recipe in (alone, replace(alone, radius=2.01), replace(alone, window="square"))
    )
    assert disk[1].flatten()[2] == 0
    assert wider[1].flatten()[2] == 1
    assert square[1].flatten()[2] == 1


def test_the_window_of_a_grid_by_hand():
    centre = torch.zeros(5, 5, 4, dtype=torch.float64)
    for radius, window, count in ((2, "disk", 9), (2.3, "disk", 21), (2, "square", 25)):
        recipe = Recipe(radius=radius, top_k=25)
        values, places = propagation.nearest(centre, centre[None], recipe, window)
        kept = sorted(places[12][values[12] > -1].tolist())
        assert len(kept) == count
    assert kept == list(range(25))
    values, places = propagation.nearest(centre, centre[None], replace(recipe, radius=2), "disk")
    # Row 2, column 2: itself, its four neighbours, and the four diagonal ones (distance 1.41).
    assert sorted(places[12][values[12] > -1].tolist()) == [6, 7, 8, 11, 12, 13, 16, 17, 18]


def test_the_second_frame_takes_the_label_of_the_best_key_alone():
    features, _ = video(frames=2)
    first = torch.eye(143, dtype=torch.float64).unflatten(1, (11, 13))  # a label for each token
    recipe = Recipe(context=20, radius=3, top_k=21)
    (_, second) = propagate(features, first, recipe)
    a, b = F.normalize(features, dim=1).flatten(2)
    best = (b.T @ a).argmax(dim=1)
    y, x = torch.arange(143) // 13, torch.arange(143) % 13
    near = (y - y[best]) ** 2 + (x - x[best]) ** 2 < 9
    assert 0 < near.sum() < 143
    # Inside the window the best key has 21 copies, which fill the 21 places.
    got = second.flatten(1).T
    torch.testing.assert_close(got[near], torch.eye(143, dtype=torch.float64)[best[near]])
    # Elsewhere it is found as long memory, once.
    assert (got[~near].gather(1, best[~near, None]) > 0).all()
    # Only one place: the best key is taken wherever it is.
    (_, second) = propagate(features, first, replace(recipe, top_k=1))
    assert second.flatten(1).argmax(dim=0).tolist() == best.tolist()


def test_a_token_that_jumps_is_found_in_the_first_frame_but_not_in_the_one_before():
    before = [[1, 0, 0, 0, 0, 0, 0, 0, 0]]
    features = one_hot([before, before, [before[0][::-1]]])
    first = features[0, [0, 1]]  # 0 background, 1 the token
    recipe = Recipe(context=1, padded=True, radius=3, top_k=1)
    *_, found = propagate(features, first, recipe)
    assert found[1].flatten().tolist() == [0] * 8 + [1]
    *_, missed = propagate(features, first, replace(recipe, memory=False))
    assert missed[1].sum() == 0
    *_, limited = propagate(features, first, replace(recipe, window_on_memory=True))
    assert limited[1].sum() == 0


def test_without_any_context_there_is_an_error():
    features, first = video(frames=2)
    with pytest.raises(ValueError, match="without context"):
        list(propagate(features, first, Recipe(context=0, memory=False)))


def test_memory_does_not_grow_with_the_video():
    def count():
        gc.collect()
        return sum(x.numel() for x in gc.get_objects() if type(x) is torch.Tensor)

    features, first = video(frames=2)
    frames = (features[t % 2] for t in range(60))
    counts = {}
    for number, _ in enumerate(propagate(frames, first, SMALL["smtc_a"])):
        if number in (10, 50):
            counts[number] = count()
    assert counts[50] == counts[10] > 0


@pytest.mark.parametrize(
    ("size", "patch", "floor", "short"),
    [
        ((480, 854), 16, (480, 848), (480, 832)),
        ((854, 480), 16, (848, 480), (832, 480)),
        ((481, 855), 16, (480, 848), (480, 832)),
        ((480, 854), 8, (480, 848), (480, 832)),
        ((720, 1280), 16, (720, 1280), (480, 832)),
        ((10, 40), 16, (16, 32), (480, 1920)),
        ((240, 240), 16, (240, 240), (480, 480)),
    ],
)
def test_frames_become_whole_patches(size, patch, floor, short):
    assert input_size(size, patch, "floor") == floor
    assert input_size(size, patch, "short_480") == short


@pytest.mark.parametrize("size", [(480, 854), (854, 480), (481, 855)])
@pytest.mark.parametrize("name", ["smtc_a", "smtc_b", "dino"])
def test_labels_keep_their_place_at_every_border(name, size):
    recipe = RECIPES[name]
    labels = torch.zeros(size, dtype=torch.uint8)
    labels[-size[0] // 5 :, -size[1] // 5 :] = 7  # an object in the last corner
    labels[:, : size[1] // 5] = 2
    numbers = torch.tensor([0, 2, 7], dtype=torch.uint8)
    shown = input_size(size, 16, recipe.resize)
    grid = tuple(side // (recipe.stride or 16) for side in shown)
    maps = labels_on_grid(labels, numbers, grid, recipe.resize)
    torch.testing.assert_close(maps.sum(0), torch.ones(grid))
    back = label_map(maps, numbers, shown, size, recipe)
    assert back.shape == size and back.dtype == torch.uint8
    for number in (0, 2, 7):
        same, either = (back == number) & (labels == number), (back == number) | (labels == number)
        assert same.sum() / either.sum() > 0.94
    assert back[-1, -1] == 7 and (back[:, 0] == 2).all()


def test_stretched_maps_decide_by_their_own_range():
    maps = torch.tensor([[[0.9, 0.6]], [[0.1, 0.4]]])  # the second label's best place is the right
    numbers, size = torch.tensor([0, 3], dtype=torch.uint8), (1, 2)
    as_they_are = label_map(maps, numbers, size, size, Recipe())
    assert as_they_are.tolist() == [[0, 0]]
    stretched = label_map(maps, numbers, size, size, Recipe(stretch=True))
    assert stretched.tolist() == [[0, 3]]
    gone = torch.tensor([[[1.0, 1.0]], [[0.0, 0.0]]])  # a label that has vanished
    assert label_map(gone, numbers, size, size, Recipe(stretch=True)).tolist() == [[0, 0]]
