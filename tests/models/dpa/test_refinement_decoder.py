"""DPA's decoder: what comes out at which scale, and what it depends on."""

import pytest
import torch

from models.blocks import AtrousPyramid
from models.dpa.refinement_decoder import Refinement, RefinementDecoder, StreamEmbedding
from models.ops import resize

C = 16


def maps(*shapes, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(2, *shape, generator=generator) for shape in shapes]


def decoder(skips, streams=2, outline=True):
    torch.manual_seed(0)
    return RefinementDecoder(C, skips, streams, outline).eval()


def case(outline):
    """Streams, skips and image of a pyramid at strides 4 to 32, or of a VGG network's 1 to 16."""
    first = 4 if outline else 1
    stages = [first * 2**level for level in range(4 if outline else 5)]
    size = 64
    scales = [(C, size // s, size // s) for s in (stages[-2], stages[-1], 2 * stages[-1])]
    streams = [maps(*scales, seed=1), maps(*scales, seed=2)]
    widths = [6, 10, 12][: len(stages) - 2]
    skips = maps(*((w, size // s, size // s) for w, s in zip(widths, stages)), seed=3)
    return decoder(widths, outline=outline), streams, skips, maps((3, size, size), seed=4)[0]


@pytest.mark.parametrize("outline", [True, False])
def test_there_are_four_masks_of_the_images_size(outline):
    model, streams, skips, image = case(outline)
    masks = model(streams, skips, image)
    assert [mask.shape for mask in masks] == [(2, 1, 64, 64)] * 4
    assert all(mask.min() < mask.max() for mask in masks)


@pytest.mark.parametrize("outline", [True, False])
def test_a_stage_reaches_its_own_mask_and_the_finer_ones(outline):
    model, streams, skips, image = case(outline)
    before = model(streams, skips, image)
    for level in range(len(skips)):
        changed = [skip + (index == level) for index, skip in enumerate(skips)]
        differ = [not torch.equal(a, b) for a, b in zip(model(streams, changed, image), before)]
        finer = level + 1 + outline  # masks that are as fine as this stage, or finer
        assert differ == [index < finer for index in range(4)]
    for stream in range(2):
        for scale in range(3):
            changed = [list(one) for one in streams]
            changed[stream][scale] = changed[stream][scale] + 1
            after = model(changed, skips, image)
            assert not any(torch.equal(a, b) for a, b in zip(after, before))
    same = [torch.equal(a, b) for a, b in zip(model(streams, skips, image + 1), before)]
    assert same == [not outline, True, True, True]


def test_one_stream_alone_is_taken_as_it_is():
    model, (rgb, _), skips, image = case(True)
    alone = decoder([6, 10], streams=1)
    assert not list(alone.fuse.parameters())
    masks = alone([rgb], skips, image)
    coarse = alone.merge_context(torch.cat([rgb[1], resize(rgb[2], rgb[1].shape[2:])], dim=1))
    x = alone.merge_stages(torch.cat([rgb[0], resize(coarse, rgb[0].shape[2:])], dim=1))
    torch.testing.assert_close(masks[3], resize(alone.to_mask(x), (64, 64)))
    assert alone.state_dict().keys() < model.state_dict().keys()


def test_details_count_where_the_first_mask_is():
    torch.manual_seed(0)
    step = Refinement(6, 8, 4).eval()
    skip, x = torch.randn(1, 6, 16, 16), torch.randn(1, 4, 8, 8)
    probability = torch.zeros(1, 1, 8, 8)
    probability[..., 4:] = 1
    before, _ = step(skip, probability, x)
    changed = skip.clone()
    changed[..., :4] += 5  # where the mask says that there is nothing
    torch.testing.assert_close(step(changed, probability, x)[0], before)
    changed = skip.clone()
    changed[..., 12:] += 5
    assert not torch.allclose(step(changed, probability, x)[0], before)


def test_the_first_mask_says_what_to_refine_at_every_step():
    model, streams, skips, image = case(False)
    steps = []
    for step in model.refine:
        step.register_forward_hook(lambda _, given, found: steps.append((given, found)))
    masks = model(streams, skips, image)
    assert len(steps) == 3
    first = steps[0][0][1]
    torch.testing.assert_close(resize(first.logit(), (64, 64)), masks[3], rtol=1e-3, atol=1e-4)
    for number, ((skip, probability, _), (features, mask)) in enumerate(steps):
        assert skip is skips[2 - number]
        assert probability is first and probability.requires_grad
        torch.testing.assert_close(resize(mask, (64, 64)), masks[2 - number])
        if number + 1 < 3:
            assert steps[number + 1][0][2] is features


@pytest.mark.parametrize("pool", [True, False])
def test_a_streams_embedding_has_its_stages_and_their_context(pool):
    torch.manual_seed(0)
    embedding = StreamEmbedding([5, 7], C, pool).eval()
    features = maps((5, 12, 16), (7, 6, 8))
    fine, coarse, context = embedding(features)
    for stage, found, given in zip(embedding.stages, (fine, coarse), features):
        weight, bias = stage.weight[:, :, 0, 0], stage.bias
        expected = torch.einsum("oc,bchw->bohw", weight, given) + bias[:, None, None]
        torch.testing.assert_close(found, expected)
    _, squeeze, one, two, pyramid = embedding.context
    last = features[1]
    if pool:
        last = last.unflatten(3, (4, 2)).unflatten(2, (3, 2)).amax(dim=(3, 5))
    torch.testing.assert_close(context, pyramid(two(one(squeeze(last)))))
    assert isinstance(pyramid, AtrousPyramid)
