"""Tests of datasets/prepare/sources.py and fbms.py, through what is written."""

import dataclasses
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from datasets.flow.making import make_flow
from datasets.known_sets import KNOWN_SETS
from datasets.layout import video_sequences
from datasets.masks import read_label_map, read_labels
from datasets.pictures import read_image
from datasets.prepare.sources import SOURCES
from datasets.prepare.writing import prepare
from datasets.problems import DatasetError
from tests.datasets.prepare.archives import (
    SIZE,
    coloured,
    data_root,
    image,
    objects,
    run,
    tree,
    write,
    write_davis,
    write_duts,
    write_fbms,
    write_lists,
)
from tests.readers import read_mask
from utils.evaluation.protocols import choose_protocol


@pytest.mark.parametrize("inside", [False, True])
def test_davis_2016(source: Path, inside: bool) -> None:
    write_davis(source, {"bear": [objects(255)] * 3, "dance-jump": [objects(0)] * 2})
    write_davis(source, {"dog": [objects(255, 255)] * 2, "unlisted": [objects(255)]})
    # bear/00077.png of the archive has four channels, too.
    transparent = np.dstack([objects(255)] * 3 + [np.full(SIZE, 255, np.uint8)])
    write(source / "DAVIS/Annotations/480p/bear/00001.png", transparent)
    listed = [("bear", 3), ("dance-jump", 2)]
    train = [
        f"/JPEGImages/480p/{name}/{t:05d}.jpg /Annotations/480p/{name}/{t:05d}.png \n"
        for name, count in listed
        for t in range(count)
    ]
    write_lists(source, "480p", train="".join(train), val="dog\n\n")
    archive = source / "DAVIS" if inside else source
    tiny = dataclasses.replace(SOURCES["davis2016"], sets=())
    prepared = prepare(archive, data_root(source), tiny)
    assert [(p.set_name, *p.counts.values()) for p in prepared] == [
        ("DAVIS_test", 1, 2, 2),
        ("DAVIS_train", 2, 5, 5),
    ]
    assert sum(p.files["converted"] for p in prepared) == 0

    train = video_sequences(data_root(source), "DAVIS_train", flow=False)
    assert [s.name for s in train] == ["bear", "dance-jump"]
    assert [f.name for f in train[0].frames] == ["bear_00000", "bear_00001", "bear_00002"]
    for frame in train[0].frames:
        np.testing.assert_array_equal(read_mask(frame.mask), objects(1) != 0)
    assert not read_mask(train[1].frames[0].mask).any()
    (dog,) = video_sequences(data_root(source), "DAVIS_test", flow=False)
    rgb = data_root(source) / "DAVIS_test" / "dog" / "RGB"
    assert [f.image for f in dog.frames] == [rgb / "dog_00000.jpg", rgb / "dog_00001.jpg"]
    np.testing.assert_array_equal(read_mask(dog.frames[1].mask), objects(1, 1) != 0)


@pytest.mark.parametrize("annotations", ["Annotations", "Annotations_unsupervised"])
def test_davis_2017_keeps_objects_and_void(source: Path, annotations: str) -> None:
    masks = {"bear": [objects(1, 2), objects(1, 255, 2), objects(0, 255)], "lady": [objects(3)]}
    write_davis(source, masks, annotations, palette=True)
    write_davis(source, {"dog": [objects(255)] * 2}, annotations)  # no palette: 255 is the object
    write_lists(source, "2016", train="bear\n", val="dog\n")
    write_lists(source, "2017", train="bear\nlady\n", val="dog\n")
    test, train = run("davis2016_from_2017", source)
    # Only a mask of void alone is converted: 255 alone would be read as an object.
    assert (train.files["linked"], train.files["converted"]) == (5, 1)
    assert (test.files["linked"], test.files["converted"]) == (4, 0)
    (bear,) = video_sequences(data_root(source), "DAVIS_train", flow=False)
    for frame, expected in zip(bear.frames, [objects(1, 2), objects(1, 255, 2), objects(0)]):
        np.testing.assert_array_equal(read_labels(frame.mask), expected)
        np.testing.assert_array_equal(read_mask(frame.mask), np.isin(expected, (1, 2)))
    (dog,) = video_sequences(data_root(source), "DAVIS_test", flow=False)
    np.testing.assert_array_equal(read_mask(dog.frames[0].mask), objects(1) != 0)


def test_davis_2017_wants_the_annotations_of_all_objects(source: Path) -> None:
    write_davis(source, {"bear": [objects(1)] * 2}, palette=True)
    write_lists(source, "2017", train="bear\n", val="")
    with pytest.raises(DatasetError, match="Annotations_unsupervised/480p: missing"):
        run("davis2017", source)


def test_two_duts_masks_of_one_name_are_named(source: Path) -> None:
    write_duts(source)
    write(source / "DUTS-TR/DUTS-TR-Mask/sun_TR1.jpg", objects(255))
    with pytest.raises(
        DatasetError, match=r"keep one of the two(.|\n)*sun_TR1\.png beside sun_TR1\.jpg"
    ):
        run("duts", source)


def test_davis_2017_has_sets_and_lists_of_its_own_and_prefers_all_objects(source: Path) -> None:
    write_davis(source, {"bear": [objects(1)] * 2, "lady": [objects(1)] * 2}, palette=True)
    write_davis(
        source,
        {"bear": [objects(1, 2)] * 2, "lady": [objects(3, 255, 1)] * 2},
        "Annotations_unsupervised",
        palette=True,
    )
    write_lists(source, "2017", train="bear\n", val="lady\n")
    train, val = run("davis2017", source)
    assert (train.set_name, val.set_name) == ("DAVIS17_train", "DAVIS17_val")
    (lady,) = video_sequences(data_root(source), "DAVIS17_val", flow=False)
    labels = read_label_map(lady.frames[0].mask)
    np.testing.assert_array_equal(labels, objects(3, 255, 1))
    assert choose_protocol("DAVIS17_val")[0].name == "davis2017_unsupervised"
    # The semi-supervised task has annotations of its own.
    _, val = run("davis2017_semi_supervised", source)
    (lady,) = video_sequences(data_root(source), val.set_name, flow=False)
    np.testing.assert_array_equal(read_labels(lady.frames[0].mask), objects(1))


def test_youtube_vos_takes_annotated_frames_of_all_objects(source: Path) -> None:
    train = source / "train"
    for t in range(0, 20, 5):
        write(train / f"JPEGImages/003234408d/{t:05d}.jpg", image(t))
    for t, labels in ((0, (1,)), (5, (2, 1, 6)), (10, ())):
        write(train / f"Annotations/003234408d/{t:05d}.png", objects(*labels), palette=True)
    (train / "JPEGImages/.DS_Store").write_text("")
    write(source / "valid/Annotations/aa/00000.png", objects(1))
    (prepared,) = run("youtube_vos", source)
    assert tuple(prepared.counts.values()) == (
        1,
        3,
        3,
    )
    assert prepared.files["converted"] == 0
    (video,) = video_sequences(data_root(source), "YTVOS_train", flow=False)
    assert [f.name for f in video.frames] == [f"003234408d_{t:05d}" for t in (0, 5, 10)]
    for frame, labels in zip(video.frames, [(1,), (2, 1, 6), ()]):
        np.testing.assert_array_equal(read_labels(frame.mask), objects(*labels))


@pytest.mark.parametrize("every", ["never", "beside", "below", "later"])
def test_flow_of_youtube_vos_belongs_to_the_next_image(source: Path, every: str, capsys) -> None:
    """Images 0 to 20 by fives, of which 10 is not annotated, and the archive of all images."""
    given = source / "train" if every == "beside" else source
    for t in range(0, 25, 5):
        write(source / f"train/JPEGImages/aa/{t:05d}.jpg", image(t))
    for t in (0, 5, 15, 20):
        write(source / f"train/Annotations/aa/{t:05d}.png", objects(1))
    write(source / "train/JPEGImages/b/00000.jpg", image())
    write(source / "train/Annotations/b/00000.png", objects(1))
    if every == "later":
        prepare(given, data_root(source), dataclasses.replace(SOURCES["youtube_vos"], sets=()))
    every = every != "never"
    for t in range(22) if every else ():
        write(source / f"train_all_frames/JPEGImages/aa/{t:05d}.jpg", image(t))
    description = dataclasses.replace(SOURCES["youtube_vos"], sets=())
    (prepared,) = prepare(given, data_root(source), description)
    last = capsys.readouterr().out.splitlines()[-2]
    assert last.startswith(f"YTVOS_train: train_all_frames has {int(every)} of 2 videos; flow")
    assert (prepared.counts["sequences"], prepared.counts["images"]) == (1, 4)
    pairs = []

    def estimator(first: np.ndarray, second: np.ndarray) -> np.ndarray:
        pairs.append(tuple(round(float(x.mean()), 3) for x in (first, second)))
        return np.zeros((*SIZE, 2), np.float32)

    make_flow(data_root(source), "YTVOS_train", estimator)
    folder = source / ("train_all_frames" if every else "train") / "JPEGImages/aa"
    means = {int(x.stem): round(float(read_image(x).mean()), 3) for x in folder.iterdir()}
    after = {0: 1, 5: 6, 15: 16, 20: 21} if every else {0: 5, 5: 10, 15: 20, 20: 15}
    assert pairs == [(means[frame], means[other]) for frame, other in after.items()]


def test_without_all_frames_of_youtube_vos_the_nearer_images_stay(source: Path) -> None:
    for t in range(0, 20, 5):
        write(source / f"train/JPEGImages/aa/{t:05d}.jpg", image(t))
    for t in (0, 5, 15):
        write(source / f"train/Annotations/aa/{t:05d}.png", objects(1))
    for t in range(20):
        write(source / f"train_all_frames/JPEGImages/aa/{t:05d}.jpg", image(t))
    description = dataclasses.replace(SOURCES["youtube_vos"], sets=())
    prepare(source, data_root(source), description)
    before = tree(data_root(source))
    shutil.rmtree(source / "train_all_frames")
    prepare(source, data_root(source), description)
    assert tree(data_root(source)) == before
    assert len(list((data_root(source) / "YTVOS_train/NEXT").iterdir())) == 3


def test_a_list_that_is_not_utf_8_is_named(source: Path) -> None:
    write_davis(source, {"bear": [objects(255)] * 2})
    write_lists(source, "480p", train="bear", val="bear")
    (source / "DAVIS/ImageSets/480p/val.txt").write_bytes(b"b\xe4r")
    with pytest.raises(DatasetError, match=r"val\.txt: list that is not UTF-8"):
        run("davis2016", source)


@pytest.mark.parametrize("labels", [(1, 2), (1, 255)])
def test_davis_2017_is_no_davis_2016(source: Path, labels: tuple[int, int]) -> None:
    write_davis(source, {"bear": [objects(1), objects(*labels)]}, palette=True)
    write_lists(source, "2016", train="bear\n", val="bear\n")
    with pytest.raises(DatasetError, match=r"00001\.png: mask of several objects.*davis2017"):
        run("davis2016", source)
    assert not data_root(source).exists()


def test_fbms_by_definition_file(source: Path) -> None:
    """Grey and coloured labels; neither the background's value nor an unknown one is foreground."""
    grey = objects(0, 200, 77) + np.uint8(0)
    grey[grey == 0] = 30
    truths = {
        "cars1_01.pgm": (0, grey),
        "cars1_03.pgm": (2, objects(200) + (objects(200) == 0) * 30),
    }
    truths = {name: (i, drawn.astype(np.uint8)) for name, (i, drawn) in truths.items()}
    write_fbms(source / "Testset/cars1", truths, (30, 200))
    colours = {0: (255, 255, 255), 1: (255, 0, 1), 2: (0, 0, 0), 3: (9, 9, 9)}
    drawn = coloured(objects(1, 2, 3), colours)
    folder = source / "Testset/cats01"
    write_fbms(folder, {"cats01_02_gt.ppm": (1, drawn)}, (0xFFFFFF, 0xFF0001, 0))
    write(folder / "GroundTruth/cats01_02_gt.pgm", objects(255))  # not the labels
    write(folder / "GroundTruth/PROB_cats01_02_gt.ppm", coloured(objects(1), {1: (3, 3, 3)}))
    (folder / "GroundTruth/._cats01Def.dat").write_bytes(b"Mac OS X")
    write_fbms(source / "Trainingset/bear01", {"bear01_01.pgm": (0, objects(9))}, (0, 9))

    test, train = run("fbms", source)
    assert (
        test.counts["sequences"],
        test.counts["images"],
        test.counts["masks"],
        test.files["converted"],
    ) == (2, 8, 3, 3)
    assert (train.set_name, train.counts["images"], train.counts["masks"]) == ("FBMS_train", 4, 1)
    cars, cats = video_sequences(data_root(source), "FBMS_test", masks="some", flow=False)
    assert [f.name for f in cars.frames] == ["cars1_01", "cars1_02", "cars1_03", "cars1_04"]
    assert [f.mask is not None for f in cars.frames] == [True, False, True, False]
    np.testing.assert_array_equal(read_labels(cars.frames[0].mask), objects(0, 1))
    np.testing.assert_array_equal(read_labels(cars.frames[2].mask), objects(1))
    # Objects are numbered as the definition file lists them.
    np.testing.assert_array_equal(read_labels(cats.frames[1].mask), objects(1, 2))
    stored = np.asarray(Image.open(cars.frames[2].mask))
    assert sorted(np.unique(stored)) == [0, 255]


def test_fbms_background_of_several_regions_and_masks_found_by_index(source: Path) -> None:
    grey = objects(10, 20, 30, 40)
    for name in ("marple2", "marple4"):
        truths = {f"{name}_101.pgm": (2, grey)}  # no image has that number
        write_fbms(source / "Testset" / name, truths, (0, 10, 20, 30, 40))
    run("fbms", source)
    marple2, marple4 = video_sequences(data_root(source), "FBMS_test", masks="some", flow=False)
    assert [f.mask is not None for f in marple2.frames] == [False, False, True, False]
    np.testing.assert_array_equal(read_labels(marple2.frames[2].mask), objects(1, 0, 2))
    np.testing.assert_array_equal(read_labels(marple4.frames[2].mask), objects(1, 2, 3, 4))


def test_fbms_definition_file_that_does_not_fit(source: Path) -> None:
    write_fbms(source / "Testset/cars1", {"cars1_01.pgm": (0, objects(1))}, (0, 1))
    write_fbms(source / "Testset/cars4", {"cars4_01.pgm": (0, objects(1))}, (0, 1))
    (source / "Testset/cars1/GroundTruth/cars1Def.dat").write_text("Frame number:\nx\n")
    (source / "Testset/cars4/GroundTruth/cars4_01.pgm").unlink()
    with pytest.raises(DatasetError) as error:
        run("fbms", source)
    assert "Testset/cars1/GroundTruth" in str(error.value)
    assert "cars4_01.pgm, named in cars4Def.dat" in str(error.value)
    assert not data_root(source).exists()


def write_segtrack(source: Path) -> None:
    """A sequence of one object, and one of two objects, whose images and masks are partly BMP."""
    images, truths = (source / "SegTrackv2" / part for part in ("JPEGImages", "GroundTruth"))
    for t in range(2):
        name = f"bird_of_paradise_{t:05d}.png"
        write(images / "bird_of_paradise" / name, image(t))
        soft = np.where(objects(1) == 1, 255, 100).astype(np.uint8)
        write(truths / "bird_of_paradise" / name, np.dstack([soft] * 3))
        write(images / f"monkeydog/monkeydog_{t:03d}.bmp", image(t))
        write(truths / f"monkeydog/1/monkeydog_{t:03d}.png", objects(255, 255))
        write(truths / f"monkeydog/2/monkeydog_{t:03d}.bmp", objects(0, 255, 255))


def test_segtrack_keeps_the_numbers_of_objects(source: Path) -> None:
    write_segtrack(source)
    (prepared,) = run("segtrack_v2", source)
    assert tuple(prepared.counts.values()) == (2, 4, 4)
    assert (prepared.files["linked"], prepared.files["converted"]) == (4, 4)
    bird, dog = video_sequences(data_root(source), "SegTrackv2_test", flow=False)
    assert [f.name for f in bird.frames] == ["bird_of_paradise_00000", "bird_of_paradise_00001"]
    np.testing.assert_array_equal(read_labels(bird.frames[0].mask), objects(1))
    assert [f.name for f in dog.frames] == ["monkeydog_000", "monkeydog_001"]
    for t, frame in enumerate(dog.frames):
        np.testing.assert_array_equal(read_image(frame.image), image(t))  # the BMP's pixels
        np.testing.assert_array_equal(read_labels(frame.mask), objects(1, 2, 2))


def test_segtrack_without_all_masks_of_a_frame(source: Path) -> None:
    write_segtrack(source)
    (source / "SegTrackv2/GroundTruth/monkeydog/2/monkeydog_001.bmp").unlink()
    with pytest.raises(DatasetError, match=r"monkeydog_001\.bmp: masks of 1 of 2 objects"):
        run("segtrack_v2", source)
    (prepared,) = run("segtrack_v2", source, accept_partial=True)
    assert prepared.counts["masks"] == 2  # monkeydog has one frame left, and no flow


def test_segtrack_with_a_damaged_image(source: Path) -> None:
    write_segtrack(source)
    path = source / "SegTrackv2/JPEGImages/monkeydog/monkeydog_000.bmp"
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(DatasetError, match=r"monkeydog_000\.bmp: cannot be read"):
        run("segtrack_v2", source)
    assert not data_root(source).exists()


def test_youtube_objects_with_all_frames_and_smaller_masks(source: Path) -> None:
    for name, video, shot in (
        ("bird", "0001", "001"),
        ("bird", "0002", "001"),
        ("cow", "3", "002"),
    ):
        shots = source / "youtube_masks" / name / "data" / video / "shots" / shot
        for t in range(1, 4):
            write(shots / f"images/frame{t:04d}.jpg", image(t))
        write(shots / "labels/00001.jpg", objects(255))
        half = (8, 6) if video == "0002" else None
        write(shots / "labels/00003.jpg", np.full(SIZE, 255, np.uint8), size=half)
    (prepared,) = run("youtube_objects", source)
    assert tuple(prepared.counts.values()) == (
        3,
        9,
        6,
    )
    assert prepared.files["converted"] == 1
    sequences = video_sequences(data_root(source), "YTOBJ_test", masks="some", flow=False)
    assert [s.name for s in sequences] == ["bird_0001", "bird_0002", "cow_3-002"]
    for sequence in sequences:
        assert [f.name for f in sequence.frames] == [f"{sequence.name}_{t:04d}" for t in (1, 2, 3)]
        assert [f.mask is not None for f in sequence.frames] == [True, False, True]
        np.testing.assert_array_equal(read_mask(sequence.frames[0].mask), objects(1) != 0)
        assert read_mask(sequence.frames[2].mask).shape == SIZE
        assert read_mask(sequence.frames[2].mask).all()


def test_youtube_objects_as_tmo_has_it(source: Path) -> None:
    for t in (0, 10):
        write(source / f"JPEGImages/train/0004/{t:05d}.jpg", image(t))
    write(source / "Annotations/train/0004/00010.png", objects(255))
    # A sequence of one frame has no flow.
    write(source / "JPEGImages/cow/0019/00000.jpg", image(0))
    write(source / "Annotations/cow/0019/00000.png", objects(255))
    run("youtube_objects", source)
    (train,) = video_sequences(data_root(source), "YTOBJ_test", masks="some", flow=False)
    assert [f.name for f in train.frames] == ["train_0004_00000", "train_0004_00010"]
    np.testing.assert_array_equal(read_mask(train.frames[1].mask), objects(1) != 0)


@pytest.mark.parametrize("palette", [True, False])
@pytest.mark.parametrize("between", ["", "480p"])
def test_long_videos(source: Path, between: str, palette: bool) -> None:
    for video in ("blueboy", "dressage", "rat"):
        for t in range(4):
            folder = source / "long_videos" / "JPEGImages" / between / video
            write(folder / f"{t}.png", image(t))
        for t, labels in ((0, (1,)), (3, (1, 255))):
            path = source / "long_videos" / "Annotations" / between / video / f"{t}.png"
            write(path, objects(*labels), palette)
    (prepared,) = run("long_videos", source)
    assert tuple(prepared.counts.values()) == (
        3,
        12,
        6,
    )
    assert prepared.files["converted"] == (0 if palette else 3)
    for video in video_sequences(data_root(source), "LongVideos_test", masks="some", flow=False):
        assert [f.name for f in video.frames] == [f"{video.name}_{t}" for t in range(4)]
        for frame in (video.frames[0], video.frames[3]):
            np.testing.assert_array_equal(read_mask(frame.mask), objects(1) != 0)
        np.testing.assert_array_equal(read_labels(video.frames[3].mask), objects(1, 255))


def test_long_videos_whose_objects_are_white(source: Path) -> None:
    for video in ("blueboy", "dressage", "rat"):
        for t in range(2):
            write(source / f"JPEGImages/{video}/{t}.png", image(t))
            write(source / f"Annotations/{video}/{t}.png", objects(1 if video == "rat" else 255))
    with pytest.raises(DatasetError, match=r"blueboy: the masks hold nothing but void"):
        run("long_videos", source)


def test_known_counts_add_up_to_those_of_the_whole_data_sets() -> None:
    def total(name: str, what: str) -> int:
        return sum(KNOWN_SETS[one][what] for one in SOURCES[name].sets)

    assert total("davis2016", "images") == total("davis2016_from_2017", "masks") == 3455
    assert total("davis2016", "sequences") == 50
    assert total("duts", "images") == total("duts", "masks") == 15572
    assert total("fbms", "sequences") == 59
    assert total("segtrack_v2", "sequences") == 14
