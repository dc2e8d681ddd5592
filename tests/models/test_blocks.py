"""Blocks of mask decoders."""

import torch
import torch.nn.functional as F

from models.blocks import conv_norm_relu


def test_a_convolution_keeps_height_and_width():
    x = torch.randn(2, 4, 7, 5)
    for kernel, dilation in ((1, 1), (3, 1), (3, 4)):
        assert conv_norm_relu(4, 6, kernel, dilation)(x).shape == (2, 6, 7, 5)


def test_a_normalised_convolution_with_relu_is_just_that():
    torch.manual_seed(0)
    layers = conv_norm_relu(4, 6, 3, dilation=2)
    x = torch.randn(2, 4, 7, 5)
    found = layers(x)
    plain = F.conv2d(x, layers[0].weight, padding=2, dilation=2)
    mean = plain.mean(dim=(0, 2, 3), keepdim=True)
    variance = plain.var(dim=(0, 2, 3), unbiased=False, keepdim=True)
    expected = ((plain - mean) / (variance + 1e-5).sqrt()).clamp(min=0)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
