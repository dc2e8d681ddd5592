"""The ablation: what it runs, in which order, what it does not run again, and its tables."""

import csv
import inspect
import os
import re
import signal
import subprocess
import sys
import threading
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest
import torch

import config
from models import build_model, model_class
from utils import ablate
from utils.ablate import ABLATIONS, check_begun, plan, run_jobs
from utils.evaluation.protocols import PROTOCOLS, SequenceScores
from utils.evaluation.results import Evaluation, write_evaluation
from utils.scripts import run_script
from utils.settings import SettingsError, load_settings, write_settings
from utils.training.checkpoints import save_checkpoint
from utils.training.interrupts import Interrupted
from utils.training.samples import network_arguments

ROOT = Path(config.__file__).parent
# By hand from the paper's Table 2: GS, KNN, SA, FAT.
TABLE_2 = {
    "a": "false false false false",
    "b": "false false true false",
    "c": "true false true false",
    "d": "false true true false",
    "e": "true true true false",
    "f": "true true true true",
}
SWITCHES = ("guided-slots", "knn-filtering", "slot-attention", "aggregation-transformer")


@pytest.fixture(autouse=True)
def hurried(monkeypatch):
    """Nothing here is worth waiting for between two looks at the scripts."""
    monkeypatch.setattr("utils.ablate.time.sleep", lambda seconds: None)


@pytest.fixture
def settings():
    return load_settings(config).replace(
        model="gsanet",
        epochs=3,
        num_iterations=3,
        num_references=3,
        gpu="",
        output_dir="elsewhere",
    )


@pytest.fixture
def jobs_of(settings, tmp_path):
    """A plan with the defaults of the command line, or others."""

    def make(rows=None, seeds=(0, 1), sweep=(1, 2, 3, 4, 5), **changes):
        own = settings.replace(**changes)
        rows = ABLATIONS[own.model].rows if rows is None else rows
        return plan(own, tmp_path, list(rows), list(seeds), list(sweep), pretrain_epochs=7)

    return make


def flags_of(command: list[str]) -> dict[str, str]:
    """The flags of a script's command, each with a value."""
    assert all(flag.startswith("--") for flag in command[2::2])
    return dict(zip([flag[2:] for flag in command[2::2]], command[3::2], strict=True))


def frame_scores(name: str, value: str) -> dict[str, np.ndarray]:
    """J and F of a run's frames at a value of what is swept, by sequence (2, 5): arbitrary."""
    generator = np.random.default_rng([*map(ord, f"{name} {value}")])
    return {sequence: generator.random((2, 5)) for sequence in ("bear", "cow")}


class Scripts:
    """Stands in for the processes: each command is done when it is asked for a second time."""

    def __init__(self, fails: str = "", epochs_short: int = 0):
        self.fails, self.epochs_short = fails, epochs_short
        self.commands: list[tuple[str, dict[str, str]]] = []
        self.alive: list[str] = []
        self.most = 0
        self.stopped: list[str] = []

    @property
    def names(self) -> list[str]:
        return [name for name, _ in self.commands]

    def __call__(self, command: list[str], log: Path) -> "Script":
        name, flags = log.stem, flags_of(command)
        self.commands.append((name, {"script": Path(command[1]).name, **flags}))
        self.alive.append(name)
        self.most = max(self.most, len(self.alive))
        return Script(self, name, flags, log)


class Script:
    """What ``Popen`` would return."""

    def __init__(self, scripts: Scripts, name: str, flags: dict[str, str], log: Path):
        self.scripts, self.name, self.flags, self.log = scripts, name, flags, log
        self.asked, self.status = 0, None

    def poll(self) -> int | None:
        self.asked += 1
        if self.asked > 1 and self.status is None:
            self.scripts.alive.remove(self.name)
            self.status = int(self.name == self.scripts.fails)
            if self.status:
                self.log.write_text("long ago\n" * 50 + "a bar 1%\ra bar 99%\nerror: no disk\n")
            elif "run-name" in self.flags:
                self.train()
            else:
                self.evaluate()
        return self.status

    def terminate(self) -> None:
        self.scripts.stopped.append(self.name)
        if self.status is None:
            self.scripts.alive.remove(self.name)

    def wait(self) -> None:
        assert self.name in self.scripts.stopped

    def train(self) -> None:
        folder = Path(self.flags["output-dir"]) / self.flags["run-name"]
        epochs = 7 if self.name.startswith("pretrain") else 3
        write_checkpoint(folder, epochs - self.scripts.epochs_short)

    def evaluate(self) -> None:
        checkpoint = Path(self.flags["checkpoint"])
        assert checkpoint.is_file()
        swept = {"num-iterations", "num-references"} & self.flags.keys()
        value = self.flags[swept.pop()] if swept else "3"
        given = frame_scores(checkpoint.parent.name, value)
        scores = {
            name: SequenceScores(tuple("01234"), dict(zip("JF", values)))
            for name, values in given.items()
        }
        evaluation = Evaluation(
            "a network", "DAVIS_test", "data", PROTOCOLS["davis2016"], "masks", scores
        )
        write_evaluation(evaluation, Path(self.flags["output"]))


def write_checkpoint(folder: Path, epoch: int) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    settings = {"IMAGE_SIZE": 64, "NUM_REFERENCES": 3, "RECOLOUR_FLOW": True}
    checkpoint = {"model": "", "arguments": {"motion": True}, "settings": settings}
    checkpoint["weights"] = {"a": torch.zeros(1)}
    save_checkpoint(folder / "last.pt", {**checkpoint, "progress": {"epoch": epoch}})


def rows_of(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


# What is run


def test_every_row_is_trained_with_the_switches_of_table_2(jobs_of, tmp_path):
    scripts = Scripts()
    run_jobs(jobs_of(), tmp_path, 1, "", scripts)
    trained = {name: flags for name, flags in scripts.commands if flags["script"] == "train.py"}
    assert trained.keys() == {f"{row}_seed{seed}" for row in "abcdef" for seed in (0, 1)}
    for name, flags in trained.items():
        row, seed = name[0], name[-1]
        assert " ".join(flags[switch] for switch in SWITCHES) == TABLE_2[row]
        assert flags["run-name"] == name
        assert (flags["seed"], flags["resume"], flags["gpu"]) == (seed, "auto", "")
        assert flags["output-dir"] == str(tmp_path)
        assert flags["stage1-checkpoint"] == str(tmp_path / f"pretrain_seed{seed}/best.pt")
        assert flags["config"] == str(tmp_path / "settings.py")
        assert "epochs" not in flags


def test_stage_1_is_trained_once_per_seed_and_everything_after_what_it_needs(jobs_of, tmp_path):
    scripts = Scripts()
    run_jobs(jobs_of(), tmp_path, 2, "", scripts)
    assert len(scripts.names) == len(set(scripts.names)) == 2 + 12 + 12 + 2 * 4
    assert scripts.most == 2
    flags = dict(scripts.commands)
    for seed in "01":
        first = flags[f"pretrain_seed{seed}"]
        assert (first["script"], first["seed"], first["epochs"]) == ("pretrain.py", seed, "7")
        assert not any(switch in first for switch in (*SWITCHES, "stage1-checkpoint"))
        for row in "abcdef":
            order = [f"pretrain_seed{seed}", f"{row}_seed{seed}", f"{row}_seed{seed}_evaluation"]
            positions = [scripts.names.index(name) for name in order]
            assert positions == sorted(positions)


def test_runs_are_evaluated_at_their_last_checkpoint_and_the_last_row_at_every_t(jobs_of, tmp_path):
    scripts = Scripts()
    run_jobs(jobs_of("aef", [4], [2, 3, 5]), tmp_path, 1, "", scripts)
    tests = {name: flags for name, flags in scripts.commands if flags["script"] == "evaluate.py"}
    iterations = {
        name: (flags["output"], flags.get("num-iterations")) for name, flags in tests.items()
    }
    assert iterations == {
        "a_seed4_evaluation": (str(tmp_path / "a_seed4/evaluation"), None),
        "e_seed4_evaluation": (str(tmp_path / "e_seed4/evaluation"), None),
        "f_seed4_evaluation": (str(tmp_path / "f_seed4/evaluation"), None),
        "f_seed4_evaluation_T2": (str(tmp_path / "f_seed4/evaluation_T2"), "2"),
        "f_seed4_evaluation_T5": (str(tmp_path / "f_seed4/evaluation_T5"), "5"),
    }
    for name, flags in tests.items():
        assert flags["checkpoint"] == str(tmp_path / name[:7] / "last.pt")
        assert flags["panel-step"] == "0"
        assert flags["config"] == str(tmp_path / "settings.py")


@pytest.mark.parametrize(("rows", "swept"), [("ab", "b"), ("a", None), ("cd", "d")])
def test_the_sweep_takes_the_last_row_with_slot_attention(jobs_of, rows, swept):
    found = {job.name[0] for job in jobs_of(rows) if "figure7" in job.lines}
    assert found == ({swept} if swept else set())


def test_rows_of_dpa_have_their_switches_and_the_stage_1_with_or_without_ima(jobs_of, tmp_path):
    scripts = Scripts()
    run_jobs(jobs_of(model="dpa"), tmp_path, 1, "", scripts)
    flags = dict(scripts.commands)
    assert len(scripts.names) == len(flags) == 4 + 8 + 8 + 2 * 4
    for seed in "01":
        for name, ima in ((f"pretrain_seed{seed}", "false"), (f"pretrain_IMA_seed{seed}", "true")):
            first = flags[name]
            assert (first["script"], first["run-name"]) == ("pretrain.py", name)
            assert (first["seed"], first["epochs"]) == (seed, "7")
            assert first["inter-modality-attention"] == ima
            assert "inter-frame-attention" not in first
        for row, ima, ifa, stage1 in (
            ("a", "false", "false", "pretrain"),
            ("b", "true", "false", "pretrain_IMA"),
            ("c", "false", "true", "pretrain"),
            ("d", "true", "true", "pretrain_IMA"),
        ):
            run = flags[f"{row}_seed{seed}"]
            assert (run["script"], run["seed"]) == ("train.py", seed)
            assert (run["inter-modality-attention"], run["inter-frame-attention"]) == (ima, ifa)
            assert run["stage1-checkpoint"] == str(tmp_path / f"{stage1}_seed{seed}/best.pt")
            assert not any(switch in run for switch in SWITCHES)
            order = [f"{stage1}_seed{seed}", f"{row}_seed{seed}", f"{row}_seed{seed}_evaluation"]
            positions = [scripts.names.index(name) for name in order]
            assert positions == sorted(positions)


@pytest.mark.parametrize("model", ABLATIONS)
def test_rows_share_a_stage_1_exactly_when_it_is_the_same_network(jobs_of, model):
    small = {"backbone": "mobilenetv3_small_100", "pretrained_backbone": False, "channels": 16}
    jobs = jobs_of(seeds=[0], sweep=[], model=model, **small)
    trained = [job for job in jobs if job.evaluation is None]
    # Of the trainings of stage 2, too, what stage 1 would be with their settings.
    networks = {
        job: build_model(model, **network_arguments(job.settings, motion=False)).eval()
        for job in trained
    }
    image = torch.rand(1, 3, 64, 64, generator=torch.Generator().manual_seed(0))

    def same_network(one, other):
        weights = networks[one].state_dict()
        shapes, others = (
            {name: tensor.shape for name, tensor in networks[job].state_dict().items()}
            for job in (one, other)
        )
        if shapes != others:
            return False
        networks[other].load_state_dict(weights)
        first, second = (networks[job](image).logits[0] for job in (one, other))
        return torch.equal(first, second)

    for one, other in combinations(trained, 2):
        assert ((one.after or one) is (other.after or other)) == same_network(one, other)


@pytest.mark.parametrize(
    ("rows", "stage1"),
    [("ac", ["pretrain_seed3"]), ("d", ["pretrain_IMA_seed3"])],
)
def test_a_stage_1_that_no_row_needs_is_not_trained(jobs_of, rows, stage1):
    jobs = jobs_of(rows, [3], model="dpa")
    assert [job.name for job in jobs if job.script == "pretrain.py"] == stage1


@pytest.mark.parametrize(("rows", "swept"), [("abcd", "d"), ("abc", "c"), ("ab", None)])
def test_the_last_row_of_dpa_with_ifa_is_tested_with_other_numbers_of_references(
    jobs_of, tmp_path, rows, swept
):
    scripts = Scripts()
    run_jobs(jobs_of(rows, [4], [1, 3, 8], model="dpa"), tmp_path, 1, "", scripts)
    tests = {name: flags for name, flags in scripts.commands if flags["script"] == "evaluate.py"}
    expected = {f"{row}_seed4_evaluation": (row, "evaluation", None) for row in rows}
    for count in "18" if swept else "":
        name = f"evaluation_R{count}"
        expected[f"{swept}_seed4_{name}"] = (swept, name, count)
    assert tests.keys() == expected.keys()
    for name, (row, folder, count) in expected.items():
        assert tests[name]["checkpoint"] == str(tmp_path / f"{row}_seed4/last.pt")
        assert tests[name]["output"] == str(tmp_path / f"{row}_seed4" / folder)
        assert tests[name].get("num-references") == count
        assert "num-iterations" not in tests[name]
    assert (tmp_path / "references.csv").is_file() == bool(swept)


@pytest.mark.parametrize("model", ABLATIONS)
def test_what_an_ablation_names_is_there(model, settings):
    ablation = ABLATIONS[model]
    accepted = inspect.signature(model_class(model)).parameters
    for name in ablation.switches.values():
        assert accepted[name].annotation is bool and isinstance(getattr(settings, name), bool)
    parts = [*ablation.rows.values(), ablation.stage1_switches, (ablation.sweep_needs,)]
    assert {short for some in parts for short in some} <= ablation.switches.keys()
    assert len(set(ablation.rows.values())) == len(ablation.rows)
    assert ablation.swept.upper() in settings.marked("test")
    assert not ablation.paper or ablation.paper.keys() == ablation.rows.keys()
    assert ablation.table != ablation.sweep_table


def test_jobs_side_by_side_share_the_gpus_and_one_alone_has_all(settings, tmp_path):
    for parallel, expected in ((1, {"0,1,2"}), (2, {"0", "1"}), (4, {"0", "1", "2"})):
        scripts = Scripts()
        output = tmp_path / str(parallel)
        jobs = plan(settings, output, list("abcd"), [0], [], pretrain_epochs=7)
        run_jobs(jobs, output, parallel, "0,1,2" if parallel == 1 else "0, 1,2", scripts)
        assert {flags["gpu"] for _, flags in scripts.commands} == expected


# What is not run again


def test_what_is_done_is_not_run_again(jobs_of, tmp_path, capsys):
    run_jobs(jobs_of(), tmp_path, 2, "", Scripts())
    before = (tmp_path / "table2.md").read_text()
    (tmp_path / "table2.md").unlink()
    again = Scripts()
    run_jobs(jobs_of(), tmp_path, 2, "", again)
    assert again.commands == []
    assert (tmp_path / "table2.md").read_text() == before
    assert before in capsys.readouterr().out


def test_what_is_missing_or_older_than_its_checkpoint_is_run_again(jobs_of, tmp_path):
    run_jobs(jobs_of(), tmp_path, 1, "", Scripts())
    (tmp_path / "b_seed1/evaluation/evaluation.json").unlink()
    write_checkpoint(tmp_path / "c_seed0", 2)
    (tmp_path / "pretrain_seed1/last.pt").write_bytes(b"damaged")
    os.utime(tmp_path / "f_seed1/last.pt")
    again = Scripts()
    run_jobs(jobs_of(), tmp_path, 1, "", again)
    assert sorted(again.names) == sorted(
        [
            *("pretrain_seed1", "b_seed1_evaluation", "c_seed0", "c_seed0_evaluation"),
            *("f_seed1_evaluation", *(f"f_seed1_evaluation_T{count}" for count in (1, 2, 4, 5))),
        ]
    )


def test_runs_begun_with_other_settings_are_refused(jobs_of, settings, tmp_path):
    jobs = jobs_of("f", [0])
    for job in jobs:
        if job.evaluation is None:
            write_settings(job.settings, job.folder / "settings.py")
    check_begun(jobs)
    check_begun(jobs_of("f", [0], workers=1, data_root="moved"))
    changes = {"epochs": 4}, {"image_size": 96}, {"threshold": 0.4}, {"learning_rate": 0.5}
    for change in changes:
        with pytest.raises(SettingsError, match=f"_seed0 .*{next(iter(change)).upper()} is "):
            check_begun(jobs_of("f", [0], **change))
    with pytest.raises(SettingsError, match=r"pretrain_seed0 .*EPOCHS is 7 there, 8 here"):
        check_begun(plan(settings, tmp_path, ["f"], [0], [], pretrain_epochs=8))


# Tables


def expected_scores(names: list[str], value: int) -> dict[str, np.ndarray]:
    """G, J and F in percent by run."""
    counted = [
        np.mean([v.mean(1) for v in frame_scores(name, str(value)).values()], axis=0)
        for name in names
    ]
    j, f = 100 * np.array(counted).T
    return {"G": (j + f) / 2, "J": j, "F": f}


@pytest.mark.parametrize("seeds", [[0, 1], [0, 2, 5], [3]])
def test_tables_hold_the_mean_and_the_sample_deviation_over_seeds(jobs_of, tmp_path, seeds):
    run_jobs(jobs_of(seeds=seeds), tmp_path, 1, "", Scripts())
    table2, figure7 = rows_of(tmp_path / "table2.csv"), rows_of(tmp_path / "figure7.csv")
    assert [line["row"] for line in table2] == [*"abcdef"]
    assert [line["T"] for line in figure7] == [*"12345"]
    markdown = {
        (name, line.split("|")[1].strip()): line
        for name in ("table2", "figure7")
        for line in (tmp_path / f"{name}.md").read_text().splitlines()
    }
    for line in table2 + figure7:
        row, iterations = line.get("row", "f"), int(line.get("T", 3))
        scores = expected_scores([f"{row}_seed{seed}" for seed in seeds], iterations)
        assert int(line["seeds"]) == len(seeds)
        shown = markdown["table2" if "row" in line else "figure7", line.get("row") or line["T"]]
        for measure, values in scores.items():
            assert float(line[f"{measure}_mean"]) == pytest.approx(np.mean(values))
            cell = f" {np.mean(values):.1f} "
            if len(seeds) == 1:
                assert line[f"{measure}_deviation"] == ""
            else:
                deviation = np.std(values, ddof=1)
                assert float(line[f"{measure}_deviation"]) == pytest.approx(deviation)
                cell += f"± {deviation:.1f} "
            assert cell in shown
        if "row" in line:
            switches = " ".join(
                "true" if line[s] == "1" else "false" for s in ABLATIONS["gsanet"].switches
            )
            assert switches == TABLE_2[row]
            marks = [cell.strip() for cell in shown.split("|")[2:6]]
            assert marks == ["✓" if on == "true" else "" for on in TABLE_2[row].split()]
    # The paper's own G, J and F of row (e) stand beside ours, which has the oddest rounding.
    assert markdown["table2", "e"].endswith(f"| {len(seeds)} | 86.5 | 86.7 | 86.5 |")
    assert "paper" not in (tmp_path / "figure7.md").read_text()


def test_tables_are_there_before_everything_is_done(jobs_of, tmp_path):
    with pytest.raises(SystemExit):
        run_jobs(jobs_of(), tmp_path, 1, "", Scripts(fails="c_seed1"))
    table2 = rows_of(tmp_path / "table2.csv")
    assert [line["seeds"] for line in table2] == ["2", "2", "1", "1", "1", "1"]
    assert [line["G_deviation"] == "" for line in table2] == [False] * 2 + [True] * 4
    figure7 = rows_of(tmp_path / "figure7.csv")
    assert [line["seeds"] for line in figure7] == ["0", "0", "1", "0", "0"]
    assert figure7[0]["G_mean"] == ""


def test_sets_without_contours_have_j_alone(jobs_of, tmp_path):
    run_jobs(jobs_of("f", [0], []), tmp_path, 1, "", Scripts())
    scores = {"a": SequenceScores(("1",), {"J": np.array([0.25])})}
    write_evaluation(
        Evaluation("a network", "FBMS_test", "data", PROTOCOLS["fbms"], "masks", scores),
        tmp_path / "f_seed0/evaluation",
    )
    run_jobs(jobs_of("f", [0], []), tmp_path, 1, "", Scripts())
    head, _, line = (tmp_path / "table2.md").read_text().splitlines()
    assert head == "| row | GS | KNN | SA | FAT | J | seeds |"
    assert line == "| f | ✓ | ✓ | ✓ | ✓ | 25.0 | 1 |"


def test_tables_of_dpa_have_its_switches_and_no_column_of_the_paper(jobs_of, tmp_path):
    run_jobs(jobs_of(sweep=[2, 3], model="dpa"), tmp_path, 1, "", Scripts())
    attention, references = (
        (tmp_path / f"{name}.md").read_text().splitlines() for name in ("attention", "references")
    )
    assert attention[0] == "| row | IMA | IFA | G | J | F | seeds |"
    marks = [[cell.strip() for cell in line.split("|")[1:4]] for line in attention[2:]]
    assert marks == [["a", "", ""], ["b", "✓", ""], ["c", "", "✓"], ["d", "✓", "✓"]]
    assert references[0] == "| R | G | J | F | seeds |"
    assert attention[1].count("---") == 7 and references[1].count("---") == 5
    for name, values in (("attention", "abcd"), ("references", "23")):
        lines = rows_of(tmp_path / f"{name}.csv")
        for line, value in zip(lines, values, strict=True):
            row, count = (value, 3) if name == "attention" else ("d", int(value))
            assert line["row" if name == "attention" else "R"] == value
            for measure, scores in expected_scores(
                [f"{row}_seed{s}" for s in (0, 1)], count
            ).items():
                assert float(line[f"{measure}_mean"]) == pytest.approx(np.mean(scores))
    assert not list(tmp_path.glob("table2.*")) + list(tmp_path.glob("figure7.*"))


# Trouble


def test_a_script_that_fails_stops_the_others_and_its_last_lines_are_shown(jobs_of, tmp_path):
    scripts = Scripts(fails="a_seed0")
    with pytest.raises(SystemExit) as stop:
        run_jobs(jobs_of(), tmp_path, 3, "", scripts)
    assert stop.value.code.startswith("error: a_seed0 ended with status 1 and is not done; ")
    assert str(tmp_path / "logs/a_seed0.log") in stop.value.code
    assert stop.value.code.endswith("a bar 1%\na bar 99%\nerror: no disk")
    assert stop.value.code.count("\n") == 15
    assert scripts.stopped and not scripts.alive


def test_a_script_that_ends_before_it_is_done_is_a_failure(jobs_of, tmp_path):
    with pytest.raises(SystemExit, match="pretrain_seed0 ended with status 0 and is not done"):
        run_jobs(jobs_of(), tmp_path, 1, "", Scripts(epochs_short=1))


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_stops_the_scripts(jobs_of, tmp_path, signum):
    started = []

    def start(command: list[str], log: Path) -> subprocess.Popen:
        started.append(subprocess.Popen(["sleep", "60"]))
        if len(started) == 2:
            threading.Timer(0.3, os.kill, (os.getpid(), signum)).start()
        return started[-1]

    with pytest.raises(Interrupted) as stop:
        run_jobs(jobs_of(), tmp_path, 2, "", start)
    assert stop.value.exit_code == (0 if signum == signal.SIGINT else 143)
    assert [script.returncode for script in started] == [-signal.SIGTERM] * 2


@pytest.fixture
def refusal(monkeypatch, tmp_path, capsys):
    """Start the ablation as a user does; returns the status or message that it ends with."""
    monkeypatch.setattr(ablate, "run_jobs", lambda *_: pytest.fail("it has started"))

    def call(*arguments: str) -> str:
        argv = ["ablate.py", "--output", str(tmp_path / "out"), "--model", "gsanet", *arguments]
        monkeypatch.setattr(sys, "argv", argv)
        with pytest.raises(SystemExit) as stop:
            run_script(ablate.main)
        return f"{stop.value.code} {capsys.readouterr().err}"

    return call


def test_a_second_ablation_in_the_same_folder_is_refused(refusal, tmp_path):
    (tmp_path / "out").mkdir()
    hold = "import fcntl, sys; f = open(sys.argv[1], 'w'); fcntl.lockf(f, fcntl.LOCK_EX)"
    command = [sys.executable, "-c", f"{hold}; print(flush=True); sys.stdin.read()"]
    with subprocess.Popen(
        [*command, tmp_path / "out/.lock"], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as holder:
        holder.stdout.readline()
        assert "another process is running an ablation in" in refusal()
        holder.stdin.close()


@pytest.mark.parametrize("model", ABLATIONS)
def test_without_flags_all_rows_are_run_and_the_sweep_has_the_ablations_values(
    monkeypatch, tmp_path, model
):
    planned = []
    monkeypatch.setattr(ablate, "run_jobs", lambda jobs, *_: planned.append(jobs))
    ablation = ABLATIONS[model]
    fixed = ["--model", model, f"--{ablation.swept.replace('_', '-')}", "3"]
    for index, own in enumerate(([], ["--sweep"], ["--sweep", "5", "2", "5"])):
        argv = ["ablate.py", "--output", str(tmp_path / str(index)), *fixed, *own]
        monkeypatch.setattr(sys, "argv", argv)
        ablate.main()
    for jobs, values in zip(planned, ([*ablation.sweep], [], [2, 5]), strict=True):
        lines = [job.lines for job in jobs]
        assert [line[ablation.table] for line in lines if ablation.table in line] == [
            *ablation.rows,
            *ablation.rows,
        ]
        swept = [line[ablation.sweep_table] for line in lines if ablation.sweep_table in line]
        assert sorted(swept) == sorted(2 * values)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--seed", "1"], "error: SEED: the ablation sets this itself"),
        (["--knn-filtering", "false"], "error: KNN_FILTERING: "),
        (["--run-name", "x", "--output-dir", "y"], "error: OUTPUT_DIR, RUN_NAME: "),
        (["--image-sise", "96"], "2 .*the nearest is --image-size"),
        (["--image-size", "97"], "2 .*--image-size 97: expected"),
        (["--rows", "f", "g"], "error: --rows g: expected rows of gsanet's .*, a, b, c, d, e, f"),
        (
            ["--model", "dpa", "--rows", "f"],
            "error: --rows f: expected rows of dpa's .*, a, b, c, d ",
        ),
        (["--model", "dpa", "--inter-frame-attention"], "error: INTER_FRAME_ATTENTION: "),
        (["--model", "dpa", "--sweep", "0"], "error: .*num_references=0: expected"),
        (["--model", "dpa2"], "error: MODEL is 'dpa2', but .*did you mean 'dpa'"),
        (["--model", "ssl_uvos"], "error: MODEL = 'ssl_uvos' has no ablation; .*: gsanet, dpa "),
        (["--jobs", "0"], "2 .*--jobs: 0: expected a whole number above 0"),
        (["--seeds", "-1"], "error: .*seed=-1: expected"),
        (["--sweep", "-2"], "error: .*num_iterations=-2: expected"),
        (["--pretrain-epochs", "0"], "error: .*epochs=0: expected"),
    ],
)
def test_wrong_arguments_are_refused_before_anything_starts(refusal, tmp_path, arguments, message):
    assert re.match(message, refusal(*arguments), re.DOTALL)
    assert not (tmp_path / "out").exists()


# For real


def test_one_row_from_data_to_tables(tmp_path, tiny_settings):
    write_settings(tiny_settings, tmp_path / "settings.py")
    command = [sys.executable, "-m", "utils.ablate", "--config", str(tmp_path / "settings.py")]
    command += ["--output", str(tmp_path / "out")]
    command += ["--seeds", "0", "--rows", "f", "--sweep", "--jobs", "2"]
    result = subprocess.run(
        command,
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert result.returncode == 0, result.stdout + result.stderr
    table2 = rows_of(tmp_path / "out/table2.csv")
    assert [line["row"] for line in table2] == ["f"]
    assert 0 < float(table2[0]["G_mean"]) < 100
    assert "3/3 f_seed0_evaluation" in result.stdout
    assert (tmp_path / "out/table2.md").read_text() in result.stdout
    assert (tmp_path / "out/f_seed0/evaluation/report.html").is_file()
