"""A short training on features of moving disks. docs/smtc.md has the numbers of three seeds."""

import torch

from models.smtc.slot_network import SlotNetwork
from tests.models.smtc.test_network import network


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
    assert after["difference"] < 0.6 and after["semantic"] < 1.6
    assert after["valid"] > 0.2 and after["iou"] > 0.5


def test_without_the_first_loss_nothing_begins_to_learn():
    _, after = learn(seed=0, steps=80, weight=0.0)
    assert after["difference"] > 0.9 and after["semantic"] > 1.65 and after["iou"] < 0.1
