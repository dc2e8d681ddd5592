"""Frames that come one by one: order, flow, references, and what is refused."""

from itertools import chain, count, islice, repeat

import numpy as np
import pytest
import torch

from datasets.augmentation import whole_frame
from datasets.clips import VideoError
from datasets.flow.colour_wheel import flow_to_picture
from datasets.flow.estimators import dis_estimator
from datasets.layout import video_sequences
from datasets.pictures import read_image
from datasets.samples import show
from inference import load, segment_stream
from models.interface import Network
from models.ops import resize
from tests.models.small_networks import TWO_STREAMS, inputs, network
from tests.small_checkpoints import save_small
from utils.evaluation.segmenting import Segmenter
from utils.evaluation.streaming import predict_stream
from utils.training.checkpoints import CheckpointError

SIZE = 48, 64


@pytest.fixture(scope="module")
def checkpoint(tiny_settings, tmp_path_factory):
    return save_small(tmp_path_factory.mktemp("run") / "best.pt", tiny_settings)


@pytest.fixture(scope="module")
def trained(checkpoint):
    return load(checkpoint, "cpu")


@pytest.fixture(scope="module")
def folder(tiny_root):
    return video_sequences(tiny_root, "DAVIS_test")[0].frames[0].image.parent


@pytest.fixture(scope="module")
def frames(folder):
    """Seven frames: five, and two of them again."""
    images = [read_image(path) for path in sorted(folder.iterdir())]
    return [*images, images[3], images[2]]


def probabilities(trained, frames, **options) -> np.ndarray:
    return np.stack(list(segment_stream(trained, frames, probabilities=True, **options)))


def flow_since(before, image) -> np.ndarray:
    """The flow picture of a frame: minus the motion back to the frame before it."""
    if before is None:
        return np.full((*SIZE, 3), 255, np.uint8)  # white: no motion
    return flow_to_picture(-dis_estimator()(image, before))


def test_results_are_the_forward_passes_with_the_references_seen_so_far(trained, frames):
    view = whole_frame(64)
    shown = [
        show(image, flow_since(before, image), view)
        for before, image in zip([None, *frames], frames)
    ]
    images, flows = (torch.stack([one[name] for one in shown]) for name in ("image", "flow"))
    # Three of those that are kept; six would be too many, so that 2, 4 and 6 are dropped.
    references = [[0], [1], [1, 2], [1, 2, 3], [1, 2, 4], [1, 3, 5], [1, 3, 5]]
    found = probabilities(trained, frames)
    assert found.shape == (7, 1, *SIZE) and found.dtype == np.float32
    for position, chosen in enumerate(references):
        with torch.no_grad():
            own = (one[position : position + 1] for one in (images, flows))
            logits = trained.segmenter.network(*own, images[chosen][None], flows[chosen][None])
        expected = resize(logits.logits[0], SIZE).sigmoid()[0].numpy()
        np.testing.assert_allclose(found[position], expected, atol=1e-4)


def test_a_result_comes_before_the_next_frame_is_read(trained, frames):
    read = []

    def camera():
        for number in count():
            read.append(number)
            yield frames[number % 5]

    results = segment_stream(trained, camera())
    assert read == []
    for number, mask in enumerate(islice(results, 4)):
        assert read == list(range(number + 1))
        assert mask.shape == SIZE and mask.dtype == np.uint8 and mask.max() <= 1


def test_a_camera_may_reuse_its_memory(trained, frames):
    def camera():
        memory = np.empty_like(frames[0])
        for frame in frames:
            memory[:] = frame
            yield memory

    np.testing.assert_array_equal(probabilities(trained, camera()), probabilities(trained, frames))


def test_paths_tensors_and_estimators_are_taken(trained, frames, folder):
    expected = probabilities(trained, frames[:5])
    np.testing.assert_array_equal(probabilities(trained, folder), expected)
    tensors = torch.from_numpy(np.stack(frames[:5])).permute(0, 3, 1, 2)
    np.testing.assert_array_equal(probabilities(trained, tensors), expected)
    for flow in ("dis", dis_estimator()):
        np.testing.assert_array_equal(probabilities(trained, frames[:5], flow=flow), expected)
    assert list(segment_stream(trained, [])) == []
    assert probabilities(trained, frames[:1]).shape == (1, 1, *SIZE)


def test_all_views_are_averaged(frames):
    model = network("gsanet").eval()
    large, small, both = (
        np.stack(
            [p for _, p in predict_stream(Segmenter(model, 64, scales=s), frames, dis_estimator())]
        )
        for s in ([1.0], [0.5], [1.0, 0.5])
    )
    np.testing.assert_allclose(both, (large + small) / 2, atol=1e-6)
    assert np.abs(large - small).max() > 1e-3


@pytest.mark.parametrize("name", TWO_STREAMS)
def test_few_frames_of_a_long_stream_are_encoded_as_references(name):
    model = network(name, num_references=2).eval()
    encode, calls = model.encode_references, []
    model.encode_references = lambda *frames: calls.append(1) or encode(*frames)
    image, flow = ((255 * x).byte() for x in inputs(1, 32, 32)[:2])
    with torch.inference_mode():
        results = list(model.segment_stream(repeat({"image": image, "flow": flow}, 100)))
    assert len(results) == 100 and len(calls) < 20


def test_dpa_without_references_streams(frames):
    model = network("dpa", inter_frame_attention=False).eval()
    found = [p for _, p in predict_stream(Segmenter(model, 64), frames[:2], dis_estimator())]
    assert [one.shape for one in found] == [(1, *SIZE)] * 2


# Errors


@pytest.mark.parametrize("name", ["smtc", "ssl_uvos"])
def test_networks_that_look_ahead_are_refused(name, tiny_settings, frames, tmp_path):
    network = load(save_small(tmp_path / "best.pt", tiny_settings, name, None), "cpu")
    with pytest.raises(VideoError, match=f"{name} with .*: needs the whole video"):
        segment_stream(network, frames)
    with pytest.raises(NotImplementedError):
        Network().segment_stream([])


@pytest.mark.parametrize(
    ("frames", "message"),
    [
        (5, "frames: found int"),
        ({}, "frames: found dict"),
        ("nowhere.mp4", "neither a file nor a folder"),
    ],
)
def test_frames_that_are_none_are_refused_at_once(trained, frames, message):
    with pytest.raises(VideoError, match=message):
        segment_stream(trained, frames)


@pytest.mark.parametrize(
    ("late", "message"),
    [
        (np.zeros((48, 48, 3), np.uint8), "frame 2 is 48 x 48 pixels, those before it 64 x 48"),
        (np.zeros((*SIZE, 3)), r"frames\[2\]: found an array float64"),
    ],
)
def test_a_frame_that_cannot_be_used_is_an_error_when_it_comes(trained, frames, late, message):
    results = segment_stream(trained, chain(frames[:2], [late]))
    assert len([next(results), next(results)]) == 2
    with pytest.raises(VideoError, match=message):
        next(results)


def test_flow_maps_cannot_be_given_to_a_stream(trained, frames):
    for flow in ([np.zeros((*SIZE, 2), np.float32)], np.zeros((9, *SIZE, 2), np.float32)):
        with pytest.raises(VideoError, match=r"flow: found (list|ndarray), expected .* a function"):
            segment_stream(trained, frames, flow=flow)


def test_a_network_that_has_broken_down_gives_no_result(checkpoint, frames):
    network = load(checkpoint, "cpu")
    with torch.no_grad():
        for parameter in network.segmenter.network.parameters():
            parameter.fill_(torch.nan)
    with pytest.raises(CheckpointError, match="NaN"):
        next(segment_stream(network, frames))
