"""The training step of all networks: forward pass, backward pass, update."""

import math
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import numpy as np
import torch
from timm.layers import convert_sync_batchnorm
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.nn.utils import clip_grad_norm_
from torch.optim import AdamW

from models.interface import Network
from precision import autocast
from utils.processes import Process
from utils.settings import Settings
from utils.training.buffers import Buffers
from utils.transfer import fetch, send


@dataclass
class Step:
    """A step that the device works on; its numbers may not be there yet."""

    number: int  # of the step, from 1
    rate: float  # its learning rate
    names: list[str]  # of the losses
    numbers: Callable[[], list[Tensor]]  # waits for losses, gradient's norm and requests

    def read(self) -> tuple[dict[str, float], float, list[float]]:
        """Wait for the losses by name, the gradient's norm before clipping, and the requests.

        Losses are means over all processes, requests are sums.
        """
        values = self.numbers()[0].tolist()
        count = len(self.names)
        return dict(zip(self.names, values)), values[count], values[count + 1 :]

    def is_finite(self) -> bool:
        """Wait for the numbers; whether the losses and the gradient's norm are finite."""
        losses, norm, _ = self.read()
        return all(map(math.isfinite, (*losses.values(), norm)))


class Trainer:
    """A network with its optimizer.

    Args:
        network: moved to the process's device.
        settings: see config.py.
        process: this process.
        num_steps: of the whole run, for the learning rate.

    Attributes:
        steps: number of steps that were begun.
    """

    def __init__(self, network: Network, settings: Settings, process: Process, num_steps: int):
        s = self.settings = settings
        self.process = process
        self.num_steps = num_steps
        self.steps = 0
        self.network = network.to(process.device)
        self.loss = _shared(self.network, process)
        if s.compile:
            sizes = len(s.image_sizes or ())
            # Each size is compiled separately, and torch would give up after a few.
            torch._dynamo.config.cache_size_limit += sizes
            self.loss.compile(dynamic=False if sizes else None)
        # After _shared, which may replace norms: the optimizer needs the new parameters.
        groups = self.network.parameter_groups()
        self.parameters = [parameter for group in groups for parameter in group["params"]]
        self.optimizer = AdamW(
            groups,
            lr=s.learning_rate,
            betas=(s.adam_beta1, s.adam_beta2),
            eps=s.adam_epsilon,
            weight_decay=0.0,
            fused=True,
        )
        self.buffers = Buffers(self.network)

    def step(self, parts: Sequence[dict[str, Tensor]], requests: Sequence[float] = ()) -> Step:
        """Train on one batch.

        Nothing here waits for a GPU. So the device itself leaves out a step whose loss or gradient
        is not finite.

        Args:
            parts: the batch, in the parts that it is computed in.
            requests: votes to stop or to save, which are summed over all processes.
        """
        s, device = self.settings, self.process.device
        seed = np.random.SeedSequence([s.seed, self.steps, self.process.rank]).generate_state(1)
        torch.manual_seed(int(seed[0]))
        rate = self.learning_rate(self.steps)
        for group in self.optimizer.param_groups:
            group["lr"] = rate * group.get("rate", 1.0)
        self.network.before_step(self.steps)
        self.buffers.keep()  # a bad step must not change the statistics of norms

        self.optimizer.zero_grad(set_to_none=True)
        losses: dict[str, Tensor] = {}
        for number, part in enumerate(parts, 1):
            batch = {name: send(tensor, device) for name, tensor in part.items()}
            with self._gradients_kept_here(number < len(parts)):
                with autocast(self.process.device, self.settings.mixed_precision):
                    terms = self.loss(batch)
                total = sum(terms.values())
                (total / len(parts)).backward()
            for name, value in {"total": total, **terms}.items():
                losses[name] = losses.get(name, 0) + value.detach() / len(parts)
        norm = clip_grad_norm_(self.parameters, s.clip_gradient or math.inf)
        numbers = self._over_all_processes([*losses.values(), norm.float()], requests)
        bad = ~numbers[: len(losses) + 1].isfinite().all()
        # A fused optimizer does nothing where this is 1; torch's gradient scaler uses it, too.
        self.optimizer.found_inf = bad.float()
        self.optimizer.step()
        self.buffers.restore(bad)
        self.steps += 1
        with torch.no_grad():
            self.network.after_step(self.steps)
        return Step(self.steps, rate, list(losses), fetch([numbers]))

    def learning_rate(self, step: int) -> float:
        """The learning rate of a step, from 0."""
        s = self.settings
        floor = s.min_learning_rate / s.learning_rate
        return s.learning_rate * cosine_factor(step, self.num_steps, floor)

    def in_evaluation_mode(self) -> Network:
        """The network in evaluation mode, the same in every process."""
        if self.process.world_size > 1:
            # Without synchronised norms each process has statistics of its own samples.
            self.buffers.broadcast()
        return self.network.eval()

    def _gradients_kept_here(self, more_to_come: bool) -> AbstractContextManager:
        """Processes exchange gradients only in the last part of a batch."""
        if more_to_come and isinstance(self.loss, DistributedDataParallel):
            return self.loss.no_sync()
        return nullcontext()

    def _over_all_processes(self, means: list[Tensor], requests: Sequence[float]) -> Tensor:
        """The means of some numbers over all processes, then the sums of the requests."""
        count = len(means)
        numbers = torch.stack([*means, *means[-1].new_zeros(len(requests))])
        if any(requests):  # which is rare: numbers from the CPU make a GPU wait
            numbers[count:] = numbers.new_tensor(requests)
        if self.process.world_size > 1:
            torch.distributed.all_reduce(numbers)
            numbers[:count] /= self.process.world_size
        return numbers


class LossOf(nn.Module):
    """A network's loss as a module, which processes share and torch.compile compiles."""

    def __init__(self, network: Network):
        super().__init__()
        self.network = network

    def forward(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        """The named terms of ``Network.loss``."""
        return self.network.loss(batch)


def cosine_factor(step: int, total: int, floor: float) -> float:
    """Learning rate of a step, as a share of the first: from 1 to ``floor`` at the last step."""
    done = min(step / max(1, total - 1), 1.0)
    return floor + (1 - floor) * (1 + math.cos(math.pi * done)) / 2


def _shared(network: Network, process: Process) -> nn.Module:
    """The network's loss, with gradients that all processes share."""
    if process.world_size == 1:
        return LossOf(network)
    unused = {"find_unused_parameters": network.skips_parameters}
    if process.device.type == "cuda":
        # timm's function: torch's would lose the activations in timm's norms.
        loss = LossOf(convert_sync_batchnorm(network))
        return DistributedDataParallel(loss, device_ids=[process.device.index], **unused)
    return DistributedDataParallel(LossOf(network), **unused)
