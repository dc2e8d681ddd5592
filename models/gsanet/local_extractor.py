"""Local extractor: details of the target frame by clustering its features (Sec. 3.3, Figure 3b)."""

import torch
from torch import Tensor, nn

from models.ops import global_weighted_average_pooling
from models.precision import full_precision, without_autocast

KMEANS_ROUNDS = 10


class LocalExtractor(nn.Module):
    """Local features P_L: the mean of the embedded target feature X_L in each k-means cluster."""

    def __init__(self, channels: int, embedded_channels: int, num_clusters: int):
        super().__init__()
        self.embed = nn.Conv2d(channels, embedded_channels, kernel_size=1)
        self.cluster = KMeans(num_clusters)

    def forward(self, target: Tensor) -> tuple[Tensor, Tensor]:
        """Target feature X_T (B, C, H, W) to X_L (B, C_L, H, W) and P_L (B, M, C_L)."""
        local = self.embed(target)  # X_L
        return local, global_weighted_average_pooling(local, self.cluster(local))


class KMeans(nn.Module):
    """The clustering masks M_L of k-means over the pixels of each image.

    Centres start at evenly spaced pixels, so an image has the same masks in every batch and run.
    A cluster that gets no pixel has an empty mask.
    """

    def __init__(self, num_clusters: int):
        super().__init__()
        self.num_clusters = num_clusters

    @torch.no_grad()
    def forward(self, features: Tensor) -> Tensor:
        """(B, C, H, W) to zeros and ones (B, M, H, W), which sum to one at every pixel."""
        # k-means compares small differences of large sums, for which bfloat16 has too few digits.
        with without_autocast(features):
            pixels = full_precision(features.detach()).flatten(2).transpose(1, 2).contiguous()
            seeds = torch.linspace(0, pixels.shape[1] - 1, self.num_clusters, device=pixels.device)
            labels = kmeans(pixels, pixels[:, seeds.round().long()])
        masks = one_hot(labels, self.num_clusters).to(features.dtype)
        return masks.unflatten(2, features.shape[2:])


def kmeans(pixels: Tensor, centres: Tensor) -> Tensor:
    """Lloyd's algorithm in a fixed number of rounds, which needs no wait for the GPU.

    From pixels (B, P, C) and first centres (B, M, C) to the nearest centre of each pixel, (B, P).
    """
    for number in range(KMEANS_ROUNDS):
        # |x - c|^2 without |x|^2, which is the same for every centre.
        distances = centres.square().sum(dim=2).unsqueeze(1) - 2 * pixels @ centres.transpose(1, 2)
        labels = distances.argmin(dim=2)
        if number + 1 < KMEANS_ROUNDS:
            members = one_hot(labels, centres.shape[1]).to(pixels.dtype)
            centres = members @ pixels / members.sum(dim=2, keepdim=True).clamp(min=1)
    return labels


def one_hot(labels: Tensor, count: int) -> Tensor:
    """Labels (B, P) to bool (B, count, P)."""
    return labels.unsqueeze(1) == torch.arange(count, device=labels.device).unsqueeze(1)
