"""CNN-based mask decoder with deep supervision (Sec. 3.6, Figure 2)."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class MaskDecoder(nn.Module):
    """From four feature maps to a mask at each of the four scales, coarse to fine.

    The paper says only "CNN-based". Context is gathered at the coarsest level, then every finer
    level is added and mixed by two 3 x 3 convolutions; each level has its own mask. The finest one
    is drawn with another look at the image.
    """

    def __init__(self, channels: int, levels: int = 4):
        super().__init__()
        self.context = AtrousPyramid(channels)
        self.mix = nn.ModuleList(ResidualBlock(channels) for _ in range(levels))
        self.to_coarse_mask = nn.ModuleList(
            nn.Conv2d(channels, 1, 3, padding=1) for _ in range(levels - 1)
        )
        self.outline = Outline(channels)

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


class Outline(nn.Module):
    """The finest mask: features at stride 4 and the image itself, met at stride 2.

    A convolution at stride 4 cannot follow an outline between its cells. Here the features of a
    cell are spread over its four quarters, which see the image again and predict their four pixels.
    """

    def __init__(self, channels: int):
        super().__init__()
        spread, seen = channels // 4, 16
        self.look = nn.Sequential(
            nn.Conv2d(3, seen, 3, stride=2, padding=1, bias=False),
            nn.BatchNorm2d(seen),
            nn.ReLU(inplace=True),
        )
        self.mix = nn.Sequential(*conv_norm(spread + seen, spread + seen, 3), nn.ReLU(inplace=True))
        self.to_mask = nn.Conv2d(spread + seen, 4, 3, padding=1)

    def forward(self, x: Tensor, image: Tensor) -> Tensor:
        """(B, C, H / 4, W / 4) and (B, 3, H, W) to logits (B, 1, H, W)."""
        x = torch.cat([F.pixel_shuffle(x, 2), self.look(image)], dim=1)
        return F.pixel_shuffle(self.to_mask(self.mix(x)), 2)


class ResidualBlock(nn.Module):
    """Two 3 x 3 convolutions with a shortcut, (B, C, H, W) to the same."""

    def __init__(self, channels: int):
        super().__init__()
        self.layers = nn.Sequential(
            *conv_norm(channels, channels, 3),
            nn.ReLU(inplace=True),
            *conv_norm(channels, channels, 3),
        )

    def forward(self, x: Tensor) -> Tensor:
        """Residual, then ReLU."""
        return F.relu(x + self.layers(x))


class AtrousPyramid(nn.Module):
    """Context at several reaches: dilated convolutions beside the mean over the whole map."""

    def __init__(self, channels: int, dilations: tuple[int, ...] = (1, 2, 4)):
        super().__init__()
        self.branches = nn.ModuleList(
            nn.Sequential(*conv_norm(channels, channels, 3, dilation), nn.ReLU(inplace=True))
            for dilation in dilations
        )
        # No normalisation here: a mean over the map gives one value, too few in small batches.
        self.whole = nn.Sequential(nn.Conv2d(channels, channels, 1), nn.ReLU(inplace=True))
        self.merge = nn.Sequential(
            *conv_norm((len(dilations) + 1) * channels, channels, 1), nn.ReLU(inplace=True)
        )

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) to the same shape."""
        whole = self.whole(x.mean(dim=(2, 3), keepdim=True)).expand_as(x)
        return self.merge(torch.cat([*(branch(x) for branch in self.branches), whole], dim=1))


def conv_norm(channels: int, out_channels: int, kernel: int, dilation: int = 1) -> list[nn.Module]:
    """A convolution that keeps height and width, and batch normalisation."""
    padding = dilation * (kernel // 2)
    return [
        nn.Conv2d(channels, out_channels, kernel, padding=padding, dilation=dilation, bias=False),
        nn.BatchNorm2d(out_channels),
    ]


def resize(x: Tensor, size: tuple[int, int]) -> Tensor:
    """Bilinear interpolation of (B, C, H, W) to ``size``."""
    return F.interpolate(x, size=tuple(size), mode="bilinear", align_corners=False)
