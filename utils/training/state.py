"""Saving a run and continuing it."""

import time
from dataclasses import asdict
from typing import TYPE_CHECKING

from utils.training.accounts import Progress
from utils.training.checkpoints import (
    BEST,
    LAST,
    CheckpointError,
    check_same_network,
    load_checkpoint,
    load_weights,
    not_finite,
    save_checkpoint,
)

if TYPE_CHECKING:
    from utils.training.loop import Training


def save(training: "Training", best: bool = False) -> None:
    """Write last.pt, or best.pt, in the main process.

    After a bad step last.pt is not written until a good one: the weights may have been bad before.
    After the last epoch it is written in any case.

    Raises:
        TrainingError: the numbers to be saved are not finite.
        CheckpointError: the file cannot be written.
    """
    accounts, p, trainer = training.accounts, training.accounts.progress, training.trainer
    accounts.save = False
    if not best and p.bad_in_row and p.epoch < training.settings.epochs:
        return
    checkpoint = {
        **training.identity,
        "settings": training.settings.as_dict(),
        "weights": trainer.network.state_dict(),
        "progress": asdict(p),
    }
    state = {"optimizer": trainer.optimizer.state_dict()}
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
    else:
        save_checkpoint(training.run_dir / LAST, {**checkpoint, "training": state})
        training.saved_at = time.monotonic()


def restore(training: "Training") -> str:
    """Load the run's last checkpoint; returns a line for the log.

    Raises:
        CheckpointError: it is damaged, of another script or network, or its state is not as
            :func:`save` writes it.
    """
    run_dir, identity, trainer = training.run_dir, training.identity, training.trainer
    checkpoint = load_checkpoint(run_dir / LAST)
    script = checkpoint.get("script", identity.get("script"))
    if script != identity.get("script"):
        raise CheckpointError(
            f"{run_dir} is a run of {script}, not of {identity['script']}; continue it by "
            f"python {script} --resume {run_dir}"
        )
    check_same_network(run_dir / LAST, checkpoint, identity["model"], identity["arguments"])
    try:
        state, weights = checkpoint["training"], checkpoint["weights"]
        load_weights(trainer.network, weights)
        if list(weights) != list(trainer.network.state_dict()):
            # The optimizer's state has no names, so it would go to other weights.
            raise ValueError("its tensors come in another order than the network's")
        saved, own = (
            [len(group["params"]) for group in groups]
            for groups in (state["optimizer"]["param_groups"], trainer.optimizer.param_groups)
        )
        if saved != own:
            raise ValueError(f"it trains groups of {saved} tensors, the network has {own}")
        # The settings have the groups' rates, which may have been changed.
        moments = state["optimizer"]["state"]
        trainer.optimizer.load_state_dict({**trainer.optimizer.state_dict(), "state": moments})
        p = Progress(**{name: checkpoint["progress"][name] for name in vars(Progress())})
        for name, value in vars(Progress()).items():
            if not isinstance(found := getattr(p, name), type(value)):
                raise TypeError(f"its {name} is {found!r}")
    except (KeyError, TypeError, ValueError, AttributeError, RuntimeError) as error:
        raise CheckpointError(
            f"{run_dir / LAST} cannot be resumed: the state of its training is missing or was "
            f"written by another version of the code ({type(error).__name__}: {error})"
        ) from error
    p.bad_in_row = 0
    trainer.steps = training.accounts.saved_step = p.step
    training.accounts.progress = p
    position = f" and {p.batch} of {len(training.batches)} steps of the next" if p.batch else ""
    return f"resuming {run_dir} after epoch {p.epoch} of {training.settings.epochs}{position}"
