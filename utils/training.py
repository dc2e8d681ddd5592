"""The training loop of both stages; the scripts say what is trained, this module how."""

import inspect
import math
import time
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from timm.layers import convert_sync_batchnorm
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim import Adam, Optimizer
from torch.optim.lr_scheduler import LambdaLR
from torch.utils.data import DataLoader, Dataset
from torch.utils.tensorboard import SummaryWriter
from tqdm import tqdm

from datasets.augmentation import Augmentation
from datasets.sampling import EpochBatches
from models import model_class
from utils.checkpoints import (
    CheckpointError,
    check_same_network,
    load_checkpoint,
    save_checkpoint,
)
from utils.distributed import Process
from utils.losses import Loss, segmentation_loss
from utils.settings import Settings, SettingsError, read_settings_file, write_settings

# What may change when a run goes on: where it computes and when it ends, not what it computes.
RESUMABLE = frozenset(
    ["DATA_ROOT", "EPOCHS", "EVAL_BATCH_SIZE", "GPU", "VALIDATE_EVERY", "VAL_FRAME_STEP", "WORKERS"]
)
LOG_INTERVAL = 10  # steps between two readings of the loss, each of which waits for the GPU


@dataclass
class Validation:
    """Result of one validation.

    Attributes:
        score: mean J in [0, 1], by which the best checkpoint is chosen.
        parts: further scores by name, for the log.
        panel: a picture to look at, uint8 RGB (H, W, 3), if there is one.
    """

    score: float
    parts: dict[str, float] = field(default_factory=dict)
    panel: np.ndarray | None = None


@dataclass
class Progress:
    """Where training stands: what a checkpoint must hold beside the weights and the optimizer."""

    epoch: int = 0
    step: int = 0
    best: float = -1.0


def fit(
    model: nn.Module,
    dataset: Dataset,
    validate: Callable[[nn.Module], Validation],
    settings: Settings,
    identity: dict[str, Any],
    run_dir: Path,
    process: Process,
    resume: bool = False,
) -> Progress:
    """Train ``model`` for ``settings.epochs`` epochs with Adam and a cosine schedule (Sec. 4.4).

    Writes TensorBoard events, ``last.pt`` after every epoch and ``best.pt`` by validation score
    into ``run_dir``; prints a line per epoch.

    Args:
        model: on the CPU; its ``forward`` takes a sample without its mask, as keywords.
        dataset: of ``datasets.samples``.
        validate: scores the model; called in the main process only.
        settings: see config.py.
        identity: what rebuilds the network, kept in checkpoints: ``model`` and ``arguments``.
        run_dir: made if need be; gets the settings really used as ``settings.py``.
        process: this process.
        resume: go on from ``run_dir / "last.pt"``.
    """
    batches = EpochBatches(
        dataset.set_sizes,
        settings.batch_size,
        settings.seed,
        settings.balance_sets,
        process.rank,
        process.world_size,
    )
    model = model.to(process.device)
    optimizer = Adam(
        model.parameters(),
        lr=settings.learning_rate,
        betas=(settings.adam_beta1, settings.adam_beta2),
        eps=settings.adam_epsilon,
    )
    schedule = LambdaLR(
        optimizer,
        partial(
            cosine_factor,
            total=settings.epochs * len(batches),
            floor=settings.min_learning_rate / settings.learning_rate,
        ),
    )
    torch.manual_seed(settings.seed + process.rank)  # each process draws its own stochastic depth
    progress = Progress()
    if resume:
        progress = _restore(run_dir / "last.pt", identity, model, optimizer, schedule)
        if process.is_main:
            print(f"resuming {run_dir} after epoch {progress.epoch} of {settings.epochs}")
    if process.is_main:
        write_settings(settings, run_dir / "settings.py")
    wrapped = _wrap(model, process)
    writer = (
        SummaryWriter(run_dir, purge_step=progress.step + 1) if process.is_main else nullcontext()
    )
    with writer:
        while progress.epoch < settings.epochs:
            _train_epoch(
                wrapped, dataset, batches, optimizer, schedule, settings, progress, process, writer
            )
            progress.epoch += 1
            if process.is_main:
                _finish_epoch(
                    model,
                    validate,
                    optimizer,
                    schedule,
                    settings,
                    identity,
                    run_dir,
                    progress,
                    writer,
                )
            if process.world_size > 1:
                torch.distributed.barrier()
    return progress


def cosine_factor(step: int, total: int, floor: float) -> float:
    """Learning rate of a step, as a share of the first: from 1 to ``floor`` at the last step."""
    done = min(step / max(1, total - 1), 1.0)
    return floor + (1 - floor) * (1 + math.cos(math.pi * done)) / 2


def make_loader(dataset: Dataset, batches: Any, workers: int, device: torch.device) -> DataLoader:
    """Loader of the batches of keys that the sampler ``batches`` gives."""
    return DataLoader(
        dataset,
        batch_sampler=batches,
        num_workers=workers,
        pin_memory=device.type == "cuda",
    )


def check_run(name: str, settings: Settings, resume: Path | None, process: Process) -> Path:
    """The run's folder, new or resumed; nothing is written yet.

    Raises:
        CheckpointError: the folder to resume has no checkpoint, or a new run's folder exists.
        SettingsError: the batch cannot be shared by the processes.
    """
    if settings.batch_size % process.world_size:
        raise SettingsError(
            f"BATCH_SIZE = {settings.batch_size} cannot be shared evenly by {process.world_size} "
            "processes; choose a multiple"
        )
    if resume is not None:
        if not has_checkpoint(resume):
            raise CheckpointError(
                f"cannot resume {resume}: there is no {resume / 'last.pt'}; --resume takes the "
                "folder of a run that has finished at least one epoch"
            )
        return resume
    run_dir = Path(settings.output_dir) / (settings.run_name or name)
    if process.is_main and run_dir.exists() and any(run_dir.iterdir()):
        going_on = f"go on with it by --resume {run_dir}, or " if has_checkpoint(run_dir) else ""
        raise CheckpointError(
            f"the run folder {run_dir} exists already; {going_on}choose another by --run-name "
            "NAME, or remove it"
        )
    return run_dir


def has_checkpoint(run_dir: Path) -> bool:
    """Whether a run can be resumed."""
    return (run_dir / "last.pt").is_file()


def network_arguments(settings: Settings, motion: bool) -> dict[str, Any]:
    """Those settings of config.py that the network's constructor takes, and ``motion``."""
    accepted = inspect.signature(model_class(settings.model)).parameters
    given = {name.lower(): value for name, value in settings.as_dict().items()}
    return {"motion": motion, **{name: given[name] for name in accepted if name in given}}


def augmentation_from(settings: Settings) -> Augmentation:
    """The training augmentation that config.py describes."""
    return Augmentation(
        **{name: getattr(settings, name) for name in Augmentation.__dataclass_fields__}
    )


def count_parameters(model: nn.Module) -> str:
    """For example "24.7 M parameters"."""
    return f"{sum(p.numel() for p in model.parameters()) / 1e6:.1f} M parameters"


def _wrap(model: nn.Module, process: Process) -> nn.Module:
    if process.world_size == 1:
        return model
    if process.device.type == "cuda":
        model = convert_sync_batchnorm(model)  # timm's: it keeps the activations in its own norms
        return DistributedDataParallel(model, device_ids=[process.device.index])
    return DistributedDataParallel(model)


def _train_epoch(
    model: nn.Module,
    dataset: Dataset,
    batches: EpochBatches,
    optimizer: Optimizer,
    schedule: LambdaLR,
    settings: Settings,
    progress: Progress,
    process: Process,
    writer: SummaryWriter,
) -> None:
    model.train()
    batches.set_epoch(progress.epoch)
    loader = make_loader(dataset, batches, settings.workers, process.device)
    bar = tqdm(
        loader,
        desc=f"epoch {progress.epoch + 1}/{settings.epochs}",
        disable=None if process.is_main else True,  # None: silent where it is not a terminal
        leave=False,
        dynamic_ncols=True,
    )
    mean = RunningMean()
    started, seen = time.perf_counter(), 0
    for batch in bar:
        loss = _train_step(model, batch, optimizer, settings, process.device)
        mean.add(loss)
        rate = schedule.get_last_lr()[0]
        schedule.step()
        progress.step += 1
        seen += settings.batch_size
        if process.is_main and (progress.step % LOG_INTERVAL == 0 or seen == settings.batch_size):
            values = {name: term.item() for name, term in loss.terms.items()}
            values["total"] = loss.total.item()
            speed = seen / (time.perf_counter() - started)
            for name, value in values.items():
                writer.add_scalar(f"loss/{name}", value, progress.step)
            writer.add_scalar("learning_rate", rate, progress.step)
            writer.add_scalar("images_per_second", speed, progress.step)
            bar.set_postfix(loss=f"{values['total']:.3f}", lr=f"{rate:.1e}")
    bar.close()
    if process.is_main:
        seconds = time.perf_counter() - started
        print(
            f"epoch {progress.epoch + 1}/{settings.epochs}  step {progress.step}  {mean}  "
            f"lr {rate:.1e}  {seen / seconds:.1f} images/s",
            end="  ",
            flush=True,
        )


def _train_step(
    model: nn.Module,
    batch: dict[str, Tensor],
    optimizer: Optimizer,
    settings: Settings,
    device: torch.device,
) -> Loss:
    batch = {name: tensor.to(device, non_blocking=True) for name, tensor in batch.items()}
    mask = batch.pop("mask")
    enabled = settings.mixed_precision and device.type == "cuda"
    with torch.autocast(device.type, torch.bfloat16, enabled=enabled):
        prediction = model(**batch)
    loss = segmentation_loss(prediction, mask, settings.sigma, settings.supervise_slot_maps)
    optimizer.zero_grad(set_to_none=True)
    loss.total.backward()
    optimizer.step()
    return loss


class RunningMean:
    """Mean of the loss and its terms over the steps of an epoch."""

    def __init__(self) -> None:
        self.sums: dict[str, Tensor] = {}
        self.count = 0

    def add(self, loss: Loss) -> None:
        """Take in one step; nothing is read from the GPU yet."""
        for name, value in {"loss": loss.total.detach(), **loss.terms}.items():
            self.sums[name] = self.sums.get(name, 0) + value
        self.count += 1

    def __str__(self) -> str:
        means = {name: float(value) / self.count for name, value in self.sums.items()}
        terms = ", ".join(f"{name} {value:.3f}" for name, value in means.items() if name != "loss")
        return f"loss {means['loss']:.3f} ({terms})"


def _finish_epoch(
    model: nn.Module,
    validate: Callable[[nn.Module], Validation],
    optimizer: Optimizer,
    schedule: LambdaLR,
    settings: Settings,
    identity: dict[str, Any],
    run_dir: Path,
    progress: Progress,
    writer: SummaryWriter,
) -> None:
    last = progress.epoch == settings.epochs
    is_best = False
    if last or progress.epoch % settings.validate_every == 0:
        model.eval()
        validation = validate(model)
        writer.add_scalar("validation/J", validation.score, progress.step)
        for name, value in validation.parts.items():
            writer.add_scalar(f"validation/{name}", value, progress.step)
        if validation.panel is not None:
            writer.add_image("panel", validation.panel, progress.step, dataformats="HWC")
        is_best = validation.score > progress.best
        progress.best = max(progress.best, validation.score)
        print(f"validation J {validation.score:.4f}{' (best)' if is_best else ''}", end="")
    print(flush=True)
    checkpoint = {
        **identity,
        "settings": settings.as_dict(),
        "weights": model.state_dict(),
        "progress": vars(progress),
    }
    if is_best:
        save_checkpoint(run_dir / "best.pt", checkpoint)
    training = {
        "optimizer": optimizer.state_dict(),
        "schedule": schedule.state_dict(),
        "random_state": torch.get_rng_state(),
    }
    save_checkpoint(run_dir / "last.pt", {**checkpoint, "training": training})


def _restore(
    path: Path,
    identity: dict[str, Any],
    model: nn.Module,
    optimizer: Optimizer,
    schedule: LambdaLR,
) -> Progress:
    checkpoint = load_checkpoint(path)
    check_same_network(checkpoint, identity["model"], identity["arguments"])
    model.load_state_dict(checkpoint["weights"])
    training = checkpoint["training"]
    optimizer.load_state_dict(training["optimizer"])
    schedule.load_state_dict(training["schedule"])
    torch.set_rng_state(training["random_state"])
    return Progress(**checkpoint["progress"])


def resumed_settings(settings: Settings, resume: Path | None, given: frozenset[str]) -> Settings:
    """The settings of the run that is resumed with those ``given`` as flags, or ``settings``.

    Raises:
        SettingsError: flags that would make it another run.
    """
    if resume is None:
        return settings
    fixed = sorted(given - RESUMABLE)
    if fixed:
        raise SettingsError(
            f"{', '.join(fixed)}: a resumed run keeps its settings; only "
            f"{', '.join(sorted(RESUMABLE))} can be given with --resume"
        )
    changes = {name.lower(): getattr(settings, name.lower()) for name in given}
    return read_settings_file(resume / "settings.py").replace(**changes)
