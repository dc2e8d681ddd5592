"""From keys to semantic and instance slots: the part of SMTC that student and teacher have."""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.precision import full_precision
from models.slot_attention import SlotAttention
from models.smtc.correspondence import TemporalCorrespondence
from models.smtc.instance_slots import InstanceSlots
from models.smtc.semantic_slots import SemanticSlots

CLIP = 4  # frames of a training clip, and of the release's chunks of a video


class Slots(NamedTuple):
    """Slots of B frames: S semantic ones with P instances each.

    Attributes:
        semantic: s, (B, S, C).
        logits: L, of the semantic slots' attention, (B, S, N).
        instances: z, (B, S, P, C).
        instance_logits: (B, S, P, N).
        features: w, of unit length, by which instances of several frames are compared.
    """

    semantic: Tensor
    logits: Tensor
    instances: Tensor
    instance_logits: Tensor
    features: Tensor

    @property
    def maps(self) -> Tensor:
        """Probabilities over the semantic slots, (B, S, N)."""
        return full_precision(self.logits).softmax(dim=1)

    @property
    def instance_maps(self) -> Tensor:
        """Probabilities over all S * P instances, (B, S, P, N)."""
        return self.maps.unsqueeze(2) * full_precision(self.instance_logits).softmax(dim=2)

    @property
    def scores(self) -> Tensor:
        """Cosines of the instances with their semantic, (B, S, P)."""
        semantic = full_precision(self.semantic).unsqueeze(2)
        return F.cosine_similarity(full_precision(self.instances), semantic, dim=3)


class SlotNetwork(nn.Module):
    """Correspondence, both stages of slots with one set of projections, and the instances' head.

    Args:
        channels: C, of the keys.
        semantics, instances: S and P.
        grid: see :class:`TemporalCorrespondence`.
        region, reparameterised: see :class:`InstanceSlots`.
    """

    def __init__(
        self,
        channels: int,
        semantics: int,
        instances: int,
        grid: int,
        region: str = "soft",
        reparameterised: bool = True,
    ):
        super().__init__()
        self.noise_shape = (semantics, instances, channels)
        self.correspondence = TemporalCorrespondence(channels, grid)
        perceptron = nn.Sequential(
            nn.LayerNorm(channels),
            nn.Linear(channels, channels),
            nn.ReLU(),
            nn.Linear(channels, channels),
        )
        self.attention = SlotAttention(channels, True, False, perceptron, floor=1e-8)
        self.semantic = SemanticSlots(semantics, channels)
        self.instance = InstanceSlots(semantics, channels, region, reparameterised)
        self.project = nn.Sequential(
            nn.Linear(channels, 2 * channels), nn.ReLU(), nn.Linear(2 * channels, channels)
        )

    def forward(
        self,
        keys: Tensor,
        previous: Tensor,
        size: tuple[int, int],
        rounds: int,
        noise: Tensor | None = None,
    ) -> Slots:
        """Slots of frames.

        Args:
            keys, previous: of the frames and of those before them, (B, N, C), with N = h * w.
            size: h and w.
            rounds: of slot attention in each stage.
            noise: of the instances, (B, S, P, C); ``None`` draws it from torch's random numbers.
        """
        if noise is None:
            noise = torch.randn(
                len(keys), *self.noise_shape, dtype=self.semantic.mean.dtype, device=keys.device
            )
        related = self.correspondence(keys, previous, size)  # z
        keys, values = self.attention.keys_and_values(related)
        semantic, logits = self.semantic(self.attention, keys, values, rounds)
        drawn = self.instance.draw(self.semantic.mean, noise)
        instances, instance_logits = self.instance(
            self.attention, drawn, logits, keys, values, rounds
        )
        features = F.normalize(full_precision(self.project(instances)), dim=3)
        return Slots(semantic, logits, instances, instance_logits, features)
