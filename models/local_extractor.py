"""Local extractor: details of the target frame by clustering its features (Sec. 3.3, Figure 3b)."""

import torch
import torch.nn.functional as F
from fast_pytorch_kmeans import MultiKMeans
from torch import Tensor, nn

from models.pooling import global_weighted_average_pooling

KMEANS_ROUNDS = 10


class LocalExtractor(nn.Module):
    """Local features P_L: the mean of the embedded target feature X_L in each k-means cluster."""

    def __init__(self, channels: int, embedded_channels: int, num_clusters: int = 64):
        super().__init__()
        self.embed = nn.Conv2d(channels, embedded_channels, kernel_size=1)
        self.num_clusters = num_clusters

    def forward(self, target: Tensor) -> tuple[Tensor, Tensor]:
        """Sec. 3.3, first half.

        Args:
            target: target feature X_T (B, C, H, W).

        Returns:
            X_L (B, C_L, H, W) and P_L (B, M, C_L).
        """
        local = self.embed(target)  # X_L
        masks = cluster_masks(local, self.num_clusters)
        return local, global_weighted_average_pooling(local, masks.to(local.dtype))


@torch.no_grad()
def cluster_masks(features: Tensor, num_clusters: int) -> Tensor:
    """The clustering masks M_L of k-means over the pixels of each image.

    All images are clustered together but independently: an image's masks do not depend on the
    batch it is in. Centres start at evenly spaced pixels, so a given input always gives the same
    clusters.

    Args:
        features: (B, C, H, W).
        num_clusters: M; clusters that get no pixel (always so if H * W < M) have an empty mask.

    Returns:
        (B, M, H, W) of zeros and ones, which sum to one at every pixel.
    """
    batch, _, height, width = features.shape
    # k-means compares small differences of large sums: too much for bfloat16.
    with torch.autocast(features.device.type, enabled=False):
        pixels = features.detach().float().flatten(2).transpose(1, 2).contiguous()  # (B, HW, C)
        seeds = torch.linspace(0, height * width - 1, num_clusters, device=pixels.device).round()
        # tol=0: rounds end early only when no image of the batch changes any more.
        kmeans = MultiKMeans(num_clusters, max_iter=KMEANS_ROUNDS, tol=0.0)
        kmeans.centroids = pixels[:, seeds.long()]  # as an argument they would come too late
        labels = kmeans.fit_predict(pixels)
    masks = F.one_hot(labels, num_clusters).transpose(1, 2)
    return masks.reshape(batch, num_clusters, height, width).to(features.dtype)
