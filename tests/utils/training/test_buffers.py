"""A network's buffers: kept and set back all at once."""

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from utils.training.buffers import Buffers


def network(norms: int) -> nn.Sequential:
    """Norms, whose buffers are vectors and whole numbers, and a table."""
    made = nn.Sequential(*(nn.BatchNorm1d(3 + i) for i in range(norms)))
    made.register_buffer("table", torch.arange(6.0).reshape(2, 3))
    made.register_buffer("switch", torch.tensor([False, True]))
    return made


def changed(model: nn.Module) -> None:
    for i, buffer in enumerate(model.buffers()):
        buffer.copy_(~buffer if buffer.dtype == torch.bool else buffer + 1 + i)
    model.table[0, 1] = torch.nan


@pytest.mark.parametrize("wanted", [True, False])
def test_buffers_are_set_back_only_if_wanted(wanted):
    model = network(3)
    buffers = Buffers(model)
    before = {name: buffer.clone() for name, buffer in model.named_buffers()}
    buffers.keep()
    changed(model)
    after = {name: buffer.clone() for name, buffer in model.named_buffers()}
    buffers.restore(torch.tensor(wanted))
    for name, buffer in model.named_buffers():
        expected = (before if wanted else after)[name]
        torch.testing.assert_close(buffer, expected, rtol=0, atol=0, equal_nan=True)


def test_all_processes_get_the_values_of_the_first(monkeypatch):
    first, second = network(3), network(3)
    changed(first)
    sent = {}

    def send(joined, _):
        sent[joined.dtype] = joined.clone()

    def receive(joined, _):
        joined.copy_(sent.pop(joined.dtype))

    for model, broadcast in ((first, send), (second, receive)):
        monkeypatch.setattr(torch.distributed, "broadcast", broadcast)
        Buffers(model).broadcast()
    assert not sent  # one broadcast for each type
    for theirs, buffer in zip(first.buffers(), second.buffers()):
        torch.testing.assert_close(buffer, theirs, rtol=0, atol=0, equal_nan=True)


def test_a_network_without_buffers_is_left_as_it_is():
    model = nn.Linear(1, 1)
    weight = model.weight.clone()
    buffers = Buffers(model)
    buffers.keep()
    buffers.restore(torch.tensor(True))
    assert torch.equal(model.weight, weight)


class Counted(TorchDispatchMode):
    """The number of operations."""

    number = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.number += 1
        return function(*args, **(kwargs or {}))


def test_more_buffers_need_no_more_operations():
    numbers = []
    for norms in (1, 50):
        buffers = Buffers(network(norms))
        with Counted() as counted:
            buffers.keep()
            buffers.restore(torch.tensor(True))
        numbers.append(counted.number)
    assert 0 < numbers[0] == numbers[1]
