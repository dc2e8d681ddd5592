"""What every network returns, so that losses, metrics and pictures need not know the network."""

from dataclasses import dataclass, field

from torch import Tensor


@dataclass
class Prediction:
    """Result of a network for a batch of target frames.

    Attributes:
        logits: masks before the sigmoid, (B, 1, H, W) each at the input's size, finest first; the
            first is the prediction, the others are its deep supervision.
        auxiliary: further logits (B, 1, h, w) that training may supervise with the mask.
        maps: named maps (B, h, w) in [0, 1] to look at, in the order in which panels show them.
    """

    logits: list[Tensor]
    auxiliary: list[Tensor] = field(default_factory=list)
    maps: dict[str, Tensor] = field(default_factory=dict)


@dataclass
class References:
    """What a network keeps of a sequence's reference frames, per stream; first axis is the batch.

    Attributes:
        features: by stream name; for GSA-Net the global features P_G (B, R, C_G, C_G).
    """

    features: dict[str, Tensor]

    def expand(self, batch: int) -> "References":
        """The references of one sequence, for a batch of its target frames."""
        return References(
            {name: f.expand(batch, *f.shape[1:]) for name, f in self.features.items()}
        )
