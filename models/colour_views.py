"""Random changes of colour, one for a whole clip (SMTC and SSL-UVOS)."""

import torch
import torchvision.transforms.v2.functional as V
from torch import Tensor

from models.precision import without_autocast

GREY, JITTER, BLUR = 0.2, 0.8, 0.5  # probabilities
BRIGHTNESS = CONTRAST = SATURATION = 0.4  # strengths: a factor of 1 - strength to 1 + strength
HUE = 0.1  # in turns of the colour circle
SIGMA = (0.1, 2.0)  # of the blur, in pixels


@torch.compiler.disable  # it draws numbers, after each of which a graph would end
def colour_view(clips: Tensor) -> Tensor:
    """Clips with their colours changed, and some of them blurred.

    The pixels stay where they are. All frames of a clip get the same change, from torch's random
    numbers.

    Args:
        clips: uint8 (B, T, 3, H, W).

    Returns:
        float32 of the same shape, in [0, 1].
    """
    with without_autocast(clips):  # the blur is a convolution
        return torch.stack([_changed(clip.float() / 255) for clip in clips])


def _changed(frames: Tensor) -> Tensor:
    """Frames (T, 3, H, W) of one clip."""
    chance = torch.rand(3)
    if chance[0] < GREY:
        frames = V.rgb_to_grayscale(frames, num_output_channels=3)
    if chance[1] < JITTER:
        for kind in torch.randperm(4).tolist():
            if kind == 0:
                frames = V.adjust_brightness(frames, _factor(BRIGHTNESS))
            elif kind == 1:
                frames = V.adjust_contrast(frames, _factor(CONTRAST))
            elif kind == 2:
                frames = V.adjust_saturation(frames, _factor(SATURATION))
            else:
                frames = V.adjust_hue(frames, HUE * (2 * torch.rand(()).item() - 1))
    if chance[2] < BLUR:
        low, high = SIGMA
        sigma = low + (high - low) * torch.rand(()).item()
        width = [side // 10 // 2 * 2 + 1 for side in (frames.shape[3], frames.shape[2])]
        frames = V.gaussian_blur(frames, width, [sigma, sigma])
    return frames


def _factor(strength: float) -> float:
    return 1 + strength * (2 * torch.rand(()).item() - 1)
