"""Prediction over sequences: order, references, laziness, and masks from probabilities."""

import cv2
import numpy as np
import pytest
import torch
from torch import nn

from datasets.augmentation import whole_frame
from datasets.layout import Frame, VideoFiles, still_images, video_sequences
from datasets.pictures import read_image
from datasets.problems import DatasetError
from datasets.samples import StillImages, show
from models import build_model
from models.interface import REFERENCES, Needs, Network, Prediction
from models.two_streams import uniform_references
from tests.readers import picture_to_flow
from utils.evaluation.segmenting import (
    FramePrediction,
    Segmenter,
    predict_sequences,
    predict_stills,
    to_labels,
)
from utils.training.checkpoints import CheckpointError
from utils.training.samples import network_arguments

SIZE = 64


class Recorder(Network):
    """Marks every frame with its mean, and notes what it was given.

    Attributes:
        encoded: of each video the images and flow maps of its references, (R, 3, S, S) each.
        segmented: of each batch the number of its video, images and flow maps.
    """

    needs = Needs(REFERENCES, flow=True)

    def __init__(self, num_references=2):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1))
        self.num_references = num_references
        self.encoded = []
        self.segmented = []

    def segment_video(self, video):
        references = video.at(uniform_references(len(video), self.num_references))
        number = len(self.encoded)
        self.encoded.append((references["image"].clone(), references["flow"].clone()))
        for batch in video:
            assert batch.keys() == {"image", "flow"}
            image, flow = batch["image"], batch["flow"]
            assert image.dtype == flow.dtype == torch.uint8
            self.segmented.append((number, image.clone(), flow.clone()))
            logits = image.float().mean(dim=1, keepdim=True) / 255
            maps = {"first": logits[:, 0], "second": flow[:, 0] / 255}
            yield Prediction([logits, -logits], maps=maps)


@pytest.fixture
def sequences(tiny_root):
    """Sequences of 5, 3 and 1 frames."""
    train, test = (video_sequences(tiny_root, name) for name in ("DAVIS_train", "DAVIS_test"))
    return [
        train[0],
        VideoFiles(test[0].name, test[0].frames[:3]),
        VideoFiles(test[1].name, test[1].frames[2:3]),
    ]


def pictures(frames) -> tuple[torch.Tensor, torch.Tensor]:
    """Images and flow maps of frames at the network's size, uint8 (T, 3, S, S) each."""
    shown = [shown_at(frame, SIZE) for frame in frames]
    return torch.stack([one["image"] for one in shown]), torch.stack([one["flow"] for one in shown])


def shown_at(frame, size) -> dict[str, torch.Tensor]:
    return show(read_image(frame.image), read_image(frame.flow), whole_frame(size))


@pytest.mark.parametrize("workers", [0, 1])
def test_every_frame_comes_once_and_in_order_with_its_own_result(sequences, workers):
    results = list(
        predict_sequences(Segmenter(Recorder(), SIZE), sequences, batch_size=2, workers=workers)
    )
    assert [(result.sequence, result.frame) for result in results] == [
        (sequence.name, frame) for sequence in sequences for frame in sequence.frames
    ]
    for result in results:
        image, flow = (shown.numpy() / np.float32(255) for shown in pictures([result.frame]))
        assert result.prediction.logits[0].shape == (1, SIZE, SIZE)
        np.testing.assert_allclose(result.prediction.logits[0], image.mean(axis=1), atol=1e-6)
        assert list(result.prediction.maps) == ["first", "second"]
        np.testing.assert_allclose(
            result.prediction.maps["first"], image[0].mean(axis=0), atol=1e-6
        )
        np.testing.assert_array_equal(result.prediction.maps["second"], flow[0, 0])


@pytest.mark.parametrize("workers", [0, 1])
def test_references_are_spread_over_the_sequence_and_encoded_once(sequences, workers):
    model = Recorder(num_references=3)
    for _ in predict_sequences(Segmenter(model, SIZE), sequences, batch_size=2, workers=workers):
        pass
    assert len(model.encoded) == 3
    for sequence, (images, flows) in zip(sequences, model.encoded):
        chosen = [sequence.frames[i] for i in uniform_references(len(sequence.frames), 3)]
        expected = pictures(chosen)
        assert torch.equal(images, expected[0])
        assert torch.equal(flows, expected[1])


def test_batches_are_full_and_never_mix_sequences(sequences):
    model = Recorder()
    list(predict_sequences(Segmenter(model, SIZE), sequences, batch_size=2))
    assert [len(image) for _, image, _ in model.segmented] == [2, 2, 1, 2, 1, 1]
    assert [number for number, _, _ in model.segmented] == [0, 0, 0, 1, 1, 2]
    for number, sequence in enumerate(sequences):
        own = [(image, flow) for of, image, flow in model.segmented if of == number]
        for given, expected in zip(map(torch.cat, zip(*own)), pictures(sequence.frames)):
            assert torch.equal(given, expected)


def test_chosen_frames_alone_are_segmented_with_references_from_the_whole_sequence(sequences):
    model = Recorder(num_references=3)
    targets = {s.name: frames for s, frames in zip(sequences, (sequences[0].frames[::2], (), ()))}
    results = list(predict_sequences(Segmenter(model, SIZE), sequences, targets=targets))
    assert [result.frame for result in results] == list(sequences[0].frames[::2])
    images, _ = pictures([sequences[0].frames[i] for i in uniform_references(5, 3)])
    assert len(model.encoded) == 1
    assert torch.equal(model.encoded[0][0], images)


def test_a_compiled_network_gives_the_same_results(sequences, tiny_settings, monkeypatch):
    """By torch.compile without code generation, whose rounding differs and which takes a minute."""
    used = []

    def compiled(function, **options):
        used.append(function)
        return torch._dynamo.optimize("eager")(function)

    monkeypatch.setattr(torch, "compile", compiled)
    torch.manual_seed(0)
    model = build_model("gsanet", **network_arguments(tiny_settings, motion=True)).eval()
    plain, quick = (
        list(predict_sequences(Segmenter(model, SIZE, compile=on), sequences[:1], batch_size=2))
        for on in (False, True)
    )
    assert used == [model.segment]
    for one, other in zip(plain, quick, strict=True):
        assert torch.equal(one.prediction.logits[0], other.prediction.logits[0])


@pytest.mark.parametrize("mixed_precision", [False, True])
def test_results_equal_the_networks_forward_with_the_same_references(
    sequences, tiny_settings, mixed_precision
):
    torch.manual_seed(0)
    model = build_model("gsanet", **network_arguments(tiny_settings, motion=True)).eval()
    results = list(
        predict_sequences(
            Segmenter(model, SIZE, mixed_precision=mixed_precision), sequences[:2], batch_size=2
        )
    )
    for sequence in sequences[:2]:
        chosen = [sequence.frames[i] for i in uniform_references(len(sequence.frames), 3)]
        reference_images, reference_flows = pictures(chosen)
        for result in (result for result in results if result.sequence == sequence.name):
            image, flow = pictures([result.frame])
            with torch.no_grad():
                expected = model(
                    image, flow, reference_images.unsqueeze(0), reference_flows.unsqueeze(0)
                )
            torch.testing.assert_close(
                result.prediction.logits[0], expected.logits[0][0], atol=1e-4, rtol=1e-4
            )
            assert result.prediction.maps.keys() == expected.maps.keys()
            for name, values in result.prediction.maps.items():
                np.testing.assert_allclose(values, expected.maps[name][0].numpy(), atol=1e-4)


def test_results_come_one_by_one_before_later_frames_are_read(sequences, tmp_path):
    missing = Frame("gone", tmp_path / "gone.jpg", None, tmp_path / "gone.png")
    broken = VideoFiles("broken", (*sequences[0].frames, missing))
    model = Recorder(num_references=1)
    results = predict_sequences(Segmenter(model, SIZE), [broken], batch_size=2)
    assert model.segmented == [] and model.encoded == []
    for frame in sequences[0].frames[:2]:
        assert next(results).frame == frame
        assert len(model.segmented) == 2  # one batch ahead of the results
    with pytest.raises(DatasetError, match=r"gone\.jpg: no such file"):
        next(results)


# Test-time augmentation


def test_every_scale_is_shown_as_it_is_and_mirrored():
    views = Segmenter(Recorder(), 384, scales=[0.75, 1.0, 1.75], flip=True).views
    assert [(view.size, view.flip) for view in views] == [
        (288, False),
        (288, True),
        (384, False),
        (384, True),
        (672, False),
        (672, True),
    ]
    # Sizes are multiples of 32, and never nothing.
    sizes = [view.size for view in Segmenter(Recorder(), 96, scales=[0.1, 0.9, 1.25]).views]
    assert sizes == [32, 96, 128]


@pytest.mark.parametrize("recolour", [True, False])
def test_mirrored_views_show_target_and_references_mirrored_with_the_motion_of_training(
    sequences, recolour
):
    model = Recorder()
    segmenter = Segmenter(model, SIZE, flip=True, recolour_flow=recolour)
    results = list(predict_sequences(segmenter, sequences[:1], batch_size=5))
    (_, image, flow), (_, mirrored_image, mirrored_flow) = model.segmented
    (_, reference_flows), (_, mirrored_references) = model.encoded
    assert torch.equal(mirrored_image, image.flip(-1))
    pairs = zip((*flow, *reference_flows), (*mirrored_flow, *mirrored_references))
    for straight, mirrored in pairs:
        motion = picture_to_flow(straight.permute(1, 2, 0).numpy())[:, ::-1]
        motion = motion * ([-1, 1] if recolour else [1, 1])
        found = picture_to_flow(mirrored.permute(1, 2, 0).numpy())
        assert np.abs(motion).max() > 0.5
        np.testing.assert_allclose(found, motion, atol=0.03)
    # What is said of the mirrored view is mirrored back: this network's two answers are one.
    for result in results:
        straight, back = result.prediction.logits
        torch.testing.assert_close(straight, back)
        probability = result.prediction.probability((SIZE, SIZE))
        np.testing.assert_allclose(probability, straight.sigmoid().numpy(), atol=1e-6)


def test_the_views_probabilities_are_averaged_at_the_frames_own_size(sequences):
    segmenter = Segmenter(Recorder(), SIZE, scales=[0.5, 1.0, 2.0])
    for result in predict_sequences(segmenter, sequences[:1]):
        views = []
        for size in (SIZE // 2, SIZE, SIZE * 2):
            logits = shown_at(result.frame, size)["image"].numpy().mean(axis=0) / 255
            views.append(1 / (1 + np.exp(-cv2.resize(logits, (64, 48)))))
        (probability,) = result.prediction.probability((48, 64))
        np.testing.assert_allclose(probability, np.mean(views, axis=0), atol=1e-5)
        assert result.prediction.maps["first"].shape == (SIZE // 2, SIZE // 2)


def test_no_gradients_are_kept(sequences):
    model = Recorder()
    for result in predict_sequences(Segmenter(model, SIZE), sequences[1:]):
        assert not result.prediction.logits[0].requires_grad
        assert torch.is_grad_enabled()


def test_a_batch_of_still_images_is_predicted(tiny_root):
    class Still(Recorder):
        def predict(self, batch):
            logits = batch["image"][:, :1] / 255 * 4 - 2
            return Prediction([logits + self.weight, -logits])

    dataset = StillImages(still_images(tiny_root, "DUTS_train"), SIZE)
    batch = torch.utils.data.default_collate([dataset[0, index] for index in (0, 1, 5)])
    assert batch.keys() == {"image", "labels"}
    predictions = predict_stills(Still(), batch)
    for image, prediction in zip(batch["image"], predictions, strict=True):
        assert prediction.maps == {} and not prediction.logits[0].requires_grad
        expected = torch.sigmoid(image[:1] / 255 * 4 - 2).numpy()
        np.testing.assert_allclose(prediction.probability((SIZE, SIZE)), expected, rtol=1e-6)


def test_probabilities_are_the_logits_enlarged_to_the_frame():
    logits = torch.randn(2, 6, 8, generator=torch.Generator().manual_seed(0))
    prediction = FramePrediction([logits], {})
    probability = prediction.probability((30, 21))
    assert probability.shape == (prediction.num_objects, 30, 21) == (2, 30, 21)
    assert probability.dtype == np.float32
    for one, found in zip(logits.numpy(), probability):
        enlarged = cv2.resize(one, (21, 30), interpolation=cv2.INTER_LINEAR)
        np.testing.assert_allclose(found, 1 / (1 + np.exp(-enlarged)), atol=1e-5)


def test_foreground_is_what_lies_above_the_threshold():
    probability = np.array([[[0.1, 0.5, 0.500001], [0.7, 0.3, 1.0]]], np.float32)
    labels = to_labels(probability)
    assert labels.dtype == np.uint8
    assert labels.tolist() == [[0, 0, 1], [1, 0, 1]]
    assert to_labels(probability, 0.2).tolist() == [[0, 1, 1], [1, 1, 1]]


def test_of_several_objects_a_pixel_is_the_most_probable_ones_if_above_the_threshold():
    probability = np.array([[[0.9, 0.6, 0.2, 0.5]], [[0.8, 0.7, 0.4, 0.1]]], np.float32)
    labels = to_labels(probability)
    assert labels.dtype == np.uint8
    assert labels.tolist() == [[1, 2, 0, 0]]
    assert to_labels(probability, 0.3).tolist() == [[1, 2, 2, 1]]


def test_stretching_takes_each_frame_from_0_to_1_first():
    probability = np.array([[[0.1, 0.16, 0.21, 0.3]]], np.float32)
    assert not to_labels(probability).any()
    assert to_labels(probability, stretch=True).tolist() == [[0, 0, 1, 1]]
    assert to_labels(probability, 0.25, stretch=True).tolist() == [[0, 1, 1, 1]]
    np.testing.assert_allclose(probability, [[[0.1, 0.16, 0.21, 0.3]]])
    with np.errstate(all="raise"):
        assert not to_labels(np.full((1, 2, 2), 0.7, np.float32), stretch=True).any()


@pytest.mark.parametrize("stretch", [False, True])
def test_probabilities_that_are_no_numbers_give_no_mask(stretch):
    with pytest.raises(CheckpointError, match="NaN"):
        to_labels(np.array([[[0.9, np.nan]]], np.float32), stretch=stretch)
