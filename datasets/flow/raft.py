"""RAFT (Teed and Deng, ECCV 2020) for the frames of a video, with the weights of torchvision.

The results are those of torchvision's forward pass but for rounding. It is faster: features of a
frame and the recurrent unit's convolutions of the context are computed once, only the last
refinement becomes a flow map of the frame's size, and tensors are channels-last. All but
positions, correlations and flow may be bfloat16, as under autocast in the authors' code. The
caller's autocast has no effect.
"""

from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval
from torchvision.models.optical_flow.raft import RAFT
from torchvision.ops.misc import Conv2dNormActivation

_REFINEMENTS = 12
_LEVELS = 4  # of the correlations
_RADIUS = 4  # features to each side of a position, at each level, whose correlations are looked up
_STRIDE = 8  # pixels of a frame for one of the features


@dataclass(frozen=True)
class EncodedFrame:
    """A frame and its features for the matching."""

    image: Tensor  # (1, 3, H, W), -1 to 1, of the estimator's type
    features: Tensor  # float32 (1, C, H/8, W/8)


class Raft:
    """Encodes frames, and estimates the motion between two of them.

    Args:
        model: torchvision's ``raft_large``; it is changed, and cannot be called afterwards.
        device: where it computes.
        dtype: of all but positions, correlations and flow.
    """

    def __init__(self, model: RAFT, device: str | torch.device, dtype: torch.dtype = torch.float32):
        _normalise_over_one_image(model.feature_encoder)
        _fold_normalisation(model.eval().context_encoder)
        self.model = model.to(device, dtype, memory_format=torch.channels_last)
        self.device, self.dtype = torch.device(device), dtype
        block = model.update_block
        self.hidden_channels = block.hidden_state_size
        recurrent = block.recurrent_block
        self.units = [
            _RecurrentUnit(unit, self.hidden_channels)
            for unit in (recurrent.convgru1, recurrent.convgru2)
        ]

    @torch.inference_mode()
    def encode(self, frame: np.ndarray) -> EncodedFrame:
        """Encode a frame, uint8 RGB (H, W, 3), whose sides are multiples of 8."""
        image = torch.from_numpy(frame).to(self.device).permute(2, 0, 1)[None]  # channels-last
        image = (image.float() / 127.5 - 1).to(self.dtype)
        with torch.autocast(self.device.type, enabled=False):
            return EncodedFrame(image, self.model.feature_encoder(image).float())

    @torch.inference_mode()
    def estimate(self, first: EncodedFrame, second: EncodedFrame) -> np.ndarray:
        """The motion from the first frame to the second, float32 (H, W, 2) in pixels."""
        with torch.autocast(self.device.type, enabled=False):
            flow = self._refined(first, second)
        return flow[0].permute(1, 2, 0).cpu().numpy()

    def _refined(self, first: EncodedFrame, second: EncodedFrame) -> Tensor:
        model, block = self.model, self.model.update_block
        correlations = _Correlations(first.features, second.features)
        encoded = model.context_encoder(first.image)
        hidden, context = encoded.tensor_split([self.hidden_channels], dim=1)
        hidden, context = hidden.tanh(), context.relu()
        shares = [unit.of_context(context) for unit in self.units]
        start = _positions(*first.features.shape[-2:], self.device)
        position = start.clone()
        for _ in range(_REFINEMENTS):
            seen = correlations.around(position).to(self.dtype)
            motion = block.motion_encoder((position - start).to(self.dtype), seen)
            for unit, share in zip(self.units, shares):
                hidden = unit(hidden, motion, share)
            position = position + block.flow_head(hidden)
        return _enlarge(position - start, model.mask_predictor(hidden).float())


class _Correlations:
    """Products of all pairs of two frames' features (1, C, H, W), at four levels (Sec. 3.2).

    Level l has (H * W, 1, H / 2^l, W / 2^l): products with the means of squares of the second
    frame's features, which are the means of the products.
    """

    def __init__(self, first: Tensor, second: Tensor):
        first = first / first.shape[1] ** 0.5
        line = torch.arange(-_RADIUS, _RADIUS + 1, dtype=torch.float32, device=first.device)
        offsets = torch.stack(torch.meshgrid(line, line, indexing="ij"), dim=-1)  # x before y
        # Products; how grid_sample's coordinates follow from a position's; those around it.
        self.levels: list[tuple[Tensor, Tensor, Tensor]] = []
        for level in range(_LEVELS):
            keys = F.avg_pool2d(second, 2**level) if level else second
            # grid_sample counts from -1, the middle of the first feature, to 1, that of the last.
            last = torch.tensor([keys.shape[-1] - 1.0, keys.shape[-2] - 1.0], device=first.device)
            step = 2 / 2**level / last
            self.levels.append((_products(first, keys), step, 2 * offsets / last - 1))

    def around(self, position: Tensor) -> Tensor:
        """The correlations at positions (1, 2, H, W) and around them: (1, 4 * 9 * 9, H, W)."""
        height, width = position.shape[-2:]
        # Contiguous, because grid_sample is slow otherwise.
        centre = position.permute(0, 2, 3, 1).contiguous().view(-1, 1, 1, 2)
        seen = [
            F.grid_sample(products, centre * step + around, align_corners=True).flatten(1)
            for products, step, around in self.levels
        ]
        return torch.cat(seen, dim=1).view(1, height, width, -1).permute(0, 3, 1, 2)


class _RecurrentUnit:
    """A convolutional gated recurrent unit whose input is a constant context and the motion."""

    def __init__(self, unit: nn.Module, hidden: int):
        self.padding = unit.convz.padding
        convolutions = unit.convz, unit.convr, unit.convq
        weight = torch.cat([one.weight for one in convolutions]).detach()
        self.bias = torch.cat([one.bias for one in convolutions]).detach()
        context = (weight.shape[1] - hidden) // 2  # the other half of it is the motion's
        # Separate convolutions, so that their inputs need not be joined in each refinement.
        own, *others = weight.split([hidden, context, context], dim=1)
        parts = own[: 2 * hidden], own[2 * hidden :], *others
        self.gates, self.candidate, self.context, self.motion = (
            part.contiguous(memory_format=torch.channels_last) for part in parts
        )

    def of_context(self, context: Tensor) -> Tensor:
        """The context's share of the three convolutions."""
        return F.conv2d(context, self.context, self.bias, padding=self.padding)

    def __call__(self, hidden: Tensor, motion: Tensor, share: Tensor) -> Tensor:
        """The next hidden state."""
        inputs = F.conv2d(motion, self.motion, padding=self.padding).add_(share)
        of_gates, candidate = inputs.split([len(self.gates), len(self.candidate)], dim=1)
        gates = F.conv2d(hidden, self.gates, padding=self.padding).add_(of_gates)
        update, reset = gates.sigmoid_().chunk(2, dim=1)
        own = F.conv2d(reset * hidden, self.candidate, padding=self.padding)
        return torch.lerp(hidden, own.add_(candidate).tanh_(), update)


def _normalise_over_one_image(encoder: nn.Module) -> None:
    """Batch instead of instance normalisation: the same for one image, and faster channels-last."""
    for module in list(encoder.modules()):
        for name, child in list(module.named_children()):
            if isinstance(child, nn.InstanceNorm2d):
                size = child.num_features
                norm = nn.BatchNorm2d(size, child.eps, affine=False, track_running_stats=False)
                setattr(module, name, norm)


def _fold_normalisation(encoder: nn.Module) -> None:
    """Make the batch normalisation a part of the convolution before it."""
    for module in list(encoder.modules()):
        if isinstance(module, Conv2dNormActivation):
            convolution, norm, *_ = module
            module[0], module[1] = fuse_conv_bn_eval(convolution, norm), nn.Identity()


def _products(first: Tensor, second: Tensor) -> Tensor:
    """Products of all pairs of features (1, C, H, W) and (1, C, h, w): (H * W, 1, h, w)."""
    keys = second.permute(0, 2, 3, 1).flatten(0, 2)
    if first.device.type == "cpu":
        # oneDNN's convolutions are faster than products of matrices on some CPUs. GPUs would round
        # them to TF32.
        products = F.conv2d(first, keys[..., None, None]).permute(0, 2, 3, 1)
    else:
        products = first.permute(0, 2, 3, 1) @ keys.T
    return products.reshape(-1, 1, *second.shape[-2:])


def _positions(height: int, width: int, device: str | torch.device) -> Tensor:
    """The place of each feature, (1, 2, H, W), x before y."""
    y, x = torch.meshgrid(
        torch.arange(height, dtype=torch.float32, device=device),
        torch.arange(width, dtype=torch.float32, device=device),
        indexing="ij",
    )
    return torch.stack([x, y])[None]


def _enlarge(flow: Tensor, weights: Tensor) -> Tensor:
    """Each pixel's flow as a weighted mean of its feature's and eight neighbours' (Sec. 3.3).

    Args:
        flow: (1, 2, H, W) in features.
        weights: (1, 9 * 8 * 8, H, W), before their softmax.

    Returns:
        (1, 2, 8 * H, 8 * W) in pixels.
    """
    height, width = flow.shape[-2:]
    weights = weights.view(1, 9, _STRIDE, _STRIDE, height, width).softmax(dim=1)
    neighbours = F.unfold(_STRIDE * flow, 3, padding=1).view(1, 2, 9, 1, 1, height, width)
    pixels = (weights.unsqueeze(1) * neighbours).sum(dim=2)
    return pixels.permute(0, 1, 4, 2, 5, 3).reshape(1, 2, _STRIDE * height, _STRIDE * width)
