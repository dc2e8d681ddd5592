"""The paper's ablations: Table 2, rows (a) to (f), and Figure 7, the sweep over T.

``python -m utils.ablate --output DIR --seeds 0 1 --jobs 2``, with any setting of config.py as a
flag; ``--help`` lists them all. Stopped in whatever way, the same command goes on.

Stage 1 has no slots, so it is trained once per seed and shared by the six rows. DIR holds a run
folder each (``pretrain_seed0``, ``a_seed0``, ...) with its evaluations, what the scripts printed in
``logs``, and the tables as Markdown and CSV, written anew whenever an evaluation has finished.
"""

import csv
import fcntl
import io
import re
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any, BinaryIO

import config
from utils.checkpoints import LAST, CheckpointError, load_checkpoint
from utils.interrupts import Interrupted, Interrupts
from utils.protocols import Row
from utils.results import RECORD, read_evaluation, write_text
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
# What each row of Table 2 has switched on.
ROWS = {
    "a": (),
    "b": ("SA",),
    "c": ("GS", "SA"),
    "d": ("KNN", "SA"),
    "e": ("GS", "KNN", "SA"),
    "f": ("GS", "KNN", "SA", "FAT"),
}
# The paper's scores: G, J and F on DAVIS 2016, J on FBMS.
PAPER = {
    "davis2016": {
        "a": (83.7, 83.3, 84.1),
        "b": (84.1, 83.8, 84.2),
        "c": (86.1, 85.8, 86.4),
        "d": (84.9, 84.6, 85.2),
        "e": (86.5, 86.7, 86.5),
        "f": (87.7, 87.0, 88.4),
    },
    "fbms": {"a": (76.1,), "b": (76.3,), "c": (78.4,), "d": (77.5,), "e": (78.9,), "f": (79.2,)},
}
TABLES = ("table2", "figure7")

_CODE = Path(config.__file__).parent
# Settings that make the runs differ, or that only this module can know.
_OWN = {"OUTPUT_DIR", "PANEL_STEP", "RUN_NAME", "SEED", "STAGE1_CHECKPOINT"}
_OWN |= {name.upper() for name in SWITCHES.values()}
_TAIL = 15  # lines of a script that failed which are shown


@dataclass(frozen=True, eq=False)
class Job:
    """One call of a script.

    Attributes:
        name: for people, and of its log.
        script, flags: what is called.
        folder: of the run that is trained or evaluated.
        settings: of the run.
        after: the job whose checkpoint this one needs.
        evaluation: the folder of its results; None for a training.
        lines: of the tables that the results go into, as ("table2", "f") or ("figure7", 3).
    """

    name: str
    script: str
    flags: dict[str, Any]
    folder: Path
    settings: Settings
    after: "Job | None" = None
    evaluation: Path | None = None
    lines: tuple[tuple[str, str | int], ...] = ()

    def command(self, gpu: str) -> list[str]:
        """What is to be run, on these GPUs."""
        file = Path(self.settings.output_dir) / SETTINGS
        command = [sys.executable, str(_CODE / self.script), "--config", str(file)]
        for name, value in ({"gpu": gpu} | self.flags).items():
            text = str(value).lower() if isinstance(value, bool) else str(value)
            command += [f"--{name.replace('_', '-')}", text]
        return command

    def is_done(self) -> bool:
        """Whether the run is at its last epoch, or its checkpoint has been evaluated."""
        last = self.folder / LAST
        if self.evaluation is not None:
            record = self.evaluation / RECORD
            found = last.is_file() and record.is_file()
            return found and record.stat().st_mtime_ns >= last.stat().st_mtime_ns
        try:
            return load_checkpoint(last)["progress"]["epoch"] >= self.settings.epochs
        except CheckpointError:
            return False


def main() -> None:
    """Read the settings, train and evaluate what is not there yet, write the tables."""
    parser = settings_parser(
        config,
        "Table 2 and Figure 7: trains and evaluates all variants on VAL_SET. All settings but "
        f"{', '.join(sorted(_OWN))} can be changed, for all runs alike.",
    )
    parser.add_argument("--output", type=Path, required=True, metavar="DIR", help="for all results")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1], metavar="N")
    parser.add_argument("--rows", choices=ROWS, nargs="+", default=list(ROWS), help="of Table 2")
    parser.add_argument(
        "--iterations",
        type=int,
        nargs="*",
        default=[1, 2, 3, 4, 5],
        metavar="T",
        help="of Figure 7, tested with the last row that has slot attention; none: no Figure 7",
    )
    parser.add_argument("--pretrain-epochs", type=int, metavar="N", help="default: EPOCHS")
    parser.add_argument(
        "--jobs",
        type=int,
        default=1,
        metavar="N",
        help="scripts that run side by side, each on one of the GPUs; 1 gives it all of them",
    )
    settings, arguments = parse_settings(parser, config)
    refused = sorted(arguments.given & _OWN)
    if refused:
        flags = ", ".join("--" + name.lower().replace("_", "-") for name in refused)
        raise SettingsError(f"{flags}: set by the ablation itself; leave it out")
    if arguments.jobs < 1:
        raise SettingsError(f"--jobs {arguments.jobs}: expected a whole number above 0")
    output = arguments.output.resolve()
    jobs = plan(
        settings,
        output,
        rows=sorted(set(arguments.rows)),
        seeds=sorted(set(arguments.seeds)),
        iterations=sorted(set(arguments.iterations)),
        pretrain_epochs=arguments.pretrain_epochs or settings.epochs,
    )
    check_begun(jobs)
    output.mkdir(parents=True, exist_ok=True)
    with _lock(output) as lock:
        write_settings(settings.replace(output_dir=str(output)), output / SETTINGS)

        def start(command: list[str], log: Path) -> subprocess.Popen:
            # A script that outlives this process holds the lock, so that none is started twice.
            with log.open("ab") as file:
                return subprocess.Popen(command, stdout=file, stderr=file, pass_fds=[lock.fileno()])

        try:
            run_jobs(jobs, output / "logs", arguments.jobs, settings.gpu, start)
        except (Interrupted, KeyboardInterrupt):
            print(f"stopped; the same command goes on with what is in {output}")
            raise
    for table in sorted(output.glob("*.md")):
        print(f"\n{table}:\n\n{table.read_text(encoding='utf-8')}", end="")


def plan(
    settings: Settings,
    output: Path,
    rows: list[str],
    seeds: list[int],
    iterations: list[int],
    pretrain_epochs: int,
) -> list[Job]:
    """All jobs, done or not, in the order in which they are to be started.

    Raises:
        SettingsError: seeds, iterations or epochs that are not allowed.
    """
    refined = [row for row in rows if "SA" in ROWS[row]]
    first, trained, swept = [], [], []
    for seed in seeds:
        common = {"resume": "auto", "output_dir": output, "seed": seed}
        name = f"pretrain_seed{seed}"
        flags = {**common, "run_name": name, "epochs": pretrain_epochs}
        stage1 = Job(name, "pretrain.py", flags, output / name, _of_run(settings, flags))
        first.append(stage1)
        for row in rows:
            name = f"{row}_seed{seed}"
            flags = {**common, "run_name": name, "stage1_checkpoint": stage1.folder / "best.pt"}
            flags |= {setting: short in ROWS[row] for short, setting in SWITCHES.items()}
            run = Job(name, "train.py", flags, output / name, _of_run(settings, flags), stage1)
            lines = {settings.num_iterations: [("table2", row)]}
            if [row] == refined[-1:]:
                for count in iterations:
                    lines.setdefault(count, []).append(("figure7", count))
            own, *others = (_evaluation(run, *one) for one in lines.items())
            trained += [run, own]
            swept += others
    return first + trained + swept


def check_begun(jobs: Iterable[Job]) -> None:
    """See to it that what is there already was made with the same settings.

    Raises:
        SettingsError: a run that has begun with others.
    """
    for job in jobs:
        file = job.folder / SETTINGS
        if job.evaluation is not None or not file.is_file():
            continue
        there, here = read_settings_file(file).as_dict(), job.settings.as_dict()
        # A run that is made longer would follow another schedule than one trained at a stretch.
        differing = [
            f"{name} is {there[name]!r} there, {here[name]!r} here"
            for name in here
            if there[name] != here[name] and (name == "EPOCHS" or name not in RESUMABLE)
        ]
        if differing:
            raise SettingsError(
                f"{job.folder} was begun with other settings: {', '.join(differing)}; the runs of "
                "one table share theirs, so choose another --output or remove that folder"
            )


def run_jobs(
    jobs: list[Job],
    logs: Path,
    parallel: int,
    gpu: str,
    start: Callable[[list[str], Path], subprocess.Popen],
) -> None:
    """Run what is not done, ``parallel`` at a time; write the tables after every evaluation.

    Args:
        jobs: from :func:`plan`.
        logs: folder for what the scripts print.
        parallel: how many run side by side, each on the next of the GPUs if there are several.
        gpu: the setting.
        start: starts a command that prints to a file.

    Raises:
        SystemExit: a script has failed; the message has its last lines.
        Interrupted: Ctrl-C or SIGTERM; the scripts have been stopped.
    """
    logs.mkdir(parents=True, exist_ok=True)
    gpus = gpu.split(",") if parallel > 1 else [gpu]
    done = {job for job in jobs if job.is_done()}
    todo = [job for job in jobs if job not in done]
    print(f"{len(jobs)} jobs, {len(done)} of them done before; logs in {logs}", flush=True)
    if any(job.evaluation for job in done):
        write_tables(jobs, logs.parent)
    running: dict[int, tuple[Job, subprocess.Popen, float]] = {}
    took: dict[str, list[float]] = {}
    # A signal waits for the loop's next round, lest it miss a script that is just being started.
    with Interrupts() as interrupts, interrupts.deferred():
        try:
            while todo or running:
                if interrupts.pending is not None:
                    raise Interrupted(interrupts.pending)
                for place in set(range(parallel)) - running.keys():
                    ready = (job for job in todo if job.after is None or job.after in done)
                    if (job := next(ready, None)) is not None:
                        todo.remove(job)
                        command = job.command(gpus[place % len(gpus)])
                        running[place] = job, start(command, _log(logs, job)), time.monotonic()
                ended = {p: one for p, one in running.items() if one[1].poll() is not None}
                for place, (job, script, since) in ended.items():
                    del running[place]
                    # A script that was interrupted on its own also ends with status 0.
                    if script.poll() != 0 or not job.is_done():
                        sys.exit(_failure(job, script.poll(), _log(logs, job)))
                    done.add(job)
                    took.setdefault(job.script, []).append(time.monotonic() - since)
                    result = "trained"
                    if job.evaluation is not None:
                        write_tables(jobs, logs.parent)
                        average = read_evaluation(job.evaluation).rows[-1]
                        result = f"{'&'.join(average.statistics)} {100 * average.mean:.1f}"
                    rest = [*todo, *(one[0] for one in running.values())]
                    print(
                        f"{len(done)}/{len(jobs)} {job.name}: {result}, "
                        f"{timedelta(seconds=round(took[job.script][-1]))}; "
                        f"{_time_left(rest, took, parallel)}",
                        flush=True,
                    )
                if not ended:
                    time.sleep(0.1)
        except BaseException:
            _stop([script for _, script, _ in running.values()])
            raise


def write_tables(jobs: list[Job], output: Path) -> None:
    """Write ``table2`` and ``figure7`` of what has been evaluated, as ``.md`` and ``.csv``.

    Scores are in percent: the mean over seeds and the sample standard deviation, which one seed
    does not have. What is still to come has empty cells.
    """
    tested = [job for job in jobs if job.evaluation is not None]
    found = {job: read_evaluation(job.evaluation) for job in tested if job.is_done()}
    first = next(iter(found.values()))
    measures = ["G", *first.protocol.measures] if len(first.protocol.measures) > 1 else ["J"]
    paper = PAPER.get(first.protocol.name, {})
    for table in TABLES:
        averages: dict[str | int, list[Row]] = {}
        for job in tested:
            for key in (key for name, key in job.lines if name == table):
                averages.setdefault(key, [])
                if job in found:
                    averages[key].append(found[job].rows[-1])
        head = ["row", *SWITCHES] if table == "table2" else ["T"]
        theirs = [f"paper's {name}" for name in measures] if table == "table2" and paper else []
        columns = [f"{name}_{value}" for name in measures for value in ("mean", "deviation")]
        rows: list[list[Any]] = [[*head, *columns, "seeds"]]
        text = f"{first.set_name}, percent, mean ± standard deviation over seeds\n\n"
        text += _markdown([*head, *measures, "seeds", *theirs])
        text += _markdown(["---"] * (len(head) + len(measures) + 1 + len(theirs)))
        for key, seeds in sorted(averages.items()):
            on = [short in ROWS[key] for short in SWITCHES] if table == "table2" else []
            cells = [_mean_and_deviation(seeds, name) for name in measures]
            rows.append(
                [key, *map(int, on), *(value for cell in cells for value in cell), len(seeds)]
            )
            shown = [" ± ".join(f"{value:.1f}" for value in cell if value != "") for cell in cells]
            ours = [f"({key})" if on else key, *("✓" if one else "" for one in on), *shown]
            text += _markdown([*ours, len(seeds), *(paper[key] if theirs else ())])
        if averages:
            write_text(output / f"{table}.md", text)
            numbers = io.StringIO(newline="")
            csv.writer(numbers).writerows(rows)
            write_text(output / f"{table}.csv", numbers.getvalue())


def _mean_and_deviation(averages: list[Row], measure: str) -> tuple[float | str, float | str]:
    values = [
        100 * (one.mean if measure == "G" else one.statistics[measure].mean) for one in averages
    ]
    return (
        statistics.mean(values) if values else "",
        statistics.stdev(values) if len(values) > 1 else "",
    )


def _markdown(cells: Iterable[Any]) -> str:
    return "| " + " | ".join(map(str, cells)) + " |\n"


def _of_run(settings: Settings, flags: dict[str, Any]) -> Settings:
    """The settings of a run that is started with these flags."""
    changes = {name: value for name, value in flags.items() if name != "resume"}
    paths = {name: str(value) for name, value in changes.items() if isinstance(value, Path)}
    return settings.replace(**changes | paths)


def _evaluation(run: Job, iterations: int, lines: list[tuple[str, str | int]]) -> Job:
    """The evaluation of a run's last checkpoint with ``iterations`` rounds of slot attention."""
    own = run.settings.num_iterations == iterations
    folder = run.folder / ("evaluation" if own else f"evaluation_T{iterations}")
    flags = {"checkpoint": run.folder / LAST, "output": folder, "panel_step": 0}
    if not own:
        flags["num_iterations"] = run.settings.replace(num_iterations=iterations).num_iterations
    name = f"{run.name}_{folder.name}"
    return Job(name, "evaluate.py", flags, run.folder, run.settings, run, folder, tuple(lines))


@contextmanager
def _lock(output: Path) -> Iterator[BinaryIO]:
    """Hold a folder, so that no run in it is trained twice at a time."""
    with (output / ".lock").open("wb") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            sys.exit(f"error: another ablation, or a script that one has left, works in {output}")
        yield file


def _log(logs: Path, job: Job) -> Path:
    return logs / f"{job.name}.log"


def _failure(job: Job, status: int, log: Path) -> str:
    text = log.read_text(encoding="utf-8", errors="replace") if log.is_file() else ""
    tail = "\n".join(re.split(r"[\r\n]+", text.strip())[-_TAIL:])
    return f"error: {job.name} ended with status {status} before it was done; see {log}:\n{tail}"


def _time_left(rest: list[Job], took: dict[str, list[float]], parallel: int) -> str:
    """By the scripts' mean times so far, of which some may be unknown yet."""
    known = [statistics.mean(took[job.script]) for job in rest if job.script in took]
    words = "about" if len(known) == len(rest) else "more than"
    return f"{words} {timedelta(seconds=round(sum(known) / parallel))} left"


def _stop(scripts: list[subprocess.Popen]) -> None:
    """End the scripts; trainings save first, unless Ctrl-C comes once more."""
    for script in scripts:
        # Also after the terminal's Ctrl-C, which they have had too; they take it for the same one.
        script.terminate()
    try:
        for script in scripts:
            script.wait()
    except KeyboardInterrupt:
        for script in scripts:
            script.send_signal(signal.SIGINT)
        raise


if __name__ == "__main__":
    run_script(main)
