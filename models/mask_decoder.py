"""CNN-based mask decoder with deep supervision (Sec. 3.6, Figure 2)."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

FINEST_STRIDE = 4


class MaskDecoder(nn.Module):
    """From four feature maps to a mask at each of the four scales, coarse to fine.

    The paper says only "CNN-based". Context is gathered at the coarsest level, then every finer
    level is added and mixed by two 3 x 3 convolutions; each level has its own mask. The finest one
    predicts every pixel of its 4 x 4 cells by itself, which follows outlines more closely than
    interpolating between cells does.
    """

    def __init__(self, channels: int, levels: int = 4):
        super().__init__()
        self.context = AtrousPyramid(channels)
        self.mix = nn.ModuleList(ResidualBlock(channels) for _ in range(levels))
        self.to_mask = nn.ModuleList(
            nn.Conv2d(channels, FINEST_STRIDE**2 if level == 0 else 1, 3, padding=1)
            for level in range(levels)
        )

    def forward(self, features: list[Tensor], size: tuple[int, int]) -> list[Tensor]:
        """Feature maps (B, C, H_l, W_l), finest first, to logits (B, 1, *size), finest first."""
        x = self.context(features[-1])
        masks = []
        for level in reversed(range(len(features))):
            if x.shape[2:] != features[level].shape[2:]:
                x = resize(x, features[level].shape[2:])
                x = x + features[level]
            x = self.mix[level](x)
            mask = self.to_mask[level](x)
            if level == 0:
                mask = F.pixel_shuffle(mask, FINEST_STRIDE)
            masks.append(resize(mask, size))
        return masks[::-1]


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
