"""Result pages: an evaluation, or several side by side, as one HTML file that needs no network.

The styles and the script, which only sorts tables, are in ``report.html`` beside this file;
pictures are embedded. Names, paths and settings are other people's text, so all is escaped.
"""

import base64
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from html import escape
from itertools import groupby
from pathlib import Path
from string import Template
from typing import NamedTuple, TypeVar

import cv2
import numpy as np

from datasets.augmentation import resize
from datasets.layout import (
    DatasetError,
    Frame,
    find_video_sequences,
    frame_label,
    read_binary_mask,
    read_image,
    read_mask,
)
from utils.files import write_text
from utils.pictures import PANEL_WIDTH, draw_panels
from utils.protocols import Row
from utils.results import REPORT, Evaluation, ResultsError, read_evaluation

COMPARISON = "comparison.html"

NUM_EXTREMES = 4  # best and worst frames that a report shows
NUM_DIFFERENT = 8  # frames that a comparison shows
PER_SEQUENCE = 2  # of which at most so many are of one sequence
JPEG_QUALITY = 80
LISTED = 10  # names in an error message

# A plot in its own units, which are pixels where it is shown 320 wide.
PLOT_WIDTH, PLOT_HEIGHT = 320, 150
LEFT, RIGHT, TOP, BOTTOM = 24, 312, 8, 130
MAX_POINTS = 240  # about so many frames of a plot; the extremes of more are kept
FEW_POINTS = 30  # up to so many frames are marked with dots
LINE_STYLES = 6  # in report.html
LABEL_LENGTH = 18  # characters of a frame's name under a plot

Content = TypeVar("Content")
FrameKey = tuple[str, str]  # sequence, frame without the sequence's name

_NO_FRAME = Frame("", None, None, None)  # nothing of it is left


class _Run(NamedTuple):
    """One of the evaluations that a comparison shows."""

    label: str
    folder: Path
    evaluation: Evaluation


def write_report(evaluation: Evaluation, folder: Path) -> Path:
    """Write ``report.html``: scores, plots over time, best and worst frames, settings.

    A frame's pictures are those of its panel in ``folder/panels``, or drawn from the data root and
    the mask; where these are gone too, the page says so.

    Args:
        evaluation: what the page shows.
        folder: the evaluation's; made if need be.

    Returns:
        The file, written whole or not at all.
    """
    protocol, rows = evaluation.protocol, evaluation.rows
    groups = {measure: list(protocol.columns) for measure in protocol.measures}
    numbers = [
        [[getattr(one, column) for column in protocol.columns] for one in row.statistics.values()]
        for row in rows
    ]
    if len(groups) > 1:
        groups = {evaluation.title: ["mean"], **groups}
        numbers = [[[row.mean], *cells] for row, cells in zip(rows, numbers)]
    cards = [(f"{name} mean", mean, "") for name, mean in _row_means(rows[-1]).items()]
    plots = [
        _figure(
            number,
            name,
            "mean "
            + " ".join(f"{measure} {_three(one.mean)}" for measure, one in row.statistics.items()),
            [_plot(one.frames, one.values, " and ".join(protocol.measures), name)],
        )
        for number, ((name, one), row) in enumerate(zip(evaluation.scores.items(), rows))
    ]
    means = _frame_means(evaluation)
    losses = {name: -values for name, values in means.items()}
    found = _find_frames(evaluation)
    best, worst = (
        "".join(
            _panels(evaluation, folder, found, name, position)
            for name, position in _pick(values, NUM_EXTREMES, NUM_EXTREMES)
        )
        for values in (means, losses)
    )
    choice = (
        '<p class="faint">Among the frames that count, first one of each sequence; frames of the '
        "same sequence lie some way apart.</p>\n"
    )
    return _write_page(
        folder / REPORT,
        f"{evaluation.method} on {evaluation.set_name}",
        _rule(evaluation) + _cards(cards),
        {
            "Scores": _score_table(rows, groups, numbers),
            "Over time": _legend(protocol.measures) + _grid(plots),
            "Best frames": choice + best,
            "Worst frames": choice + worst,
            "Settings and checkpoint": _facts(evaluation),
        },
    )


def write_comparison(folders: Sequence[Path], output: Path) -> Path:
    """Write ``comparison.html``: several evaluations of one set side by side, per sequence.

    Args:
        folders: of two or more evaluations, as ``utils.results.write_evaluation`` left them; the
            plots tell up to six apart.
        output: the folder for the page; made if need be.

    Returns:
        The file, written whole or not at all.

    Raises:
        ResultsError: fewer than two folders, one twice, one without an evaluation, or evaluations
            that differ in set, protocol, sequences or frames.
    """
    _check_folders(folders)
    runs = [
        _Run(label, folder, read_evaluation(folder))
        for label, folder in zip(_labels(folders), folders)
    ]
    for run in runs[1:]:
        _check_comparable(runs[0], run)
    first = runs[0].evaluation
    # Files may list the sequences in another order.
    rows = [{(row.kind, row.name): row for row in run.evaluation.rows} for run in runs]
    means = [[_row_means(one[row.kind, row.name]) for one in rows] for row in first.rows]
    heads = [f"{_swatch(i)}<br>{escape(run.label)}" for i, run in enumerate(runs)]
    table = _score_table(
        first.rows,
        dict.fromkeys(means[-1][0], heads),
        [[[one[name] for one in same] for name in same[0]] for same in means],
        mark_best=True,
    )
    cards = [
        (f"{first.title} of {run.label}", run.evaluation.rows[-1].mean, run.evaluation.method)
        for run in runs
    ]
    plots = []
    for number, (name, one) in enumerate(first.scores.items()):
        lines = {
            measure: {run.label: run.evaluation.scores[name].values[measure] for run in runs}
            for measure in first.protocol.measures
        }
        several = [_plot(one.frames, lines[m], m, name) for m in lines]
        plots.append(_figure(number, name, "", several))
    return _write_page(
        output / COMPARISON,
        f"{len(runs)} runs on {first.set_name}",
        _rule(first) + _cards(cards, _best(mean for _, mean, _ in cards)),
        {
            "Scores": f'<p class="faint">★ marks the highest mean of a row.</p>\n{table}',
            "Over time": _legend(run.label for run in runs) + _grid(plots),
            "Frames where they differ most": _differences(runs),
            "Runs and settings": _runs_table(runs) + _differing_settings(runs),
        },
    )


def _check_folders(folders: Sequence[Path]) -> None:
    if len(folders) < 2:
        given = ", ".join(map(str, folders)) or "none"
        raise ResultsError(f"a comparison needs two or more folders of evaluations; given: {given}")
    seen: dict[Path, Path] = {}
    for folder in folders:
        place = folder.resolve()
        if place in seen:
            other = "" if seen[place] == folder else f", once as {seen[place]}"
            raise ResultsError(f"{folder} is given twice{other}; name each evaluation once")
        seen[place] = folder


def _check_comparable(first: _Run, run: _Run) -> None:
    expected, given = first.evaluation, run.evaluation
    for what, one, other in (
        ("set", expected.set_name, given.set_name),
        ("protocol", expected.protocol.name, given.protocol.name),
    ):
        if one != other:
            raise ResultsError(
                f"{run.folder} is of the {what} {other}, {first.folder} of {one}; only evaluations "
                f"of one {what} can be compared"
            )
    _check_same(
        f"{run.folder} has other sequences than {first.folder}", expected.scores, given.scores
    )
    for name, scores in expected.scores.items():
        frames = given.scores[name].frames
        where = f"{run.folder} has other frames of {name} than {first.folder}"
        _check_same(where, scores.frames, frames)
        if scores.frames != frames:
            raise ResultsError(f"{where}: another order; run one of the evaluations again")


def _check_same(where: str, expected: Iterable[str], given: Iterable[str]) -> None:
    parts = []
    for what, some, others in (("lacking", expected, given), ("besides", given, expected)):
        present = set(others)
        names = [name for name in some if name not in present]
        rest = f", ... and {len(names) - LISTED} more" if len(names) > LISTED else ""
        if names:
            parts.append(f"{what}: {', '.join(names[:LISTED])}{rest}")
    if parts:
        raise ResultsError(f"{where} ({'; '.join(parts)}); run one of the evaluations again")


def _labels(folders: Sequence[Path]) -> list[str]:
    """The shortest part of each path that tells its folder from the others.

    What all end in is left out, as the set's name in ``runs/a/DAVIS_test`` and
    ``runs/b/DAVIS_test``.
    """
    parts = [Path(os.path.abspath(folder)).parts for folder in folders]
    while len({one[-1] for one in parts}) == 1:
        parts = [one[:-1] for one in parts]
    return [
        next(
            str(Path(*one[-length:]))
            for length in range(1, len(one) + 1)
            if sum(other[-length:] == one[-length:] for other in parts) == 1
        )
        for one in parts
    ]


def _row_means(row: Row) -> dict[str, float]:
    return _with_mean({measure: one.mean for measure, one in row.statistics.items()})


def _with_mean(values: Mapping[str, float]) -> dict[str, float]:
    """Values by measure, their mean before them where there are several."""
    if len(values) == 1:
        return dict(values)
    return {"&".join(values): float(np.mean(list(values.values()))), **values}


def _frame_means(evaluation: Evaluation) -> dict[str, np.ndarray]:
    """The mean of the measures of every frame (T,), by sequence."""
    return {
        name: np.mean(list(one.values.values()), axis=0) for name, one in evaluation.scores.items()
    }


def _pick(
    values: Mapping[str, np.ndarray], number: int, per_sequence: int
) -> list[tuple[str, int]]:
    """The frames with the highest values (T,) by sequence, highest first: sequence, position.

    Every sequence's highest goes before any second one, and frames of a sequence are more than a
    tenth of it apart: neighbours look alike.
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


def _find_frames(evaluation: Evaluation) -> dict[FrameKey, Frame]:
    """What is left of the set."""
    try:
        sequences, _ = find_video_sequences(
            Path(evaluation.data_root), evaluation.set_name, masks="none", flow=False
        )
    except (DatasetError, OSError):
        return {}
    return {
        (sequence.name, frame_label(sequence.name, frame)): frame
        for sequence in sequences
        for frame in sequence.frames
    }


def _read(read: Callable[[Path], Content], *paths: Path | None) -> Content | None:
    """The content of the first file that can be read."""
    for path in paths:
        try:
            if path is not None:
                return read(path)
        except (DatasetError, OSError):
            continue
    return None


def _read_own_mask(
    evaluation: Evaluation, folder: Path, sequence: str, frame: str
) -> np.ndarray | None:
    roots = [Path(evaluation.masks)]
    if evaluation.checkpoint is not None:
        roots.append(folder / "masks")  # of a network's evaluation that was moved as a whole
    names = (f"{frame}.png", f"{sequence}_{frame}.png")
    return _read(
        # Where grey masks were scored, it was after the same cut.
        lambda path: read_binary_mask(path, binarize=True),
        *(root / sequence / name for root in roots for name in names),
    )


def _panels(
    evaluation: Evaluation,
    folder: Path,
    found: Mapping[FrameKey, Frame],
    sequence: str,
    position: int,
) -> str:
    """The pictures of one frame of a report, under its scores."""
    frame = evaluation.scores[sequence].frames[position]
    files = found.get((sequence, frame), _NO_FRAME)
    panel, masks = None, Path(evaluation.masks)
    # Panels beside masks from elsewhere are of an earlier evaluation.
    if not masks.is_dir() or masks.resolve() == (folder / "masks").resolve():
        panel = _read(read_image, folder / "panels" / sequence / f"{frame}.png")
    if panel is None:
        image = _read(read_image, files.image)
        mask = _read_own_mask(evaluation, folder, sequence, frame)
        if image is not None and mask is not None:
            flow, truth = _read(read_image, files.flow), _read(read_mask, files.mask)
            panel = draw_panels(image, flow, mask, truth, {})
    if panel is None:
        tiles = [
            _gone(
                f"No picture: there is no panel of this frame in {folder / 'panels'}, and its "
                f"image in {Path(evaluation.data_root) / evaluation.set_name} or its mask in "
                f"{masks} is not there any more."
            )
        ]
    else:
        number, rest = divmod(panel.shape[1], PANEL_WIDTH)
        pictures = [panel] if rest else np.hsplit(panel, number)
        tiles = [
            _picture(picture, f"{sequence} {frame}, picture {i} of {len(pictures)}")
            for i, picture in enumerate(pictures, start=1)
        ]
    return _frame(sequence, frame, _frame_scores(evaluation, sequence, position), tiles)


def _differences(runs: Sequence[_Run]) -> str:
    """The frames whose scores differ most between runs, as pictures."""
    first = runs[0].evaluation
    means = [_frame_means(run.evaluation) for run in runs]
    spread = {name: np.ptp([one[name] for one in means], axis=0) for name in first.scores}
    found: dict[FrameKey, Frame] = {}
    for run in runs:
        found = _find_frames(run.evaluation) | found
    chosen = [
        _side_by_side(runs, found, name, position)
        for name, position in _pick(spread, NUM_DIFFERENT, PER_SEQUENCE)
        if spread[name][position] > 0
    ]
    if not chosen:
        return "<p>The runs have the same scores in every frame that counts.</p>"
    return (
        f'<p class="faint">By the distance between the highest and the lowest {escape(first.title)}'
        f" of a frame that counts: at most {PER_SEQUENCE} of a sequence, some way apart.</p>\n"
        + "".join(chosen)
    )


def _side_by_side(
    runs: Sequence[_Run], found: Mapping[FrameKey, Frame], sequence: str, position: int
) -> str:
    """One frame of a comparison: its image, the true mask, each run's mask with its scores."""
    frame = runs[0].evaluation.scores[sequence].frames[position]
    files = found.get((sequence, frame), _NO_FRAME)
    pictures = [
        ("RGB image", "", _read(read_image, files.image)),
        ("ground truth", "", _read(read_mask, files.mask)),
    ]
    for label, folder, run in runs:
        mask = _read_own_mask(run, folder, sequence, frame)
        pictures.append((label, _frame_scores(run, sequence, position), mask))
    tiles = []
    for name, scores, picture in pictures:
        if picture is None:
            tile = _gone("not there any more")
        else:
            if picture.ndim == 2:
                picture = picture.astype(np.uint8) * 255
            height = max(round(PANEL_WIDTH * picture.shape[0] / picture.shape[1]), 1)
            tile = _picture(resize(picture, height, PANEL_WIDTH), f"{name}, {sequence} {frame}")
        caption = f"<figcaption><b>{escape(name)}</b> {escape(scores)}</figcaption>"
        tiles.append(f"<figure>{tile}{caption}</figure>")
    return _frame(sequence, frame, "", tiles)


def _frame_scores(evaluation: Evaluation, sequence: str, position: int) -> str:
    values = {name: one[position] for name, one in evaluation.scores[sequence].values.items()}
    return " ".join(
        f"{name}\N{NO-BREAK SPACE}{_three(value)}" for name, value in _with_mean(values).items()
    )


def _frame(sequence: str, frame: str, scores: str, tiles: Iterable[str]) -> str:
    return (
        f'<figure class="frame"><figcaption><b>{escape(sequence)} {escape(frame)}</b> '
        f'{escape(scores)}</figcaption>\n<div class="tiles">\n' + "\n".join(tiles) + "\n</div>"
        "</figure>\n"
    )


def _gone(words: str) -> str:
    return f'<div class="gone">{escape(words)}</div>'


def _picture(picture: np.ndarray, description: str) -> str:
    """uint8 RGB (H, W, 3) or grey (H, W), embedded."""
    if picture.ndim == 3:
        picture = cv2.cvtColor(picture, cv2.COLOR_RGB2BGR)
    _, encoded = cv2.imencode(".jpg", picture, [cv2.IMWRITE_JPEG_QUALITY, JPEG_QUALITY])
    height, width = picture.shape[:2]
    return (
        f'<img width="{width}" height="{height}" alt="{escape(description)}" '
        f'src="data:image/jpeg;base64,{base64.b64encode(encoded).decode()}">'
    )


def _plot(
    frames: Sequence[str],
    lines: Mapping[str, np.ndarray],
    measures: str,
    sequence: str,
) -> str:
    """Values (T,) in [0, 1] over the frames, a line each; a frame's numbers show under the pointer.

    Long sequences are thinned out.
    """
    values = list(lines.values())
    kept = _thin(values)
    x = LEFT + (RIGHT - LEFT) * (np.arange(len(frames)) + 0.5) / len(frames)
    parts = []
    for share in (0, 0.5, 1):
        y = BOTTOM + (TOP - BOTTOM) * share
        parts.append(f'<path class="axes" d="M{LEFT} {y:g}H{RIGHT}"/>')
        parts.append(f'<text x="{LEFT - 4}" y="{y + 3.5:g}" text-anchor="end">{share:g}</text>')
    below = f'y="{PLOT_HEIGHT - 6}"'
    labels = [(LEFT, "start", frames[0])] + [(RIGHT, "end", frames[-1])] * (len(frames) > 1)
    labels.append(((LEFT + RIGHT) / 2, "middle", f"{measures} by frame"))
    for left, anchor, text in labels:
        short = text if len(text) <= LABEL_LENGTH else f"{text[: LABEL_LENGTH - 1]}…"
        parts.append(f'<text x="{left:g}" {below} text-anchor="{anchor}">{escape(short)}</text>')
    for index, one in enumerate(values):
        style = f"line-{index % LINE_STYLES}"
        points = [f"{x[i]:.1f} {BOTTOM + (TOP - BOTTOM) * one[i]:.2f}" for i in kept]
        few = len(points) <= FEW_POINTS
        parts.append(
            f'<path class="line {style}{" faded" * few}" data-line="{index}" '
            f'd="M{"L".join(points)}"/>'
        )
        if few:
            # Strokes of no length are drawn as their caps: round or square dots.
            parts.append(f'<path class="dots {style}" d="M{"h0M".join(points)}h0"/>')
    parts.append(f'<g class="hover" stroke-width="{(RIGHT - LEFT) / len(kept):.1f}">')
    for i in kept:
        numbers = ", ".join(f"{name} {one[i]:.3f}" for name, one in lines.items())
        text = f"{frames[i]}: {numbers}"
        parts.append(f'<path d="M{x[i]:.1f} {TOP}V{BOTTOM}"><title>{escape(text)}</title></path>')
    parts.append("</g>")
    return (
        f'<svg viewBox="0 0 {PLOT_WIDTH} {PLOT_HEIGHT}" role="img" '
        f'aria-label="{escape(measures)} of {escape(sequence)} by frame">'
        + "".join(parts)
        + "</svg>"
    )


def _thin(lines: Sequence[np.ndarray]) -> list[int]:
    """Positions to draw of lines (T,): all, or each line's lowest and highest of equal parts."""
    length = len(lines[0])
    if length <= MAX_POINTS:
        return list(range(length))
    kept = {0, length - 1}
    for part in np.array_split(np.arange(length), max(MAX_POINTS // (2 * len(lines)), 1)):
        for one in lines:
            kept |= {int(part[one[part].argmin()]), int(part[one[part].argmax()])}
    return sorted(kept)


def _figure(number: int, name: str, note: str, plots: Iterable[str]) -> str:
    caption = f"<figcaption><b>{escape(name)}</b> {escape(note)}</figcaption>"
    return f'<figure id="plot-{number}">{caption}{"".join(plots)}</figure>'


def _grid(figures: Iterable[str]) -> str:
    return '<div class="plots">\n' + "\n".join(figures) + "\n</div>"


def _legend(names: Iterable[str]) -> str:
    entries = (f"<span>{_swatch(i)} {escape(name)}</span>" for i, name in enumerate(names))
    return f'<div class="legend">{"".join(entries)}</div>\n'


def _swatch(index: int) -> str:
    style = f"line-{index % LINE_STYLES}"
    return (
        f'<svg class="swatch" viewBox="0 0 34 10" aria-hidden="true"><path class="line {style}" '
        f'd="M0 5H34"/><path class="dots {style}" d="M17 5h0"/></svg>'
    )


def _score_table(
    rows: Sequence[Row],
    groups: Mapping[str, Sequence[str]],
    numbers: Sequence[Sequence[Sequence[float]]],
    mark_best: bool = False,
) -> str:
    """A table to sort: a row each, columns in groups.

    Args:
        rows: names and frames.
        groups: heads of the columns, as HTML, by the head of the group.
        numbers: of each row, by group.
        mark_best: mark the highest number of each group in each row, unless all are the same.
    """
    spans = (
        f'<th scope="colgroup" colspan="{len(heads)}" class="group wide">{escape(group)}</th>'
        for group, heads in groups.items()
    )
    starts_group = [i == 0 for heads in groups.values() for i in range(len(heads))]
    heads = [head for heads in groups.values() for head in heads]
    columns = (
        f'<th scope="col" data-column="{i}"{_classes("group" * starts)}>{head}</th>'
        for i, (head, starts) in enumerate(zip(heads, starts_group), start=2)
    )
    parts = [
        f'<div class="table{" tight" * (len(heads) > 9)}" tabindex="0" role="region" '
        'aria-label="Scores">',
        '<table class="sortable"><thead>',
        '<tr><th scope="col" rowspan="2" data-column="0">sequence</th>'
        f'<th scope="col" rowspan="2" data-column="1">frames</th>{"".join(spans)}</tr>',
        f"<tr>{''.join(columns)}</tr></thead>",
    ]
    lines = enumerate(zip(rows, numbers))
    kinds = ["class", "sequence", "average"]
    lines = sorted(lines, key=lambda line: kinds.index(line[1][0].kind))
    # Rows are sorted within their part, so classes stay above and the average stays last.
    for kind, some in groupby(lines, key=lambda line: line[1][0].kind):
        part = "tfoot" if kind == "average" else "tbody"
        parts.append(f"<{part}>")
        for number, (row, by_group) in some:
            name = escape(row.name)
            shown = {
                "sequence": f'<a href="#plot-{number}">{name}</a>',
                "class": f"class <b>{name}</b>",
                "average": name,
            }[kind]
            cells = "".join(_cells(one, mark_best) for one in by_group)
            parts.append(
                f'<tr data-kind="{kind}"><th scope="row" data-value="{name}">{shown}</th>'
                f'<td data-value="{row.frames}">{row.frames}</td>{cells}</tr>'
            )
        parts.append(f"</{part}>")
    return "\n".join([*parts, "</table></div>"])


def _cells(numbers: Sequence[float], mark_best: bool) -> str:
    """The cells of a group of columns."""
    best = _best(numbers) if mark_best else None
    return "".join(
        f"<td{_classes('group' * (i == 0), 'best' * (number == best))} "
        f'data-value="{number!r}">{_three(number, marked=number == best)}</td>'
        for i, number in enumerate(numbers)
    )


def _best(numbers: Iterable[float]) -> float | None:
    """The highest; None where all are the same."""
    numbers = set(numbers)
    return max(numbers) if len(numbers) > 1 else None


def _three(number: float, marked: bool = False) -> str:
    # What rounds to zero is shown without a sign.
    return f"{'★ ' * marked}{round(number, 3) + 0.0:.3f}"


def _classes(*names: str) -> str:
    """The attribute, or nothing where all names are empty."""
    names = " ".join(filter(None, names))
    return f' class="{names}"' if names else ""


def _rule(evaluation: Evaluation) -> str:
    protocol, average = evaluation.protocol, evaluation.rows[-1]
    return (
        f"<p>Protocol <b>{escape(protocol.name)}</b>: {escape(protocol.rule)}. "
        f"{len(evaluation.scores)} sequences, {average.frames} frames that count.</p>\n"
    )


def _cards(cards: Iterable[tuple[str, float, str]], best: float | None = None) -> str:
    """Large numbers: name, number, note."""
    parts = []
    for name, number, note in cards:
        small = f"<small>{escape(note)}</small>" if note else ""
        parts.append(
            f'<div{_classes("best" * (number == best))}><data value="{number!r}">'
            f"{_three(number, marked=number == best)}</data>{escape(name)}{small}</div>"
        )
    return f'<div class="numbers">{"".join(parts)}</div>\n'


def _facts(evaluation: Evaluation) -> str:
    elsewhere = "none: the masks came from elsewhere"
    facts = {
        "Method": evaluation.method,
        "Set": f"{evaluation.set_name} in {evaluation.data_root}",
        "Protocol": evaluation.protocol.name,
        "Checkpoint": evaluation.checkpoint or elsewhere,
        "Masks": evaluation.masks,
    }
    items = "".join(f"<dt>{name}</dt><dd>{escape(text)}</dd>\n" for name, text in facts.items())
    if not evaluation.settings:
        return f"<dl>{items}<dt>Settings</dt><dd>{elsewhere}</dd></dl>"
    rows = [[name, repr(value)] for name, value in evaluation.settings.items()]
    return (
        f"<dl>{items}</dl>\n<details><summary>{len(rows)} settings</summary>\n"
        f"{_text_table('Settings', ['setting', 'value'], rows)}</details>"
    )


def _runs_table(runs: Iterable[_Run]) -> str:
    rows = [
        [label, run.method, str(folder), run.checkpoint or "none", run.masks]
        for label, folder, run in runs
    ]
    return _text_table("Runs", ["run", "method", "folder", "checkpoint", "masks"], rows)


def _differing_settings(runs: Sequence[_Run]) -> str:
    known = {run.label: run.evaluation.settings for run in runs if run.evaluation.settings}
    names = dict.fromkeys(name for settings in known.values() for name in settings)
    rows = []
    for name in names:
        values = [repr(one[name]) if name in one else "not there" for one in known.values()]
        if len(set(values)) > 1:
            rows.append([name, *values])
    table = _text_table("Settings that differ", ["setting", *known], rows) if rows else ""
    words = ["The runs have the same settings."] * (len(known) > 1 and not rows)
    words += [
        f"No settings of {run.label}: its masks came from elsewhere."
        for run in runs
        if run.label not in known
    ]
    return f"\n<h3>Settings that differ</h3>\n{table}<p>{escape(' '.join(words))}</p>"


def _text_table(title: str, heads: Iterable[str], rows: Iterable[Sequence[str]]) -> str:
    head = "".join(f'<th scope="col">{escape(text)}</th>' for text in heads)
    body = "\n".join(
        f'<tr><th scope="row">{escape(name)}</th>'
        + "".join(f"<td>{escape(text)}</td>" for text in texts)
        + "</tr>"
        for name, *texts in rows
    )
    return (
        f'<div class="table text" tabindex="0" role="region" aria-label="{title}"><table>\n'
        f"<thead><tr>{head}</tr></thead>\n<tbody>\n{body}\n</tbody></table></div>"
    )


def _write_page(path: Path, title: str, header: str, sections: Mapping[str, str]) -> Path:
    """Write a page with a heading for each section, and links to them; its folder is made."""
    ids = {heading: heading.lower().replace(" ", "-") for heading in sections}
    links = "\n".join(f'<a href="#{ids[heading]}">{heading}</a>' for heading in sections)
    parts = "\n".join(
        f'<section><h2 id="{ids[heading]}">{heading}</h2>\n{content}\n</section>'
        for heading, content in sections.items()
    )
    page = Template(Path(__file__).with_suffix(".html").read_text(encoding="utf-8")).substitute(
        title=escape(title),
        body=f"<header>\n<h1>{escape(title)}</h1>\n{header}<nav>\n{links}\n</nav>\n</header>\n"
        f"<main>\n{parts}\n</main>",
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    write_text(path, page)
    return path
