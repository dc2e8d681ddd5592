"""Inter-modality attention, IMA, of Dual Prototype Attention (Cho, Lee et al., arXiv 2211.12036).

A modality's prototypes are refined among themselves. Its correlation map says where each of them is
found. The maps of the two modalities, appearance and motion, attend to each other.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.blocks import conv_norm_relu
from models.ops import attend, correlation_maps, gather_features, soft_region_features
from models.precision import full_precision, without_autocast


class InterModalityAttention(nn.Module):
    """One stream's half of IMA, at one stage of its encoder.

    Args:
        width: channels of the stage's features.
        channels: C, of the squeezed features. Each channel is a soft region with a prototype.
        neighbours: nearest prototypes that send messages to each one.
        rounds: of message passing.
        mutual: there is another modality (stage 2).
    """

    def __init__(
        self, width: int, channels: int, neighbours: int, rounds: int, mutual: bool = True
    ):
        super().__init__()
        self.correlation = PrototypeCorrelation(width, channels, neighbours, rounds)
        self.mutual = PrototypeAttention(channels, itself=False) if mutual else None
        self.fuse = conv_norm_relu(width + channels, width, 1)

    def forward(
        self, features: Tensor, own: Tensor, other: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Features (B, width, H, W) to features after IMA and the refined map (B, C, H, W).

        ``own`` and ``other`` are the ``correlation`` (B, C, H, W) of this modality and of the other
        one. Without another one, as in stage 1, the own map is not refined.
        """
        refined = own
        if other is not None:
            positions = (maps.flatten(2).transpose(1, 2) for maps in (own, other))
            refined = self.mutual(*positions).transpose(1, 2).unflatten(2, own.shape[2:])
        return self.fuse(torch.cat([features, refined.to(features.dtype)], dim=1)), refined


class PrototypeCorrelation(nn.Module):
    """A modality's correlation map: where each of its refined prototypes is found."""

    def __init__(self, width: int, channels: int, neighbours: int, rounds: int):
        super().__init__()
        self.squeeze = nn.Conv2d(width, channels, 1)
        self.attention = PrototypeAttention(channels, itself=True)
        self.messages = nn.ModuleList(MessagePassing(channels, neighbours) for _ in range(rounds))

    def forward(self, features: Tensor) -> Tensor:
        """Features (B, width, H, W) to cosine similarities (B, C, H, W) in [-1, 1]."""
        squeezed = self.squeeze(features)
        prototypes = self.attention(soft_region_features(squeezed))
        for pass_messages in self.messages:
            prototypes = pass_messages(prototypes)
        return correlation_maps(squeezed, prototypes)


class PrototypeAttention(nn.Module):
    """Attention with a shortcut and one head of half the width, on normalised inputs.

    With ``itself``, queries and memory are the same and share their normalisation.
    """

    def __init__(self, channels: int, itself: bool):
        super().__init__()
        self.norm = nn.BatchNorm1d(channels)
        # One norm for both modalities would mix their statistics.
        self.norm_memory = self.norm if itself else nn.BatchNorm1d(channels)
        self.to_query = nn.Linear(channels, channels // 2)
        # The softmax or the next normalisation would cancel these biases.
        self.to_key = nn.Linear(channels, channels // 2, bias=False)
        self.to_value = nn.Linear(channels, channels // 2, bias=False)
        self.to_output = nn.Linear(channels // 2, channels, bias=False)

    def forward(self, x: Tensor, memory: Tensor | None = None) -> Tensor:
        """Adds to ``x`` (B, N, C) its attention to ``memory`` (B, M, C), or to itself."""
        query = _normalised(x, self.norm)
        memory = query if memory is None else _normalised(memory, self.norm_memory)
        attended = attend(self.to_query(query), self.to_key(memory), self.to_value(memory))
        return x + self.to_output(attended)


def _normalised(x: Tensor, norm: nn.Module) -> Tensor:
    return F.relu(norm(x.transpose(1, 2))).transpose(1, 2)


class MessagePassing(nn.Module):
    """One round on the graph of nearest prototypes: the strongest message, channel by channel.

    A message depends on the receiver and on the sender's difference from it, as in the edge
    convolution of Wang et al. (2019).
    """

    def __init__(self, channels: int, neighbours: int):
        super().__init__()
        self.neighbours = neighbours
        self.to_message = nn.Linear(2 * channels, channels, bias=False)
        self.norm = nn.BatchNorm1d(channels)

    def forward(self, prototypes: Tensor) -> Tensor:
        """(B, P, C) to the same shape."""
        senders = gather_features(prototypes, nearest_prototypes(prototypes, self.neighbours))
        receivers = prototypes.unsqueeze(2).expand_as(senders)
        messages = self.to_message(torch.cat([senders - receivers, receivers], dim=3))
        messages = self.norm(messages.flatten(1, 2).transpose(1, 2))  # (B, C, P * neighbours)
        strongest = F.leaky_relu(messages, 0.2).unflatten(2, senders.shape[1:3]).amax(dim=3)
        return strongest.transpose(1, 2)


def nearest_prototypes(prototypes: Tensor, count: int) -> Tensor:
    """Indices (B, P, count) of the prototypes (B, P, C) nearest to each, itself among them."""
    with without_autocast(prototypes):
        prototypes = full_precision(prototypes.detach())
        # They lie close together: without their mean, differences keep their digits.
        prototypes = prototypes - prototypes.mean(dim=1, keepdim=True)
        # |a - b|^2 without |a|^2, which is the same for every b.
        squares = prototypes.square().sum(dim=2).unsqueeze(1)
        distances = squares - 2 * prototypes @ prototypes.transpose(1, 2)
    return distances.topk(count, dim=2, largest=False).indices
