"""Local extractor: k-means masks against Lloyd's algorithm in numpy, means against loops."""

import math

import numpy as np
import pytest
import torch
from fast_pytorch_kmeans import MultiKMeans

from models.gsanet.local_extractor import KMEANS_ROUNDS, KMeans, LocalExtractor


def cluster_masks(features, num_clusters):
    return KMeans(num_clusters)(features)


def lloyd(pixels, num_clusters):
    """Labels of (N, C) pixels, centres started at evenly spaced ones, until nothing changes."""
    seeds = np.round(np.linspace(0, len(pixels) - 1, num_clusters)).astype(int)
    centres, labels = pixels[seeds].copy(), None
    while True:
        previous, labels = labels, np.zeros(len(pixels), dtype=int)
        for n, pixel in enumerate(pixels):
            labels[n] = np.argmin([np.sum((pixel - centre) ** 2) for centre in centres])
        if previous is not None and np.array_equal(labels, previous):
            return labels
        for k in range(num_clusters):
            assert (labels == k).any(), "this test's data should leave no cluster empty"
            centres[k] = pixels[labels == k].mean(axis=0)


def separated_image(seed, sizes, channels=5):
    """(1, C, 7, 7) of groups of alike pixels, in raster order one group after the other."""
    rng = np.random.default_rng(seed)
    centres = 6 * np.eye(channels)[: len(sizes)]
    pixels = np.concatenate(
        [
            centre + 0.5 * rng.standard_normal((size, channels))
            for centre, size in zip(centres, sizes)
        ]
    )
    return torch.from_numpy(pixels.T.reshape(1, channels, 7, 7).copy())


def labels_of(masks):
    return masks.argmax(dim=1).flatten(1)


@pytest.mark.parametrize(
    "sizes, num_clusters, seed",
    # With 49 pixels, the centres start at every 24th, 16th or 12th. Two to nine rounds.
    [
        ((17, 17, 15), 3, 0),
        ((30, 19), 3, 3),
        ((35, 14), 3, 1),
        ((25, 24), 4, 3),
        ((10, 25, 14), 4, 3),
        ((10, 10, 10, 19), 4, 4),
        ((20, 29), 5, 2),
    ],
)
def test_masks_are_those_of_lloyds_algorithm(sizes, num_clusters, seed):
    image = separated_image(seed, sizes)
    masks = cluster_masks(image, num_clusters)
    expected = lloyd(image[0].flatten(1).T.numpy(), num_clusters)
    assert labels_of(masks)[0].tolist() == expected.tolist()


@pytest.mark.parametrize("num_clusters", [2, 7, 30, 90])
def test_masks_are_those_of_fast_pytorch_kmeans(num_clusters):
    """Also where clusters lose all their pixels, and where ten rounds are too few to end."""
    generator = torch.Generator().manual_seed(20)
    features = torch.randn(3, 6, 9, 9, generator=generator, dtype=torch.float64)
    features[1, :, :5] = features[1, :, :1, :1]
    ours = cluster_masks(features, num_clusters)
    pixels = features.flatten(2).transpose(1, 2).contiguous()
    package = MultiKMeans(num_clusters, max_iter=KMEANS_ROUNDS, tol=0.0)
    package.centroids = pixels[:, torch.linspace(0, 80, num_clusters).round().long()]
    assert torch.equal(labels_of(ours), package.fit_predict(pixels))
    assert (ours.flatten(2).sum(dim=2) == 0).any() == (num_clusters > 7)


def test_clusters_are_the_groups_of_alike_pixels():
    sizes = (17, 17, 15)
    labels = labels_of(cluster_masks(separated_image(2, sizes), 3))[0]
    assert labels.tolist() == [0] * 17 + [1] * 17 + [2] * 15


@pytest.mark.parametrize("num_clusters", [1, 4, 9])
def test_every_pixel_is_in_exactly_one_cluster(num_clusters):
    features = torch.randn(3, 6, 5, 8, generator=torch.Generator().manual_seed(3))
    masks = cluster_masks(features, num_clusters)
    assert masks.shape == (3, num_clusters, 5, 8)
    assert masks.dtype == features.dtype
    assert set(masks.unique().tolist()) <= {0.0, 1.0}
    assert torch.equal(masks.sum(dim=1), torch.ones(3, 5, 8))


def test_masks_depend_on_the_input_alone():
    features = torch.randn(2, 6, 8, 8, generator=torch.Generator().manual_seed(4))
    torch.manual_seed(0)
    first = cluster_masks(features, 5)
    torch.manual_seed(1)
    np.random.seed(1)
    torch.rand(7)
    assert torch.equal(cluster_masks(features, 5), first)


def test_clustering_leaves_the_random_numbers_of_training_alone():
    features = torch.randn(2, 6, 8, 8, generator=torch.Generator().manual_seed(4))
    torch.manual_seed(0)
    np.random.seed(0)
    expected = torch.rand(3), np.random.rand(3)
    torch.manual_seed(0)
    np.random.seed(0)
    cluster_masks(features, 5)
    assert torch.equal(torch.rand(3), expected[0])
    assert np.array_equal(np.random.rand(3), expected[1])


def test_an_images_masks_do_not_depend_on_its_batch():
    """Not even on whether the other images need more rounds, or have far larger features."""
    features = torch.cat(
        [
            separated_image(5, (17, 17, 15)),
            separated_image(6, (40, 5, 4)),
            100 * torch.randn(1, 5, 7, 7, generator=torch.Generator().manual_seed(7)),
            1e-3 * torch.randn(1, 5, 7, 7, generator=torch.Generator().manual_seed(8)),
        ]
    )
    together = cluster_masks(features, 4)
    for index in range(len(features)):
        alone = cluster_masks(features[index : index + 1], 4)
        assert torch.equal(together[index : index + 1], alone)


def test_more_clusters_than_pixels_leave_the_rest_empty():
    features = torch.randn(2, 4, 2, 3, generator=torch.Generator().manual_seed(9))
    masks = cluster_masks(features, 10)
    assert torch.equal(masks.sum(dim=1), torch.ones(2, 2, 3))
    sizes = masks.flatten(2).sum(dim=2)
    assert [sorted(row) for row in sizes.tolist()] == [[0.0] * 4 + [1.0] * 6] * 2

    extractor = LocalExtractor(4, 4, num_clusters=10)
    local, pooled = extractor(features)
    assert pooled.shape == (2, 10, 4) and pooled.isfinite().all()
    empty = cluster_masks(local, 10).flatten(2).sum(dim=2) == 0
    assert empty.any() and (pooled[empty] == 0).all()


def test_an_image_of_one_colour_has_clusters_too():
    masks = cluster_masks(torch.full((1, 3, 4, 4), 0.7), 5)
    assert torch.equal(masks.sum(dim=1), torch.ones(1, 4, 4))


def test_masks_are_the_same_under_mixed_precision():
    features = torch.randn(2, 6, 8, 8, generator=torch.Generator().manual_seed(10))
    with torch.autocast("cpu", torch.bfloat16):
        masks = cluster_masks(features, 6)
    assert torch.equal(masks, cluster_masks(features, 6))


def test_local_features_are_the_means_over_the_clusters():
    torch.manual_seed(11)
    extractor = LocalExtractor(5, 4, num_clusters=3).double()
    target = torch.cat([separated_image(12, (17, 17, 15)), separated_image(13, (20, 20, 9))])
    local, pooled = extractor(target)
    assert local.shape == (2, 4, 7, 7) and pooled.shape == (2, 3, 4)

    weight, bias = extractor.embed.weight[:, :, 0, 0], extractor.embed.bias
    for b in range(2):
        pixels = np.zeros((49, 4))
        for n in range(49):
            for c in range(4):
                value = bias[c].item()
                for k in range(5):
                    value += weight[c, k].item() * target[b, k, n // 7, n % 7].item()
                pixels[n, c] = value
                assert math.isclose(local[b, c, n // 7, n % 7].item(), value, abs_tol=1e-12)
        labels = lloyd(pixels, 3)
        for d in range(3):
            for c in range(4):
                members = [pixels[n, c] for n in range(49) if labels[n] == d]
                assert math.isclose(
                    pooled[b, d, c].item(), sum(members) / len(members), abs_tol=1e-10
                )


def test_local_features_train_the_embedding_but_not_through_the_masks():
    torch.manual_seed(14)
    extractor = LocalExtractor(5, 4, num_clusters=3)
    local, pooled = extractor(torch.randn(1, 5, 4, 4))
    assert not cluster_masks(local, 3).requires_grad
    pooled.square().sum().backward()
    assert extractor.embed.weight.grad.abs().max() > 0
