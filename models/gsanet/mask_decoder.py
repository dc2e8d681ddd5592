"""CNN-based mask decoder with deep supervision (Sec. 3.6, Figure 2)."""

from torch import Tensor, nn

from models.blocks import AtrousPyramid, Outline, ResidualBlock
from models.ops import resize


class MaskDecoder(nn.Module):
    """From feature maps at four levels to a mask at each, coarse to fine.

    The paper says only "CNN-based". Context is gathered at the coarsest level. Every finer level is
    added and mixed by two 3 x 3 convolutions. With ``image``, the finest level sees the image again
    (:class:`Outline`).
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
        """Features (B, C, H / s, W / s) at strides s = 4, 8, 16, 32 to logits of four masks.

        The target image (B, 3, H, W) is normalised; the logits are (B, 1, H, W), finest first.
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
