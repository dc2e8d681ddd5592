"""The spatio-temporal block: the only part of SSL-UVOS that is trained."""

import torch.nn.functional as F
from torch import Tensor, nn

from models.precision import full_precision


class SpatioTemporalBlock(nn.Module):
    """A transformer block over the tokens of all frames of a clip, without positions.

    Args:
        channels: C, of the tokens.
        heads: of the attention.
    """

    ATTENTION_DROPOUT, DROPOUT = 0.4, 0.1

    def __init__(self, channels: int = 384, heads: int = 8):
        super().__init__()
        self.heads = heads
        self.norm_attention = nn.LayerNorm(channels)
        self.to_qkv = nn.Linear(channels, 3 * channels, bias=False)
        self.project = nn.Sequential(nn.Linear(channels, channels), nn.Dropout(self.DROPOUT))
        self.feed_forward = nn.Sequential(
            nn.LayerNorm(channels),
            nn.Linear(channels, 4 * channels),
            nn.GELU(),
            nn.Dropout(self.DROPOUT),
            nn.Linear(4 * channels, channels),
            nn.Dropout(self.DROPOUT),
        )

    def forward(self, tokens: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """(B, L, C) to the same, with the queries and keys of its attention, (B, H, L, C / H)."""
        queries, keys, values = self._split(self.to_qkv(self.norm_attention(tokens)), 3)
        dropout = self.ATTENTION_DROPOUT if self.training else 0.0
        mixed = F.scaled_dot_product_attention(queries, keys, values, dropout_p=dropout)
        tokens = tokens + self.project(mixed.transpose(1, 2).flatten(2))
        return tokens + self.feed_forward(tokens), queries, keys

    def queries_and_keys(self, tokens: Tensor) -> tuple[Tensor, Tensor]:
        """Queries and keys of (B, L, C) alone, (B, H, L, C / H)."""
        weight = self.to_qkv.weight[: 2 * tokens.shape[-1]]
        return self._split(F.linear(self.norm_attention(tokens), weight), 2)

    def attention_rows(self, queries: Tensor, keys: Tensor) -> Tensor:
        """Attention of some queries to all keys, with dropout in training, mean over the heads.

        Args:
            queries: (B, H, Q, d).
            keys: (B, H, L, d).

        Returns:
            (B, Q, L).
        """
        dropout = self.ATTENTION_DROPOUT if self.training else 0.0
        total = 0.0
        for query, key in zip(queries.unbind(1), keys.unbind(1)):  # a head at a time, for memory
            logits = query @ key.transpose(1, 2) * query.shape[-1] ** -0.5
            # Autocast does this on GPUs by itself.
            total = total + F.dropout(full_precision(logits).softmax(dim=-1), dropout)
        return total / self.heads

    def _split(self, x: Tensor, parts: int) -> tuple[Tensor, ...]:
        """(B, L, parts * C) into tensors (B, H, L, C / H)."""
        return x.unflatten(2, (parts, self.heads, -1)).permute(2, 0, 3, 1, 4).unbind(0)
