"""Both stages of slots: weights, gradients, regions, and the soft partition."""

import pytest
import torch

from models.slot_attention import compete, input_weights
from models.smtc.instance_slots import InstanceSlots, regions
from models.smtc.slot_network import SlotNetwork

C, S, P, N = 8, 4, 3, 6


def network(**arguments):
    torch.manual_seed(0)
    return SlotNetwork(C, S, P, grid=3, **arguments).double()


def keys_and_values(batch=2):
    return torch.randn(batch, N, C).double(), torch.randn(batch, N, C).double()


def test_slots_compete_for_inputs_and_average_those_they_win():
    logits = torch.tensor([[[2.0, 0, -1], [0, 1, 3]]], dtype=torch.float64)
    attention = compete(logits)
    first = torch.tensor([0.880797, 0.268941, 0.017986], dtype=torch.float64)
    torch.testing.assert_close(attention[0, 0], first, rtol=0, atol=1e-6)
    torch.testing.assert_close(attention[0, 1], 1 - first, rtol=0, atol=1e-6)
    expected = torch.tensor(
        [[0.754285, 0.230312, 0.015403], [0.065057, 0.398989, 0.535953]], dtype=torch.float64
    )
    weights = input_weights(attention, floor=1e-8)
    torch.testing.assert_close(weights[0], expected, rtol=0, atol=1e-6)


def test_the_network_has_the_parameters_of_the_release():
    assert sum(p.numel() for p in SlotNetwork(384, 16, 4, 16).parameters()) == 1_443_456


def test_a_stage_1_round_is_that_of_the_paper():
    """One round written out: no gated unit, a perceptron with one ReLU."""
    model = network()
    a, mean = model.attention, model.semantic.mean
    keys, values = keys_and_values(1)
    slots, logits = model.semantic(a, keys, values, rounds=1)
    queries = a.to_query(torch.nn.functional.layer_norm(mean, (C,), *a.norm_queries.parameters()))
    expected = queries @ keys[0].T / C**0.5
    torch.testing.assert_close(logits[0], expected)
    weights = expected.softmax(dim=0) + 1e-8
    updated = mean + weights / weights.sum(dim=1, keepdim=True) @ values[0]
    norm, first, _, second = a.feed_forward
    updated = updated + second(first(norm(updated)).relu())
    torch.testing.assert_close(slots[0], updated)


@pytest.mark.parametrize("rounds", [1, 3, 5])
def test_only_the_last_round_has_a_gradient(rounds):
    """It is that of one round that starts where the rounds before ended."""
    model, weight = network(), torch.randn(S, C).double()
    keys, values = keys_and_values()
    values.requires_grad_()
    slots, _ = model.semantic(model.attention, keys, values, rounds)
    (slots * weight).sum().backward()
    found = model.semantic.mean.grad.clone(), values.grad.clone()
    with torch.no_grad():
        start = model.semantic.mean.expand(2, -1, -1)
        for _ in range(rounds - 1):
            start, _ = model.attention.step(start, keys, values)
    start = start.detach().clone().requires_grad_()
    values.grad = None
    again, _ = model.attention.step(start, keys, values)
    (again * weight).sum().backward()
    torch.testing.assert_close(again, slots)
    torch.testing.assert_close(found[0], start.grad.sum(dim=0))
    torch.testing.assert_close(found[1], values.grad)


def instances_of(model, keys, values, logits, start, rounds=1):
    return model.instance(model.attention, start, logits, keys, values, rounds)


def test_a_region_of_one_token_moves_all_instances_by_its_value():
    model = network(region="logit")
    keys, values = keys_and_values()
    logits = torch.zeros(2, S, N).double()
    logits[:, 1, 4] = 0.31
    start = torch.randn(2, S, P, C).double()
    found, _ = instances_of(model, keys, values, logits, start)
    feed_forward = model.attention.feed_forward
    moved = start[:, 1] + values[:, 4, None]
    torch.testing.assert_close(found[:, 1], moved + feed_forward(moved))
    others = start[:, [0, 2, 3]]  # their regions are empty
    torch.testing.assert_close(found[:, [0, 2, 3]], others + feed_forward(others))


def test_instances_compete_with_those_of_their_own_semantic_alone():
    model = network()
    keys, values = keys_and_values()
    logits, start = torch.randn(2, S, N).double(), torch.randn(2, S, P, C).double()
    found, instance_logits = instances_of(model, keys, values, logits, start, rounds=2)
    assert found.shape == (2, S, P, C) and instance_logits.shape == (2, S, P, N)
    region = logits.softmax(dim=1)
    for k in range(S):
        slots = start[:, k]
        for _ in range(2):
            queries = model.attention.to_query(model.attention.norm_queries(slots))
            seen = queries @ keys.transpose(1, 2) / C**0.5
            weights = (seen.softmax(dim=1) + 1e-8) * region[:, k, None]
            slots = slots + weights / weights.sum(dim=2, keepdim=True) @ values
            slots = slots + model.attention.feed_forward(slots)
        torch.testing.assert_close(found[:, k], slots)
        torch.testing.assert_close(instance_logits[:, k], seen)


def test_the_three_regions_differ_where_they_must():
    logits = torch.tensor([[[2.0, 0.4], [0.4, 0.4], [0.2, 0.2], [0.2, 0.4]]])
    assert regions(logits, "logit").tolist() == [[[1, 1], [1, 1], [0, 0], [0, 1]]]
    assert regions(logits, "probability").tolist() == [[[1, 0], [0, 0], [0, 0], [0, 0]]]
    torch.testing.assert_close(regions(logits, "soft"), logits.softmax(dim=1))


@pytest.mark.parametrize("reparameterised", [True, False])
def test_drawn_instances_teach_the_gaussians(reparameterised):
    torch.manual_seed(0)
    module = InstanceSlots(S, C, "soft", reparameterised).double()
    bound = (6 / ((S + 1) * C)) ** 0.5
    assert bound / 2 < module.log_deviation.abs().max() <= bound
    mean, noise = torch.randn(S, C).double().requires_grad_(), torch.randn(2, S, P, C).double()
    drawn = module.draw(mean, noise)
    scaled = module.log_deviation.exp()[:, None] * noise
    torch.testing.assert_close(drawn, mean[:, None] + scaled)
    assert drawn.requires_grad == reparameterised
    if reparameterised:
        drawn.sum().backward()
        torch.testing.assert_close(mean.grad, torch.full((S, C), 2.0 * P).double())
        torch.testing.assert_close(module.log_deviation.grad, scaled.sum(dim=(0, 2)))


@pytest.mark.parametrize("region", ["soft", "probability", "logit"])
def test_instance_maps_share_each_token_and_scores_are_cosines(region):
    model = network(region=region)
    keys = torch.randn(3, N, C).double()
    slots = model(keys, keys.roll(1, 0), (2, 3), rounds=3)
    assert slots.instance_maps.shape == (3, S, P, N)
    torch.testing.assert_close(slots.instance_maps.sum(dim=(1, 2)), torch.ones(3, N).double())
    torch.testing.assert_close(slots.instance_maps.sum(dim=2), slots.maps)
    assert slots.scores.abs().max() <= 1
    k, p = 2, 1
    a, b = slots.semantic[0, k], slots.instances[0, k, p]
    torch.testing.assert_close(slots.scores[0, k, p], a @ b / (a.norm() * b.norm()))
    torch.testing.assert_close(slots.features.norm(dim=3), torch.ones(3, S, P).double())


def test_noise_is_drawn_for_each_frame_or_given():
    model = network()
    keys = torch.randn(1, N, C).double().expand(2, -1, -1)
    one, other = model(keys, keys, (2, 3), rounds=1).instances
    assert not torch.allclose(one, other)
    noise = torch.randn(1, S, P, C).double().expand(2, -1, -1, -1)
    one, other = model(keys, keys, (2, 3), rounds=1, noise=noise).instances
    torch.testing.assert_close(one, other)
