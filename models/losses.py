"""Loss of masks: IoU loss and weighted cross-entropy at every scale (Sec. 3.7, eq. 5)."""

from functools import partial

import torch.nn.functional as F
from torch import Tensor

from models.interface import Prediction
from models.ops import resize
from models.precision import without_autocast


def segmentation_loss(
    prediction: Prediction,
    mask: Tensor,
    sigma: float = 1.0,
    supervise_maps: bool = True,
    loss: str = "iou+bce",
) -> dict[str, Tensor]:
    """Eq. 5 as scalars to add up: ``iou`` and ``bce`` of all masks, ``slot_maps`` of slots' maps.

    Args:
        prediction: a network's result.
        mask: G, float (B, 1, H, W) of zeros and ones.
        sigma: strength of the pixel weight of ``bce``.
        supervise_maps: add the loss of ``prediction.auxiliary``.
        loss: ``iou``, ``bce`` or ``iou+bce``.
    """
    functions = {"iou": iou_loss, "bce": partial(weighted_bce, sigma=sigma)}
    losses = {name: functions[name] for name in loss.split("+")}
    # In float32: with bfloat16 probabilities, sums over many pixels lose the last ones.
    with without_autocast(mask):
        masks = [logits.float() for logits in prediction.logits]
        terms = {name: sum(one(x, mask) for x in masks) for name, one in losses.items()}
        if supervise_maps and prediction.auxiliary:
            maps = [resize(x.float(), mask.shape[2:]) for x in prediction.auxiliary]
            terms["slot_maps"] = sum(one(x, mask) for x in maps for one in losses.values())
    return terms


def foreground(labels: Tensor) -> Tensor:
    """Label maps (B, H, W), 0 background and 255 void, to G: float (B, 1, H, W) of 0 and 1."""
    return ((labels > 0) & (labels < 255)).unsqueeze(1).float()


def iou_loss(logits: Tensor, mask: Tensor) -> Tensor:
    """L_IOU of eq. 5 for P = sigmoid(logits) and mask (B, 1, H, W), mean over the batch.

    The mask must hold only zeros and ones. Then min(P, G) = P G and max(P, G) = P + G - P G, whose
    gradients are faster to compute on the CPU.
    """
    probability, pixels = logits.sigmoid(), (1, 2, 3)
    overlap = (probability * mask).sum(dim=pixels)
    union = probability.sum(dim=pixels) + mask.sum(dim=pixels) - overlap
    return (1 - overlap / union.clamp(min=1e-6)).mean()


def weighted_bce(logits: Tensor, mask: Tensor, sigma: float = 1.0) -> Tensor:
    """L_bce^w of eq. 5, as a mean over the pixels and the batch; a scalar.

    The weight w = sigma |P - G| is detached, because training must not make it small. The paper
    has a sum over the pixels; the mean makes the loss independent of the image's size.
    """
    weight = sigma * (logits.detach().sigmoid() - mask).abs()
    return F.binary_cross_entropy_with_logits(logits, mask, weight=weight)
