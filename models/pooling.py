"""Pooling that turns maps and sets of features into single features."""

import torch
from torch import Tensor, nn

from models.precision import full_precision


def global_weighted_average_pooling(features: Tensor, masks: Tensor) -> Tensor:
    """Mean feature under each mask: GWAP, the P = GWAP(X, M) of eq. 2.

    Args:
        features: X (B, C, H, W).
        masks: M (B, K, H, W), not negative.

    Returns:
        (B, K, C); zeros for a mask that is zero everywhere.
    """
    # A sum over hundreds of pixels has more digits than bfloat16.
    with torch.autocast(features.device.type, enabled=False):
        features, masks = full_precision(features.flatten(2)), full_precision(masks.flatten(2))
        total = masks.sum(dim=2, keepdim=True)
        return masks @ features.transpose(1, 2) / total.clamp(min=1e-6)


class AttentivePooling(nn.Module):
    """Weighted mean of a set of features, with weights from the features themselves (Sec. 3.4).

    A linear layer gives each feature one score, and the softmax over the set makes weights of the
    scores. RandLA-Net (Hu et al., CVPR 2020), which the paper cites, scores every channel of a
    feature by itself and has a perceptron after the sum.
    """

    def __init__(self, channels: int):
        super().__init__()
        self.score = nn.Linear(channels, 1, bias=False)

    def forward(self, features: Tensor) -> Tensor:
        """(..., N, C) to (..., C); the order of the N features does not matter."""
        weights = self.score(features).softmax(dim=-2)
        return (weights * features).sum(dim=-2)
