"""Slot generator, eq. 1 and 2, against loops over slots and pixels in float64; random slots."""

import math

import torch

from models.gsanet.slot_generator import RandomSlots, SlotGenerator


def test_guided_slots_follow_equations_1_and_2():
    torch.manual_seed(0)
    batch, channels, embedded, slots, height, width = 2, 4, 3, 2, 3, 5
    generator = SlotGenerator(channels).double()
    target = torch.randn(batch, channels, height, width, dtype=torch.float64)
    local = torch.randn(batch, embedded, height, width, dtype=torch.float64)
    result, logits = generator(target, local)
    assert result.shape == (batch, slots, embedded)
    assert logits.shape == (batch, slots, height, width)

    weight, bias = generator.to_masks.weight[:, :, 0, 0], generator.to_masks.bias
    for b in range(batch):
        masks = {}
        for y in range(height):
            for x in range(width):
                scores = [
                    bias[i].item()
                    + sum((weight[i, c] * target[b, c, y, x]).item() for c in range(channels))
                    for i in range(slots)
                ]
                for i in range(slots):
                    assert math.isclose(logits[b, i, y, x].item(), scores[i], abs_tol=1e-12)
                    masks[i, y, x] = math.exp(scores[i]) / sum(math.exp(s) for s in scores)  # eq. 1
        for i in range(slots):
            for c in range(embedded):
                above = below = 0.0
                for y in range(height):
                    for x in range(width):
                        above += masks[i, y, x] * local[b, c, y, x].item()
                        below += masks[i, y, x]
                assert math.isclose(result[b, i, c].item(), above / below, abs_tol=1e-12)  # eq. 2


def test_random_slots_vary_in_training_and_are_the_learned_means_in_evaluation():
    torch.manual_seed(1)
    random_slots = RandomSlots(8)
    samples = random_slots(500)
    assert samples.shape == (500, 2, 8)
    assert not torch.equal(samples[0], samples[1])
    deviation = random_slots.log_deviation.exp()
    assert (samples.mean(dim=0) - random_slots.mean).abs().max() < 0.2 * deviation.max()
    torch.testing.assert_close(samples.std(dim=0), deviation, rtol=0.15, atol=0)

    random_slots.eval()
    assert torch.equal(random_slots(3), random_slots.mean.expand(3, 2, 8))


def test_random_slots_start_apart_from_each_other():
    torch.manual_seed(2)
    slots = RandomSlots(32).eval()(1)[0]
    assert torch.cosine_similarity(slots[0], slots[1], dim=0) < 0.9
