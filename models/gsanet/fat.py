"""Feature aggregation transformer, FAT (Sec. 3.4, Figure 4)."""

from torch import Tensor, nn

from models.blocks import feed_forward
from models.ops import attention


class FeatureAggregationTransformer(nn.Module):
    """Joins local features with groups of global features.

    In feature aggregation a group is a reference frame with its soft regions; in guided slot
    attention it is a slot with its nearest features (Sec. 3.5).
    """

    def __init__(self, channels: int, heads: int = 4):
        super().__init__()
        self.pool = AttentivePooling(channels)
        self.global_to_local = AttentionBlock(channels, heads)  # part (a) of Figure 4
        self.local_to_global = AttentionBlock(channels, heads)  # part (b) of Figure 4

    def forward(self, local: Tensor, groups: Tensor) -> Tensor:
        """Local P_L (B, L, C) and G groups of K features, P_G (B, G, K, C), give P_A (B, L, C)."""
        intra = self.pool(groups)  # P_Gintra (B, G, C)
        # P_GL, and the values P_LV of the local features, which are the query of part (b).
        joined, value = self.global_to_local(residual=intra, query=intra, memory=local)
        aggregated, _ = self.local_to_global(residual=local, query=value, memory=joined)  # P_A
        return aggregated


class AttentivePooling(nn.Module):
    """Weighted mean of a set of features; the weights are a softmax of linear scores (Sec. 3.4).

    RandLA-Net (Hu et al., CVPR 2020), which the paper cites, scores every channel of a feature
    separately and has a perceptron after the sum.
    """

    def __init__(self, channels: int):
        super().__init__()
        self.score = nn.Linear(channels, 1, bias=False)

    def forward(self, features: Tensor) -> Tensor:
        """(..., N, C) to (..., C); the order of the N features does not matter."""
        weights = self.score(features).softmax(dim=-2)
        return (weights * features).sum(dim=-2)


class AttentionBlock(nn.Module):
    """Standard transformer block, FFN(MHA(Q, K, V)) (Vaswani et al.), normalising its inputs."""

    def __init__(self, channels: int, heads: int):
        super().__init__()
        self.heads = heads
        self.norm_query = nn.LayerNorm(channels)
        self.norm_memory = nn.LayerNorm(channels)
        self.to_query = nn.Linear(channels, channels)
        self.to_key = nn.Linear(channels, channels, bias=False)  # softmax would cancel a bias
        self.to_value = nn.Linear(channels, channels)
        self.to_output = nn.Linear(channels, channels)
        self.feed_forward = feed_forward(channels)

    def forward(self, residual: Tensor, query: Tensor, memory: Tensor) -> tuple[Tensor, Tensor]:
        """Attend from ``query`` (B, Q, C) to ``memory`` (B, K, C), added to ``residual``.

        Returns the result (B, Q, C) and the values V of the memory (B, K, C).
        """
        memory = self.norm_memory(memory)
        value = self.to_value(memory)
        attended = attention(
            self._split(self.to_query(self.norm_query(query))),
            self._split(self.to_key(memory)),
            self._split(value),
        )
        result = residual + self.to_output(attended.transpose(1, 2).flatten(2))
        return result + self.feed_forward(result), value

    def _split(self, tokens: Tensor) -> Tensor:
        return tokens.unflatten(2, (self.heads, -1)).transpose(1, 2)
