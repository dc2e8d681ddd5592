"""Vision transformers: their keys, positions on other grids, and files of weights."""

import argparse

import pytest
import timm
import torch
import torch.nn.functional as F

from models.backbones import ModelError, vision_transformer
from models.backbones.vision_transformer import VisionTransformer, resample_positions

TINY = "vit_tiny_patch16_224"


def encoder(**arguments):
    torch.manual_seed(0)
    return VisionTransformer(TINY, pretrained=False, **arguments).eval()


def timm_keys(vit, images):
    """The part of qkv that is keys, by a hook in timm's own forward pass."""
    seen = []
    handle = vit.blocks[-1].attn.qkv.register_forward_hook(lambda *args: seen.append(args[2]))
    tokens = vit.forward_features(images)
    handle.remove()
    return seen[0].chunk(3, dim=-1)[1][:, 1:], tokens


@torch.inference_mode()
def test_keys_and_class_token_are_those_of_timm():
    model = encoder(positions="timm")
    images = torch.randn(2, 3, 48, 80)
    tokens = model(images)
    keys, last = timm_keys(model.encoder, images)
    torch.testing.assert_close(tokens.keys, keys)
    assert tokens.grid == (3, 5) and tokens.keys.shape == (2, 15, 192)
    torch.testing.assert_close(model.encoder.norm(tokens.class_token), last[:, 0])
    alone = model(images, class_token=False)
    assert alone.class_token is None
    torch.testing.assert_close(alone.keys, keys)


@pytest.mark.parametrize(
    ("gradients", "most_tokens", "kernels"), [(False, 7, 0), (False, 6, 12), (True, 7, 12)]
)
def test_bfloat16_gives_the_keys_of_float32(monkeypatch, gradients, most_tokens, kernels):
    kernel, calls = F.scaled_dot_product_attention, []

    def counted(*inputs, **options):
        calls.append(inputs)
        return kernel(*inputs, **options)

    model = encoder()
    images = torch.randn(2, 3, 32, 48, generator=torch.Generator().manual_seed(0))
    exact = model(images)
    monkeypatch.setattr(F, "scaled_dot_product_attention", counted)
    monkeypatch.setattr(vision_transformer, "MOST_TOKENS", most_tokens)
    with torch.autocast("cpu", torch.bfloat16), torch.set_grad_enabled(gradients):
        fast = model(images)
    assert len(calls) == kernels
    assert all(block.attn.fused_attn for block in model.encoder.blocks)
    assert fast.keys.dtype == torch.bfloat16
    for found, true in ((fast.keys, exact.keys), (fast.class_token, exact.class_token)):
        assert (found.float() - true).norm() / true.norm() < 0.02


@torch.inference_mode()
def test_images_are_resized_to_whole_patches_and_never_cut():
    model = encoder()
    images = torch.randn(1, 3, 45, 89)
    tokens = model(images)
    assert tokens.grid == (3, 6)
    resized = F.interpolate(images, (48, 96), mode="bilinear", align_corners=False)
    torch.testing.assert_close(tokens.keys, model(resized).keys)


def test_what_is_trained_for_the_keys_alone_is_what_they_depend_on():
    model = encoder()
    model(torch.randn(1, 3, 48, 80), class_token=False).keys.square().sum().backward()
    reached = {name for name, p in model.named_parameters() if p.grad is not None}
    model.train_keys_alone()
    assert {name for name, p in model.named_parameters() if p.requires_grad} == reached
    assert 0 < len(reached) < len(list(model.parameters()))


def test_stochastic_depth_is_for_training_alone():
    images = torch.randn(2, 3, 48, 80)
    model, plain = encoder(drop_path=0.9), encoder()
    torch.testing.assert_close(model(images).keys, plain(images).keys)
    assert not torch.allclose(model.train()(images).keys, plain.train()(images).keys)


def cubic(distance):
    """The bicubic kernel with a = -0.75."""
    d, a = abs(distance), -0.75
    if d <= 1:
        return (a + 2) * d**3 - (a + 3) * d**2 + 1
    return a * d**3 - 5 * a * d**2 + 8 * a * d - 4 * a if d < 2 else 0.0


def test_positions_by_the_rule_of_dino():
    """At two places, against the sum over the table by the formula."""
    table = torch.randn(1, 1 + 14 * 14, 3, dtype=torch.float64).float()
    square = table[0, 1:].view(14, 14, 3)
    for h, w, row, column in ((16, 16, 0, 7), (30, 50, 29, 23)):
        resampled = resample_positions(table, (h, w), 1, "dino")
        assert resampled.shape == (1, 1 + h * w, 3)
        torch.testing.assert_close(resampled[:, 0], table[:, 0])
        y = (row + 0.5) * 14 / (h + 0.1) - 0.5
        x = (column + 0.5) * 14 / (w + 0.1) - 0.5
        value = torch.zeros(3)
        for i in range(int(y // 1) - 1, int(y // 1) + 3):
            for j in range(int(x // 1) - 1, int(x // 1) + 3):
                weight = cubic(y - i) * cubic(x - j)
                value += weight * square[min(max(i, 0), 13), min(max(j, 0), 13)]
        found = resampled[0, 1 + row * w + column]
        torch.testing.assert_close(found, value, rtol=1e-4, atol=1e-4)
    assert torch.equal(resample_positions(table, (14, 14), 1, "dino"), table)
    difference = resample_positions(table, (16, 16), 1, "timm")
    assert not torch.allclose(difference, resample_positions(table, (16, 16), 1, "dino"), atol=0.01)


def files(tmp_path):
    """Weights of one network as timm's file, DINO's file and DINO's whole checkpoint."""
    torch.manual_seed(7)
    state = timm.create_model(TINY, num_classes=0).state_dict()
    torch.save(state, tmp_path / "plain.pth")
    student = {f"module.backbone.{n}": torch.zeros_like(t) for n, t in state.items()}
    teacher = {f"backbone.{n}": t for n, t in state.items()}
    teacher["head.mlp.0.weight"] = torch.zeros(4)
    whole = {"student": student, "teacher": teacher, "args": argparse.Namespace(lr=0.1), "epoch": 3}
    torch.save(whole, tmp_path / "whole.pth")
    cut = {n: t for n, t in state.items() if "blocks.3" not in n}
    torch.save(cut, tmp_path / "cut.pth")
    return state


@torch.inference_mode()
def test_files_of_weights_in_all_layouts_give_the_same_keys(tmp_path):
    state = files(tmp_path)
    images = torch.randn(1, 3, 224, 224)
    keys = []
    for name in ("plain.pth", "whole.pth"):
        model = VisionTransformer(TINY, weights=tmp_path / name).eval()
        keys.append(model(images, class_token=False).keys)
        for own, tensor in model.encoder.state_dict().items():
            assert torch.equal(tensor, state[own])
    assert torch.equal(*keys)


def test_a_wrong_file_is_refused_with_what_is_missing(tmp_path):
    files(tmp_path)
    with pytest.raises(ModelError, match=r"12 of the encoder's 150 tensors .* blocks\.3\.norm1"):
        VisionTransformer(TINY, weights=tmp_path / "cut.pth")
    with pytest.raises(ModelError, match="differ in shape: cls_token"):
        VisionTransformer("vit_small_patch16_224", weights=tmp_path / "plain.pth")
    (tmp_path / "text.pth").write_text("<html>")
    with pytest.raises(ModelError, match=r"text\.pth does not fit"):
        VisionTransformer(TINY, weights=tmp_path / "text.pth")
    torch.save(torch.zeros(3), tmp_path / "tensor.pth")
    with pytest.raises(ModelError, match="found Tensor, expected a state dict"):
        VisionTransformer(TINY, weights=tmp_path / "tensor.pth")
    torch.save({0: torch.zeros(3)}, tmp_path / "numbers.pth")
    with pytest.raises(ModelError, match="150 of the encoder's 150 tensors are missing"):
        VisionTransformer(TINY, weights=tmp_path / "numbers.pth")


def test_other_networks_are_refused():
    with pytest.raises(ModelError, match="'resnet50', which is no vision transformer"):
        VisionTransformer("resnet50", pretrained=False)
