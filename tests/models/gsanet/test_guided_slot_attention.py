"""Guided slot attention: KNN filtering against brute force, iterations, and both updates."""

import math

import pytest
import torch

from models.gsanet.fat import FeatureAggregationTransformer
from models.gsanet.guided_slot_attention import (
    GuidedSlotAttention,
    nearest_features,
)
from models.gsanet.plain_transformer import PlainTransformer
from models.ops import gather_features


def brute_force_neighbours(slots, features, count):
    """For every image and slot, the set of the ``count`` features with the largest cosine."""
    result = []
    for image_slots, image_features in zip(slots.tolist(), features.tolist()):
        result.append([])
        for slot in image_slots:
            cosines = []
            for index, feature in enumerate(image_features):
                product = sum(a * b for a, b in zip(slot, feature))
                lengths = math.hypot(*slot) * math.hypot(*feature)
                cosines.append((product / lengths, index))
            result[-1].append({index for _, index in sorted(cosines, reverse=True)[:count]})
    return result


def random_slots_and_features(seed, num_features=9, channels=8):
    generator = torch.Generator().manual_seed(seed)
    slots = torch.randn(2, 2, channels, generator=generator)
    # Features of very different lengths: the nearest by cosine are not those by distance.
    lengths = torch.rand(2, num_features, 1, generator=generator) * 5 + 0.1
    return slots, lengths * torch.randn(2, num_features, channels, generator=generator)


def attention(fat, seed=0, **arguments):
    torch.manual_seed(seed)
    return GuidedSlotAttention(8, aggregation_transformer=fat, **arguments)


@pytest.mark.parametrize("count", [1, 4, 9])
def test_neighbours_are_those_of_brute_force(count):
    for seed in range(5):
        slots, features = random_slots_and_features(seed)
        indices = nearest_features(slots, features, count)
        assert indices.shape == (2, 2, count)
        found = [[set(row) for row in image] for image in indices.tolist()]
        assert found == brute_force_neighbours(slots, features, count)


def test_gathered_features_are_those_at_the_indices():
    _, features = random_slots_and_features(0)
    indices = torch.randint(0, 9, (2, 3, 4), generator=torch.Generator().manual_seed(0))
    gathered = gather_features(features, indices)
    assert gathered.shape == (2, 3, 4, 8)
    for b in range(2):
        for s in range(3):
            for n in range(4):
                assert torch.equal(gathered[b, s, n], features[b, indices[b, s, n]])


def test_with_fat_the_neighbours_of_each_slot_are_a_group():
    module = attention(fat=True, num_neighbours=4, num_iterations=1)
    assert isinstance(module.update, FeatureAggregationTransformer)
    slots, features = random_slots_and_features(1)
    groups = torch.stack(
        [
            torch.stack([features[b, sorted(neighbours)] for neighbours in image])
            for b, image in enumerate(brute_force_neighbours(slots, features, 4))
        ]
    )
    torch.testing.assert_close(module(slots, features), module.update(slots, groups))


def test_with_the_plain_transformer_each_slot_may_use_its_neighbours_alone():
    module = attention(fat=False, num_neighbours=4, num_iterations=1)
    assert isinstance(module.update, PlainTransformer)
    slots, features = random_slots_and_features(2)
    keep = torch.zeros(2, 2, 9, dtype=torch.bool)
    for b, image in enumerate(brute_force_neighbours(slots, features, 4)):
        for s, neighbours in enumerate(image):
            keep[b, s, sorted(neighbours)] = True
    assert not keep.all()
    expected = module.update.attention(slots, features, keep)
    torch.testing.assert_close(module(slots, features), expected)


@pytest.mark.parametrize("fat", [True, False])
def test_features_that_no_slot_has_near_do_not_matter(fat):
    module = attention(fat, num_neighbours=2, num_iterations=1)
    slots, features = random_slots_and_features(3)
    for b, image in enumerate(brute_force_neighbours(slots, features, 2)):
        used = sorted(set.union(*image))
        assert len(used) < features.shape[1]
        one = slice(b, b + 1)
        torch.testing.assert_close(
            module(slots[one], features[one, used]), module(slots[one], features[one])
        )


@pytest.mark.parametrize("fat", [True, False])
def test_without_knn_filtering_every_slot_uses_all_features(fat):
    slots, features = random_slots_and_features(4)
    unfiltered = attention(fat, num_neighbours=2, knn_filtering=False)
    everything = attention(fat, num_neighbours=9)
    filtered = attention(fat, num_neighbours=2)
    result = unfiltered(slots, features)
    torch.testing.assert_close(result, everything(slots, features))
    assert not torch.allclose(result, filtered(slots, features), atol=1e-4)
    if fat:
        groups = features[:, None].expand(-1, 2, -1, -1)
        unfiltered.num_iterations = 1
        torch.testing.assert_close(unfiltered(slots, features), unfiltered.update(slots, groups))


@pytest.mark.parametrize("fat", [True, False])
def test_iterations_repeat_filtering_and_update_with_the_same_weights(fat):
    slots, features = random_slots_and_features(5)
    module = attention(fat, num_neighbours=3, num_iterations=1)
    expected = [slots]
    for _ in range(4):
        expected.append(module(expected[-1], features))
    for iterations, result in enumerate(expected):
        module.num_iterations = iterations
        torch.testing.assert_close(module(slots, features), result)
    assert not torch.allclose(expected[3], expected[2], atol=1e-4)


@pytest.mark.parametrize("fat", [True, False])
def test_order_of_the_features_does_not_matter_and_that_of_the_slots_is_kept(fat):
    slots, features = random_slots_and_features(6)
    module = attention(fat, num_neighbours=4)
    refined = module(slots, features)
    assert refined.shape == slots.shape
    shuffled = features[:, [8, 3, 0, 5, 1, 7, 2, 6, 4]]
    torch.testing.assert_close(module(slots, shuffled), refined, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(
        module(slots[:, [1, 0]], features), refined[:, [1, 0]], rtol=1e-4, atol=1e-5
    )


def test_defaults_are_the_papers():
    module = GuidedSlotAttention(8)
    assert (module.num_neighbours, module.num_iterations) == (16, 3)
    assert module.knn_filtering and isinstance(module.update, FeatureAggregationTransformer)
