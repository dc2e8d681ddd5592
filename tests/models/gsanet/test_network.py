"""GSA-Net: its maps, its wiring and Table 2's ablations; see also test_networks.py."""

import itertools
from functools import partial

import pytest
import torch

from models.backbones import ModelError
from models.gsanet.fat import FeatureAggregationTransformer
from models.gsanet.network import SlotModule, StreamOutput, foreground_logits
from models.gsanet.plain_transformer import PlainTransformer
from models.losses import segmentation_loss
from models.ops import correlation_maps
from tests.models import small_networks
from tests.models.small_networks import (
    assert_same_prediction,
    discs,
    frames_in_memory,
    inputs,
    parameters_not_reached,
    without_stochastic_depth,
)

network = partial(small_networks.network, "gsanet")

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


SWITCHES = ("guided_slots", "knn_filtering", "slot_attention", "aggregation_transformer")


def ablation(index, **arguments):
    return network(**dict(zip(SWITCHES, TABLE_2[index])), **arguments)


def slot_module(aggregation_transformer):
    return SlotModule(
        16,
        num_clusters=6,
        num_neighbours=3,
        num_iterations=2,
        guided_slots=True,
        knn_filtering=True,
        slot_attention=True,
        aggregation_transformer=aggregation_transformer,
    ).eval()


@pytest.mark.parametrize("height, width", [(64, 64), (64, 96), (32, 32)])
def test_maps_and_auxiliary_logits_are_at_the_slots_stride(height, width):
    prediction = network().eval()(*inputs(2, height, width))
    coarse = (height // 16, width // 16)
    assert [x.shape for x in prediction.auxiliary] == [(2, 1, *coarse)] * 6
    assert list(prediction.maps) == MAPS
    assert all(picture.shape == (2, *coarse) for picture in prediction.maps.values())


def test_more_neighbours_than_clusters_are_refused():
    with pytest.raises(ModelError, match="NUM_NEIGHBOURS = 9 is above NUM_CLUSTERS = 8"):
        network(num_clusters=8, num_neighbours=9)
    network(num_clusters=8, num_neighbours=9, knn_filtering=False)


def test_slot_modules_and_flow_stream_start_in_stage_2():
    rest = network().state_dict().keys() - network(motion=False).state_dict().keys()
    assert all(
        name.startswith(("flow_stream.", "rgb_stream.slots.", "rgb_stream.embed.")) for name in rest
    )


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
    prediction = without_stochastic_depth(model)(*inputs())
    has_slots = guided or attention
    assert list(prediction.maps) == (MAPS if has_slots else [])
    assert len(prediction.auxiliary) == 2 * (guided + 2 * has_slots)
    sum(segmentation_loss(prediction, discs()).values()).backward()
    assert parameters_not_reached(model) == []
    assert all(parameter.grad.isfinite().all() for parameter in model.parameters())


@pytest.mark.parametrize("num_iterations", [0, 1])
@pytest.mark.parametrize("switches", [*itertools.product([False, True], repeat=4)])
def test_no_combination_leaves_a_trainable_parameter_without_gradient(switches, num_iterations):
    """Training on several processes would wait for it; zero rounds of slot attention are one."""
    model = network(
        **dict(zip(SWITCHES, switches)),
        num_iterations=num_iterations,
        backbone="mobilenetv3_small_100",
    )
    prediction = model(*inputs(2, 32, 32, references=1))
    sum(segmentation_loss(prediction, discs(2, 32)).values()).backward()
    trainable = [(key, p.grad) for key, p in model.named_parameters() if p.requires_grad]
    assert [key for key, gradient in trainable if gradient is None] == []


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
    module = slot_module(aggregation_transformer=True)
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
    module = slot_module(aggregation_transformer=False)
    target, references = torch.randn(2, 16, 4, 4), torch.randn(2, 3, 16, 16)
    _, _, maps = module(target, references)
    local, local_features = module.local_extractor(target)
    everything = torch.cat([references[:, 0], references[:, 1], references[:, 2]], dim=1)
    aggregated = module.aggregate.attention(local_features, everything)
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


def test_foreground_logits_are_of_probabilities():
    logits, maps = torch.randn(2, 2, 3, 5), torch.rand(2, 2, 3, 5) * 1.8 - 0.9
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


def test_the_last_level_and_the_number_of_clusters_may_be_others():
    model = network(backbone="regnety_002", num_clusters=5).eval()
    prediction = model(*inputs(1, 64, 96))
    assert prediction.logits[0].shape == (1, 1, 64, 96)
    assert list(prediction.maps) == MAPS
    assert model.rgb_stream.slots.to_features.in_channels == 5 + 2


def test_maps_by_iteration_are_those_of_networks_with_so_many_iterations():
    """Figure 8: from the slots as they are generated to those after T rounds."""
    model = network(num_iterations=3).eval()
    video = frames_in_memory(4)
    with torch.no_grad():
        maps = model.maps_by_iteration(video)
        assert len(maps) == 4
        for count, after in enumerate(maps):
            fewer = network(num_iterations=count).eval()
            expected = next(iter(fewer.segment_video(video))).maps
            assert list(after) == list(expected)
            for name, values in expected.items():
                torch.testing.assert_close(after[name], values)
        # The network is left as it was.
        again, other = (
            next(iter(m.segment_video(video))) for m in (model, network(num_iterations=3).eval())
        )
        assert_same_prediction(again, other)
        assert not torch.allclose(maps[0]["RGB foreground slot"], maps[3]["RGB foreground slot"])
        assert ablation("a").eval().maps_by_iteration(video) == []  # Table 2 (a) has no rounds
