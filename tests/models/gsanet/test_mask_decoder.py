"""CNN mask decoder: what comes out at which scale, and what it depends on."""

import pytest
import torch

from models.gsanet.mask_decoder import MaskDecoder


def pyramid(height, width, batch=2, channels=8, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return [
        torch.randn(batch, channels, height // stride, width // stride, generator=generator)
        for stride in (4, 8, 16, 32)
    ]


def image(height, width, batch=2):
    generator = torch.Generator().manual_seed(7)
    return torch.randn(batch, 3, height, width, generator=generator)


def decoder(channels=8, **arguments):
    torch.manual_seed(0)
    return MaskDecoder(channels, **arguments).eval()


@pytest.mark.parametrize("size", [(64, 64), (64, 96), (32, 160)])
def test_there_is_a_mask_of_the_asked_size_for_each_level(size):
    masks = decoder()(pyramid(*size), image(*size))
    assert [mask.shape for mask in masks] == [(2, 1, *size)] * 4
    assert all(mask.min() < mask.max() for mask in masks)


def test_a_level_reaches_its_own_mask_and_the_finer_ones():
    """Masks are finest first: the finest features change one mask, the coarsest all."""
    model = decoder()
    features = pyramid(64, 96)
    before = model(features, image(64, 96))
    for level in range(4):
        changed = list(features)
        changed[level] = changed[level] + torch.randn(
            changed[level].shape, generator=torch.Generator().manual_seed(1)
        )
        after = model(changed, image(64, 96))
        differ = [not torch.allclose(a, b, atol=1e-5) for a, b in zip(after, before)]
        assert differ == [index <= level for index in range(4)]


def test_coarse_masks_are_enlarged_and_the_finest_one_has_a_value_for_every_pixel():
    """A mask computed at stride s and enlarged is linear between its samples."""
    masks = decoder()(pyramid(128, 128), image(128, 128))
    for stride, mask in zip((1, 8, 16, 32), masks):
        line = mask[0, 0, 64]
        bends = (line[2:] - 2 * line[1:-1] + line[:-2]).abs() > 1e-5 * line.abs().max()
        if stride == 1:
            assert bends.sum() > 100
        else:
            # Samples lie between pixels, so that a kink touches two second differences.
            assert 0 < bends.sum() <= 2 * (128 // stride)


def test_the_finest_mask_depends_on_nearby_features_alone_but_for_the_coarser_levels():
    """A feature of the finest level moves the mask at its own place, not elsewhere."""
    model = decoder()
    features = pyramid(128, 128, batch=1)
    before = model(features, image(128, 128, 1))[0]
    features[0][0, :, 5, 20] += 3  # the cell of rows 20 to 23, columns 80 to 83
    change = (model(features, image(128, 128, 1))[0] - before).abs()[0, 0]
    assert (change[20:24, 80:84] > 0).all()
    # Two 3 x 3 convolutions at stride 4 and two at stride 2 reach three cells of four pixels.
    change[20 - 12 : 24 + 12, 80 - 12 : 84 + 12] = 0
    assert change.max() == 0


def test_the_image_moves_the_finest_mask_alone():
    model = decoder()
    features = pyramid(64, 96)
    before = model(features, image(64, 96))
    after = model(features, image(64, 96) + 1)
    same = [torch.equal(a, b) for a, b in zip(after, before)]
    assert same == [False, True, True, True]


def test_the_context_of_the_coarsest_level_reaches_the_whole_mask():
    model = decoder()
    features = pyramid(320, 320, batch=1)
    before = model(features, image(320, 320, 1))[-1]
    features[-1][:, :, 0, 0] += 5
    after = model(features, image(320, 320, 1))[-1]
    assert (after - before)[0, 0, -32:, -32:].abs().min() > 0


def test_any_number_of_levels_will_do():
    features = pyramid(64, 64)[:2]
    assert len(decoder(levels=2)(features, image(64, 64))) == 2
