"""Result pages: an evaluation, or several side by side, as one HTML file that needs no network.

``page.html`` is the template of both. Pictures and plots are embedded.
"""

import base64
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import numpy as np
from jinja2 import StrictUndefined, Template

from datasets.files import write_text
from datasets.layout import Frame, find_video_sequences, frame_label
from datasets.masks import read_binary_mask, read_mask
from datasets.pictures import read_image
from datasets.problems import DatasetError
from utils.evaluation.protocols import Row
from utils.evaluation.results import REPORT, Evaluation, ResultsError, read_evaluation
from utils.reports.pictures import PANEL_WIDTH, draw_mask, panel_sized
from utils.reports.plots import LINES, plot_scores

COMPARISON = "comparison.html"
NUM_EXTREMES = 4  # best and worst frames that a report shows
NUM_DIFFERENT = 8  # frames that a comparison shows
PER_SEQUENCE = 2  # of these, at most this number is of one sequence
JPEG_QUALITY = 80
LISTED = 10  # names in an error message
ELSEWHERE = "none: the masks came from elsewhere"
NOTE = (
    "Each sequence gives one frame before any sequence gives a second one, "
    "and frames of one sequence are not neighbours."
)

Files = dict[tuple[str, str], Frame]  # by sequence and frame without the sequence's name
Tile = tuple[str, str, bytes | None]  # name, scores, and a JPEG, None if its file is gone
ShownFrame = tuple[str, str, list[Tile]]  # sequence and frame, scores, pictures


class _Run(NamedTuple):
    """An evaluation on a page."""

    label: str
    folder: Path
    evaluation: Evaluation


def write_report(evaluation: Evaluation, folder: Path) -> Path:
    """Write ``report.html``: scores, plots over time, best and worst frames, settings.

    Pictures of frames come from ``folder/panels``, or else from the data and the masks. Where the
    files are gone, the page says so.

    Args:
        evaluation: what the page shows.
        folder: the evaluation's; it is made if it does not exist.

    Returns:
        The file, written whole or not at all.
    """
    protocol, scores, rows = evaluation.protocol, evaluation.scores, evaluation.rows
    table = []
    for row in rows:
        numbers = {
            measure: {column: getattr(one, column) for column in protocol.columns}
            for measure, one in row.statistics.items()
        }
        table.append((row, {evaluation.title: {"mean": row.mean}, **numbers}))
    plots = [(name, plot_scores(one.frames, {"": one.values})) for name, one in scores.items()]
    runs, files, extremes = [_Run("prediction", folder, evaluation)], _find_frames(evaluation), {}
    for heading, sign in ("Best frames", 1), ("Worst frames", -1):
        values = {name: sign * means for name, means in _frame_means(evaluation).items()}
        chosen = _pick(values, NUM_EXTREMES, NUM_EXTREMES)
        extremes[heading] = NOTE, _show_frames(runs, files, chosen)
    facts = {
        "Method": evaluation.method,
        "Set": f"{evaluation.set_name} in {evaluation.data_root}",
        "Checkpoint": evaluation.checkpoint or ELSEWHERE,
        "Masks": evaluation.masks,
    }
    settings = {name: repr(value) for name, value in evaluation.settings.items()}
    return _write_page(
        folder / REPORT,
        title=f"{evaluation.method} on {evaluation.set_name}",
        compared=False,
        protocol=protocol,
        cards=[(f"{name} mean", mean, "") for name, mean in _means(rows[-1]).items()],
        table=table,
        legend=protocol.measures,
        plots=plots,
        frames=extremes,
        texts=[(["Evaluation", ""], facts.items()), (["Setting", "Value"], settings.items())],
    )


def write_comparison(folders: Sequence[Path], output: Path) -> Path:
    """Write ``comparison.html``: several evaluations of one set side by side, per sequence.

    Args:
        folders: of two or more evaluations, as ``write_evaluation`` left them; the plots tell up to
            six apart.
        output: the folder for the page; it is made if it does not exist.

    Returns:
        The file, written whole or not at all.

    Raises:
        ResultsError: fewer than two folders, one twice, one without an evaluation, or evaluations
            that differ in set, protocol, sequences or frames.
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


def _read_runs(folders: Sequence[Path]) -> list[_Run]:
    """The evaluations in the folders; they can be compared."""
    if len(folders) < 2:
        given = ", ".join(map(str, folders)) or "none"
        raise ResultsError(f"a comparison needs two or more folders of evaluations; given: {given}")
    places = [folder.resolve() for folder in folders]
    for folder, place in zip(folders, places):
        if places.count(place) > 1:
            raise ResultsError(f"{folder} is given twice; name each evaluation once")
    runs = list(map(_Run, _labels(folders), folders, map(read_evaluation, folders)))
    expected = _identity(runs[0].evaluation)
    for run in runs[1:]:
        given = _identity(run.evaluation)
        for what, names in expected.items():
            if names != given[what]:
                different = sorted(set(names) ^ set(given[what])) or ["their order"]
                raise ResultsError(
                    f"{runs[0].folder} and {run.folder} differ in {what}: "
                    f"{', '.join(different[:LISTED])}{', ...' * (len(different) > LISTED)}; only "
                    "evaluations of the same set by the same protocol can be compared"
                )
    return runs


def _labels(folders: Sequence[Path]) -> list[str]:
    """The part of each path in which they differ: a and b of ``runs/a/DAVIS``, ``runs/b/DAVIS``."""
    parts = [Path(os.path.abspath(folder)).parts for folder in folders]
    while len({one[-1] for one in parts}) == 1:
        parts = [one[:-1] for one in parts]
    while len({one[0] for one in parts}) == 1 and min(map(len, parts)) > 1:
        parts = [one[1:] for one in parts]
    return [str(Path(*one)) for one in parts]


def _identity(evaluation: Evaluation) -> dict[str, tuple[str, ...]]:
    """Everything in which evaluations agree that can be compared."""
    return {
        "set": (evaluation.set_name,),
        "protocol": (evaluation.protocol.name,),
        "sequences": tuple(sorted(evaluation.scores)),
        **{f"frames of {name}": one.frames for name, one in sorted(evaluation.scores.items())},
    }


def _means(row: Row) -> dict[str, float]:
    """The mean of the measures, and each of them; with a single measure both are the same."""
    means = {measure: one.mean for measure, one in row.statistics.items()}
    return {"&".join(means): row.mean, **means}


def _frame_means(evaluation: Evaluation) -> dict[str, np.ndarray]:
    """The mean of the measures of every frame (T,), by sequence."""
    scores = evaluation.scores.items()
    return {name: np.mean(list(one.values.values()), axis=0) for name, one in scores}


def _words(values: Mapping[str, float]) -> str:
    return " ".join(f"{name}\N{NO-BREAK SPACE}{_three(value)}" for name, value in values.items())


def _three(number: float) -> str:
    """Three decimals; zero has no sign."""
    return f"{round(number, 3) + 0.0:.3f}"


def _pick(
    values: Mapping[str, np.ndarray], number: int, per_sequence: int
) -> list[tuple[str, int]]:
    """The frames with the highest values (T,) by sequence, highest first: sequence, position.

    Every sequence's highest goes before any second one. Frames of a sequence are more than a tenth
    of it apart, because neighbours look alike.
    """
    ranked = []
    for name, one in values.items():
        left = np.arange(len(one))
        for rank in range(per_sequence):
            if len(left):
                position = int(left[one[left].argmax()])
                ranked.append((rank, -one[position], name, position))
                left = left[abs(left - position) > len(one) // 10]
    chosen = sorted(ranked)[:number]
    return [(name, position) for _, _, name, position in sorted(chosen, key=lambda it: it[1:])]


def _differences(runs: Sequence[_Run]) -> tuple[str, list[ShownFrame]]:
    """The frames whose scores differ most between runs, after a note."""
    first = runs[0].evaluation
    means = [_frame_means(run.evaluation) for run in runs]
    spread = {name: np.ptp([one[name] for one in means], axis=0) for name in first.scores}
    chosen = _pick(spread, NUM_DIFFERENT, PER_SEQUENCE)
    chosen = [(name, position) for name, position in chosen if spread[name][position] > 0]
    if not chosen:
        return "The runs have the same scores in every frame that counts.", []
    note = (
        f"Ordered by the difference between the highest and the lowest "
        f"{first.title}. A sequence gives at most {PER_SEQUENCE} frames."
    )
    return note, _show_frames(runs, _find_frames(first), chosen)


def _show_frames(
    runs: Sequence[_Run], files: Files, chosen: Sequence[tuple[str, int]]
) -> list[ShownFrame]:
    """Frames, chosen by sequence and position, with the first run's scores and the pictures."""
    shown = []
    for sequence, position in chosen:
        frame = runs[0].evaluation.scores[sequence].frames[position]
        scores = [_frame_scores(run.evaluation, sequence, position) for run in runs]
        tiles = _panel(runs[0], sequence, frame) if len(runs) == 1 else []
        if not tiles:
            found = files.get((sequence, frame), Frame("", None, None, None))
            tiles = [_tile("RGB image", _read(read_image, found.image))]
            if found.flow is not None:
                tiles.append(_tile("optical flow", _read(read_image, found.flow)))
            tiles.append(_tile("ground truth", _read(read_mask, found.mask)))
            for run, text in zip(runs, scores):
                tiles.append(_tile(run.label, _own_mask(run, sequence, frame), text))
        shown.append((f"{sequence} {frame}", scores[0], tiles))
    return shown


def _find_frames(evaluation: Evaluation) -> Files:
    """The files of the set that still exist."""
    root, name = Path(evaluation.data_root), evaluation.set_name
    try:
        sequences, _ = find_video_sequences(root, name, masks="none", flow=False)
    except (DatasetError, OSError):
        return {}
    return {(s.name, frame_label(s.name, frame)): frame for s in sequences for frame in s.frames}


def _frame_scores(evaluation: Evaluation, sequence: str, position: int) -> str:
    scores = evaluation.scores[sequence].values
    values = {measure: float(one[position]) for measure, one in scores.items()}
    return _words({evaluation.title: float(np.mean(list(values.values()))), **values})


def _panel(run: _Run, sequence: str, frame: str) -> list[Tile]:
    """The panel that was drawn during the evaluation of a network; its pictures have labels."""
    path = run.folder / "panels" / sequence / f"{frame}.png"
    panel = None if run.evaluation.checkpoint is None else _read(read_image, path)
    if panel is None:
        return []
    parts = np.split(panel, range(PANEL_WIDTH, panel.shape[1], PANEL_WIDTH), axis=1)
    return [_tile("", part) for part in parts]


def _own_mask(run: _Run, sequence: str, frame: str) -> np.ndarray | None:
    # The folder of a network's evaluation may have been moved together with its masks.
    masks = run.folder / "masks" if run.evaluation.checkpoint else Path(run.evaluation.masks)
    path = masks / sequence / f"{frame}.png"
    if not path.is_file():
        path = path.with_name(f"{sequence}_{frame}.png")
    return _read(lambda path: read_binary_mask(path, binarize=True), path)


def _read(read: Callable[[Path], np.ndarray], path: Path | None) -> np.ndarray | None:
    """The picture, or None if it cannot be read."""
    try:
        return None if path is None else read(path)
    except (DatasetError, OSError):
        return None


def _tile(name: str, picture: np.ndarray | None, scores: str = "") -> Tile:
    """A picture, uint8 RGB (H, W, 3) or a mask (H, W), at the size of a panel as JPEG."""
    if picture is None:
        return name, scores, None
    picture = draw_mask(picture) if picture.ndim == 2 else panel_sized(picture)
    pixels = cv2.cvtColor(picture, cv2.COLOR_RGB2BGR)
    _, encoded = cv2.imencode(".jpg", pixels, [cv2.IMWRITE_JPEG_QUALITY, JPEG_QUALITY])
    return name, scores, encoded.tobytes()


def _differing_settings(runs: Sequence[_Run]) -> tuple[list[str], list[list[str]]]:
    """Heads and rows of a table; runs whose masks came from elsewhere have no settings."""
    known = {run.label: run.evaluation.settings for run in runs if run.evaluation.settings}
    rows = []
    for name in dict.fromkeys(name for settings in known.values() for name in settings):
        values = [repr(one[name]) if name in one else "not there" for one in known.values()]
        if len(set(values)) > 1:
            rows.append([name, *values])
    return ["Setting that differs" if rows else "No setting differs", *known], rows


def _write_page(path: Path, **content: Any) -> Path:
    """Fill the template in; the folder is made."""
    text = Path(__file__).with_name("page.html").read_text(encoding="utf-8")
    page = Template(
        text, autoescape=True, trim_blocks=True, lstrip_blocks=True, undefined=StrictUndefined
    )
    helpers = {"three": _three, "base64": lambda it: base64.b64encode(it).decode(), "styles": LINES}
    write_text(path, page.render(**helpers, **content))
    return path
