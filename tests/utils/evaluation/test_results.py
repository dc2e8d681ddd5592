"""The files of an evaluation: full precision, and read back as they were written."""

import csv
import json
import os
import random
from dataclasses import replace

import numpy as np
import pytest

from utils import __version__
from utils.evaluation.metrics import statistics
from utils.evaluation.protocols import PROTOCOLS, SequenceScores
from utils.evaluation.results import (
    Evaluation,
    ResultsError,
    count_false_alarms,
    false_alarm_line,
    read_evaluation,
    score_table,
    write_evaluation,
)

LONG = os.fsdecode(b'a\xff_long, "name"')  # to be quoted in CSV, and not UTF-8


def evaluation(protocol: str = "davis2016", lengths=(12, 5)) -> Evaluation:
    """Random scores of a long and a short sequence."""
    numbers = random.Random(0)
    scores = {
        name: SequenceScores(
            tuple(f"{t:05d}" for t in range(length)),
            {m: np.array([numbers.random() for _ in range(length)]) for m in "JF"},
        )
        for name, length in zip((LONG, "dog_1"), lengths)
    }
    return Evaluation(
        method="masks in x",
        set_name="DAVIS_test",
        data_root="/data",
        protocol=PROTOCOLS[protocol],
        masks="/x",
        scores=scores,
        checkpoint="best.pt",
        settings={"IMAGE_SIZE": 384, "TRAIN_SETS": ["a"], "RUN_NAME": None},
    )


def read_csv(path) -> list[dict[str, str]]:
    with path.open(newline="", errors="surrogateescape") as file:
        return list(csv.DictReader(file))


def test_scores_are_written_in_full_with_the_protocol(tmp_path):
    one = evaluation()
    write_evaluation(one, tmp_path)
    rows = read_csv(tmp_path / "scores.csv")
    titles = [f"{m}_{c}" for m in "JF" for c in ("mean", "recall", "decay")]
    assert list(rows[0]) == ["sequence", "kind", "frames", *titles, "protocol"]
    assert [row["sequence"] for row in rows] == [LONG, "dog_1", "average"]
    assert [row["frames"] for row in rows] == ["12", "5", "17"]
    assert {row["protocol"] for row in rows} == {"davis2016"}
    for row, scores in zip(rows, one.scores.values()):
        for measure, values in scores.values.items():
            for column, value in vars(statistics(values)).items():
                assert float(row[f"{measure}_{column}"]) == value
    for title in titles:
        first, second, average = (float(row[title]) for row in rows)
        assert average == pytest.approx((first + second) / 2, abs=1e-15)


def test_protocols_of_j_alone_and_with_classes_have_their_own_columns_and_rows(tmp_path):
    write_evaluation(evaluation("youtube_objects"), tmp_path)
    rows = read_csv(tmp_path / "scores.csv")
    assert list(rows[0]) == ["sequence", "kind", "frames", "J_mean", "protocol"]
    kinds = [row["kind"] for row in rows]
    assert kinds == ["sequence", "sequence", "class", "average"]
    assert list(read_csv(tmp_path / "frames.csv")[0]) == ["sequence", "frame", "J", "protocol"]


def test_what_was_written_is_read_back(tmp_path):
    one = evaluation()
    write_evaluation(one, tmp_path)
    two = read_evaluation(tmp_path)
    assert two.scores.keys() == one.scores.keys()
    for name, scores in one.scores.items():
        assert two.scores[name].frames == scores.frames
        for measure, values in scores.values.items():
            np.testing.assert_array_equal(two.scores[name].values[measure], values)
    for name in ("method", "set_name", "data_root", "protocol", "masks", "checkpoint", "settings"):
        assert getattr(two, name) == getattr(one, name)
    record = json.loads((tmp_path / "evaluation.json").read_text())
    assert record["rule"] == PROTOCOLS["davis2016"].rule
    assert record["version"] == __version__
    assert record["average"]["J"]["mean"] == one.rows[-1].statistics["J"].mean


def test_false_alarms_are_counted_written_and_read_back(tmp_path):
    one = replace(evaluation(), false_alarms=count_false_alarms([0.25, 0.0, 0.05, 0.1]))
    assert one.false_alarms == {"frames": 4, "with_mask": 0.75, "pixels": pytest.approx(0.1)}
    write_evaluation(one, tmp_path)
    assert json.loads((tmp_path / "evaluation.json").read_text())["false_alarms"]["frames"] == 4
    two = read_evaluation(tmp_path)
    line = "4 frames hold no object; 75.0% of them have a mask, 10.00% of their pixels are masked"
    assert false_alarm_line(two) == f"false alarms: {line}"
    write_evaluation(evaluation(), tmp_path)
    assert "false_alarms" not in json.loads((tmp_path / "evaluation.json").read_text())
    assert false_alarm_line(read_evaluation(tmp_path)) is None
    assert count_false_alarms([]) is None


def test_a_folder_without_an_evaluation_is_explained(tmp_path):
    with pytest.raises(ResultsError, match=r"holds no evaluation\.json.*--output folder"):
        read_evaluation(tmp_path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("{", "damaged"),
        ("[]", "damaged"),
        ("[" * 100_000, "damaged"),
        ({"settings": "many"}, "settings is 'many'"),
        ({"method": None}, "method is None"),
        ({"set": ["a"]}, "set is"),
        ({"protocol": {}}, "damaged"),
        ({"protocol": "none"}, "damaged"),
        ({"rule": "J of frames in which it rains"}, "by other rules .*in which it rains"),
    ],
)
def test_records_that_are_not_of_this_form_are_explained(change, message, tmp_path):
    write_evaluation(evaluation(), tmp_path)
    path = tmp_path / "evaluation.json"
    if isinstance(change, dict):
        change = json.dumps(json.loads(path.read_text()) | change)
    path.write_text(change)
    with pytest.raises(ResultsError, match=message):
        read_evaluation(tmp_path)


@pytest.mark.parametrize(
    "line", ["a,0,70,70", "a,0,0.5,-0.1", "a,0,0.5,nan", "a,0,x,1", "a,0", "x" * 200_000, ""]
)
def test_damaged_scores_are_explained(line, tmp_path):
    write_evaluation(evaluation(), tmp_path)
    (tmp_path / "frames.csv").write_text(f"sequence,frame,J,F\n{line}\n")
    with pytest.raises(ResultsError, match=f"{tmp_path}.*damaged"):
        read_evaluation(tmp_path)


def test_the_printed_table_is_aligned_and_has_the_same_numbers():
    one = evaluation()
    lines = score_table(one).split("\n")
    assert len({len(line) for line in lines}) == 1
    names = [line[: len(LONG)].strip() for line in lines if not line.startswith("-")]
    assert names == ["sequence", LONG, "dog_1", "average"]
    average = one.rows[-1].statistics
    numbers = [one.rows[-1].mean, *vars(average["J"]).values(), *vars(average["F"]).values()]
    assert lines[-1].split()[1:] == ["17", *(f"{number:.3f}" for number in numbers)]
    assert score_table(evaluation("youtube_objects")).split("\n")[3].startswith("class dog")
