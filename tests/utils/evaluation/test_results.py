"""The files of an evaluation: full precision, and read back as they were written."""

import csv
import json
import random

import numpy as np
import pytest

from utils.evaluation.metrics import statistics
from utils.evaluation.protocols import PROTOCOLS, SequenceScores
from utils.evaluation.results import (
    Evaluation,
    ResultsError,
    read_evaluation,
    remove_evaluation,
    score_table,
    write_evaluation,
)


def evaluation(protocol: str = "davis2016", lengths=(12, 5)) -> Evaluation:
    """Random scores of a long and a short sequence, with a name that CSV must quote."""
    numbers = random.Random(0)
    scores = {
        name: SequenceScores(
            tuple(f"{t:05d}" for t in range(length)),
            {m: np.array([numbers.random() for _ in range(length)]) for m in "JF"},
        )
        for name, length in zip(('a_long, "name"', "b_1"), lengths)
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
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def test_scores_are_written_in_full_with_the_protocol(tmp_path):
    one = evaluation()
    write_evaluation(one, tmp_path)
    rows = read_csv(tmp_path / "scores.csv")
    titles = [f"{m}_{c}" for m in "JF" for c in ("mean", "recall", "decay")]
    assert list(rows[0]) == ["sequence", "kind", "frames", *titles, "protocol"]
    assert [row["sequence"] for row in rows] == ['a_long, "name"', "b_1", "average"]
    assert [row["frames"] for row in rows] == ["10", "3", "13"]
    assert {row["protocol"] for row in rows} == {"davis2016"}
    for row, scores in zip(rows, one.scores.values()):
        for measure, values in scores.values.items():
            for column, value in vars(statistics(values[1:-1])).items():
                assert float(row[f"{measure}_{column}"]) == value
    for title in titles:
        first, second, average = (float(row[title]) for row in rows)
        assert average == pytest.approx((first + second) / 2, abs=1e-15)


def test_protocols_of_j_alone_and_with_classes_have_their_own_columns_and_rows(tmp_path):
    write_evaluation(evaluation("youtube_objects"), tmp_path)
    rows = read_csv(tmp_path / "scores.csv")
    assert list(rows[0]) == ["sequence", "kind", "frames", "J_mean", "protocol"]
    kinds = [row["kind"] for row in rows]
    assert kinds == ["sequence", "sequence", "class", "class", "average"]
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
    assert record["average"]["J"]["mean"] == one.rows[-1].statistics["J"].mean


def test_a_folder_without_or_with_a_damaged_evaluation_is_explained(tmp_path):
    with pytest.raises(ResultsError, match=r"holds no evaluation\.json.*--output folder"):
        read_evaluation(tmp_path)
    write_evaluation(evaluation(), tmp_path)
    (tmp_path / "frames.csv").write_text("sequence,frame,J\na,0,x\n")
    with pytest.raises(ResultsError, match="damaged"):
        read_evaluation(tmp_path)
    (tmp_path / "frames.csv").write_text("sequence,frame,J,F\na,0,0.5,nan\n")
    with pytest.raises(ResultsError, match=r"damaged.*not a number"):
        read_evaluation(tmp_path)
    write_evaluation(evaluation(), tmp_path)
    (tmp_path / "evaluation.json").write_text("{")
    with pytest.raises(ResultsError, match="damaged"):
        read_evaluation(tmp_path)
    (tmp_path / "mask.png").touch()
    remove_evaluation(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["mask.png"]


def test_the_printed_table_is_aligned_and_has_the_same_numbers():
    one = evaluation()
    lines = score_table(one).split("\n")
    assert len({len(line) for line in lines}) == 1
    names = [line[:14].strip() for line in lines if not line.startswith("-")]
    assert names == ["sequence", 'a_long, "name"', "b_1", "average"]
    average = one.rows[-1].statistics
    numbers = [one.rows[-1].mean, *vars(average["J"]).values(), *vars(average["F"]).values()]
    assert lines[-1].split()[1:] == ["13", *(f"{number:.3f}" for number in numbers)]
    assert score_table(evaluation("youtube_objects")).split("\n")[4].startswith("class b")
