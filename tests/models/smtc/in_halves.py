"""The losses of SMTC's slots and their gradients, where each process has its share of the clips.

Run by torchrun with a file's name, to which the first process writes the means.
"""

import sys

import torch
import torch.distributed as dist

from models.smtc.network import SMTC
from models.smtc.slot_network import CLIP, SlotNetwork

CLIPS, SIZE = 4, (4, 4)


def of_share(number: int, shares: int) -> dict[str, torch.Tensor]:
    """Losses, and gradients by parameter, of a share of clips that are the same in all processes.

    Keys of student and teacher are random, and so is the noise of the instances.
    """
    torch.manual_seed(0)
    network = SMTC(
        "vit_tiny_patch16_224",
        pretrained_backbone=False,
        semantic_slots=5,
        instance_slots=3,
        correspondence_grid=4,
        valid_probability=0.1,
        valid_area=0.05,
    ).double()
    keys = torch.randn(2, CLIPS, CLIP, 16, network.encoder.channels).double()
    keys[1] = keys[0] + 0.1 * keys[1]
    noise = torch.randn(CLIPS, CLIP, *network.slots.noise_shape).double() * 2
    keys, noise = (x.tensor_split(shares, dim=d)[number] for x, d in ((keys, 1), (noise, 0)))
    forward = SlotNetwork.forward

    def with_noise(self, *arguments):
        return forward(self, *arguments, noise=noise.flatten(0, 1))

    SlotNetwork.forward = with_noise
    try:
        losses = network.loss_of_features(*keys, SIZE)
    finally:
        SlotNetwork.forward = forward
    sum(losses.values()).backward()
    gradients = {name: p.grad for name, p in network.named_parameters() if p.grad is not None}
    return {**{name: loss.detach() for name, loss in losses.items()}, **gradients}


if __name__ == "__main__":
    dist.init_process_group("gloo")
    results = of_share(dist.get_rank(), dist.get_world_size())
    for tensor in results.values():
        dist.all_reduce(tensor)
        tensor /= dist.get_world_size()
    if dist.get_rank() == 0:
        torch.save(results, sys.argv[1])
    dist.destroy_process_group()
