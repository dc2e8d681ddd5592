"""The plain transformer of slot attention, which stands in for FAT (Table 2, rows without it)."""

import torch
from torch import Tensor, nn

from models.gsanet.fat import feed_forward


class PlainTransformer(nn.Module):
    """One round of slot attention (Locatello et al., NeurIPS 2020, Algorithm 1).

    The queries compete for the inputs: attention is normalised over the queries, then every query
    takes the weighted mean of the inputs, through a GRU and a residual perceptron.
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

    def forward(self, queries: Tensor, inputs: Tensor, keep: Tensor | None = None) -> Tensor:
        """One update.

        Args:
            queries: slots or other queries (B, S, C).
            inputs: (B, K, C).
            keep: bool (B, S, K), the inputs that each query may use; all of them if ``None``.

        Returns:
            (B, S, C).
        """
        inputs = self.norm_inputs(inputs)
        query, key = self.to_query(self.norm_queries(queries)), self.to_key(inputs)
        attention = (query @ key.transpose(1, 2) * key.shape[-1] ** -0.5).softmax(dim=1)
        if keep is not None:
            attention = attention * keep
        attention = attention / attention.sum(dim=2, keepdim=True).clamp(min=1e-8)
        update = attention @ self.to_value(inputs)
        with torch.autocast(queries.device.type, enabled=False):
            dtype = self.gru.weight_ih.dtype  # GRUCell does not take part in autocast
            updated = self.gru(update.flatten(0, 1).to(dtype), queries.flatten(0, 1).to(dtype))
        updated = updated.reshape(queries.shape)
        return updated + self.feed_forward(updated)
