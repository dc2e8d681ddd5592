"""Prediction over sequences: order, references, laziness, and masks from probabilities."""

import cv2
import numpy as np
import pytest
import torch
from torch import nn

from datasets.colour_wheel import picture_to_flow
from datasets.layout import DatasetError, Frame, Sequence, still_images, video_sequences
from datasets.samples import StillImages, load_frame, uniform_references
from models import build_model
from models.prediction import Prediction, References
from utils.checkpoints import CheckpointError
from utils.evaluation import (
    FramePrediction,
    Segmenter,
    predict_sequences,
    predict_stills,
    to_mask,
)
from utils.training import network_arguments

SIZE = 64


class Recorder(nn.Module):
    """Marks every frame with its mean and its references' mean, and notes what it was given."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1))
        self.encoded = []
        self.segmented = []

    def encode_references(self, images, flows):
        self.encoded.append((images.clone(), flows.clone()))
        return References({"mean": images.mean(dim=(1, 2, 3, 4))})

    def segment(self, image, flow, references):
        self.segmented.append((image.clone(), flow.clone(), references.features["mean"].clone()))
        logits = image.mean(dim=1, keepdim=True)
        return Prediction([logits, -logits], maps={"first": logits[:, 0], "second": flow[:, 0]})


@pytest.fixture
def sequences(tiny_root):
    """Sequences of 5, 3 and 1 frames."""
    train, test = (video_sequences(tiny_root, name) for name in ("DAVIS_train", "DAVIS_test"))
    return [
        train[0],
        Sequence(test[0].name, test[0].frames[:3]),
        Sequence(test[1].name, test[1].frames[2:3]),
    ]


def pictures(frames) -> tuple[torch.Tensor, torch.Tensor]:
    """Images and flow maps of frames at the network's size, (T, 3, S, S) each."""
    loaded = [load_frame(frame, SIZE, mask=False) for frame in frames]
    return torch.stack([one[0] for one in loaded]), torch.stack([one[1] for one in loaded])


@pytest.mark.parametrize("workers", [0, 1])
def test_every_frame_comes_once_and_in_order_with_its_own_result(sequences, workers):
    results = list(
        predict_sequences(Segmenter(Recorder(), SIZE), sequences, 2, batch_size=2, workers=workers)
    )
    assert [(result.sequence, result.frame) for result in results] == [
        (sequence.name, frame) for sequence in sequences for frame in sequence.frames
    ]
    for result in results:
        image, flow, _ = load_frame(result.frame, SIZE, mask=False)
        assert result.prediction.logits[0].shape == (1, SIZE, SIZE)
        torch.testing.assert_close(result.prediction.logits[0][0], image.mean(dim=0))
        assert list(result.prediction.maps) == ["first", "second"]
        np.testing.assert_allclose(
            result.prediction.maps["first"], image.mean(dim=0).numpy(), atol=1e-6
        )
        np.testing.assert_array_equal(result.prediction.maps["second"], flow[0].numpy())


@pytest.mark.parametrize("workers", [0, 1])
def test_references_are_spread_over_the_sequence_and_encoded_once(sequences, workers):
    model = Recorder()
    for _ in predict_sequences(Segmenter(model, SIZE), sequences, 3, batch_size=2, workers=workers):
        pass
    assert len(model.encoded) == 3
    for sequence, (images, flows) in zip(sequences, model.encoded):
        chosen = [sequence.frames[i] for i in uniform_references(len(sequence.frames), 3)]
        expected = pictures(chosen)
        assert torch.equal(images, expected[0].unsqueeze(0))
        assert torch.equal(flows, expected[1].unsqueeze(0))


def test_batches_are_full_and_never_mix_sequences(sequences):
    model = Recorder()
    list(predict_sequences(Segmenter(model, SIZE), sequences, 2, batch_size=2))
    assert [len(image) for image, _, _ in model.segmented] == [2, 2, 1, 2, 1, 1]
    owners = [0, 0, 0, 1, 1, 2]
    means = [images.mean() for images, _ in model.encoded]
    for owner, (image, flow, references) in zip(owners, model.segmented):
        assert len(flow) == len(image) == len(references)
        torch.testing.assert_close(references, means[owner].expand(len(image)))


def test_chosen_frames_alone_are_segmented_with_references_from_the_whole_sequence(sequences):
    model = Recorder()
    targets = {s.name: frames for s, frames in zip(sequences, (sequences[0].frames[::2], (), ()))}
    results = list(predict_sequences(Segmenter(model, SIZE), sequences, 3, targets=targets))
    assert [result.frame for result in results] == list(sequences[0].frames[::2])
    images, _ = pictures([sequences[0].frames[i] for i in uniform_references(5, 3)])
    assert len(model.encoded) == 1
    assert torch.equal(model.encoded[0][0][0], images)


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
        list(predict_sequences(Segmenter(model, SIZE, compile=on), sequences[:1], 3, batch_size=2))
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
            Segmenter(model, SIZE, mixed_precision=mixed_precision), sequences[:2], 3, batch_size=2
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
    broken = Sequence("broken", (*sequences[0].frames, missing))
    model = Recorder()
    results = predict_sequences(Segmenter(model, SIZE), [broken], 1, batch_size=2)
    assert model.segmented == [] and model.encoded == []
    for frame in sequences[0].frames[:4]:
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
    results = list(predict_sequences(segmenter, sequences[:1], 2, batch_size=5))
    (image, flow, _), (mirrored_image, mirrored_flow, _) = model.segmented
    (_, reference_flows), (_, mirrored_references) = model.encoded
    assert torch.equal(mirrored_image, image.flip(-1))
    pairs = zip((*flow, *reference_flows[0]), (*mirrored_flow, *mirrored_references[0]))
    for shown, mirrored in pairs:
        picture = (shown.permute(1, 2, 0).numpy() * 255).round().astype(np.uint8)
        motion = picture_to_flow(picture)[:, ::-1] * ([-1, 1] if recolour else [1, 1])
        found = picture_to_flow((mirrored.permute(1, 2, 0).numpy() * 255).round().astype(np.uint8))
        assert np.abs(motion).max() > 0.5
        np.testing.assert_allclose(found, motion, atol=0.03)
    # What is said of the mirrored view is mirrored back: this network's two answers are one.
    for result in results:
        straight, back = result.prediction.logits
        torch.testing.assert_close(straight, back)
        probability = result.prediction.probability((SIZE, SIZE))
        np.testing.assert_allclose(probability, straight[0].sigmoid().numpy(), atol=1e-6)


def test_the_views_probabilities_are_averaged_at_the_frames_own_size(sequences):
    segmenter = Segmenter(Recorder(), SIZE, scales=[0.5, 1.0, 2.0])
    for result in predict_sequences(segmenter, sequences[:1], 2):
        views = [
            1
            / (
                1
                + np.exp(
                    -cv2.resize(
                        load_frame(result.frame, size, mask=False)[0].mean(dim=0).numpy(), (64, 48)
                    )
                )
            )
            for size in (SIZE // 2, SIZE, SIZE * 2)
        ]
        probability = result.prediction.probability((48, 64))
        np.testing.assert_allclose(probability, np.mean(views, axis=0), atol=1e-5)
        assert result.prediction.maps["first"].shape == (SIZE // 2, SIZE // 2)


def test_no_gradients_are_kept(sequences):
    model = Recorder()
    for result in predict_sequences(Segmenter(model, SIZE), sequences[1:], 2):
        assert not result.prediction.logits[0].requires_grad
        assert torch.is_grad_enabled()


def test_still_images_are_predicted_batch_by_batch(tiny_root):
    class Still(Recorder):
        def forward(self, image):
            return Prediction([image[:, :1] * 4 - 2 + self.weight, image[:, :1]])

    dataset = StillImages(still_images(tiny_root, "DUTS_train"), SIZE)
    loader = torch.utils.data.DataLoader(dataset, batch_sampler=[[(0, 0), (0, 1)], [(0, 5)]])
    results = list(predict_stills(Still(), loader))
    assert [len(probabilities) for _, probabilities, _ in results] == [2, 1]
    for batch, probabilities, maps in results:
        assert maps == {}
        assert batch.keys() == {"image", "mask"}
        expected = torch.sigmoid(batch["image"][:, :1] * 4 - 2)
        torch.testing.assert_close(probabilities, expected)
        assert not probabilities.requires_grad
    assert torch.equal(results[1][0]["image"][0], dataset[0, 5]["image"])


def test_probabilities_are_the_logits_enlarged_to_the_frame():
    logits = torch.randn(1, 6, 8, generator=torch.Generator().manual_seed(0))
    probability = FramePrediction([logits], {}).probability((30, 21))
    enlarged = cv2.resize(logits[0].numpy(), (21, 30), interpolation=cv2.INTER_LINEAR)
    assert probability.shape == (30, 21)
    assert probability.dtype == np.float32
    np.testing.assert_allclose(probability, 1 / (1 + np.exp(-enlarged)), atol=1e-5)


def test_foreground_is_what_lies_above_the_threshold():
    probability = np.array([[0.1, 0.5, 0.500001], [0.7, 0.3, 1.0]], np.float32)
    mask = to_mask(probability)
    assert mask.dtype == bool
    assert mask.tolist() == [[False, False, True], [True, False, True]]
    assert to_mask(probability, 0.2).tolist() == [[False, True, True], [True, True, True]]


def test_stretching_takes_each_frame_from_0_to_1_first():
    probability = np.array([[0.1, 0.16, 0.21, 0.3]], np.float32)
    assert not to_mask(probability).any()
    assert to_mask(probability, stretch=True).tolist() == [[False, False, True, True]]
    assert to_mask(probability, 0.25, stretch=True).tolist() == [[False, True, True, True]]
    np.testing.assert_allclose(probability, [[0.1, 0.16, 0.21, 0.3]])
    with np.errstate(all="raise"):
        assert not to_mask(np.full((2, 2), 0.7, np.float32), stretch=True).any()


@pytest.mark.parametrize("stretch", [False, True])
def test_probabilities_that_are_no_numbers_give_no_mask(stretch):
    with pytest.raises(CheckpointError, match="NaN"):
        to_mask(np.array([[0.9, np.nan]], np.float32), stretch=stretch)
