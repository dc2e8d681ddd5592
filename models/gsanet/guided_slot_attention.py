"""Guided slot attention, GSA: KNN filtering, attention, slot update, T times (Sec. 3.5)."""

from torch import Tensor, nn

from models.gsanet.fat import FeatureAggregationTransformer
from models.gsanet.plain_transformer import PlainTransformer
from models.ops import cosine_similarity, gather_features


class GuidedSlotAttention(nn.Module):
    """Refines the slots with the aggregated features that are nearest to them.

    Args:
        channels: C_L.
        num_neighbours: N, the features that KNN filtering keeps for each slot.
        num_iterations: T; may be changed after training (Figure 7). 0 leaves the slots unchanged.
        knn_filtering: Table 2's "KNN"; without it every slot attends to all features.
        aggregation_transformer: Table 2's "FAT"; without it the transformer of slot attention.
    """

    def __init__(
        self,
        channels: int,
        num_neighbours: int = 16,
        num_iterations: int = 3,
        knn_filtering: bool = True,
        aggregation_transformer: bool = True,
    ):
        super().__init__()
        self.num_neighbours = num_neighbours
        self.num_iterations = num_iterations
        self.knn_filtering = knn_filtering
        self.update = (
            FeatureAggregationTransformer(channels)
            if aggregation_transformer
            else PlainTransformer(channels, own_groups=True)
        )
        # With T = 0 they are unused, and training in several processes would wait for their
        # gradients.
        self.requires_grad_(num_iterations > 0)

    def forward(self, slots: Tensor, features: Tensor) -> Tensor:
        """P_S (B, S, C) and aggregated features P_A (B, M, C) to refined slots P_Sr (B, S, C)."""
        for _ in range(self.num_iterations):
            slots = self.step(slots, features)
        return slots

    def step(self, slots: Tensor, features: Tensor) -> Tensor:
        """One round of ``forward``."""
        count = self.num_neighbours if self.knn_filtering else features.shape[1]
        nearest = gather_features(features, nearest_features(slots, features, count))
        return self.update(slots, nearest)


def nearest_features(slots: Tensor, features: Tensor, count: int) -> Tensor:
    """KNN filtering: indices (B, S, N) of the ``count`` features most similar to each slot.

    Similarity is the cosine, as in the decoder. Slots are (B, S, C), features (B, M, C).
    """
    return cosine_similarity(slots, features).topk(count, dim=2).indices
