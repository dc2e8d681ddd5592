"""What a GPU is sent and what is fetched from it, and in which order results are taken."""

import pytest
import torch

from utils.transfer import fetch, one_ahead, send


def begun(count, events):
    """Pieces of work that note when they begin and when they are waited for."""

    def wait(number):
        events.append(f"wait {number}")
        return number

    for number in range(count):
        events.append(f"begin {number}")
        yield lambda number=number: wait(number)


@pytest.mark.parametrize("count", [0, 1, 2, 5])
def test_results_come_in_order_and_each_once(count):
    assert list(one_ahead(begun(count, []))) == list(range(count))


def test_the_next_piece_is_begun_before_a_result_is_waited_for_and_no_other():
    events = []
    results = one_ahead(begun(3, events))
    assert events == []
    assert next(results) == 0
    assert events == ["begin 0", "begin 1", "wait 0"]
    assert list(results) == [1, 2]
    assert events[3:] == ["begin 2", "wait 1", "wait 2"]


def test_tensors_of_the_cpu_are_fetched_as_they_are():
    tensors = [torch.rand(2), torch.rand(3)]
    fetched = fetch(tensors)()
    assert all(one is other for one, other in zip(fetched, tensors, strict=True))


def test_numbers_of_a_gpu_are_waited_for_when_they_are_used_and_after_they_were_copied(gpu_events):
    """By a GPU that only notes what it is asked for."""

    class OnGPU:
        is_cuda = True
        device = torch.device("cuda:1")  # not the thread's current one

        def to(self, device, non_blocking):
            assert device == "cpu" and non_blocking
            gpu_events.append("copy")
            return torch.ones(1)

    fetched = fetch([OnGPU(), OnGPU()])
    assert gpu_events == ["copy", "copy", "cuda:1"]
    assert fetched() == [torch.ones(1), torch.ones(1)]
    assert gpu_events == ["copy", "copy", "cuda:1", "wait"]


@pytest.mark.parametrize("pinned", [False, True])
def test_a_gpu_is_sent_what_is_pinned_without_waiting(pinned):
    events = []

    class OnCPU:
        def is_pinned(self):
            return pinned

        def pin_memory(self):
            events.append("pin")
            return self

        def to(self, device, non_blocking):
            events.append((device.type, non_blocking))

    send(OnCPU(), torch.device("cuda"))
    assert events == ["pin", ("cuda", True)][pinned:]
    tensor = torch.rand(2)
    assert send(tensor, torch.device("cpu")) is tensor
