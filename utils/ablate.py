"""The ablation of MODEL: its variants, which the network's ``ablation`` lists, in numbers.

``python -m utils.ablate --output DIR --seeds 0 1 --jobs 2``, with any setting of config.py as a
flag; ``--help`` lists them. After an interruption, the same command continues.

Rows with the same network in stage 1 share one stage 1 per seed. DIR gets the folders of the runs
with their evaluations, the output of the scripts in ``logs``, and the tables, which are updated
after every evaluation.
"""

import re
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from subprocess import Popen
from typing import Any

import config
from datasets.files import write_text
from models import MODELS, model_class
from models.interface import Ablation
from utils.evaluation.output_folder import check_output
from utils.evaluation.protocols import Row
from utils.evaluation.results import RECORD, read_evaluation
from utils.scripts import run_script
from utils.settings import (
    Settings,
    SettingsError,
    flag_name,
    parse_settings,
    positive,
    read_settings_file,
    settings_parser,
    write_settings,
)
from utils.training.checkpoints import LAST, CheckpointError, load_checkpoint
from utils.training.interrupts import Interrupted, Interrupts
from utils.training.run_folder import SETTINGS, locked

ABLATIONS = {name: one.ablation for name, one in MODELS.items() if one.ablation}
_OWN = {"OUTPUT_DIR", "PANEL_STEP", "RUN_NAME", "SEED", "STAGE1_CHECKPOINT"}
# Changes of these give the same results.
_WITHOUT_EFFECT = ("DATA_ROOT", "COMPILE", "CHECKPOINT_MINUTES")
_TAIL = 15  # lines of a failed script's output that are shown


@dataclass(frozen=True, eq=False)
class Job:
    """One call of a script."""

    name: str  # of the job and of its log
    script: str
    flags: dict[str, Any]
    folder: Path  # of the run that is trained or evaluated
    settings: Settings  # of that run
    after: "Job | None" = None  # the job whose checkpoint this one needs
    evaluation: Path | None = None  # folder of the results; None for a training
    # The places of the results by table: {"table2": "f", "figure7": 3}.
    lines: dict[str, str | int] = field(default_factory=dict)

    def command(self, gpu: str) -> list[str]:
        """The command on these GPUs."""
        script = Path(config.__file__).with_name(self.script)
        shared = Path(self.settings.output_dir) / SETTINGS
        command = [sys.executable, str(script), "--config", str(shared)]
        for name, value in {**self.flags, "gpu": gpu}.items():
            text = str(value).lower() if isinstance(value, bool) else str(value)
            command += [flag_name(name), text]
        return command

    def is_done(self) -> bool:
        """Whether the run is at its last epoch, or its last checkpoint evaluated."""
        last = self.folder / LAST
        if self.evaluation is not None:
            record = self.evaluation / RECORD
            there = last.is_file() and record.is_file()
            return there and record.stat().st_mtime_ns >= last.stat().st_mtime_ns
        try:
            return load_checkpoint(last).get("progress", {}).get("epoch", 0) >= self.settings.epochs
        except CheckpointError:
            return False


def main() -> None:
    """Read the settings, train and evaluate what is not done yet, write the tables."""
    parser = settings_parser(
        config,
        "The ablation of MODEL: trains its variants and evaluates them on VAL_SET. All settings "
        f"but {', '.join(sorted(_OWN))} and the network's switches may be changed, for all runs.",
    )
    add = parser.add_argument
    add("--output", type=Path, required=True, metavar="DIR", help="folder for all results")
    add("--seeds", type=int, nargs="+", default=[0, 1], metavar="N", help="default: 0 1")
    add("--rows", nargs="+", metavar="ROW", help="variants, as a b c (default: all)")
    swept = ", ".join(f"{one.swept.upper()} of {model}" for model, one in ABLATIONS.items())
    swept = f"values for a sweep in the test, without values no sweep: {swept}"
    add("--sweep", type=int, nargs="*", metavar="N", help=swept)
    add("--pretrain-epochs", type=int, metavar="N", help="of stage 1 (default: EPOCHS)")
    side = "scripts that run side by side, each on the next GPU of several (default: 1, on all)"
    add("--jobs", type=positive, default=1, metavar="N", help=side)
    settings, arguments = parse_settings(parser, config)
    ablation = ablation_of(settings)
    own = _OWN | {name.upper() for name in ablation.switches.values()}
    if refused := sorted(arguments.given & own):
        raise SettingsError(f"{', '.join(refused)}: the ablation sets this itself; leave it out")
    check_output(arguments.output)
    output = arguments.output.resolve()
    rows = ablation.rows if arguments.rows is None else arguments.rows
    sweep = ablation.sweep if arguments.sweep is None else arguments.sweep
    lists = (sorted(set(given)) for given in (rows, arguments.seeds, sweep))
    jobs = plan(settings, output, *lists, pretrain_epochs=arguments.pretrain_epochs)
    check_begun(jobs)
    with locked(output, "running an ablation in"):
        write_settings(settings.replace(output_dir=str(output)), output / SETTINGS)
        run_jobs(jobs, output, arguments.jobs, settings.gpu)


def ablation_of(settings: Settings) -> Ablation:
    """The ablation of MODEL; SettingsError if it has none."""
    ablation = model_class(settings.model).ablation
    if ablation is None:
        names = ", ".join(ABLATIONS)
        raise SettingsError(f"MODEL = {settings.model!r} has no ablation; these have one: {names}")
    return ablation


def plan(
    settings: Settings,
    output: Path,
    rows: list[str],
    seeds: list[int],
    sweep: list[int],
    pretrain_epochs: int | None = None,
) -> list[Job]:
    """All jobs, done or not, in the order in which they start.

    Raises:
        SettingsError: no ablation; rows, seeds, values of the sweep or epochs that are not allowed.
    """
    ablation = ablation_of(settings)
    if unknown := [row for row in rows if row not in ablation.rows]:
        raise SettingsError(
            f"--rows {' '.join(unknown)}: expected rows of {settings.model}'s ablation, "
            f"{', '.join(ablation.rows)}"
        )
    stage1, stage2, tests = {}, [], []
    swept = [row for row in rows if ablation.sweep_needs in ablation.rows[row]][-1:]
    epochs = settings.epochs if pretrain_epochs is None else pretrain_epochs
    for seed in seeds:
        shared = {"resume": "auto", "output_dir": str(output), "seed": seed}
        for row in rows:
            on = ablation.rows[row]
            first = _stage1(settings, ablation, on, shared | {"epochs": epochs})
            first = stage1.setdefault(first.name, first)
            flags = {"run_name": f"{row}_seed{seed}"}
            flags |= {"stage1_checkpoint": str(first.folder / "best.pt")}
            flags |= {name: short in on for short, name in ablation.switches.items()}
            run = _training(settings, "train.py", shared | flags, first)
            lines = {getattr(settings, ablation.swept): {ablation.table: row}}
            for value in sweep if row in swept else ():
                lines.setdefault(value, {})[ablation.sweep_table] = value
            own, *others = (_evaluation(run, ablation, *one) for one in lines.items())
            stage2 += [run, own]
            tests += others
    return [*stage1.values(), *stage2, *tests]


def _stage1(
    settings: Settings, ablation: Ablation, on: tuple[str, ...], flags: dict[str, Any]
) -> Job:
    """The stage 1 of a row with the parts ``on``, named after those that stage 1 has too."""
    parts = {short: short in on for short in ablation.stage1_switches}
    name = "_".join(["pretrain", *(one for one in parts if parts[one]), f"seed{flags['seed']}"])
    switched = {ablation.switches[short]: part for short, part in parts.items()}
    return _training(settings, "pretrain.py", flags | {"run_name": name} | switched)


def _training(
    settings: Settings, script: str, flags: dict[str, Any], after: Job | None = None
) -> Job:
    changes = {name: value for name, value in flags.items() if name != "resume"}
    own, name = settings.replace(**changes), flags["run_name"]
    return Job(name, script, flags, Path(own.output_dir) / name, own, after)


def _evaluation(run: Job, ablation: Ablation, value: int, lines: dict[str, str | int]) -> Job:
    """The evaluation of a run's last checkpoint with ``value`` for the swept setting."""
    as_trained = getattr(run.settings, ablation.swept) == value
    folder = run.folder / ("evaluation" if as_trained else f"evaluation_{ablation.symbol}{value}")
    flags = {"checkpoint": run.folder / LAST, "output": folder, "panel_step": 0}
    if not as_trained:
        run.settings.replace(**{ablation.swept: value})  # raises for a value that is not allowed
        flags[ablation.swept] = value
    name = f"{run.name}_{folder.name}"
    return Job(name, "evaluate.py", flags, run.folder, run.settings, run, folder, lines)


def check_begun(jobs: Iterable[Job]) -> None:
    """Raise SettingsError if one of the runs was begun with other settings."""
    for job in jobs:
        file, here = job.folder / SETTINGS, job.settings
        if job.evaluation is not None or not file.is_file():
            continue
        fixed = here.as_dict().keys() - {*here.marked("machine"), *_WITHOUT_EFFECT}
        if changes := here.differences(read_settings_file(file, here.defaults()), fixed):
            raise SettingsError(
                f"{job.folder} was begun with other settings: {changes}; choose another --output, "
                "or remove that folder"
            )


def _start(command: list[str], log: Path) -> Popen:
    with log.open("ab") as file:
        return Popen(command, stdout=file, stderr=subprocess.STDOUT)


def run_jobs(
    jobs: list[Job],
    output: Path,
    parallel: int,
    gpu: str,
    start: Callable[[list[str], Path], Popen] = _start,
) -> None:
    """Run what is not done, ``parallel`` jobs at a time, and write the tables.

    The jobs are from :func:`plan`, for the same ``output``. Each of several parallel jobs gets the
    next of the GPUs in ``gpu``, a single one gets all.

    Raises:
        SystemExit: a script failed; the message has its last lines.
        Interrupted: Ctrl-C or SIGTERM; the scripts have saved and ended.
    """
    logs = output / "logs"
    logs.mkdir(parents=True, exist_ok=True)
    gpus = [one.strip() for one in gpu.split(",")] if parallel > 1 else [gpu]
    done = {job for job in jobs if job.is_done()}
    todo = [job for job in jobs if job not in done]
    print(f"{len(jobs)} jobs, {len(done)} of them done; logs in {logs}", flush=True)
    running: dict[int, tuple[Job, Popen]] = {}
    # Signals wait for the next round, so that no script is missed while it starts.
    with Interrupts() as interrupts:
        try:
            while todo or running:
                if interrupts.pending is not None:
                    print("stopped; the same command continues", flush=True)
                    raise Interrupted(interrupts.pending)
                for place in set(range(parallel)) - running.keys():
                    ready = (job for job in todo if job.after is None or job.after in done)
                    if job := next(ready, None):
                        todo.remove(job)
                        command = job.command(gpus[place % len(gpus)])
                        running[place] = job, start(command, logs / f"{job.name}.log")
                ended = [place for place in running if running[place][1].poll() is not None]
                for job, script in map(running.pop, ended):
                    _check(job, script.poll(), logs / f"{job.name}.log")
                    done.add(job)
                    print(f"{len(done)}/{len(jobs)} {job.name}", flush=True)
                    if job.evaluation is not None:
                        write_tables(jobs, output)
                time.sleep(0.1)
        finally:
            for _, script in running.values():  # trainings save first
                script.terminate()
            for _, script in running.values():
                script.wait()
    for table in write_tables(jobs, output):
        print(f"\n{table}\n{table.read_text(encoding='utf-8')}", end="")


def _check(job: Job, status: int, log: Path) -> None:
    """End the program unless the job is done; an interrupted script has status 0, too."""
    if status != 0 or not job.is_done():
        text = log.read_text(encoding="utf-8", errors="replace") if log.is_file() else ""
        tail = "\n".join(re.split(r"[\r\n]+", text.strip())[-_TAIL:])
        sys.exit(
            f"error: {job.name} ended with status {status} and is not done; {log} ends with:\n"
            f"{tail}"
        )


def write_tables(jobs: list[Job], output: Path) -> list[Path]:
    """Write the tables of the rows and of the sweep as ``.csv`` and ``.md``; returns the latter.

    Scores are in percent: mean over the seeds and sample standard deviation. Cells without a result
    are empty, and so is the deviation of a single seed.
    """
    ablation = ablation_of(jobs[0].settings)
    tested = [job for job in jobs if job.evaluation is not None]
    found = {job: read_evaluation(job.evaluation) for job in tested if job.is_done()}
    protocol = next(iter(found.values())).protocol
    measures = (["G"] if len(protocol.overall) > 1 else []) + list(protocol.measures)
    columns = [f"{name}_{value}" for name in measures for value in ("mean", "deviation")]
    written = []
    heads = {ablation.table: ["row", *ablation.switches], ablation.sweep_table: [ablation.symbol]}
    for table, head in heads.items():
        with_paper = table == ablation.table and protocol.name == "davis2016"
        paper = ablation.paper if with_paper else {}
        numbers = [[*head, *columns, "seeds"]]
        shown = [[*head, *measures, "seeds", *(f"paper's {m}" for m in measures if paper)]]
        shown.append(["---"] * len(shown[0]))
        for key in sorted({job.lines[table] for job in tested if table in job.lines}):
            seeds = [one.rows[-1] for job, one in found.items() if job.lines.get(table) == key]
            switched = [short in ablation.rows[key] for short in head[1:]]
            cells = [_mean_and_deviation(seeds, measure) for measure in measures]
            padded = [value for cell in cells for value in [*cell, "", ""][:2]]
            numbers.append([key, *map(int, switched), *padded, len(seeds)])
            texts = (" ± ".join(f"{value:.1f}" for value in cell) for cell in cells)
            marks = ("✓" if one else "" for one in switched)
            shown.append([key, *marks, *texts, len(seeds), *paper.get(key, ())])
        if len(numbers) == 1:  # no sweep
            continue
        rows = (f"{','.join(map(str, row))}\n" for row in numbers)
        write_text(output / f"{table}.csv", "".join(rows))
        rows = (f"| {' | '.join(map(str, row))} |\n" for row in shown)
        written.append(output / f"{table}.md")
        write_text(written[-1], "".join(rows))
    return written


def _mean_and_deviation(seeds: list[Row], measure: str) -> list[float]:
    """Empty without seeds; the mean alone for one seed."""
    values = [100 * (s.mean if measure == "G" else s.statistics[measure].mean) for s in seeds]
    return [value(values) for value in (statistics.mean, statistics.stdev)[: len(values)]]


if __name__ == "__main__":
    run_script(main)
