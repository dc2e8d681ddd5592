"""Bars in a terminal, lines in a log, nothing where nothing is to be shown; any file's name."""

import io
import sys

import pytest

import datasets.progress
from datasets.progress import print_any_name, progress_bar


class Stream(io.StringIO):
    """Takes the place of stderr; pytest would replace it between a fixture and its test."""

    def __init__(self, monkeypatch, terminal: bool):
        super().__init__()
        self.terminal = terminal
        monkeypatch.setattr(sys, "stderr", self)

    def isatty(self) -> bool:
        return self.terminal


def test_a_log_gets_whole_lines_and_few_of_them(monkeypatch):
    stream = Stream(monkeypatch, terminal=False)
    assert list(progress_bar(range(1000), desc="reading", unit="frame")) == list(range(1000))
    lines = stream.getvalue().splitlines()
    assert "\r" not in stream.getvalue()
    assert 1 <= len(lines) <= 2  # the beginning and the end
    assert "reading" in lines[-1] and "1000/1000" in lines[-1]
    # Now and then means a line each time, if now and then is at once.
    stream = Stream(monkeypatch, terminal=False)
    monkeypatch.setattr(datasets.progress, "_LINE_EVERY", 0)
    list(progress_bar(range(5), miniters=1))
    assert len(stream.getvalue().splitlines()) >= 5


def test_a_bar_inside_another_leaves_no_signs_of_a_terminal_in_a_log(monkeypatch):
    stream = Stream(monkeypatch, terminal=False)
    monkeypatch.setattr(datasets.progress, "_LINE_EVERY", 0)
    for _ in progress_bar(range(2), desc="outer", miniters=1):
        list(progress_bar(range(2), desc="inner", miniters=1))
    assert "\x1b" not in stream.getvalue()
    assert {line.split(":")[0] for line in stream.getvalue().splitlines()} == {"outer", "inner"}


def test_a_terminal_gets_a_bar_that_overwrites_itself(monkeypatch):
    stream = Stream(monkeypatch, terminal=True)
    with progress_bar(total=3, desc="writing") as bar:
        bar.update(3)
    assert stream.getvalue().startswith("\r") and "writing" in stream.getvalue()


@pytest.mark.parametrize("terminal", [True, False])
def test_nothing_is_shown_if_nothing_is_to_be(monkeypatch, terminal):
    stream = Stream(monkeypatch, terminal)
    assert list(progress_bar([1, 2], shown=False)) == [1, 2]
    assert stream.getvalue() == ""


@pytest.mark.parametrize("encoding", ["ascii", "utf-8"])
def test_names_that_the_output_cannot_show_are_escaped(monkeypatch, encoding):
    shown = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(shown, encoding=encoding))
    print_any_name()
    print("\udcff", "\u00fc", flush=True)
    assert (
        shown.getvalue() == b"\\udcff " + (b"\\xfc" if encoding == "ascii" else b"\xc3\xbc") + b"\n"
    )


def test_a_function_is_told_of_each_item_and_can_end_the_work():
    told = []
    assert list(progress_bar("abc", shown=lambda *how_far: told.append(how_far), desc="x")) == [
        *"abc"
    ]
    assert told == [("x", 0, None), ("x", 1, None), ("x", 2, None)]

    def stop(work: str, done: int, count: int) -> None:
        told.append((work, done, count))
        if done:
            raise InterruptedError

    with pytest.raises(InterruptedError):
        list(progress_bar("abc", shown=stop, desc="y", total=3))
    assert told[3:] == [("y", 0, 3), ("y", 1, 3)]
    assert list(progress_bar("ab", shown=0)) == ["a", "b"]
