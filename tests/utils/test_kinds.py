"""Kinds of settings: edges of what each allows, and what the text of a flag becomes."""

import pytest

from utils.kinds import KINDS, SettingsError, list_of, number

LONG = 10**400


@pytest.mark.parametrize(
    ("kind", "allowed", "refused"),
    [
        ("bool", [True, False], [0, 1, "true", None]),
        ("str", ["x", " x "], ["", " ", 3, None, ["x"]]),
        ("path", ["data"], ["", 3]),
        ("whole(1)", [1, 10**6], [10**6 + 1, 0, -4, 1.0, 1.5, "12", True, None, [1], LONG]),
        ("whole(0, 9)", [0, 9], [-1, 10]),
        ("multiple_of(32)", [32, 384], [0, -32, 31, 100, 32.0]),
        ("multiple_of(32, 64)", [64], [96]),
        ("number(0)", [0.0, 1e308], [-0.1, float("inf"), float("nan"), LONG, -LONG, "0", True]),
        ("number(1, 100)", [1.0, 100.0], [0.9, 100.1]),
        ("number(above=0, below=1)", [1e-9, 0.5], [0, 1]),
        ("number(above=0, most=1)", [1.0], [0, 1.1]),
        ("share", [0.0, 1.0], [-0.1, 1.1]),
        ('one_of("raft", "dis")', ["raft"], ["dice", None, "", ["raft"]]),
        ("list_of(str)", [["a"], ["a", "b"]], [[], "a", [1], ["a", ""], ["a", "a"], [["a"]], None]),
        ("list_of(number(above=0))", [[1.0, 2.0]], [[], 1.0, [0.0], [True], [1.0, 1]]),
        ("optional(path)", [None, "x"], ["", 3]),
        ("optional(list_of(multiple_of(32)))", [None, [32, 64]], [[], [None], [33]]),
        ("gpus", ["", "0", "0,1", "0, 10"], [0, "0,", "cuda:0", "²", None]),
        ("protocol", ["davis2016"], ["davis"]),
    ],
)
def test_what_is_allowed(kind, allowed, refused):
    kind = eval(kind, KINDS.copy())
    for value in allowed:
        assert kind.check(value, "x") == value
    for value in refused:
        with pytest.raises(SettingsError, match=r"^x: expected "):
            kind.check(value, "x")


def test_values_come_in_the_form_that_the_code_uses():
    assert repr(number(0).check(1, "")) == "1.0"
    given = [0.5]
    checked = list_of(number(0)).check(given, "")
    assert checked == given and checked is not given
    assert repr(list_of(number(0)).check((0, 1), "")) == "[0.0, 1.0]"


@pytest.mark.parametrize(
    ("kind", "given", "value"),
    [
        ("whole(1)", "12", 12),
        ("whole(1)", "1.5", "1.5"),
        ("number(0)", "1e-3", 1e-3),
        ("bool", "No", False),
        ("bool", "1", True),
        ("bool", "maybe", "maybe"),
        ("str", "none", "none"),
        ("optional(str)", "None", None),
        ("optional(whole(1))", "4", 4),
        ("list_of(share)", ["0.5", "1"], [0.5, 1.0]),
        ("optional(list_of(share))", ["none"], None),
        ("gpus", "", ""),
    ],
)
def test_the_text_of_a_flag(kind, given, value):
    assert repr(eval(kind, KINDS.copy()).parse(given)) == repr(value)


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        ("whole(1)", "a whole number from 1 to 1000000"),
        ("number(0, 180)", "a number from 0 to 180"),
        ("number(above=0, below=1)", "a number above 0 and below 1"),
        ("multiple_of(32, 64)", "a whole number from 32 to 64, a multiple of 32"),
        ('optional(one_of("iou", "bce"))', "'iou' or 'bce', or None"),
        ("list_of(str)", "a list of different values, each text in quotes, not empty"),
    ],
)
def test_what_is_expected_in_words(kind, words):
    assert eval(kind, KINDS.copy()).expected == words
