"""Stage 1: each semantic slot takes the tokens of one kind of thing."""

import torch
from torch import Tensor, nn

from models.slot_attention import SlotAttention


class SemanticSlots(nn.Module):
    """Slots that start at learnt means, the same in all frames.

    Args:
        slots: S, their number.
        channels: C.

    Attributes:
        mean: mu, (S, C); the instance slots are drawn around it.
    """

    def __init__(self, slots: int, channels: int):
        super().__init__()
        self.mean = nn.Parameter(torch.randn(slots, channels))

    def forward(
        self, attention: SlotAttention, keys: Tensor, values: Tensor, rounds: int
    ) -> tuple[Tensor, Tensor]:
        """Slots (B, S, C) and the last round's logits L (B, S, N), from keys and values (B, N, C).

        The mean learns from the last round alone.
        """
        start = self.mean.expand(len(keys), -1, -1)
        return attention.refine(start, keys, values, rounds)
