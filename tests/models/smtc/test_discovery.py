"""The objects of a video: tracks, one label per pixel, and the masks of the release."""

import numpy as np
import pytest
import torch
from scipy.optimize import linear_sum_assignment

from models.backbones.vision_transformer import Tokens
from models.smtc import discovery
from models.smtc.network import KINETICS
from tests.models.small_networks import FramesInMemory
from tests.models.smtc.test_network import frames, network


def clip(count):
    """A video of random frames."""
    return FramesInMemory({"image": image} for image in frames(count))


def slots_of(model, images, previous, noise):
    def keys(x):
        return model.encoder(model.normalise(x), class_token=False).keys

    return model.slots(keys(images), keys(previous), (4, 4), model.num_iterations, noise)


@torch.inference_mode()
def test_tracks_are_linked_instances_of_frames_that_start_with_the_same_noise(monkeypatch):
    """Against each frame by itself, and scipy's matching of neighbours."""
    model, seen = network().eval(), []
    weights = discovery.track_weights
    monkeypatch.setattr(
        "models.smtc.network.track_weights", lambda *x: seen.append(x) or weights(*x)
    )
    video = clip(5)
    list(model.segment_video(video))
    images = video.at(range(5))["image"]
    noise = torch.randn(1, 5, 3, 192, generator=torch.Generator().manual_seed(0))
    expected = slots_of(model, images, images[[1, 0, 1, 2, 3]], noise.expand(5, -1, -1, -1))
    maps, scores = (torch.cat(x) for x in zip(*seen))
    for k in range(5):
        order = np.arange(3)
        for t in range(5):
            if t:
                before = expected.features[t - 1, k, order]
                cosines = before @ expected.features[t, k].T
                order = linear_sum_assignment(cosines.numpy(), maximize=True)[1]
            of_frame = maps[t, 3 * k : 3 * k + 3].flatten(1)
            torch.testing.assert_close(of_frame, expected.instance_maps[t, k, order])
            torch.testing.assert_close(
                scores[t, 3 * k : 3 * k + 3], expected.scores[t, k, order], rtol=1e-4, atol=1e-5
            )


@pytest.mark.parametrize("way", ["tracks", "release"])
@torch.inference_mode()
def test_masks_do_not_depend_on_batches_and_follow_from_the_seed(way):
    video = clip(6)

    def logits(model, of_video=video):
        return torch.cat([p.logits[0] for p in model.eval().segment_video(of_video)])

    class OneByOne(FramesInMemory):
        def __iter__(self):
            return (self.at([i]) for i in range(len(self)))

    found = logits(network(discovery=way))
    assert found.shape == (6, 15, 4, 4)
    torch.testing.assert_close(logits(network(discovery=way), OneByOne(video[:])), found)
    assert not torch.equal(logits(network(discovery=way, noise_seed=1)), found)
    assert not torch.equal(logits(network(discovery=way, kinetics_statistics=True)), found)
    model = network(discovery=way)
    model.normalise = model.normalise_as_kinetics
    torch.testing.assert_close(model.normalise.mean.flatten(), torch.tensor(KINETICS[0]))
    expected = logits(network(discovery=way, kinetics_statistics=True))
    torch.testing.assert_close(logits(model), expected)


@pytest.mark.parametrize("way", ["tracks", "release"])
@torch.inference_mode()
def test_videos_are_segmented_under_autocast(way):
    model = network(discovery=way).eval()
    with torch.autocast("cpu", torch.bfloat16):
        for prediction in model.segment_video(clip(5)):
            logits = prediction.logits[0]
            assert logits.dtype == torch.float32 and logits.isfinite().all()


@torch.inference_mode()
def test_pictures_show_which_slot_each_token_belongs_to():
    model = network().eval()
    (prediction,) = model.segment_video(clip(2))
    semantic, instance = (prediction.maps[f"{kind} slots"] for kind in ("semantic", "instance"))
    assert semantic.shape == instance.shape == (2, 16, 16)
    numbers = (instance * 14).round()
    torch.testing.assert_close(numbers / 14, instance)
    assert set((semantic * 4).unique().tolist()) <= {0, 1, 2, 3, 4}


@torch.inference_mode()
def test_at_most_max_objects_tracks_are_objects():
    (prediction,) = network(max_objects=7).eval().segment_video(clip(2))
    assert prediction.logits[0].shape == (2, 7, 4, 4)


MAPS = torch.tensor([[0.5, 0.2, 0.1], [0.3, 0.6, 0.2], [0.2, 0.2, 0.7]])[None, :, None]


def test_area_counts_by_the_score_where_a_track_is_not_silent():
    maps = torch.cat([MAPS, MAPS])  # in each frame each track has one token of three
    scores = torch.tensor([[0.9, 0.4, 0.5], [0.6, 0.8, -1.0]])
    expected = torch.tensor([1.5, 0.8, 0.5]) / 3
    torch.testing.assert_close(discovery.track_weights(maps, scores), expected)


def test_one_label_per_pixel_and_silent_tracks_are_background():
    scores = torch.tensor([[0.9, 0.9, 0.4]])
    logits = discovery.track_logits(MAPS, scores, torch.tensor([2, 0]))
    silent = torch.full((3,), -1.0)
    torch.testing.assert_close(logits[0, 0, 0], silent)  # track 2 has a low score
    torch.testing.assert_close(logits[0, 1, 0], torch.tensor([0.2, -0.4, -0.6]))


def test_masks_of_the_release_are_counted_anew_and_stretched():
    scores = torch.tensor([[0.4, 0.9, 0.5]])
    logits = discovery.release_logits(MAPS, scores)[0, :, 0]
    torch.testing.assert_close(logits[0], torch.tensor([0.25, 1.0, 0.0]) - 0.3)
    torch.testing.assert_close(logits[1], torch.tensor([0.0, 0.0, 1.0]) - 0.3)
    torch.testing.assert_close(logits[2], torch.full((3,), -1.0))
    constant = discovery.release_logits(torch.full((1, 1, 2, 2), 0.4), torch.ones(1, 1))
    assert (constant < 0).all()
    # Of more instances than a label map has room for, those that count come first.
    scores = torch.zeros(1, 300)
    scores[0, 280:] = 0.9
    many = discovery.release_logits(torch.rand(1, 300, 2, 2), scores)
    assert many.shape == (1, 254, 2, 2)
    assert (many.amax(dim=(2, 3)) > 0)[0].tolist() == [True] * 20 + [False] * 234


@pytest.mark.parametrize("batches", [[8], [3, 3, 2], [1] * 8])
def test_chunks_of_four_frames_do_not_depend_on_batches(batches):
    keys = torch.arange(8.0)[:, None, None]
    frames = [Tokens(part, None, (1, 1)) for part in keys.split(batches)]
    found = [(chunk.flatten().tolist(), new) for chunk, new, _ in discovery.chunks(frames)]
    assert found == [([0, 1, 2, 3], 4), ([4, 5, 6, 7], 4)]


@pytest.mark.parametrize(
    "length, last, new",
    [(5, [4, 2, 3, 4], 1), (6, [4, 5, 4, 5], 2), (7, [4, 5, 6, 6], 3), (1, [0, 0, 0, 0], 1)],
)
def test_a_short_chunk_is_filled_with_the_last_frames(length, last, new):
    keys = torch.arange(float(length))[:, None, None]
    *_, (chunk, count, _) = discovery.chunks([Tokens(keys, None, (1, 1))])
    assert chunk.flatten().tolist() == last and count == new


@torch.inference_mode()
def test_a_chunk_of_the_release_is_a_clip_of_its_own(monkeypatch):
    model, seen = network(discovery="release").eval(), []
    monkeypatch.setattr("models.smtc.network.release_logits", lambda *x: seen.append(x) or x[0])
    video = clip(4)
    list(model.segment_video(video))
    images = video.at(range(4))["image"]
    noise = torch.randn(4, 5, 3, 192, generator=torch.Generator().manual_seed(0))
    expected = slots_of(model, images, images[[3, 0, 1, 2]], noise).instance_maps
    maps = torch.cat([of_batch for of_batch, _ in seen])
    torch.testing.assert_close(maps.flatten(2), expected.flatten(1, 2), rtol=1e-3, atol=1e-4)
