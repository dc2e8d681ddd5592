"""Threads that score, scores by sequence, and masks in a folder."""

import json
import threading
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from datasets.files import write_picture
from datasets.layout import Frame, VideoFiles, video_sequences
from datasets.problems import DatasetError
from tests.readers import read_mask
from utils.evaluation import scoring
from utils.evaluation.foreground import BORDER, ORACLE
from utils.evaluation.metrics import boundary_accuracy, region_similarity
from utils.evaluation.protocols import PROTOCOLS, summarise
from utils.evaluation.scoring import collect_scores, overlap, read_result, score_frame, score_masks
from utils.reports.pictures import write_mask

SHARED = Path(__file__).resolve().parents[4] / "shared"
GOLDEN = SHARED / "golden" / "davis16_scores"
SOFT = SHARED / "golden" / "mtnet_davis16"
DAVIS, FBMS, LONG = (PROTOCOLS[name] for name in ("davis2016", "fbms", "long_videos"))


def test_results_keep_their_order_and_only_few_items_wait():
    started, release = [], threading.Event()

    def work(item):
        if item == 0:
            release.wait(20)
        return item * item

    def items():
        for item in range(100):
            started.append(item)
            if item == 4:
                release.set()
            yield item

    results = overlap(work, items(), workers=2)
    assert next(results) == 0
    assert len(started) <= 6
    assert [0, *results] == [item * item for item in range(100)]


@pytest.mark.parametrize("where", ["function", "items"])
def test_an_error_in_a_thread_or_in_the_items_comes_through(where):
    def work(item):
        if where == "function" and item == 7:
            raise ValueError("seven")
        return item

    def items():
        yield from range(7)
        if where == "items":
            raise ValueError("seven")
        yield from range(7, 50)

    with pytest.raises(ValueError, match="seven"):
        list(overlap(work, items(), workers=3))
    assert not [t for t in threading.enumerate() if t.name.startswith("ThreadPoolExecutor")]


def test_frames_without_scores_are_left_out():
    frames = [("a", "0", (0.5, 0.25)), ("a", "1", None), ("b", "0", None), ("a", "2", (1.0, 0.0))]
    scores = collect_scores(frames, DAVIS)
    assert list(scores) == ["a"]
    assert scores["a"].frames == ("0", "2")
    assert scores["a"].values["F"].tolist() == [0.25, 0.0]


def test_objects_are_foreground_and_void_is_background():
    truth = np.zeros((20, 30), np.uint8)
    truth[5:15, 5:15], truth[5:15, 15:20], truth[:, 25:] = 1, 2, 255
    labels = np.zeros_like(truth)
    labels[5:15, 5:20] = 3
    assert score_frame(labels, truth, DAVIS) == [1, 1]
    labels[5:15, 10:20] = 0
    assert score_frame(labels, truth, FBMS) == [pytest.approx(1 / 3)]
    void = np.where(truth == 255, truth, 0).astype(np.uint8)
    assert score_frame(labels * 0, void, DAVIS) == [1, 1]
    assert score_frame(labels, void, FBMS) is None


@pytest.fixture
def video_set(tmp_path):
    """Two sequences of four frames, whose masks are squares; the second's last is unannotated."""
    rng = np.random.default_rng(0)
    for name, length in (("bear", 4), ("cow_2", 4)):
        for part in ("RGB", "GT"):
            (tmp_path / f"data/zoo/{name}/{part}").mkdir(parents=True)
        for t in range(length):
            truth = np.zeros((40, 60), np.uint8)
            truth[5 + t : 25 + t, 10:30] = 255
            folder = tmp_path / "data/zoo" / name
            Image.fromarray(rng.integers(0, 255, (40, 60, 3), np.uint8)).save(
                folder / f"RGB/{name}_{t:03d}.png"
            )
            Image.fromarray(truth).save(folder / f"GT/{name}_{t:03d}.png")
    (tmp_path / "data/zoo/cow_2/GT/cow_2_003.png").unlink()
    return video_sequences(tmp_path / "data", "zoo", masks="some", flow=False)


@pytest.fixture
def masks(tmp_path, video_set):
    """A folder of good masks for it, none of them quite the truth."""
    for sequence in video_set:
        (tmp_path / "masks" / sequence.name).mkdir(parents=True)
        for t, frame in enumerate(sequence.frames):
            if frame.mask is not None:
                mask = np.roll(read_mask(frame.mask), t, axis=1).astype(np.uint8) * 255
                Image.fromarray(mask).save(tmp_path / f"masks/{sequence.name}/{t:03d}.png")
    return tmp_path / "masks"


def complaint(*arguments, **more) -> str:
    with pytest.raises(DatasetError) as caught:
        score_masks(*arguments, progress=False, **more)
    return str(caught.value)


def test_every_annotated_frame_is_scored_in_order(video_set, masks):
    scores = score_masks(masks, video_set, LONG, progress=False)
    assert list(scores) == ["bear", "cow_2"]
    for sequence in video_set:
        annotated = [frame for frame in sequence.frames if frame.mask]
        one = scores[sequence.name]
        assert one.frames == tuple(frame.name[-3:] for frame in annotated)
        for t, frame in enumerate(annotated):
            pair = read_mask(masks / sequence.name / f"{t:03d}.png"), read_mask(frame.mask)
            assert one.values["J"][t] == region_similarity(*pair)
            assert one.values["F"][t] == boundary_accuracy(*pair)
    assert set(score_masks(masks, video_set, PROTOCOLS["fbms"])["bear"].values) == {"J"}


def test_masks_of_frames_without_annotation_may_be_there_and_names_may_be_full(video_set, masks):
    expected = score_masks(masks, video_set, LONG, progress=False)
    Image.fromarray(np.zeros((40, 60), np.uint8)).save(masks / "cow_2/003.png")
    for path in list((masks / "bear").iterdir()):
        path.rename(path.with_name(f"bear_{path.name}"))
    for name in ("notes.txt", ".hidden.png"):
        (masks / "bear" / name).touch()
    (masks / ".cache").mkdir()
    found = score_masks(masks, video_set, LONG, progress=False)
    for name, one in expected.items():
        for measure, values in one.values.items():
            np.testing.assert_array_equal(found[name].values[measure], values)


def test_all_that_is_wrong_with_masks_is_listed_before_any_is_scored(video_set, masks, monkeypatch):
    (masks / "bear/001.png").unlink()
    Image.fromarray(np.zeros((40, 61), np.uint8)).save(masks / "bear/002.png")
    (masks / "cow_2/001.png").write_bytes((masks / "bear/000.png").read_bytes()[:40])
    monkeypatch.setattr("utils.evaluation.scoring.score_frame", lambda *_: pytest.fail("scored"))
    message = complaint(masks, video_set, LONG)
    assert message.startswith(f"3 problems in {masks}:")
    assert message.endswith("Nothing was scored.")
    for kind, file in (
        ("mask that is missing", "bear/001.png"),
        ("mask of another size", f"bear/002.png: 61 x 40, {video_set[0].frames[2].mask} 60 x 40"),
        ("file that cannot be read", "cow_2/001.png"),
    ):
        heading = next(i for i, line in enumerate(message.splitlines()) if f"1 x {kind}" in line)
        assert file in message.splitlines()[heading + 1]


def test_masks_that_are_not_binary_are_listed(video_set, masks):
    grey = np.zeros((40, 60), np.uint8)
    grey[:, 20:] = 90
    grey[:, 30:] = 200
    Image.fromarray(grey).save(masks / "cow_2/000.png")
    message = complaint(masks, video_set, LONG)
    assert "1 x mask that is neither binary nor" in message and message.endswith(
        "Nothing was scored."
    )
    assert "cow_2/000.png: 3 values from 0 to 200" in message


def test_masks_of_frames_that_do_not_count_need_not_be_there_nor_be_right(video_set, masks):
    expected = score_masks(masks, video_set, DAVIS, progress=False)
    (masks / "bear/000.png").unlink()
    (masks / "bear/003.png").write_bytes(b"broken")
    found = score_masks(masks, video_set, DAVIS, progress=False)
    assert found["bear"].frames == ("001", "002")
    np.testing.assert_array_equal(found["bear"].values["F"], expected["bear"].values["F"])
    assert "2 problems" in complaint(masks, video_set, LONG)


def test_empty_truths_and_masks_by_the_rules_of_each_protocol(video_set, masks, capsys):
    """By hand: of bear's four frames the truth of 1 is empty, of 2 truth and mask, of 3 the mask.

    DAVIS: a frame scores 1 where both are empty, 0 where one is. The others leave out the frames
    without an object.
    """
    empty = Image.fromarray(np.zeros((40, 60), np.uint8))
    bear = video_set[0]
    for path in (bear.frames[1].mask, bear.frames[2].mask):
        empty.save(path)
    for name in ("002", "003"):
        empty.save(masks / f"bear/{name}.png")
    for measure in ("J", "F"):
        values = score_masks(masks, video_set, DAVIS, progress=False)["bear"].values[measure]
        assert values.tolist() == [0, 1]
    for name in ("fbms", "youtube_objects", "long_videos"):
        one = score_masks(masks, video_set, PROTOCOLS[name], progress=False)["bear"]
        assert one.frames == ("000", "003")
        assert one.values["J"].tolist() == [1, 0]
    for frame in video_set[1].frames[:3]:
        empty.save(frame.mask)
    capsys.readouterr()
    assert list(score_masks(masks, video_set, LONG, progress=False)) == ["bear"]
    assert "1 of 2 sequences have no frame that counts" in capsys.readouterr().out
    for frame in (bear.frames[0], bear.frames[3]):
        empty.save(frame.mask)
    assert "in all 2 sequences no frame counts by" in complaint(masks, video_set, LONG)


@pytest.mark.parametrize("name", ["davis2016", "long_videos", "whole_video"])
def test_false_alarms_are_masks_of_frames_without_an_object(video_set, masks, name):
    """One of the three frames has a mask of 400 pixels, one a mask of 7, one none."""
    frames = video_set[0].frames
    for frame in (frames[1], frames[2], video_set[1].frames[1]):
        write_picture(frame.mask, np.zeros((40, 60), np.uint8))
    mask = np.zeros((40, 60), np.uint8)
    write_picture(masks / "cow_2/001.png", mask)
    mask[3, 10:17] = 255
    write_picture(masks / "bear/002.png", mask)
    found = {}
    score_masks(masks, video_set, PROTOCOLS[name], false_alarms=found, progress=False)
    size = 40 * 60
    expected = {"bear/001.png": 400 / size, "bear/002.png": 7 / size, "cow_2/001.png": 0}
    assert {str(path.relative_to(masks)): share for path, share in found.items()} == expected


def test_false_alarms_of_several_proposals_are_those_of_the_chosen_foreground(video_set, masks):
    write_picture(video_set[0].frames[1].mask, np.zeros((40, 60), np.uint8))
    for t in range(4):
        labels = np.full((40, 60), 1, np.uint8)  # proposal 1 is the background
        labels[5:15, 5:15] = 2
        write_mask(str(masks / f"bear/{t:03d}.png"), labels, 2)
    found = {}
    score_masks(masks, video_set, LONG, false_alarms=found, progress=False)
    assert list(found.values()) == [100 / (40 * 60)]


def test_false_alarms_of_grey_maps_are_values_above_one_half(video_set, masks, monkeypatch):
    monkeypatch.setattr(scoring, "saliency_curves", lambda *_: np.zeros((4, 256)))
    write_picture(video_set[0].frames[1].mask, np.zeros((40, 60), np.uint8))
    grey = np.full((40, 60), 127, np.uint8)
    grey[3, 10:17] = 128
    write_picture(masks / "bear/001.png", grey)
    found = {}
    protocol = PROTOCOLS["saliency"]
    score_masks(masks, video_set, protocol, false_alarms=found, progress=False)
    assert list(found.values()) == [7 / (40 * 60)]


def test_a_folder_of_masks_that_does_not_exist_is_refused(video_set, tmp_path):
    assert "is not a folder" in complaint(tmp_path / "nowhere", video_set, LONG)


def test_grey_masks_are_cut_at_one_half_if_asked_for(video_set, masks):
    expected = score_masks(masks, video_set, LONG, progress=False)
    for path in masks.rglob("*.png"):
        mask = read_mask(path)
        soft = np.where(mask, 128, 127).astype(np.uint8)
        soft[0, 0], soft[-1, -1] = 0, 40
        Image.fromarray(soft).save(path)
    # A nearly empty one has two values, and yet none above 0.5.
    faint = np.zeros((40, 60), np.uint8)
    faint[:9] = 3
    Image.fromarray(faint).save(masks / "bear/001.png")
    assert "neither binary" in complaint(masks, video_set, LONG)
    found = score_masks(masks, video_set, LONG, binarize=True, progress=False)
    for name, one in expected.items():
        if name == "bear":
            assert found[name].values["J"][1] == 0
            one.values["J"][1] = 0
        np.testing.assert_array_equal(found[name].values["J"], one.values["J"])


def test_masks_of_0_and_1_need_no_cut(video_set, masks, capsys):
    for path in masks.rglob("*.png"):
        Image.fromarray(read_mask(path).astype(np.uint8)).save(path)
    score_masks(masks, video_set, LONG, progress=False)
    assert "note" not in capsys.readouterr().out
    score_masks(masks, video_set, LONG, binarize=True, progress=False)
    assert "masks that hold 0 and 1 need no --binarize" in capsys.readouterr().out


@pytest.mark.parametrize("rule", [BORDER, ORACLE])
def test_of_several_proposals_the_foreground_is_chosen_by_the_rule(video_set, masks, rule, capsys):
    """In the first video 1 is largest and around the frame, 2 is the object, 3 beside it."""
    expected = score_masks(masks, video_set, LONG, progress=False)
    name = video_set[0].name
    for t, frame in enumerate(video_set[0].frames):
        labels = read_mask(frame.mask).astype(np.uint8) + 1
        labels[1:3, 1:4] = 3
        Image.fromarray(labels).save(masks / name / f"{t:03d}.png")
    found = score_masks(masks, video_set, LONG, foreground=rule, progress=False)
    printed = capsys.readouterr().out
    assert f"FOREGROUND = {rule}" in printed and "1 of 2 sequences" in printed
    # The object has 20 x 20 pixels, the third region six.
    np.testing.assert_allclose(found[name].values["J"], 1 if rule == ORACLE else 400 / 406)
    other = video_set[1].name
    np.testing.assert_array_equal(found[other].values["J"], expected[other].values["J"])


def test_masks_in_another_place_are_missing(video_set, masks):
    assert "7 x mask that is missing" in complaint(masks.parent, video_set, LONG)


@pytest.mark.skipif(not GOLDEN.is_dir(), reason=f"needs the reference scores in {GOLDEN}")
def test_a_folder_of_masks_agrees_with_the_davis_evaluator():
    """From the folder to the statistics, as evaluate.py --masks does."""
    expected = json.loads((GOLDEN / "expected.json").read_text())
    sequences = video_sequences(SHARED / "data/uvos", "DAVIS_test", flow=False)
    scores = score_masks(GOLDEN / "masks", sequences, DAVIS, progress=False)
    assert scores.keys() == expected.keys()
    for row in summarise(scores, DAVIS)[:-1]:
        for measure, statistics in row.statistics.items():
            values = scores[row.name].values[measure]
            np.testing.assert_allclose(values, expected[row.name][measure][1:-1], rtol=0, atol=1e-9)
            reference = expected[row.name]["davis16"][measure]
            assert vars(statistics) == pytest.approx(reference, rel=0, abs=1e-9)


@pytest.mark.skipif(not SOFT.is_dir(), reason=f"needs the published maps in {SOFT}")
def test_published_soft_maps_without_the_last_frames_agree_with_the_davis_evaluator():
    expected = json.loads((SOFT / "expected.json").read_text())
    sequences = video_sequences(SHARED / "data/uvos", "DAVIS_test", flow=False)
    scores = score_masks(SOFT / "masks", sequences, DAVIS, binarize=True, progress=False)
    assert scores.keys() == expected.keys()
    for row in summarise(scores, DAVIS)[:-1]:
        assert row.frames == expected[row.name]["frames"]
        for measure, statistics in row.statistics.items():
            assert vars(statistics) == pytest.approx(expected[row.name][measure], rel=0, abs=1e-9)


def test_a_whole_video_has_one_score_of_its_partition(video_set, masks):
    """FG-ARI looks at true objects alone; mIoU counts the object that has no proposal.

    Void counts nowhere, and a video without objects is left out.
    """
    names = []
    for sequence in video_set[:1]:
        for t, frame in enumerate(sequence.frames):
            truth = np.zeros((40, 60), np.uint8)
            truth[:10, :10], truth[20:30, :20], truth[35:] = 1, 2, 255
            proposals = np.where(truth > 0, 5, 0).astype(np.uint8)
            write_mask(frame.mask, truth, 2)
            write_mask(masks / f"bear/{t:03d}.png", proposals, 5)
            names.append(frame.name[-3:])
    for frame in video_set[1].frames[:3]:
        Image.fromarray(np.zeros((40, 60), np.uint8)).save(frame.mask)
    protocol = PROTOCOLS["whole_video"]
    found = score_masks(masks, video_set, protocol, progress=False)
    assert list(found) == ["bear"]
    scores = found["bear"]
    assert scores.frames == tuple(names)
    np.testing.assert_allclose(scores.values["FG-ARI"], [0] * 4)
    np.testing.assert_allclose(scores.values["mIoU"], [200 / 300 / 2] * 4)
    assert [row.name for row in summarise({"bear": scores}, protocol)] == ["bear", "average"]


# Several objects

OBJECTS = SHARED / "golden" / "davis17_scores"


@pytest.mark.skipif(not OBJECTS.is_dir(), reason=f"needs the reference scores in {OBJECTS}")
@pytest.mark.parametrize("free", [True, False])
def test_masks_of_several_objects_get_the_scores_of_the_davis_2017_evaluator(free):
    """From the files as they are, with palettes, gaps and void."""
    task, folder = ("unsupervised", "proposals") if free else ("semi-supervised", "propagated")
    truths = OBJECTS / f"truth_{task.replace('-', '_')}"
    sequences = [
        VideoFiles(
            name.name, tuple(Frame(path.stem, path, path, None) for path in sorted(name.iterdir()))
        )
        for name in sorted(truths.iterdir())
    ]
    protocol = PROTOCOLS[f"davis2017_{task.replace('-', '_')}"]
    scores = score_masks(OBJECTS / folder, sequences, protocol, progress=False)
    rows = summarise(scores, protocol)
    expected = json.loads((OBJECTS / "expected.json").read_text())[task]
    assert rows[-1].mean == pytest.approx(expected["JF_mean"], abs=1e-9)
    assert {row.kind for row in rows[:-1]} == {"object"}
    for measure in "JF":
        ours = sorted(row.statistics[measure].mean for row in rows[:-1])
        np.testing.assert_allclose(ours, sorted(expected[measure]["mean"]), atol=1e-9)


@pytest.mark.parametrize("name", ["davis2017_unsupervised", "davis2017_semi_supervised"])
def test_a_mask_of_0_and_255_is_one_object(name, tmp_path):
    truth = np.zeros((8, 12), np.uint8)
    truth[:4, :4] = 1
    write_picture(tmp_path / "mask.png", truth * 255)
    np.testing.assert_array_equal(read_result(tmp_path / "mask.png", PROTOCOLS[name]), truth)


def test_numbers_of_proposals_do_not_matter_unless_objects_are_numbered(tmp_path):
    truth = np.zeros((8, 12), np.uint8)
    truth[:4, :4], truth[4:, 6:] = 1, 2
    frames = []
    for t in range(4):
        write_picture(tmp_path / "GT" / f"a_{t}.png", truth)
        path = tmp_path / "GT" / f"a_{t}.png"
        frames.append(Frame(f"a_{t}", path, path, None))
        proposals = np.select([truth == 1, truth == 2], [200, 7]).astype(np.uint8)
        write_picture(tmp_path / "masks" / "a" / f"{t}.png", proposals)
    arguments = tmp_path / "masks", [VideoFiles("a", tuple(frames))]
    for name, j in (("davis2017_unsupervised", 1), ("davis2017_semi_supervised", 0)):
        scores = score_masks(*arguments, PROTOCOLS[name], progress=False)
        assert list(scores) == ["a_1", "a_2"]
        assert all((one.values["J"] == j).all() for one in scores.values())
        assert len(scores["a_1"].frames) == (4 if j else 2)


def test_colours_and_probabilities_are_no_numbers_of_proposals(video_set, masks):
    ramp = np.tile(np.arange(60, dtype=np.uint8) * 4, (40, 1))
    ramp[0] = np.arange(60) * 4 + 1
    Image.fromarray(ramp).save(masks / "bear/000.png")
    colours = np.zeros((40, 60, 3), np.uint8)
    colours[:, 20:40], colours[:, 40:] = (200, 0, 0), (0, 200, 0)
    Image.fromarray(colours).save(masks / "bear/001.png")
    message = complaint(masks, video_set[:1], PROTOCOLS["davis2017_unsupervised"])
    assert "2 x mask that is neither binary nor numbers of proposals" in message
    assert "000.png: 120 grey values" in message and "001.png: 3 colours" in message


def test_proposals_of_one_object_are_chosen_too(video_set, masks):
    """A network that finds one cluster, the whole frame, has found no foreground."""
    for path in (masks / "bear").glob("*.png"):
        Image.fromarray(np.full((40, 60), 255, np.uint8)).save(path)
    arguments = masks, video_set[:1], LONG
    as_mask = score_masks(*arguments, progress=False)["bear"].values["J"]
    np.testing.assert_allclose(as_mask, 400 / 2400)
    proposals = score_masks(*arguments, proposals=True, progress=False)["bear"].values["J"]
    np.testing.assert_array_equal(proposals, 0)
