"""The whole network: shapes, gradients, invariances, ablations, and that it can learn."""

import itertools
import re

import pytest
import torch
from torch import nn

from models.fat import FeatureAggregationTransformer
from models.gsanet import GSANet, SlotModule, StreamOutput, foreground_logits
from models.plain_transformer import PlainTransformer
from models.slot_decoder import correlation_maps
from utils.losses import segmentation_loss

MAPS = [
    "RGB foreground slot",
    "RGB background slot",
    "flow foreground slot",
    "flow background slot",
]

# Table 2 of the paper: guided slots, KNN filtering, slot attention, FAT.
TABLE_2 = {
    "a": (False, False, False, False),
    "b": (False, False, True, False),
    "c": (True, False, True, False),
    "d": (False, True, True, False),
    "e": (True, True, True, False),
    "f": (True, True, True, True),
}

# Shifts that reach only rounding: a softmax or a normalisation right after them cancels them.
# They belong to published networks, SegFormer's encoder and slot attention.
CANCELLED = re.compile(r"\.encoder\..*\.bias|\.norm_queries\.bias")


def network(seed=0, **arguments):
    """A small network with a Mix Transformer, which has no batch normalisation of its own."""
    torch.manual_seed(seed)
    small = {
        "backbone": "mit_b0",
        "pretrained_backbone": False,
        "channels": 32,
        "num_clusters": 8,
        "num_neighbours": 4,
    }
    return GSANet(**(small | arguments))


def ablation(index, **arguments):
    names = ("guided_slots", "knn_filtering", "slot_attention", "aggregation_transformer")
    return network(**dict(zip(names, TABLE_2[index])), **arguments)


def inputs(batch=2, height=64, width=64, references=3, seed=1, dtype=torch.float32):
    """Image, flow, reference images, reference flows: random patches of four pixels, and noise."""
    generator = torch.Generator().manual_seed(seed)

    def pictures(*shape):
        coarse = torch.rand(*shape, height // 4, width // 4, generator=generator, dtype=dtype)
        patches = coarse.repeat_interleave(4, dim=-1).repeat_interleave(4, dim=-2)
        noise = torch.rand(*shape, height, width, generator=generator, dtype=dtype)
        return 0.8 * patches + 0.2 * noise

    frames = [pictures(batch, 3), pictures(batch, 3)]
    return [*frames, *(pictures(batch, references, 3) for _ in range(2))]


def discs(batch=2, size=64):
    y, x = torch.meshgrid(torch.arange(size), torch.arange(size), indexing="ij")
    masks = [(y - 24 - 12 * b) ** 2 + (x - 36 + 8 * b) ** 2 < 15**2 for b in range(batch)]
    return torch.stack(masks)[:, None].float()


def assert_same_prediction(a, b, **tolerance):
    for one, other in zip([*a.logits, *a.auxiliary], [*b.logits, *b.auxiliary], strict=True):
        torch.testing.assert_close(one, other, **tolerance)
    assert a.maps.keys() == b.maps.keys()
    for name, one in a.maps.items():
        torch.testing.assert_close(one, b.maps[name], **tolerance)


def parameters_not_reached(model, floor=0.0):
    """Trainable parameters without gradient, or with none above ``floor`` where there can be."""
    names = []
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        size = None if parameter.grad is None else parameter.grad.abs().max().item()
        if size is None or (not size > floor and not CANCELLED.search(name)):
            names.append(name)
    return names


@pytest.mark.parametrize("height, width", [(64, 64), (64, 96), (32, 32)])
def test_video_network_gives_masks_and_maps_in_their_shapes(height, width):
    model = network().eval()
    prediction = model(*inputs(2, height, width))
    assert [x.shape for x in prediction.logits] == [(2, 1, height, width)] * 4
    coarse = (height // 16, width // 16)
    assert [x.shape for x in prediction.auxiliary] == [(2, 1, *coarse)] * 6
    assert list(prediction.maps) == MAPS
    for picture in prediction.maps.values():
        assert picture.shape == (2, *coarse)
        assert picture.min() >= 0 and picture.max() <= 1


def test_still_image_network_gives_masks_alone():
    model = network(motion=False).eval()
    prediction = model(inputs(2, 64, 96)[0])
    assert [x.shape for x in prediction.logits] == [(2, 1, 64, 96)] * 4
    assert prediction.auxiliary == [] and prediction.maps == {}


def test_still_image_network_is_a_part_of_the_video_network():
    """So that stage 2 can start from stage 1; the slot modules start in stage 2."""
    stills = network(motion=False).state_dict()
    video = network().state_dict()
    assert stills.keys() < video.keys()
    assert all(video[name].shape == value.shape for name, value in stills.items())
    rest = video.keys() - stills.keys()
    assert all(
        name.startswith(("flow_stream.", "rgb_stream.slots.", "rgb_stream.embed.")) for name in rest
    )
    twins = {name.replace("rgb_stream", "flow_stream") for name in video if "rgb_stream" in name}
    assert twins == {name for name in video if "flow_stream" in name}


@pytest.mark.parametrize("height, width", [(64, 80), (48, 64), (65, 64)])
def test_a_size_that_is_no_multiple_of_32_is_refused(height, width):
    frame, frames = torch.rand(1, 3, height, width), torch.rand(1, 2, 3, height, width)
    message = rf"{height} x {width}.*multiples of 32"
    video = network().eval()
    references = video.encode_references(*inputs(1)[2:])
    for call in (
        lambda: network(motion=False)(frame),
        lambda: video(frame, frame, frames, frames),
        lambda: video.segment(frame, frame, references),
        lambda: video.encode_references(frames, frames),
    ):
        with pytest.raises(ValueError, match=message):
            call()


def test_images_are_normalised_inside_once():
    """References, then targets, in each encoder; the decoder sees the target image again."""
    model = network().eval()
    seen = []
    for stream in (model.rgb_stream, model.flow_stream):
        stream.encoder.register_forward_pre_hook(lambda _, arguments: seen.append(arguments[0]))
    model.decoder.register_forward_pre_hook(lambda _, arguments: seen.append(arguments[1]))
    image, flow, reference_images, reference_flows = inputs()
    model(image, flow, reference_images, reference_flows)
    given = [reference_images.flatten(0, 1), reference_flows.flatten(0, 1), image, flow, image]
    for found, pictures in zip(seen, given, strict=True):
        for channel, (mean, deviation) in enumerate(
            [(0.485, 0.229), (0.456, 0.224), (0.406, 0.225)]
        ):
            torch.testing.assert_close(found[:, channel], (pictures[:, channel] - mean) / deviation)


@pytest.mark.parametrize(
    "motion, reference_gradient", [(False, False), (True, False), (True, True)]
)
def test_gradients_reach_every_parameter_in_each_stage(motion, reference_gradient):
    """In float64, where a gradient that is zero but for rounding can be told from a small one."""
    model = network(motion=motion, reference_gradient=reference_gradient).double()
    # Its stochastic depth would leave out whole blocks at times.
    for stream in (model.rgb_stream, model.flow_stream):
        if stream is not None:
            stream.encoder.eval()
    frames = inputs(references=2, dtype=torch.float64)
    prediction = model(*frames) if motion else model(frames[0])
    segmentation_loss(prediction, discs().double(), supervise_maps=True).total.backward()
    assert parameters_not_reached(model, floor=1e-12) == []


@pytest.mark.parametrize("index", TABLE_2)
def test_every_combination_of_table_2_has_its_parts_and_trains(index):
    guided, knn, attention, fat = TABLE_2[index]
    model = ablation(index)
    for stream in (model.rgb_stream, model.flow_stream):
        slots = stream.slots
        assert (slots.slot_generator is not None) == guided
        assert (slots.random_slots is not None) == (attention and not guided)
        assert (slots.slot_attention is not None) == attention
        kind = FeatureAggregationTransformer if fat else PlainTransformer
        assert isinstance(slots.aggregate, kind)
        if attention:
            assert slots.slot_attention.knn_filtering == knn
            assert isinstance(slots.slot_attention.update, kind)
        stream.encoder.eval()  # without stochastic depth
    prediction = model(*inputs())
    has_slots = guided or attention
    assert list(prediction.maps) == (MAPS if has_slots else [])
    assert len(prediction.auxiliary) == 2 * (guided + 2 * has_slots)
    segmentation_loss(prediction, discs(), supervise_maps=True).total.backward()
    assert parameters_not_reached(model) == []
    assert all(parameter.grad.isfinite().all() for parameter in model.parameters())


@pytest.mark.parametrize("fat", [True, False])
def test_guided_slots_without_slot_attention_are_used_as_they_are(fat):
    model = network(slot_attention=False, aggregation_transformer=fat).eval()
    slots = model.rgb_stream.slots
    target, references = torch.randn(2, 32, 4, 4), torch.randn(2, 3, 32, 32)
    _, logits, maps = slots(target, references)
    guided, _ = slots.slot_generator(target, slots.local_extractor(target)[0])
    torch.testing.assert_close(maps, correlation_maps(slots.local_extractor(target)[0], guided))
    torch.testing.assert_close(logits, slots.slot_generator.to_masks(target))


def test_every_switch_makes_a_difference():
    """With the same weights wherever two rows of Table 2 have the same part."""
    frames = inputs()
    predictions = {}
    common = network(seed=3).state_dict()
    for index in TABLE_2:
        model = ablation(index)
        own = model.state_dict()
        model.load_state_dict(
            {
                k: common[k] if k in common and common[k].shape == v.shape else v
                for k, v in own.items()
            }
        )
        predictions[index] = model.eval()(*frames).logits[0]
    for a, b in itertools.combinations(TABLE_2, 2):
        assert not torch.allclose(predictions[a], predictions[b], atol=1e-6), (a, b)


def test_the_slot_module_is_wired_as_figure_2():
    torch.manual_seed(2)
    module = SlotModule(16, 2, 6, "batched", 3, 2, True, True, True, True).eval()
    target, references = torch.randn(2, 16, 4, 6), torch.randn(2, 3, 16, 16)
    correlation, logits, maps = module(target, references)

    local, local_features = module.local_extractor(target)  # X_L, P_L
    aggregated = module.aggregate(local_features, references)  # P_A
    slots, slot_logits = module.slot_generator(target, local)  # P_S
    refined = module.slot_attention(slots, aggregated)  # P_Sr
    both = torch.cat([correlation_maps(local, aggregated), correlation_maps(local, refined)], dim=1)
    assert both.shape == (2, 6 + 2, 4, 6)
    weight, bias = module.to_features.weight[:, :, 0, 0], module.to_features.bias
    expected = torch.einsum("om,bmhw->bohw", weight, both)
    if bias is not None:
        expected = expected + bias[:, None, None]
    torch.testing.assert_close(correlation, expected)
    torch.testing.assert_close(maps, both[:, 6:])
    torch.testing.assert_close(logits, slot_logits)


def test_without_fat_the_global_features_of_all_references_are_one_set():
    torch.manual_seed(3)
    module = SlotModule(16, 2, 6, "batched", 3, 2, True, True, True, False).eval()
    target, references = torch.randn(2, 16, 4, 4), torch.randn(2, 3, 16, 16)
    _, _, maps = module(target, references)
    local, local_features = module.local_extractor(target)
    everything = torch.cat([references[:, 0], references[:, 1], references[:, 2]], dim=1)
    aggregated = module.aggregate(local_features, everything)
    slots, _ = module.slot_generator(target, local)
    torch.testing.assert_close(
        maps, correlation_maps(local, module.slot_attention(slots, aggregated))
    )


def test_auxiliary_logits_are_those_of_the_maps():
    """Sigmoids of the auxiliary logits: M_S of eq. 1, the foreground map, 1 - the background's."""
    model = network().eval()
    prediction = model(*inputs())
    for start, name in ((0, "RGB"), (3, "flow")):
        _, foreground, background = (x.sigmoid()[:, 0] for x in prediction.auxiliary[start:][:3])
        tolerance = {"rtol": 0, "atol": 1e-4}
        maps = prediction.maps
        torch.testing.assert_close(foreground, maps[f"{name} foreground slot"], **tolerance)
        torch.testing.assert_close(background, 1 - maps[f"{name} background slot"], **tolerance)


@pytest.mark.parametrize("num_slots", [2, 4])
def test_foreground_logits_are_of_probabilities(num_slots):
    logits, maps = torch.randn(2, num_slots, 3, 5), torch.rand(2, num_slots, 3, 5) * 1.8 - 0.9
    guided, foreground, background = foreground_logits(StreamOutput([], logits, maps))
    torch.testing.assert_close(guided.sigmoid()[:, 0], logits.softmax(dim=1)[:, 0])
    torch.testing.assert_close(foreground.sigmoid()[:, 0], (1 + maps[:, 0]) / 2)
    torch.testing.assert_close(background.sigmoid()[:, 0], 1 - (1 + maps[:, 1]) / 2)
    assert foreground_logits(StreamOutput([])) == []


def test_a_map_of_exactly_one_has_a_finite_logit_and_gradient():
    maps = torch.tensor([1.0, -1.0]).view(1, 2, 1, 1).requires_grad_()
    logits = foreground_logits(StreamOutput([], None, maps))
    sum(x.sum() for x in logits).backward()
    assert all(x.isfinite().all() for x in logits) and maps.grad.isfinite().all()


@pytest.mark.parametrize("reference_gradient", [False, True])
def test_encoder_is_trained_through_references_only_if_wanted(reference_gradient):
    model = network(reference_gradient=reference_gradient)
    references = model.encode_references(*inputs()[2:])
    sum(feature.square().sum() for feature in references.features.values()).backward()
    for stream in (model.rgb_stream, model.flow_stream):
        in_encoder = [p.grad is not None for p in stream.encoder.parameters()]
        assert any(in_encoder) == reference_gradient
        assert stream.embed[0].weight.grad.abs().max() > 0
        assert stream.slots.global_extractor.embed.weight.grad.abs().max() > 0


@pytest.mark.parametrize("index", ["e", "f"])
def test_order_of_the_reference_frames_does_not_matter(index):
    model = ablation(index).eval()
    image, flow, reference_images, reference_flows = inputs(references=4)
    prediction = model(image, flow, reference_images, reference_flows)
    order = [2, 0, 3, 1]
    shuffled = model(image, flow, reference_images[:, order], reference_flows[:, order])
    assert_same_prediction(shuffled, prediction, rtol=1e-4, atol=1e-5)
    fewer = model(image, flow, reference_images[:, :1], reference_flows[:, :1])
    assert not torch.allclose(fewer.logits[0], prediction.logits[0], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("motion", [False, True])
def test_a_batch_gives_what_its_samples_give_one_by_one(motion):
    model = network(motion=motion).double().eval()
    frames = inputs(batch=3, height=64, width=96, dtype=torch.float64)
    frames = frames if motion else frames[:1]
    together = model(*frames)
    for index in range(3):
        alone = model(*(x[index : index + 1] for x in frames))
        for one, all_of_them in zip(
            alone.logits + alone.auxiliary, together.logits + together.auxiliary
        ):
            torch.testing.assert_close(one, all_of_them[index : index + 1], rtol=1e-6, atol=1e-6)
        for name, one in alone.maps.items():
            torch.testing.assert_close(
                one, together.maps[name][index : index + 1], rtol=1e-6, atol=1e-6
            )


@pytest.mark.parametrize("index", TABLE_2)
def test_encoding_references_first_gives_what_forward_gives(index):
    model = ablation(index).eval()
    frames = inputs()
    references = model.encode_references(*frames[2:])
    assert_same_prediction(model.segment(*frames[:2], references), model(*frames))


def test_references_of_one_sequence_serve_a_batch_of_its_targets():
    model = network().eval()
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
        model.segment(images, flows, references.expand(4)), expected, rtol=1e-4, atol=1e-5
    )
    assert all(x.shape[0] == 1 for x in references.features.values())


def test_segment_does_not_encode_the_references_again():
    model = network().eval()
    frames = inputs()
    references = model.encode_references(*frames[2:])
    seen = []
    for stream in (model.rgb_stream, model.flow_stream):
        stream.encoder.register_forward_pre_hook(lambda _, x: seen.append(len(x[0])))
    model.segment(*frames[:2], references)
    assert seen == [2, 2]


def test_references_depend_on_their_own_frames_alone():
    model = network().double().eval()
    _, _, images, flows = inputs(references=3, dtype=torch.float64)
    together = model.encode_references(images, flows)
    assert set(together.features) == {"rgb", "flow"}
    one = model.encode_references(images[:, 1:2], flows[:, 1:2])
    for name, features in together.features.items():
        assert features.shape == (2, 3, 32, 32)
        torch.testing.assert_close(features[:, 1:2], one.features[name], rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("index", ["b", "d"])
def test_random_slots_give_the_same_masks_every_time_in_evaluation(index):
    model = ablation(index).eval()
    frames = inputs(1)
    first = model(*frames)
    torch.manual_seed(77)
    assert_same_prediction(model(*frames), first, rtol=0, atol=0)
    for stream in (model.rgb_stream, model.flow_stream):
        stream.slots.random_slots.train()
    again = model(*frames)
    assert not torch.equal(again.maps[MAPS[0]], first.maps[MAPS[0]])


def test_iterations_may_be_changed_after_training():
    """Figure 7 varies T in test."""
    model = network(num_iterations=3).eval()
    frames = inputs(1)
    maps = []
    for iterations in (1, 3):
        for stream in (model.rgb_stream, model.flow_stream):
            stream.slots.slot_attention.num_iterations = iterations
        maps.append(model(*frames).maps[MAPS[0]])
    assert not torch.allclose(*maps, atol=1e-4)
    torch.testing.assert_close(network(num_iterations=1).eval()(*frames).maps[MAPS[0]], maps[0])


def test_streams_do_not_share_weights():
    model = network()
    rgb = {id(parameter) for parameter in model.rgb_stream.parameters()}
    assert not rgb & {id(parameter) for parameter in model.flow_stream.parameters()}


def test_the_last_level_and_the_number_of_slots_may_be_others():
    model = network(backbone="regnety_002", num_slots=3, num_clusters=5).eval()
    prediction = model(*inputs(1, 64, 96))
    assert prediction.logits[0].shape == (1, 1, 64, 96)
    assert list(prediction.maps) == MAPS
    assert model.rgb_stream.slots.to_features.in_channels == 5 + 3


@pytest.mark.parametrize("motion", [False, True])
def test_one_batch_can_be_learned(motion):
    """IoU over 0.95 on both samples, in evaluation mode."""
    model = network(motion=motion, num_iterations=2)
    mask = discs()
    frames = inputs(references=2)
    # The object is brighter in its picture and in its flow map, among patches of all colours.
    frames[0] = 0.7 * frames[0] + 0.3 * mask
    frames[1] = 0.7 * frames[1] + 0.3 * mask
    frames[2:] = [frame[:, None].flip(-1).repeat(1, 2, 1, 1, 1) for frame in frames[:2]]
    frames = frames if motion else frames[:1]
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = 0.3  # few steps: statistics have to keep up
    optimizer = torch.optim.Adam(model.parameters(), lr=2e-3)
    for _ in range(40):
        loss = segmentation_loss(model(*frames), mask)
        optimizer.zero_grad()
        loss.total.backward()
        optimizer.step()
    with torch.no_grad():
        found = model.eval()(*frames).logits[0] > 0
    truth = mask > 0.5
    iou = (found & truth).sum(dim=(1, 2, 3)) / (found | truth).sum(dim=(1, 2, 3))
    assert iou.min() > 0.95, iou


def test_maps_by_iteration_are_those_of_networks_with_so_many_iterations():
    """Figure 8: from the slots as they are generated to those after T rounds."""
    model = network(num_iterations=3).eval()
    image, flow, reference_images, reference_flows = inputs()
    with torch.no_grad():
        references = model.encode_references(reference_images, reference_flows)
        maps = model.maps_by_iteration(image, flow, references)
        assert len(maps) == 4
        for count, after in enumerate(maps):
            fewer = network(num_iterations=count).eval()
            expected = fewer.segment(image, flow, references).maps
            assert list(after) == list(expected)
            for name, values in expected.items():
                torch.testing.assert_close(after[name], values)
        # The network is left as it was.
        assert_same_prediction(
            model.segment(image, flow, references),
            network(num_iterations=3).eval().segment(image, flow, references),
        )
        assert not torch.allclose(maps[0]["RGB foreground slot"], maps[3]["RGB foreground slot"])
        without = ablation("a").eval()  # Table 2 (a) has no slot attention
        references = without.encode_references(reference_images, reference_flows)
        assert len(without.maps_by_iteration(image, flow, references)) == 1


@pytest.mark.parametrize("kmeans", ["batched", "package"])
def test_a_forward_pass_is_one_graph_that_moves_nothing_between_devices(kmeans):
    """So nothing in it waits for the GPU; the package's rounds depend on what was computed."""
    torch._dynamo.reset()
    moved = []

    def backend(graph, _):
        for node in graph.graph.nodes:
            to_device = any(isinstance(value, torch.device | str) for value in node.args)
            moves = ("cpu", "cuda", "item", "tolist", *(("to",) if to_device else ()))
            if node.target in moves:
                moved.append(node)
        return graph.forward

    model = network(kmeans=kmeans).train()
    compiled = torch.compile(model, backend=backend, fullgraph=True)
    if kmeans == "package":
        with pytest.raises(torch._dynamo.exc.Unsupported):
            compiled(*inputs())
        return
    torch.manual_seed(0)
    expected = model(*inputs())
    torch.manual_seed(0)
    prediction = compiled(*inputs())
    # Running statistics have moved on in between, which training does not use.
    assert_same_prediction(prediction, expected)
    assert moved == []
    prediction.logits[0].mean().backward()
    assert all(p.grad is not None for p in model.flow_stream.encoder.parameters())
