"""CNN-based mask decoder with deep supervision (Sec. 3.6, Figure 2)."""

from torch import Tensor, nn

from models.blocks import AtrousPyramid, Outline, ResidualBlock
from models.ops import resize


class MaskDecoder(nn.Module):
    """From four feature maps to a mask at each of the four scales, coarse to fine.

    The paper says only "CNN-based". Context is gathered at the coarsest level, then every finer
    level is added and mixed by two 3 x 3 convolutions; each level has its own mask.

    Args:
        channels: C, of the feature maps.
        levels: number of feature maps and masks.
        image: the finest level sees the image again, see :class:`Outline`.
    """

    def __init__(self, channels: int, levels: int = 4, image: bool = True):
        super().__init__()
        self.context = AtrousPyramid(channels)
        self.mix = nn.ModuleList(ResidualBlock(channels) for _ in range(levels))
        self.to_coarse_mask = nn.ModuleList(
            nn.Conv2d(channels, 1, 3, padding=1) for _ in range(levels - 1)
        )
        self.outline = Outline(channels, image)

    def forward(self, features: list[Tensor], image: Tensor) -> list[Tensor]:
        """Masks of all scales, from features of both streams.

        Args:
            features: (B, C, H / s, W / s) for the strides s = 4, 8, 16, 32.
            image: target image (B, 3, H, W), normalised.

        Returns:
            Logits (B, 1, H, W), finest first.
        """
        x = self.context(features[-1])
        masks = []
        for level in reversed(range(len(features))):
            if level < len(features) - 1:
                x = resize(x, features[level].shape[2:]) + features[level]
            x = self.mix[level](x)
            if level > 0:
                masks.append(resize(self.to_coarse_mask[level - 1](x), image.shape[2:]))
        return [self.outline(x, image), *masks[::-1]]
