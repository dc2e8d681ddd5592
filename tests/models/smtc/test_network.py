"""SMTC as a whole: its losses, what learns when, the teacher, and the optimizer's groups."""

import numpy as np
import pytest
import torch

from models import ModelError
from models.smtc.network import SMTC
from tests.models.small_networks import parameters_not_reached

TINY = "vit_tiny_patch16_224"


def network(**arguments):
    torch.manual_seed(0)
    small = {"semantic_slots": 5, "instance_slots": 3, "correspondence_grid": 4}
    return SMTC(TINY, pretrained_backbone=False, **(small | arguments))


def frames(count, height=64, width=64, seed=0):
    generator = torch.Generator().manual_seed(seed)
    shape = (count, 3, height, width)
    return torch.randint(0, 256, shape, dtype=torch.uint8, generator=generator)


def train(model, steps, first=0, rate=1e-3, schedule=lambda step: 1.0):
    """Steps as ``utils.training.step`` takes them; their losses."""
    optimizer = torch.optim.AdamW(
        [{"weight_decay": 0.0, **group} for group in model.parameter_groups()], lr=rate
    )
    seen = []
    for step in range(first, first + steps):
        torch.manual_seed(step)
        model.before_step(step)
        for group in optimizer.param_groups:
            group["lr"] = rate * schedule(step) * group.get("rate", 1.0)
        terms = model.loss({"image": frames(8, seed=step).unflatten(0, (2, 4))})
        optimizer.zero_grad()
        sum(terms.values()).backward()
        optimizer.step()
        with torch.no_grad():
            model.after_step(step + 1)
        seen.append({name: term.item() for name, term in terms.items()})
    return seen


def copies(model):
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def changed(before, model):
    after = model.state_dict()
    return {name for name, tensor in before.items() if not torch.equal(tensor, after[name])}


def test_the_first_losses_are_those_of_slots_that_know_nothing():
    (terms,) = train(network(semantic_slots=16), 1)
    assert set(terms) == {"difference", "semantic", "instance"}
    assert terms["difference"] > 0.95
    assert abs(terms["semantic"] - np.log(16)) < 0.1
    assert terms["instance"] == 0


def test_the_encoder_is_frozen_in_the_first_steps_and_then_slow():
    model = network(freeze_steps=2).train()
    assert not model.encoder.training and model.slots.training
    before = copies(model)
    train(model, 2)
    first = changed(before, model)
    assert first and all(name.startswith(("slots.", "teacher_slots.")) for name in first)
    train(model, 1, first=2)
    then = changed(before, model) - first
    assert model.encoder.training and then
    assert all(name.startswith("encoder.") for name in then)
    last = "encoder.encoder.blocks.11."
    assert f"{last}attn.qkv.weight" in then and "encoder.encoder.pos_embed" in then
    assert f"{last}mlp.fc1.weight" not in then and "encoder.encoder.norm.weight" not in then
    # The first step of Adam has the size of the rate.
    name = "encoder.encoder.blocks.3.norm1.weight"
    moved = (model.state_dict()[name] - before[name]).abs().max()
    assert 0.9e-5 < moved < 1.1e-5


def test_a_frozen_encoder_may_have_stochastic_depth():
    assert network(drop_path_while_frozen=True).train().encoder.training
    model = network(freeze_steps=0).train()
    rates = [getattr(block.drop_path1, "drop_prob", 0.0) for block in model.encoder.encoder.blocks]
    np.testing.assert_allclose(rates, np.linspace(0, 0.1, 12), atol=1e-6)
    assert model.encoder.training and not model.teacher_encoder.training
    assert not model.teacher_slots.training and not model.eval().encoder.training


@pytest.mark.parametrize("follows", [False, True])
def test_the_teacher_is_an_average_of_the_student(follows):
    model = network(freeze_steps=0, teacher_encoder_follows=follows)
    train(model, 1)
    before = copies(model)
    train(model, 1, first=1)
    after = model.state_dict()
    for name, tensor in before.items():
        student = after[name.removeprefix("teacher_")]
        if name.startswith("teacher_slots.") or (name.startswith("teacher_encoder.") and follows):
            expected = 0.999 * tensor + 0.001 * student
            torch.testing.assert_close(after[name], expected, rtol=1e-6, atol=1e-8)
            if name.endswith("to_value.weight"):
                assert not torch.equal(after[name], tensor)
        elif name.startswith("teacher_encoder."):
            assert torch.equal(after[name], tensor)


@pytest.mark.parametrize("reparameterised", [True, False])
def test_groups_have_each_trained_parameter_once_and_matrices_decay(reparameterised):
    model = network(reparameterised=reparameterised)
    assert model.slots.instance.log_deviation.requires_grad == reparameterised
    groups = model.parameter_groups()
    assert [group.get("rate") for group in groups] == [0.01, 0.01, None, None]
    decayed = {id(p) for group in groups[::2] for p in group["params"]}
    undecayed = {id(p) for group in groups[1::2] for p in group["params"]}
    assert all(group["weight_decay"] == 0.1 for group in groups[::2])
    assert all("weight_decay" not in group for group in groups[1::2])
    trained = [p for p in model.parameters() if p.requires_grad]
    assert len(trained) == sum(len(group["params"]) for group in groups)
    for parameter in trained:
        assert id(parameter) in (decayed if parameter.ndim > 1 else undecayed)
    assert not any(p.requires_grad for p in model.teacher_slots.parameters())
    others = network(decay_gaussians=False)
    gaussians = {id(others.slots.semantic.mean), id(others.slots.instance.log_deviation)}
    assert gaussians <= {id(p) for p in others.parameter_groups()[3]["params"]}


def test_student_and_teacher_see_different_colours_of_the_same_clips(monkeypatch):
    model, seen = network(), []
    of_features = model.loss_of_features
    monkeypatch.setattr(
        model, "loss_of_features", lambda *args: seen.append(args) or of_features(*args)
    )
    images = frames(8).unflatten(0, (2, 4))
    torch.manual_seed(3)
    model.loss({"image": images})
    (keys, teacher_keys, size) = seen[0]
    assert keys.shape == teacher_keys.shape == (2, 4, 16, 192) and size == (4, 4)
    assert not torch.equal(keys, teacher_keys)
    monkeypatch.setattr("models.smtc.network.colour_view", lambda clips: clips.float() / 255)
    model.loss({"image": images})
    assert torch.equal(seen[1][0], seen[1][1])  # both encoders are DINO's
    expected = model.encoder(model.normalise(images[1, 2:3])).keys
    torch.testing.assert_close(seen[1][0][1, 2:3], expected)


def test_no_round_of_slot_attention_is_refused():
    with pytest.raises(ModelError, match="NUM_ITERATIONS is 0"):
        network(num_iterations=0)


@pytest.mark.parametrize("reparameterised", [True, False])
def test_losses_are_in_float32_under_autocast_and_reach_every_parameter(reparameterised):
    model = network(freeze_steps=0, reparameterised=reparameterised).train()
    assert not model.skips_parameters and network().skips_parameters
    with torch.autocast("cpu", torch.bfloat16):
        terms = model.loss({"image": frames(8).unflatten(0, (2, 4))})
    assert all(term.dtype == torch.float32 for term in terms.values())
    sum(terms.values()).backward()
    assert parameters_not_reached(model) == []
