"""Slot attention (Locatello et al., NeurIPS 2020, Algorithm 1)."""

import torch
from torch import Tensor, nn

from models.blocks import feed_forward
from models.precision import without_autocast, without_weight_cache


class SlotAttention(nn.Module):
    """Slots compete for the inputs: attention is normalised over the slots.

    Every slot is updated with the weighted mean of the inputs, and by a residual perceptron.

    Args:
        channels: C.
        bias: of the projections to queries, keys and values.
        gru: updates the slots; without it the weighted mean is added to them.
        perceptron: with its normalisation; ``None`` takes that of a transformer block.
        floor: is added to the attention before the weighted mean.
    """

    def __init__(
        self,
        channels: int,
        bias: bool = False,
        gru: bool = True,
        perceptron: nn.Module | None = None,
        floor: float = 0.0,
    ):
        super().__init__()
        self.norm_inputs = nn.LayerNorm(channels)
        self.norm_queries = nn.LayerNorm(channels)
        self.to_query = nn.Linear(channels, channels, bias=bias)
        self.to_key = nn.Linear(channels, channels, bias=bias)
        self.to_value = nn.Linear(channels, channels, bias=bias)
        self.gru = nn.GRUCell(channels, channels) if gru else None
        self.feed_forward = feed_forward(channels) if perceptron is None else perceptron
        self.floor = floor

    def forward(self, slots: Tensor, inputs: Tensor, keep: Tensor | None = None) -> Tensor:
        """One update of the slots (B, S, C) from inputs (B, K, C).

        ``keep``, bool (B, S, K) or (S, K), has the inputs that each slot may use; ``None``: all.
        """
        slots, _ = self.step(slots, *self.keys_and_values(inputs), keep)
        return slots

    def keys_and_values(self, inputs: Tensor) -> tuple[Tensor, Tensor]:
        """Keys and values (B, K, C) of the inputs."""
        inputs = self.norm_inputs(inputs)
        return self.to_key(inputs), self.to_value(inputs)

    def refine(
        self,
        slots: Tensor,
        keys: Tensor,
        values: Tensor,
        rounds: int,
        keep: Tensor | None = None,
        groups: int = 1,
    ) -> tuple[Tensor, Tensor]:
        """``rounds`` updates of which only the last one has a gradient.

        The first slots get the gradient of the slots before the last round: straight through.
        Arguments and results are those of ``step``.
        """
        first = slots
        with torch.no_grad(), without_weight_cache():
            for _ in range(rounds - 1):
                slots, _ = self.step(slots, keys, values, keep, groups)
        if rounds > 1:
            slots = first + (slots - first).detach()
        return self.step(slots, keys, values, keep, groups)

    def step(
        self,
        slots: Tensor,
        keys: Tensor,
        values: Tensor,
        keep: Tensor | None = None,
        groups: int = 1,
    ) -> tuple[Tensor, Tensor]:
        """One update.

        Args:
            slots: (B, S, C).
            keys, values: (B, K, C).
            keep: which inputs each slot may use, or by which share, bool or float (B, S, K).
            groups: of as many slots each, one behind the other; only slots of a group compete.

        Returns:
            The slots, and the logits (B, S, K) of their attention before the update.
        """
        query = self.to_query(self.norm_queries(slots))
        logits = query @ keys.transpose(1, 2) * keys.shape[-1] ** -0.5
        update = input_weights(compete(logits, groups), keep, self.floor) @ values
        if self.gru is None:
            updated = slots + update
        else:
            with without_autocast(slots):
                dtype = self.gru.weight_ih.dtype  # GRUCell does not take part in autocast
                updated = self.gru(update.flatten(0, 1).to(dtype), slots.flatten(0, 1).to(dtype))
            updated = updated.reshape(slots.shape)
        return updated + self.feed_forward(updated), logits


def compete(logits: Tensor, groups: int = 1) -> Tensor:
    """Attention of logits (B, S, K): the softmax over the slots of each group."""
    return logits.unflatten(1, (groups, -1)).softmax(dim=2).flatten(1, 2)


def input_weights(attention: Tensor, keep: Tensor | None = None, floor: float = 0.0) -> Tensor:
    """Each slot's weights of its inputs, (B, S, K), which sum to one over the inputs.

    A slot that may use no input has only zeros.
    """
    weights = attention + floor if floor else attention
    weights = weights if keep is None else weights * keep
    return weights / weights.sum(dim=2, keepdim=True).clamp(min=1e-8)
