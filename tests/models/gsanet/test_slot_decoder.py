"""Cosine slot decoder, eq. 4, against loops over prototypes and pixels in float64."""

import math

import pytest
import torch

from models.gsanet.slot_decoder import correlation_maps, cosine_similarity


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
