"""The sets' own rules, each against an example worked out by hand."""

import numpy as np
import pytest

from utils.evaluation.protocols import PROTOCOLS, SequenceScores, choose_protocol, summarise


def scores_of(**sequences) -> dict[str, SequenceScores]:
    """Sequences by name, each with its J, or with a pair of J and F."""
    found = {}
    for name, values in sequences.items():
        pairs = values if isinstance(values, tuple) else (values,)
        arrays = {measure: np.array(v) for measure, v in zip("JF", pairs)}
        found[name] = SequenceScores(tuple(f"{t:05d}" for t in range(len(pairs[0]))), arrays)
    return found


def table(scores, name: str) -> dict[str, dict[str, tuple[float, float, float]]]:
    """(mean, recall, decay) by row and measure."""
    return {
        row.name: {m: (s.mean, s.recall, s.decay) for m, s in row.statistics.items()}
        for row in summarise(scores, PROTOCOLS[name])
    }


def test_davis_2016_leaves_the_first_and_last_frame_out_and_averages_sequences():
    scores = scores_of(
        # The first and last would change every number; quarters of four frames are pairs.
        bear=([0.0, 0.9, 0.7, 0.5, 0.3, 0.0], [1.0, 0.6, 0.6, 0.6, 0.6, 1.0]),
        cow=([0.9, 0.2, 0.9], [0.9, 0.4, 0.9]),
    )
    rows = table(scores, "davis2016")
    assert list(rows) == ["bear", "cow", "average"]
    assert rows["bear"]["J"] == pytest.approx((0.6, 0.5, 0.8 - 0.4))
    assert rows["bear"]["F"] == pytest.approx((0.6, 1, 0))
    assert rows["cow"]["J"] == pytest.approx((0.2, 0, 0))
    # Each sequence counts once, however long it is.
    assert rows["average"]["J"] == pytest.approx((0.4, 0.25, 0.2))
    assert rows["average"]["F"] == pytest.approx((0.5, 0.5, 0))
    counted = [row.frames for row in summarise(scores, PROTOCOLS["davis2016"])]
    assert counted == [4, 1, 5]
    assert summarise(scores, PROTOCOLS["davis2016"])[-1].mean == pytest.approx(0.45)


def test_fbms_averages_j_of_all_annotated_frames_by_sequence_and_then_over_sequences():
    rows = table(scores_of(cars1=[0.8, 0.6, 0.1], dogs01=[0.9]), "fbms")
    assert rows.keys() == {"cars1", "dogs01", "average"}
    assert all(row.keys() == {"J"} for row in rows.values())
    assert rows["cars1"]["J"][0] == pytest.approx(0.5)
    assert rows["average"]["J"][0] == pytest.approx((0.5 + 0.9) / 2)


def test_youtube_objects_averages_the_frames_of_a_class_and_then_classes():
    scores = scores_of(bird_0001=[0.9, 0.9, 0.9], bird_0002=[0.1], cat_0003=[0.4, 0.6])
    rows = summarise(scores, PROTOCOLS["youtube_objects"])
    assert [(row.kind, row.name, row.frames) for row in rows] == [
        ("sequence", "bird_0001", 3),
        ("sequence", "bird_0002", 1),
        ("sequence", "cat_0003", 2),
        ("class", "bird", 4),
        ("class", "cat", 2),
        ("average", "average", 6),
    ]
    means = [row.statistics["J"].mean for row in rows]
    # The class's frames together: 2.8 / 4, not the mean of its sequences 0.9 and 0.1.
    assert means == pytest.approx([0.9, 0.1, 0.5, 0.7, 0.5, 0.6])
    assert rows[-1].mean == pytest.approx(0.6)


def test_long_videos_average_all_annotated_frames_by_sequence():
    rows = table(scores_of(rat=([1.0, 0.4], [0.2, 0.2]), dressage=([0.5], [0.8])), "long_videos")
    assert rows["rat"]["J"] == pytest.approx((0.7, 0.5, 0.6))
    assert rows["average"]["J"] == pytest.approx((0.6, 0.25, 0.3))
    assert rows["average"]["F"] == pytest.approx((0.5, 0.5, 0))


@pytest.mark.parametrize(
    ("set_name", "expected"),
    [
        ("DAVIS_test", "davis2016"),
        ("davis-2016", "davis2016"),
        ("FBMS_test", "fbms"),
        ("FBMS-59", "fbms"),
        ("YTOBJ_test", "youtube_objects"),
        ("YouTube-Objects", "youtube_objects"),
        ("LongVideos_test", "long_videos"),
        ("Long-Videos", "long_videos"),
    ],
)
def test_the_name_of_a_set_tells_its_protocol(set_name, expected):
    for every_frame in (True, False):
        protocol, why = choose_protocol(set_name, every_frame=every_frame)
        assert protocol is PROTOCOLS[expected]
        assert set_name in why


def test_other_sets_get_rules_that_fit_their_annotation_and_any_can_be_chosen():
    assert choose_protocol("zoo")[0].name == "davis2016"
    protocol, why = choose_protocol("zoo", every_frame=False)
    assert protocol.name == "long_videos"
    assert "not every frame is annotated" in why
    assert choose_protocol("DAVIS_test", "fbms")[0].name == "fbms"


def test_no_sequences_are_refused():
    with pytest.raises(ValueError, match="no sequences"):
        summarise({}, PROTOCOLS["fbms"])
