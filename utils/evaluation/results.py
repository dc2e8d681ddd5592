"""The result of an evaluation, its files and its printed table.

Its folder holds ``scores.csv`` (statistics by sequence), ``frames.csv`` (every scored frame) and
``evaluation.json`` (set, protocol, method, settings); :func:`read_evaluation` needs the last two.
"""

import csv
import io
import json
import math
from collections.abc import Collection
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from datasets.files import write_text
from errors import UserError
from utils import __version__
from utils.evaluation.protocols import (
    PROTOCOLS,
    WHOLE_VIDEO,
    Protocol,
    Row,
    SequenceScores,
    summarise,
)

SCORES, FRAMES, RECORD = "scores.csv", "frames.csv", "evaluation.json"
REPORT = "report.html"
FILES = (SCORES, FRAMES, RECORD, REPORT)


# The types of the other values in evaluation.json.
_KINDS = {"method": str, "set": str, "data_root": str, "masks": str, "checkpoint": str | None}
_KINDS |= {"settings": dict}


class ResultsError(UserError):
    """A folder without an evaluation, or with a damaged one; the message says what to do."""


@dataclass(frozen=True)
class Evaluation:
    """The scores of a method on a set, and where both come from."""

    method: str  # what made the masks, a line for people
    set_name: str
    data_root: str
    protocol: Protocol
    masks: str  # the folder of the masks, <sequence>/<frame>.png
    scores: dict[str, SequenceScores]  # by sequence, in the set's order
    checkpoint: str | None = None  # or name of a backbone; None: masks from elsewhere
    settings: dict[str, Any] = field(default_factory=dict)  # of the masks, by name
    false_alarms: dict[str, float] | None = None  # of `count_false_alarms`

    @property
    def rows(self) -> list[Row]:
        """The score table: sequences, classes if the protocol has them, the average."""
        return summarise(self.scores, self.protocol)

    @property
    def title(self) -> str:
        """The name of the overall score: ``J&F``, or ``J``."""
        return "&".join(self.protocol.overall)


def count_false_alarms(shares: Collection[float]) -> dict[str, float] | None:
    """From the shares of masked pixels of frames whose true mask is empty; None without such.

    Gives the number of ``frames``, the share of them ``with_mask``, the mean share of ``pixels``.
    """
    count, masked = len(shares), sum(share > 0 for share in shares)
    if not count:
        return None
    return {"frames": count, "with_mask": masked / count, "pixels": math.fsum(shares) / count}


def false_alarm_line(evaluation: Evaluation) -> str | None:
    """The false alarms, for people; None if every true mask holds an object."""
    if (found := evaluation.false_alarms) is None:
        return None
    return (
        f"false alarms: {found['frames']} frames hold no object; {found['with_mask']:.1%} of them "
        f"have a mask, {found['pixels']:.2%} of their pixels are masked"
    )


def write_evaluation(evaluation: Evaluation, folder: Path) -> None:
    """Write the three files, each whole or not at all; the folder is made."""
    (folder / RECORD).unlink(missing_ok=True)  # so that it never stands beside other scores
    protocol, rows = evaluation.protocol, evaluation.rows
    columns = [f"{m}_{column}" for m in protocol.measures for column in protocol.columns]
    lines = [[row.name, row.kind, row.frames, *_numbers(row, protocol)] for row in rows]
    _write_csv(folder / SCORES, ["sequence", "kind", "frames", *columns], lines, protocol)
    lines = []
    for name, one in evaluation.scores.items():
        values = (one.values[measure].tolist() for measure in protocol.measures)
        lines += [[name, *line] for line in zip(one.frames, *values)]
    _write_csv(folder / FRAMES, ["sequence", "frame", *protocol.measures], lines, protocol)
    record = {
        "version": __version__,
        "method": evaluation.method,
        "set": evaluation.set_name,
        "data_root": evaluation.data_root,
        "protocol": protocol.name,
        "rule": protocol.rule,
        "masks": evaluation.masks,
        "checkpoint": evaluation.checkpoint,
        "settings": evaluation.settings,
        "average": {measure: asdict(one) for measure, one in rows[-1].statistics.items()},
    }
    if evaluation.false_alarms:
        record["false_alarms"] = evaluation.false_alarms
    write_text(folder / RECORD, json.dumps(record, indent=1) + "\n")


def read_evaluation(folder: Path) -> Evaluation:
    """The evaluation that was written to a folder.

    Raises:
        ResultsError: the folder has no evaluation, a damaged one, or one by other rules than this
            version's.
    """
    again = "run the evaluation again"
    for name in (RECORD, FRAMES):
        if not (folder / name).is_file():
            raise ResultsError(
                f"{folder} holds no {name}: expected the --output folder of evaluate.py; {again}"
            )
    groups: dict[str, list[dict[str, str]]] = {}
    try:
        record = json.loads((folder / RECORD).read_text(encoding="utf-8"))
        text = (folder / FRAMES).read_text(encoding="utf-8", errors="surrogateescape")
        for line in csv.DictReader(io.StringIO(text, newline="")):
            groups.setdefault(line["sequence"], []).append(line)
        protocol, rule = PROTOCOLS[record["protocol"]], record["rule"]
        scores = {
            name: SequenceScores(
                tuple(line["frame"] for line in lines),
                {m: np.array([float(line[m]) for line in lines]) for m in protocol.measures},
            )
            for name, lines in groups.items()
        }
        for name, kind in _KINDS.items():
            if not isinstance(record[name], kind):
                raise TypeError(f"{name} is {record[name]!r}")
        values = [one for scored in scores.values() for one in scored.values.values()]
        least = -1 if protocol.objects == WHOLE_VIDEO else 0
        if not values or not all(((one >= least) & (one <= 1)).all() for one in values):
            raise ValueError(f"it needs scores, all of them from {least} to 1")
        same = ("method", "data_root", "masks", "checkpoint", "settings")
        evaluation = Evaluation(
            set_name=record["set"],
            protocol=protocol,
            scores=scores,
            false_alarms=record.get("false_alarms"),
            **{name: record[name] for name in same},
        )
    except (csv.Error, KeyError, RecursionError, TypeError, ValueError) as error:
        raise ResultsError(
            f"{folder}: its {RECORD} or {FRAMES} is damaged ({type(error).__name__}: {error}); "
            f"{again}"
        ) from error
    if rule != protocol.rule:
        raise ResultsError(
            f"{folder} was scored by other rules of {protocol.name} than this version's ({rule}); "
            f"{again}"
        )
    return evaluation


def score_table(evaluation: Evaluation) -> str:
    """The rows of ``scores.csv`` as an aligned table to print."""
    protocol, rows = evaluation.protocol, evaluation.rows
    several = len(protocol.overall) > 1
    names = [f"class {row.name}" if row.kind == "class" else row.name for row in rows]
    first = "object" if protocol.per_object else "sequence"
    width = max(map(len, [first, *names]))
    heads = ["frames", *[evaluation.title] * several]
    for measure in protocol.measures:
        heads += [f"{measure} mean", *protocol.columns[1:]]
    widths = [max(8, len(head) + 2) for head in heads]
    lines = [f"{first:<{width}}" + "".join(f"{head:>{w}}" for head, w in zip(heads, widths))]
    for name, row in zip(names, rows):
        numbers = [*[row.mean] * several, *_numbers(row, protocol)]
        cells = zip(numbers, widths[1:])
        line = "".join(f"{round(number, 3) + 0.0:{w}.3f}" for number, w in cells)  # no -0.000
        lines.append(f"{name:<{width}}{row.frames:{widths[0]}d}{line}")
    lines.insert(-1, "-" * len(lines[0]))
    return "\n".join(lines)


def _numbers(row: Row, protocol: Protocol) -> list[float]:
    return [getattr(one, c) for one in row.statistics.values() for c in protocol.columns]


def _write_csv(path: Path, heads: list[str], lines: list[list[Any]], protocol: Protocol) -> None:
    """Write a table whose last column names the protocol."""
    text = io.StringIO(newline="")
    csv.writer(text).writerows([[*heads, "protocol"], *([*line, protocol.name] for line in lines)])
    write_text(path, text.getvalue())
