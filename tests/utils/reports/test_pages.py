"""Result pages: valid, self-contained, and right about scores and frames."""

import base64
import csv
import re
from dataclasses import replace
from html.parser import HTMLParser
from itertools import takewhile
from pathlib import Path

import cv2
import numpy as np
import pytest

from datasets.files import write_picture
from utils import __version__
from utils.evaluation.protocols import PROTOCOLS, SequenceScores
from utils.evaluation.results import Evaluation, ResultsError, write_evaluation
from utils.reports import pages
from utils.reports.pages import write_comparison, write_report
from utils.reports.pictures import PANEL_WIDTH, draw_panels, write_mask

VOID = {"meta", "img", "br"}
ODD = '<b>&"x'  # a name that must not become markup
HEIGHT, WIDTH = 24, 32
LENGTHS = {"bear": 12, ODD: 9, "camel": 40}


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

    def all(self, tag, within=None):
        """Elements by tag, of the page or within another element."""
        elements = self.elements if within is None else self.children(within)
        return [element for element in elements if element["tag"] == tag]

    def children(self, parent):
        """Elements within another, in order."""
        start = next(i for i, element in enumerate(self.elements) if element is parent) + 1
        depth = len(parent["inside"])
        return list(takewhile(lambda it: len(it["inside"]) > depth, self.elements[start:]))

    def tables(self):
        """Tables of texts as lists of rows; the first is that of the scores."""
        return [
            [
                [cell["text"].strip() for cell in self.children(row) if cell["tag"] in ("th", "td")]
                for row in self.all("tr", table)
            ]
            for table in self.all("table")
        ]

    def marked(self):
        """Rows of the score table after the heads: for each number whether it has a star."""
        rows = self.all("tr", self.all("table")[0])[2:]
        return [["best" in cell["class"] for cell in self.all("td", row)[1:]] for row in rows]

    def frames(self, heading):
        """Title, captions of pictures, and pictures (None if gone) of frames below a heading."""
        is_open, found = False, []
        for element in self.elements:
            if element["tag"] == "h2":
                is_open = element["text"] == heading
            if is_open and element.get("class") == "frame":
                title = element["text"].split("\n")[0]
                figures = self.all("figure", element)
                captions = [self.all("figcaption", one)[0]["text"].strip() for one in figures]
                pictures = [decode(*self.all("img", one)) for one in figures]
                found.append((title, captions, pictures))
        return found


def decode(image=None):
    """uint8 RGB of an embedded picture."""
    if image is None:
        return None
    kind, data = image["src"].split(",")
    assert kind == "data:image/jpeg;base64"
    picture = cv2.imdecode(np.frombuffer(base64.b64decode(data), np.uint8), cv2.IMREAD_COLOR)
    assert picture.shape[1] == PANEL_WIDTH
    return cv2.cvtColor(picture, cv2.COLOR_BGR2RGB)


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
    """An evaluation of masks in ``root/masks``, which came from elsewhere unless changes say so."""
    values = {
        "method": "A <method>",
        "set_name": "DAVIS_tiny",
        "data_root": str(root),
        "protocol": PROTOCOLS[protocol],
        "masks": str(Path(root) / "masks"),
        "scores": scores,
    }
    return Evaluation(**values | changes)


def write_data(root, scores):
    """Images, true masks (left half) and masks (right half) of all frames."""
    left = np.zeros((HEIGHT, WIDTH), np.uint8)
    left[:, : WIDTH // 2] = 255
    for name, one in scores.items():
        for frame in one.frames:
            folder = root / "DAVIS_tiny" / name
            image = np.full((HEIGHT, WIDTH, 3), (200, 40, 40), np.uint8)
            write_picture(folder / "RGB" / f"{name}_{frame}.png", image)
            write_picture(folder / "GT" / f"{name}_{frame}.png", left)
            write_picture(root / "masks" / name / f"{frame}.png", left[:, ::-1])


def is_right_half(picture):
    return picture[:, :100].max() < 25 and picture[:, 140:].min() > 230


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


def read_csv(folder):
    """The rows of scores.csv by kind and name."""
    with (folder / "scores.csv").open(newline="") as file:
        return {(row["kind"], row["sequence"]): row for row in csv.DictReader(file)}


def shown_name(kind, name):
    return f"class {name}" if kind == "class" else name


def make_page(kind, tmp_path):
    """One page of each kind."""
    if kind == "classes":
        scores = curves({"cat_1": 3, "cat_2": 1, "dog_1": 2, f"dog_{ODD}": 5}, ["J"])
        return write_report(make_evaluation(scores, protocol="youtube_objects"), tmp_path)
    scores = curves(LENGTHS)
    write_data(tmp_path, scores)
    if kind == "comparison":
        return write_comparison(write_runs(tmp_path, scores, 3, root=tmp_path), tmp_path / "out")
    settings = {"NAME": "</table><script>alert(1)</script>"}
    return write_report(make_evaluation(scores, tmp_path, settings=settings), tmp_path / "out")


@pytest.mark.parametrize("kind", ["report", "classes", "comparison"])
def test_the_page_is_valid_and_needs_nothing_else(kind, tmp_path):
    page = Page(make_page(kind, tmp_path))
    assert page.source.startswith("<!DOCTYPE html>")
    (footer,) = page.all("footer")
    assert footer["text"] == f"Written by version {__version__} of the code."
    for tag in ("html", "head", "body", "main", "h1", "title", "script"):
        assert len(page.all(tag)) == 1
    ids = [element["id"] for element in page.elements if "id" in element]
    assert len(ids) == len(set(ids))
    assert all(element["href"][1:] in ids for element in page.all("a"))
    assert {f"plot-{i}" for i in range(3)} < {a["href"][1:] for a in page.all("a")}
    assert page.all("img") and all(element["alt"] for element in page.all("img"))
    # Nothing comes from elsewhere, and nothing but the page's own script runs.
    assert not any(page.all(tag) for tag in ("link", "iframe", "object", "base", "image", "use"))
    for element in page.elements:
        assert element.get("href", "#").startswith("#")
        assert element.get("src", "data:image/").startswith("data:image/")
        assert not any(name.startswith("on") or name == "srcset" for name in element)
    assert not re.search(r"https?:|url\(|@import|['\"(]//", page.source)
    assert "alert" not in page.all("script")[0]["text"] and ODD not in page.source
    # Parts of a table stand where HTML has them.
    for tag, parents in {"tr": ("thead", "tbody", "tfoot"), "td": ("tr",), "th": ("tr",)}.items():
        assert all(element["inside"][-1] in parents for element in page.all(tag))


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_the_table_holds_the_numbers_of_the_csv_file(protocol, tmp_path):
    measures, columns = PROTOCOLS[protocol].measures, list(PROTOCOLS[protocol].columns)
    evaluation = make_evaluation(
        curves({"cat_1": 9, "cat_2": 1, "dog_1": 30, ODD: 5}, measures), protocol=protocol
    )
    write_evaluation(evaluation, tmp_path)
    expected = read_csv(tmp_path)
    page = Page(write_report(evaluation, tmp_path))
    _, heads, *rows = page.tables()[0]
    overall = PROTOCOLS[protocol].overall
    both = len(overall) > 1
    first = "object" if PROTOCOLS[protocol].per_object else "sequence"
    assert heads == [first, "frames", *["mean"] * both, *columns * len(measures)]
    assert rows[-1][0] == "average"
    assert {row[0] for row in rows} == {shown_name(*key) for key in expected}
    assert len(rows) == len(expected)
    shown = {row[0]: row[1:] for row in rows}
    for key, row in expected.items():
        numbers = [row[f"{m}_{column}"] for m in measures for column in columns]
        if both:
            numbers.insert(0, np.mean([float(row[f"{m}_mean"]) for m in overall]))
        texts = [pages._three(float(number)) for number in numbers]
        assert shown[shown_name(*key)] == [row["frames"], *texts]
    assert page.marked() == [[False] * (len(heads) - 2)] * len(rows)
    large = [float(element["value"]) for element in page.all("data")]
    assert large == pytest.approx(
        [evaluation.rows[-1].mean] * both
        + [float(expected["average", "average"][f"{m}_mean"]) for m in measures]
    )
    assert PROTOCOLS[protocol].rule in page.source


def test_numbers_have_three_decimals_and_zero_no_sign():
    texts = [pages._three(number) for number in (-0.0004, 0.12349, 1, -0.25)]
    assert texts == ["0.000", "0.123", "1.000", "-0.250"]


def test_every_column_has_a_button_to_sort_by_and_the_average_is_not_sorted(tmp_path):
    page = Page(write_report(make_evaluation(curves(LENGTHS)), tmp_path))
    table = page.all("table")[0]
    heads = page.all("tr", table)[1]
    assert len(page.all("button", heads)) == len(page.all("th", heads)) == 9
    average = page.all("tr", table)[-1]
    assert average["inside"][-1] == "tfoot" and "average" in average["text"]
    for part in ("ariaSort", "table.tBodies", "addEventListener"):
        assert part in page.all("script")[0]["text"]


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
        titles = [title for title, _, _ in page.frames(heading)]
        for title, (mean, name, frame) in zip(titles, expected, strict=True):
            j, f = (scores[name].values[m][int(frame)] for m in ("J", "F"))
            assert title == f"{name} {frame} J&F\xa0{mean:.3f} J\xa0{j:.3f} F\xa0{f:.3f}"
    assert page.frames("Best frames")[0][0].startswith("a 00000")


def test_frames_of_few_sequences_are_not_neighbours(tmp_path):
    values = 1 - abs(np.arange(50) - 20) / 50
    scores = curves({"a": 50})
    scores["a"].values.update(J=values, F=values)
    page = Page(write_report(make_evaluation(scores), tmp_path))
    frames = [int(title.split()[1]) for title, _, _ in page.frames("Best frames")]
    assert frames[0] == 20 and len(frames) == 4
    assert np.diff(sorted(frames)).min() > 5


def test_names_and_settings_are_shown_as_text(tmp_path):
    settings = {ODD: ODD, "LIST": ["<i>", "&amp;"], "{{ body }}": "{% if %}"}
    evaluation = make_evaluation(
        curves({ODD: 3, "b&amp;": 2}), method=ODD, set_name=f"DAVIS{ODD}", settings=settings
    )
    page = Page(write_report(evaluation, tmp_path))
    assert not page.all("i") and not page.all("x")
    assert page.all("h1")[0]["text"] == page.all("title")[0]["text"] == f"{ODD} on DAVIS{ODD}"
    scores, _, shown = page.tables()
    assert {row[0] for row in scores[2:]} == {ODD, "b&amp;", "average"}
    assert page.frames("Best frames")[0][0].startswith((f"{ODD} ", "b&amp; "))
    assert shown[1:] == [[name, repr(value)] for name, value in settings.items()]


@pytest.mark.parametrize("checkpoint", ["runs/train/best.pt", None])
def test_method_set_checkpoint_and_masks_are_shown(checkpoint, tmp_path):
    evaluation = make_evaluation(curves({"a": 3}), "some/data", checkpoint=checkpoint)
    facts = dict(Page(write_report(evaluation, tmp_path)).tables()[1])
    assert facts["Method"] == "A <method>"
    assert facts["Checkpoint"] == (checkpoint or "none: the masks came from elsewhere")
    assert facts["Set"] == "DAVIS_tiny in some/data"
    assert facts["Masks"] == "some/data/masks"


def test_panels_on_disk_are_shown_picture_by_picture(tmp_path):
    image = np.full((HEIGHT, WIDTH, 3), (0, 0, 250), np.uint8)
    mask = np.ones((HEIGHT, WIDTH), np.uint8)
    maps = {name: np.zeros((4, 4)) for name in "wxyz"}
    panel = draw_panels(image, image, mask, mask, maps, 1)
    write_picture(tmp_path / "panels" / "a" / "00000.png", panel)
    evaluation = make_evaluation(curves({"a": 1}), tmp_path, checkpoint="runs/train/best.pt")
    page = Page(write_report(evaluation, tmp_path))
    (_, captions, pictures), *others = page.frames("Best frames")
    assert not others and captions == [""] * 8
    for picture in pictures[:2]:
        assert picture[50, 50] == pytest.approx([0, 0, 250], abs=12)
    assert pictures[2][50, 50].min() > 240
    # Panels of an earlier evaluation are not those of masks from elsewhere.
    page = Page(write_report(replace(evaluation, checkpoint=None), tmp_path))
    assert page.frames("Best frames")[0][2] == [None] * 3


@pytest.mark.parametrize("name", ["{frame}", "{sequence}_{frame}"])
def test_frames_without_panel_are_shown_from_the_data_and_the_masks(name, tmp_path):
    scores = curves({"a": 1})
    write_data(tmp_path, scores)
    for path in (tmp_path / "masks" / "a").iterdir():
        path.rename(path.with_name(f"{name.format(sequence='a', frame=path.stem)}.png"))
    page = Page(write_report(make_evaluation(scores, tmp_path), tmp_path / "out"))
    ((_, captions, (image, truth, prediction)),) = page.frames("Worst frames")
    assert captions == ["RGB image", "ground truth", "prediction"]
    assert image[90, 60] == pytest.approx([200, 40, 40], abs=12)
    assert is_right_half(truth[:, ::-1]) and is_right_half(prediction)
    # With a flow map there is one picture more.
    flow = tmp_path / "DAVIS_tiny" / "a" / "FLOW" / "a_00000.png"
    write_picture(flow, np.zeros((HEIGHT, WIDTH, 3), np.uint8))
    page = Page(write_report(make_evaluation(scores, tmp_path), tmp_path / "out"))
    assert page.frames("Best frames")[0][1][:2] == ["RGB image", "optical flow"]


@pytest.mark.parametrize(
    ("protocol", "as_true"),
    [("davis2017_unsupervised", True), ("davis2017_semi_supervised", False)],
)
def test_masks_are_shown_in_the_true_objects_colours_unless_their_own_numbers_count(
    protocol, as_true, tmp_path
):
    scores = curves({"a_1": 1})
    write_data(tmp_path, curves({"a": 1}))
    objects = np.repeat(np.array([[1, 2]], np.uint8), HEIGHT, 0).repeat(WIDTH // 2, 1)
    write_mask(tmp_path / "DAVIS_tiny/a/GT/a_00000.png", objects, 2)
    write_mask(tmp_path / "masks/a/00000.png", objects[:, ::-1], 2)
    page = Page(write_report(make_evaluation(scores, tmp_path, protocol), tmp_path / "out"))
    ((_, _, (_, truth, prediction)),) = page.frames("Worst frames")
    same, swapped = (abs(truth.astype(int) - x).max() for x in (prediction, prediction[:, ::-1]))
    assert (same < 60) == as_true and (swapped < 60) != as_true


@pytest.mark.parametrize("gone", ["everything", "images", "masks", "broken"])
def test_pictures_that_are_gone_are_told_in_words(gone, tmp_path):
    scores = curves({"a": 3, "b": 4})
    if gone != "everything":
        write_data(tmp_path, scores)
    for path in tmp_path.rglob("*.png"):
        if gone == "broken":
            path.write_bytes(path.read_bytes()[:40])
        elif gone == {"RGB": "images", "a": "masks", "b": "masks"}.get(path.parent.name):
            path.unlink()
    page = Page(write_report(make_evaluation(scores, tmp_path), tmp_path / "out"))
    frames = page.frames("Best frames") + page.frames("Worst frames")
    left = {"masks": [True, True, False]}.get(gone, [False, False, gone == "images"])
    for _, _, pictures in frames:
        assert [picture is not None for picture in pictures] == left
    assert page.source.count("not there any more") == len(frames) * left.count(False) > 0


def test_masks_of_a_network_are_found_in_a_folder_that_was_moved(tmp_path):
    scores = curves({"a": 3})
    write_data(tmp_path, scores)
    evaluation = make_evaluation(scores, tmp_path, masks="where/it/was/masks", checkpoint="best.pt")
    page = Page(write_report(evaluation, tmp_path))
    assert is_right_half(page.frames("Best frames")[0][2][2])
    page = Page(write_report(replace(evaluation, checkpoint=None), tmp_path))
    assert page.frames("Best frames")[0][2][2] is None


def test_a_report_is_one_file_that_replaces_an_earlier_one(tmp_path):
    evaluation = make_evaluation(curves({"a": 3}))
    path = write_report(evaluation, tmp_path / "new")
    assert path == tmp_path / "new" / "report.html"
    write_report(replace(evaluation, method="another"), path.parent)
    assert list(path.parent.iterdir()) == [path] and "another" in path.read_text()


@pytest.mark.parametrize("protocol", ["davis2016", "youtube_objects"])
def test_comparison_shows_every_runs_means_and_marks_the_best(protocol, tmp_path):
    measures = PROTOCOLS[protocol].measures
    scores = curves({"cat_1": 9, "cat_2": 7, "dog_1": 30}, measures)
    folders = write_runs(tmp_path, scores, 3, protocol=protocol)
    tables = [read_csv(folder) for folder in folders]
    path = write_comparison(folders, tmp_path / "out")
    assert path == tmp_path / "out" / "comparison.html"
    page = Page(path)
    _, heads, *rows = page.tables()[0]
    labels = [f"run-{i}" for i in range(3)]
    groups = 3 if len(measures) > 1 else 1
    assert heads == ["sequence", "frames", *labels * groups]
    assert {row[0] for row in rows} == {shown_name(*key) for key in tables[0]}
    shown = {row[0]: row[2:] for row in rows}
    for key in tables[0]:
        expected = [[float(t[key][f"{m}_mean"]) for t in tables] for m in measures]
        if len(measures) > 1:
            expected.insert(0, list(np.mean(expected, axis=0)))
        assert shown[shown_name(*key)] == [pages._three(x) for one in expected for x in one]
    assert page.marked() == [[True, False, False] * groups] * len(rows)
    assert ["best" in element["class"] for element in page.all("data")] == [True, False, False]
    for i, label in enumerate(labels):
        assert f"of {label}run {i}" in page.source.replace("<small>", "")


def test_what_runs_have_in_common_is_not_marked(tmp_path):
    scores = curves({"a": 9})
    folders = [tmp_path / name for name in "xyz"]
    for folder in folders:
        write_evaluation(make_evaluation(scores, settings={"SEED": 1}), folder)
    page = Page(write_comparison(folders, tmp_path))
    assert not any(map(any, page.marked()))
    assert page.tables()[2] == [["No setting differs", "x", "y", "z"]]
    assert "The runs have the same scores in every frame that counts." in page.source
    # Two of three are equal and best: both are marked.
    worse = {"a": replace(scores["a"], values={m: v / 2 for m, v in scores["a"].values.items()})}
    write_evaluation(make_evaluation(worse), folders[1])
    page = Page(write_comparison(folders, tmp_path))
    assert page.marked() == [[True, False, True] * 3] * 2


def test_of_errors_the_lowest_is_marked(tmp_path):
    measures = PROTOCOLS["saliency"].measures
    for name, factor in ("x", 1), ("y", 0.5):
        scores = {"a": SequenceScores(("0",), {m: np.array([factor]) for m in measures})}
        write_evaluation(make_evaluation(scores, protocol="saliency"), tmp_path / name)
    page = Page(write_comparison([tmp_path / "x", tmp_path / "y"], tmp_path))
    assert page.marked() == [[True, False] * 3 + [False, True]] * 2
    assert [float(element["value"]) for element in page.all("data")] == [1, 0.5]


def test_only_the_settings_that_differ_are_shown(tmp_path):
    folders = write_runs(tmp_path, curves({"a": 9}), 2, checkpoint="runs/train/best.pt")
    write_evaluation(make_evaluation(curves({"a": 9}, seed=5)), tmp_path / "other")
    _, runs, settings = Page(write_comparison([*folders, tmp_path / "other"], tmp_path)).tables()
    assert settings == [
        ["Setting that differs", "runs/run-0/DAVIS_tiny", "runs/run-1/DAVIS_tiny"],
        ["SEED", "0", "1"],
        ["ONLY", "not there", repr(ODD)],
    ]
    assert [row[2:4] for row in runs[1:]] == [
        *([str(folder), "runs/train/best.pt"] for folder in folders),
        [str(tmp_path / "other"), "none: the masks came from elsewhere"],
    ]


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
    frames = page.frames("Frames where they differ most")
    shown = [tuple(title.split()) for title, _, _ in frames]
    assert len(shown) == 8 and max(sum(s[0] == name for s in shown) for name in "abcdef") == 2
    assert [spread[key] for key in shown] == sorted((spread[key] for key in shown), reverse=True)
    for name in scores:
        most = max((key for key in spread if key[0] == name), key=spread.get)
        assert most in shown
    # The image, the true mask and each run's, which has its scores below it.
    _, captions, (image, truth, *masks) = frames[0]
    assert captions[:2] == ["RGB image", "ground truth"]
    name, frame = shown[0]
    for caption, label, some in zip(captions[2:], "xy", (scores, others), strict=True):
        j, f = (some[name].values[m][int(frame)] for m in ("J", "F"))
        assert caption == f"{label} J&F\xa0{(j + f) / 2:.3f} J\xa0{j:.3f} F\xa0{f:.3f}"
    assert image[90, 120] == pytest.approx([200, 40, 40], abs=12)
    assert is_right_half(truth[:, ::-1])
    assert len(masks) == 2 and all(map(is_right_half, masks))


def test_sequences_in_another_order_are_compared_by_name(tmp_path):
    scores = curves({"a": 9, "b": 12})
    write_evaluation(make_evaluation(scores), tmp_path / "x")
    write_evaluation(make_evaluation(dict(reversed(scores.items()))), tmp_path / "y")
    page = Page(write_comparison([tmp_path / "x", tmp_path / "y"], tmp_path))
    assert not any(map(any, page.marked()[:-1]))


def test_folders_that_cannot_be_compared_are_refused(tmp_path):
    def written(name, lengths=None, **changes):
        scores = curves(lengths or {"a": 5, "b": 4})
        write_evaluation(make_evaluation(scores, **changes), tmp_path / name)
        return tmp_path / name

    def refused(*folders):
        with pytest.raises(ResultsError) as error:
            write_comparison(list(folders), tmp_path / "out")
        assert not (tmp_path / "out").exists()
        return str(error.value)

    first = written("first")
    for folders in ([first], [], [first, written("second"), first]):
        assert "two or more different folders" in refused(*folders)
    assert "two or more" in refused(first, tmp_path / "second" / ".." / "first")
    assert "holds no evaluation.json" in refused(first, tmp_path)
    message = refused(first, written("set", set_name="FBMS"))
    assert f"{first} and {tmp_path / 'set'} differ in their set;" in message
    assert "differ in their protocol;" in refused(first, written("rules", protocol="long_videos"))
    assert "differ in their sequences;" in refused(first, written("names", {"a": 5, "c": 4}))
    assert "differ in their frames;" in refused(first, written("frames", {"a": 5, "b": 20}))
