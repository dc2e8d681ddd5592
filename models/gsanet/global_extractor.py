"""Global extractor: what the reference frames contain (Sec. 3.3, Figure 3c)."""

import torch
from torch import Tensor, nn

from models.precision import full_precision


class GlobalExtractor(nn.Module):
    """Global features P_G: the mean feature in each soft object region of each reference frame."""

    def __init__(self, channels: int, embedded_channels: int):
        super().__init__()
        self.embed = nn.Conv2d(channels, embedded_channels, kernel_size=1)

    def forward(self, references: Tensor) -> Tensor:
        """Eq. 3 and GWAP.

        Args:
            references: reference features X_R (B, R, C, H, W).

        Returns:
            P_G (B, R, C_G, C_G): for each reference frame one feature per soft region.
        """
        batch, count = references.shape[:2]
        embedded = self.embed(references.flatten(0, 1))  # X_G
        features = soft_region_features(embedded)
        return features.reshape(batch, count, *features.shape[1:])


def soft_region_features(embedded: Tensor) -> Tensor:
    """Features of the soft object regions that the channels of a feature map stand for.

    Each channel's softmax over the positions is a soft region M_G (eq. 3), which sums to one, so
    that its GWAP is a product of matrices.

    Args:
        embedded: X_G (N, C, H, W).

    Returns:
        (N, C, C): one feature per region, in float32 or better.
    """
    # The softmax runs over thousands of positions; in float32, the regions keep small weights.
    with torch.autocast(embedded.device.type, enabled=False):
        pixels = full_precision(embedded).flatten(2)
        return pixels.softmax(dim=2) @ pixels.transpose(1, 2)  # M_G of eq. 3, and its GWAP
