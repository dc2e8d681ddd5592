"""Encoders: a four-level feature pyramid from any backbone (Sec. 3.1, "encoder").

``mit_b0`` to ``mit_b5`` come from ``models.backbones.mix_transformer``, all others from timm.
"""

import difflib
from contextlib import suppress
from pathlib import Path

import timm
import torch
from timm.data import resolve_data_config
from torch import Tensor, nn

from errors import UserError
from models.backbones.mix_transformer import MIX_TRANSFORMERS, MixTransformer, published_weights

STRIDES = (4, 8, 16, 32)
VGG_STRIDES = (1, 2, 4, 8, 16)


class ModelError(UserError):
    """A network or backbone that cannot be built: no such name, no pyramid, weights that fail."""


def stage_strides(name: str) -> tuple[int, ...]:
    """Strides at which the stages of a backbone end; stride 32 of a VGG network is only pooled."""
    return VGG_STRIDES if name.startswith("vgg") else STRIDES


def build_backbone(
    name: str,
    pretrained: bool = True,
    weights: Path | None = None,
    strides: tuple[int, ...] = STRIDES,
) -> nn.Module:
    """An encoder, a module from images (B, 3, H, W) to feature maps at the given strides.

    Args:
        name: ``mit_b0`` to ``mit_b5``, or a timm model name.
        pretrained: start from ImageNet weights.
        weights: local file or folder with them (``model.safetensors`` or ``pytorch_model.bin``).
        strides: of the maps, finest first; a Mix Transformer has the usual four.

    Returns:
        A module with ``channels``, the maps' widths, their ``strides``, and ``mean`` and
        ``deviation`` of the images that its weights were trained with. Maps are
        (B, C_l, H / stride_l, W / stride_l).

    Raises:
        ModelError: unknown name, no such pyramid, or weights that are missing or do not fit.
    """
    file = weights_file(weights) if pretrained and weights is not None else None
    if name not in MIX_TRANSFORMERS:
        return TimmPyramid(name, pretrained, file, strides)
    encoder = MixTransformer(name)
    encoder.strides = STRIDES
    if pretrained:
        try:
            encoder.load_state_dict(published_weights(name, file))
        except Exception as error:  # of the hub's client, safetensors, torch.load or the names
            raise weights_error(name, file, error) from error
    return encoder


class Normalise(nn.Module):
    """Subtracts each channel's mean from images and divides by its deviation; both are buffers."""

    def __init__(self, mean: tuple[float, ...], deviation: tuple[float, ...]):
        super().__init__()
        self.register_buffer("mean", torch.tensor(mean).view(1, 3, 1, 1))
        self.register_buffer("deviation", torch.tensor(deviation).view(1, 3, 1, 1))

    def forward(self, images: Tensor) -> Tensor:
        """(B, 3, H, W), uint8 or float in [0, 1], to float of the same shape, channels last."""
        if images.dtype == torch.uint8:
            images = images.float() / 255
        images = images.contiguous(memory_format=torch.channels_last)
        return (images - self.mean) / self.deviation


def check_size(images: Tensor) -> None:
    """Raise ValueError unless height and width (the last two axes) are multiples of 32."""
    height, width = images.shape[-2:]
    if height % 32 or width % 32:
        raise ValueError(f"images of {height} x {width} pixels: expected multiples of 32")


def freeze_unused(encoder: nn.Module, last: int) -> None:
    """Freeze the parameters that the ``last`` maps of a pyramid do not depend on.

    HRNet has such parameters. Training by several processes would wait for their gradients.
    """
    if torch.is_inference_mode_enabled():  # there will be no training
        return
    training, parameters = encoder.training, list(encoder.parameters())
    with torch.enable_grad():
        total = sum(one.sum() for one in encoder.eval()(torch.zeros(1, 3, 64, 64))[-last:])
    encoder.train(training)
    for one, gradient in zip(parameters, torch.autograd.grad(total, parameters, allow_unused=True)):
        one.requires_grad_(gradient is not None)


class TimmPyramid(nn.Module):
    """Any timm network that has feature maps at these strides; see :func:`build_backbone`."""

    def __init__(self, name: str, pretrained: bool, weights: Path | None, strides: tuple[int, ...]):
        super().__init__()
        if not timm.is_model(name):
            near = difflib.get_close_matches(name, [*MIX_TRANSFORMERS, *timm.list_models()], n=3)
            hint = f"; did you mean {', '.join(near)}?" if near else ""
            raise ModelError(
                f"BACKBONE is {name!r}, which is neither mit_b0 to mit_b5 nor a timm model{hint}"
            )
        self.encoder = _create_timm_pyramid(name, pretrained, weights, strides)
        self.channels, self.strides = self.encoder.feature_info.channels(), strides
        self.channels_last = getattr(self.encoder, "output_fmt", "NCHW") == "NHWC"
        # Random weights get the statistics of the published ones, too.
        published = resolve_data_config({}, pretrained_cfg=self.encoder.pretrained_cfg)
        self.mean, self.deviation = published["mean"], published["std"]

    def forward(self, images: Tensor) -> list[Tensor]:
        """(B, 3, H, W) to the maps, finest first."""
        features = self.encoder(images)
        if self.channels_last:
            features = [feature.permute(0, 3, 1, 2) for feature in features]
        return features


def _create_timm_pyramid(
    name: str, pretrained: bool, weights: Path | None, strides: tuple[int, ...]
) -> nn.Module:
    try:
        plain = timm.create_model(name, pretrained=False, features_only=True)
    except (RuntimeError, AttributeError, TypeError, AssertionError) as error:
        raise ModelError(f"timm gives no feature pyramid of {name}: {error}") from error
    reductions = list(plain.feature_info.reduction())
    missing = [stride for stride in strides if stride not in reductions]
    if missing:
        raise ModelError(
            f"backbone {name} has feature maps at strides {reductions}, but strides "
            f"{list(strides)} are needed; choose a network with such a pyramid"
        )
    options = {}
    if (refusal := _refusal(plain)) is not None:
        options["strict_img_size"] = False  # an option of windowed transformers
        with suppress(TypeError):  # of networks without it
            refusal = _refusal(timm.create_model(name, features_only=True, **options))
        if refusal is not None:
            raise ModelError(
                f"backbone {name} takes images of one size only ({refusal}); choose another network"
            )
    # The last map of a stride is the one that has seen most layers.
    levels = [len(reductions) - 1 - reductions[::-1].index(stride) for stride in strides]
    options["out_indices"] = [plain.feature_info.out_indices[level] for level in levels]
    try:
        if pretrained and weights is not None:
            options["pretrained_cfg_overlay"] = {"file": str(weights)}
            # A pyramid ignores missing tensors; the whole network does not.
            overlay = options["pretrained_cfg_overlay"]
            timm.create_model(name, pretrained=True, pretrained_cfg_overlay=overlay)
        return timm.create_model(name, pretrained=pretrained, features_only=True, **options)
    except Exception as error:  # of timm, the hub's client or torch.load; all about the weights
        raise weights_error(name, weights, error) from error


def _refusal(network: nn.Module) -> str | None:
    """A network's error for an image of an unusual size; ``None`` if it takes it."""
    try:
        with torch.no_grad():
            network.eval()(torch.zeros(1, 3, 64, 96))
    except Exception as error:  # each architecture has its own way to refuse
        return (str(error).splitlines() or [type(error).__name__])[0]
    return None


def weights_file(path: Path) -> Path:
    """The file of weights that BACKBONE_WEIGHTS names, itself or by its folder.

    Raises:
        ModelError: there is none.
    """
    path = Path(path)
    names = ("model.safetensors", "pytorch_model.bin")
    for file in (path / name for name in names) if path.is_dir() else (path,):
        if file.is_file():
            return file
    if path.is_dir():
        raise ModelError(f"BACKBONE_WEIGHTS folder {path} has neither {names[0]} nor {names[1]}")
    raise ModelError(f"BACKBONE_WEIGHTS is {path}, but there is no such file or folder")


def weights_error(name: str, weights: Path | None, error: Exception | str) -> ModelError:
    """The error of weights that cannot be downloaded or do not fit."""
    reason = " ".join(str(error).split())[:200]
    if weights is None:
        return ModelError(
            f"the published weights of {name} could not be downloaded ({reason}); set "
            "BACKBONE_WEIGHTS to a local file or folder with them, or PRETRAINED_BACKBONE = False "
            "to start from random weights"
        )
    return ModelError(
        f"{weights} does not fit {name} ({reason}); BACKBONE_WEIGHTS must be the file published "
        "for this backbone"
    )
