"""What holds for every network: shapes, gradients, references, batches, and that it can learn."""

import pytest
import torch
from torch import nn

from models.losses import segmentation_loss
from models.two_streams import expand
from tests.models.small_networks import (
    TWO_STREAMS,
    assert_same_prediction,
    discs,
    inputs,
    network,
)

both = pytest.mark.parametrize("name", TWO_STREAMS)


@both
@pytest.mark.parametrize("height, width", [(64, 64), (64, 96), (32, 32)])
def test_video_network_gives_masks_and_four_maps_in_their_shapes(name, height, width):
    prediction = network(name).eval()(*inputs(2, height, width))
    assert [x.shape for x in prediction.logits] == [(2, 1, height, width)] * 4
    assert len(prediction.maps) == 4
    for index, (label, picture) in enumerate(prediction.maps.items()):
        assert label.startswith("RGB ") or label.startswith("flow "), (index, label)
        assert picture.ndim == 3 and picture.shape[0] == 2
        assert picture.min() >= 0 and picture.max() <= 1


@both
def test_still_image_network_gives_masks_alone(name):
    model = network(name, motion=False).eval()
    prediction = model(inputs(2, 64, 96)[0])
    assert [x.shape for x in prediction.logits] == [(2, 1, 64, 96)] * 4
    assert prediction.auxiliary == [] and prediction.maps == {}


@both
@pytest.mark.parametrize("height, width", [(64, 80), (48, 64), (65, 64)])
def test_a_size_that_is_no_multiple_of_32_is_refused(name, height, width):
    frame, frames = torch.rand(1, 3, height, width), torch.rand(1, 2, 3, height, width)
    message = rf"{height} x {width}.*multiples of 32"
    video = network(name).eval()
    references = video.encode_references(*inputs(1)[2:])
    for call in (
        lambda: network(name, motion=False)(frame),
        lambda: video(frame, frame, frames, frames),
        lambda: video.segment(frame, frame, references),
        lambda: video.encode_references(frames, frames),
    ):
        with pytest.raises(ValueError, match=message):
            call()


@both
@pytest.mark.parametrize(
    "backbone, statistics",
    [
        ("mit_b0", [(0.485, 0.229), (0.456, 0.224), (0.406, 0.225)]),
        ("tf_efficientnet_lite0", [(0.5, 0.5)] * 3),
    ],
)
def test_images_and_flow_are_normalised_inside_once_as_the_backbone_expects(
    name, backbone, statistics
):
    """References, then targets, in each encoder; the decoder sees the target image again."""
    model = network(name, backbone=backbone).eval()
    seen = []
    for stream in (model.rgb_stream, model.flow_stream):
        stream.encoder.register_forward_pre_hook(lambda _, arguments: seen.append(arguments[0]))
    model.decoder.register_forward_pre_hook(lambda _, arguments: seen.append(arguments[-1]))
    image, flow, reference_images, reference_flows = inputs()
    model(image, flow, reference_images, reference_flows)
    given = [reference_images.flatten(0, 1), reference_flows.flatten(0, 1), image, flow, image]
    for found, pictures in zip(seen, given, strict=True):
        for channel, (mean, deviation) in enumerate(statistics):
            torch.testing.assert_close(found[:, channel], (pictures[:, channel] - mean) / deviation)


@both
@pytest.mark.parametrize("backbone", ["mit_b0", "tf_efficientnet_lite0"])
def test_constant_frames_give_finite_masks_and_gradients(name, backbone):
    """Black, white and grey frames under flow of one colour; four positions for eight clusters."""
    model = network(name, backbone=backbone)
    frames = [torch.zeros(3, 3, 32, 32), torch.ones(3, 3, 32, 32)]
    frames[0] += torch.tensor([0.0, 0.5, 1.0]).view(3, 1, 1, 1)
    frames += [frame[:, None].repeat(1, 2, 1, 1, 1) for frame in frames]
    for training in (True, False):
        prediction = model.train(training)(*frames)
        loss = segmentation_loss(prediction, torch.zeros(3, 1, 32, 32), **model.loss_settings)
        model.zero_grad()
        sum(loss.values()).backward()
        results = [*prediction.logits, *prediction.auxiliary, *prediction.maps.values()]
        results += [*loss.values(), *(parameter.grad for parameter in model.parameters())]
        assert all(tensor.isfinite().all() for tensor in results)


@both
@pytest.mark.parametrize("reference_gradient", [False, True])
def test_encoder_is_trained_through_references_only_if_wanted(name, reference_gradient):
    model = network(name, reference_gradient=reference_gradient)
    references = model.encode_references(*inputs()[2:])
    sum(feature.square().sum() for feature in references.values()).backward()
    for stream in (model.rgb_stream, model.flow_stream):
        parts = {"encoder": [], "rest": []}
        for key, parameter in stream.named_parameters():
            part = "encoder" if key.startswith("encoder.") else "rest"
            parts[part].append(parameter.grad is not None and parameter.grad.abs().max() > 0)
        assert any(parts["encoder"]) == reference_gradient
        assert any(parts["rest"])


@both
def test_order_of_the_reference_frames_does_not_matter_but_they_do(name):
    model = network(name).double().eval()
    image, flow, reference_images, reference_flows = inputs(references=4, dtype=torch.float64)
    prediction = model(image, flow, reference_images, reference_flows)
    order = [2, 0, 3, 1]
    shuffled = model(image, flow, reference_images[:, order], reference_flows[:, order])
    assert_same_prediction(shuffled, prediction, rtol=1e-6, atol=1e-6)
    # What untrained attention finds differs little between frames.
    fewer = model(image, flow, reference_images[:, :1], reference_flows[:, :1])
    rounding = (shuffled.logits[0] - prediction.logits[0]).abs().max()
    assert (fewer.logits[0] - prediction.logits[0]).abs().max() > 1000 * rounding


@both
@pytest.mark.parametrize("motion", [False, True])
def test_a_batch_gives_what_its_samples_give_one_by_one(name, motion):
    model = network(name, motion=motion).double().eval()
    frames = inputs(batch=3, height=64, width=96, dtype=torch.float64)
    frames = frames if motion else frames[:1]
    together = model(*frames)
    for index in range(3):
        alone = model(*(x[index : index + 1] for x in frames))
        for one, all_of_them in zip(
            alone.logits + alone.auxiliary, together.logits + together.auxiliary
        ):
            torch.testing.assert_close(one, all_of_them[index : index + 1], rtol=1e-6, atol=1e-6)
        for label, one in alone.maps.items():
            torch.testing.assert_close(
                one, together.maps[label][index : index + 1], rtol=1e-6, atol=1e-6
            )


@both
def test_references_of_one_sequence_serve_a_batch_of_its_targets(name):
    model = network(name).eval()
    images, flows = inputs(batch=4)[:2]
    reference_images, reference_flows = inputs(batch=1, seed=5)[2:]
    references = model.encode_references(reference_images, reference_flows)
    expected = model(
        images,
        flows,
        reference_images.repeat(4, 1, 1, 1, 1),
        reference_flows.repeat(4, 1, 1, 1, 1),
    )
    assert_same_prediction(
        model.segment(images, flows, expand(references, 4)), expected, rtol=1e-4, atol=1e-5
    )
    assert all(x.shape[0] == 1 for x in references.values())


@both
def test_references_depend_on_their_own_frames_alone(name):
    model = network(name).double().eval()
    _, _, images, flows = inputs(references=3, dtype=torch.float64)
    together = model.encode_references(images, flows)
    assert set(together) == {"rgb", "flow"}
    one = model.encode_references(images[:, 1:2], flows[:, 1:2])
    for stream, features in together.items():
        assert features.shape[:2] == (2, 3)
        torch.testing.assert_close(features[:, 1:2], one[stream], rtol=1e-6, atol=1e-6)


@both
def test_streams_do_not_share_weights(name):
    model = network(name)
    rgb = {id(parameter) for parameter in model.rgb_stream.parameters()}
    assert not rgb & {id(parameter) for parameter in model.flow_stream.parameters()}


@both
def test_the_decoder_sees_the_image_only_if_wanted(name):
    """The decoder's image is noise here; the encoders see the frames."""
    frames, noise = inputs(1), torch.rand(1, 3, 64, 64)
    for decoder_image in (True, False):
        model = network(name, decoder_image=decoder_image).eval()
        before = model(*frames).logits
        model.decoder.register_forward_pre_hook(lambda _, given: (*given[:-1], noise))
        same = [torch.equal(one, other) for one, other in zip(before, model(*frames).logits)]
        assert same == [not decoder_image, True, True, True]


@both
@pytest.mark.parametrize("motion", [False, True])
def test_one_batch_can_be_learned(name, motion):
    """IoU over 0.95 on both samples, in evaluation mode."""
    model = network(name, motion=motion)
    mask = discs()
    frames = inputs(references=2)
    # The object is brighter in its picture and in its flow map, among patches of all colours.
    frames[0] = 0.7 * frames[0] + 0.3 * mask
    frames[1] = 0.7 * frames[1] + 0.3 * mask
    frames[2:] = [frame[:, None].flip(-1).repeat(1, 2, 1, 1, 1) for frame in frames[:2]]
    frames = frames if motion else frames[:1]
    for module in model.modules():
        if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d):
            module.momentum = 0.3  # few steps: statistics have to keep up
    optimizer = torch.optim.Adam(model.parameters(), lr=2e-3)
    for _ in range(50):
        loss = segmentation_loss(model(*frames), mask, **model.loss_settings)
        optimizer.zero_grad()
        sum(loss.values()).backward()
        optimizer.step()
    with torch.no_grad():
        found = model.eval()(*frames).logits[0] > 0
    truth = mask > 0.5
    iou = (found & truth).sum(dim=(1, 2, 3)) / (found | truth).sum(dim=(1, 2, 3))
    assert iou.min() > 0.95, iou


@both
def test_a_forward_pass_is_one_graph_that_moves_nothing_between_devices(name):
    """So nothing in it waits for the GPU."""
    torch._dynamo.reset()
    moved = []

    def backend(graph, _):
        for node in graph.graph.nodes:
            to_device = any(isinstance(value, torch.device | str) for value in node.args)
            moves = ("cpu", "cuda", "item", "tolist", *(("to",) if to_device else ()))
            if node.target in moves:
                moved.append(node)
        return graph.forward

    model = network(name).train()
    compiled = torch.compile(model, backend=backend, fullgraph=True)
    torch.manual_seed(0)
    expected = model(*inputs())
    torch.manual_seed(0)
    prediction = compiled(*inputs())
    # Running statistics have moved on in between, which training does not use.
    assert_same_prediction(prediction, expected)
    assert moved == []
    prediction.logits[0].mean().backward()
    assert all(p.grad is not None for p in model.flow_stream.encoder.parameters())


@both
def test_every_part_that_the_benchmark_tells_apart_works(name):
    """Each module of each part is called in a forward pass, and no module is in two parts."""
    model = network(name).eval()
    called = set()
    modules = [module for part in model.parts().values() for module in part]
    assert len(modules) == len(set(map(id, modules)))
    for module in modules:
        module.register_forward_pre_hook(lambda module, _: called.add(id(module)))
    model(*inputs())
    assert called == set(map(id, modules))
