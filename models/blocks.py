"""Blocks that decoders and transformers of several networks are made of."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Outline(nn.Module):
    """The finest mask, from features at stride 4 and the image itself.

    A convolution at stride 4 cannot follow an outline between its cells. Here the features of a
    cell are spread over its four quarters. Each quarter sees the image again, unless ``image`` is
    False, and predicts its four pixels.
    """

    def __init__(self, channels: int, image: bool = True):
        super().__init__()
        self.look = conv_norm_relu(3, 16, 3, stride=2) if image else None
        mixed = channels // 4 + (16 if image else 0)
        self.mix = conv_norm_relu(mixed, mixed, 3)
        self.to_mask = nn.Conv2d(mixed, 4, 3, padding=1)

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
            *conv_norm_relu(channels, channels, 3), *conv_norm_relu(channels, channels, 3)[:2]
        )

    def forward(self, x: Tensor) -> Tensor:
        """Residual, then ReLU."""
        return F.relu(x + self.layers(x))


class AtrousPyramid(nn.Module):
    """Context at several distances: dilated convolutions, and the mean over the whole map."""

    def __init__(self, channels: int):
        super().__init__()
        self.branches = nn.ModuleList(
            conv_norm_relu(channels, channels, 3, dilation) for dilation in (1, 2, 4)
        )
        # Not normalised: the mean over a map is one value, too few for statistics.
        self.whole = nn.Sequential(nn.Conv2d(channels, channels, 1), nn.ReLU(inplace=True))
        self.merge = conv_norm_relu(4 * channels, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) to the same shape."""
        whole = self.whole(x.mean(dim=(2, 3), keepdim=True)).expand_as(x)
        return self.merge(torch.cat([*(branch(x) for branch in self.branches), whole], dim=1))


def conv_norm_relu(
    channels: int, out_channels: int, kernel: int, dilation: int = 1, stride: int = 1
) -> nn.Sequential:
    """A convolution that keeps height and width at stride 1, batch normalisation and ReLU."""
    padding = dilation * (kernel // 2)
    return nn.Sequential(
        nn.Conv2d(channels, out_channels, kernel, stride, padding, dilation, bias=False),
        nn.BatchNorm2d(out_channels),
        nn.ReLU(inplace=True),
    )


def feed_forward(channels: int) -> nn.Sequential:
    """The perceptron of a transformer block with its normalisation, (..., C) to (..., C)."""
    return nn.Sequential(
        nn.LayerNorm(channels),
        nn.Linear(channels, 2 * channels),
        nn.GELU(),
        nn.Linear(2 * channels, channels),
    )
