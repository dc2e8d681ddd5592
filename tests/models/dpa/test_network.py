"""DPA: its switches, its maps, its stages; see also test_networks.py."""

from functools import partial

import pytest
import torch

from models import ModelError
from models.dpa.network import DPA, summary
from models.losses import segmentation_loss
from models.two_streams import expand
from tests.models import small_networks
from tests.models.small_networks import (
    assert_same_prediction,
    discs,
    inputs,
    parameters_not_reached,
    without_stochastic_depth,
)

network = partial(small_networks.network, "dpa")

SWITCHES = [(True, True), (True, False), (False, True), (False, False)]
switches = pytest.mark.parametrize("ima, ifa", SWITCHES)


def ablation(ima, ifa, **arguments):
    return network(inter_modality_attention=ima, inter_frame_attention=ifa, **arguments)


@switches
def test_every_combination_of_switches_has_its_parts_and_trains(ima, ifa):
    model = without_stochastic_depth(ablation(ima, ifa))
    for stream in (model.rgb_stream, model.flow_stream):
        assert len(stream.inter_modality) == 2 * ima
        assert (stream.inter_frame is not None) == ifa
        assert (stream.merge is not None) == (ima and ifa)
    prediction = model(*inputs())
    names = ["inter-modality"] * ima + ["inter-frame"] * ifa
    assert list(prediction.maps) == [f"{m} {name}" for name in names for m in ("RGB", "flow")]
    sum(segmentation_loss(prediction, discs(), **model.loss_settings).values()).backward()
    assert parameters_not_reached(model) == []


def test_layers_for_the_flow_maps_that_it_does_not_use_are_frozen():
    """HRNet has layers for each map; several processes would wait for their gradients."""
    model = without_stochastic_depth(network(backbone="hrnet_w18_small"))
    frozen = [name for name, one in model.named_parameters() if not one.requires_grad]
    assert frozen and all(name.startswith("flow_stream.encoder.") for name in frozen)
    prediction = model(*inputs())
    sum(segmentation_loss(prediction, discs(), **model.loss_settings).values()).backward()
    missing = [name for name, one in model.named_parameters() if one.grad is None]
    assert missing == frozen


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_it_is_built_without_gradients_too(mode):
    with mode():
        assert network().flow_stream is not None


@switches
def test_stage_1_has_the_prototypes_of_ima_alone(ima, ifa):
    model = without_stochastic_depth(ablation(ima, ifa, motion=False))
    names = list(model.state_dict())
    assert any("inter_modality.1.correlation.messages" in name for name in names) == ima
    assert not any(
        word in name for name in names for word in ("inter_frame", "mutual", "stream.merge.")
    )
    sum(segmentation_loss(model(inputs()[0]), discs(), **model.loss_settings).values()).backward()
    assert parameters_not_reached(model) == []


def test_every_switch_makes_a_difference():
    """With the same weights wherever two forms of the network have the same part."""
    frames = inputs(dtype=torch.float64)
    common = network(seed=3).state_dict()
    found = []
    for ima, ifa in SWITCHES:
        model = ablation(ima, ifa)
        model.load_state_dict({name: common[name] for name in model.state_dict()})
        found.append(model.double().eval()(*frames).logits[0])
    for index, one in enumerate(found):
        for other in found[index + 1 :]:
            assert (one - other).abs().max() > 1e-8  # rounding reaches 1e-15


def test_without_ifa_there_are_no_references_to_encode():
    model = ablation(True, False).eval()
    frames = inputs()
    references = model.encode_references(*frames[2:])
    assert references == {} == expand(references, 4)
    assert_same_prediction(model(*frames[:2]), model(*frames), rtol=0, atol=0)
    others = inputs(seed=9)[2:]
    assert_same_prediction(model(*frames), model(*frames[:2], *others), rtol=0, atol=0)


@pytest.mark.parametrize("changed", ["RGB", "flow"])
def test_each_modality_reaches_the_other_ones_map_through_ima_alone(changed):
    model = network().double().eval()
    frames = inputs(dtype=torch.float64)
    before = model(*frames).maps
    index = ("RGB", "flow").index(changed)
    frames[index] = frames[index].flip(-1)
    after = model(*frames).maps
    found = {name: bool((before[name] - after[name]).abs().max() > 1e-6) for name in before}
    assert found == {
        "RGB inter-modality": True,
        "flow inter-modality": True,
        "RGB inter-frame": changed == "RGB",
        "flow inter-frame": changed == "flow",
    }


def test_the_decoder_refines_with_the_rgb_encoders_first_stages():
    model = network().eval()
    stages, skips = [], []
    model.rgb_stream.encoder.register_forward_hook(lambda *x: stages.append(x[2]))
    model.decoder.register_forward_pre_hook(lambda _, x: skips.extend(x[1]))
    model(*inputs())
    assert len(skips) == 2
    assert all(skip is stage for skip, stage in zip(skips, stages[-1]))


def test_attention_works_at_the_last_two_stages():
    """Of a pyramid those at strides 16 and 32; of a VGG network conv4 and conv5, at 8 and 16."""
    for backbone, strides, widths in (
        ("mit_b0", (16, 32), (160, 256)),
        ("vgg11", (8, 16), (512, 512)),
    ):
        model = network(backbone=backbone, channels=16).eval()
        seen = []

        def note(_, arguments, seen=seen):
            seen.append(arguments[0].shape[1:])

        for attention in (*model.rgb_stream.inter_modality, model.rgb_stream.inter_frame):
            attention.register_forward_pre_hook(note)
        prediction = model(*inputs(1, 32, 64, references=1))
        shapes = [(width, 32 // s, 64 // s) for s, width in zip(strides, widths)]
        assert seen == [*shapes, shapes[-1]]
        assert [x.shape for x in prediction.logits] == [(1, 1, 32, 64)] * 4
        for label, x in prediction.maps.items():
            stage = shapes[-1 if label.endswith("inter-frame") else 0]
            assert x.shape == (1, *stage[1:])


def test_more_neighbours_than_prototypes_are_refused():
    with pytest.raises(ModelError, match="GRAPH_NEIGHBOURS = 10 is above CHANNELS = 8"):
        DPA(backbone="mit_b0", pretrained_backbone=False, channels=8)


@pytest.mark.parametrize("channels", [4, 12, 24])
def test_any_width_that_settings_allow_will_do(channels):
    model = network(channels=channels, motion=False)
    assert model(inputs()[0]).logits[0].shape == (2, 1, 64, 64)


def test_a_batch_of_one_can_be_trained_at_64_pixels():
    network()(*inputs(1)).logits[0].mean().backward()


def test_the_summary_of_a_map_is_its_mean_stretched():
    torch.manual_seed(0)
    correlation = torch.rand(2, 5, 3, 4) * 2 - 1
    found = summary(correlation)
    for maps, one in zip(correlation, found):
        mean = sum(maps) / 5
        torch.testing.assert_close(one, (mean - mean.min()) / (mean.max() - mean.min()))
    assert torch.equal(summary(torch.ones(1, 5, 3, 4)), torch.zeros(1, 3, 4))
