"""Slot attention (Locatello et al., NeurIPS 2020, Algorithm 1)."""

import torch
from torch import Tensor, nn

from models.blocks import feed_forward


class SlotAttention(nn.Module):
    """Slots compete for the inputs: attention is normalised over the slots.

    Every slot is updated with the weighted mean of the inputs by a GRU and a residual perceptron.
    """

    def __init__(self, channels: int):
        super().__init__()
        self.norm_inputs = nn.LayerNorm(channels)
        self.norm_queries = nn.LayerNorm(channels)
        self.to_query = nn.Linear(channels, channels, bias=False)
        self.to_key = nn.Linear(channels, channels, bias=False)
        self.to_value = nn.Linear(channels, channels, bias=False)
        self.gru = nn.GRUCell(channels, channels)
        self.feed_forward = feed_forward(channels)

    def forward(
        self, slots: Tensor, inputs: Tensor, rounds: int = 1, keep: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """``rounds`` (at least 1) updates of the slots (B, S, C) from inputs (B, K, C).

        ``keep``, bool (B, S, K), has the inputs that each slot may use; ``None`` is all of them.
        Returns the slots and the last round's attention (B, S, K), which sums to one over slots.
        """
        inputs = self.norm_inputs(inputs)
        keys, values = self.to_key(inputs), self.to_value(inputs)
        for _ in range(rounds):
            slots, attention = self.step(slots, keys, values, keep)
        return slots, attention

    def step(
        self, slots: Tensor, keys: Tensor, values: Tensor, keep: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """One update from keys and values (B, K, C); the rest as in ``forward``."""
        query = self.to_query(self.norm_queries(slots))
        attention = (query @ keys.transpose(1, 2) * keys.shape[-1] ** -0.5).softmax(dim=1)
        weights = attention if keep is None else attention * keep
        weights = weights / weights.sum(dim=2, keepdim=True).clamp(min=1e-8)
        update = weights @ values
        with torch.autocast(slots.device.type, enabled=False):
            dtype = self.gru.weight_ih.dtype  # GRUCell does not take part in autocast
            updated = self.gru(update.flatten(0, 1).to(dtype), slots.flatten(0, 1).to(dtype))
        updated = updated.reshape(slots.shape)
        return updated + self.feed_forward(updated), attention
