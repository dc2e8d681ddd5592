"""What an evaluation has found: the record that tables, files and reports are made from.

Its folder holds ``scores.csv`` (statistics by sequence), ``frames.csv`` (every scored frame) and
``evaluation.json`` (set, protocol, method, settings); :func:`read_evaluation` needs the last two.
"""

import csv
import io
import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from datasets.files import write_text
from errors import UserError
from utils.evaluation.protocols import PROTOCOLS, Protocol, Row, SequenceScores, summarise

SCORES, FRAMES, RECORD = "scores.csv", "frames.csv", "evaluation.json"
REPORT = "report.html"


_TYPES = {
    ("method", "set", "data_root", "protocol", "rule", "masks"): str,
    ("checkpoint",): (str, type(None)),
    ("settings",): dict,
}


class ResultsError(UserError):
    """A folder that holds no evaluation, or a damaged one; the message says what to do."""


@dataclass(frozen=True)
class Evaluation:
    """The scores of a method on a set, and where both come from.

    Attributes:
        method: what made the masks, in a line for people.
        set_name, data_root: what was segmented.
        protocol: the rules of the scores.
        masks: the folder of the masks, ``<sequence>/<frame>.png``.
        scores: by sequence, in the set's order.
        checkpoint: of the network; None where the masks came from elsewhere.
        settings: that made the masks, by name; empty where they came from elsewhere.
    """

    method: str
    set_name: str
    data_root: str
    protocol: Protocol
    masks: str
    scores: dict[str, SequenceScores]
    checkpoint: str | None = None
    settings: dict[str, Any] = field(default_factory=dict)

    @property
    def rows(self) -> list[Row]:
        """The score table: sequences, classes if the protocol has them, the average."""
        return summarise(self.scores, self.protocol)

    @property
    def title(self) -> str:
        """What the mean of the measures is called: ``J&F``, or ``J``."""
        return "&".join(self.protocol.measures)


def write_evaluation(evaluation: Evaluation, folder: Path) -> None:
    """Write the three files, each whole or not at all; the folder is made."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / RECORD).unlink(missing_ok=True)  # lest it be read beside another one's scores
    protocol = evaluation.protocol
    columns = [(m, column) for m in protocol.measures for column in protocol.columns]
    scores = [["sequence", "kind", "frames", *(f"{m}_{c}" for m, c in columns), "protocol"]]
    for row in evaluation.rows:
        numbers = [getattr(row.statistics[measure], column) for measure, column in columns]
        scores.append([row.name, row.kind, row.frames, *numbers, protocol.name])
    _write_rows(folder / SCORES, scores)
    frames = [["sequence", "frame", *protocol.measures, "protocol"]]
    for name, one in evaluation.scores.items():
        values = zip(*(one.values[measure] for measure in protocol.measures))
        frames += [
            [name, frame, *map(float, numbers), protocol.name]
            for frame, numbers in zip(one.frames, values)
        ]
    _write_rows(folder / FRAMES, frames)
    record = {
        "method": evaluation.method,
        "set": evaluation.set_name,
        "data_root": evaluation.data_root,
        "protocol": protocol.name,
        "rule": protocol.rule,
        "masks": evaluation.masks,
        "checkpoint": evaluation.checkpoint,
        "settings": evaluation.settings,
        "average": {m: asdict(one) for m, one in evaluation.rows[-1].statistics.items()},
    }
    write_text(folder / RECORD, json.dumps(record, indent=1) + "\n")


def read_evaluation(folder: Path) -> Evaluation:
    """The evaluation that was written to a folder.

    Raises:
        ResultsError: the folder holds none, one that cannot be read, or one by other rules than
            this version's.
    """
    for name in (RECORD, FRAMES):
        if not (folder / name).is_file():
            raise ResultsError(
                f"{folder} holds no {name}: expected the --output folder of evaluate.py, scored "
                "by this version; run the evaluation again"
            )
    try:
        record = json.loads((folder / RECORD).read_text(encoding="utf-8"))
        for names, kinds in _TYPES.items():
            for name in names:
                if not isinstance(record[name], kinds):
                    raise TypeError(f"{name} is {record[name]!r}")
        protocol = PROTOCOLS[record["protocol"]]
        as_written = {"encoding": "utf-8", "errors": "surrogateescape"}
        with (folder / FRAMES).open(newline="", **as_written) as file:
            lines = list(csv.DictReader(file))
        groups: dict[str, list[dict[str, str]]] = {}
        for line in lines:
            groups.setdefault(line["sequence"], []).append(line)
        scores = {
            name: SequenceScores(
                tuple(line["frame"] for line in group),
                {m: np.array([float(line[m]) for line in group]) for m in protocol.measures},
            )
            for name, group in groups.items()
        }
        if not scores:
            raise ValueError("no frame has a score")
        for name, one in scores.items():
            for values in one.values.values():
                if not ((values >= 0) & (values <= 1)).all():
                    raise ValueError(f"a score of {name} is not a number from 0 to 1")
    except (KeyError, TypeError, ValueError, RecursionError, csv.Error) as error:
        raise ResultsError(
            f"{folder}: its {RECORD} or {FRAMES} is damaged ({type(error).__name__}: {error}); "
            "run the evaluation again"
        ) from error
    if record["rule"] != protocol.rule:
        raise ResultsError(
            f"{folder} was scored by other rules of {protocol.name} than this version's "
            f"({record['rule']}); run the evaluation again"
        )
    return Evaluation(
        method=record["method"],
        set_name=record["set"],
        data_root=record["data_root"],
        protocol=protocol,
        masks=record["masks"],
        scores=scores,
        checkpoint=record["checkpoint"],
        settings=record["settings"],
    )


def remove_evaluation(folder: Path) -> None:
    """Remove the files of an earlier evaluation, and the report; masks and pictures stay."""
    for name in (SCORES, FRAMES, RECORD, REPORT):
        (folder / name).unlink(missing_ok=True)


def score_table(evaluation: Evaluation) -> str:
    """The rows of ``scores.csv`` as an aligned table to print."""
    protocol, rows = evaluation.protocol, evaluation.rows
    names = [f"class {row.name}" if row.kind == "class" else row.name for row in rows]
    width = max(map(len, ["sequence", *names]))
    header = ["frames"]
    if len(protocol.measures) > 1:
        header.append(evaluation.title)
    for measure in protocol.measures:
        header += [f"{measure} mean", *protocol.columns[1:]]
    lines = [f"{'sequence':<{width}}" + "".join(f"{title:>8}" for title in header)]
    for name, row in zip(names, rows):
        numbers = [row.mean] if len(protocol.measures) > 1 else []
        for one in row.statistics.values():
            numbers += [getattr(one, column) for column in protocol.columns]
        cells = "".join(f"{round(number, 3) + 0.0:8.3f}" for number in numbers)  # no -0.000
        lines.append(f"{name:<{width}}{row.frames:8d}{cells}")
    lines.insert(-1, "-" * len(lines[0]))
    return "\n".join(lines)


def _write_rows(path: Path, rows: list[list[Any]]) -> None:
    text = io.StringIO(newline="")
    csv.writer(text).writerows(rows)
    write_text(path, text.getvalue())
