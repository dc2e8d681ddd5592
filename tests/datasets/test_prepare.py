"""Tests of datasets/prepare.py, on tiny folders in each official layout (datasets/sources.py)."""

import dataclasses
import errno
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from datasets.flow import make_flow
from datasets.layout import (
    DatasetError,
    Frame,
    read_image,
    read_mask,
    still_images,
    video_sequences,
)
from datasets.prepare import Prepared, main, prepare
from datasets.sources import SOURCES, Known

ROOT = Path(__file__).parents[2]
SIZE = (12, 16)  # height and width of the test pictures


def image(seed: int = 0) -> np.ndarray:
    """Noise, (H, W, 3) uint8."""
    return np.random.default_rng(seed).integers(0, 256, (*SIZE, 3), dtype=np.uint8)


def objects(*labels: int) -> np.ndarray:
    """Label map, (H, W) uint8: a rectangle for each label, side by side, on background 0."""
    drawn = np.zeros(SIZE, np.uint8)
    for i, label in enumerate(labels):
        drawn[3:9, 1 + 4 * i : 4 + 4 * i] = label
    return drawn


def write(path: Path, pixels: np.ndarray, palette: bool = False, size: tuple | None = None) -> Path:
    """Write pixels as a picture of the path's format; with random colours for labels but 0."""
    path.parent.mkdir(parents=True, exist_ok=True)
    picture = Image.fromarray(pixels)
    if palette:
        colours = np.random.default_rng(1).integers(1, 256, 765).tolist()
        picture.putpalette([0, 0, 0, *colours])
    if size is not None:
        picture = picture.resize(size, Image.Resampling.NEAREST)
    picture.save(path, **({"quality": 100} if path.suffix == ".jpg" else {}))
    return path


def tree(folder: Path) -> dict[str, tuple]:
    """Everything below a folder: kind, time of last change, and content."""
    return {
        str(path.relative_to(folder)): (
            path.is_dir(),
            path.lstat().st_mtime_ns,
            None if path.is_dir() else path.read_bytes(),
        )
        for path in folder.rglob("*")
    }


@pytest.fixture
def source(tmp_path: Path) -> Iterator[Path]:
    """Folder for the archive; checks at the end that nothing is beside it but the data root."""
    folder = tmp_path / "downloads"
    folder.mkdir()
    yield folder
    assert {path.name for path in tmp_path.iterdir()} <= {"downloads", "data"}


def run(name: str, source: Path, **options) -> list[Prepared]:
    """Prepare, without known counts, and check that the source stays as it is."""
    tiny = dataclasses.replace(SOURCES[name], known={})
    before = tree(source)
    try:
        return prepare(source, source.parent / "data", tiny, progress=False, **options)
    finally:
        assert tree(source) == before


def data_root(source: Path) -> Path:
    return source.parent / "data"


def command(name: str, source: Path, *flags: str) -> list[str]:
    return [name, "--source", str(source), "--data-root", str(data_root(source)), *flags]


def by_name(frames: tuple[Frame, ...] | list[Frame]) -> dict[str, Frame]:
    return {frame.name: frame for frame in frames}


def write_duts(source: Path, parts: tuple[str, ...] = ("TR",), images: int = 3) -> None:
    for part in parts:
        for i in range(images):
            folder = source / f"DUTS-{part}"
            write(folder / f"DUTS-{part}-Image" / f"sun_{part}{i}.jpg", image(i))
            write(
                folder / f"DUTS-{part}-Mask" / f"sun_{part}{i}.png", objects(255 if i == 0 else 1)
            )


def write_davis(
    source: Path, masks: dict[str, list[np.ndarray]], annotations: str = "Annotations", **options
) -> None:
    """Sequences of a DAVIS archive with a mask a frame, without the lists of the splits."""
    for sequence, labels in masks.items():
        for t, drawn in enumerate(labels):
            write(source / f"DAVIS/JPEGImages/480p/{sequence}/{t:05d}.jpg", image(t))
            write(source / f"DAVIS/{annotations}/480p/{sequence}/{t:05d}.png", drawn, **options)


def write_lists(source: Path, folder: str, **splits: str) -> None:
    (source / "DAVIS/ImageSets" / folder).mkdir(parents=True)
    for split, lines in splits.items():
        (source / "DAVIS/ImageSets" / folder / f"{split}.txt").write_text(lines)


def write_fbms(
    folder: Path,
    truths: dict[str, tuple[int, np.ndarray]],
    labels: tuple[int, ...] = (),
    frames: tuple[int, ...] = (1, 2, 3, 4),
) -> None:
    """FBMS sequence: masks by file name with the index of their frame, Def.dat where labels are."""
    for t in frames:
        write(folder / f"{folder.name}_{t:02d}.jpg", image(t))
    for name, (_, drawn) in truths.items():
        write(folder / "GroundTruth" / name, drawn)
    if not labels:
        return
    lines = ["Ground truth definition file; do not change!", "", "Total number of regions:"]
    lines += [str(len(labels)), ""]
    for i, label in enumerate(labels):
        lines += [f"Scale of region {i}:", str(label)]
    lines += ["", "Confusion penality matrix:", *["0 1"] * len(labels), ""]
    lines += ["Total number of frames in this shot:", str(len(frames))]
    lines += ["Total number of labeled frames for this shot:", str(len(truths))]
    for name, (index, _) in truths.items():
        lines += ["Frame number:", str(index), "File name:", name]
        lines += ["Input file name:", f"{folder.name}_{index + 1:02d}.ppm"]
    definition = folder / "GroundTruth" / f"{folder.name}Def.dat"
    definition.write_text("\r\n".join(lines) + "\r\n")


def coloured(labels: np.ndarray, colours: dict[int, tuple[int, int, int]]) -> np.ndarray:
    """Label map as a colour picture, (H, W, 3) uint8."""
    drawn = np.zeros((*SIZE, 3), np.uint8)
    for label, colour in colours.items():
        drawn[labels == label] = colour
    return drawn


def test_duts_from_the_command_line(source: Path) -> None:
    write_duts(source, ("TR", "TE"), images=2)
    before = tree(source)
    result = subprocess.run(
        [sys.executable, "-m", "datasets.prepare", *command("duts", source, "--partial")],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert result.returncode == 0, result.stderr
    assert "DUTS_train: 2 images, 2 masks (known: 10,553 images, 10,553 masks)" in result.stdout
    assert "4 files linked, 0 copied, 0 converted, 0 were there already" in result.stdout
    assert "writing files" in result.stderr  # the progress bar
    assert tree(source) == before
    assert sorted(p.name for p in data_root(source).iterdir()) == ["DUTS_test", "DUTS_train"]
    for part, set_name in (("TR", "DUTS_train"), ("TE", "DUTS_test")):
        frames = still_images(data_root(source), set_name)
        assert [frame.name for frame in frames] == [f"sun_{part}0", f"sun_{part}1"]
        for frame in frames:  # one mask has 0 and 255, the other 0 and 1
            np.testing.assert_array_equal(read_mask(frame.mask), objects(1) != 0)
            folder = source / f"DUTS-{part}" / f"DUTS-{part}-Image"
            assert frame.image.samefile(folder / frame.image.name)
            assert not frame.image.is_symlink()


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
    prepared = prepare(
        archive,
        data_root(source),
        dataclasses.replace(SOURCES["davis2016"], known={"DAVIS_train": Known(2, 5, 5)}),
        progress=False,
    )
    assert [(p.set_name, p.sequences, p.images, p.masks) for p in prepared] == [
        ("DAVIS_test", 1, 2, 2),
        ("DAVIS_train", 2, 5, 5),
    ]
    assert sum(p.converted for p in prepared) == 0

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
def test_davis_2017_merges_objects_and_takes_void_out(source: Path, annotations: str) -> None:
    masks = {"bear": [objects(1, 2), objects(1, 255, 2), objects(0, 255)], "lady": [objects(3)]}
    write_davis(source, masks, annotations, palette=True)
    write_davis(source, {"dog": [objects(255)] * 2}, annotations)  # no palette: 255 is the object
    write_lists(source, "2016", train="bear\n", val="dog\n")
    test, train = run("davis2017", source)
    assert (train.linked, train.converted) == (4, 2)
    assert (test.linked, test.converted) == (4, 0)
    (bear,) = video_sequences(data_root(source), "DAVIS_train", flow=False)
    for frame, expected in zip(bear.frames, [objects(1, 2), objects(1, 0, 2), objects(0)]):
        np.testing.assert_array_equal(read_mask(frame.mask), expected != 0)
    (dog,) = video_sequences(data_root(source), "DAVIS_test", flow=False)
    np.testing.assert_array_equal(read_mask(dog.frames[0].mask), objects(1) != 0)


def test_youtube_vos_takes_annotated_frames_of_all_objects(source: Path) -> None:
    train = source / "train"
    for t in range(0, 20, 5):
        write(train / f"JPEGImages/003234408d/{t:05d}.jpg", image(t))
    for t, labels in ((0, (1,)), (5, (2, 1, 6)), (10, ())):
        write(train / f"Annotations/003234408d/{t:05d}.png", objects(*labels), palette=True)
    (train / "meta.json").write_text('{"videos": {"003234408d": {}}}')
    (train / "JPEGImages/.DS_Store").write_text("")
    write(source / "valid/Annotations/aa/00000.png", objects(1))
    (prepared,) = run("youtube_vos", source)
    assert (prepared.sequences, prepared.images, prepared.masks) == (1, 3, 3)
    assert prepared.converted == 0
    (video,) = video_sequences(data_root(source), "YTVOS_train", flow=False)
    assert [f.name for f in video.frames] == [f"003234408d_{t:05d}" for t in (0, 5, 10)]
    for frame, labels in zip(video.frames, [(1,), (2, 1, 6), ()]):
        np.testing.assert_array_equal(read_mask(frame.mask), objects(*labels) != 0)


@pytest.mark.parametrize("every", [False, True])
def test_flow_of_youtube_vos_belongs_to_the_next_image(source: Path, every: bool) -> None:
    """Images 0 to 20 by fives, of which 10 is not annotated, and with `every` those between."""
    for t in range(0, 25, 5):
        write(source / f"train/JPEGImages/aa/{t:05d}.jpg", image(t))
    for t in (0, 5, 15, 20):
        write(source / f"train/Annotations/aa/{t:05d}.png", objects(1))
    write(source / "train/JPEGImages/b/00000.jpg", image())
    write(source / "train/Annotations/b/00000.png", objects(1))
    for t in range(22) if every else ():
        write(source / f"train_all_frames/JPEGImages/aa/{t:05d}.jpg", image(t))
    (prepared,) = run("youtube_vos", source)
    assert (prepared.sequences, prepared.images, prepared.others) == (1, 4, 0)
    pairs = []

    def estimator(first: np.ndarray, second: np.ndarray) -> np.ndarray:
        pairs.append(tuple(round(float(x.mean()), 3) for x in (first, second)))
        return np.zeros((*SIZE, 2), np.float32)

    make_flow(data_root(source), "YTVOS_train", estimator)
    folder = source / ("train_all_frames" if every else "train") / "JPEGImages/aa"
    means = {int(x.stem): round(float(read_image(x).mean()), 3) for x in folder.iterdir()}
    after = {0: 1, 5: 6, 15: 16, 20: 21} if every else {0: 5, 5: 10, 15: 20, 20: 15}
    assert pairs == [(means[frame], means[other]) for frame, other in after.items()]


def test_sequences_of_one_frame_are_left_out_and_named(
    source: Path, capsys: pytest.CaptureFixture
) -> None:
    for name in ("aa/00000", "b/00000", "b/00005"):
        write(source / f"train/JPEGImages/{name}.jpg", image())
        write(source / f"train/Annotations/{name}.png", objects(1))
    (prepared,) = run("youtube_vos", source)
    assert (prepared.sequences, prepared.images) == (1, 2)
    assert "left out: 1 x sequence of a single frame" in (said := capsys.readouterr().out)
    assert "aa_00000" in said


@pytest.mark.parametrize(
    "content", [b'{"videos": ["aa"]}', b'{"videos": 3}', b"[]", b"\xff", b"[" * 100000]
)
def test_lists_that_cannot_be_read_are_named(source: Path, content: bytes) -> None:
    for t in (0, 5):
        write(source / f"train/JPEGImages/aa/{t:05d}.jpg", image(t))
        write(source / f"train/Annotations/aa/{t:05d}.png", objects(1))
    (source / "train/meta.json").write_bytes(content)
    with pytest.raises(DatasetError, match=r"1 x list that cannot be read(.|\n)*meta\.json"):
        run("youtube_vos", source)
    write_davis(source, {"bear": [objects(255)] * 2})
    write_lists(source, "480p", train="bear", val="bear")
    (source / "DAVIS/ImageSets/480p/val.txt").write_bytes(b"b\xe4r")
    with pytest.raises(DatasetError, match=r"1 x list that cannot be read(.|\n)*val\.txt"):
        run("davis2016", source)


def test_what_macos_adds_to_archives_is_ignored(source: Path) -> None:
    write_duts(source)
    for folder in ("DUTS-TR/DUTS-TR-Image", "DUTS-TR/DUTS-TR-Mask"):
        for name in ("__MACOSX/" + folder, folder):
            (source / name).mkdir(parents=True, exist_ok=True)
            (source / name / "._sun_TR0.jpg").write_bytes(b"Mac OS X")
    (prepared,) = run("duts", source)
    assert (prepared.images, prepared.masks) == (3, 3)


@pytest.mark.parametrize("labels", [(1, 2), (1, 255)])
def test_davis_2017_is_no_davis_2016(source: Path, labels: tuple[int, int]) -> None:
    write_davis(source, {"bear": [objects(1), objects(*labels)]}, palette=True)
    write_lists(source, "2016", train="bear\n", val="bear\n")
    with pytest.raises(DatasetError, match=r"mask of several objects.*davis2017(.|\n)*00001\.png"):
        run("davis2016", source)
    assert not data_root(source).exists()


def test_a_full_disk_is_said_with_the_file(source: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_mixed(source)

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(DatasetError, match=r"GT/\w+\.png cannot be written: No space left"):
        run("davis2017", source)


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
    write(folder / "cats01_02.ppm", image(7))  # beside the .jpg of the same frame
    write_fbms(source / "Trainingset/bear01", {"bear01_01.pgm": (0, objects(9))}, (0, 9))

    test, train = run("fbms", source)
    assert (test.sequences, test.images, test.masks, test.converted) == (2, 8, 3, 3)
    assert (train.set_name, train.images, train.masks) == ("FBMS_train", 4, 1)
    cars, cats = video_sequences(data_root(source), "FBMS_test", masks="some", flow=False)
    assert [f.name for f in cars.frames] == ["cars1_01", "cars1_02", "cars1_03", "cars1_04"]
    assert [f.mask is not None for f in cars.frames] == [True, False, True, False]
    np.testing.assert_array_equal(read_mask(cars.frames[0].mask), objects(0, 1) != 0)
    np.testing.assert_array_equal(read_mask(cars.frames[2].mask), objects(1) != 0)
    np.testing.assert_array_equal(read_mask(cats.frames[1].mask), objects(1, 1) != 0)
    stored = np.asarray(Image.open(cats.frames[1].mask))
    assert sorted(np.unique(stored)) == [0, 255]
    assert all(f.image.suffix == ".jpg" for f in cats.frames)


def test_fbms_background_of_several_regions_and_masks_found_by_index(source: Path) -> None:
    grey = objects(10, 20, 30, 40)
    for name in ("marple2", "marple4"):
        truths = {f"{name}_101.pgm": (2, grey)}  # no image has that number
        write_fbms(source / "Testset" / name, truths, (0, 10, 20, 30, 40))
    run("fbms", source)
    marple2, marple4 = video_sequences(data_root(source), "FBMS_test", masks="some", flow=False)
    assert [f.mask is not None for f in marple2.frames] == [False, False, True, False]
    np.testing.assert_array_equal(read_mask(marple2.frames[2].mask), np.isin(grey, (10, 30)))
    np.testing.assert_array_equal(read_mask(marple4.frames[2].mask), grey != 0)


def test_fbms_without_definition_file(source: Path) -> None:
    write_fbms(source / "FBMS/Testset/cars1", {"cars1_01.pgm": (0, objects(1, 90))})
    drawn = coloured(objects(1, 2), {0: (255, 255, 255), 1: (255, 0, 0)})
    folder = source / "FBMS/Testset/cats01"
    write_fbms(folder, {"cats01_02_gt.ppm": (1, drawn), "cats01_02_gt.pgm": (1, objects(7))})
    write_fbms(source / "FBMS/Testset/dogs01", {"dogs01_04.png": (3, objects(255))})
    (prepared,) = run("fbms", source)
    assert prepared.converted == 2
    cars, cats, dogs = video_sequences(data_root(source), "FBMS_test", masks="some", flow=False)
    np.testing.assert_array_equal(read_mask(cars.frames[0].mask), objects(1, 1) != 0)
    np.testing.assert_array_equal(read_mask(cats.frames[1].mask), objects(1, 1) != 0)
    np.testing.assert_array_equal(read_mask(dogs.frames[3].mask), objects(1) != 0)


def test_fbms_definition_file_that_does_not_fit(source: Path) -> None:
    write_fbms(source / "Testset/cars1", {"cars1_01.pgm": (0, objects(1))}, (0, 1))
    write_fbms(source / "Testset/cars4", {"cars4_01.pgm": (0, objects(1))}, (0, 1))
    (source / "Testset/cars1/GroundTruth/cars1Def.dat").write_text("Frame number:\nx\n")
    (source / "Testset/cars4/GroundTruth/cars4_01.pgm").unlink()
    with pytest.raises(DatasetError) as error:
        run("fbms", source)
    assert "cars1Def.dat" in str(error.value)
    assert "cars4_01.pgm, named in cars4Def.dat" in str(error.value)
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
    assert (prepared.sequences, prepared.images, prepared.masks) == (3, 9, 6)
    assert prepared.converted == 1
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
    assert (prepared.sequences, prepared.images, prepared.masks) == (3, 12, 6)
    assert prepared.converted == 3
    for video in video_sequences(data_root(source), "LongVideos_test", masks="some", flow=False):
        assert [f.name for f in video.frames] == [f"{video.name}_{t}" for t in range(4)]
        for frame in (video.frames[0], video.frames[3]):
            np.testing.assert_array_equal(read_mask(frame.mask), objects(1) != 0)


def test_long_videos_whose_objects_are_white(source: Path) -> None:
    for video in ("blueboy", "dressage", "rat"):
        for t in range(2):
            write(source / f"JPEGImages/{video}/{t}.png", image(t))
            write(source / f"Annotations/{video}/{t}.png", objects(1 if video == "rat" else 255))
    with pytest.raises(DatasetError, match=r"2 x video whose masks hold nothing but void"):
        run("long_videos", source)


def test_pictures_of_other_formats_are_converted_without_loss(source: Path) -> None:
    write(source / "DUTS-TR/DUTS-TR-Image/a.ppm", image(3))
    write(source / "DUTS-TR/DUTS-TR-Mask/a.bmp", objects(1))
    (prepared,) = run("duts", source)
    assert (prepared.converted, prepared.linked) == (2, 0)
    (frame,) = still_images(data_root(source), "DUTS_train")
    assert (frame.image.name, frame.mask.name) == ("a.png", "a.png")
    np.testing.assert_array_equal(read_image(frame.image), image(3))
    np.testing.assert_array_equal(read_mask(frame.mask), objects(1) != 0)


def write_mixed(source: Path) -> None:
    """A source of which some files are converted and others are not."""
    write_davis(source, {"bear": [objects(1, 255), objects(1)] * 2}, palette=True)
    write_davis(source, {"dog": [objects(1, 255)] * 2}, palette=True)
    write_lists(source, "2016", train="bear\n", val="dog\n")


def no_links(*_: object) -> None:
    raise OSError(18, "Invalid cross-device link")


@pytest.mark.parametrize("links", [True, False])
def test_second_run_changes_nothing(
    source: Path, monkeypatch: pytest.MonkeyPatch, links: bool
) -> None:
    write_mixed(source)
    if not links:
        monkeypatch.setattr(os, "link", no_links)
    first = run("davis2017", source)
    assert sum(p.converted for p in first) == 4
    assert (sum(p.linked for p in first), sum(p.copied for p in first)) == (
        (8, 0) if links else (0, 8)
    )
    paths = "JPEGImages/480p/bear/00000.jpg", "DAVIS_train/RGB/bear_00000.jpg"
    original, written = source / "DAVIS" / paths[0], data_root(source) / paths[1]
    assert original.samefile(written) == links
    assert original.read_bytes() == written.read_bytes()

    before = tree(data_root(source))
    second = run("davis2017", source)
    assert tree(data_root(source)) == before
    assert [p.kept for p in second] == [4, 8]
    assert [p.linked + p.copied + p.converted for p in second] == [0, 0]


def test_copies_with_another_time_are_compared_by_content(source: Path) -> None:
    write_duts(source)
    shutil.copytree(source / "DUTS-TR/DUTS-TR-Image", data_root(source) / "DUTS_train/RGB")
    for path in (data_root(source) / "DUTS_train/RGB").iterdir():
        os.utime(path, (1, 1))
    before = tree(data_root(source) / "DUTS_train/RGB")
    (prepared,) = run("duts", source)
    assert (prepared.kept, prepared.linked) == (3, 3)
    assert tree(data_root(source) / "DUTS_train/RGB") == before


@pytest.mark.parametrize("stop_at", [1, 4, 7])
@pytest.mark.parametrize("links", [True, False])
def test_stopped_and_started_again(
    source: Path, monkeypatch: pytest.MonkeyPatch, links: bool, stop_at: int
) -> None:
    write_mixed(source)
    link, copy, calls = os.link, shutil.copy2, []

    def stopped_link(*arguments: object) -> None:
        calls.append(1)
        if len(calls) == stop_at:
            raise KeyboardInterrupt
        link(*arguments)

    def stopped_copy(start: Path, end: Path) -> None:
        calls.append(1)
        if len(calls) == stop_at:
            Path(end).write_bytes(Path(start).read_bytes()[:50])
            raise KeyboardInterrupt
        copy(start, end)

    with monkeypatch.context() as patch:
        patch.setattr(os, "link", stopped_link if links else no_links)
        patch.setattr(shutil, "copy2", stopped_copy)
        with pytest.raises(KeyboardInterrupt):
            run("davis2017", source)
    stopped = {name: entry for name, entry in tree(data_root(source)).items() if not entry[0]}
    leftovers = [name for name in stopped if name.endswith(".partial")]
    assert len(leftovers) == (0 if links else 1)
    assert all(Path(name).name.startswith(".") for name in leftovers)

    prepared = run("davis2017", source)
    assert sum(p.kept for p in prepared) == len(stopped) - len(leftovers) < 12
    complete = tree(data_root(source))
    assert not [name for name in complete if name.endswith(".partial")]
    assert all(complete[name] == stopped[name] for name in stopped if name not in leftovers)
    (bear,) = video_sequences(data_root(source), "DAVIS_train", flow=False)
    assert len(bear.frames) == 4
    for frame in bear.frames:
        np.testing.assert_array_equal(read_mask(frame.mask), objects(1) != 0)


def test_wrong_folder_is_explained(source: Path, capsys: pytest.CaptureFixture) -> None:
    write(source / "holiday/beach.jpg", image())
    for name, expected in (
        ("duts", "DUTS-TR/{DUTS-TR-Image,DUTS-TR-Mask}"),
        ("davis2016", "DAVIS/ImageSets/480p/{train,val}.txt"),
        ("davis2017", "Annotations_unsupervised"),
        ("youtube_vos", "train/{JPEGImages,Annotations}/<video>"),
        ("fbms", "Testset/<sequence>/GroundTruth"),
        ("youtube_objects", "youtube_masks/<class>/data"),
        ("long_videos", "{JPEGImages,Annotations}/<video>"),
    ):
        for flags in ((), ("--partial",)):
            assert main(command(name, source, *flags)) == 1
            captured = capsys.readouterr()
            assert captured.out == ""
            assert expected in captured.err
            assert "holiday/ (beach.jpg)" in captured.err  # what is there
    assert main(command("duts", source / "nowhere")) == 1
    assert "no such folder" in capsys.readouterr().err
    assert not data_root(source).exists()


def test_incomplete_source_is_listed_and_can_be_accepted(
    source: Path, capsys: pytest.CaptureFixture
) -> None:
    write_davis(source, {"bear": [objects(255)] * 3, "dog": [objects(255)] * 2})
    lines = [f"/JPEGImages/480p/bear/{t:05d}.jpg /Annotations/480p/bear/x.png" for t in range(4)]
    lines.append("/JPEGImages/480p/swing/00000.jpg /Annotations/480p/swing/00000.png")
    write_lists(source, "480p", train="\n".join(lines), val="dog\ngoat\n")
    (source / "DAVIS/Annotations/480p/bear/00001.png").unlink()
    assert main(command("davis2016", source)) == 1
    message = capsys.readouterr().err
    for part in (
        "JPEGImages/480p/swing, named in",
        "JPEGImages/480p/goat, named in",
        "JPEGImages/480p/bear/00003.jpg",
        "Annotations/480p/bear/00001.png",
        "DAVIS_train: 1 sequences, 30 are known",
        "DAVIS_test: 2 images, 1,376 are known",
        "--partial",
    ):
        assert part in message
    assert not data_root(source).exists()

    assert main(command("davis2016", source, "--partial")) == 0
    output = capsys.readouterr().out.splitlines()
    assert "DAVIS_train: 1 sequences, 2 images, 2 masks (known: 30 seq" in "\n".join(output)
    assert output[-1] == (
        f"next: python -m datasets.flow --data-root {data_root(source)} --set DAVIS_train"
    )
    (bear,) = video_sequences(data_root(source), "DAVIS_train", flow=False)
    assert [f.name for f in bear.frames] == ["bear_00000", "bear_00002"]


def test_videos_that_meta_names_and_long_videos_that_are_missing(source: Path) -> None:
    for name in ("00000", "00005"):
        write(source / f"train/JPEGImages/aa/{name}.jpg", image())
        write(source / f"train/Annotations/aa/{name}.png", objects(1))
    (source / "train/meta.json").write_text('{"videos": {"aa": {}, "bb": {}}}')
    with pytest.raises(DatasetError, match=r"1 x sequence without frames(.|\n)*bb, named in"):
        run("youtube_vos", source)
    with pytest.raises(DatasetError, match=r"3 x sequence without frames(.|\n)*blueboy"):
        run("long_videos", source)
    assert not data_root(source).exists()
    assert [p.images for p in run("youtube_vos", source, accept_partial=True)] == [2]


def test_images_and_masks_that_do_not_pair_up(source: Path, capsys: pytest.CaptureFixture) -> None:
    write_duts(source)
    (source / "DUTS-TR/DUTS-TR-Mask/sun_TR1.png").unlink()
    write(source / "DUTS-TR/DUTS-TR-Mask/other.png", objects(1))
    write(source / "DUTS-TR/DUTS-TR-Image/sun_TR0.png", image())
    with pytest.raises(DatasetError) as error:
        run("duts", source)
    message = str(error.value)
    assert message.startswith("3 problems in")
    assert "image without mask" in message and "sun_TR1.jpg" in message
    assert "mask without image" in message and "other.png" in message
    assert "second file for the same frame" in message and "sun_TR0.png" in message
    # Two files for one frame are no part of a set; what lacks its partner can be left out.
    with pytest.raises(DatasetError, match="1 problem in"):
        run("duts", source, accept_partial=True)
    (source / "DUTS-TR/DUTS-TR-Image/sun_TR0.png").unlink()
    capsys.readouterr()
    prepared = run("duts", source, accept_partial=True)
    (train,) = [one for one in prepared if one.set_name == "DUTS_train"]
    kept = {frame.name for frame in still_images(data_root(source), "DUTS_train")}
    assert "sun_TR1" not in kept and train.images == train.masks == len(kept) > 0
    printed = capsys.readouterr().out
    assert "left out: 1 x image without mask" in printed and "sun_TR1.jpg" in printed
    assert "left out: 1 x mask without image" in printed and "other.png" in printed


def test_folder_that_is_there_twice(source: Path) -> None:
    write_duts(source)
    shutil.copytree(source / "DUTS-TR", source / "copy")
    with pytest.raises(DatasetError, match=r"2 x folder found twice(.|\n)*copy/DUTS-TR-Image"):
        run("duts", source)


def test_damaged_files_and_masks_of_another_size_stop_before_anything_is_written(
    source: Path,
) -> None:
    write_duts(source)
    path = source / "DUTS-TR/DUTS-TR-Image/sun_TR0.jpg"
    path.write_bytes(path.read_bytes()[:-40])
    write(source / "DUTS-TR/DUTS-TR-Mask/sun_TR1.png", objects(1), size=(8, 6))
    with pytest.raises(DatasetError) as error:
        run("duts", source)
    assert "sun_TR0.jpg: truncated" in str(error.value)
    assert "sun_TR1.png: 8 x 6, its image 16 x 12" in str(error.value)

    write_mixed(source)
    mask = write(source / "DAVIS/Annotations/480p/bear/00000.png", objects(1, 255), True, (8, 6))
    (source / "DAVIS/Annotations/480p/dog/00001.png").write_bytes(b"")
    with pytest.raises(DatasetError) as error:
        run("davis2017", source)
    assert f"{mask}: 8 x 6, its image 16 x 12" in str(error.value)
    assert "dog/00001.png: cannot be read" in str(error.value)
    assert not data_root(source).exists()


def test_files_of_another_origin_are_listed_and_kept(source: Path) -> None:
    write_mixed(source)
    train, test = data_root(source) / "DAVIS_train", data_root(source) / "DAVIS_test"
    write(train / "RGB/bear_00000.jpg", image(50))
    write(train / "GT/bear_00000.png", objects(0, 1))
    write(train / "RGB/bear_00001.png", image(1))
    write(test / "dog/GT/dog_00000.png", (objects(1) != 0) * np.uint8(255))  # what would be written
    before = tree(data_root(source))
    with pytest.raises(DatasetError) as error:
        run("davis2017", source)
    assert str(error.value).startswith("3 problems in")
    for path in ("RGB/bear_00000.jpg", "GT/bear_00000.png", "RGB/bear_00001.png"):
        assert str(train / path) in str(error.value)
    assert "choose another data root" in str(error.value)
    assert tree(data_root(source)) == before


def test_other_files_in_the_set_are_left_alone_and_mentioned(
    source: Path, capsys: pytest.CaptureFixture
) -> None:
    write_mixed(source)
    write(data_root(source) / "DAVIS_train/RGB/mine_00000.png", image())
    write(data_root(source) / "DAVIS_train/FLOW/bear_00000.jpg", image())
    write(data_root(source) / "DAVIS_test/mine/GT/mine_00000.png", objects(1))
    before = tree(data_root(source))
    assert main(command("davis2017", source, "--partial")) == 0
    output = capsys.readouterr().out
    assert output.count("1 other pictures") == 2
    after = tree(data_root(source))
    mine = [name for name, entry in before.items() if not entry[0]]
    assert len(mine) == 3
    assert all(after[name] == before[name] for name in mine)


def test_more_than_the_known_number_is_mentioned(
    source: Path, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_duts(source)
    tiny = dataclasses.replace(SOURCES["duts"], known={"DUTS_train": Known(images=2, note="why")})
    monkeypatch.setitem(SOURCES, "duts", tiny)
    assert main(command("duts", source)) == 0
    output = capsys.readouterr().out
    assert "DUTS_train: 3 images, 3 masks (known: 2 images)" in output
    assert "more than the known 2 images" in output
    assert "  why\n" in output


def test_links_in_the_data_root_are_not_followed(source: Path) -> None:
    write_duts(source)
    data_root(source).mkdir()
    elsewhere = source / "DUTS-TR"
    (data_root(source) / "DUTS_train").symlink_to(elsewhere, target_is_directory=True)
    with pytest.raises(DatasetError, match=r"2 x folder that is a link"):
        run("duts", source)
    assert sorted(p.name for p in elsewhere.iterdir()) == ["DUTS-TR-Image", "DUTS-TR-Mask"]


def test_source_and_data_root_within_each_other(source: Path) -> None:
    write_duts(source)
    tiny = dataclasses.replace(SOURCES["duts"], known={})
    before = tree(source)
    for root in (source, source / "data"):
        with pytest.raises(DatasetError, match="sources are never changed"):
            prepare(source, root, tiny, progress=False)
    inside = data_root(source) / "DUTS_train"
    shutil.copytree(source, inside)
    with pytest.raises(DatasetError, match="move the source elsewhere"):
        prepare(inside, data_root(source), tiny, progress=False)
    assert tree(source) == before
    # A source beside the sets is fine.
    beside = data_root(source) / "downloads"
    inside.rename(beside)
    (prepared,) = prepare(beside, data_root(source), tiny, progress=False)
    assert prepared.linked == 6


def test_symbolic_links_in_the_source_give_files(source: Path) -> None:
    write_duts(source)
    path = source / "DUTS-TR/DUTS-TR-Image/sun_TR0.jpg"
    target = path.rename(source / "elsewhere.jpg")
    path.symlink_to("../../elsewhere.jpg")
    run("duts", source)
    frame = still_images(data_root(source), "DUTS_train")[0]
    assert not frame.image.is_symlink()
    assert frame.image.samefile(target)
