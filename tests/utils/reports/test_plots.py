"""Plots: every score is where it belongs, and files stay small."""

from xml.etree import ElementTree

import numpy as np
import pytest

from utils.reports.plots import LINES, plot_scores

SVG = "{http://www.w3.org/2000/svg}"


def path_points(path) -> np.ndarray:
    """Points (N, 2) of a path of straight lines."""
    numbers = [token for token in path.get("d").split() if token not in "MLz"]
    return np.array(numbers, float).reshape(-1, 2)


def read_plot(content: bytes):
    """x and value of the points of each line, by plot and line style; all texts; number of dots."""
    root = ElementTree.fromstring(content)
    plots = []
    for axes in root.iter(f"{SVG}g"):
        if not axes.get("id", "").startswith("axes_"):
            continue
        paths = [path for path in axes.iter(f"{SVG}path") if path.get("clip-path")]
        points = [(path.get("style"), path_points(path)) for path in paths]
        # Horizontal lines of the grid are at 0, 0.5 and 1.
        levels = [p[0, 1] for style, p in points if "#767676" in style and p[0, 1] == p[1, 1]]
        zero, one = max(levels), min(levels)
        plots.append(
            {
                index: np.column_stack([p[:, 0], (zero - p[:, 1]) / (zero - one)])
                for style, p in points
                for index, (colour, _) in enumerate(LINES)
                if f"stroke: {colour}" in style
            }
        )
    texts = [text.text for text in root.iter(f"{SVG}text")]
    return plots, texts, len(list(root.iter(f"{SVG}use")))


def names(length: int) -> list[str]:
    return [f"{i:05d}" for i in range(length)]


@pytest.mark.parametrize("length", [1, 2, 30, 31, 120])
def test_lines_go_through_the_scores_of_every_frame(length):
    values = dict(zip("JF", np.random.default_rng(0).random((2, length))))
    (lines,), texts, dots = read_plot(plot_scores(names(length), {"": values}))
    for index, expected in enumerate(values.values()):
        assert lines[index][:, 1] == pytest.approx(expected, abs=1e-4)
        assert (np.diff(lines[index][:, 0]) > 0).all()
    assert dots == (2 * length if length <= 30 else 0)
    assert {"0", "0.5", "1", "00000", f"{length - 1:05d}"} <= set(texts)


def test_several_plots_have_their_own_lines_and_titles():
    values = np.random.default_rng(0).random((2, 3, 40))
    plots = {title: dict(zip("abc", lines)) for title, lines in zip("JF", values)}
    found, texts, _ = read_plot(plot_scores(names(40), plots))
    assert [text for text in texts if text in plots] == ["J", "F"]
    for lines, expected in zip(found, values, strict=True):
        shown = [lines[index][:, 1] for index in range(3)]
        np.testing.assert_allclose(shown, expected, atol=1e-4)


def test_plots_of_long_videos_are_small_and_keep_every_dip():
    values = 0.5 + np.random.default_rng(1).random((2, 20_000)) / 4
    values[0, 1234] = values[1, 3456] = 0
    content = plot_scores(names(20_000), {"": dict(zip("JF", values))})
    assert len(content) < 80_000
    (lines,), _, _ = read_plot(content)
    for index, dip in enumerate((1234, 3456)):
        x, value = lines[index][lines[index][:, 1].argmin()]
        start, end = lines[index][[0, -1], 0]
        assert value == pytest.approx(0, abs=1e-4)
        assert (x - start) / (end - start) == pytest.approx(dip / 19_999, abs=1e-3)


def test_names_of_frames_are_shown_as_text_and_shortened():
    frames = ["<b>&$x$", *names(5), f"{'long' * 20}_00099"]
    _, texts, _ = read_plot(plot_scores(frames, {"": {"J": np.ones(7)}}))
    assert texts[0] == "<b>&$x$"
    assert any(
        text.startswith("…") and text.endswith("_00099") and len(text) == 18 for text in texts
    )


def test_names_that_are_not_utf_8_are_escaped():
    _, texts, _ = read_plot(plot_scores(["b\udcff_0", "b_1"], {"": {"J": np.zeros(2)}}))
    assert r"b\udcff_0" in texts
