"""The training loop: schedule, files, log, and going on where it was interrupted."""

import inspect
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import nn

import utils.training
from datasets.layout import still_images, video_sequences
from datasets.samples import StillImages, VideoFrames
from models import build_model
from models.backbones import build_backbone
from models.gsanet import GSANet
from models.prediction import Prediction
from utils.checkpoints import CheckpointError, build_from_checkpoint, load_checkpoint
from utils.distributed import Process
from utils.settings import SettingsError, read_settings_file, write_settings
from utils.training import (
    Validation,
    augmentation_from,
    check_run,
    cosine_factor,
    count_parameters,
    fit,
    network_arguments,
    resumed_settings,
)

CPU = Process(torch.device("cpu"))
IDENTITY = {"model": "toy", "arguments": {}}


class Toy(nn.Module):
    """Stands in for stage 1's network; notes in which mode it was called, and with what."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Conv2d(3, 1, 3, padding=1)
        self.training_at_call = []
        self.seen = []

    def forward(self, image):
        self.training_at_call.append(self.training)
        self.seen.append(image.clone())
        return Prediction([self.layer(image)])


@pytest.fixture
def stills(tiny_root):
    """Six still images as samples."""
    return StillImages(still_images(tiny_root, "DUTS_train"), 32)


def video_run(settings, seed: int):
    """Stage 2's network, with random slots so that torch's random numbers matter, and its data."""
    torch.manual_seed(seed)
    arguments = network_arguments(settings.replace(guided_slots=False), motion=True)
    sequences = video_sequences(Path(settings.data_root), "DAVIS_train")
    dataset = VideoFrames([sequences], settings.image_size, 2, augmentation_from(settings), 5)
    return build_model("gsanet", **arguments), dataset, {"model": "gsanet", "arguments": arguments}


def scores(*values: float):
    """A validation that returns these scores one after the other."""
    remaining = iter(values)
    return lambda model: Validation(next(remaining))


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


def test_the_cosine_goes_from_1_to_the_floor():
    assert cosine_factor(0, 101, 0.1) == 1
    assert cosine_factor(100, 101, 0.1) == pytest.approx(0.1)
    assert cosine_factor(50, 101, 0.1) == pytest.approx(0.55)
    assert cosine_factor(25, 101, 0.2) == pytest.approx(0.2 + 0.8 * (1 + math.sqrt(0.5)) / 2)
    values = [cosine_factor(step, 101, 0.1) for step in range(101)]
    assert values == sorted(values, reverse=True)
    assert cosine_factor(500, 101, 0.1) == pytest.approx(0.1)
    assert cosine_factor(0, 1, 0.1) == 1


def test_adam_and_the_schedule_follow_the_settings(tmp_path, stills, tiny_settings, monkeypatch):
    used = []

    class Recorder(torch.optim.Adam):
        def step(self, closure=None):
            used.append({**self.param_groups[0]})
            return super().step(closure)

    monkeypatch.setattr(utils.training, "Adam", Recorder)
    settings = tiny_settings.replace(
        epochs=3,
        batch_size=2,
        learning_rate=1e-2,
        min_learning_rate=1e-3,
        adam_beta1=0.8,
        adam_beta2=0.99,
        adam_epsilon=1e-6,
    )
    progress = fit(Toy(), stills, scores(0.1, 0.2, 0.3), settings, IDENTITY, tmp_path, CPU)
    assert progress.step == len(used) == 9
    expected = [1e-3 + 9e-3 * (1 + math.cos(math.pi * step / 8)) / 2 for step in range(9)]
    assert [group["lr"] for group in used] == pytest.approx(expected)
    assert {(group["betas"], group["eps"]) for group in used} == {((0.8, 0.99), 1e-6)}
    assert used[0]["weight_decay"] == 0


def test_the_logged_learning_rate_is_the_one_of_the_step(tmp_path, stills, tiny_settings):
    settings = tiny_settings.replace(
        epochs=2, batch_size=2, learning_rate=1e-2, min_learning_rate=1e-3
    )
    fit(Toy(), stills, scores(0.1, 0.2), settings, IDENTITY, tmp_path, CPU)
    rates = scalars(tmp_path, "learning_rate")
    assert rates[1] == pytest.approx(1e-2, rel=1e-6)


def test_training_reduces_the_loss_and_leaves_a_network_a_log_and_a_panel(tmp_path, tiny_settings):
    settings = tiny_settings.replace(epochs=12, validate_every=6)
    torch.manual_seed(0)
    arguments = network_arguments(settings, motion=True)
    model = build_model("gsanet", **arguments)
    sequences = video_sequences(Path(settings.data_root), "DAVIS_train")
    panel = np.random.default_rng(0).integers(0, 256, (20, 30, 3), dtype=np.uint8)
    results = iter([Validation(0.5, {"J bear": 0.25}, panel), Validation(0.4)])
    progress = fit(
        model,
        VideoFrames([sequences], settings.image_size, 2),
        lambda _: next(results),
        settings,
        {"model": "gsanet", "arguments": arguments},
        tmp_path,
        CPU,
    )
    assert vars(progress) == {"epoch": 12, "step": 24, "best": 0.5}

    total = scalars(tmp_path, "loss/total")
    assert {1, 3, 10, 20, 23} <= total.keys()
    parts = {name: scalars(tmp_path, f"loss/{name}") for name in ("iou", "bce", "slot_maps")}
    for step, value in total.items():
        assert value == pytest.approx(sum(part[step] for part in parts.values()), rel=1e-5)
    late = (20, 21, 23)
    assert max(total[step] for step in late) < 0.9 * total[1]
    assert max(parts["bce"][step] for step in late) < 0.6 * parts["bce"][1]
    assert all(speed > 0 for speed in scalars(tmp_path, "images_per_second").values())
    assert scalars(tmp_path, "learning_rate")[23] < 2e-4
    assert scalars(tmp_path, "validation/J") == pytest.approx({12: 0.5, 24: 0.4})
    assert scalars(tmp_path, "validation/J bear") == pytest.approx({12: 0.25})
    (image,) = log(tmp_path).Images("panel")
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

    def validate(validated):
        weights.append({name: w.clone() for name, w in validated.state_dict().items()})
        return Validation(next(results))

    progress = fit(
        model, stills, validate, tiny_settings.replace(epochs=4), IDENTITY, tmp_path, CPU
    )
    assert progress.best == 0.9
    best, last = load_checkpoint(tmp_path / "best.pt"), load_checkpoint(tmp_path / "last.pt")
    assert same(best["weights"], weights[1])
    assert best["progress"] == {"epoch": 2, "step": 2, "best": 0.9}
    assert same(last["weights"], weights[3])
    assert last["progress"]["epoch"] == 4
    assert not same(weights[1], weights[3])
    assert {file.name for file in tmp_path.glob("*.pt")} == {"best.pt", "last.pt"}


def test_a_score_of_zero_still_leaves_a_best_checkpoint(tmp_path, stills, tiny_settings):
    fit(Toy(), stills, scores(0.0), tiny_settings, IDENTITY, tmp_path, CPU)
    assert (tmp_path / "best.pt").is_file()


def test_it_validates_every_n_epochs_and_after_the_last_in_evaluation_mode(
    tmp_path, stills, tiny_settings
):
    model, modes = Toy(), []

    def validate(validated):
        assert validated is model
        modes.append((validated.training, len(model.training_at_call)))
        return Validation(0.5)

    settings = tiny_settings.replace(epochs=5, validate_every=2, batch_size=3)
    fit(model, stills, validate, settings, IDENTITY, tmp_path, CPU)
    assert modes == [(False, 4), (False, 8), (False, 10)]
    assert model.training_at_call == [True] * 10


def test_samples_reach_the_network_in_the_samplers_order(tmp_path, stills, tiny_settings):
    model = Toy()
    settings = tiny_settings.replace(epochs=2, batch_size=3, seed=7)
    fit(model, stills, scores(0.1, 0.2), settings, IDENTITY, tmp_path, CPU)
    batches = utils.training.EpochBatches([6], 3, seed=7)
    expected = []
    for epoch in range(2):
        batches.set_epoch(epoch)
        expected += [torch.stack([stills[key]["image"] for key in batch]) for batch in batches]
    assert len(model.seen) == len(expected) == 4
    assert all(torch.equal(a, b) for a, b in zip(model.seen, expected))


def test_a_further_process_takes_its_share_of_every_batch_and_writes_nothing(
    tmp_path, stills, tiny_settings, monkeypatch
):
    monkeypatch.setattr(utils.training, "DistributedDataParallel", lambda model: model)
    monkeypatch.setattr(torch.distributed, "barrier", lambda: None)
    shares = []
    for process in (CPU, Process(torch.device("cpu"), rank=1, world_size=2)):
        model = Toy()
        folder = tmp_path / str(process.rank)
        folder.mkdir()
        fit(model, stills, scores(0.5), tiny_settings, IDENTITY, folder, process)
        shares.append(model.seen)
    assert torch.equal(shares[1][0], shares[0][0][1::2])
    assert list((tmp_path / "1").iterdir()) == []


def test_an_interrupted_run_that_is_resumed_ends_bit_for_bit_as_one_in_one_go(
    tmp_path, tiny_settings
):
    settings = tiny_settings.replace(epochs=3)
    straight, interrupted = tmp_path / "straight", tmp_path / "interrupted"
    straight.mkdir()
    interrupted.mkdir()
    model, dataset, identity = video_run(settings, seed=1)
    fit(model, dataset, scores(0.5, 0.2, 0.7), settings, identity, straight, CPU)

    model, dataset, identity = video_run(settings, seed=1)
    with pytest.raises(StopIteration):
        fit(model, dataset, scores(0.5), settings, identity, interrupted, CPU)
    assert load_checkpoint(interrupted / "last.pt")["progress"]["epoch"] == 1
    # Another seed: whatever is not restored would show.
    model, dataset, identity = video_run(settings, seed=2)
    progress = fit(
        model, dataset, scores(0.2, 0.7), settings, identity, interrupted, CPU, resume=True
    )
    assert vars(progress) == {"epoch": 3, "step": 6, "best": 0.7}
    for name in ("last.pt", "best.pt"):
        first, second = (load_checkpoint(run / name) for run in (straight, interrupted))
        assert same(first["weights"], second["weights"])
        assert first["progress"] == second["progress"]
    for name in ("loss/total", "learning_rate", "validation/J"):
        values = scalars(straight, name)
        assert scalars(interrupted, name) == values
        assert set(values) == ({2, 4, 6} if name == "validation/J" else {1, 3, 5})


def test_resuming_keeps_the_best_score(tmp_path, stills, tiny_settings, capsys):
    settings = tiny_settings.replace(epochs=3)
    with pytest.raises(StopIteration):
        fit(Toy(), stills, scores(0.8), settings, IDENTITY, tmp_path, CPU)
    best = (tmp_path / "best.pt").read_bytes()
    progress = fit(Toy(), stills, scores(0.7, 0.6), settings, IDENTITY, tmp_path, CPU, resume=True)
    assert progress.best == 0.8
    assert (tmp_path / "best.pt").read_bytes() == best
    assert f"resuming {tmp_path} after epoch 1 of 3" in capsys.readouterr().out


def test_resuming_a_finished_run_changes_nothing(tmp_path, stills, tiny_settings):
    fit(Toy(), stills, scores(0.8), tiny_settings, IDENTITY, tmp_path, CPU)
    files = {path: path.read_bytes() for path in tmp_path.glob("*.pt")}
    progress = fit(Toy(), stills, scores(), tiny_settings, IDENTITY, tmp_path, CPU, resume=True)
    assert vars(progress) == {"epoch": 1, "step": 1, "best": 0.8}
    assert {path: path.read_bytes() for path in tmp_path.glob("*.pt")} == files


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


def test_a_batch_that_the_processes_cannot_share_evenly_is_refused(tiny_settings):
    with pytest.raises(SettingsError, match="BATCH_SIZE = 4 cannot be shared evenly by 3"):
        check_run("train", tiny_settings, None, Process(torch.device("cpu"), 0, 3))


def test_a_run_is_called_after_its_script_unless_it_has_a_name(tmp_path, tiny_settings):
    settings = tiny_settings.replace(output_dir=str(tmp_path / "runs"))
    assert check_run("train", settings, None, CPU) == tmp_path / "runs/train"
    named = settings.replace(run_name="mine")
    assert check_run("train", named, None, CPU) == tmp_path / "runs/mine"
    assert not (tmp_path / "runs").exists()


def test_a_run_writes_the_settings_it_uses_into_its_folder(tmp_path, stills, tiny_settings):
    settings = tiny_settings.replace(epochs=1, sigma=2.5)
    fit(Toy(), stills, scores(0.5), settings, IDENTITY, tmp_path / "run", CPU)
    assert read_settings_file(tmp_path / "run/settings.py") == settings


def test_a_resumed_run_has_its_own_settings_but_for_those_that_are_given(tmp_path, tiny_settings):
    own = tiny_settings.replace(epochs=7, batch_size=6, sigma=2.0)
    write_settings(own, tmp_path / "settings.py")
    now = tiny_settings.replace(epochs=9, batch_size=8, workers=3)
    assert resumed_settings(now, tmp_path, frozenset()) == own
    given = frozenset({"EPOCHS", "WORKERS"})
    assert resumed_settings(now, tmp_path, given) == own.replace(epochs=9, workers=3)
    assert resumed_settings(now, None, given) is now


@pytest.mark.parametrize("name", ["LEARNING_RATE", "NUM_CLUSTERS", "SEED", "--config"])
def test_what_would_make_it_another_run_is_refused_on_resume(name, tmp_path, tiny_settings):
    write_settings(tiny_settings, tmp_path / "settings.py")
    with pytest.raises(SettingsError, match=rf"{name}: a resumed run keeps its settings"):
        resumed_settings(tiny_settings, tmp_path, frozenset({name, "EPOCHS"}))


def test_an_existing_run_is_refused_but_an_empty_folder_is_used(tmp_path, tiny_settings):
    settings = tiny_settings.replace(output_dir=str(tmp_path))
    (tmp_path / "train").mkdir()
    check_run("train", settings, None, CPU)
    (tmp_path / "train/settings.py").write_text("")
    with pytest.raises(CheckpointError, match="exists already; choose another by --run-name"):
        check_run("train", settings, None, CPU)
    (tmp_path / "train/last.pt").write_text("")
    with pytest.raises(CheckpointError, match=r"exists already; go on with it by --resume .*train"):
        check_run("train", settings, None, CPU)
    other = Process(torch.device("cpu"), rank=1, world_size=2)
    assert check_run("train", settings, None, other) == tmp_path / "train"


def test_a_folder_without_a_checkpoint_cannot_be_resumed(tmp_path, tiny_settings):
    with pytest.raises(CheckpointError, match=r"cannot resume .*there is no .*last\.pt"):
        check_run("train", tiny_settings, tmp_path, CPU)
    with pytest.raises(SettingsError, match=r"missing/settings\.py: cannot read"):
        resumed_settings(tiny_settings, tmp_path / "missing", frozenset())


def test_synchronised_normalisation_keeps_the_activations_inside_it():
    """timm's norms of some backbones have an activation, which torch's own conversion drops."""
    torch.manual_seed(0)
    encoder = build_backbone("regnety_002", pretrained=False).eval()
    images = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        before = encoder(images)
        after = utils.training.convert_sync_batchnorm(encoder).eval()(images)
    for a, b in zip(before, after):
        torch.testing.assert_close(a, b)


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
        "recolour_flow": False,
        "camera_motion": 0.7,
        "flow_turn": 8.0,
    }
    assert vars(augmentation_from(tiny_settings.replace(**values))) == values


def test_parameters_are_counted_in_millions():
    assert count_parameters(nn.Linear(1200, 1000)) == "1.2 M parameters"
