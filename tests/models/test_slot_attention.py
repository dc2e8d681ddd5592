"""Slot attention, against Algorithm 1 in loops and float64."""

import math

import pytest
import torch

from models.slot_attention import SlotAttention
from tests.models.small_networks import normalised, randomise


def sigmoid(x):
    return 1 / (1 + math.exp(-x))


def times(matrix, x):
    return [sum(w * v for w, v in zip(row, x)) for row in matrix.tolist()]


def plus(a, b):
    return [x + y for x, y in zip(a, b)]


def gru(cell, update, state):
    """Cho et al.'s gated recurrent unit, gates in torch's order: reset, update, new."""
    channels = len(state)
    from_input = plus(times(cell.weight_ih, update), cell.bias_ih.tolist())
    from_state = plus(times(cell.weight_hh, state), cell.bias_hh.tolist())
    result = []
    for c in range(channels):
        reset = sigmoid(from_input[c] + from_state[c])
        keep = sigmoid(from_input[channels + c] + from_state[channels + c])
        new = math.tanh(from_input[2 * channels + c] + reset * from_state[2 * channels + c])
        result.append((1 - keep) * new + keep * state[c])
    return result


def perceptron(layers, x):
    norm, widen, _, narrow = layers
    hidden = plus(times(widen.weight, normalised(norm, x)), widen.bias.tolist())
    hidden = [h * 0.5 * (1 + math.erf(h / math.sqrt(2))) for h in hidden]
    return plus(times(narrow.weight, hidden), narrow.bias.tolist())


def slot_attention(module, queries, inputs, keep):
    """One round for lists of features; ``keep[s][k]`` says whether query s may use input k."""
    channels = len(queries[0])
    inputs = [normalised(module.norm_inputs, x) for x in inputs]
    keys = [times(module.to_key.weight, x) for x in inputs]
    values = [times(module.to_value.weight, x) for x in inputs]
    asked = [times(module.to_query.weight, normalised(module.norm_queries, x)) for x in queries]
    weights = [[0.0] * len(keys) for _ in queries]
    for k, key in enumerate(keys):
        scores = [sum(a * b for a, b in zip(q, key)) / math.sqrt(channels) for q in asked]
        total = sum(math.exp(score) for score in scores)  # the queries compete for this input
        for s, score in enumerate(scores):
            weights[s][k] = math.exp(score) / total if keep[s][k] else 0.0
    result = []
    for s, query in enumerate(queries):
        total = sum(weights[s])
        update = [
            sum(w / total * value[c] for w, value in zip(weights[s], values))
            for c in range(channels)
        ]
        updated = gru(module.gru, update, query)
        result.append(plus(updated, perceptron(module.feed_forward, updated)))
    return result


@pytest.mark.parametrize("masked", [False, True])
def test_one_update_is_a_round_of_slot_attention(masked):
    torch.manual_seed(1)
    module = randomise(SlotAttention(6))
    queries, inputs = torch.randn(2, 3, 6).double(), torch.randn(2, 5, 6).double()
    keep = torch.ones(2, 3, 5, dtype=torch.bool)
    if masked:
        keep = torch.rand(2, 3, 5) < 0.5
        keep[:, :, 0] = True
    result = module(queries, inputs, keep if masked else None)
    for b in range(2):
        expected = slot_attention(module, queries[b].tolist(), inputs[b].tolist(), keep[b].tolist())
        torch.testing.assert_close(result[b], torch.tensor(expected).double(), rtol=1e-6, atol=1e-7)


def test_order_of_the_inputs_does_not_matter_and_that_of_the_queries_is_kept():
    torch.manual_seed(2)
    module = SlotAttention(8)
    queries, inputs = torch.randn(2, 3, 8), torch.randn(2, 6, 8)
    result = module(queries, inputs)
    torch.testing.assert_close(module(queries, inputs[:, [5, 2, 0, 1, 4, 3]]), result)
    torch.testing.assert_close(module(queries[:, [2, 0, 1]], inputs), result[:, [2, 0, 1]])


def test_an_input_that_a_query_may_not_use_does_not_move_it():
    """With two queries: the forbidden input reaches the other one, but not this one."""
    torch.manual_seed(3)
    module = SlotAttention(8)
    queries, inputs = torch.randn(1, 2, 8), torch.randn(1, 4, 8)
    keep = torch.ones(1, 2, 4, dtype=torch.bool)
    keep[0, 0, 3] = False
    before = module(queries, inputs, keep)
    inputs[0, 3] = torch.randn(8)
    after = module(queries, inputs, keep)
    torch.testing.assert_close(after[0, 0], before[0, 0])
    assert not torch.allclose(after[0, 1], before[0, 1], atol=1e-4)


def test_a_query_that_may_use_nothing_stays_finite():
    module = SlotAttention(8)
    keep = torch.zeros(1, 2, 4, dtype=torch.bool)
    result = module(torch.randn(1, 2, 8), torch.randn(1, 4, 8), keep)
    assert result.isfinite().all()


def test_it_runs_under_mixed_precision():
    module = SlotAttention(8)
    queries, inputs = torch.randn(1, 2, 8), torch.randn(1, 4, 8)
    with torch.autocast("cpu", torch.bfloat16):
        mixed = module(queries, inputs)
    expected = module(queries, inputs)
    torch.testing.assert_close(mixed.float(), expected, rtol=0.05, atol=0.05)
