"""The training loss against eq. 5 written as loops over pixels."""

import math

import pytest
import torch

from models.interface import Prediction
from models.losses import foreground, iou_loss, segmentation_loss, weighted_bce


def logits_and_mask(batch: int = 2, height: int = 5, width: int = 6, seed: int = 0):
    """Random logits and mask (B, 1, H, W) in float64."""
    generator = torch.Generator().manual_seed(seed)
    logits = 2 * torch.randn(batch, 1, height, width, generator=generator, dtype=torch.float64)
    mask = torch.rand(batch, 1, height, width, generator=generator, dtype=torch.float64) > 0.6
    return logits, mask.double()


def pixels(logits: torch.Tensor, mask: torch.Tensor):
    """(P_k, G_k) of one image."""
    return [
        (1 / (1 + math.exp(-x)), g)
        for x, g in zip(logits.flatten().tolist(), mask.flatten().tolist())
    ]


def loop_iou(logits: torch.Tensor, mask: torch.Tensor) -> float:
    """L_IOU, the mean over the images."""
    losses = []
    for one, truth in zip(logits, mask):
        overlap = union = 0.0
        for p, g in pixels(one, truth):
            overlap += min(p, g)
            union += max(p, g)
        losses.append(1 - overlap / union)
    return sum(losses) / len(losses)


def loop_bce(logits: torch.Tensor, mask: torch.Tensor, sigma: float) -> float:
    """L_bce^w, the mean over pixels and images."""
    total, count = 0.0, 0
    for p, g in pixels(logits, mask):
        total -= sigma * abs(p - g) * (g * math.log(p) + (1 - g) * math.log(1 - p))
        count += 1
    return total / count


def test_iou_loss_is_eq_5():
    for seed in range(3):
        logits, mask = logits_and_mask(seed=seed)
        assert iou_loss(logits, mask).item() == pytest.approx(loop_iou(logits, mask), abs=1e-12)


@pytest.mark.parametrize("sigma", [0.5, 1.0, 3.0])
def test_weighted_cross_entropy_is_eq_5_as_a_mean(sigma):
    logits, mask = logits_and_mask()
    expected = loop_bce(logits, mask, sigma)
    assert weighted_bce(logits, mask, sigma).item() == pytest.approx(expected, abs=1e-12)
    assert weighted_bce(logits, mask, 0.0) == 0


def test_losses_of_a_batch_are_the_means_of_its_images_losses():
    logits, mask = logits_and_mask(batch=3)
    for loss in (iou_loss, weighted_bce):
        alone = [loss(logits[i : i + 1], mask[i : i + 1]).item() for i in range(3)]
        assert loss(logits, mask).item() == pytest.approx(sum(alone) / 3, abs=1e-12)
        assert max(alone) - min(alone) > 1e-3


def test_the_losses_of_perfect_and_opposite_masks():
    _, mask = logits_and_mask()
    perfect, opposite = 40 * (2 * mask - 1), 40 * (1 - 2 * mask)
    assert iou_loss(perfect, mask) < 1e-12
    assert weighted_bce(perfect, mask) < 1e-12
    assert iou_loss(opposite, mask).item() == pytest.approx(1, abs=1e-12)
    assert weighted_bce(opposite, mask).item() == pytest.approx(40, rel=1e-9)


def test_the_pixel_weight_takes_no_part_in_the_gradient():
    logits, mask = logits_and_mask()
    logits.requires_grad_()
    weighted_bce(logits, mask, sigma=2.0).backward()
    probability = 1 / (1 + torch.exp(-logits.detach()))
    # With w constant, d/dx of -w [g ln p + (1 - g) ln(1 - p)] is w (p - g).
    expected = 2.0 * (probability - mask).abs() * (probability - mask) / mask.numel()
    torch.testing.assert_close(logits.grad, expected, rtol=1e-12, atol=1e-14)


def test_the_iou_losss_gradient_is_that_of_small_differences():
    logits, mask = logits_and_mask(height=3, width=3)
    assert torch.autograd.gradcheck(lambda x: iou_loss(x, mask), logits.requires_grad_())


@pytest.mark.parametrize("size", [100.0, 1e4])
def test_extreme_logits_give_finite_losses_and_gradients(size):
    mask = torch.tensor([0.0, 1.0, 0.0, 1.0]).view(1, 1, 2, 2)
    logits = torch.tensor([size, -size, -size, size]).view(1, 1, 2, 2).requires_grad_()
    loss = segmentation_loss(Prediction([logits]), mask)
    sum(loss.values()).backward()
    assert loss["bce"].item() == pytest.approx(size / 2, rel=1e-6)
    assert loss["iou"].item() == pytest.approx(1 - 1 / 3, rel=1e-6)
    assert torch.isfinite(logits.grad).all()
    # A wrong and certain pixel is pulled back, a right one is left alone.
    assert logits.grad.flatten()[0] > 0 > logits.grad.flatten()[1]
    assert logits.grad.flatten()[2:].abs().max() < 1e-6


@pytest.mark.parametrize("value", [0.0, 1.0])
def test_empty_and_full_masks_have_finite_losses(value):
    mask = torch.full((2, 1, 4, 4), value)
    logits = torch.full((2, 1, 4, 4), -100.0).requires_grad_()
    loss = segmentation_loss(Prediction([logits]), mask)
    sum(loss.values()).backward()
    assert torch.isfinite(sum(loss.values()))
    assert torch.isfinite(logits.grad).all()


def test_the_total_is_both_losses_summed_over_all_scales():
    first, mask = logits_and_mask(seed=1)
    second, _ = logits_and_mask(seed=2)
    loss = segmentation_loss(Prediction([first.float(), second.float()]), mask.float(), sigma=1.5)
    iou = loop_iou(first, mask) + loop_iou(second, mask)
    bce = loop_bce(first, mask, 1.5) + loop_bce(second, mask, 1.5)
    assert loss.keys() == {"iou", "bce"}
    assert loss["iou"].item() == pytest.approx(iou, rel=1e-5)
    assert loss["bce"].item() == pytest.approx(bce, rel=1e-5)
    assert sum(loss.values()).item() == pytest.approx(iou + bce, rel=1e-5)


def test_auxiliary_maps_are_supervised_only_if_wanted():
    first, mask = logits_and_mask(seed=1)
    auxiliary, _ = logits_and_mask(seed=3)
    prediction = Prediction(
        [first.float()], [auxiliary.float().requires_grad_(), 2 * auxiliary.float()]
    )
    on = segmentation_loss(prediction, mask.float(), sigma=2.0)
    off = segmentation_loss(prediction, mask.float(), sigma=2.0, supervise_maps=False)
    expected = sum(
        loop_iou(logits, mask) + loop_bce(logits, mask, 2.0)
        for logits in (auxiliary, 2 * auxiliary)
    )
    assert on["slot_maps"].item() == pytest.approx(expected, rel=1e-5)
    assert sum(on.values()).item() == pytest.approx(sum(off.values()).item() + expected, rel=1e-5)
    assert off.keys() == {"iou", "bce"}
    assert on["iou"] == off["iou"] and on["bce"] == off["bce"]


def test_auxiliary_maps_of_lower_resolution_are_enlarged_to_the_mask():
    mask = torch.zeros(1, 1, 4, 8, dtype=torch.float64)
    mask[..., 4:] = 1
    coarse = torch.tensor([[-1.0, 2.0]]).view(1, 1, 1, 2)
    # Bilinear with pixel centres at halves: a pixel at (x + 1/2) / 4 - 1/2 of the coarse grid.
    row = []
    for x in range(8):
        place = min(max((x + 0.5) / 4 - 0.5, 0.0), 1.0)
        row.append(-1.0 + 3.0 * place)
    fine = torch.tensor(row, dtype=torch.float64).expand(1, 1, 4, 8)
    loss = segmentation_loss(Prediction([fine.float()], [coarse]), mask.float())
    expected = loop_iou(fine, mask) + loop_bce(fine, mask, 1.0)
    assert loss["slot_maps"].item() == pytest.approx(expected, rel=1e-5)


def test_label_maps_become_masks_without_void():
    labels = torch.tensor([[[0, 1, 2], [255, 0, 17]]], dtype=torch.uint8)
    assert foreground(labels).tolist() == [[[[0, 1, 1], [0, 0, 1]]]]


def test_half_precision_logits_are_summed_in_float32():
    logits, mask = logits_and_mask(height=64, width=64)
    low = logits.bfloat16()
    with torch.autocast("cpu", torch.bfloat16):
        loss = segmentation_loss(Prediction([low], [low]), mask.float())
    expected = segmentation_loss(Prediction([low.float()], [low.float()]), mask.float())
    assert all(term.dtype == torch.float32 for term in loss.values())
    assert loss == expected


@pytest.mark.parametrize("name", ["iou", "bce"])
def test_one_of_the_losses_alone_is_what_it_is_in_their_sum(name):
    torch.manual_seed(0)
    logits, auxiliary = torch.randn(2, 1, 8, 8), torch.randn(2, 1, 4, 4)
    mask = (torch.rand(2, 1, 8, 8) > 0.5).float()
    prediction = Prediction([logits, logits / 2], [auxiliary])
    whole = segmentation_loss(prediction, mask, sigma=2.0)
    alone = segmentation_loss(prediction, mask, sigma=2.0, loss=name)
    assert list(alone) == [name, "slot_maps"]
    torch.testing.assert_close(alone[name], whole[name])
    other = {"iou": "bce", "bce": "iou"}[name]
    rest = segmentation_loss(prediction, mask, sigma=2.0, loss=other)
    total = sum(whole.values())
    torch.testing.assert_close(sum(alone.values()) + sum(rest.values()), total)
