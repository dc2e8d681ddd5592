"""The ablation of MODEL, as the network describes it: its rows, and a sweep in the test.

``python -m utils.ablate --output DIR --seeds 0 1 --jobs 2``, with any setting of config.py as a
flag; ``--help`` lists them. However it was stopped, the same command goes on.

Rows whose stage 1 is the same network share one per seed. DIR holds the runs' folders, their
evaluations in them, what the scripts printed in ``logs``, and the tables, which grow with every
evaluation.
"""

import fcntl
import re
import signal
import statistics
import sys
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from datetime import timedelta
from itertools import chain
from pathlib import Path
from subprocess import Popen
from typing import Any

import config
from datasets.files import write_text
from models import MODELS
from models.interface import Ablation
from utils.evaluation.protocols import Row
from utils.evaluation.results import RECORD, read_evaluation
from utils.evaluation.set_evaluation import check_output
from utils.scripts import run_script
from utils.settings import (
    Settings,
    SettingsError,
    parse_settings,
    read_settings_file,
    settings_parser,
    write_settings,
)
from utils.training.checkpoints import LAST, CheckpointError, load_checkpoint
from utils.training.interrupts import Interrupted, Interrupts
from utils.training.run_folder import SETTINGS

_OWN = {"OUTPUT_DIR", "PANEL_STEP", "RUN_NAME", "SEED", "STAGE1_CHECKPOINT"}
_TAIL = 15  # lines of a script that has failed which are shown


ABLATIONS = {name: one.ablation for name, one in MODELS.items() if one.ablation}


@dataclass(frozen=True, eq=False)
class Job:
    """One call of a script.

    Attributes:
        name: for people, and of its log.
        script, flags: what is called.
        folder: of the run that is trained or evaluated, and ``settings`` of that run.
        after: the job whose checkpoint this one needs.
        evaluation: the folder of its results; None for a training.
        lines: where the results go, by table: ``{"table2": "f", "figure7": 3}``.
    """

    name: str
    script: str
    flags: dict[str, Any]
    folder: Path
    settings: Settings
    after: "Job | None" = None
    evaluation: Path | None = None
    lines: dict[str, str | int] = field(default_factory=dict)

    def command(self, gpu: str) -> list[str]:
        """What is to be run, on these GPUs."""
        script = Path(config.__file__).with_name(self.script)
        shared = Path(self.settings.output_dir) / SETTINGS
        command = [sys.executable, str(script), "--config", str(shared)]
        for name, value in {**self.flags, "gpu": gpu}.items():
            text = str(value).lower() if isinstance(value, bool) else str(value)
            command += [f"--{name.replace('_', '-')}", text]
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
        "The ablation of MODEL: trains and evaluates its variants on VAL_SET. All settings but "
        f"{', '.join(sorted(_OWN))} and the network's switches can be changed, for all runs alike.",
    )
    add = parser.add_argument
    add("--output", type=Path, required=True, metavar="DIR", help="folder of everything it makes")
    add("--seeds", type=int, nargs="+", default=[0, 1], metavar="N", help="default: 0 1")
    known = "; ".join(f"{model}: {' '.join(one.rows)}" for model, one in ABLATIONS.items())
    add("--rows", nargs="+", metavar="ROW", help=f"variants (default: all); {known}")
    varied = "; ".join(
        f"{model}: {one.swept.upper()}, for the last row with {one.sweep_needs} "
        f"(default: {' '.join(map(str, one.sweep))})"
        for model, one in ABLATIONS.items()
    )
    varied = f"values of what is varied in the test (nothing: no sweep); {varied}"
    add("--sweep", type=int, nargs="*", metavar="N", help=varied)
    add("--pretrain-epochs", type=int, metavar="N", help="of stage 1 (default: EPOCHS)")
    side = "scripts that run side by side, each on the next GPU of several (default: 1, on all)"
    add("--jobs", type=int, default=1, metavar="N", help=side)
    settings, arguments = parse_settings(parser, config)
    ablation = ablation_of(settings)
    own = _OWN | {name.upper() for name in ablation.switches.values()}
    if refused := sorted(arguments.given & own):
        raise SettingsError(f"{', '.join(refused)}: the ablation sets this itself; leave it out")
    if arguments.jobs < 1:
        raise SettingsError(f"--jobs {arguments.jobs}: expected a whole number above 0")
    check_output(arguments.output)
    output = arguments.output.resolve()
    rows = ablation.rows if arguments.rows is None else arguments.rows
    sweep = ablation.sweep if arguments.sweep is None else arguments.sweep
    lists = (sorted(set(given)) for given in (rows, arguments.seeds, sweep))
    jobs = plan(settings, output, *lists, pretrain_epochs=arguments.pretrain_epochs)
    check_begun(jobs)
    output.mkdir(parents=True, exist_ok=True)
    with (output / ".lock").open("wb") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            sys.exit(f"error: another ablation, or a script that one has left, works in {output}")
        write_settings(settings.replace(output_dir=str(output)), output / SETTINGS)

        def start(command: list[str], log: Path) -> Popen:
            # A script that outlives this process keeps the lock: no run is trained twice at a time.
            with log.open("ab") as file:
                return Popen(command, stdout=file, stderr=file, pass_fds=[lock.fileno()])

        try:
            run_jobs(jobs, output, arguments.jobs, settings.gpu, start)
        except (Interrupted, KeyboardInterrupt):
            print(f"stopped; the same command goes on with what is in {output}")
            raise


def ablation_of(settings: Settings) -> Ablation:
    """That of the network.

    Raises:
        SettingsError: MODEL has none.
    """
    if settings.model not in ABLATIONS:
        raise SettingsError(
            f"MODEL is {settings.model!r}, which has no ablation; these have one: "
            f"{', '.join(ABLATIONS)}. Choose one of them, or describe another in "
            "the network's ``ablation``"
        )
    return ABLATIONS[settings.model]


def plan(
    settings: Settings,
    output: Path,
    rows: list[str],
    seeds: list[int],
    sweep: list[int],
    pretrain_epochs: int | None = None,
) -> list[Job]:
    """All jobs, done or not, in the order in which they are to start.

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


def check_begun(jobs: Iterable[Job]) -> None:
    """Raise SettingsError if one of the runs was begun with other settings."""
    for job in jobs:
        file = job.folder / SETTINGS
        if job.evaluation is not None or not file.is_file():
            continue
        there = read_settings_file(file, job.settings.defaults()).as_dict()
        here = job.settings.as_dict()
        # A run made longer has had another schedule than one of that length.
        fixed = here.keys() - set(job.settings.marked("resume")) | {"EPOCHS"}
        differing = sorted(name for name in fixed if there[name] != here[name])
        if differing:
            changes = [
                f"{name} is {there[name]!r} there, {here[name]!r} here" for name in differing
            ]
            raise SettingsError(
                f"{job.folder} was begun with other settings: {', '.join(changes)}; the runs of a "
                "table share theirs: choose another --output, or remove that folder"
            )


def run_jobs(
    jobs: list[Job],
    output: Path,
    parallel: int,
    gpu: str,
    start: Callable[[list[str], Path], Popen],
) -> None:
    """Run what is not done, ``parallel`` jobs at a time, and write the tables.

    Args:
        jobs: from :func:`plan`, for the same ``output``.
        output: folder for logs and tables.
        parallel: each of several jobs gets the next of the GPUs, a single one gets all.
        gpu: the setting GPU.
        start: starts a command that prints to a file.

    Raises:
        SystemExit: a script has failed; the message has its last lines.
        Interrupted: Ctrl-C or SIGTERM; the scripts have saved and ended.
    """
    (output / "logs").mkdir(parents=True, exist_ok=True)
    gpus = gpu.split(",") if parallel > 1 else [gpu]
    done = {job for job in jobs if job.is_done()}
    todo = [job for job in jobs if job not in done]
    print(f"{len(jobs)} jobs, {len(done)} done before; logs in {output / 'logs'}", flush=True)
    running: dict[int, tuple[Job, Popen, float]] = {}
    took: dict[str, list[float]] = {}
    # Signals wait for the next round, lest one miss a script that is just being started.
    with Interrupts() as interrupts, interrupts.deferred():
        try:
            while todo or running:
                if interrupts.pending is not None:
                    raise Interrupted(interrupts.pending)
                for place in set(range(parallel)) - running.keys():
                    ready = (job for job in todo if job.after is None or job.after in done)
                    if job := next(ready, None):
                        todo.remove(job)
                        script = start(job.command(gpus[place % len(gpus)]), _log(output, job))
                        running[place] = job, script, time.monotonic()
                ended = [place for place in running if running[place][1].poll() is not None]
                for place in ended:
                    job, script, since = running.pop(place)
                    # One that was interrupted by itself ends with status 0, too.
                    if script.poll() != 0 or not job.is_done():
                        sys.exit(_failure(job, script.poll(), _log(output, job)))
                    done.add(job)
                    took.setdefault(job.script, []).append(time.monotonic() - since)
                    rest = [job for job in jobs if job not in done]
                    print(f"{len(done)}/{len(jobs)} {_result(job)}", end=", ")
                    print(_times(took[job.script][-1], rest, took, parallel), flush=True)
                    if job.evaluation is not None:
                        write_tables(jobs, output)
                if not ended:
                    time.sleep(0.1)
        except BaseException:
            _stop([script for _, script, _ in running.values()])
            raise
    for table in write_tables(jobs, output):
        print(f"\n{table}\n{table.read_text(encoding='utf-8')}", end="")


def write_tables(jobs: list[Job], output: Path) -> list[Path]:
    """Write the tables of the rows and of the sweep, as far as evaluated, as ``.csv`` and ``.md``.

    Scores are in percent: mean over the seeds and sample standard deviation, which a single seed
    does not have. Cells of what is still to come are empty. Returns the Markdown files.
    """
    ablation = ablation_of(jobs[0].settings)
    tested = [job for job in jobs if job.evaluation is not None]
    found = {job: read_evaluation(job.evaluation) for job in tested if job.is_done()}
    protocol = next(iter(found.values())).protocol
    measures = (["G"] if len(protocol.measures) > 1 else []) + list(protocol.measures)
    written = []
    heads = {ablation.table: ["row", *ablation.switches], ablation.sweep_table: [ablation.symbol]}
    for table, head in heads.items():
        results: dict[str | int, list[Row]] = {job.lines.get(table): [] for job in tested}
        for job, evaluation in found.items():
            results[job.lines.get(table)].append(evaluation.rows[-1])
        results.pop(None, None)
        if not results:
            continue
        with_paper = table == ablation.table and protocol.name == "davis2016"
        paper = ablation.paper if with_paper else {}
        columns = (f"{name}_{value}" for name in measures for value in ("mean", "deviation"))
        numbers = [[*head, *columns, "seeds"]]
        shown = [[*head, *measures, "seeds", *(f"paper's {m}" for m in measures if paper)]]
        shown.append(["---"] * len(shown[0]))
        for key, seeds in sorted(results.items()):
            switched = [short in ablation.rows[key] for short in head[1:]]
            cells = [_mean_and_deviation(seeds, measure) for measure in measures]
            padded = chain(*([*cell, "", ""][:2] for cell in cells))
            numbers.append([key, *map(int, switched), *padded, len(seeds)])
            texts = (" ± ".join(f"{value:.1f}" for value in cell) for cell in cells)
            marks = ("✓" if one else "" for one in switched)
            shown.append([key, *marks, *texts, len(seeds), *paper.get(key, ())])
        csv = "".join(",".join(map(str, row)) + "\n" for row in numbers)
        write_text(output / f"{table}.csv", csv)
        markdown = "".join(f"| {' | '.join(map(str, row))} |\n" for row in shown)
        write_text(output / f"{table}.md", markdown)
        written.append(output / f"{table}.md")
    return written


def _mean_and_deviation(seeds: list[Row], measure: str) -> list[float]:
    """As many of the two as there are."""
    values = [100 * (s.mean if measure == "G" else s.statistics[measure].mean) for s in seeds]
    return [value(values) for value in (statistics.mean, statistics.stdev)[: len(values)]]


def _stage1(
    settings: Settings, ablation: Ablation, on: tuple[str, ...], flags: dict[str, Any]
) -> Job:
    """Of a row that has these parts; named by those that make another stage 1 of it."""
    whole = settings.pretrain_motion == "simulated"  # then stage 1 has all of the network
    shared = ablation.switches if whole else ablation.stage1_switches
    parts = {short: short in on for short in shared}
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
    """Of a run's last checkpoint with ``value`` for the setting that is swept."""
    as_trained = getattr(run.settings, ablation.swept) == value
    folder = run.folder / ("evaluation" if as_trained else f"evaluation_{ablation.symbol}{value}")
    flags = {"checkpoint": run.folder / LAST, "output": folder, "panel_step": 0}
    if not as_trained:
        changed = run.settings.replace(**{ablation.swept: value})  # refuses what is not allowed
        flags[ablation.swept] = getattr(changed, ablation.swept)
    name = f"{run.name}_{folder.name}"
    return Job(name, "evaluate.py", flags, run.folder, run.settings, run, folder, lines)


def _log(output: Path, job: Job) -> Path:
    return output / "logs" / f"{job.name}.log"


def _result(job: Job) -> str:
    if job.evaluation is None:
        return f"{job.name} trained"
    average = read_evaluation(job.evaluation).rows[-1]
    return f"{job.name} {'&'.join(average.statistics)} {100 * average.mean:.1f}"


def _times(last: float, rest: list[Job], took: dict[str, list[float]], parallel: int) -> str:
    """Of the last job, and of the rest as far as jobs of the kind have been timed."""
    known = [statistics.mean(took[job.script]) for job in rest if job.script in took]
    words = "about" if len(known) == len(rest) else "more than"
    left = timedelta(seconds=round(sum(known) / parallel))
    return f"{timedelta(seconds=round(last))}; {words} {left} left"


def _failure(job: Job, status: int, log: Path) -> str:
    text = log.read_text(encoding="utf-8", errors="replace") if log.is_file() else ""
    tail = "\n".join(re.split(r"[\r\n]+", text.strip())[-_TAIL:])
    return f"error: {job.name} ended with status {status} and is not done; {log} ends with:\n{tail}"


def _stop(scripts: list[Popen]) -> None:
    """End the scripts; trainings save first, unless Ctrl-C comes again."""
    for script in scripts:
        script.terminate()  # nothing new to those that have had the terminal's Ctrl-C
    try:
        for script in scripts:
            script.wait()
    except KeyboardInterrupt:
        for script in scripts:
            script.send_signal(signal.SIGINT)
        raise


if __name__ == "__main__":
    run_script(main)
