"""Mixed precision: the network runs in bfloat16 and stays close to float32."""

import pytest
import torch

from models import build_model
from models.precision import full_precision


@pytest.mark.parametrize("fat", [True, False])
def test_the_network_in_bfloat16_gives_nearly_the_same_masks(fat):
    torch.manual_seed(0)
    model = build_model(
        "gsanet",
        backbone="resnet10t",
        pretrained_backbone=False,
        channels=16,
        num_clusters=8,
        num_neighbours=4,
        aggregation_transformer=fat,
    ).eval()
    frames = torch.rand(2, 3, 64, 64)
    references = torch.rand(2, 2, 3, 64, 64)
    with torch.no_grad():
        exact = model(frames, frames, references, references)
        with torch.autocast("cpu", torch.bfloat16):
            mixed = model(frames, frames, references, references)
    assert mixed.logits[0].dtype == torch.bfloat16
    error = (mixed.logits[0].float().sigmoid() - exact.logits[0].sigmoid()).abs()
    assert error.mean() < 0.02
    for name, values in mixed.maps.items():
        # Cosines of bfloat16 features, but not cosines in bfloat16, which would come in steps.
        assert values.dtype == torch.float32
        assert (values - exact.maps[name]).abs().mean() < 0.02


def test_only_half_precision_is_raised():
    for dtype, expected in [
        (torch.bfloat16, torch.float32),
        (torch.float16, torch.float32),
        (torch.float32, torch.float32),
        (torch.float64, torch.float64),
    ]:
        assert full_precision(torch.ones(1, dtype=dtype)).dtype == expected
