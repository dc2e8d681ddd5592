"""IMA: prototypes, their graph, mutual refinement, each against a direct calculation."""

import pytest
import torch
from torch import nn

from models.dpa.inter_modality_attention import (
    InterModalityAttention,
    MessagePassing,
    PrototypeAttention,
    PrototypeCorrelation,
    nearest_prototypes,
)


def normalised(x, norm):
    """Batch normalisation with running statistics, then ReLU, of one vector after the other."""
    scale = norm.weight / (norm.running_var + norm.eps).sqrt()
    return ((x - norm.running_mean) * scale + norm.bias).clamp(min=0)


def with_statistics(module):
    """Random running statistics and weights, as after training."""
    for layer in module.modules():
        if isinstance(layer, nn.BatchNorm1d | nn.BatchNorm2d):
            nn.init.normal_(layer.weight, 1, 0.2)
            nn.init.normal_(layer.bias, 0, 0.2)
            nn.init.normal_(layer.running_mean, 0, 0.2)
            nn.init.uniform_(layer.running_var, 0.5, 2)
    return module.eval()


def attended(module, query, memory):
    """The attention of one vector ``query`` over rows of ``memory``, term by term."""
    q = module.to_query(normalised(query, module.norm))
    rows = normalised(memory, module.norm_memory)
    scores = torch.stack([q @ module.to_key(row) for row in rows]) / len(q) ** 0.5
    weights = scores.exp() / scores.exp().sum()
    return query + module.to_output((weights[:, None] * module.to_value(rows)).sum(dim=0))


def messages(module, prototypes):
    """One round of message passing for (P, C), receiver by receiver."""
    result = []
    for receiver in prototypes:
        distances = (prototypes - receiver).square().sum(dim=1)
        senders = prototypes[distances.argsort()[: module.neighbours]]
        sent = []
        for sender in senders:
            x = module.to_message.weight @ torch.cat([sender - receiver, receiver])
            scale = module.norm.weight / (module.norm.running_var + module.norm.eps).sqrt()
            x = (x - module.norm.running_mean) * scale + module.norm.bias
            sent.append(torch.where(x > 0, x, 0.2 * x))
        result.append(torch.stack(sent).max(dim=0).values)
    return torch.stack(result)


def test_the_nearest_prototypes_are_those_at_the_least_distance():
    torch.manual_seed(0)
    prototypes = torch.randn(2, 12, 5)
    found = nearest_prototypes(prototypes, 4)
    expected = torch.cdist(prototypes, prototypes).argsort(dim=2)[:, :, :4]
    assert torch.equal(found.sort(dim=2).values, expected.sort(dim=2).values)
    assert torch.equal(found[:, :, 0], torch.arange(12).expand(2, 12))


def test_prototypes_that_lie_close_together_are_told_apart():
    """Also where mixed precision would round them to the same."""
    torch.manual_seed(7)
    prototypes = 100 + 1e-2 * torch.randn(1, 12, 5)
    exact = torch.cdist(prototypes.double(), prototypes.double()).argsort(dim=2)[:, :, :4]
    with torch.autocast("cpu", torch.bfloat16):
        found = nearest_prototypes(prototypes, 4)
    assert torch.equal(found.sort(dim=2).values, exact.sort(dim=2).values)


def test_a_round_of_messages_is_the_strongest_of_the_nearest():
    torch.manual_seed(1)
    module = with_statistics(MessagePassing(6, neighbours=3))
    prototypes = torch.randn(2, 8, 6)
    expected = torch.stack([messages(module, one) for one in prototypes])
    torch.testing.assert_close(module(prototypes), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("itself", [True, False])
def test_prototype_attention_is_a_softmax_over_the_memory(itself):
    torch.manual_seed(2)
    module = with_statistics(PrototypeAttention(6, itself))
    x, other = torch.randn(2, 4, 6), torch.randn(2, 7, 6)
    memory = x if itself else other
    expected = torch.stack(
        [torch.stack([attended(module, q, m) for q in rows]) for rows, m in zip(x, memory)]
    )
    found = module(x) if itself else module(x, other)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


def test_each_modality_has_statistics_of_its_own():
    """So that what is normalised in evaluation is what was normalised in training."""
    torch.manual_seed(6)
    module = PrototypeAttention(6, itself=False).train()
    x, other = torch.randn(4, 20, 6) + 3, 5 * torch.randn(4, 30, 6) - 1
    for _ in range(100):
        module(x, other)
    for norm, seen in ((module.norm, x), (module.norm_memory, other)):
        rows = seen.flatten(0, 1)
        torch.testing.assert_close(norm.running_mean, rows.mean(dim=0), rtol=1e-3, atol=1e-3)
        torch.testing.assert_close(norm.running_var, rows.var(dim=0), rtol=1e-3, atol=1e-3)


def test_a_correlation_map_is_made_of_refined_soft_region_prototypes():
    torch.manual_seed(3)
    module = with_statistics(PrototypeCorrelation(10, 6, neighbours=3, rounds=2))
    features = torch.randn(2, 10, 4, 5)
    found = module(features)
    assert found.shape == (2, 6, 4, 5)
    weight, bias = module.squeeze.weight[:, :, 0, 0], module.squeeze.bias
    for b in range(2):
        positions = features[b].flatten(1).T  # (20, 10)
        squeezed = positions @ weight.T + bias  # (20, 6)
        regions = squeezed.exp() / squeezed.exp().sum(dim=0)  # each channel over the positions
        prototypes = torch.stack([(regions[:, [c]] * squeezed).sum(dim=0) for c in range(6)])
        prototypes = torch.stack([attended(module.attention, p, prototypes) for p in prototypes])
        for one_round in module.messages:
            prototypes = messages(one_round, prototypes)
        for c in range(6):
            for position in range(20):
                cosine = torch.cosine_similarity(squeezed[position], prototypes[c], dim=0)
                torch.testing.assert_close(
                    found[b, c].flatten()[position], cosine, rtol=1e-4, atol=1e-5
                )


def test_modalities_refine_each_other_and_the_result_joins_the_features():
    torch.manual_seed(4)
    module = with_statistics(InterModalityAttention(10, 6, neighbours=3, rounds=1))
    features = torch.randn(2, 10, 3, 4)
    own, other = torch.rand(2, 6, 3, 4) * 2 - 1, torch.rand(2, 6, 3, 4) * 2 - 1
    fused, refined = module(features, own, other)
    for b in range(2):
        memory = other[b].flatten(1).T
        rows = [attended(module.mutual, position, memory) for position in own[b].flatten(1).T]
        expected = torch.stack(rows).T.unflatten(1, (3, 4))
        torch.testing.assert_close(refined[b], expected, rtol=1e-4, atol=1e-5)
    both = torch.cat([features, refined], dim=1)
    convolution, norm, _ = module.fuse
    mixed = torch.einsum("oc,bchw->bhwo", convolution.weight[:, :, 0, 0], both)
    torch.testing.assert_close(
        fused, normalised(mixed, norm).permute(0, 3, 1, 2), rtol=1e-4, atol=1e-5
    )


def test_without_another_modality_the_own_map_joins_the_features():
    torch.manual_seed(5)
    module = with_statistics(InterModalityAttention(10, 6, 3, 1, mutual=False))
    features, own = torch.randn(2, 10, 3, 4), torch.rand(2, 6, 3, 4)
    fused, refined = module(features, own)
    assert torch.equal(refined, own)
    torch.testing.assert_close(fused, module.fuse(torch.cat([features, own], dim=1)))
    names = set(dict(module.named_parameters()))
    whole = set(dict(InterModalityAttention(10, 6, 3, 1).named_parameters()))
    assert names < whole and all(name.startswith("mutual.") for name in whole - names)
