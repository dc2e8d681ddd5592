"""Saving a run and going on with it: what its checkpoints hold beside the network."""

import time
from dataclasses import asdict
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from utils.training.accounts import Progress
from utils.training.checkpoints import (
    BEST,
    LAST,
    CheckpointError,
    check_same_network,
    check_same_order,
    check_same_script,
    load_last,
    load_weights,
    not_finite,
    save_checkpoint,
)

if TYPE_CHECKING:
    from utils.training.loop import Training


def save(training: "Training", best: bool = False) -> None:
    """Write last.pt, or best.pt, in the main process; previous.pt is of an earlier step.

    While numbers are bad there is no last.pt: the weights may have been spoilt before that showed,
    and last.pt and previous.pt must not both be of that time. A run that ends so is saved.

    Raises:
        TrainingError: the numbers to be saved are not finite.
        CheckpointError: the file cannot be written.
    """
    accounts, p = training.accounts, training.accounts.progress
    accounts.save = False
    earlier = accounts.saved_step < p.step
    if not best and p.bad_in_row and p.epoch < training.settings.epochs:
        return
    checkpoint = {
        **training.identity,
        "settings": training.settings.as_dict(),
        "weights": training.result.state_dict(),
        "progress": asdict(p),
    }
    state = {"optimizer": training.optimizer.state_dict()}
    if training.average is not None:
        state["weights"] = training.network.state_dict()
    # In every process, so that all of them stop.
    if spoilt := list(not_finite({**checkpoint, **state})):
        accounts.give_up(
            f"after step {p.step} the weights are not finite ({spoilt[0]} and "
            f"{len(spoilt) - 1} more tensors), and are not saved"
        )
    if not best:
        accounts.saved_step = p.step  # in every process, for their messages
    if not training.process.is_main:
        return
    if best:
        save_checkpoint(training.run_dir / BEST, checkpoint)
        return
    path = training.run_dir / LAST
    save_checkpoint(path, {**checkpoint, "training": state}, keep_previous=earlier)
    training.saved_at = time.monotonic()


def restore(training: "Training") -> list[str]:
    """Take everything from the run's last checkpoint; returns lines for the log.

    Raises:
        CheckpointError: there is none, it is another script's or another network's, or its state
            is not as :func:`save` writes it.
    """
    checkpoint, path, warning = load_last(training.run_dir)
    check_same_script(checkpoint, training.identity, training.run_dir)
    check_same_network(checkpoint, training.identity["model"], training.identity["arguments"])
    optimizer = training.optimizer
    try:
        state, weights = checkpoint["training"], checkpoint["weights"]
        load_weights(training.network, state.get("weights", weights))
        check_same_order(checkpoint, training.network)
        if training.average is not None:
            load_weights(training.average, weights)
        # The settings have the groups' rates, which may have been changed.
        moments = state["optimizer"]["state"]
        optimizer.load_state_dict({**optimizer.state_dict(), "state": moments})
        for parameter, one in optimizer.state.items():
            if not one["exp_avg"].shape == one["exp_avg_sq"].shape == parameter.shape:
                raise ValueError("the optimizer's state is of another shape than the weights")
            one["step"].item()
        p = Progress(**checkpoint["progress"])
        for name, value in vars(Progress()).items():
            if type(getattr(p, name)) is not type(value):
                raise TypeError(f"progress: {name} is {getattr(p, name)!r}")
        sum(p.sums.values())
    except (KeyError, TypeError, ValueError, AttributeError, RuntimeError) as error:
        if isinstance(error, CheckpointError):
            raise
        raise CheckpointError(
            f"{path} cannot be resumed: the state of its training is missing or is not as "
            f"this code writes it ({type(error).__name__}, {error})"
        ) from error
    training.averaged.fill_(p.step - p.bad_steps)
    p.bad_in_row = 0
    training.accounts.progress = p
    training.accounts.saved_step = p.step
    position = f" and {p.batch} of {len(training.batches)} steps" if p.batch else ""
    going_on = f"resuming {training.run_dir} after epoch {p.epoch}{position}"
    return [*filter(None, [warning]), f"{going_on} of {training.settings.epochs}"]


def move_towards(average: nn.Module, network: nn.Module, weight: Tensor) -> None:
    """Take parameters and buffers of an average to those of a network by this share of the way."""
    pairs = [
        (old.detach(), new.detach())
        for old, new in zip(
            (*average.parameters(), *average.buffers()),
            (*network.parameters(), *network.buffers()),
        )
    ]
    floats = [pair for pair in pairs if pair[0].is_floating_point()]
    ways = torch._foreach_sub([new for _, new in floats], [old for old, _ in floats])
    torch._foreach_mul_(ways, weight)
    torch._foreach_add_([old for old, _ in floats], ways)
    for old, new in pairs:
        if not old.is_floating_point():  # norms count their batches
            old.copy_(new)
