"""Tests of datasets/flow/pairs.py."""

from datasets.flow.pairs import motion_pairs


def test_every_frame_is_paired_with_the_next_and_the_last_with_its_predecessor():
    read = []
    pairs = motion_pairs(number for number in range(4) if read.append(number) is None)
    assert next(pairs) == (0, 1, 1) and read == [0, 1]
    assert list(pairs) == [(1, 2, 1), (2, 3, 1), (3, 2, -1)]
    assert list(motion_pairs("ab")) == [("a", "b", 1), ("b", "a", -1)]
