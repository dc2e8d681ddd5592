"""Stage 2: the instances of each semantic share the tokens of its region."""

import torch
from torch import Tensor, nn

from models.slot_attention import SlotAttention

THRESHOLD = 0.3  # of binary regions


class InstanceSlots(nn.Module):
    """P slots for each of S semantics, drawn from a Gaussian around the semantic's mean.

    Args:
        semantics, channels: S and C.
        region: see :func:`regions`.
        reparameterised: the Gaussians learn through the drawn slots. Without it the mean learns
            from the semantic slots alone, and the deviation stays.
    """

    def __init__(self, semantics: int, channels: int, region: str, reparameterised: bool):
        super().__init__()
        bound = (6 / ((semantics + 1) * channels)) ** 0.5  # Xavier's for (1, S, 1, C)
        deviation = torch.empty(semantics, channels).uniform_(-bound, bound)
        self.log_deviation = nn.Parameter(deviation, requires_grad=reparameterised)  # l
        self.region = region
        self.reparameterised = reparameterised

    def draw(self, mean: Tensor, noise: Tensor) -> Tensor:
        """z = mu + exp(l) * noise, (B, S, P, C), from mu (S, C) and noise (B, S, P, C)."""
        drawn = mean[:, None] + self.log_deviation.exp()[:, None] * noise
        return drawn if self.reparameterised else drawn.detach()

    def forward(
        self,
        attention: SlotAttention,
        slots: Tensor,
        semantic_logits: Tensor,
        keys: Tensor,
        values: Tensor,
        rounds: int,
    ) -> tuple[Tensor, Tensor]:
        """Refine drawn slots (B, S, P, C) with the projections and the update of semantic slots.

        Args:
            semantic_logits: L (B, S, N).
            keys, values: (B, N, C).

        Returns:
            The slots, and the last round's logits (B, S, P, N), which no region limits.
        """
        semantics, instances = slots.shape[1:3]
        keep = regions(semantic_logits, self.region).repeat_interleave(instances, dim=1)
        slots, logits = attention.refine(
            slots.flatten(1, 2), keys, values, rounds, keep, groups=semantics
        )
        shape = (semantics, instances)
        return slots.unflatten(1, shape), logits.unflatten(1, shape)


def regions(logits: Tensor, kind: str) -> Tensor:
    """M, the share of each token in each semantic's region, (B, S, N), from L (B, S, N).

    ``soft``: its probability. ``probability``: 1 where that is above 0.3. ``logit``: 1 where L is
    above 0.3, as in the authors' last release; a token may then belong to many semantics.
    """
    if kind == "logit":
        return (logits > THRESHOLD).to(logits.dtype)
    probability = logits.softmax(dim=1)
    return probability if kind == "soft" else (probability > THRESHOLD).to(logits.dtype)
