"""Training loss: IoU loss and weighted cross-entropy at every scale (Sec. 3.7, eq. 5)."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from models.prediction import Prediction


@dataclass
class Loss:
    """The loss of a batch and what it is made of.

    Attributes:
        total: what to minimise, a scalar tensor.
        terms: by name, detached scalar tensors: ``iou`` and ``bce`` summed over the masks,
            ``slot_maps`` both for the slots' similarity maps.
    """

    total: Tensor
    terms: dict[str, Tensor]


def segmentation_loss(
    prediction: Prediction, mask: Tensor, sigma: float = 1.0, supervise_maps: bool = True
) -> Loss:
    """Eq. 5, summed over the masks of all scales and, if wanted, over the slots' maps.

    Args:
        prediction: a network's result.
        mask: G, float (B, 1, H, W) of zeros and ones.
        sigma: strength of the pixel weight.
        supervise_maps: add both losses of ``prediction.auxiliary``.
    """
    # In float32: with bfloat16 probabilities, sums over many pixels lose the last ones.
    with torch.autocast(mask.device.type, enabled=False):
        terms = {
            "iou": sum(iou_loss(logits.float(), mask) for logits in prediction.logits),
            "bce": sum(weighted_bce(logits.float(), mask, sigma) for logits in prediction.logits),
        }
        if supervise_maps and prediction.auxiliary:
            terms["slot_maps"] = sum(
                iou_loss(logits, mask) + weighted_bce(logits, mask, sigma)
                for logits in (
                    F.interpolate(
                        auxiliary.float(), mask.shape[2:], mode="bilinear", align_corners=False
                    )
                    for auxiliary in prediction.auxiliary
                )
            )
        total = sum(terms.values())
    return Loss(total, {name: term.detach() for name, term in terms.items()})


def iou_loss(logits: Tensor, mask: Tensor) -> Tensor:
    """L_IOU of eq. 5 for probabilities P = sigmoid(logits), mean over the batch; a scalar.

    ``logits`` and ``mask`` are (B, 1, H, W).
    """
    probability = logits.sigmoid()
    overlap = torch.minimum(probability, mask).sum(dim=(1, 2, 3))
    union = torch.maximum(probability, mask).sum(dim=(1, 2, 3))
    return (1 - overlap / union.clamp(min=1e-6)).mean()


def weighted_bce(logits: Tensor, mask: Tensor, sigma: float = 1.0) -> Tensor:
    """L_bce^w of eq. 5, as a mean over the pixels and the batch; a scalar.

    The weight w = sigma |P - G| is detached: it says how much a pixel counts, and is not itself to
    be made small. The paper writes a sum over the pixels; the mean makes the loss independent of
    the image's size.
    """
    weight = sigma * (logits.detach().sigmoid() - mask).abs()
    return F.binary_cross_entropy_with_logits(logits, mask, weight=weight)
