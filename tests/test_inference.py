"""Masks of videos from Python: the same as by evaluate.py, from frames and flow of any kind."""

from itertools import pairwise

import cv2
import numpy as np
import pytest
import torch
from PIL import Image

import evaluate
from datasets.augmentation import whole_frame
from datasets.clips import VideoError
from datasets.flow.colour_wheel import flow_to_picture
from datasets.flow.estimators import dis_estimator, of_small_frames
from datasets.layout import video_sequences
from datasets.pictures import read_image
from datasets.samples import show
from inference import load, segment_stream, segment_video
from models.two_streams import uniform_references
from tests.datasets.flow.frames import write_frames
from tests.small_checkpoints import save_small
from utils.kinds import SettingsError
from utils.training.checkpoints import CheckpointError


@pytest.fixture(scope="module")
def of_run(tiny_settings):
    """Settings of the network's run, other than the defaults."""
    return tiny_settings.replace(threshold=0.4, stretch_masks=True)


@pytest.fixture(scope="module")
def checkpoint(of_run, tmp_path_factory):
    return save_small(tmp_path_factory.mktemp("run") / "best.pt", of_run)


@pytest.fixture(scope="module")
def trained(checkpoint):
    return load(checkpoint, "cpu", threshold=0.4, stretch_masks=True)


@pytest.fixture(scope="module")
def folder(tiny_root):
    """A folder of five pictures, 48 x 64."""
    return video_sequences(tiny_root, "DAVIS_test")[0].frames[0].image.parent


@pytest.fixture(scope="module")
def frames(folder):
    return [read_image(path) for path in sorted(folder.iterdir())]


@pytest.fixture(scope="module")
def expected(trained, folder):
    """The probabilities of the folder."""
    return probabilities(trained, folder)


def probabilities(network, frames, **options) -> np.ndarray:
    return np.stack(list(segment_video(network, frames, probabilities=True, **options)))


def test_probabilities_are_those_of_the_networks_forward_pass(trained, frames, expected):
    estimate, view = dis_estimator(), whole_frame(64)
    flows = [estimate(a, b) for a, b in pairwise(frames)]
    flows.append(-estimate(frames[-1], frames[-2]))
    shown = [show(image, flow_to_picture(flow), view) for image, flow in zip(frames, flows)]
    images, flows = (torch.stack([one[name] for one in shown]) for name in ("image", "flow"))
    chosen = uniform_references(5, 3)
    with torch.no_grad():
        logits = trained.segmenter.network(
            images, flows, *(one[chosen].expand(5, -1, -1, -1, -1) for one in (images, flows))
        ).logits[0]
    assert expected.shape == (5, 1, 48, 64) and expected.dtype == np.float32
    for found, own in zip(expected, logits.numpy()):
        enlarged = cv2.resize(own[0], (64, 48), interpolation=cv2.INTER_LINEAR)
        np.testing.assert_allclose(found[0], 1 / (1 + np.exp(-enlarged)), atol=1e-4)
    assert np.ptp(expected, axis=0).max() > 0.01  # the frames differ


def test_masks_are_those_that_evaluate_writes(
    trained, checkpoint, folder, expected, call, tmp_path
):
    flags = ("--checkpoint", checkpoint, "--video", folder, "--flow-estimator", "dis")
    rule = ("--threshold", 0.4, "--stretch-masks", "true")
    call(evaluate, *flags, *rule, "--output", tmp_path)
    masks = list(segment_video(trained, folder))
    written = sorted(tmp_path.glob("masks/*.png"))
    assert len(masks) == len(written) == 5
    for mask, path, (probability,) in zip(masks, written, expected):
        assert mask.dtype == np.uint8 and 0 < mask.mean() < 1
        np.testing.assert_array_equal(255 * mask, np.asarray(Image.open(path)))
        low, high = probability.min(), probability.max()
        np.testing.assert_array_equal(mask, (probability - low) / (high - low) > 0.4)


# Frames


def reused(frames):
    """Frames one by one in the same memory, as a camera's driver gives them."""
    memory = np.empty_like(frames[0])
    for frame in frames:
        memory[:] = frame
        yield memory


def on_disk(frames, tmp_path):
    kept = np.memmap(tmp_path / "frames", np.uint8, "w+", shape=(5, 48, 64, 3))
    kept[:] = frames
    return kept


def as_tensors(frames):
    return torch.from_numpy(np.stack(frames)).permute(0, 3, 1, 2)


KINDS = {
    "list of arrays": lambda frames, _: frames,
    "array": lambda frames, _: np.stack(frames),
    "array in a file": on_disk,
    "mirrored view": lambda frames, _: [
        np.ascontiguousarray(f[..., ::-1])[..., ::-1] for f in frames
    ],
    "tensor": lambda frames, _: as_tensors(frames),
    "list of tensors": lambda frames, _: list(as_tensors(frames)),
    "float tensor": lambda frames, _: as_tensors(frames).float() / 255,
    "double tensors, one by one": lambda frames, _: iter(as_tensors(frames).double() / 255),
    "generator": lambda frames, _: reused(frames),
}


@pytest.mark.parametrize("kind", KINDS)
def test_frames_of_every_kind_give_the_same_results(trained, frames, expected, tmp_path, kind):
    given = KINDS[kind](frames, tmp_path)
    np.testing.assert_array_equal(probabilities(trained, given), expected)


def test_a_path_may_be_text_and_a_file(trained, frames, folder, expected, tmp_path):
    np.testing.assert_array_equal(probabilities(trained, str(folder)), expected)
    pictures = [Image.fromarray(frame) for frame in frames]
    # APNG is lossless.
    pictures[0].save(tmp_path / "clip.apng", "PNG", save_all=True, append_images=pictures[1:])
    np.testing.assert_array_equal(probabilities(trained, tmp_path / "clip.apng"), expected)


def test_pictures_in_memory_are_read_when_they_are_needed(trained, frames):
    class Counted(list):
        def __getitem__(self, number):
            read.append(number)
            return super().__getitem__(number)

    read = []
    results = segment_video(trained, Counted(frames * 4))
    assert set(read) == set(range(20))  # the check
    read.clear()
    next(results)
    # The references are 3, 10 and 16; two batches of four frames, perhaps the third, which a thread
    # reads, and the frame after it, for the flow.
    assert 8 <= max(set(read) - {16, 17}) <= 12
    assert len(list(results)) == 19


RGB = np.zeros((40, 50, 3), np.uint8)


@pytest.mark.parametrize(
    ("frames", "message"),
    [
        ([], "frames: there are none"),
        (iter([]), "frames: there are none"),
        ([RGB], "frames: there is one"),
        (5, "frames: found int"),
        ({0: RGB, 1: RGB}, "frames: found dict"),
        ([RGB, None], r"frames\[1\]: found NoneType"),
        ([RGB, RGB[:20]], r"frames\[1\] is 50 x 20 pixels, those before it 50 x 40"),
        (iter([RGB, RGB[:20]]), r"frames\[1\] is 50 x 20 pixels"),
        (RGB, r"frames\[0\]: found an array uint8 \(50, 3\)"),
        ([RGB[..., 0]] * 2, r"found an array uint8 \(40, 50\).*\(H, W, 3\)"),
        ([RGB / 255] * 2, r"found an array float64 \(40, 50, 3\)"),
        ([torch.from_numpy(RGB)] * 2, r"found a tensor uint8 \(40, 50, 3\).*\(3, H, W\)"),
        ([torch.zeros(3, 8, 8, dtype=torch.int64)] * 2, "found a tensor int64"),
        ([torch.full((3, 8, 8), 1.5)] * 2, r"frames\[0\]: values from 1.5 to 1.5"),
        ([torch.full((3, 8, 8), torch.nan)] * 2, "values from nan"),
        ("nowhere.mp4", "nowhere.mp4: neither a file nor a folder"),
    ],
)
def test_frames_that_cannot_be_used_are_refused_at_once(trained, frames, message):
    with pytest.raises(VideoError, match=message):
        segment_video(trained, frames)


# Flow


@pytest.fixture(scope="module")
def flows(frames):
    """The motion to the next frame, and of the last frame minus that to the one before."""
    estimate = dis_estimator()
    forward = [estimate(a, b) for a, b in pairwise(frames)]
    return [*forward, -estimate(frames[-1], frames[-2])]


@pytest.mark.parametrize(
    "given",
    [
        lambda flows: flows,
        lambda flows: iter(flows),
        lambda flows: np.stack(flows).astype(np.float64),
        lambda flows: torch.from_numpy(np.stack(flows)).permute(0, 3, 1, 2),
        lambda flows: [flow_to_picture(flow) for flow in flows],
        lambda flows: (torch.from_numpy(flow_to_picture(f)).permute(2, 0, 1) for f in flows),
        lambda flows: dis_estimator(),
        lambda flows: "dis",
    ],
)
def test_flow_may_be_given_in_every_form(trained, frames, flows, expected, given):
    found = probabilities(trained, frames, flow=given(flows))
    np.testing.assert_array_equal(found, expected)


def test_given_flow_is_used_in_its_order_and_the_last_map_serves_twice(trained, frames, flows):
    without_last = probabilities(trained, frames, flow=flows[:-1])
    twice = probabilities(trained, frames, flow=[*flows[:-1], flows[-2]])
    np.testing.assert_array_equal(without_last, twice)
    assert np.abs(probabilities(trained, frames, flow=flows[::-1]) - twice).max() > 1e-3


def test_one_frame_with_its_flow_is_enough(trained, frames, flows):
    assert probabilities(trained, frames[:1], flow=flows[:1]).shape == (1, 1, 48, 64)


FIELD = np.zeros((40, 50, 2), np.float32)


@pytest.mark.parametrize(
    ("flow", "message"),
    [
        ([FIELD], r"flow: 1 flow maps for 3 frames"),
        ([FIELD] * 4, r"flow: 4 flow maps for 3 frames"),
        ([FIELD, FIELD[:20], FIELD], r"flow\[1\] is 50 x 20 pixels, the frames 50 x 40"),
        ([FIELD, FIELD + np.nan, FIELD], r"flow\[1\]: found an array float32.*finite"),
        ([FIELD[..., :1]] * 3, r"flow\[0\]: found an array float32 \(40, 50, 1\)"),
        ([FIELD.astype(int)] * 3, r"flow\[0\]: found an array int64"),
        ("flownet", "flow: found 'flownet', expected 'raft' or 'dis'"),
        (5, "flow: found int"),
        (np.array(1.0), "flow: found ndarray, expected a list"),
    ],
)
def test_flow_that_cannot_be_used_is_refused_at_once(trained, flow, message):
    with pytest.raises(VideoError, match=message):
        segment_video(trained, [RGB] * 3, flow=flow)


@pytest.mark.parametrize("segment", [segment_video, segment_stream])
@pytest.mark.parametrize("frames", [np.array(3), torch.tensor(3)])
def test_numbers_are_no_frames(trained, segment, frames):
    with pytest.raises(VideoError, match=r"frames: found (ndarray|Tensor), expected a list"):
        list(segment(trained, frames))


@pytest.mark.parametrize(
    ("of_training", "flow", "asked"),
    [
        ("dis, camera motion kept", None, ("dis", False)),
        ("raft, camera motion removed", None, ("raft", True)),
        ("raft, camera motion removed", "dis", ("dis", True)),
        ("farneback, camera motion removed", None, ("dis", True)),
        (None, None, ("dis", False)),
        (None, "raft", ("raft", False)),
    ],
)
def test_flow_is_made_as_in_training_or_by_the_estimator_named(
    tiny_settings, tmp_path, frames, monkeypatch, of_training, flow, asked
):
    seen = []

    def build(name, weights, device, removed, mixed_precision):
        seen.append((name, removed))
        assert weights is None and device == "cpu" and mixed_precision
        return dis_estimator()

    monkeypatch.setattr("utils.evaluation.given_flow.build_estimator", build)
    network = load(save_small(tmp_path / "best.pt", tiny_settings, flow=of_training), "cpu")
    segment_video(network, frames, flow=flow)
    assert seen == [asked]


def test_large_frames_are_reduced_for_named_estimators_and_not_for_functions(
    trained, checkpoint, call, tmp_path, monkeypatch
):
    large = [np.random.default_rng(n).integers(0, 256, (800, 810, 3), np.uint8) for n in range(2)]
    seen = []

    def still(first, second):
        seen.append(first.shape[:2])
        return np.zeros((*first.shape[:2], 2), np.float32)

    for module in ("given_flow", "video"):
        monkeypatch.setattr(f"utils.evaluation.{module}.build_estimator", lambda *_: still)
    for segment in (segment_video, segment_stream):
        for flow, size in (
            ("dis", (720, 729)),
            (still, (800, 810)),
            (of_small_frames(still), (720, 729)),
        ):
            assert [mask.shape for mask in segment(trained, large, flow=flow)] == [(800, 810)] * 2
            assert set(seen) == {size}
            seen.clear()
    write_frames(tmp_path / "large", "a", large)
    call(evaluate, "--checkpoint", checkpoint, "--video", tmp_path / "large", "--output", tmp_path)
    assert set(seen) == {(720, 729)}
    # A larger input of the network keeps frames larger.
    wide = load(checkpoint, "cpu", image_size=32, image_width=768)
    assert wide.segmenter.largest_side == 768
    seen.clear()
    list(segment_video(wide, large, flow="dis"))
    assert set(seen) == {(768, 778)}


# Networks


def test_several_objects_are_numbered_and_take_no_flow(tiny_settings, frames, tmp_path):
    arguments = {"merge_distance": 1e-7, "max_objects": 3}
    network = load(
        save_small(tmp_path / "best.pt", tiny_settings, "ssl_uvos", None, **arguments), "cpu"
    )
    found = probabilities(network, iter(frames))
    assert found.shape == (5, 3, 48, 64)
    masks = np.stack(list(segment_video(network, frames)))
    assert masks.shape == (5, 48, 64) and set(np.unique(masks)) <= {0, 1, 2, 3}
    np.testing.assert_array_equal(masks[masks > 0], found.argmax(axis=1)[masks > 0] + 1)
    with pytest.raises(VideoError, match="flow: this network takes none"):
        segment_video(network, frames, flow="dis")


def test_settings_are_those_of_the_run_unless_they_are_changed(checkpoint):
    def seen(**changes):
        network = load(checkpoint, "cpu", **changes)
        segmenter, used = network.segmenter, network.settings
        size, references = segmenter.views[0].size, segmenter.network.num_references
        assert not segmenter.network.training
        return size, references, used["THRESHOLD"], used["STRETCH_MASKS"], network.batch_size

    # The rule of masks is that of config.py, as in evaluate.py.
    assert seen() == (64, 3, 0.5, False, 4)
    changes = {"image_size": 96, "num_references": 2, "threshold": 0.3, "eval_batch_size": 1}
    assert seen(stretch_masks=True, **changes) == (96, 2, 0.3, True, 1)
    assert load(checkpoint).segmenter.device.type in ("cpu", "cuda")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"image_siz": 64}, "no setting IMAGE_SIZ; the nearest is IMAGE_SIZE"),
        ({"image_size": 65}, "image_size=65: expected a whole number.*multiple of 32"),
        ({"threshold": "high"}, "threshold='high': expected a number from 0"),
        ({"workers": 2}, "^workers: without effect"),
        ({"frame_rate": 3.0, "sigma": 3.0}, "^frame_rate, sigma: without effect"),
        ({"max_objects": 3}, "^max_objects: without effect"),
    ],
)
def test_changes_that_have_no_effect_or_are_misspelt_are_refused(checkpoint, changes, message):
    with pytest.raises(SettingsError, match=message):
        load(checkpoint, "cpu", **changes)


@pytest.mark.parametrize("device", ["gpu", "cuda:77"])
def test_a_device_that_is_not_there_is_named(checkpoint, device):
    with pytest.raises(SettingsError, match=f"device: '{device}' cannot be used"):
        load(checkpoint, device)


def test_a_path_is_no_network(checkpoint, frames):
    for segment in (segment_video, segment_stream):
        with pytest.raises(VideoError, match="network: found PosixPath, expected the result of"):
            segment(checkpoint, frames)


@pytest.mark.parametrize(
    ("returned", "message"),
    [
        (np.zeros((10, 10, 2), np.float32), r"returned float32 \(10, 10, 2\); expected"),
        (np.zeros((64, 48, 2), np.float32), r"\(64, 48, 2\); expected float \(48, 64, 2\)"),
        (np.zeros((48, 65, 2), np.float32), r"\(48, 65, 2\); expected float \(48, 64, 2\)"),
        (np.zeros((1, 0, 2), np.float32), r"\(1, 0, 2\); expected float \(48, 64, 2\)"),
        (None, r"returned NoneType \(\); expected"),
        (np.full((48, 64, 2), np.nan, np.float32), "not finite"),
    ],
)
def test_a_flow_function_must_return_motion_in_pixels(trained, frames, returned, message):
    for segment in (segment_video, segment_stream):
        with pytest.raises(VideoError, match=message):
            list(segment(trained, frames, flow=lambda *_: returned))


def test_checkpoints_that_segment_no_video_are_refused(tiny_settings, tmp_path):
    path = save_small(tmp_path / "best.pt", tiny_settings, flow=None, motion=False)
    with pytest.raises(CheckpointError, match=r"best\.pt is of stage 1, which has no flow stream"):
        load(path, "cpu")
    with pytest.raises(CheckpointError, match="there is no checkpoint"):
        load(tmp_path / "missing.pt")


@pytest.mark.parametrize("options", [{}, {"probabilities": True}])
def test_a_network_that_has_broken_down_gives_no_result(tiny_settings, tmp_path, frames, options):
    network = load(save_small(tmp_path / "best.pt", tiny_settings), "cpu")
    with torch.no_grad():
        for parameter in network.segmenter.network.parameters():
            parameter.fill_(torch.nan)
    with pytest.raises(CheckpointError, match="NaN"):
        next(segment_video(network, frames, **options))


def test_nothing_is_printed_unless_it_is_asked_for(checkpoint, folder, capfd):
    network = load(checkpoint, "cpu")
    list(segment_video(network, folder))
    assert capfd.readouterr() == ("", "")
    list(segment_video(network, folder, progress=True))
    out, err = capfd.readouterr()
    assert out == "" and "references" in err and "segmenting" in err and "checking" in err


def test_a_function_is_told_how_far_the_work_is_and_can_end_it(trained, frames, folder):
    told = []
    list(segment_video(trained, folder, progress=lambda *how_far: told.append(how_far)))
    works = [work for work, *_ in told]
    assert list(dict.fromkeys(works)) == ["checking", "references", "segmenting"]
    assert [how_far for how_far in told if how_far[0] == "checking"][-1] == ("checking", 4, 5)
    assert told[-5:] == [("segmenting", done, 5) for done in range(5)]

    def stop(work: str, done: int, count: int) -> None:
        if (work, done) == ("segmenting", 2):
            raise InterruptedError

    masks = segment_video(trained, frames, progress=stop)
    next(masks), next(masks)
    with pytest.raises(InterruptedError):
        next(masks)


def test_a_network_that_looks_ahead_says_how_much_it_has_read(tiny_settings, frames, tmp_path):
    network = load(save_small(tmp_path / "best.pt", tiny_settings, "ssl_uvos", None), "cpu")
    told = []
    list(segment_video(network, frames, progress=lambda *how_far: told.append(how_far)))
    assert [how_far for how_far in told if how_far[0] == "reading"] == [
        ("reading", done, 5) for done in range(5)
    ]
