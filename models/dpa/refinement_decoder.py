"""Mask decoder of Dual Prototype Attention (Cho, Lee et al., arXiv 2211.12036).

It merges three scales of both streams, and refines the mask with features of the RGB encoder.
"""

import math

import torch
from torch import Tensor, nn

from models.blocks import AtrousPyramid, Outline, ResidualBlock, conv_norm_relu
from models.ops import resize


class StreamEmbedding(nn.Module):
    """A stream's last two stages, and their context at stride 32, for the decoder.

    The stages have ``widths`` channels, the results C = ``channels``. With ``pool`` the last stage
    is at stride 16.
    """

    def __init__(self, widths: list[int], channels: int, pool: bool):
        super().__init__()
        self.stages = nn.ModuleList(nn.Conv2d(width, channels, 1) for width in widths)
        self.context = nn.Sequential(
            nn.MaxPool2d(2) if pool else nn.Identity(),
            nn.Conv2d(widths[-1], channels, 1, bias=False),
            conv_norm_relu(channels, channels, 3),
            conv_norm_relu(channels, channels, 3),
            AtrousPyramid(channels),
        )

    def forward(self, features: list[Tensor]) -> list[Tensor]:
        """Features of the last two stages to three maps with C channels, finest first."""
        stages = [embed(x) for embed, x in zip(self.stages, features)]
        return [*stages, self.context(features[-1])]


class RefinementDecoder(nn.Module):
    """A mask from the three scales, refined with the RGB features of the encoder's first stages.

    Args:
        channels: C.
        skips: channels of the RGB stream's stages before its last two, finest first.
        streams: 2, or 1 in stage 1, which fuses nothing.
        outline: the finest stage is at stride 4, and an :class:`Outline` draws the last mask.
        image: the outline sees the image again.
    """

    def __init__(
        self, channels: int, skips: list[int], streams: int, outline: bool, image: bool = True
    ):
        super().__init__()
        self.fuse = nn.ModuleList(
            fused(streams * channels, channels) if streams > 1 else nn.Identity() for _ in range(3)
        )
        narrow = 4 * math.ceil(channels / 16)  # a quarter, of which the outline spreads quarters
        self.merge_context = fused(2 * channels, channels)
        self.merge_stages = nn.Sequential(
            fused(2 * channels, channels), nn.Conv2d(channels, narrow, 1)
        )
        self.to_mask = nn.Conv2d(narrow, 1, 1)
        self.refine = nn.ModuleList(
            Refinement(width, channels // 2, narrow) for width in reversed(skips)
        )
        self.outline = Outline(narrow, image) if outline else None

    def forward(
        self, streams: list[list[Tensor]], skips: list[Tensor], image: Tensor
    ) -> list[Tensor]:
        """Results of :class:`StreamEmbedding` and ``skips`` to logits (B, 1, H, W), finest first.

        ``skips`` are the RGB stream's stages before its last two, finest first; ``image`` is the
        target image (B, 3, H, W), normalised.
        """
        fine, coarse, context = (
            fuse(torch.cat(scale, dim=1)) for fuse, scale in zip(self.fuse, zip(*streams))
        )
        coarse = self.merge_context(torch.cat([coarse, resize(context, coarse.shape[2:])], dim=1))
        x = self.merge_stages(torch.cat([fine, resize(coarse, fine.shape[2:])], dim=1))
        masks = [self.to_mask(x)]
        # The first mask selects the details of the object.
        probability = masks[0].sigmoid()
        for refine, skip in zip(self.refine, reversed(skips)):
            x, mask = refine(skip, probability, x)
            masks.append(mask)
        if self.outline is not None:
            masks.append(self.outline(x, image))
        return [resize(mask, image.shape[2:]) for mask in reversed(masks)]


class Refinement(nn.Module):
    """One step to a finer scale: RGB features at the first mask join the coarser features.

    ``width`` channels of RGB features are squeezed to ``details``; the result has ``channels``.
    """

    def __init__(self, width: int, details: int, channels: int):
        super().__init__()
        self.squeeze = nn.Conv2d(width, details, 1)
        self.mix = nn.Sequential(
            conv_norm_relu(details + channels, details + channels, 3),
            conv_norm_relu(details + channels, channels, 3),
        )
        self.to_mask = nn.Conv2d(channels, 1, 1)

    def forward(self, skip: Tensor, probability: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
        """RGB features (B, width, h, w), the first mask's probability and the coarser features.

        Returns features (B, channels, h, w) and the mask's logits (B, 1, h, w).
        """
        size = skip.shape[2:]
        details = self.squeeze(skip) * resize(probability, size)
        x = self.mix(torch.cat([details, resize(x, size)], dim=1))
        return x, self.to_mask(x)


def fused(channels: int, out_channels: int) -> nn.Sequential:
    """Concatenated maps (B, channels, H, W) become one (B, out_channels, H, W)."""
    return nn.Sequential(ResidualBlock(channels), *conv_norm_relu(channels, out_channels, 3))
