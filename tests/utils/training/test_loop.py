"""The training loop: schedule, files, log, and going on where it was interrupted."""

import inspect
import math
import os
import signal
from collections import deque
from dataclasses import replace
from functools import partial
from itertools import islice, pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import nn

import utils.training.loop
import utils.training.step
from datasets.layout import still_images, video_sequences
from datasets.problems import DatasetError
from datasets.samples import StillImages, VideoFrames
from datasets.sampling import EpochBatches
from models import MODELS, build_model
from models.gsanet.network import GSANet
from models.interface import STILLS, Needs, Network, Prediction
from models.losses import foreground, segmentation_loss
from utils.processes import Process
from utils.settings import read_settings_file
from utils.training.accounts import TrainingError, Validation
from utils.training.checkpoints import CheckpointError, build_from_checkpoint, load_checkpoint
from utils.training.dry_run import count_parameters, try_out
from utils.training.interrupts import Interrupted
from utils.training.loop import Training
from utils.training.samples import augmentation_from, network_arguments

CPU = Process(torch.device("cpu"))
IDENTITY = {"model": "toy", "arguments": {"motion": False}}


def fit(*arguments, resume=False, dry_run=False):
    training = Training(*arguments)
    if dry_run:
        try_out(training.trainer, training.dataset, training.batches, training.validate)
    else:
        training.run(resume)
    return training.accounts.progress


class Toy(Network):
    """Stands in for stage 1's network; notes in which mode it was called, and with what."""

    needs = Needs(STILLS)

    def __init__(self):
        super().__init__()
        self.layer = nn.Conv2d(3, 1, 3, padding=1)
        self.training_at_call = []
        self.seen = []

    def forward(self, image):
        self.training_at_call.append(self.training)
        self.seen.append(image.clone())
        return Prediction([self.layer(image)])

    def loss(self, batch):
        image = batch["image"]
        image = image / 255 if image.dtype == torch.uint8 else image
        return segmentation_loss(self(image), foreground(batch["labels"]))


@pytest.fixture
def stills(tiny_root, monkeypatch):
    """Six still images as samples; the toy is one of the networks."""
    monkeypatch.setitem(MODELS, "toy", Toy)
    return StillImages(still_images(tiny_root, "DUTS_train"), 32)


def video_run(settings, seed: int):
    """Stage 2's network, with random slots so that torch's random numbers matter, and its data."""
    torch.manual_seed(seed)
    arguments = network_arguments(settings.replace(guided_slots=False), motion=True)
    sequences = video_sequences(Path(settings.data_root), "DAVIS_train")
    dataset = VideoFrames([sequences], settings.image_size, 2, augmentation_from(settings), 5)
    return build_model("gsanet", **arguments), dataset, {"model": "gsanet", "arguments": arguments}


@pytest.mark.parametrize("sizes", [None, [32, 64]])
def test_a_compiled_run_takes_the_same_steps(tmp_path, tiny_settings, monkeypatch, sizes):
    """By torch.compile without code generation, whose rounding differs and which takes a minute."""
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="eager"))
    weights, graphs = [], []
    for name, compiled in (("plain", False), ("compiled", True)):
        torch._dynamo.reset()
        torch._dynamo.utils.counters.clear()
        settings = tiny_settings.replace(
            compile=compiled, epochs=1 if sizes is None else 2, image_sizes=sizes
        )
        model, dataset, identity = video_run(settings, seed=1)
        fit(model, dataset, scores(*[0.5] * 3), settings, identity, tmp_path / name, CPU)
        weights.append(load_checkpoint(tmp_path / name / "last.pt")["weights"])
        graphs.append(torch._dynamo.utils.counters["stats"]["unique_graphs"])
    assert same(*weights)
    assert graphs[0] == 0 and graphs[1] > 0


def scores(*values: float):
    """A validation that returns these scores one after the other."""
    remaining = iter(values)
    return lambda model, quick: Validation(next(remaining))


def log(run_dir: Path) -> EventAccumulator:
    """A run's TensorBoard events."""
    events = EventAccumulator(str(run_dir))
    events.Reload()
    return events


def scalars(run_dir: Path, name: str) -> dict[int, float]:
    """Logged values by step; every step is there once and in order."""
    found = log(run_dir).Scalars(name)
    steps = [event.step for event in found]
    assert steps == sorted(set(steps))
    return {event.step: event.value for event in found}


def same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def test_the_logged_learning_rate_is_the_one_of_the_step(tmp_path, stills, tiny_settings):
    settings = tiny_settings.replace(
        epochs=2, batch_size=2, learning_rate=1e-2, min_learning_rate=1e-3
    )
    fit(Toy(), stills, scores(0.1, 0.2), settings, IDENTITY, tmp_path, CPU)
    rates = scalars(tmp_path, "learning_rate")
    assert rates[1] == pytest.approx(1e-2, rel=1e-6)
    assert set(rates) == {1}


def test_training_reduces_the_loss_and_leaves_a_network_a_log_and_a_panel(tmp_path, tiny_settings):
    settings = tiny_settings.replace(epochs=12, validate_every=6, run_name="\udcff")
    torch.manual_seed(0)
    arguments = network_arguments(settings, motion=True)
    model = build_model("gsanet", **arguments)
    sequences = video_sequences(Path(settings.data_root), "DAVIS_train")
    panel = np.random.default_rng(0).integers(0, 256, (20, 30, 3), dtype=np.uint8)
    results = iter(
        [Validation(0.5, {"J bear\udcff": 0.25}, {"panel\udcff": panel}), Validation(0.4)]
    )
    progress = fit(
        model,
        VideoFrames([sequences], settings.image_size, 2),
        lambda *_: next(results),
        settings,
        {"model": "gsanet", "arguments": arguments},
        tmp_path,
        CPU,
    )
    assert (progress.epoch, progress.step, progress.best) == (12, 24, 0.5)

    total = scalars(tmp_path, "loss/total")
    assert total.keys() == {1, 10, 20}
    parts = {name: scalars(tmp_path, f"loss/{name}") for name in ("iou", "bce", "slot_maps")}
    for step, value in total.items():
        assert value == pytest.approx(sum(part[step] for part in parts.values()), rel=1e-5)
    epochs = {name: scalars(tmp_path, f"epoch/{name}") for name in ("total", "bce")}
    assert epochs["total"].keys() == set(range(2, 25, 2))
    assert max(epochs["total"][step] for step in (20, 22, 24)) < 0.9 * total[1]
    assert max(epochs["bce"][step] for step in (20, 22, 24)) < 0.6 * parts["bce"][1]
    for name in ("images_per_second", "gradient_norm", "peak_memory_gib"):
        assert all(value > 0 for value in scalars(tmp_path, name).values())
    waiting = scalars(tmp_path, "share_of_time_waiting_for_data").values()
    assert all(0 < share < 1 for share in waiting)
    assert scalars(tmp_path, "learning_rate")[20] < 2e-4
    assert scalars(tmp_path, "validation/J") == pytest.approx({12: 0.5, 24: 0.4})
    assert scalars(tmp_path, r"validation/J bear\udcff") == pytest.approx({12: 0.25})
    (image,) = log(tmp_path).Images(r"panel\udcff")
    assert (image.step, image.height, image.width) == (12, 20, 30)

    last = load_checkpoint(tmp_path / "last.pt")
    assert last["settings"] == settings.as_dict()
    assert last["progress"] == vars(progress)
    rebuilt = build_from_checkpoint(last).eval()
    inputs = torch.rand(4, 1, 3, 64, 64)
    inputs = [*inputs[:2], *inputs[2:].unsqueeze(1)]
    with torch.no_grad():
        assert torch.equal(rebuilt(*inputs).logits[0], model.eval()(*inputs).logits[0])


def test_best_is_kept_by_score_and_last_is_the_last(tmp_path, stills, tiny_settings):
    model, weights = Toy(), []
    results = iter([0.5, 0.9, 0.9, 0.2])

    def validate(validated, quick):
        weights.append({name: w.clone() for name, w in validated.state_dict().items()})
        return Validation(next(results))

    progress = fit(
        model, stills, validate, tiny_settings.replace(epochs=4), IDENTITY, tmp_path, CPU
    )
    assert progress.best == 0.9
    best, last = load_checkpoint(tmp_path / "best.pt"), load_checkpoint(tmp_path / "last.pt")
    assert same(best["weights"], weights[1])
    kept = {name: best["progress"][name] for name in ("epoch", "batch", "step", "best")}
    assert kept == {"epoch": 2, "batch": 0, "step": 2, "best": 0.9}
    assert same(last["weights"], weights[3])
    assert last["progress"]["epoch"] == 4
    assert not same(weights[1], weights[3])
    names = {file.name for file in tmp_path.glob("*.pt")}
    assert names == {"best.pt", "last.pt"}


def test_a_score_of_zero_still_leaves_a_best_checkpoint(tmp_path, stills, tiny_settings):
    fit(Toy(), stills, scores(0.0), tiny_settings, IDENTITY, tmp_path, CPU)
    assert (tmp_path / "best.pt").is_file()


def test_it_validates_every_n_epochs_and_after_the_last_in_evaluation_mode(
    tmp_path, stills, tiny_settings
):
    model, modes = Toy(), []

    def validate(validated, quick):
        assert validated is model and not quick
        modes.append((validated.training, len(model.training_at_call)))
        return Validation(0.5)

    settings = tiny_settings.replace(epochs=5, validate_every=2, batch_size=3)
    fit(model, stills, validate, settings, IDENTITY, tmp_path, CPU)
    assert modes == [(False, 4), (False, 8), (False, 10)]
    assert model.training_at_call == [True] * 10


@pytest.mark.parametrize("sizes", [None, [32, 64, 96]])
def test_samples_reach_the_network_in_the_samplers_order(tmp_path, stills, tiny_settings, sizes):
    model = Toy()
    settings = tiny_settings.replace(epochs=2, batch_size=3, seed=7, image_sizes=sizes)
    fit(model, stills, scores(0.1, 0.2), settings, IDENTITY, tmp_path, CPU)
    batches = EpochBatches([6], 3, seed=7, sizes=sizes)
    expected = []
    for epoch in range(2):
        parts = [part for batch in batches.epoch(epoch) for part in batch]
        expected += [torch.stack([stills[key]["image"] for key in part]) / 255 for part in parts]
    assert len(model.seen) == len(expected) == 4
    assert all(torch.equal(a, b) for a, b in zip(model.seen, expected))
    assert {tuple(seen.shape[-2:]) for seen in model.seen} <= {(s, s) for s in sizes or [32]}


def test_one_loader_serves_all_epochs_and_works_ahead_of_validation(
    tmp_path, stills, tiny_settings, monkeypatch
):
    made, loaded = [], []

    class Noted(StillImages):
        def __getitem__(self, key):
            loaded.append(key[0])
            return super().__getitem__(key)

    def counted(dataset, batches, workers, device):
        assert workers == 0  # of the test's settings; here its work is taken two batches ahead
        made.append(dataset)
        return ahead(make_loader(dataset, batches, workers, device), 2)

    def ahead(loader, count):
        waiting = deque(islice(loader := iter(loader), count))
        while waiting:
            waiting.extend(islice(loader, 1))
            yield waiting.popleft()

    def validate(network, quick):
        validated.append(max(loaded))
        return Validation(0.5)

    validated = []
    make_loader = utils.training.loop.make_loader
    monkeypatch.setattr(utils.training.loop, "make_loader", counted)
    dataset = Noted(stills.frames, stills.size)
    settings = tiny_settings.replace(epochs=3, batch_size=2)
    progress = fit(Toy(), dataset, validate, settings, IDENTITY, tmp_path, CPU)
    assert (progress.epoch, progress.step) == (3, 9)
    assert len(made) == 1 and len(loaded) == 18
    assert validated == [1, 2, 2]  # the next epoch's samples are there when one is validated


def test_an_epoch_says_for_how_much_of_its_time_it_waited_for_data(
    tmp_path, stills, tiny_settings, monkeypatch, capsys
):
    clock = [0.0]
    monkeypatch.setattr(utils.training.loop.time, "perf_counter", lambda: clock[0])

    class Slow(StillImages):
        def __getitem__(self, key):
            clock[0] += seconds
            return super().__getitem__(key)

    class Computing(Toy):
        def forward(self, image):
            clock[0] += 1
            return super().forward(image)

    settings = tiny_settings.replace(batch_size=2)
    for seconds in (0.05, 0.5):
        dataset, folder = Slow(stills.frames, stills.size), tmp_path / str(seconds)
        fit(Computing(), dataset, scores(0.5), settings, IDENTITY, folder, CPU)
    few, many = [line for line in capsys.readouterr().out.splitlines() if "images/s" in line]
    assert "1.8 images/s (9% waiting for data with WORKERS = 0)  validation" in few
    assert "1.0 images/s (50% waiting for data with WORKERS = 0)  validation" in many


def test_resuming_keeps_the_best_score(tmp_path, stills, tiny_settings, capsys):
    settings = tiny_settings.replace(epochs=3)
    with pytest.raises(StopIteration):
        fit(Toy(), stills, scores(0.8), settings, IDENTITY, tmp_path, CPU)
    best = (tmp_path / "best.pt").read_bytes()
    progress = fit(Toy(), stills, scores(0.7, 0.6), settings, IDENTITY, tmp_path, CPU, resume=True)
    assert progress.best == 0.8
    assert (tmp_path / "best.pt").read_bytes() == best
    assert (
        f"resuming {tmp_path} after epoch 1 of 3 and 1 of 1 steps of the next"
        in capsys.readouterr().out
    )


def spoil(checkpoint: dict, *where: object, value: object) -> dict:
    """The checkpoint with one value, of those in the dictionaries in it, replaced or left out."""
    inside = checkpoint
    for key in where[:-1]:
        inside = inside[key]
    inside[where[-1]] = value
    return checkpoint


@pytest.mark.parametrize(
    ("where", "value"),
    [
        (("training",), {}),
        (("training", "optimizer"), "none"),
        (("training", "optimizer"), {"state": 3}),
        (("training", "optimizer", "param_groups"), [{"params": [0]}]),
        (("progress",), {"epochs": 1}),
        (("progress", "epoch"), "one"),
    ],
)
def test_a_training_state_of_another_kind_is_refused_and_nothing_is_written(
    tmp_path, stills, tiny_settings, where, value
):
    with pytest.raises(StopIteration):
        fit(Toy(), stills, scores(), tiny_settings, IDENTITY, tmp_path, CPU)
    torch.save(spoil(load_checkpoint(tmp_path / "last.pt"), *where, value=value), tmp_path / "x")
    (tmp_path / "x").replace(tmp_path / "last.pt")
    files = {path: path.read_bytes() for path in tmp_path.iterdir()}
    other = tiny_settings.replace(learning_rate=0.5)
    with pytest.raises(CheckpointError, match=r"last\.pt cannot be resumed: the state of its"):
        fit(Toy(), stills, scores(0.5), other, IDENTITY, tmp_path, CPU, resume=True)
    assert {path: path.read_bytes() for path in tmp_path.iterdir()} == files


def test_training_does_not_go_on_with_parameters_in_another_order(tmp_path, stills, tiny_settings):
    """The optimizer's state has no names."""
    with pytest.raises(StopIteration):
        fit(Normed(), stills, scores(), tiny_settings, IDENTITY, tmp_path, CPU)
    checkpoint = load_checkpoint(tmp_path / "last.pt")
    checkpoint["weights"] = dict(reversed(checkpoint["weights"].items()))
    torch.save(checkpoint, tmp_path / "last.pt")
    with pytest.raises(CheckpointError, match="in another order than the network's"):
        fit(Normed(), stills, scores(0.5), tiny_settings, IDENTITY, tmp_path, CPU, resume=True)


def test_sigma_and_the_supervision_of_slot_maps_are_taken_from_the_settings(
    tmp_path, tiny_settings
):
    terms = []
    for i, changes in enumerate(({"sigma": 1.0}, {"sigma": 2.0, "supervise_slot_maps": False})):
        settings = tiny_settings.replace(**changes)
        model, dataset, identity = video_run(settings, seed=1)
        fit(model, dataset, scores(0.5), settings, identity, tmp_path / str(i), CPU)
        tags = log(tmp_path / str(i)).Tags()["scalars"]
        terms.append((scalars(tmp_path / str(i), "loss/bce")[1], "loss/slot_maps" in tags))
    assert terms[1][0] == pytest.approx(2 * terms[0][0], rel=1e-5)
    assert [maps for _, maps in terms] == [True, False]


def test_a_run_writes_the_settings_it_uses_into_its_folder(tmp_path, stills, tiny_settings):
    settings = tiny_settings.replace(epochs=1, sigma=2.5)
    fit(Toy(), stills, scores(0.5), settings, IDENTITY, tmp_path / "run", CPU)
    assert read_settings_file(tmp_path / "run/settings.py", settings.defaults()) == settings


def test_every_argument_of_the_network_comes_from_the_settings(tiny_settings):
    settings = tiny_settings.replace(backbone="resnet10t", channels=24, reference_gradient=True)
    arguments = network_arguments(settings, motion=True)
    assert arguments.keys() == inspect.signature(GSANet).parameters.keys()
    assert arguments.pop("motion") is True
    assert arguments == {name: getattr(settings, name) for name in arguments}
    assert network_arguments(settings, motion=False)["motion"] is False


def test_every_strength_of_the_augmentation_comes_from_the_settings(tiny_settings):
    values = {
        "flip_probability": 0.1,
        "crop_scale": 0.9,
        "rotation_probability": 0.3,
        "rotation_degrees": 4.0,
        "brightness": 0.2,
        "contrast": 0.4,
        "saturation": 0.6,
        "sharpness": 0.3,
        "recolour_flow": False,
        "flow_turn": 8.0,
    }
    assert vars(augmentation_from(tiny_settings.replace(**values))) == values


def test_parameters_are_counted_in_millions():
    assert count_parameters(nn.Linear(1200, 1000)) == "1.2 M parameters"


# Gradients and weights


class Normed(Toy):
    """With statistics that a forward pass of bad numbers spoils."""

    def __init__(self):
        super().__init__()
        self.norm = nn.BatchNorm2d(3)

    def forward(self, image):
        return super().forward(self.norm(image))


class Spoilt(StillImages):
    """Still images of which some are not numbers."""

    def __init__(self, stills, bad):
        super().__init__(stills.frames, stills.size, seed=stills.seed)
        self.bad = bad

    def __getitem__(self, key):
        sample = super().__getitem__(key)
        if key in self.bad:
            sample["image"] = sample["image"] / 255
            sample["image"][0, 3, 4] = math.nan
        return sample


def keys_of(settings, epoch: int) -> list[tuple[int, int]]:
    """The only sample of each step, for a batch size of one."""
    batches = EpochBatches([6], 1, settings.seed)
    return [step[0][0] for step in batches.epoch(epoch)]


def test_steps_with_bad_numbers_are_skipped_and_leave_no_trace_but_in_the_log(
    tmp_path, stills, tiny_settings
):
    settings = tiny_settings.replace(batch_size=1, max_bad_steps=2)
    order = keys_of(settings, 0)
    spoilt = Spoilt(stills, {order[1], order[2], order[4]})
    states = []

    class Watched(Normed):
        def forward(self, image):
            states.append({n: v.clone() for n, v in self.state_dict().items()})
            return super().forward(image)

    torch.manual_seed(0)
    model = Watched()
    progress = fit(model, spoilt, scores(0.5), settings, IDENTITY, tmp_path, CPU)
    assert (progress.step, progress.bad_steps, progress.bad_in_row) == (6, 3, 0)
    # What every step began with: nothing has changed after a bad one, all of it after a good one.
    for number, (before, after) in enumerate(pairwise(states)):
        assert same(before, after) == (number in (1, 2, 4))
    assert all(torch.isfinite(value).all() for value in model.state_dict().values())
    lines = (tmp_path / "log.txt").read_text().splitlines()
    bad = [line for line in lines if "skipped" in line and "Samples" in line]
    assert len(bad) == 3
    for line, step in zip(bad, (2, 3, 5)):
        name = stills.frames[order[step - 1][1]].name
        assert line.startswith(f"epoch 1, step {step}: the loss is nan; step skipped")
        assert line.endswith(f"Samples: {name}")
    assert "3 steps skipped" in lines[-1]
    assert math.isfinite(scalars(tmp_path, "epoch/total")[6])


def test_too_many_bad_steps_in_a_row_stop_the_run_with_a_good_checkpoint(
    tmp_path, stills, tiny_settings
):
    settings = tiny_settings.replace(
        batch_size=1, max_bad_steps=2, epochs=2, checkpoint_minutes=1e-6
    )
    order = keys_of(settings, 0)
    spoilt = Spoilt(stills, set(order[3:]) | set(keys_of(settings, 1)))
    with pytest.raises(TrainingError, match=r"3 steps in a row .*MAX_BAD_STEPS = 2") as caught:
        fit(Normed(), spoilt, scores(), settings, IDENTITY, tmp_path, CPU)
    assert str(tmp_path / "log.txt") in str(caught.value)
    last = load_checkpoint(tmp_path / "last.pt")
    assert last["progress"]["batch"] == 3
    assert all(torch.isfinite(value).all() for value in last["weights"].values())


def test_weights_that_have_blown_up_do_not_take_the_place_of_those_before(
    tmp_path, stills, tiny_settings
):
    """Neither at an epoch's end nor in validation; the older file is of a step before."""
    settings = tiny_settings.replace(
        batch_size=1, max_bad_steps=5, epochs=3, checkpoint_minutes=1e-6
    )
    bad = [*keys_of(settings, 0)[4:], *keys_of(settings, 1)]
    with pytest.raises(TrainingError, match=r"last\.pt is of step 4\."):
        fit(Normed(), Spoilt(stills, set(bad)), scores(0.5), settings, IDENTITY, tmp_path, CPU)
    assert load_checkpoint(tmp_path / "last.pt")["progress"]["step"] == 4


def test_the_best_weights_are_kept_also_after_an_epoch_that_ends_with_bad_numbers(
    tmp_path, stills, tiny_settings
):
    settings = tiny_settings.replace(batch_size=1, max_bad_steps=2, epochs=2)
    spoilt = Spoilt(stills, set(keys_of(settings, 0)[5:]))
    progress = fit(Normed(), spoilt, scores(0.8, 0.5), settings, IDENTITY, tmp_path, CPU)
    assert progress.best == 0.8
    assert load_checkpoint(tmp_path / "best.pt")["progress"]["epoch"] == 1
    assert load_checkpoint(tmp_path / "last.pt")["progress"]["epoch"] == 2


def test_numbers_that_are_bad_from_the_first_step_leave_nothing_to_go_on_from(
    tmp_path, stills, tiny_settings
):
    settings = tiny_settings.replace(batch_size=1, max_bad_steps=0)
    spoilt = Spoilt(stills, set(keys_of(settings, 0)))
    with pytest.raises(TrainingError, match="nothing was saved before"):
        fit(Normed(), spoilt, scores(0.5), settings, IDENTITY, tmp_path, CPU)
    assert not (tmp_path / "last.pt").exists()


def test_weights_that_are_not_finite_are_never_saved(tmp_path, stills, tiny_settings):
    """One step with this rate, whose own numbers are good, takes them to infinity."""
    settings = tiny_settings.replace(learning_rate=1e38, min_learning_rate=1e38, epochs=3)
    with pytest.raises(TrainingError, match=r"weights are not finite .* lower LEARNING_RATE"):
        fit(Toy(), stills, scores(), settings, IDENTITY, tmp_path, CPU)  # before any validation
    assert not list(tmp_path.glob("*.pt"))
    with pytest.raises(TrainingError, match="of the dry run's steps is not finite"):
        fit(Toy(), stills, scores(0.5), settings, IDENTITY, tmp_path, CPU, dry_run=True)


def test_a_run_without_a_good_step_in_its_last_epoch_is_an_error(tmp_path, stills, tiny_settings):
    settings = tiny_settings.replace(batch_size=1, epochs=2, max_bad_steps=50)
    for number, epochs in enumerate(((0, 1), (1,))):
        bad = {key for epoch in epochs for key in keys_of(settings, epoch)}
        folder = tmp_path / str(number)
        with pytest.raises(TrainingError, match="no step of epoch 2, the last, had finite numbers"):
            fit(Normed(), Spoilt(stills, bad), scores(0.5), settings, IDENTITY, folder, CPU)
    assert load_checkpoint(folder / "last.pt")["progress"]["epoch"] == 1


def test_a_run_that_ends_with_bad_numbers_is_saved_and_can_be_gone_on_from(
    tmp_path, stills, tiny_settings
):
    settings = tiny_settings.replace(batch_size=1, max_bad_steps=2)
    spoilt = Spoilt(stills, set(keys_of(settings, 0)[4:]))
    model = Normed()
    fit(model, spoilt, scores(0.5), settings, IDENTITY, tmp_path, CPU)
    last = load_checkpoint(tmp_path / "last.pt")
    assert (last["progress"]["epoch"], last["progress"]["bad_in_row"]) == (1, 2)
    assert same(last["weights"], model.state_dict())
    # The two do not count against what comes after.
    longer = settings.replace(epochs=2)
    spoilt = Spoilt(stills, set(keys_of(settings, 1)[:2]))
    progress = fit(Normed(), spoilt, scores(0.6), longer, IDENTITY, tmp_path, CPU, resume=True)
    assert (progress.step, progress.bad_steps, progress.bad_in_row) == (12, 4, 0)


def test_a_batch_in_parts_gives_the_gradient_of_the_whole(tmp_path, stills, tiny_settings):
    results = []
    for parts in (1, 3):
        torch.manual_seed(0)
        model = Toy()
        settings = tiny_settings.replace(batch_size=6, epochs=4, accumulation_steps=parts)
        fit(model, stills, scores(*[0.5] * 4), settings, IDENTITY, tmp_path / str(parts), CPU)
        results.append((model, scalars(tmp_path / str(parts), "epoch/total")))
        assert {len(batch) for batch in model.seen} == {6 // parts}
    (whole, losses), (parted, losses_in_parts) = results
    for a, b in zip(whole.parameters(), parted.parameters()):
        torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-5)
    assert losses_in_parts == pytest.approx(losses, rel=1e-5)


# Files that break


def test_an_unreadable_sample_stops_the_run(tmp_path, stills, tiny_settings):
    frames = [*stills.frames]
    frames[2] = replace(frames[2], image=tmp_path / "gone.jpg")
    broken = StillImages(frames, stills.size)
    with pytest.raises(DatasetError, match=r"gone\.jpg: no such file"):
        fit(Toy(), broken, scores(0.5), tiny_settings, IDENTITY, tmp_path / "run", CPU)


# Stopping and going on


class Breaking(VideoFrames):
    """Video samples during one of which something happens."""

    def __init__(self, dataset, count, happening):
        super().__init__([[]], dataset.size)
        self.__dict__.update(dataset.__dict__)
        self.count, self.happening = count, happening

    def __getitem__(self, key):
        self.count -= 1
        if self.count == 0:
            self.happening()
        return super().__getitem__(key)


@pytest.fixture(scope="module")
def straight(tmp_path_factory, tiny_settings):
    """A run of three epochs of five steps that nothing disturbs."""
    folder = tmp_path_factory.mktemp("straight")
    settings = tiny_settings.replace(
        epochs=3, batch_size=2, image_sizes=[32, 64], validate_every=2, checkpoint_minutes=1e-6
    )
    model, dataset, identity = video_run(settings, seed=1)
    fit(model, dataset, scores(0.5, 0.7), settings, identity, folder, CPU)
    return settings, folder


def assert_same_end(folder: Path, straight: Path) -> None:
    for name in ("last.pt", "best.pt"):
        first, second = (load_checkpoint(run / name) for run in (straight, folder))
        assert same(first["weights"], second["weights"])
        assert first["progress"] == second["progress"]
    first, second = (load_checkpoint(run / "last.pt")["training"] for run in (straight, folder))
    moments, others = (one["optimizer"]["state"] for one in (first, second))
    assert all(same(moment, others[index]) for index, moment in moments.items())
    state, other = (training["optimizer"]["state"] for training in (first, second))
    assert all(same(state[index], other[index]) for index in state)


def go_on(settings, folder: Path) -> None:
    """Resume with a network of another seed: whatever is not restored would show."""
    model, dataset, identity = video_run(settings, seed=2)
    validations = 2 - (load_checkpoint(folder / "last.pt")["progress"]["epoch"] >= 2)
    values = (0.5, 0.7)[-validations:]
    fit(model, dataset, scores(*values), settings, identity, folder, CPU, resume=True)


@pytest.mark.parametrize("samples", [8, 21])
def test_a_run_that_breaks_inside_an_epoch_goes_on_from_there(tmp_path, straight, samples):
    settings, folder = straight
    model, dataset, identity = video_run(settings, seed=1)

    def fail():
        raise OSError("the machine is gone")

    broken = Breaking(dataset, samples, fail)
    with pytest.raises(OSError, match="the machine is gone"):
        fit(model, broken, scores(0.5, 0.7), settings, identity, tmp_path, CPU)
    kept = load_checkpoint(tmp_path / "last.pt")["progress"]
    assert kept["step"] == (samples - 1) // 2
    go_on(settings, tmp_path)
    assert_same_end(tmp_path, folder)


@pytest.mark.parametrize(("signum", "code"), [(signal.SIGINT, 0), (signal.SIGTERM, 143)])
def test_a_signal_lets_the_step_finish_and_saves(tmp_path, straight, capsys, signum, code):
    settings, folder = straight
    model, dataset, identity = video_run(settings, seed=1)
    before = signal.getsignal(signum)
    told = Breaking(dataset, 13, lambda: os.kill(os.getpid(), signum))
    rarely = settings.replace(checkpoint_minutes=1e6)
    with pytest.raises(Interrupted) as stop:
        fit(model, told, scores(0.5, 0.7), rarely, identity, tmp_path, CPU)
    assert stop.value.exit_code == code and stop.value.together
    assert signal.getsignal(signum) is before
    # The signal came with the first sample of the seventh step.
    kept = load_checkpoint(tmp_path / "last.pt")["progress"]
    assert (kept["epoch"], kept["batch"], kept["step"]) == (1, 2, 7)
    assert f"stopped after step 7; continue by --resume {tmp_path}" in capsys.readouterr().out
    go_on(settings, tmp_path)
    assert_same_end(tmp_path, folder)


def test_after_a_signal_within_a_step_no_other_step_begins(tmp_path, straight):
    settings, folder = straight
    model, dataset, identity = video_run(settings, seed=1)
    steps = []

    def at_the_seventh(*_):
        steps.append(1)
        if len(steps) == 7:
            os.kill(os.getpid(), signal.SIGTERM)

    hook = model.register_forward_pre_hook(at_the_seventh)
    rarely = settings.replace(checkpoint_minutes=1e6)
    with pytest.raises(Interrupted):
        fit(model, dataset, scores(0.5, 0.7), rarely, identity, tmp_path, CPU)
    hook.remove()
    assert len(steps) == load_checkpoint(tmp_path / "last.pt")["progress"]["step"] == 7
    go_on(settings, tmp_path)
    assert_same_end(tmp_path, folder)


def test_loaders_that_a_signal_has_ended_lose_nothing(tmp_path, straight):
    settings, folder = straight
    model, dataset, identity = video_run(settings, seed=1)

    def ended():
        os.kill(os.getpid(), signal.SIGTERM)
        raise RuntimeError("DataLoader worker (pid 1) exited unexpectedly")

    rarely = settings.replace(checkpoint_minutes=1e6)
    with pytest.raises(Interrupted) as stop:
        broken = Breaking(dataset, 13, ended)
        fit(model, broken, scores(0.5, 0.7), rarely, identity, tmp_path, CPU)
    assert stop.value.exit_code == 143 and not stop.value.together
    assert load_checkpoint(tmp_path / "last.pt")["progress"]["step"] == 6
    go_on(settings, tmp_path)
    assert_same_end(tmp_path, folder)


def test_a_second_ctrl_c_stops_at_once(tmp_path, tiny_settings):
    model, dataset, identity = video_run(tiny_settings, seed=1)

    def twice():
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGINT)

    with pytest.raises(KeyboardInterrupt):
        fit(model, Breaking(dataset, 3, twice), scores(0.5), tiny_settings, identity, tmp_path, CPU)
    assert not (tmp_path / "last.pt").exists()


def test_a_signal_during_validation_lets_it_finish_and_loses_nothing(tmp_path, straight):
    settings, folder = straight
    model, dataset, identity = video_run(settings, seed=1)

    def validate(network, quick):
        # Killed at this moment, the run would continue from here.
        kept = load_checkpoint(tmp_path / "last.pt")["progress"]
        assert (kept["epoch"], kept["batch"], kept["step"]) == (1, 5, 10)
        os.kill(os.getpid(), signal.SIGTERM)
        return Validation(0.5)

    rarely = settings.replace(checkpoint_minutes=1e6)
    with pytest.raises(Interrupted):
        fit(model, dataset, validate, rarely, identity, tmp_path, CPU)
    kept = load_checkpoint(tmp_path / "last.pt")["progress"]
    assert (kept["epoch"], kept["batch"], kept["best"]) == (2, 0, 0.5)
    go_on(settings, tmp_path)
    assert_same_end(tmp_path, folder)


def test_a_signal_that_ends_the_loaders_of_a_validation_stops_in_order(tmp_path, straight, capsys):
    settings, folder = straight
    model, dataset, identity = video_run(settings, seed=1)

    def validate(network, quick):
        os.kill(os.getpid(), signal.SIGTERM)
        raise RuntimeError("DataLoader worker (pid(s) 1) exited unexpectedly")

    with pytest.raises(Interrupted) as stop:
        fit(model, dataset, validate, settings, identity, tmp_path, CPU)
    assert stop.value.exit_code == 143 and not stop.value.together
    assert "stopped after step 10; continue by --resume" in capsys.readouterr().out
    go_on(settings, tmp_path)
    assert_same_end(tmp_path, folder)


def test_an_error_of_the_validation_is_raised(tmp_path, straight):
    settings, _ = straight
    model, dataset, identity = video_run(settings, seed=1)

    def validate(network, quick):
        raise RuntimeError("broken")

    with pytest.raises(RuntimeError, match="broken"):
        fit(model, dataset, validate, settings, identity, tmp_path, CPU)


def test_losses_are_the_same_whatever_the_number_of_loader_processes(tmp_path, tiny_settings):
    ends = []
    for workers in (0, 2):
        settings = tiny_settings.replace(epochs=2, workers=workers)
        model, dataset, identity = video_run(settings, seed=1)
        folder = tmp_path / str(workers)
        fit(model, dataset, scores(0.5, 0.6), settings, identity, folder, CPU)
        ends.append((scalars(folder, "epoch/total"), load_checkpoint(folder / "last.pt")))
    assert ends[0][0] == ends[1][0]
    assert same(ends[0][1]["weights"], ends[1][1]["weights"])


@pytest.mark.parametrize(
    "changes",
    [{}, {"checkpoint_minutes": 1e-6}, {"image_sizes": [64, 96, 32]}],
)
def test_a_dry_run_says_what_a_run_would_take_and_writes_nothing(
    tmp_path, stills, tiny_settings, capsys, changes
):
    asked = []

    def validate(network, quick):
        asked.append(quick)
        return Validation(0.5, frames=2, of=300)

    settings = tiny_settings.replace(epochs=20, batch_size=2, validate_every=5, **changes)
    folder = tmp_path / "run"
    model = Toy()
    fit(model, stills, validate, settings, IDENTITY, folder, CPU, dry_run=True)
    printed = capsys.readouterr().out
    assert {seen.shape[-1] for seen in model.seen} == {max(changes.get("image_sizes", [32]))}
    assert asked == [True]
    assert "0.0 M parameters" in printed and "gradient norm" in printed
    assert "peak memory" in printed and "images/s" in printed
    assert "20 epochs of 3 steps and 4 validations of 300 frames, about 0:0" in printed
    assert list(tmp_path.iterdir()) == []
