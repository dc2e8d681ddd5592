"""Global extractor, eq. 3 and GWAP, against loops over frames, channels and pixels in float64."""

import math

import torch

from models.gsanet.global_extractor import GlobalExtractor


def test_global_features_follow_equation_3_and_gwap():
    torch.manual_seed(0)
    frames, channels, embedded, height, width = 3, 3, 4, 3, 4
    extractor = GlobalExtractor(channels, embedded).double()
    references = torch.randn(frames, channels, height, width, dtype=torch.float64)
    result = extractor(references)
    assert result.shape == (frames, embedded, embedded)

    weight, bias = extractor.embed.weight[:, :, 0, 0], extractor.embed.bias
    places = [(y, x) for y in range(height) for x in range(width)]
    for t in range(frames):
        embedding = {}
        for c in range(embedded):
            for y, x in places:
                embedding[c, y, x] = bias[c].item() + sum(
                    (weight[c, k] * references[t, k, y, x]).item() for k in range(channels)
                )
        for j in range(embedded):
            total = sum(math.exp(embedding[j, y, x]) for y, x in places)
            region = {(y, x): math.exp(embedding[j, y, x]) / total for y, x in places}  # eq. 3
            assert math.isclose(sum(region.values()), 1.0)
            for c in range(embedded):
                above = sum(region[y, x] * embedding[c, y, x] for y, x in places)
                expected = above / sum(region.values())  # GWAP
                # The softmax of a region may be computed in float32.
                assert math.isclose(result[t, j, c].item(), expected, abs_tol=2e-6)


def test_each_reference_frame_keeps_its_own_features():
    torch.manual_seed(1)
    extractor = GlobalExtractor(3, 4)
    references = torch.randn(3, 3, 4, 4)
    together = extractor(references)
    for t in range(3):
        torch.testing.assert_close(extractor(references[t : t + 1])[0], together[t])
    assert not torch.allclose(together[0], together[1], atol=1e-3)
