"""Random colours: one change for all frames of a clip, and pixels that stay in place."""

import torch

from models.colour_views import colour_view


def test_frames_of_a_clip_get_the_same_change_and_clips_different_ones():
    frame = torch.randint(0, 256, (3, 40, 60), dtype=torch.uint8)
    torch.manual_seed(0)
    views = colour_view(frame.expand(12, 2, 3, 40, 60))
    assert views.dtype == torch.float32 and views.shape == (12, 2, 3, 40, 60)
    assert views.min() >= 0 and views.max() <= 1
    assert torch.equal(views[:, 0], views[:, 1])
    assert len({round(view.std().item(), 5) for view in views}) > 6
    torch.manual_seed(0)
    assert torch.equal(colour_view(frame.expand(12, 2, 3, 40, 60)), views)


def test_mixed_precision_does_not_round_the_pixels():
    clips = torch.randint(0, 256, (8, 1, 3, 24, 24), dtype=torch.uint8)
    torch.manual_seed(2)
    views = colour_view(clips)
    torch.manual_seed(2)
    with torch.autocast("cpu", torch.bfloat16):
        again = colour_view(clips)
    assert again.dtype == torch.float32 and torch.equal(again, views)


def test_changes_come_as_often_as_they_should():
    torch.manual_seed(1)
    frame = torch.zeros(3, 24, 24, dtype=torch.uint8)
    frame[0, 8:16, 8:16] = 200  # a red square
    views = colour_view(frame.expand(400, 1, 3, 24, 24))[:, 0]
    grey = (views.amax(dim=1) - views.amin(dim=1)).flatten(1).amax(dim=1) < 1e-4
    beside = (views[:, :, 7, 12] - views[:, :, 0, 0]).abs().amax(dim=1)
    sharp = beside < 1e-4  # blur spreads the square by a pixel and more
    assert 0.14 < grey.float().mean() < 0.28
    assert 0.35 < sharp.float().mean() < 0.65


def test_the_place_of_things_stays():
    torch.manual_seed(2)
    frame = torch.zeros(3, 24, 24, dtype=torch.uint8)
    frame[:, 10:14, 4:8] = 255
    for view in colour_view(frame.expand(20, 1, 3, 24, 24))[:, 0]:
        brightness = view.mean(dim=0)
        assert brightness[11:13, 5:7].min() > brightness[:, 12:].max()
