"""The sets' own rules, each against an example worked out by hand."""

from pathlib import Path

import numpy as np
import pytest

from datasets.layout import Frame, VideoFiles
from utils.evaluation.protocols import (
    PROTOCOLS,
    SequenceScores,
    choose_protocol,
    class_of,
    summarise,
)


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


@pytest.mark.parametrize(
    ("name", "annotated", "counting"),
    [
        ("davis2016", [0, 1, 2, 3], [1, 2]),
        ("davis2016", [0, 1, 2], [1]),
        ("davis2016", [0, 1], [0, 1]),  # nothing would be left of one or two
        ("davis2016", [0], [0]),
        ("davis2017_semi_supervised", [0, 1, 2], [1]),
        ("davis2017_semi_supervised", [0, 1], [1]),  # the first mask was given
        ("davis2017_semi_supervised", [0], []),
        ("fbms", [0, 3], [0, 3]),
        ("youtube_objects", [1], [1]),
        ("long_videos", [1, 2, 3], [1, 2, 3]),
    ],
)
def test_the_frames_that_count_are_annotated_and_davis_leaves_the_ends_out(
    name, annotated, counting
):
    path = Path("x.png")
    frames = [Frame(str(t), path, path if t in annotated else None, None) for t in range(4)]
    found = PROTOCOLS[name].frames_to_score(VideoFiles("bear", tuple(frames)))
    assert [int(frame.name) for frame in found] == counting


def test_davis_2016_averages_sequences():
    scores = scores_of(
        # Quarters of four frames are pairs.
        bear=([0.9, 0.7, 0.5, 0.3], [0.6, 0.6, 0.6, 0.6]),
        cow=([0.2], [0.4]),
    )
    rows = table(scores, "davis2016")
    assert list(rows) == ["bear", "cow", "average"]
    assert rows["bear"]["J"] == pytest.approx((0.6, 0.5, 0.8 - 0.4))
    assert rows["bear"]["F"] == pytest.approx((0.6, 1, 0))
    assert rows["cow"]["J"] == pytest.approx((0.2, 0, 0))
    # Each sequence counts once, however long it is.
    assert rows["average"]["J"] == pytest.approx((0.4, 0.25, 0.2))
    assert rows["average"]["F"] == pytest.approx((0.5, 0.5, 0))
    assert [row.frames for row in summarise(scores, PROTOCOLS["davis2016"])] == [4, 1, 5]
    assert summarise(scores, PROTOCOLS["davis2016"])[-1].mean == pytest.approx(0.45)


def test_fbms_averages_j_by_sequence_and_then_over_sequences():
    rows = table(scores_of(cars1=[0.8, 0.6, 0.1], dogs01=[0.9]), "fbms")
    assert rows.keys() == {"cars1", "dogs01", "average"}
    assert all(row.keys() == {"J"} for row in rows.values())
    assert rows["cars1"]["J"][0] == pytest.approx(0.5)
    assert rows["average"]["J"][0] == pytest.approx((0.5 + 0.9) / 2)


def test_youtube_objects_averages_sequences_over_all_and_over_those_of_a_class():
    scores = scores_of(
        bird_0001=[0.9, 0.9, 0.9], bird_0002=[0.1], my_cat=[0.4, 0.6], catfish_1=[1.0]
    )
    rows = summarise(scores, PROTOCOLS["youtube_objects"])
    assert [(row.kind, row.name, row.frames) for row in rows] == [
        ("sequence", "bird_0001", 3),
        ("sequence", "bird_0002", 1),
        ("sequence", "my_cat", 2),
        ("sequence", "catfish_1", 1),
        ("class", "bird", 4),
        ("class", "cat", 2),
        ("average", "average", 7),
    ]
    means = [row.statistics["J"].mean for row in rows]
    # Birds: the mean of 0.9 and 0.1, not of four frames. All: of four sequences, not of classes.
    assert means == pytest.approx([0.9, 0.1, 0.5, 1.0, 0.5, 0.5, 0.625])
    assert rows[-1].mean == pytest.approx(0.625)


@pytest.mark.parametrize(
    ("sequence", "expected"),
    [
        ("aeroplane_0001", "aeroplane"),
        ("motorbike0007", "motorbike"),
        ("my_dog", "dog"),
        ("Dog-3", "dog"),
        ("cow_0019-002", "cow"),
        ("dog_on_train", "dog"),
        ("birdcage_1", None),
        ("0001", None),
    ],
)
def test_a_class_is_a_known_word_of_the_name(sequence, expected):
    assert class_of(sequence) == expected


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
        ("DAVIS17_val", "davis2017_unsupervised"),
        ("DAVIS17semi_val", "davis2017_semi_supervised"),
        ("FBMS_test", "fbms"),
        ("FBMS-59", "fbms"),
        ("SegTrackv2_test", "segtrack_v2"),
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
