"""Feature aggregation transformer, against loops over heads, queries and keys in float64."""

import math

import pytest
import torch
from torch import nn

from models.blocks import feed_forward
from models.gsanet.fat import AttentionBlock, AttentivePooling, FeatureAggregationTransformer
from tests.models.small_networks import normalised, randomise


def projected(linear, x):
    rows = linear.weight.tolist()
    shifts = [0.0] * len(rows) if linear.bias is None else linear.bias.tolist()
    return [sum(w * v for w, v in zip(row, x)) + shift for row, shift in zip(rows, shifts)]


def perceptron(layers, x):
    norm, widen, _, narrow = layers
    hidden = projected(widen, normalised(norm, x))
    return projected(narrow, [h * 0.5 * (1 + math.erf(h / math.sqrt(2))) for h in hidden])


def attention(block, residual, query, memory):
    """FFN(MHA(Q, K, V)) for lists of features; also V."""
    queries = [projected(block.to_query, normalised(block.norm_query, x)) for x in query]
    memory = [normalised(block.norm_memory, x) for x in memory]
    keys = [projected(block.to_key, x) for x in memory]
    values = [projected(block.to_value, x) for x in memory]
    channels = len(residual[0])
    width = channels // block.heads
    result = []
    for start, q in zip(residual, queries):
        attended = []
        for head in range(block.heads):
            part = range(head * width, (head + 1) * width)
            scores = [sum(q[c] * k[c] for c in part) / math.sqrt(width) for k in keys]
            total = sum(math.exp(score) for score in scores)
            for c in part:
                attended.append(
                    sum(math.exp(score) / total * v[c] for score, v in zip(scores, values))
                )
        x = [a + b for a, b in zip(start, projected(block.to_output, attended))]
        result.append([a + b for a, b in zip(x, perceptron(block.feed_forward, x))])
    return result, values


def pooled(pool, features):
    """Attentive pooling of a list of features."""
    direction = pool.score.weight[0].tolist()
    scores = [sum(w * v for w, v in zip(direction, x)) for x in features]
    total = sum(math.exp(score) for score in scores)
    return [
        sum(math.exp(score) / total * x[c] for score, x in zip(scores, features))
        for c in range(len(direction))
    ]


@pytest.mark.parametrize("heads", [1, 3])
def test_attention_block_is_multi_head_attention_and_a_perceptron(heads):
    block = randomise(AttentionBlock(6, heads))
    query, memory = torch.randn(2, 4, 6).double(), torch.randn(2, 5, 6).double()
    residual = torch.randn(2, 4, 6).double()
    result, value = block(residual, query, memory)
    for b in range(2):
        expected, values = attention(
            block, residual[b].tolist(), query[b].tolist(), memory[b].tolist()
        )
        torch.testing.assert_close(result[b], torch.tensor(expected).double())
        torch.testing.assert_close(value[b], torch.tensor(values).double())


def test_aggregated_features_follow_section_3_4():
    """Pooling to intra-frame features, (a) global to local, (b) local to global from P_LV."""
    torch.manual_seed(1)
    fat = randomise(FeatureAggregationTransformer(8, heads=2))
    local = torch.randn(2, 5, 8).double()  # P_L
    groups = torch.randn(2, 3, 4, 8).double()  # P_G
    aggregated = fat(local, groups)
    assert aggregated.shape == (2, 5, 8)
    for b in range(2):
        intra = [pooled(fat.pool, frame) for frame in groups[b].tolist()]
        global_local, local_value = attention(fat.global_to_local, intra, intra, local[b].tolist())
        expected, _ = attention(fat.local_to_global, local[b].tolist(), local_value, global_local)
        torch.testing.assert_close(aggregated[b], torch.tensor(expected).double())


def test_order_of_the_groups_and_of_the_features_in_them_does_not_matter():
    torch.manual_seed(2)
    fat = FeatureAggregationTransformer(8).double()
    local, groups = torch.randn(2, 5, 8).double(), torch.randn(2, 4, 6, 8).double()
    aggregated = fat(local, groups)
    torch.testing.assert_close(fat(local, groups[:, [2, 0, 3, 1]]), aggregated)
    torch.testing.assert_close(fat(local, groups[:, :, [5, 1, 0, 3, 2, 4]]), aggregated)


def test_order_of_the_local_features_is_kept():
    torch.manual_seed(3)
    fat = FeatureAggregationTransformer(8).double()
    local, groups = torch.randn(2, 5, 8).double(), torch.randn(2, 4, 6, 8).double()
    order = [4, 2, 0, 1, 3]
    torch.testing.assert_close(fat(local[:, order], groups), fat(local, groups)[:, order])


def test_any_number_of_groups_and_features_will_do():
    fat = FeatureAggregationTransformer(8)
    for count, group_size, local_count in ((1, 1, 1), (7, 2, 3)):
        result = fat(torch.randn(2, local_count, 8), torch.randn(2, count, group_size, 8))
        assert result.shape == (2, local_count, 8)


def test_aggregated_features_depend_on_local_and_on_global_features():
    torch.manual_seed(4)
    fat = FeatureAggregationTransformer(8)
    local = torch.randn(1, 5, 8, requires_grad=True)
    groups = torch.randn(1, 3, 4, 8, requires_grad=True)
    fat(local, groups).square().sum().backward()
    assert (local.grad.abs().amax(dim=2) > 0).all()
    assert (groups.grad.abs().amax(dim=3) > 0).all()


def test_feed_forward_is_a_perceptron_over_normalised_features():
    layers = randomise(feed_forward(6))
    x = torch.randn(3, 2, 6).double()
    result = layers(x)
    for i in range(3):
        for j in range(2):
            expected = perceptron(layers, x[i, j].tolist())
            torch.testing.assert_close(result[i, j], torch.tensor(expected).double())
    assert sum(isinstance(layer, nn.Linear) for layer in layers) == 2


def test_attentive_pooling_weighs_features_by_the_softmax_of_their_scores():
    torch.manual_seed(2)
    pool = AttentivePooling(4).double()
    features = torch.randn(2, 3, 5, 4, dtype=torch.float64)
    pooled = pool(features)
    assert pooled.shape == (2, 3, 4)
    direction = pool.score.weight[0].tolist()
    for b in range(2):
        for g in range(3):
            scores = [
                sum(w * features[b, g, n, c].item() for c, w in enumerate(direction))
                for n in range(5)
            ]
            total = sum(math.exp(score) for score in scores)
            for c in range(4):
                expected = sum(
                    math.exp(score) / total * features[b, g, n, c].item()
                    for n, score in enumerate(scores)
                )
                assert math.isclose(pooled[b, g, c].item(), expected, rel_tol=1e-9, abs_tol=1e-12)


def test_attentive_pooling_does_not_depend_on_the_order_of_the_features():
    torch.manual_seed(3)
    pool = AttentivePooling(6).double()
    features = torch.randn(2, 7, 6, dtype=torch.float64)
    order = torch.tensor([3, 1, 6, 0, 5, 2, 4])
    torch.testing.assert_close(pool(features[:, order]), pool(features))
