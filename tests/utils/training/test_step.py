"""The training step: learning rate, update, clipping, and what several processes share."""

import math

import pytest
import torch
from torch import nn

import utils.training.step
from models.backbones import build_backbone
from models.interface import STILLS, Needs, Network
from utils.processes import Process
from utils.training.step import Trainer, cosine_factor

CPU = Process(torch.device("cpu"))


class Line(Network):
    """Fits a line through points."""

    needs = Needs(STILLS)

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(1, 1)
        self.steps = []

    def loss(self, batch):
        return {"square": (self.layer(batch["x"]) - batch["y"]).square().mean()}

    def after_step(self, step):
        self.steps.append(step)


POINTS = {"x": torch.tensor([[0.0], [1.0], [2.0]]), "y": torch.tensor([[1.0], [3.0], [5.0]])}


def trainer(settings, num_steps: int = 10) -> Trainer:
    torch.manual_seed(0)
    return Trainer(Line(), settings, CPU, num_steps)


def test_a_step_needs_a_batch_alone_and_gives_its_numbers(tiny_settings):
    trained = trainer(tiny_settings.replace(learning_rate=0.1))
    by_hand = trained.network.loss(POINTS)["square"]
    weights = [*trained.network.parameters()]
    gradients = torch.autograd.grad(by_hand, weights)
    before = [weight.detach().clone() for weight in weights]
    step = trained.step([POINTS])
    losses, norm, requests = step.read()
    assert (step.number, step.rate, requests) == (1, 0.1, [])
    assert losses == {"total": by_hand.item(), "square": by_hand.item()}
    assert norm == pytest.approx(math.hypot(*(g.item() for g in gradients)))
    # Adam's first step goes as far as the learning rate, against the gradient.
    for weight, old, gradient in zip(weights, before, gradients):
        torch.testing.assert_close(weight.detach(), old - 0.1 * gradient.sign())
    assert trained.step([POINTS], [0, 2]).read()[2] == [0, 2]
    assert trained.network.steps == [1, 2]


def test_the_cosine_goes_from_1_to_the_floor():
    assert cosine_factor(0, 101, 0.1) == 1
    assert cosine_factor(100, 101, 0.1) == pytest.approx(0.1)
    assert cosine_factor(50, 101, 0.1) == pytest.approx(0.55)
    assert cosine_factor(25, 101, 0.2) == pytest.approx(0.2 + 0.8 * (1 + math.sqrt(0.5)) / 2)
    values = [cosine_factor(step, 101, 0.1) for step in range(101)]
    assert values == sorted(values, reverse=True)
    assert cosine_factor(500, 101, 0.1) == pytest.approx(0.1)
    assert cosine_factor(0, 1, 0.1) == 1


def test_adam_and_the_schedule_follow_the_settings(tiny_settings):
    settings = tiny_settings.replace(
        learning_rate=1e-2,
        min_learning_rate=1e-3,
        adam_beta1=0.8,
        adam_beta2=0.99,
        adam_epsilon=1e-6,
    )
    trained, used = trainer(settings, 9), []
    for _ in range(9):
        rate = trained.step([POINTS]).rate
        used.append({**trained.optimizer.param_groups[0]})
        assert used[-1]["lr"] == rate
    expected = [1e-3 + 9e-3 * (1 + math.cos(math.pi * step / 8)) / 2 for step in range(9)]
    assert [group["lr"] for group in used] == pytest.approx(expected)
    assert {(group["betas"], group["eps"]) for group in used} == {((0.8, 0.99), 1e-6)}
    assert used[0]["weight_decay"] == 0


def test_the_gradient_is_clipped_to_its_largest_norm_only_if_wanted(tiny_settings):
    norms, told = [], []
    for limit in (None, 1e-3, 1e6):
        trained = trainer(tiny_settings.replace(clip_gradient=limit))
        told.append(trained.step([POINTS]).read()[1])
        gradients = [parameter.grad.flatten() for parameter in trained.parameters]
        norms.append(torch.cat(gradients).norm().item())
    free, clipped, high = norms
    assert free == high > 0.01
    assert clipped == pytest.approx(1e-3, rel=1e-3)
    assert told == pytest.approx([free] * 3)  # the norm before clipping


def test_synchronised_normalisation_keeps_the_activations_inside_it():
    """timm's norms of some backbones have an activation, which torch's own conversion drops."""
    torch.manual_seed(0)
    encoder = build_backbone("regnety_002", pretrained=False).eval()
    images = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        before = encoder(images)
        after = utils.training.step.convert_sync_batchnorm(encoder).eval()(images)
    for a, b in zip(before, after):
        torch.testing.assert_close(a, b)
