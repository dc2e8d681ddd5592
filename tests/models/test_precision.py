"""Mixed precision: the network runs in bfloat16 and stays close to float32."""

import pytest
import torch

from models.precision import full_precision
from tests.models.small_networks import network


@pytest.mark.parametrize(
    "name, arguments",
    [("gsanet", {}), ("gsanet", {"aggregation_transformer": False}), ("dpa", {})],
)
def test_the_network_in_bfloat16_gives_nearly_the_same_masks(name, arguments):
    model = network(name, backbone="resnet10t", **arguments).eval()
    frames = torch.rand(2, 3, 64, 64)
    references = torch.rand(2, 2, 3, 64, 64)
    with torch.no_grad():
        exact = model(frames, frames, references, references)
        with torch.autocast("cpu", torch.bfloat16):
            mixed = model(frames, frames, references, references)
    assert mixed.logits[0].dtype == torch.bfloat16
    error = (mixed.logits[0].float().sigmoid() - exact.logits[0].sigmoid()).abs()
    assert error.mean() < 0.02
    for label, values in mixed.maps.items():
        # Cosines of bfloat16 features, but not cosines in bfloat16, which would come in steps.
        assert values.dtype == torch.float32
        assert (values - exact.maps[label]).abs().mean() < 0.02


def test_only_half_precision_is_raised():
    for dtype, expected in [
        (torch.bfloat16, torch.float32),
        (torch.float16, torch.float32),
        (torch.float32, torch.float32),
        (torch.float64, torch.float64),
    ]:
        assert full_precision(torch.ones(1, dtype=dtype)).dtype == expected
