"""A training step in mixed precision on the CPU: what learns in float32 learns in bfloat16 too."""

from contextlib import nullcontext

import pytest
import torch
from torch import nn

from models.losses import segmentation_loss
from tests.models.small_networks import (
    TWO_STREAMS,
    discs,
    inputs,
    network,
    parameters_not_reached,
    without_stochastic_depth,
)

# Batch normalisation, layer normalisation, standardised weights; maps (B, H, W, C); stride 1.
CASES = [
    (name, backbone) for name in TWO_STREAMS for backbone in ("resnet10t", "mit_b0", "nf_regnet_b0")
]
CASES += [("gsanet", "swin_tiny_patch4_window7_224"), ("dpa", "vgg11")]


def not_reached(model, autocast, references_gradient, floor=0.0):
    """Parameters without gradient after a backward pass; all gradients must be finite."""
    image, flow, *references = inputs(references=2)
    model.zero_grad()
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        with nullcontext() if references_gradient else torch.no_grad():
            encoded = model.encode_references(*references)
        prediction = model.segment(image, flow, encoded)
    sum(segmentation_loss(prediction, discs(), **model.loss_settings).values()).backward()
    assert all(p.grad is None or p.grad.isfinite().all() for p in model.parameters())
    return set(parameters_not_reached(model, floor))


@pytest.mark.parametrize("name, backbone", CASES)
def test_what_learns_in_float32_learns_under_autocast_too(name, backbone):
    """Also where the caller, as a notebook, encodes the references without any gradient."""
    model = without_stochastic_depth(network(name, backbone=backbone))
    for parameter in model.parameters():
        if not parameter.any():  # some residual branches begin with a factor of 0
            nn.init.normal_(parameter, std=0.1)
    for references_gradient in (True, False):
        expected = not_reached(model, False, references_gradient, floor=1e-7)
        assert not any(".encoder." in key for key in expected)
        assert not_reached(model, True, references_gradient) <= expected
