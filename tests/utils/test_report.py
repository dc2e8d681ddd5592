"""Result pages: valid, self-contained, and right about scores and frames."""

import base64
import csv
import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import cv2
import numpy as np
import pytest

import utils.report
from utils.pictures import PANEL_WIDTH, draw_panels, write_picture
from utils.protocols import PROTOCOLS, SequenceScores
from utils.report import write_comparison, write_report
from utils.results import Evaluation, ResultsError, write_evaluation

VOID = {"meta", "img", "br"}
ODD = '<b>&"x'  # a name that must not become markup
HEIGHT, WIDTH = 24, 32


class Page(HTMLParser):
    """A page as a list of elements: tag, attributes, text within, path of tags from the root.

    Tags that are not closed, or closed in another order, fail.
    """

    def __init__(self, path: Path):
        super().__init__()
        self.source = path.read_text(encoding="utf-8")
        self.elements, self.open = [], []
        self.feed(self.source)
        self.close()
        assert not self.open

    def handle_starttag(self, tag, attributes):
        assert len(dict(attributes)) == len(attributes)
        inside = [element["tag"] for element in self.open]
        element = {"tag": tag, "text": "", "inside": inside, **dict(attributes)}
        self.elements.append(element)
        if tag not in VOID:
            self.open.append(element)

    def handle_endtag(self, tag):
        assert self.open.pop()["tag"] == tag

    def handle_startendtag(self, tag, attributes):
        self.handle_starttag(tag, attributes)
        self.open.pop()

    def handle_data(self, data):
        for element in self.open:
            element["text"] += data

    def all(self, tag, **attributes):
        """Elements by tag and attributes, ``kind_`` standing for ``kind``."""
        wanted = {name.rstrip("_"): value for name, value in attributes.items()}
        return [
            element
            for element in self.elements
            if element["tag"] == tag and wanted.items() <= element.items()
        ]

    def children(self, parent):
        """Elements within another, in order."""
        start = self.elements.index(parent)
        depth = len(parent["inside"])
        inner = []
        for element in self.elements[start + 1 :]:
            if len(element["inside"]) <= depth:
                break
            inner.append(element)
        return inner

    def section(self, heading):
        """Elements of the section under a heading."""
        (title,) = [element for element in self.all("h2") if element["text"] == heading]
        found = self.elements[self.elements.index(title) + 1 :]
        ends = [i for i, element in enumerate(found) if element["tag"] == "h2"]
        return found[: ends[0]] if ends else found

    def scores(self):
        """Rows of the score table: kind, name, cells."""
        rows = []
        for row in self.all("tr"):
            if "data-kind" in row:
                name, *cells = [e for e in self.children(row) if e["tag"] in ("th", "td")]
                rows.append((row["data-kind"], name["data-value"], cells))
        return rows

    def frames(self, heading):
        """Names and scores of the frames that a section shows."""
        section = self.section(heading)
        figures = [element for element in section if element.get("class") == "frame"]
        return [
            next(e for e in self.children(figure) if e["tag"] == "figcaption")["text"]
            for figure in figures
        ]


def curves(lengths, measures=("J", "F"), seed=0):
    """Random scores by sequence."""
    rng = np.random.default_rng(seed)
    return {
        name: SequenceScores(
            tuple(f"{i:05d}" for i in range(length)), {m: rng.random(length) for m in measures}
        )
        for name, length in lengths.items()
    }


def make_evaluation(scores, root="nowhere", protocol="davis2016", **changes):
    values = {
        "method": "A <method>",
        "set_name": "DAVIS_tiny",
        "data_root": str(root),
        "protocol": PROTOCOLS[protocol],
        "masks": str(Path(root) / "masks"),
        "scores": scores,
        "checkpoint": "runs/train/best.pt",
        "settings": {"BACKBONE": "mit_b2", "NAME": "</table><script>alert(1)</script>", "SEED": 0},
    }
    return Evaluation(**values | changes)


def write_data(root, scores, mask_value=255):
    """Images, true masks (left half) and masks (right half) of all frames."""
    left = np.zeros((HEIGHT, WIDTH), np.uint8)
    left[:, : WIDTH // 2] = mask_value
    for name, one in scores.items():
        for frame in one.frames:
            folder = root / "DAVIS_tiny" / name
            image = np.full((HEIGHT, WIDTH, 3), (200, 40, 40), np.uint8)
            write_picture(folder / "RGB" / f"{name}_{frame}.png", image)
            write_picture(folder / "GT" / f"{name}_{frame}.png", left)
            write_picture(root / "masks" / name / f"{frame}.png", left[:, ::-1])


def decode(image):
    """uint8 RGB of an embedded picture."""
    kind, data = image["src"].split(",")
    assert kind == "data:image/jpeg;base64"
    picture = cv2.imdecode(np.frombuffer(base64.b64decode(data), np.uint8), cv2.IMREAD_COLOR)
    assert picture.shape[:2] == (int(image["height"]), int(image["width"]))
    return cv2.cvtColor(picture, cv2.COLOR_BGR2RGB)


def write_runs(tmp_path, scores, number=2, **changes):
    """Folders of evaluations with other scores and settings."""
    folders = []
    for i in range(number):
        other = {
            name: replace(one, values={m: v * (1 - 0.1 * i) for m, v in one.values.items()})
            for name, one in scores.items()
        }
        settings = {"BACKBONE": "mit_b2", "SEED": i, **({"ONLY": ODD} if i else {})}
        evaluation = make_evaluation(other, method=f"run {i}", settings=settings, **changes)
        folders.append(tmp_path / "runs" / f"run-{i}" / "DAVIS_tiny")
        write_evaluation(evaluation, folders[-1])
    return folders


LENGTHS = {"bear": 12, ODD: 9, "camel": 40}


def make_page(kind, tmp_path):
    """One page of each kind."""
    if kind == "classes":
        scores = curves({"cat_1": 3, "cat_2": 1, "dog_1": 2, f"dog_{ODD}": 5}, ["J"])
        return write_report(make_evaluation(scores, protocol="youtube_objects"), tmp_path)
    scores = curves(LENGTHS)
    write_data(tmp_path, scores)
    if kind == "comparison":
        return write_comparison(write_runs(tmp_path, scores, 3, root=tmp_path), tmp_path / "out")
    return write_report(make_evaluation(scores, tmp_path), tmp_path / "out")


@pytest.mark.parametrize("kind", ["report", "classes", "comparison"])
def test_the_page_is_valid_and_needs_nothing_else(kind, tmp_path):
    path = make_page(kind, tmp_path)
    page = Page(path)
    assert page.source.startswith("<!DOCTYPE html>")
    for tag in ("html", "head", "body", "main", "h1"):
        assert len(page.all(tag)) == 1
    assert [e["inside"] for e in page.all("title") if "svg" not in e["inside"]] == [
        ["html", "head"]
    ]
    ids = [element["id"] for element in page.elements if "id" in element]
    assert len(ids) == len(set(ids))
    assert all(element["href"][1:] in ids for element in page.all("a"))
    assert all(element["alt"] for element in page.all("img"))
    assert kind == "classes" or page.all("img")
    # Nothing comes from elsewhere, and nothing but the page's own script runs.
    assert not any(page.all(tag) for tag in ("link", "iframe", "object", "base", "image", "use"))
    for element in page.elements:
        assert element.get("href", "#").startswith("#")
        assert "src" not in element or element["src"].startswith("data:image/jpeg;base64,")
        assert not any(name.startswith("on") or name == "srcset" for name in element)
    assert not re.search(r"https?:|url\(|@import|['\"(]//", page.source)
    (script,) = page.all("script")
    assert "alert" not in script["text"] and ODD not in page.source
    # Parts of a table stand where HTML has them.
    for tag, parents in {"tr": ("thead", "tbody", "tfoot"), "td": ("tr",), "th": ("tr",)}.items():
        assert all(element["inside"][-1] in parents for element in page.all(tag))


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_the_table_holds_the_numbers_of_the_csv_file(protocol, tmp_path):
    measures = PROTOCOLS[protocol].measures
    scores = curves({"cat_1": 9, "cat_2": 1, "dog_1": 30, ODD: 5}, measures)
    evaluation = make_evaluation(scores, protocol=protocol)
    write_evaluation(evaluation, tmp_path)
    with (tmp_path / "scores.csv").open(newline="") as file:
        expected = {(row["kind"], row["sequence"]): row for row in csv.DictReader(file)}
    columns = [name for name in next(iter(expected.values())) if name[:2] in ("J_", "F_")]
    page = Page(write_report(evaluation, tmp_path))
    rows = page.scores()
    assert {(kind, name) for kind, name, _ in rows} == set(expected)
    assert len(rows) == len(expected)
    assert rows[-1][:2] == ("average", "average")
    for kind, name, (frames, *cells) in rows:
        row = expected[kind, name]
        assert frames["data-value"] == row["frames"] == frames["text"]
        if len(measures) > 1:
            mean, *cells = cells
            both = [float(row[f"{m}_mean"]) for m in measures]
            assert float(mean["data-value"]) == pytest.approx(np.mean(both), abs=1e-15)
        assert [cell["data-value"] for cell in cells] == [row[column] for column in columns]
        for cell in cells:
            assert float(cell["text"]) == pytest.approx(float(cell["data-value"]), abs=5.01e-4)
    heads = [head["text"] for head in page.all("th", scope="col")]
    means = ["mean"] * (len(measures) > 1)
    assert heads[: 2 + len(means)] == ["sequence", "frames", *means]
    large = [element["value"] for element in page.all("data")]
    average = expected["average", "average"]
    assert large[-len(measures) :] == [average[f"{m}_mean"] for m in measures]
    assert len(large) == 2 * len(measures) - 1
    assert PROTOCOLS[protocol].rule in page.source


def test_every_header_sorts_its_own_column_and_the_average_is_not_sorted(tmp_path):
    page = Page(write_report(make_evaluation(curves(LENGTHS)), tmp_path))
    heads = [head for head in page.all("th") if "data-column" in head]
    assert [int(head["data-column"]) for head in heads] == list(range(9))
    assert [head["text"] for head in heads[2:]] == ["mean", *["mean", "recall", "decay"] * 2]
    (average,) = page.all("tr", **{"data-kind": "average"})
    assert average["inside"][-1] == "tfoot"
    for part in ("aria-sort", 'createElement("button")', "table.tBodies", "dataset.value"):
        assert part in page.source


def points_of(line):
    """x and value of a line's points."""
    pairs = [pair.split() for pair in line["d"][1:].split("L")]
    x, y = np.array(pairs, float).T
    share = (utils.report.BOTTOM - y) / (utils.report.BOTTOM - utils.report.TOP)
    return x, share


def lines_of(page, figure):
    return [element for element in page.children(figure) if "data-line" in element]


@pytest.mark.parametrize("length", [1, 2, 30, 31, 240])
def test_plots_show_the_scores_of_every_frame(length, tmp_path):
    scores = curves({"a": length, "b": 3})
    page = Page(write_report(make_evaluation(scores), tmp_path))
    figure = page.all("figure", id="plot-0")[0]
    lines = lines_of(page, figure)
    for line, measure in zip(lines, ("J", "F"), strict=True):
        x, values = points_of(line)
        assert values == pytest.approx(scores["a"].values[measure], abs=1e-4)
        assert (np.diff(x) > 0).all()
        assert x.min() >= utils.report.LEFT and x.max() <= utils.report.RIGHT
    dots = [e for e in page.children(figure) if "dots" in e.get("class", "")]
    assert len(dots) == (2 if length <= 30 else 0)
    titles = [element["text"] for element in page.children(figure) if element["tag"] == "title"]
    one = scores["a"]
    for i, title in enumerate(titles):
        j, f = one.values["J"][i], one.values["F"][i]
        assert title == f"{one.frames[i]}: J {j:.3f}, F {f:.3f}"
    assert len(titles) == length


def test_plots_of_long_sequences_are_thinned_but_keep_every_dip(tmp_path):
    scores = curves({"a": 5000}, seed=1)
    for measure, dip in (("J", 1234), ("F", 3456)):
        scores["a"].values[measure][:] = 0.5 + scores["a"].values[measure] / 4
        scores["a"].values[measure][dip] = 0.0
    path = write_report(make_evaluation(scores, protocol="long_videos"), tmp_path)
    page = Page(path)
    titles = [e["text"] for e in page.all("title") if "path" in e["inside"]]
    assert len(titles) <= utils.report.MAX_POINTS + 2
    for frame in ("00000", "01234", "03456", "04999"):
        assert sum(title.startswith(frame) for title in titles) == 1
    for line in lines_of(page, page.all("figure", id="plot-0")[0]):
        assert points_of(line)[1].min() == pytest.approx(0, abs=1e-4)
    assert path.stat().st_size < 60_000


def test_best_and_worst_frames_are_the_best_and_worst(tmp_path):
    scores = curves({name: 11 for name in "abcdef"}, seed=3)
    # The extremes of two sequences are at their ends.
    for measure in ("J", "F"):
        scores["a"].values[measure][0], scores["b"].values[measure][-1] = 1.0, 0.0
    page = Page(write_report(make_evaluation(scores), tmp_path))
    best, worst = [], []
    for name, one in scores.items():
        means = (one.values["J"] + one.values["F"]) / 2
        some = [(mean, name, frame) for mean, frame in zip(means, one.frames)]
        best.append(max(some))
        worst.append(min(some))
    for heading, expected in (
        ("Best frames", sorted(best, reverse=True)[:4]),
        ("Worst frames", sorted(worst)[:4]),
    ):
        texts = page.frames(heading)
        assert [text.split()[:2] for text in texts] == [[name, f] for _, name, f in expected]
        for text, (mean, name, frame) in zip(texts, expected):
            j = scores[name].values["J"][int(frame)]
            assert f"J&F\xa0{mean:.3f} J\xa0{j:.3f}" in text
    assert page.frames("Best frames")[0].split()[:2] == ["a", "00000"]


def test_frames_of_few_sequences_are_not_neighbours(tmp_path):
    scores = curves({"a": 50})
    values = 1 - abs(np.arange(50) - 20) / 50
    scores["a"].values.update(J=values, F=values)
    page = Page(write_report(make_evaluation(scores), tmp_path))
    frames = [int(text.split()[1]) for text in page.frames("Best frames")]
    assert frames[0] == 20 and len(frames) == 4
    assert np.diff(sorted(frames)).min() > 5


def test_names_and_settings_are_shown_as_text(tmp_path):
    settings = {ODD: ODD, "LIST": ["<i>", "&amp;"], "$body": "$title"}
    evaluation = make_evaluation(
        curves({ODD: 3, "b&amp;": 2}), method=ODD, set_name=f"DAVIS{ODD}", settings=settings
    )
    page = Page(write_report(evaluation, tmp_path))
    assert not page.all("i") and not page.all("x")
    assert page.all("h1")[0]["text"] == page.all("title")[0]["text"] == f"{ODD} on DAVIS{ODD}"
    assert {name for kind, name, _ in page.scores() if kind == "sequence"} == {ODD, "b&amp;"}
    assert page.frames("Best frames")[0].startswith((f"{ODD} ", "b&amp; "))
    (table,) = [e for e in page.all("table") if "details" in e["inside"]]
    texts = [e["text"] for e in page.children(table) if "tbody" in e["inside"] and e["tag"] != "tr"]
    expected = [text for name, value in settings.items() for text in (name, repr(value))]
    assert texts == expected


def test_settings_and_checkpoint_are_shown(tmp_path):
    evaluation = make_evaluation(curves({"a": 3}), data_root="some/data")
    page = Page(write_report(evaluation, tmp_path))
    facts = dict(zip(*([e["text"] for e in page.all(tag)] for tag in ("dt", "dd"))))
    assert facts["Checkpoint"] == "runs/train/best.pt"
    assert facts["Set"] == "DAVIS_tiny in some/data"
    assert page.all("summary")[0]["text"] == "3 settings"
    elsewhere = replace(evaluation, checkpoint=None, settings={})
    page = Page(write_report(elsewhere, tmp_path))
    facts = dict(zip(*([e["text"] for e in page.all(tag)] for tag in ("dt", "dd"))))
    assert facts["Checkpoint"] == facts["Settings"] == "none: the masks came from elsewhere"


def test_panels_on_disk_are_shown_picture_by_picture(tmp_path):
    scores = curves({"a": 3})
    image = np.full((HEIGHT, WIDTH, 3), (0, 0, 250), np.uint8)
    mask = np.ones((HEIGHT, WIDTH), bool)
    panel = draw_panels(image, image, mask, mask, {name: np.zeros((4, 4)) for name in "wxyz"})
    write_picture(tmp_path / "panels" / "a" / "00001.png", panel)
    evaluation = make_evaluation(scores, tmp_path)
    page = Page(write_report(evaluation, tmp_path))
    assert len(page.all("img")) == 2 * 8  # the best frame is the worst too
    assert all(int(image["width"]) == PANEL_WIDTH for image in page.all("img"))
    first, flow, prediction = map(decode, page.all("img")[:3])
    for picture in (first, flow):
        assert picture[50, 50] == pytest.approx([0, 0, 250], abs=12)
    assert prediction[50, 50].min() > 240
    # Panels of an earlier evaluation are not those of masks from elsewhere.
    (tmp_path / "elsewhere").mkdir()
    other = replace(evaluation, masks=str(tmp_path / "elsewhere"), checkpoint=None)
    assert not Page(write_report(other, tmp_path)).all("img")


@pytest.mark.parametrize("name", ["{frame}", "{sequence}_{frame}"])
def test_frames_without_panel_are_drawn(name, tmp_path):
    scores = curves({"a": 1})
    write_data(tmp_path, scores)
    for path in (tmp_path / "masks" / "a").iterdir():
        path.rename(path.with_name(f"{name.format(sequence='a', frame=path.stem)}.png"))
    page = Page(write_report(make_evaluation(scores, tmp_path), tmp_path / "out"))
    image, prediction, truth = map(decode, page.all("img")[:3])
    height = round(PANEL_WIDTH * HEIGHT / WIDTH)
    assert image[height // 2, 60] == pytest.approx([200, 40, 40], abs=12)
    right, left = slice(140, 230), slice(10, 100)
    assert prediction[10 : height - 10, right].min() > 230
    assert prediction[10 : height - 10, left].max() < 25
    assert truth[10 : height - 10, left].min() > 230
    assert truth[10 : height - 10, right].max() < 25
    # With a flow map there is one picture more.
    flow = tmp_path / "DAVIS_tiny" / "a" / "FLOW" / "a_00000.png"
    write_picture(flow, np.zeros((HEIGHT, WIDTH, 3), np.uint8))
    page = Page(write_report(make_evaluation(scores, tmp_path), tmp_path / "out"))
    assert len(page.all("img")) == 2 * 4


@pytest.mark.parametrize("gone", ["everything", "images", "masks", "broken"])
def test_frames_that_are_gone_are_told_in_words(gone, tmp_path):
    scores = curves({"a": 3, "b": 4})
    if gone != "everything":
        write_data(tmp_path, scores)
    for path in tmp_path.rglob("*.png"):
        if gone == "broken":
            path.write_bytes(path.read_bytes()[:40])
        elif gone == {"RGB": "images", "a": "masks", "b": "masks"}.get(path.parent.name):
            path.unlink()
    page = Page(write_report(make_evaluation(scores, tmp_path), tmp_path / "out"))
    assert not page.all("img")
    words = [element["text"] for element in page.all("div", **{"class": "gone"})]
    assert len(words) == len(page.frames("Best frames") + page.frames("Worst frames")) > 0
    for text in words:
        assert text.startswith("No picture") and str(tmp_path / "masks") in text


def test_masks_are_found_in_a_folder_that_was_moved(tmp_path):
    scores = curves({"a": 3})
    write_data(tmp_path, scores)
    evaluation = make_evaluation(scores, tmp_path, masks="where/it/was")
    assert Page(write_report(evaluation, tmp_path)).all("img")
    elsewhere = replace(evaluation, checkpoint=None)
    assert not Page(write_report(elsewhere, tmp_path)).all("img")


def test_a_report_is_written_whole_or_not_at_all(tmp_path, monkeypatch):
    evaluation = make_evaluation(curves({"a": 3}))
    path = write_report(evaluation, tmp_path / "new")
    assert path == tmp_path / "new" / "report.html"
    assert list(path.parent.iterdir()) == [path]
    before = path.read_bytes()

    def fail(*_):
        raise OSError("disk full")

    monkeypatch.setattr(utils.report.os, "replace", fail)
    with pytest.raises(OSError, match="disk full"):
        write_report(replace(evaluation, method="another"), path.parent)
    assert path.read_bytes() == before
    assert all(other.name.startswith(".") for other in path.parent.iterdir() if other != path)


@pytest.mark.parametrize("protocol", ["davis2016", "youtube_objects"])
def test_comparison_shows_every_runs_means_and_marks_the_best(protocol, tmp_path):
    measures = PROTOCOLS[protocol].measures
    scores = curves({"cat_1": 9, "cat_2": 7, "dog_1": 30}, measures)
    folders = write_runs(tmp_path, scores, 3, protocol=protocol)
    tables = []
    for folder in folders:
        with (folder / "scores.csv").open(newline="") as file:
            tables.append({(r["kind"], r["sequence"]): r for r in csv.DictReader(file)})
    path = write_comparison(folders, tmp_path / "out")
    assert path == tmp_path / "out" / "comparison.html"
    page = Page(path)
    rows = page.scores()
    assert {row[:2] for row in rows} == set(tables[0])
    for kind, name, (_, *cells) in rows:
        expected = [[float(t[kind, name][f"{m}_mean"]) for t in tables] for m in measures]
        if len(measures) > 1:
            expected.insert(0, list(np.mean(expected, axis=0)))
        shown = [float(cell["data-value"]) for cell in cells]
        assert shown == pytest.approx(list(np.ravel(expected)), abs=1e-15)
        marked = ["★" in cell["text"] for cell in cells]
        assert marked == [True, False, False] * len(expected)
        assert all(("best" in c.get("class", "")) == m for c, m in zip(cells, marked))
    labels = [f"run-{i}" for i in range(3)]
    heads = [head["text"].strip() for head in page.all("th") if "data-column" in head]
    assert heads[2:] == labels * len(expected)
    cards = [e["text"] for e in page.all("div") if e["inside"][-2:] == ["header", "div"]]
    assert ["★" in card for card in cards] == [True, False, False]
    assert all(f"of {label}run {i}" in cards[i] for i, label in enumerate(labels))


def test_comparison_plots_a_line_for_each_run_and_measure(tmp_path):
    scores = curves({"a": 9, "b": 40})
    page = Page(write_comparison(write_runs(tmp_path, scores, 3), tmp_path))
    for number, one in enumerate(scores.values()):
        lines = lines_of(page, page.all("figure", id=f"plot-{number}")[0])
        expected = [v * f for v in (one.values["J"], one.values["F"]) for f in (1, 0.9, 0.8)]
        assert len(lines) == len(expected)
        for line, values in zip(lines, expected):
            assert points_of(line)[1] == pytest.approx(values, abs=1e-4)
        assert len({line["class"] for line in lines[:3]}) == 3


def test_what_runs_have_in_common_is_not_marked(tmp_path):
    scores = curves({"a": 9})
    folders = [tmp_path / name for name in "xyz"]
    for folder in folders:
        write_evaluation(make_evaluation(scores), folder)
    page = Page(write_comparison(folders, tmp_path))
    assert not any("★" in cell["text"] for cell in page.all("td"))
    assert "The runs have the same settings." in page.source
    assert "The runs have the same scores in every frame that counts." in page.source
    # Two of three are equal and best: both are marked.
    worse = {"a": replace(scores["a"], values={m: v / 2 for m, v in scores["a"].values.items()})}
    write_evaluation(make_evaluation(worse), folders[1])
    page = Page(write_comparison(folders, tmp_path))
    for _, _, (_, *cells) in page.scores():
        assert ["★" in cell["text"] for cell in cells] == [True, False, True] * 3


def test_only_the_settings_that_differ_are_shown(tmp_path):
    folders = write_runs(tmp_path, curves({"a": 9}), 2)
    elsewhere = make_evaluation(curves({"a": 9}, seed=5), checkpoint=None, settings={})
    write_evaluation(elsewhere, tmp_path / "other")
    page = Page(write_comparison([*folders, tmp_path / "other"], tmp_path))
    runs, settings = page.all("div", **{"class": "table text"})
    heads, *rows = [page.children(row) for row in page.children(settings) if row["tag"] == "tr"]
    assert [head["text"] for head in heads] == ["setting", "run-0/DAVIS_tiny", "run-1/DAVIS_tiny"]
    assert [[cell["text"] for cell in row] for row in rows] == [
        ["SEED", "0", "1"],
        ["ONLY", "not there", repr(ODD)],
    ]
    assert "No settings of other: its masks came from elsewhere." in page.source
    assert all(str(folder) in runs["text"] for folder in folders)
    assert "runs/train/best.pt" in runs["text"]


def test_frames_where_runs_differ_most(tmp_path):
    scores = curves({name: 25 for name in "abcdef"}, seed=2)
    write_data(tmp_path, scores)
    folders = [tmp_path / "runs" / name for name in "xy"]
    others = curves({name: 25 for name in "abcdef"}, seed=7)
    for folder, some in zip(folders, (scores, others)):
        write_evaluation(make_evaluation(some, tmp_path), folder)
    page = Page(write_comparison(folders, tmp_path))
    spread = {}
    for name, one in scores.items():
        means = [(s.values["J"] + s.values["F"]) / 2 for s in (one, others[name])]
        spread |= dict(zip(((name, frame) for frame in one.frames), abs(means[0] - means[1])))
    texts = page.frames("Frames where they differ most")
    shown = [tuple(text.split()) for text in texts]
    assert len(shown) == 8 and max(sum(s[0] == name for s in shown) for name in "abcdef") == 2
    assert [spread[key] for key in shown] == sorted((spread[key] for key in shown), reverse=True)
    for name in scores:
        most = max((key for key in spread if key[0] == name), key=spread.get)
        assert most in shown
    # The image, the true mask and each run's, which has its scores below it.
    figure = next(e for e in page.elements if e.get("class") == "frame")
    captions = [e["text"].strip() for e in page.children(figure) if e["tag"] == "figcaption"][1:]
    assert captions[:2] == ["RGB image", "ground truth"]
    name, frame = shown[0]
    for caption, label, some in zip(captions[2:], "xy", (scores, others), strict=True):
        j, f = (some[name].values[m][int(frame)] for m in ("J", "F"))
        assert caption == f"{label} J&F\xa0{(j + f) / 2:.3f} J\xa0{j:.3f} F\xa0{f:.3f}"
    image, truth, *masks = [decode(e) for e in page.children(figure) if e["tag"] == "img"]
    assert image[90, 120] == pytest.approx([200, 40, 40], abs=12)
    assert truth[:, :100].min() > 230 and truth[:, 140:].max() < 25
    assert len(masks) == 2 and all(mask[:, 140:].min() > 230 for mask in masks)


def test_a_run_whose_masks_are_gone_is_compared_in_words(tmp_path):
    scores = curves({"a": 9})
    write_data(tmp_path, scores)
    folders = write_runs(tmp_path, scores, 2, root=tmp_path)
    gone = make_evaluation(curves({"a": 9}, seed=4), tmp_path, masks="gone")
    write_evaluation(gone, tmp_path / "third")
    page = Page(write_comparison([*folders, tmp_path / "third"], tmp_path))
    figure = next(e for e in page.elements if e.get("class") == "frame")
    inner = page.children(figure)
    assert [e["text"] for e in inner if e.get("class") == "gone"] == ["not there any more"]
    assert sum(e["tag"] == "img" for e in inner) == 4


def test_labels_are_the_shortest_that_tell_runs_apart(tmp_path):
    def labels(*names):
        return utils.report._labels([Path("/root") / name for name in names])

    assert labels("a", "b") == ["a", "b"]
    assert labels("a/DAVIS_test", "b/DAVIS_test") == ["a", "b"]
    assert labels("a/x", "b/x", "b/y") == ["a/x", "b/x", "y"]
    assert labels("a", "a/a") == ["root", "a"]


def test_sequences_in_another_order_are_compared_by_name(tmp_path):
    scores = curves({"a": 9, "b": 12})
    write_evaluation(make_evaluation(scores), tmp_path / "x")
    write_evaluation(make_evaluation(dict(reversed(scores.items()))), tmp_path / "y")
    page = Page(write_comparison([tmp_path / "x", tmp_path / "y"], tmp_path))
    assert not any("★" in cell["text"] for _, _, cells in page.scores()[:-1] for cell in cells)


def test_folders_that_cannot_be_compared_are_refused(tmp_path):
    def written(name, lengths=None, **changes):
        write_evaluation(
            make_evaluation(curves(lengths or {"a": 5, "b": 4}), **changes), tmp_path / name
        )
        return tmp_path / name

    def refused(*folders):
        with pytest.raises(ResultsError) as error:
            write_comparison(list(folders), tmp_path / "out")
        assert not (tmp_path / "out").exists()
        return str(error.value)

    first = written("first")
    assert "two or more" in refused(first) and str(first) in refused(first)
    assert "two or more" in refused()
    assert f"{first} is given twice" in refused(first, written("second"), first)
    again = tmp_path / "second" / ".." / "first"
    assert "is given twice" in refused(first, again) and f"once as {first};" in refused(
        first, again
    )
    assert "holds no evaluation.json" in refused(first, tmp_path)
    message = refused(first, written("set", set_name="FBMS"))
    assert "the set FBMS" in message and "DAVIS_tiny" in message
    message = refused(first, written("protocol", protocol="long_videos"))
    assert "the protocol long_videos" in message and "davis2016" in message
    message = refused(first, written("sequences", {"a": 5, "c": 4}))
    assert "lacking: b; besides: c" in message and str(tmp_path / "sequences") in message
    message = refused(first, written("frames", {"a": 5, "b": 20}))
    assert (
        "frames of b" in message and "besides: 00004, 00005" in message and "and 6 more" in message
    )
    message = refused(written("frames", {"a": 5, "b": 20}), first)
    assert "lacking: 00004" in message
    scores = curves({"a": 5, "b": 4})
    scores["b"] = replace(scores["b"], frames=scores["b"].frames[::-1])
    write_evaluation(make_evaluation(scores), tmp_path / "order")
    assert "another order" in refused(first, tmp_path / "order")
