"""Global extractor: soft object regions of the reference frames (Sec. 3.3, Figure 3c)."""

from torch import Tensor, nn

from models.ops import soft_region_features


class GlobalExtractor(nn.Module):
    """Global features P_G: the mean feature in each soft object region of each reference frame."""

    def __init__(self, channels: int, embedded_channels: int):
        super().__init__()
        self.embed = nn.Conv2d(channels, embedded_channels, kernel_size=1)

    def forward(self, references: Tensor) -> Tensor:
        """Eq. 3 and GWAP: features X_R of N frames (N, C, H, W) to P_G (N, C_G, C_G)."""
        embedded = self.embed(references)  # X_G
        return soft_region_features(embedded)  # GWAP under M_G, the softmax of X_G
