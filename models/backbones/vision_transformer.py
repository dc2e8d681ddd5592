"""Vision transformers whose keys are features, as DINO's are used (SSL-UVOS, SMTC)."""

import argparse
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import timm
import torch
import torch.nn.functional as F
from timm.data import resolve_data_config
from timm.layers import resample_abs_pos_embed
from torch import Tensor, nn

from models.backbones import ModelError, weights_error, weights_file

WRAPPERS = ("module.", "backbone.", "encoder.")
NESTED = ("teacher", "state_dict", "model")
# Images with more tokens keep torch's attention on the CPU. With 2500 tokens, 6 heads and 4 images,
# the scores and their softmax take 0.6 GB.
MOST_TOKENS = 2500


# Mean and deviation of Kinetics' images, with which the releases of SMTC and SSL-UVOS test.
KINETICS = (0.43216, 0.394666, 0.37645), (0.22803, 0.22145, 0.216989)


class Tokens(NamedTuple):
    """Features of a batch of images.

    Attributes:
        keys: of one block, (B, N, C), heads side by side; N = h * w patches, row by row.
        class_token: after the last block, before the last normalisation, (B, C).
        grid: h and w.
        patches: after the last block, before the last normalisation, (B, N, C).
    """

    keys: Tensor
    class_token: Tensor | None
    grid: tuple[int, int]
    patches: Tensor | None = None


class VisionTransformer(nn.Module):
    """Any vision transformer of timm that has a class token.

    Args:
        name: timm's name, as ``vit_small_patch8_224.dino``.
        pretrained: start from published weights; with ``False`` nothing is read or downloaded.
        weights: a local file with them: timm's, or DINO's own, of the backbone alone or of a whole
            training; ``None`` downloads timm's.
        positions: how the table of positions is resampled for another grid: ``dino``, as DINO's
            authors do, or ``timm``.
        drop_path: rate of stochastic depth of the last block in training; it rises from 0.

    Attributes:
        channels, patch: C, and the side of a patch in pixels.
        mean, deviation: of the images that the weights were trained with.

    Raises:
        ModelError: no such network, or weights that are missing or do not fit.
    """

    def __init__(
        self,
        name: str,
        pretrained: bool = True,
        weights: Path | None = None,
        positions: str = "dino",
        drop_path: float = 0.0,
    ):
        super().__init__()
        unfit = ModelError(
            f"BACKBONE is {name!r}, which is no vision transformer of timm with a class token and "
            "a table of positions, as vit_small_patch8_224.dino"
        )
        if not timm.is_model(name):
            raise unfit
        options = {"num_classes": 0, "dynamic_img_size": True, "drop_path_rate": drop_path}
        download = pretrained and weights is None
        try:
            self.encoder = timm.create_model(name, pretrained=download, **options)
        except TypeError:  # it does not take images of any size
            raise unfit from None
        except Exception as error:  # the hub's client and timm raise many kinds here
            raise weights_error(name, None, error) from error
        if not _is_plain(self.encoder):
            raise unfit
        if pretrained and weights is not None:
            _load(self.encoder, name, weights_file(weights))
        self.positions = positions
        self.channels = self.encoder.embed_dim
        self.patch = self.encoder.patch_embed.patch_size[0]
        published = resolve_data_config({}, pretrained_cfg=self.encoder.pretrained_cfg)
        self.mean, self.deviation = published["mean"], published["std"]

    def forward(self, images: Tensor, class_token: bool = True) -> Tokens:
        """Features of normalised images.

        Args:
            images: (B, 3, H, W) of any size; they are resized to the nearest whole patches.
            class_token: whether the class token and ``patches`` are needed, for which the last
                block must run.
        """
        size = [max(1, round(side / self.patch)) * self.patch for side in images.shape[2:]]
        if list(images.shape[2:]) != size:
            images = F.interpolate(images, size, mode="bilinear", align_corners=False)
        x = self.encoder.patch_embed(images)
        grid = (x.shape[1], x.shape[2])
        x = self.encoder.norm_pre(self._with_positions(x.flatten(1, 2), grid))
        with _fast_attention(self.encoder.blocks, x):
            *before, last = self.encoder.blocks
            for block in before:
                x = block(x)
            keys = self._keys(last, x)
            if not class_token:
                return Tokens(keys, None, grid)
            x = last(x)
        return Tokens(keys, x[:, 0], grid, x[:, self.encoder.num_prefix_tokens :])

    def train_keys_alone(self) -> None:
        """Freeze the parameters that the keys do not depend on; the others can be trained."""
        encoder = self.encoder
        *before, last = encoder.blocks
        needed = {encoder.pos_embed, encoder.cls_token}
        for module in (encoder.patch_embed, encoder.norm_pre, *before, last.norm1, last.attn.qkv):
            needed.update(module.parameters())
        for parameter in self.parameters():
            parameter.requires_grad_(parameter in needed)

    def _keys(self, block: nn.Module, x: Tensor) -> Tensor:
        rows = slice(self.channels, 2 * self.channels)  # queries, keys and values lie in this order
        qkv = block.attn.qkv
        bias = None if qkv.bias is None else qkv.bias[rows]
        patches = block.norm1(x)[:, self.encoder.num_prefix_tokens :]
        return F.linear(patches, qkv.weight[rows], bias)

    def _with_positions(self, x: Tensor, grid: tuple[int, int]) -> Tensor:
        """Patches (B, N, C) with positions, behind the class token."""
        encoder = self.encoder
        tables = 0 if encoder.no_embed_class else encoder.num_prefix_tokens
        positions = resample_positions(encoder.pos_embed, grid, tables, self.positions)
        token = encoder.cls_token.expand(x.shape[0], -1, -1)
        if encoder.no_embed_class:
            return torch.cat([token, x + positions], dim=1)
        return torch.cat([token, x], dim=1) + positions


def resample_positions(table: Tensor, grid: tuple[int, int], prefix: int, rule: str) -> Tensor:
    """A square table of positions for a grid of another size.

    DINO's rule enlarges by the factors (h + 0.1) / n and (w + 0.1) / n of a table n x n, and takes
    the coordinates from these factors. timm's resizes to h x w, with antialiasing.

    Args:
        table: (1, prefix + n * n, C).
        grid: h and w.
        prefix: number of first rows that belong to no patch.
        rule: ``dino`` or ``timm``.

    Returns:
        (1, prefix + h * w, C).
    """
    if rule == "timm":
        return resample_abs_pos_embed(table, list(grid), num_prefix_tokens=prefix)
    first, patches = table[:, :prefix], table[:, prefix:]
    side = round(patches.shape[1] ** 0.5)
    if grid == (side, side):
        return table
    patches = patches.unflatten(1, (side, side)).permute(0, 3, 1, 2)
    factors = [(length + 0.1) / side for length in grid]
    patches = F.interpolate(
        patches.float(), scale_factor=factors, mode="bicubic", recompute_scale_factor=False
    )
    return torch.cat([first, patches.flatten(2).transpose(1, 2).to(table.dtype)], dim=1)


@contextmanager
def _fast_attention(blocks: nn.Sequential, x: Tensor) -> Iterator[None]:
    """Context in which timm's blocks compute attention as ``models.ops.attention`` does."""
    # With gradients, each block would keep its scores.
    if (
        x.device.type != "cpu"
        or not torch.is_autocast_enabled("cpu")
        or torch.is_grad_enabled()
        or x.shape[1] > MOST_TOKENS
    ):
        yield
        return
    before = [block.attn.fused_attn for block in blocks]
    for block in blocks:
        block.attn.fused_attn = False
    try:
        yield
    finally:
        for block, fused in zip(blocks, before):
            block.attn.fused_attn = fused


def _is_plain(encoder: nn.Module) -> bool:
    """Whether it is a vision transformer with one class token, positions in a table, and keys."""
    return (
        isinstance(encoder, timm.models.vision_transformer.VisionTransformer)
        and encoder.cls_token is not None
        and encoder.num_prefix_tokens == 1
        and encoder.pos_embed is not None
        and isinstance(encoder.blocks[0].attn.qkv, nn.Linear)
    )


def _load(encoder: nn.Module, name: str, file: Path) -> None:
    """Load timm's or DINO's weights; of a whole training, the teacher's."""
    try:
        if file.suffix == ".safetensors":
            from safetensors.torch import load_file

            state = load_file(file)
        else:
            # DINO's checkpoints hold their command line, too.
            with torch.serialization.safe_globals([argparse.Namespace]):
                state = torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:  # safetensors and torch.load raise many kinds here
        raise weights_error(name, file, error) from error
    if not isinstance(state, dict):
        raise weights_error(name, file, f"found {type(state).__name__}, expected a state dict")
    state = next((state[key] for key in NESTED if isinstance(state.get(key), dict)), state)
    found = {}
    for key, value in state.items():
        while isinstance(key, str) and key.startswith(WRAPPERS):
            key = key.split(".", 1)[1]
        found[key] = value
    own = encoder.state_dict()
    unfit = [n for n, tensor in own.items() if getattr(found.get(n), "shape", None) != tensor.shape]
    if unfit:
        raise weights_error(
            name,
            file,
            f"{len(unfit)} of the encoder's {len(own)} tensors are missing or differ in shape: "
            + ", ".join(unfit[:3])
            + (", ..." if len(unfit) > 3 else ""),
        )
    encoder.load_state_dict({n: found[n] for n in own})
