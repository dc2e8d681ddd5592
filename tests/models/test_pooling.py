"""GWAP and attentive pooling, against loops over pixels and features in float64."""

import math

import torch

from models.pooling import AttentivePooling, global_weighted_average_pooling


def test_gwap_is_the_weighted_mean_over_the_pixels():
    generator = torch.Generator().manual_seed(0)
    features = torch.randn(2, 3, 4, 5, generator=generator, dtype=torch.float64)
    masks = torch.rand(2, 4, 4, 5, generator=generator, dtype=torch.float64)
    pooled = global_weighted_average_pooling(features, masks)
    assert pooled.shape == (2, 4, 3)
    for b in range(2):
        for k in range(4):
            for c in range(3):
                above = below = 0.0
                for y in range(4):
                    for x in range(5):
                        above += masks[b, k, y, x].item() * features[b, c, y, x].item()
                        below += masks[b, k, y, x].item()
                assert math.isclose(pooled[b, k, c].item(), above / below, rel_tol=1e-10)


def test_gwap_under_a_binary_mask_is_the_mean_and_does_not_depend_on_the_masks_scale():
    features = torch.randn(1, 3, 4, 4, generator=torch.Generator().manual_seed(1)).double()
    mask = torch.zeros(1, 1, 4, 4).double()
    mask[0, 0, :2, 1:3] = 1
    mean = features[0, :, :2, 1:3].mean(dim=(1, 2))
    for scale in (1.0, 0.25, 7.0):
        pooled = global_weighted_average_pooling(features, scale * mask)
        torch.testing.assert_close(pooled[0, 0], mean)


def test_gwap_of_an_empty_mask_is_zero_with_a_finite_gradient():
    features = torch.randn(1, 3, 2, 2, requires_grad=True)
    masks = torch.zeros(1, 2, 2, 2, requires_grad=True)
    pooled = global_weighted_average_pooling(features, masks)
    assert torch.equal(pooled, torch.zeros(1, 2, 3))
    pooled.sum().backward()
    assert features.grad.isfinite().all() and masks.grad.isfinite().all()


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
