"""The contract of models/interface.py is enough for a network of quite another kind.

It masks three objects, learns from windows of frames alone, without masks and without flow, and has
a teacher. It is known to the scripts by its name in ``models.MODELS`` and by nothing else.
"""

import shutil
import sys
from types import SimpleNamespace

import cv2
import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

import evaluate
import pretrain
import train
from datasets.layout import frame_label, video_sequences
from models import MODELS
from models.interface import WINDOWS, Needs, Network, Prediction
from utils.evaluation.segmenting import Segmenter, predict_sequences, to_labels
from utils.scripts import run_script
from utils.training.checkpoints import build_from_checkpoint, load_checkpoint

STEPS = 3  # of an epoch: two videos of five frames have six windows
MOMENTUM = 0.9


class Scores(nn.Module):
    """Scores of three objects by colour, beside a bias that gives each a quarter of the width."""

    def __init__(self, width: int):
        super().__init__()
        self.embed = nn.Sequential(nn.Conv2d(3, width, 3, padding=1), nn.BatchNorm2d(width))
        self.head = nn.Conv2d(width, 3, 1)

    def forward(self, images):
        places = (torch.arange(images.shape[-1]) / images.shape[-1] * 4).int()
        bias = torch.stack([torch.where(places == k, 4.0, -4.0) for k in (1, 2, 3)])
        return self.head(self.embed(images).relu()) + bias[:, None]


class ThirdNetwork(Network):
    """A student that agrees with its teacher's scores of the window's next frame."""

    size_step = 16

    def __init__(self, width: int = 6, strictness: float = 1.0):
        super().__init__()
        self.strictness = strictness
        self.student, self.teacher = Scores(width), Scores(width).requires_grad_(False)
        self.teacher.load_state_dict(self.student.state_dict())

    @property
    def needs(self):
        return Needs(WINDOWS, masks=False, flow=False, frames=3, gap=1)

    @property
    def changeable(self):
        return ("strictness",)

    def loss(self, batch):
        assert batch.keys() == {"image"}
        images = batch["image"]
        assert images.dtype == torch.uint8 and images.shape[1:3] == (3, 3)
        own = self.student(images[:, :-1].flatten(0, 1) / 255)
        with torch.no_grad():
            wanted = self.teacher(images[:, 1:].flatten(0, 1) / 255).sigmoid()
        agreement = nn.functional.binary_cross_entropy_with_logits(own, wanted)
        noise = torch.randn(own.shape)  # follows from the seed and the step
        return {"agreement": self.strictness * agreement, "calm": 0.01 * (own * noise).mean()}

    def segment_video(self, video):
        ends = video.at([0, len(video) - 1])
        assert ends.keys() == {"image"} and len(ends["image"]) == 2
        for batch in video:
            assert batch.keys() == {"image"}
            logits = self.teacher(batch["image"] / 255)
            yield Prediction([logits], maps={"first object": logits[:, 0].sigmoid()})

    def parameter_groups(self):
        return [
            {"params": list(self.student.embed.parameters()), "rate": 0.1},
            {"params": list(self.student.head.parameters())},
        ]

    def after_step(self, step):
        for old, new in zip(self.teacher.parameters(), self.student.parameters()):
            old.lerp_(new, 1 - MOMENTUM)


@pytest.fixture(scope="module")
def data_root(tiny_root, tmp_path_factory):
    """The tiny data set without flow maps, and in training without masks."""
    root = tmp_path_factory.mktemp("third") / "data"
    shutil.copytree(tiny_root, root)
    for folder in [*root.rglob("FLOW"), *(root / "DAVIS_train").rglob("GT")]:
        shutil.rmtree(folder)
    return root


@pytest.fixture(scope="module")
def scripts(data_root, tmp_path_factory):
    """Run scripts in this process, in a folder of their own, with the network in the table."""
    folder = tmp_path_factory.mktemp("runs")

    def call(module, *arguments):
        flags = ["--data-root", data_root, "--gpu", "", "--workers", 0, "--eval-batch-size", 2]
        sys.argv = [f"{module.__name__}.py", *map(str, [*flags, *arguments])]
        run_script(module.main)

    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(MODELS, "third", ThirdNetwork)
        patch.setattr(sys, "argv", [])
        patch.chdir(folder)
        yield SimpleNamespace(call=call, folder=folder)


TRAINING = (
    *("--model", "third", "--train-sets", "DAVIS_train", "--val-set", "DAVIS_test"),
    *("--image-size", 32, "--batch-size", 2, "--epochs", 2, "--learning-rate", 1e-2),
    *("--min-learning-rate", 1e-3, "--stage1-checkpoint", "none"),
)


@pytest.fixture(scope="module")
def run(scripts):
    """The folder of a run in one go."""
    scripts.call(train, *TRAINING, "--run-name", "whole")
    return scripts.folder / "runs" / "whole"


def test_a_run_trains_in_one_stage_and_says_what_it_minimises(run, scripts, capsys):
    log = (run / "log.txt").read_text()
    assert "(agreement " in log and ", calm " in log and "lr 1.0e-03" in log
    checkpoint = load_checkpoint(run / "last.pt")
    assert checkpoint["model"] == "third" and checkpoint["flow"] is None
    assert checkpoint["arguments"] == {}
    assert checkpoint["progress"]["epoch"] == 2
    scripts.call(train, *TRAINING, "--run-name", "dry", "--dry-run")
    said = capsys.readouterr().out
    assert said.startswith("third, 0.0 M parameters, DAVIS_train: 2 sequences")
    assert "stage" not in said and "flow" not in said
    assert not (scripts.folder / "runs/dry").exists()
    with pytest.raises(SystemExit, match=r"'third' is trained in one stage, by train.py"):
        scripts.call(pretrain, "--model", "third", "--run-name", "stills")


def test_the_optimizer_has_two_rates_and_the_teacher_none(run):
    groups = load_checkpoint(run / "last.pt")["training"]["optimizer"]["param_groups"]
    assert [len(group["params"]) for group in groups] == [4, 2]
    np.testing.assert_allclose([group["lr"] for group in groups], [1e-4, 1e-3])


def test_the_teacher_follows_the_student_in_every_step(run, scripts, monkeypatch):
    seen = []
    step_of = ThirdNetwork.after_step

    def after_step(self, step):
        before = [p.clone() for p in self.teacher.parameters()]
        step_of(self, step)
        for old, new, student in zip(
            before, self.teacher.parameters(), self.student.parameters(), strict=True
        ):
            expected = MOMENTUM * old + (1 - MOMENTUM) * student
            torch.testing.assert_close(new, expected, rtol=1e-5, atol=1e-7)
        assert not torch.equal(before[-2], self.teacher.head.weight)
        seen.append(step)

    monkeypatch.setattr(ThirdNetwork, "after_step", after_step)
    scripts.call(train, *TRAINING, "--run-name", "watched")
    progress = load_checkpoint(run / "last.pt")["progress"]
    assert seen == list(range(1, 2 * STEPS + 1)) and progress["step"] == 2 * STEPS
    assert_same_end(run, scripts.folder / "runs/watched")


def assert_same_end(one, other):
    first, second = load_checkpoint(one / "last.pt"), load_checkpoint(other / "last.pt")
    assert first["progress"] == second["progress"]
    assert first["weights"].keys() == second["weights"].keys()
    for name, tensor in first["weights"].items():
        assert torch.equal(tensor, second["weights"][name]), name
    moments, others = (c["training"]["optimizer"]["state"] for c in (first, second))
    assert moments.keys() == others.keys() and len(moments) == 6
    for index, state in moments.items():
        assert all(torch.equal(value, others[index][name]) for name, value in state.items())


@pytest.fixture(scope="module")
def network(run):
    """The best network, in evaluation mode."""
    return build_from_checkpoint(load_checkpoint(run / "best.pt")).eval()


def expected_labels(network, path, size=32):
    """A frame's label map by plain means: shrink, score, enlarge, and the largest above a half."""
    image = cv2.imread(str(path))[..., ::-1]
    small = cv2.resize(image, (size, size), interpolation=cv2.INTER_AREA)
    with torch.inference_mode():
        logits = network.teacher(torch.from_numpy(small).permute(2, 0, 1)[None] / 255)
        logits = nn.functional.interpolate(logits, image.shape[:2], mode="bilinear")[0]
    probability = logits.sigmoid().numpy()
    labels = np.where(probability.max(axis=0) > 0.5, probability.argmax(axis=0) + 1, 0)
    # Where two scores or a score and the threshold nearly agree, rounding decides.
    ordered = np.sort(np.concatenate([probability, np.full_like(probability[:1], 0.5)]), axis=0)
    return labels, ordered[-1] - ordered[-2] > 1e-4


def assert_masks(network, path, frame):
    mask = np.array(Image.open(path))  # labels, which have a palette
    expected, clear = expected_labels(network, frame)
    assert mask.dtype == np.uint8 and clear.mean() > 0.99
    np.testing.assert_array_equal(mask[clear], expected[clear])
    assert set(np.unique(mask)) == {0, 1, 2, 3}


def test_sequences_are_segmented_frame_by_frame_with_three_scores(network, data_root):
    sequences = video_sequences(data_root, "DAVIS_test", masks="some", flow=False)
    results = list(predict_sequences(Segmenter(network, 32), sequences, batch_size=2))
    frames = [(s.name, frame) for s in sequences for frame in s.frames]
    assert [(result.sequence, result.frame) for result in results] == frames
    for result in results:
        assert result.prediction.num_objects == 3
        assert result.prediction.maps.keys() == {"first object"}
        labels = to_labels(result.prediction.probability((48, 64)))
        expected, clear = expected_labels(network, result.frame.image)
        np.testing.assert_array_equal(labels[clear], expected[clear])


def test_a_set_is_evaluated_to_label_maps_and_scores(network, run, scripts, data_root, capsys):
    output = scripts.folder / "out"
    scripts.call(
        evaluate, "--checkpoint", run / "best.pt", "--set", "DAVIS_test", "--output", output
    )
    said = capsys.readouterr().out
    assert "third, 32 pixels, whole videos, from" in said
    sequences = video_sequences(data_root, "DAVIS_test", masks="some", flow=False)
    scores = []
    for sequence in sequences:
        for frame in sequence.frames:
            label = frame_label(sequence.name, frame)
            path = output / "masks" / sequence.name / f"{label}.png"
            assert_masks(network, path, frame.image)
            assert (output / "panels" / sequence.name / f"{label}.png").is_file()
            if frame not in (sequence.frames[0], sequence.frames[-1]):
                found = np.array(Image.open(path)) > 0
                truth = cv2.imread(str(frame.mask), cv2.IMREAD_UNCHANGED) > 0
                scores.append((found & truth).sum() / (found | truth).sum())
    lines = (output / "scores.csv").read_text().splitlines()
    columns = lines[0].split(",")
    average = dict(zip(columns, lines[-1].split(",")))
    j = next(float(value) for name, value in average.items() if name.lower().startswith("j"))
    assert abs(j - np.mean(scores)) < 1e-3
    assert (output / "report.html").is_file()


def test_a_folder_of_frames_is_segmented_without_an_estimator_of_flow(
    network, run, scripts, data_root, capsys
):
    (sequence, *_) = video_sequences(data_root, "DAVIS_test", masks="some", flow=False)
    source, output = sequence.frames[0].image.parent, scripts.folder / "clip"
    scripts.call(evaluate, "--checkpoint", run / "best.pt", "--video", source, "--output", output)
    said = capsys.readouterr().out
    assert "third, 32 pixels, whole videos" in said and "flow" not in said
    assert (output / "overlay.mp4").is_file()
    masks = sorted((output / "masks").iterdir())
    assert len(masks) == len(sequence.frames)
    for path, frame in zip(masks, sequence.frames):
        assert_masks(network, path, frame.image)


def test_flags_that_only_networks_with_flow_or_references_hear_are_refused(run, scripts):
    source = ("--checkpoint", run / "best.pt", "--video", scripts.folder)
    for flag, value in (("--flow-estimator", "dis"), ("--num-references", 2)):
        with pytest.raises(SystemExit, match=f"{flag}: without effect"):
            scripts.call(evaluate, *source, "--output", scripts.folder / "none", flag, value)
