"""Blocks that decoders and transformers of several networks are made of."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Outline(nn.Module):
    """The finest mask: features at stride 4 and the image itself, brought together at stride 2.

    A convolution at stride 4 cannot follow an outline between its cells. Here the features of a
    cell are spread over its four quarters. Each quarter sees the image again and predicts its four
    pixels.

    Args:
        channels: C, of the features.
        image: False leaves the image out; the quarters then have the features alone.
    """

    def __init__(self, channels: int, image: bool = True):
        super().__init__()
        spread, seen = channels // 4, 16 if image else 0
        self.look = None
        if image:
            self.look = nn.Sequential(
                nn.Conv2d(3, seen, 3, stride=2, padding=1, bias=False),
                nn.BatchNorm2d(seen),
                nn.ReLU(inplace=True),
            )
        self.mix = conv_norm_relu(spread + seen, spread + seen, 3)
        self.to_mask = nn.Conv2d(spread + seen, 4, 3, padding=1)

    def forward(self, x: Tensor, image: Tensor) -> Tensor:
        """(B, C, H / 4, W / 4) and (B, 3, H, W) to logits (B, 1, H, W)."""
        x = F.pixel_shuffle(x, 2)
        if self.look is not None:
            x = torch.cat([x, self.look(image)], dim=1)
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
            conv_norm_relu(channels, channels, 3, dilation) for dilation in dilations
        )
        # No normalisation here: a mean over the map gives one value, too few in small batches.
        self.whole = nn.Sequential(nn.Conv2d(channels, channels, 1), nn.ReLU(inplace=True))
        self.merge = conv_norm_relu((len(dilations) + 1) * channels, channels, 1)

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


def conv_norm_relu(
    channels: int, out_channels: int, kernel: int, dilation: int = 1
) -> nn.Sequential:
    """The same, followed by ReLU."""
    layers = conv_norm(channels, out_channels, kernel, dilation)
    return nn.Sequential(*layers, nn.ReLU(inplace=True))


def feed_forward(channels: int) -> nn.Sequential:
    """The two-layer perceptron of a transformer block, (..., C) to (..., C), input normalised."""
    return nn.Sequential(
        nn.LayerNorm(channels),
        nn.Linear(channels, 2 * channels),
        nn.GELU(),
        nn.Linear(2 * channels, channels),
    )
