"""Result pages: an evaluation, or several side by side, as one HTML file that needs no network.

``page.html`` is the template of both. Pictures and plots are embedded.
"""

import base64
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jinja2 import StrictUndefined, Template

from datasets.files import write_text
from utils import __version__
from utils.evaluation.protocols import LOWER_IS_BETTER, Row
from utils.evaluation.results import (
    REPORT,
    Evaluation,
    ResultsError,
    false_alarm_line,
    read_evaluation,
)
from utils.reports.frames import Run, frame_means, pick_frames, show_frames
from utils.reports.plots import LINES, plot_scores

COMPARISON = "comparison.html"
NUM_EXTREMES = 4  # best and worst frames that a report shows
NUM_DIFFERENT = 8  # frames that a comparison shows
PER_SEQUENCE = 2  # at most this number of them from one sequence
ELSEWHERE = "none: the masks came from elsewhere"
NOTE = (
    "Each sequence gives one frame before any sequence gives a second one, "
    "and frames of one sequence are not neighbours."
)


def write_report(evaluation: Evaluation, folder: Path) -> Path:
    """Write ``report.html`` and return its path: scores, plots, best and worst frames, settings.

    Pictures of frames come from ``folder/panels``, or else from the data and the masks. If the
    files are gone, the page says so.
    """
    protocol, scores = evaluation.protocol, evaluation.scores.items()
    table = []
    for row in evaluation.rows:
        numbers = {evaluation.title: {"mean": row.mean}}
        for measure, one in row.statistics.items():
            numbers[measure] = {column: getattr(one, column) for column in protocol.columns}
        table.append((row, numbers))
    frames = {}
    for heading, sign in ("Best frames", 1), ("Worst frames", -1):
        values = {name: sign * means for name, means in frame_means(evaluation).items()}
        chosen = pick_frames(values, NUM_EXTREMES, NUM_EXTREMES)
        frames[heading] = NOTE, show_frames([Run("prediction", folder, evaluation)], chosen)
    facts = [
        ("Method", evaluation.method),
        ("Set", f"{evaluation.set_name} in {evaluation.data_root}"),
        ("Checkpoint", evaluation.checkpoint or ELSEWHERE),
        ("Masks", evaluation.masks),
    ]
    if line := false_alarm_line(evaluation):
        facts.append(("Frames without object", line))
    settings = [(name, repr(value)) for name, value in evaluation.settings.items()]
    return _write_page(
        folder / REPORT,
        title=f"{evaluation.method} on {evaluation.set_name}",
        compared=False,
        protocol=protocol,
        cards=[(f"{name} mean", mean, "") for name, mean in _means(evaluation.rows[-1]).items()],
        table=table,
        legend=protocol.measures,
        plots=[(name, plot_scores(one.frames, {"": one.values})) for name, one in scores],
        frames=frames,
        texts=[(["Evaluation", ""], facts), (["Setting", "Value"], settings)],
    )


def write_comparison(folders: Sequence[Path], output: Path) -> Path:
    """Write ``comparison.html`` into ``output`` and return its path: evaluations side by side.

    The folders are those of two or more evaluations; the plots tell up to six apart.

    Raises:
        ResultsError: fewer than two folders, a folder without an evaluation, or evaluations that
            differ in set, protocol, sequences or frames.
    """
    runs = _read_runs(folders)
    first, labels = runs[0].evaluation, [run.label for run in runs]
    # Files may list the sequences in another order.
    means = [{(r.kind, r.name): _means(r) for r in run.evaluation.rows} for run in runs]
    table = []
    for row in first.rows:
        same = [one[row.kind, row.name] for one in means]
        table.append((row, {m: dict(zip(labels, (one[m] for one in same))) for m in same[0]}))
    plots = []
    for name, one in first.scores.items():
        values = {run.label: run.evaluation.scores[name].values for run in runs}
        lines = {m: {label: v[m] for label, v in values.items()} for m in first.protocol.measures}
        plots.append((name, plot_scores(one.frames, lines)))
    facts = [
        (label, one.method, folder, one.checkpoint or ELSEWHERE, one.masks)
        for label, folder, one in runs
    ]
    heads = ["Run", "Method", "Folder", "Checkpoint", "Masks"]
    return _write_page(
        output / COMPARISON,
        title=f"{len(runs)} runs on {first.set_name}",
        compared=True,
        protocol=first.protocol,
        cards=[(f"{e.title} of {label}", e.rows[-1].mean, e.method) for label, _, e in runs],
        table=table,
        legend=labels,
        plots=plots,
        frames={"Frames where they differ most": _differences(runs)},
        texts=[(heads, facts), _differing_settings(runs)],
    )


def _read_runs(folders: Sequence[Path]) -> list[Run]:
    """The evaluations in the folders; they can be compared."""
    if len({folder.resolve() for folder in folders}) < max(2, len(folders)):
        given = ", ".join(map(str, folders))
        raise ResultsError(f"a comparison needs two or more different folders; given: {given}")
    # The part of each path in which they differ: a and b of runs/a/DAVIS and runs/b/DAVIS.
    common = os.path.commonpath([folder.resolve() for folder in folders])
    labels = [folder.resolve().relative_to(common) for folder in folders]
    while len({label.name for label in labels}) == 1:
        labels = [label.parent for label in labels]
    runs = list(map(Run, map(str, labels), folders, map(read_evaluation, folders)))
    for run in runs[1:]:
        one, other = runs[0].evaluation, run.evaluation
        frames, others = ({n: s.frames for n, s in e.scores.items()} for e in (one, other))
        for what, same in {
            "set": one.set_name == other.set_name,
            "protocol": one.protocol == other.protocol,
            "sequences": frames.keys() == others.keys(),
            "frames": frames == others,
        }.items():
            if not same:
                raise ResultsError(
                    f"{runs[0].folder} and {run.folder} differ in their {what}; only evaluations "
                    "of the same set by the same protocol can be compared"
                )
    return runs


def _means(row: Row) -> dict[str, float]:
    """The overall score, and each measure's mean; with a single measure both are the same."""
    means = {measure: one.mean for measure, one in row.statistics.items()}
    return {"&".join(row.overall): row.mean, **means}


def _differences(runs: Sequence[Run]) -> tuple[str, list]:
    """A note, and the frames whose scores differ most between runs."""
    means = [frame_means(run.evaluation) for run in runs]
    spread = {name: np.ptp([one[name] for one in means], axis=0) for name in means[0]}
    chosen = pick_frames(spread, NUM_DIFFERENT, PER_SEQUENCE)
    chosen = [(name, position) for name, position in chosen if spread[name][position] > 0]
    if not chosen:
        return "The runs have the same scores in every frame that counts.", []
    note = (
        f"Ordered by the difference between the highest and the lowest {runs[0].evaluation.title}. "
        f"A sequence gives at most {PER_SEQUENCE} frames."
    )
    return note, show_frames(runs, chosen)


def _differing_settings(runs: Sequence[Run]) -> tuple[list[str], list[list[str]]]:
    """Heads and rows of a table; runs without settings are left out."""
    known = {run.label: run.evaluation.settings for run in runs if run.evaluation.settings}
    rows = []
    for name in dict.fromkeys(name for settings in known.values() for name in settings):
        values = [repr(one[name]) if name in one else "not there" for one in known.values()]
        if len(set(values)) > 1:
            rows.append([name, *values])
    return ["Setting that differs" if rows else "No setting differs", *known], rows


def _three(number: float) -> str:
    """Three decimals; zero has no sign."""
    return f"{round(number, 3) + 0.0:.3f}"


def _write_page(path: Path, **content: Any) -> Path:
    text = Path(__file__).with_name("page.html").read_text(encoding="utf-8")
    page = Template(
        text, autoescape=True, trim_blocks=True, lstrip_blocks=True, undefined=StrictUndefined
    )
    helpers = {"three": _three, "base64": lambda it: base64.b64encode(it).decode(), "styles": LINES}
    helpers |= {"version": __version__, "lower_is_better": LOWER_IS_BETTER}
    write_text(path, page.render(**helpers, **content))
    return path
