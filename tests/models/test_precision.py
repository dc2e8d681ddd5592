"""Mixed precision: the network runs in bfloat16 and stays close to float32."""

import pytest
import torch
from torch import nn

from models.backbones.mix_transformer import MixTransformer
from models.ops import resize
from models.precision import LayerNorm, full_precision, with_weights_as
from tests.models.small_networks import assert_same_prediction, inputs, network


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


def test_layer_normalisation_takes_and_gives_autocast_s_type():
    norm, reference = LayerNorm(48), nn.LayerNorm(48)
    for parameter in norm.parameters():
        nn.init.uniform_(parameter, 0.5, 2)
    reference.load_state_dict(norm.state_dict())
    x = 3 * torch.randn(2, 5, 48) + 7
    assert torch.equal(norm(x), reference(x))
    with torch.autocast("cpu", torch.bfloat16):
        mixed = norm(x)
    assert mixed.dtype == torch.bfloat16
    # Of the mean 7 and the deviation 3, bfloat16 keeps steps of 1/32: a hundredth of the deviation.
    torch.testing.assert_close(mixed.float(), reference(x), rtol=0.02, atol=0.03)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_resizing_keeps_the_type(dtype):
    x = torch.rand(1, 2, 4, 4, dtype=dtype)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        assert resize(x, (8, 8)).dtype == dtype


def test_a_compiled_block_takes_and_gives_bfloat16_too():
    block = MixTransformer("mit_b0").levels[0].blocks[0].eval()
    x = torch.rand(1, 8, 8, 32)
    torch._dynamo.reset()
    compiled = torch.compile(block, backend="eager", fullgraph=True)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        expected = block(x.bfloat16())
        result = compiled(x.bfloat16())
    assert expected.dtype == torch.bfloat16
    torch.testing.assert_close(result, expected, rtol=0, atol=0)


@pytest.mark.parametrize(
    "name, backbone", [("gsanet", "mit_b0"), ("gsanet", "nf_regnet_b0"), ("dpa", "resnet10t")]
)
def test_weights_that_are_converted_once_give_the_same_masks(name, backbone):
    """nf_regnet_b0 standardises its weights first, which is not the same in bfloat16."""
    model = network(name, backbone=backbone).eval()
    converted = with_weights_as(model, torch.bfloat16)
    assert all(p.dtype == torch.float32 for p in model.parameters())
    types = {type(m): m.weight.dtype for m in converted.modules() if hasattr(m, "weight")}
    assert types[nn.Conv2d] == torch.bfloat16 and types[nn.Linear] == torch.bfloat16
    assert types.get(nn.BatchNorm2d, torch.float32) == torch.float32
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        assert_same_prediction(converted(*inputs()), model(*inputs()), rtol=0, atol=0)
