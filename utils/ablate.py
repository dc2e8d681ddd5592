"""The paper's ablations: Table 2, rows (a) to (f), and Figure 7, the sweep over T in the test.

``python -m utils.ablate --output DIR --seeds 0 1 --jobs 2``, with any setting of config.py as a
flag; ``--help`` lists them. However it was stopped, the same command goes on.

Stage 1 has no slots, so all rows share one per seed. DIR holds the runs' folders, their evaluations
in them, what the scripts printed in ``logs``, and the tables, which grow with every evaluation.
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
from utils.checkpoints import LAST, CheckpointError, load_checkpoint
from utils.files import write_text
from utils.interrupts import Interrupted, Interrupts
from utils.protocols import Row
from utils.results import RECORD, read_evaluation
from utils.runs import RESUMABLE, SETTINGS
from utils.scripts import run_script
from utils.settings import (
    Settings,
    SettingsError,
    parse_settings,
    read_settings_file,
    settings_parser,
    write_settings,
)

SWITCHES = {
    "GS": "guided_slots",
    "KNN": "knn_filtering",
    "SA": "slot_attention",
    "FAT": "aggregation_transformer",
}
# Table 2: what each row has switched on, and the paper's G, J and F on DAVIS 2016.
ROWS: dict[str, tuple[tuple[str, ...], tuple[float, ...]]] = {
    "a": ((), (83.7, 83.3, 84.1)),
    "b": (("SA",), (84.1, 83.8, 84.2)),
    "c": (("GS", "SA"), (86.1, 85.8, 86.4)),
    "d": (("KNN", "SA"), (84.9, 84.6, 85.2)),
    "e": (("GS", "KNN", "SA"), (86.5, 86.7, 86.5)),
    "f": (("GS", "KNN", "SA", "FAT"), (87.7, 87.0, 88.4)),
}

_OWN = {"OUTPUT_DIR", "PANEL_STEP", "RUN_NAME", "SEED", "STAGE1_CHECKPOINT"}
_OWN |= {name.upper() for name in SWITCHES.values()}
_TAIL = 15  # lines of a script that has failed which are shown


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
            return load_checkpoint(last)["progress"]["epoch"] >= self.settings.epochs
        except CheckpointError:
            return False


def main() -> None:
    """Read the settings, train and evaluate what is not done yet, write the tables."""
    parser = settings_parser(
        config,
        "Table 2 and Figure 7 of the paper: trains and evaluates its variants on VAL_SET. All "
        f"settings but {', '.join(sorted(_OWN))} can be changed, for all runs alike.",
    )
    add = parser.add_argument
    add("--output", type=Path, required=True, metavar="DIR", help="folder of everything it makes")
    add("--seeds", type=int, nargs="+", default=[0, 1], metavar="N", help="default: 0 1")
    add("--rows", choices=ROWS, nargs="+", default=[*ROWS], help="of Table 2 (default: all)")
    swept = "T of Figure 7, for the last row with SA (default: 1 to 5; nothing: no Figure 7)"
    add("--iterations", type=int, nargs="*", default=[1, 2, 3, 4, 5], metavar="T", help=swept)
    add("--pretrain-epochs", type=int, metavar="N", help="of stage 1 (default: EPOCHS)")
    side = "scripts that run side by side, each on the next GPU of several (default: 1, on all)"
    add("--jobs", type=int, default=1, metavar="N", help=side)
    settings, arguments = parse_settings(parser, config)
    if refused := sorted(arguments.given & _OWN):
        raise SettingsError(f"{', '.join(refused)}: the ablation sets this itself; leave it out")
    if arguments.jobs < 1:
        raise SettingsError(f"--jobs {arguments.jobs}: expected a whole number above 0")
    output = arguments.output.resolve()
    lists = (
        sorted(set(given)) for given in (arguments.rows, arguments.seeds, arguments.iterations)
    )
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


def plan(
    settings: Settings,
    output: Path,
    rows: list[str],
    seeds: list[int],
    iterations: list[int],
    pretrain_epochs: int | None = None,
) -> list[Job]:
    """All jobs, done or not, in the order in which they are to start.

    Raises:
        SettingsError: seeds, iterations or epochs that are not allowed.
    """
    stage1, stage2, sweep = [], [], []
    swept = [row for row in rows if "SA" in ROWS[row][0]][-1:]
    for seed in seeds:
        shared = {"resume": "auto", "output_dir": str(output), "seed": seed}
        epochs = settings.epochs if pretrain_epochs is None else pretrain_epochs
        first = _training(
            settings, "pretrain.py", shared | {"run_name": f"pretrain_seed{seed}", "epochs": epochs}
        )
        stage1.append(first)
        for row in rows:
            flags = {"run_name": f"{row}_seed{seed}"}
            flags |= {"stage1_checkpoint": str(first.folder / "best.pt")}
            flags |= {name: short in ROWS[row][0] for short, name in SWITCHES.items()}
            run = _training(settings, "train.py", shared | flags, first)
            lines = {settings.num_iterations: {"table2": row}}
            for count in iterations if row in swept else ():
                lines.setdefault(count, {})["figure7"] = count
            own, *others = (_evaluation(run, *one) for one in lines.items())
            stage2 += [run, own]
            sweep += others
    return stage1 + stage2 + sweep


def check_begun(jobs: Iterable[Job]) -> None:
    """Raise SettingsError if one of the runs was begun with other settings."""
    for job in jobs:
        file = job.folder / SETTINGS
        if job.evaluation is not None or not file.is_file():
            continue
        there, here = read_settings_file(file).as_dict(), job.settings.as_dict()
        # A run made longer has had another schedule than one of that length.
        fixed = here.keys() - (RESUMABLE - {"EPOCHS"})
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
    """Write ``table2`` and ``figure7``, as far as evaluated, as ``.csv`` and ``.md``.

    Scores are in percent: mean over the seeds and sample standard deviation, which a single seed
    does not have. Cells of what is still to come are empty. Returns the Markdown files.
    """
    tested = [job for job in jobs if job.evaluation is not None]
    found = {job: read_evaluation(job.evaluation) for job in tested if job.is_done()}
    protocol = next(iter(found.values())).protocol
    measures = (["G"] if len(protocol.measures) > 1 else []) + list(protocol.measures)
    written = []
    for table, head in (("table2", ["row", *SWITCHES]), ("figure7", ["T"])):
        results: dict[str | int, list[Row]] = {job.lines.get(table): [] for job in tested}
        for job, evaluation in found.items():
            results[job.lines.get(table)].append(evaluation.rows[-1])
        results.pop(None, None)
        if not results:
            continue
        with_paper = table == "table2" and protocol.name == "davis2016"
        columns = (f"{name}_{value}" for name in measures for value in ("mean", "deviation"))
        numbers = [[*head, *columns, "seeds"]]
        shown = [[*head, *measures, "seeds", *(f"paper's {m}" for m in measures if with_paper)]]
        shown.append(["---"] * len(shown[0]))
        for key, seeds in sorted(results.items()):
            on, paper = ROWS.get(key, ((), ()))
            switched = [short in on for short in head[1:]]
            cells = [_mean_and_deviation(seeds, measure) for measure in measures]
            padded = chain(*([*cell, "", ""][:2] for cell in cells))
            numbers.append([key, *map(int, switched), *padded, len(seeds)])
            texts = (" ± ".join(f"{value:.1f}" for value in cell) for cell in cells)
            marks = ("✓" if one else "" for one in switched)
            shown.append([key, *marks, *texts, len(seeds), *(paper if with_paper else ())])
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


def _training(
    settings: Settings, script: str, flags: dict[str, Any], after: Job | None = None
) -> Job:
    changes = {name: value for name, value in flags.items() if name != "resume"}
    own, name = settings.replace(**changes), flags["run_name"]
    return Job(name, script, flags, Path(own.output_dir) / name, own, after)


def _evaluation(run: Job, iterations: int, lines: dict[str, str | int]) -> Job:
    """Of a run's last checkpoint with ``iterations`` rounds of slot attention."""
    as_trained = run.settings.num_iterations == iterations
    folder = run.folder / ("evaluation" if as_trained else f"evaluation_T{iterations}")
    flags = {"checkpoint": run.folder / LAST, "output": folder, "panel_step": 0}
    if not as_trained:
        flags |= {"num_iterations": run.settings.replace(num_iterations=iterations).num_iterations}
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
