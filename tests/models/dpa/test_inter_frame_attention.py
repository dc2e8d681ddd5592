"""IFA against a direct calculation."""

import torch

from models.dpa.inter_frame_attention import InterFrameAttention


def prototypes(x):
    """Soft-region prototypes (C, C) of one map (C, H, W), region by region."""
    pixels = x.flatten(1)
    weights = pixels.exp() / pixels.exp().sum(dim=1, keepdim=True)
    return torch.stack([(region * pixels).sum(dim=1) for region in weights])


def test_the_query_attends_to_the_prototypes_of_all_reference_frames():
    torch.manual_seed(0)
    module = InterFrameAttention(10, 6).eval()
    query, frames = torch.randn(2, 10, 3, 4), 3 * torch.randn(2, 3, 10, 3, 4)
    references = module.encode_references(frames.flatten(0, 1)).unflatten(0, (2, 3))
    assert references.shape == (2, 3, 2, 6, 6)
    fused, correlation = module(query, references)
    assert correlation.shape == (2, 6, 3, 4)
    for b in range(2):
        embedded = module.to_query(query[b : b + 1])[0]
        keys = torch.cat([prototypes(module.to_key(frame[None])[0]) for frame in frames[b]])
        values = torch.cat([prototypes(module.to_value(frame[None])[0]) for frame in frames[b]])
        for c, prototype in enumerate(prototypes(embedded)):
            weights = torch.softmax(keys @ prototype / 6**0.5, dim=0)
            attended = (weights[:, None] * values).sum(dim=0)
            expected = torch.cosine_similarity(embedded, attended[:, None, None], dim=0)
            torch.testing.assert_close(correlation[b, c], expected, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(fused, module.fuse(torch.cat([query, correlation], dim=1)))


def test_keys_and_values_are_told_apart():
    """The release uses the keys as values."""
    torch.manual_seed(1)
    module = InterFrameAttention(10, 6).eval()
    query, references = torch.randn(1, 10, 3, 4), torch.randn(1, 2, 2, 6, 6)
    swapped = references.flip(2)
    assert not torch.allclose(module(query, references)[1], module(query, swapped)[1], atol=1e-2)


def test_the_order_of_the_frames_does_not_matter_but_each_does():
    torch.manual_seed(2)
    module = InterFrameAttention(10, 6).eval()
    query, references = torch.randn(2, 10, 3, 4), torch.randn(2, 3, 2, 6, 6)
    whole = module(query, references)[1]
    torch.testing.assert_close(module(query, references[:, [2, 0, 1]])[1], whole)
    for left_out in range(3):
        rest = [index for index in range(3) if index != left_out]
        assert not torch.allclose(module(query, references[:, rest])[1], whole, atol=1e-3)
