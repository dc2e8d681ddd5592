"""Mix Transformer, SegFormer's encoder (Xie et al., NeurIPS 2021, Sec. 3.1), MiT-b0 to b5.

Features stay (B, H, W, C) in memory, so that linear layers, normalisation, attention and
convolutions need no copies between their layouts.
"""

import re
from pathlib import Path

import timm.models
import torch
import torch.nn.functional as F
from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from models.ops import attention
from models.precision import LayerNorm

# Widths of the four levels and numbers of blocks in them (Xie et al., Table 6).
MIX_TRANSFORMERS = {
    "mit_b0": ((32, 64, 160, 256), (2, 2, 2, 2)),
    "mit_b1": ((64, 128, 320, 512), (2, 2, 2, 2)),
    "mit_b2": ((64, 128, 320, 512), (3, 4, 6, 3)),
    "mit_b3": ((64, 128, 320, 512), (3, 4, 18, 3)),
    "mit_b4": ((64, 128, 320, 512), (3, 8, 27, 3)),
    "mit_b5": ((64, 128, 320, 512), (3, 6, 40, 3)),
}
HEADS = (1, 2, 5, 8)
REDUCTIONS = (8, 4, 2, 1)  # of keys' and values' height and width
PATCHES = ((7, 4), (3, 2), (3, 2), (3, 2))  # kernel and stride that each level begins with
EXPANSION = 4
DROP_PATH = 0.1  # of the last block; it rises to this from 0 at the first


class MixTransformer(nn.Module):
    """Four levels of overlapping patches and transformer blocks; ``mit_b0`` to ``mit_b5``."""

    mean, deviation = IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD

    def __init__(self, name: str):
        super().__init__()
        widths, depths = MIX_TRANSFORMERS[name]
        self.channels = list(widths)
        drops = iter([DROP_PATH * i / (sum(depths) - 1) for i in range(sum(depths))])
        self.levels = nn.ModuleList()
        for before, width, depth, heads, reduction, patches in zip(
            (3, *widths), widths, depths, HEADS, REDUCTIONS, PATCHES
        ):
            blocks = [Block(width, heads, reduction, next(drops)) for _ in range(depth)]
            self.levels.append(Level(before, width, *patches, blocks))
        self.apply(_initialise)

    def forward(self, images: Tensor) -> list[Tensor]:
        """(B, 3, H, W) to four maps (B, C_l, H / stride_l, W / stride_l), finest first."""
        features, x = [], images
        for level in self.levels:
            x = level(x)
            features.append(x)
        return features


class Level(nn.Module):
    """Overlapping patches, the blocks of one level, and a last normalisation."""

    def __init__(self, before: int, width: int, kernel: int, stride: int, blocks: list[nn.Module]):
        super().__init__()
        self.patches = nn.Conv2d(before, width, kernel, stride, padding=kernel // 2)
        self.norm_patches = LayerNorm(width)
        self.blocks = nn.ModuleList(blocks)
        self.norm = LayerNorm(width)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C_before, H, W) to (B, C, H / stride, W / stride)."""
        x = self.norm_patches(_channels_last(self.patches(x)))
        for block in self.blocks:
            x = block(x)
        return _channels_first(self.norm(x))


class Block(nn.Module):
    """Attention and perceptron, each with a shortcut; in training some branches are dropped."""

    def __init__(self, channels: int, heads: int, reduction: int, drop: float):
        super().__init__()
        self.norm_attention = LayerNorm(channels)
        self.attention = ReducedAttention(channels, heads, reduction)
        self.norm_perceptron = LayerNorm(channels)
        self.perceptron = MixPerceptron(channels)
        self.drop = drop

    def forward(self, x: Tensor) -> Tensor:
        """(B, H, W, C) to the same."""
        x = self._add_branch(x, self.norm_attention, self.attention)
        return self._add_branch(x, self.norm_perceptron, self.perceptron)

    def _add_branch(self, x: Tensor, norm: nn.Module, branch: nn.Module) -> Tensor:
        keep = 1 - self.drop if self.training else 1
        if keep == 1:
            return x + branch(norm(x))
        kept = x.new_empty(len(x), 1, 1, 1).bernoulli_(keep)
        return torch.addcmul(x, branch(norm(x)), kept, value=1 / keep)


class ReducedAttention(nn.Module):
    """Self-attention (SegFormer, eq. 2) to a map that is ``reduction`` times smaller."""

    def __init__(self, channels: int, heads: int, reduction: int):
        super().__init__()
        self.heads = heads
        self.to_query = Linear(channels, channels)
        self.to_key_value = Linear(channels, 2 * channels)
        self.to_output = Linear(channels, channels)
        self.reduce = self.norm_reduced = None
        if reduction > 1:
            self.reduce = nn.Conv2d(channels, channels, reduction, reduction)
            self.norm_reduced = LayerNorm(channels)

    def forward(self, x: Tensor) -> Tensor:
        """(B, H, W, C) to the same."""
        memory = x
        if self.reduce is not None:
            memory = self.norm_reduced(_channels_last(self.reduce(_channels_first(x))))
        query = self.to_query(x).flatten(1, 2).unflatten(2, (self.heads, -1)).transpose(1, 2)
        key_value = self.to_key_value(memory).flatten(1, 2).unflatten(2, (2, self.heads, -1))
        key, value = key_value.permute(2, 0, 3, 1, 4)
        attended = attention(query, key, value)
        return self.to_output(attended.transpose(1, 2).reshape(x.shape))


class MixPerceptron(nn.Module):
    """Mix-FFN (SegFormer, eq. 3): a 3 x 3 depthwise convolution tells the layers positions."""

    def __init__(self, channels: int):
        super().__init__()
        hidden = EXPANSION * channels
        self.expand = Linear(channels, hidden)
        self.mix = nn.Conv2d(hidden, hidden, 3, padding=1, groups=hidden)
        self.shrink = Linear(hidden, channels)

    def forward(self, x: Tensor) -> Tensor:
        """(B, H, W, C) to the same."""
        hidden = self.expand(x)
        # torch.compile decides by itself what to compute again.
        if not torch.is_grad_enabled() or torch.compiler.is_compiling():
            return self._rest(hidden)
        # The hidden features are most of the encoder's memory. Two of three copies of them are
        # cheap to compute again in the backward pass, by _rest.
        return checkpoint(self._rest, hidden, use_reentrant=False, preserve_rng_state=False)

    def _rest(self, hidden: Tensor) -> Tensor:
        hidden = self.mix(_channels_first(hidden))
        # These are the largest maps of the encoder; in place, one is saved.
        hidden = F.gelu(hidden) if torch.is_grad_enabled() else torch.ops.aten.gelu_(hidden)
        return self.shrink(_channels_last(hidden))


class Linear(nn.Linear):
    """A linear layer of maps (B, H, W, C).

    On the CPU it is a 1 x 1 convolution, which with two threads is a third faster.
    """

    def forward(self, x: Tensor) -> Tensor:
        """(B, H, W, C) to (B, H, W, C_out)."""
        if x.device.type != "cpu":
            return super().forward(x)
        kernel = self.weight[:, :, None, None]
        return _channels_last(F.conv2d(_channels_first(x), kernel, self.bias))


def published_weights(name: str, file: Path | None) -> dict[str, Tensor]:
    """The encoder's published ImageNet weights, under the names of :class:`MixTransformer`.

    ``file`` is the authors', or one of transformers (any version); ``None`` downloads the latter.
    """
    if file is None:
        hub = f"nvidia/{name.replace('_', '-')}"
        state = timm.models.load_state_dict_from_hf(hub, weights_only=True)
    else:
        state = timm.models.load_state_dict(str(file), weights_only=True)
    renamed = {}
    for name, tensor in state.items():
        for pattern, replacement in _NAMES:
            name = pattern.sub(replacement, name)
        renamed[name] = tensor
    for name in [name for name in renamed if ".to_key." in name]:
        value = renamed.pop(name.replace(".to_key.", ".to_value."), None)
        key = renamed.pop(name)
        if value is not None:
            renamed[name.replace(".to_key.", ".to_key_value.")] = torch.cat([key, value])
    return {name: tensor for name, tensor in renamed.items() if name.startswith("levels.")}


def _level(found: re.Match) -> str:
    return f"levels.{int(found[2]) - 1}.{_AUTHORS_PARTS[found[1]]}"


_AUTHORS_PARTS = {"patch_embed": "", "block": "blocks", "norm": "norm"}
# Authors' release (one-based levels), transformers 4 and transformers 5, in this order.
_NAMES = tuple(
    (re.compile(pattern), replacement)
    for pattern, replacement in (
        (r"^(?:backbone\.)?(patch_embed|block|norm)([1-4])(?=\.)", _level),
        (r"^(?:segformer\.)?encoder\.patch_embeddings\.(\d)", r"levels.\1."),
        (r"^(?:segformer\.)?encoder\.block\.(\d)", r"levels.\1.blocks"),
        (r"^(?:segformer\.)?encoder\.layer_norm\.(\d)", r"levels.\1.norm"),
        (r"^(?:segformer\.)?stages\.(\d)\.patch_embeddings", r"levels.\1."),
        (r"^(?:segformer\.)?stages\.(\d)\.layer_norm", r"levels.\1.norm"),
        (r"^(?:segformer\.)?stages\.", "levels."),
        (r"\.\.proj\.", ".patches."),
        (r"\.\.(layer_)?norm\.", ".norm_patches."),
        (r"\.(norm1|layer_norm_1|layernorm_before)\.", ".norm_attention."),
        (r"\.(norm2|layer_norm_2|layernorm_after)\.", ".norm_perceptron."),
        (r"\.(attn\.q|attention\.self\.query|attention\.q_proj)\.", ".attention.to_query."),
        (r"\.(attention\.self\.key|attention\.k_proj)\.", ".attention.to_key."),
        (r"\.(attention\.self\.value|attention\.v_proj)\.", ".attention.to_value."),
        (r"\.attn\.kv\.", ".attention.to_key_value."),
        (r"\.(attn\.proj|attention\.output\.dense|attention\.o_proj)\.", ".attention.to_output."),
        (r"\.attention\.sequence_reduction\.", ".attention.self."),
        (r"\.(attn\.sr|attention\.self\.(sr|sequence_reduction))\.", ".attention.reduce."),
        (r"\.(attn\.norm|attention\.self\.layer_norm)\.", ".attention.norm_reduced."),
        (r"\.mlp\.(fc1|dense1)\.", ".perceptron.expand."),
        (r"\.mlp\.dwconv\.dwconv\.", ".perceptron.mix."),
        (r"\.mlp\.(fc2|dense2)\.", ".perceptron.shrink."),
    )
)


def _channels_last(x: Tensor) -> Tensor:
    return x.permute(0, 2, 3, 1)


def _channels_first(x: Tensor) -> Tensor:
    return x.permute(0, 3, 1, 2)


def _initialise(module: nn.Module) -> None:
    """As the authors do: linear layers by a truncated normal, convolutions by their fan-out."""
    if isinstance(module, nn.Linear):
        nn.init.trunc_normal_(module.weight, std=0.02)
        nn.init.zeros_(module.bias)
    elif isinstance(module, nn.Conv2d):
        fan_out = module.out_channels * module.kernel_size[0] ** 2 // module.groups
        nn.init.normal_(module.weight, std=(2 / fan_out) ** 0.5)
        nn.init.zeros_(module.bias)
