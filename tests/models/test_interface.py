"""What every network promises to the training loop and the evaluation, for each of them."""

import inspect

import pytest
import torch

from models import MODELS, ModelError, build_model
from models.interface import REFERENCES, STILLS, WINDOWS, Loaded, Network, decay_matrices, fill
from models.two_streams import expand, uniform_references
from tests.models.small_networks import (
    SMALL,
    TWO_STREAMS,
    assert_same_prediction,
    discs,
    frames_in_memory,
    inputs,
    network,
    parameters_not_reached,
    without_stochastic_depth,
)

every = pytest.mark.parametrize("name", MODELS)
both = pytest.mark.parametrize("name", TWO_STREAMS)
stages = pytest.mark.parametrize("stage", [1, 2])
EXACT = {"rtol": 0, "atol": 0}


def of_stage(name, stage, **arguments):
    """The network of that name as pretrain.py or train.py builds it."""
    return network(name, **(MODELS[name].stage1 if stage == 1 else {}), **arguments)


def batch_for(model, batch=2, references=2):
    """What the network's ``needs`` ask for, as samples have it."""
    names = ("image", "flow", "reference_images", "reference_flows")
    pictures = zip(names, inputs(batch, references=references))
    sample = {name: (255 * x).round().byte() for name, x in pictures}
    if model.needs.samples == STILLS:
        sample = {"image": sample["image"]}
    labels = discs(batch)[:, 0].byte()
    labels[:, :4] = 255  # void
    return {**sample, "labels": labels}


def as_floats(batch):
    return {name: x if name == "labels" else x / 255 for name, x in batch.items()}


@both
def test_stage_1_needs_stills_and_stage_2_references_with_flow_both_with_masks(name):
    stills, video = of_stage(name, 1).needs, of_stage(name, 2).needs
    assert (stills.samples, stills.masks, stills.flow) == (STILLS, True, False)
    assert (video.samples, video.masks, video.flow) == (REFERENCES, True, True)


@both
@stages
def test_the_losses_of_bytes_are_finite_scalars_whose_sum_reaches_every_parameter(name, stage):
    model = without_stochastic_depth(of_stage(name, stage).double())
    terms = model.loss(batch_for(model))
    assert terms and all(isinstance(term, str) for term in terms)
    assert all(value.shape == () and value.isfinite() for value in terms.values())
    sum(terms.values()).backward()
    assert parameters_not_reached(model, floor=1e-12) == []


@both
@stages
def test_void_counts_as_background_in_the_loss_of_one_object(name, stage):
    model = of_stage(name, stage).eval()
    batch = batch_for(model)
    background = {**batch, "labels": batch["labels"] % 255}
    other = {**batch, "labels": batch["labels"].clamp(max=1)}
    found, expected, more = (model.loss(one) for one in (batch, background, other))
    assert all(torch.equal(found[term], expected[term]) for term in found)
    assert any(not torch.equal(found[term], more[term]) for term in found)


@both
@stages
def test_bytes_and_the_same_pictures_as_floats_give_the_same_bit_for_bit(name, stage):
    model = of_stage(name, stage).eval()
    batch = batch_for(model)
    assert_same_prediction(model.predict(batch), model.predict(as_floats(batch)), **EXACT)
    found, expected = model.loss(batch), model.loss(as_floats(batch))
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[term], expected[term]) for term in found)


@both
@pytest.mark.parametrize("length", [1, 7])
def test_a_video_is_segmented_with_references_that_are_encoded_once(name, length):
    model = network(name, num_references=3).eval()
    encode, calls = model.encode_references, []
    model.encode_references = lambda *frames: calls.append(frames) or encode(*frames)
    video = frames_in_memory(length)
    with torch.inference_mode():
        predictions = list(model.segment_video(video))
        kept = video.at(uniform_references(length, 3))
        references = encode(kept["image"][None], kept["flow"][None])
        for prediction, batch in zip(predictions, video, strict=True):
            count = len(batch["image"])
            expected = model.segment(batch["image"], batch["flow"], expand(references, count))
            assert_same_prediction(prediction, expected, **EXACT)
    assert len(calls) == 1
    assert sum(len(prediction.logits[0]) for prediction in predictions) == length


@both
def test_stage_1_segments_a_video_frame_by_frame_without_flow(name):
    model = of_stage(name, 1).eval()
    video = frames_in_memory(3)
    for frame in video[:]:
        del frame["flow"]
    with torch.inference_mode():
        for prediction, batch in zip(model.segment_video(video), video, strict=True):
            assert_same_prediction(prediction, model.predict(batch), **EXACT)


@both
def test_stage_2_takes_over_stage_1_and_copies_the_rgb_stream_into_the_flow_stream(name):
    stage1, model = of_stage(name, 1), network(name, seed=1)
    weights, before = stage1.state_dict(), {k: v.clone() for k, v in model.state_dict().items()}
    rgb = [key for key in weights if key.startswith("rgb_stream.")]
    loaded = model.start_from({**weights, "decoder.unheard.of": torch.zeros(3)})
    after = model.state_dict()
    fresh = after.keys() - weights.keys() - {key.replace("rgb_", "flow_", 1) for key in rgb}
    assert rgb and fresh
    for key, value in weights.items():
        assert torch.equal(after[key], value)
    for key in rgb:
        assert torch.equal(after[key.replace("rgb_", "flow_", 1)], weights[key])
    for key in fresh:
        assert torch.equal(after[key], before[key])
    assert loaded == Loaded(len(weights), len(rgb), len(fresh), unused=1)
    assert str(loaded) == (
        f"{len(weights)} tensors loaded, {len(rgb)} copied from the RGB to the flow stream, "
        f"{len(fresh)} left at their initial values, 1 of the file not used"
    )


@both
def test_weights_of_both_streams_go_into_the_stream_of_their_name(name):
    """Fine-tuning begins with a network of stage 2."""
    weights, model = network(name).state_dict(), network(name, seed=1)
    assert model.start_from(weights) == Loaded(len(weights), 0, 0, 0)
    assert all(torch.equal(value, weights[key]) for key, value in model.state_dict().items())


@both
def test_tensors_of_another_shape_stay_as_they_are(name):
    weights, model = network(name).state_dict(), network(name, seed=1)
    key = next(key for key in weights if key.startswith("decoder.") and weights[key].ndim == 4)
    before = model.state_dict()[key].clone()
    loaded = fill(model, {**weights, key: torch.zeros(1, 2, 3, 4)}, {})
    assert loaded == Loaded(len(weights) - 1, 0, 1, 1)
    assert torch.equal(model.state_dict()[key], before)


@both
@stages
def test_what_may_change_after_training_is_an_argument_and_no_weights_depend_on_it(name, stage):
    model = of_stage(name, stage)
    arguments = inspect.signature(MODELS[name]).parameters
    assert set(model.changeable) <= arguments.keys()
    assert ("num_references" in model.changeable) == (stage == 2)
    other = of_stage(name, stage, **{argument: 5 for argument in model.changeable})
    other.load_state_dict(model.state_dict())
    if stage == 2:
        assert other.num_references == 5


def test_rounds_may_change_only_where_slot_attention_was_trained():
    assert "num_iterations" in network("gsanet").changeable
    for arguments in ({"num_iterations": 0}, {"slot_attention": False}, {"motion": False}):
        assert "num_iterations" not in network("gsanet", **arguments).changeable
    assert network("dpa").changeable == ("num_references",)


def test_references_may_change_only_where_the_network_uses_them():
    assert network("dpa", inter_frame_attention=False).changeable == ()


@every
def test_every_network_learns_from_what_it_needs_alone(name):
    model, needs = network(name).train(), network(name).needs
    batch = batch_for(model)
    if needs.samples == WINDOWS:
        batch = {"image": batch["image"][:, None].expand(-1, needs.frames, -1, -1, -1)}
    for kind, wanted in (("labels", needs.masks), ("flow", needs.flow)):
        if not wanted:
            batch.pop(kind, None)
    terms = model.loss(batch)
    assert terms and all(value.shape == () and value.isfinite() for value in terms.values())
    sum(terms.values()).backward()
    groups = model.parameter_groups()
    grouped = [id(parameter) for group in groups for parameter in group["params"]]
    trained = {id(parameter) for parameter in model.parameters() if parameter.requires_grad}
    assert len(grouped) == len(set(grouped)) and set(grouped) == trained


@every
@pytest.mark.parametrize("length", [1, 5])
def test_every_network_gives_each_batch_of_a_video_scores_of_the_same_objects(name, length):
    model, video = network(name).eval(), frames_in_memory(length)
    with torch.inference_mode():
        logits = [prediction.logits[0] for prediction in model.segment_video(video)]
    assert [len(of_batch) for of_batch in logits] == [len(batch["image"]) for batch in video]
    assert len({of_batch.shape[1] for of_batch in logits}) == 1
    assert all(of_batch.isfinite().all() for of_batch in logits)


@every
def test_every_network_keeps_the_contracts_names_and_defaults(name):
    kind = MODELS[name]
    assert issubclass(kind, Network)
    arguments = inspect.signature(kind).parameters
    assert (kind.stage1 or {}).keys() <= arguments.keys()
    assert SMALL[name].keys() <= arguments.keys()
    # The checks of checkpoints go by these annotations.
    assert all(p.annotation is bool for p in arguments.values() if isinstance(p.default, bool))
    model = network(name)
    weights = {key: value.clone() for key, value in model.state_dict().items()}
    model.before_step(0)
    model.after_step(1)
    assert all(torch.equal(value, weights[key]) for key, value in model.state_dict().items())


def test_only_matrices_decay_and_not_those_that_are_named():
    layer, other = torch.nn.Linear(2, 3), torch.nn.Parameter(torch.zeros(2, 2))
    groups = decay_matrices([*layer.parameters(), other], 0.1, [other], rate=0.5)
    assert groups[0] == {"params": [layer.weight], "weight_decay": 0.1, "rate": 0.5}
    (bias, last) = groups[1]["params"]
    assert bias is layer.bias and last is other
    assert groups[1].keys() == {"params", "rate"}


def test_a_network_that_says_nothing_is_trained_whole_in_one_stage():
    class Plain(Network):
        def __init__(self):
            super().__init__()
            self.layer = torch.nn.Linear(2, 2)

    model = Plain()
    assert (
        Plain.stage1 is None
        and not model.looks_ahead
        and not model.compilable
        and model.changeable == ()
    )
    (group,) = model.parameter_groups()
    assert list(map(id, group["params"])) == list(map(id, model.parameters()))
    assert model.maps_by_iteration(None) == [] and model.parts() == {}
    assert not model.skips_parameters
    model.before_step(2)
    model.after_step(3)
    model.compile_for_inference(None)
    for call in (lambda: model.needs, lambda: model.loss({}), lambda: model.segment_video(None)):
        with pytest.raises(NotImplementedError):
            call()


def test_an_unknown_name_is_refused_with_the_nearest_one():
    with pytest.raises(ModelError, match=r"'gsa_net'.*gsanet.*did you mean 'gsanet'"):
        build_model("gsa_net")
    with pytest.raises(ModelError, match=r"'xyz'.*gsanet") as caught:
        build_model("xyz")
    assert "did you mean" not in str(caught.value)
