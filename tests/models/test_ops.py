"""Pooling, soft regions and correlation maps, against loops over pixels in float64."""

import math

import pytest
import torch

from models.ops import (
    attend,
    attention,
    correlation_maps,
    cosine_similarity,
    global_weighted_average_pooling,
    resize,
    soft_region_features,
)


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


def test_correlation_maps_follow_equation_4():
    generator = torch.Generator().manual_seed(0)
    local = torch.randn(2, 5, 3, 4, generator=generator, dtype=torch.float64)
    prototypes = torch.randn(2, 6, 5, generator=generator, dtype=torch.float64)
    maps = correlation_maps(local, prototypes)
    assert maps.shape == (2, 6, 3, 4)
    for b in range(2):
        for m in range(6):
            prototype = prototypes[b, m].tolist()
            for y in range(3):
                for x in range(4):
                    pixel = local[b, :, y, x].tolist()
                    product = sum(p * q for p, q in zip(pixel, prototype))
                    lengths = math.hypot(*pixel) * math.hypot(*prototype)
                    assert math.isclose(
                        maps[b, m, y, x].item(), product / lengths, rel_tol=1e-10, abs_tol=1e-12
                    )


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-6), (torch.bfloat16, 1e-2)])
def test_attention_is_the_softmax_of_scaled_products(dtype, tolerance, monkeypatch):
    kernel, calls = torch.nn.functional.scaled_dot_product_attention, []
    monkeypatch.setattr(
        torch.nn.functional,
        "scaled_dot_product_attention",
        lambda *inputs: (calls.append(inputs), kernel(*inputs))[1],
    )
    generator = torch.Generator().manual_seed(0)
    shapes = (2, 3, 7, 16), (2, 3, 5, 16), (2, 3, 5, 4)
    inputs = [torch.randn(shape, generator=generator).to(dtype) for shape in shapes]
    attended = attention(*inputs)
    assert attended.dtype == dtype
    assert len(calls) == (dtype == torch.float32)
    query, key, value = (x.double() for x in inputs)
    weights = torch.einsum("bhqc,bhkc->bhqk", query, key).div(4).exp()
    exact = torch.einsum("bhqk,bhkd->bhqd", weights / weights.sum(3, keepdim=True), value)
    assert (attended.double() - exact).norm() / exact.norm() < tolerance


def test_attention_of_one_head_has_an_axis_of_heads_which_gpus_are_faster_with(monkeypatch):
    kernel, seen = torch.nn.functional.scaled_dot_product_attention, []
    monkeypatch.setattr(
        torch.nn.functional,
        "scaled_dot_product_attention",
        lambda *inputs: (seen.extend(x.shape for x in inputs), kernel(*inputs))[1],
    )
    query, key, value = torch.randn(2, 7, 16), torch.randn(2, 5, 16), torch.randn(2, 5, 4)
    attended = attend(query, key, value)
    assert seen == [(2, 1, 7, 16), (2, 1, 5, 16), (2, 1, 5, 4)]
    weights = (query @ key.transpose(1, 2) / 4).softmax(dim=2)
    torch.testing.assert_close(attended, weights @ value)


def test_maps_are_one_at_the_prototype_itself_and_minus_one_at_its_opposite():
    local = torch.randn(1, 8, 2, 2, generator=torch.Generator().manual_seed(1))
    prototypes = torch.stack([3 * local[0, :, 1, 0], -0.2 * local[0, :, 0, 1]])[None]
    maps = correlation_maps(local, prototypes)
    assert maps[0, 0, 1, 0].item() == pytest.approx(1)
    assert maps[0, 1, 0, 1].item() == pytest.approx(-1)
    assert maps.abs().max() <= 1 + 1e-6


def test_a_feature_of_zeros_correlates_with_nothing_and_has_a_finite_gradient():
    local = torch.randn(1, 4, 2, 2)
    local[0, :, 0, 0] = 0
    prototypes = torch.zeros(1, 2, 4)
    prototypes[0, 0] = torch.randn(4)
    local.requires_grad_()
    prototypes.requires_grad_()
    maps = correlation_maps(local, prototypes)
    assert (maps[0, :, 0, 0] == 0).all() and (maps[0, 1] == 0).all()
    maps.sum().backward()
    assert local.grad.isfinite().all() and prototypes.grad.isfinite().all()


def test_similarity_is_computed_in_float32_under_mixed_precision():
    generator = torch.Generator().manual_seed(2)
    a = torch.randn(1, 3, 16, generator=generator)
    b = torch.randn(1, 4, 16, generator=generator)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(cosine_similarity(a, b), cosine_similarity(a, b.clone()))
        mixed = cosine_similarity(a, b)
        low = cosine_similarity(a.bfloat16(), b.bfloat16())
    torch.testing.assert_close(mixed, cosine_similarity(a, b))
    assert mixed.dtype == low.dtype == torch.float32
    torch.testing.assert_close(
        low, cosine_similarity(a.bfloat16().float(), b.bfloat16().float()), rtol=1e-6, atol=1e-6
    )


def test_a_region_that_stands_out_gives_the_feature_of_its_place():
    embedded = torch.randn(1, 3, 4, 4, generator=torch.Generator().manual_seed(2))
    embedded[0, 1, 2, 3] = 60.0
    features = soft_region_features(embedded)
    torch.testing.assert_close(features[0, 1], embedded[0, :, 2, 3])


def test_regions_survive_values_that_overflow_an_exponential():
    features = soft_region_features(500 * torch.randn(1, 3, 4, 4))
    assert features.isfinite().all()


def test_resizing_is_bilinear_with_pixel_areas_aligned():
    ramp = torch.arange(4.0).expand(1, 1, 2, 4)
    # Centres of the eight pixels, in units of the four.
    expected = ((torch.arange(8.0) + 0.5) / 2 - 0.5).clamp(0, 3).expand(1, 1, 4, 8)
    torch.testing.assert_close(resize(ramp, (4, 8)), expected)
