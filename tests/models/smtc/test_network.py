"""SMTC as a whole: what learns when, the teacher, and the objects of a video."""

import numpy as np
import pytest
import torch
from scipy.optimize import linear_sum_assignment

from models import ModelError
from models.backbones.vision_transformer import Tokens
from models.smtc import discovery
from models.smtc.network import KINETICS, SMTC
from models.smtc.slot_network import SlotNetwork
from tests.models.small_networks import FramesInMemory, parameters_not_reached

TINY = "vit_tiny_patch16_224"


def network(**arguments):
    torch.manual_seed(0)
    small = {"semantic_slots": 5, "instance_slots": 3, "correspondence_grid": 4}
    return SMTC(TINY, pretrained_backbone=False, **(small | arguments))


def frames(count, height=64, width=64, seed=0):
    generator = torch.Generator().manual_seed(seed)
    shape = (count, 3, height, width)
    return torch.randint(0, 256, shape, dtype=torch.uint8, generator=generator)


def clip(count, **size):
    """A video of random frames."""
    return FramesInMemory({"image": image} for image in frames(count, **size))


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


# Objects of a video


def slots_of(model, images, previous, noise):
    def keys(x):
        return model.encoder(model.normalise(x), class_token=False).keys

    return model.slots(keys(images), keys(previous), (4, 4), model.num_iterations, noise)


@torch.inference_mode()
def test_tracks_are_linked_instances_of_frames_that_start_with_the_same_noise(monkeypatch):
    """Against each frame by itself, and scipy's matching of neighbours."""
    model, seen = network().eval(), []
    weights = discovery.track_weights
    monkeypatch.setattr(
        "models.smtc.network.track_weights", lambda *x: seen.append(x) or weights(*x)
    )
    video = clip(5)
    list(model.segment_video(video))
    images = video.at(range(5))["image"]
    noise = torch.randn(1, 5, 3, 192, generator=torch.Generator().manual_seed(0))
    expected = slots_of(model, images, images[[1, 0, 1, 2, 3]], noise.expand(5, -1, -1, -1))
    maps, scores = (torch.cat(x) for x in zip(*seen))
    for k in range(5):
        order = np.arange(3)
        for t in range(5):
            if t:
                before = expected.features[t - 1, k, order]
                cosines = before @ expected.features[t, k].T
                order = linear_sum_assignment(cosines.numpy(), maximize=True)[1]
            of_frame = maps[t, 3 * k : 3 * k + 3].flatten(1)
            torch.testing.assert_close(of_frame, expected.instance_maps[t, k, order])
            torch.testing.assert_close(
                scores[t, 3 * k : 3 * k + 3], expected.scores[t, k, order], rtol=1e-4, atol=1e-5
            )


@pytest.mark.parametrize("way", ["tracks", "release"])
@torch.inference_mode()
def test_masks_do_not_depend_on_batches_and_follow_from_the_seed(way):
    video = clip(6)

    def logits(model, of_video=video):
        return torch.cat([p.logits[0] for p in model.eval().segment_video(of_video)])

    class OneByOne(FramesInMemory):
        def __iter__(self):
            return (self.at([i]) for i in range(len(self)))

    found = logits(network(discovery=way))
    assert found.shape == (6, 15, 4, 4)
    torch.testing.assert_close(logits(network(discovery=way), OneByOne(video[:])), found)
    assert not torch.equal(logits(network(discovery=way, noise_seed=1)), found)
    assert not torch.equal(logits(network(discovery=way, kinetics_statistics=True)), found)
    model = network(discovery=way)
    model.normalise = model.normalise_as_kinetics
    torch.testing.assert_close(model.normalise.mean.flatten(), torch.tensor(KINETICS[0]))
    expected = logits(network(discovery=way, kinetics_statistics=True))
    torch.testing.assert_close(logits(model), expected)


@pytest.mark.parametrize("way", ["tracks", "release"])
@torch.inference_mode()
def test_videos_are_segmented_under_autocast(way):
    model = network(discovery=way).eval()
    with torch.autocast("cpu", torch.bfloat16):
        for prediction in model.segment_video(clip(5)):
            logits = prediction.logits[0]
            assert logits.dtype == torch.float32 and logits.isfinite().all()


@torch.inference_mode()
def test_pictures_show_which_slot_each_token_belongs_to():
    model = network().eval()
    (prediction,) = model.segment_video(clip(2))
    semantic, instance = (prediction.maps[f"{kind} slots"] for kind in ("semantic", "instance"))
    assert semantic.shape == instance.shape == (2, 16, 16)
    numbers = (instance * 14).round()
    torch.testing.assert_close(numbers / 14, instance)
    assert set((semantic * 4).unique().tolist()) <= {0, 1, 2, 3, 4}


@torch.inference_mode()
def test_at_most_max_objects_tracks_are_objects():
    (prediction,) = network(max_objects=7).eval().segment_video(clip(2))
    assert prediction.logits[0].shape == (2, 7, 4, 4)


MAPS = torch.tensor([[0.5, 0.2, 0.1], [0.3, 0.6, 0.2], [0.2, 0.2, 0.7]])[None, :, None]


def test_area_counts_by_the_score_where_a_track_is_not_silent():
    maps = torch.cat([MAPS, MAPS])  # in each frame each track has one token of three
    scores = torch.tensor([[0.9, 0.4, 0.5], [0.6, 0.8, -1.0]])
    expected = torch.tensor([1.5, 0.8, 0.5]) / 3
    torch.testing.assert_close(discovery.track_weights(maps, scores), expected)


def test_one_label_per_pixel_and_silent_tracks_are_background():
    scores = torch.tensor([[0.9, 0.9, 0.4]])
    logits = discovery.track_logits(MAPS, scores, torch.tensor([2, 0]))
    silent = torch.full((3,), -1.0)
    torch.testing.assert_close(logits[0, 0, 0], silent)  # track 2 has a low score
    torch.testing.assert_close(logits[0, 1, 0], torch.tensor([0.2, -0.4, -0.6]))


def test_masks_of_the_release_are_counted_anew_and_stretched():
    scores = torch.tensor([[0.4, 0.9, 0.5]])
    logits = discovery.release_logits(MAPS, scores)[0, :, 0]
    torch.testing.assert_close(logits[0], torch.tensor([0.25, 1.0, 0.0]) - 0.3)
    torch.testing.assert_close(logits[1], torch.tensor([0.0, 0.0, 1.0]) - 0.3)
    torch.testing.assert_close(logits[2], torch.full((3,), -1.0))
    constant = discovery.release_logits(torch.full((1, 1, 2, 2), 0.4), torch.ones(1, 1))
    assert (constant < 0).all()


@pytest.mark.parametrize("batches", [[8], [3, 3, 2], [1] * 8])
def test_chunks_of_four_frames_do_not_depend_on_batches(batches):
    keys = torch.arange(8.0)[:, None, None]
    frames = [Tokens(part, None, (1, 1)) for part in keys.split(batches)]
    found = [(chunk.flatten().tolist(), new) for chunk, new, _ in discovery.chunks(frames)]
    assert found == [([0, 1, 2, 3], 4), ([4, 5, 6, 7], 4)]


@pytest.mark.parametrize(
    "length, last, new",
    [(5, [4, 2, 3, 4], 1), (6, [4, 5, 4, 5], 2), (7, [4, 5, 6, 6], 3), (1, [0, 0, 0, 0], 1)],
)
def test_a_short_chunk_is_filled_with_the_last_frames(length, last, new):
    keys = torch.arange(float(length))[:, None, None]
    *_, (chunk, count, _) = discovery.chunks([Tokens(keys, None, (1, 1))])
    assert chunk.flatten().tolist() == last and count == new


@torch.inference_mode()
def test_a_chunk_of_the_release_is_a_clip_of_its_own(monkeypatch):
    model, seen = network(discovery="release").eval(), []
    monkeypatch.setattr("models.smtc.network.release_logits", lambda *x: seen.append(x) or x[0])
    video = clip(4)
    list(model.segment_video(video))
    images = video.at(range(4))["image"]
    noise = torch.randn(4, 5, 3, 192, generator=torch.Generator().manual_seed(0))
    expected = slots_of(model, images, images[[3, 0, 1, 2]], noise).instance_maps
    maps = torch.cat([of_batch for of_batch, _ in seen])
    torch.testing.assert_close(maps.flatten(2), expected.flatten(1, 2), rtol=1e-3, atol=1e-4)


# Learning


class World:
    """Clips of two disks that move over a plain background, as features of 8 x 8 tokens."""

    SIDE, CHANNELS, RADIUS = 8, 64, 2.0

    def __init__(self):
        generator = torch.Generator().manual_seed(0)
        self.embed = 2 * torch.randn(3, self.CHANNELS, generator=generator)
        self.bias = 0.5 * torch.randn(self.CHANNELS, generator=generator)
        self.positions = 0.3 * torch.randn(self.SIDE**2, self.CHANNELS, generator=generator)

    def clips(self, count):
        """Colours of tokens (B, 4, N, 3), and whether they are of a disk (B, 4, N)."""
        room = self.SIDE - 2 * self.RADIUS
        start, speed = room * torch.rand(count, 1, 2, 2), 1.5 * torch.rand(count, 1, 2, 2) - 0.75
        path = (start + speed * torch.arange(4.0).view(4, 1, 1)) % (2 * room)
        centres = room - (path - room).abs() + self.RADIUS  # which bounce
        cells = torch.arange(self.SIDE) + 0.5
        places = torch.cartesian_prod(cells, cells)
        inside = (places - centres.unsqueeze(3)).norm(dim=4) < self.RADIUS  # (B, 4, 2, N)
        labels = torch.where(inside[:, :, 1], 2, inside[:, :, 0].long())
        colours = (2 * torch.rand(count, 1, 3, 3) - 1).expand(-1, 4, -1, -1)
        return torch.take_along_dim(colours, labels.unsqueeze(3), 2), labels > 0

    def view(self, colours):
        """Features of other brightness and noise."""
        brightness = 1 + 0.4 * (2 * torch.rand(len(colours), 1, 1, 1) - 1)
        colours = brightness * colours + 0.02 * torch.randn(colours.shape)
        return (colours @ self.embed + self.bias).tanh() + self.positions


def of_features(seed):
    """The network behind its encoder."""
    torch.manual_seed(seed)
    model = network(freeze_steps=0, teacher_momentum=0.99)
    torch.manual_seed(seed)
    model.slots, model.teacher_slots = (SlotNetwork(64, 6, 3, 8) for _ in range(2))
    model.teacher_slots.load_state_dict(model.slots.state_dict())
    model.teacher_slots.requires_grad_(False)
    return model


@torch.no_grad()
def measured(model, world):
    """Losses of new clips, the valid share, and how well one semantic map fits the disks (IoU)."""
    torch.manual_seed(1000)
    colours, disks = world.clips(32)
    keys = world.view(colours)
    result = model.loss_of_features(keys, world.view(colours), (8, 8))
    slots = model._of_clips(model.slots, keys, (8, 8))
    large = (slots.maps > 0.3).float().mean(dim=2) > 0.2
    valid = (slots.scores > 0.5) & large.unsqueeze(2)
    maps = (slots.maps > 0.3).unflatten(0, (32, 4)).transpose(1, 2)
    both = (maps & disks[:, None]).sum(dim=(2, 3)) / (maps | disks[:, None]).sum(dim=(2, 3))
    numbers = {name: term.item() for name, term in result.items()}
    return {**numbers, "valid": valid.float().mean().item(), "iou": both.amax(1).mean().item()}


def learn(seed, steps, weight=1.0):
    model, world = of_features(seed), World()
    before = measured(model, world)
    torch.manual_seed(seed)
    groups = [{"weight_decay": 0.0, **group} for group in model.parameter_groups()]
    optimizer = torch.optim.AdamW(groups, lr=4e-3)
    for step in range(1, steps + 1):
        colours, _ = world.clips(4)
        terms = model.loss_of_features(world.view(colours), world.view(colours), (8, 8))
        terms["difference"] = weight * terms["difference"]
        optimizer.zero_grad()
        sum(terms.values()).backward()
        optimizer.step()
        with torch.no_grad():
            model.after_step(step)
    return before, measured(model, world)


def test_160_steps_teach_semantics_and_instances():
    before, after = learn(seed=0, steps=160)
    assert before["difference"] > 0.9 and before["semantic"] > 1.7 and before["iou"] < 0.25
    # docs/smtc.md has the numbers of three seeds.
    assert after["difference"] < 0.6 and after["semantic"] < 1.6
    assert after["valid"] > 0.2 and after["iou"] > 0.5


def test_without_the_first_loss_nothing_begins_to_learn():
    _, after = learn(seed=0, steps=80, weight=0.0)
    assert after["difference"] > 0.9 and after["semantic"] > 1.65 and after["iou"] < 0.1
