"""Tests of datasets/prepare/writing.py and of the command."""

import errno
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from datasets.layout import still_images, video_sequences
from datasets.prepare.__main__ import main
from datasets.problems import DatasetError
from tests.datasets.prepare.archives import (
    command,
    data_root,
    image,
    objects,
    run,
    tree,
    write,
    write_davis,
    write_duts,
    write_lists,
    write_mixed,
)
from tests.readers import read_mask

ROOT = Path(__file__).parents[3]


def no_links(*_: object) -> None:
    raise OSError(18, "Invalid cross-device link")


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
    assert "files: 4 linked" in result.stdout
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


def test_sequences_of_one_frame_are_left_out_and_named(
    source: Path, capsys: pytest.CaptureFixture
) -> None:
    for name in ("aa/00000", "b/00000", "b/00005"):
        write(source / f"train/JPEGImages/{name}.jpg", image())
        write(source / f"train/Annotations/{name}.png", objects(1))
    (prepared,) = run("youtube_vos", source)
    assert (prepared.counts["sequences"], prepared.counts["images"]) == (1, 2)
    assert "left out: 1 x sequence of a single frame" in (said := capsys.readouterr().out)
    assert "aa_00000" in said


def test_what_macos_adds_to_archives_is_ignored(source: Path) -> None:
    write_duts(source)
    for folder in ("DUTS-TR/DUTS-TR-Image", "DUTS-TR/DUTS-TR-Mask"):
        for name in ("__MACOSX/" + folder, folder):
            (source / name).mkdir(parents=True, exist_ok=True)
            (source / name / "._sun_TR0.jpg").write_bytes(b"Mac OS X")
    (prepared,) = run("duts", source)
    assert (prepared.counts["images"], prepared.counts["masks"]) == (3, 3)


def test_a_full_disk_is_said_with_the_file(source: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_mixed(source)

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(OSError, match=r"No space left on device: .*GT/\w+\.png"):
        run("davis2016_from_2017", source)


@pytest.mark.parametrize("links", [True, False])
def test_second_run_changes_nothing(
    source: Path, monkeypatch: pytest.MonkeyPatch, links: bool
) -> None:
    write_mixed(source)
    if not links:
        monkeypatch.setattr(os, "link", no_links)
    first = run("davis2016_from_2017", source)
    assert sum(p.files["converted"] for p in first) == 4
    assert (sum(p.files["linked"] for p in first), sum(p.files["copied"] for p in first)) == (
        (8, 0) if links else (0, 8)
    )
    paths = "JPEGImages/480p/bear/00000.jpg", "DAVIS_train/RGB/bear_00000.jpg"
    original, written = source / "DAVIS" / paths[0], data_root(source) / paths[1]
    assert original.samefile(written) == links
    assert original.read_bytes() == written.read_bytes()

    before = tree(data_root(source))
    second = run("davis2016_from_2017", source)
    assert tree(data_root(source)) == before
    assert [p.files["kept"] for p in second] == [4, 8]
    assert [p.files["linked"] + p.files["copied"] + p.files["converted"] for p in second] == [0, 0]


def test_copies_with_another_time_are_compared_by_content(source: Path) -> None:
    write_duts(source)
    shutil.copytree(source / "DUTS-TR/DUTS-TR-Image", data_root(source) / "DUTS_train/RGB")
    for path in (data_root(source) / "DUTS_train/RGB").iterdir():
        os.utime(path, (1, 1))
    before = tree(data_root(source) / "DUTS_train/RGB")
    (prepared,) = run("duts", source)
    assert (prepared.files["kept"], prepared.files["linked"]) == (3, 3)
    assert tree(data_root(source) / "DUTS_train/RGB") == before


@pytest.mark.parametrize("stop_at", [1, 4, 7])
@pytest.mark.parametrize("links", [True, False])
def test_stopped_and_started_again(
    source: Path, monkeypatch: pytest.MonkeyPatch, links: bool, stop_at: int
) -> None:
    write_mixed(source)
    name, calls = "link" if links else "replace", []
    function = getattr(os, name)

    def stopped(*arguments: object) -> None:
        calls.append(1)
        if len(calls) == stop_at:
            raise KeyboardInterrupt
        function(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(os, "link", no_links)
        patch.setattr(os, name, stopped)
        with pytest.raises(KeyboardInterrupt):
            run("davis2016_from_2017", source)
    written = {name: entry for name, entry in tree(data_root(source)).items() if not entry[0]}

    prepared = run("davis2016_from_2017", source)
    assert sum(p.files["kept"] for p in prepared) == len(written) < 12
    complete = tree(data_root(source))
    assert len([name for name in complete if not complete[name][0]]) == 12
    assert all(complete[name] == written[name] for name in written)
    (bear,) = video_sequences(data_root(source), "DAVIS_train", flow=False)
    assert len(bear.frames) == 4
    for frame, label in zip(bear.frames, (0, 1) * 2):
        np.testing.assert_array_equal(read_mask(frame.mask), objects(label) != 0)


def test_wrong_folder_is_explained(source: Path, capsys: pytest.CaptureFixture) -> None:
    write(source / "holiday/beach.jpg", image())
    for name, expected in (
        ("duts", "DUTS-TR-Image, neither in"),
        ("davis2016", "JPEGImages/480p, neither in"),
        ("davis2017", "JPEGImages/480p, neither in"),
        ("youtube_vos", "Annotations, neither in"),
        ("fbms", "Testset, neither in"),
        ("youtube_objects", "aeroplane/data or JPEGImages/aeroplane, neither in"),
        ("long_videos", "Annotations, neither in"),
    ):
        for flags in ((), ("--partial",)):
            assert main(command(name, source, *flags)) == 1
            captured = capsys.readouterr()
            assert captured.out == ""
            assert expected in captured.err
            assert "Folders there: holiday" in captured.err
    assert main(command("duts", source / "nowhere")) == 1
    assert "no such folder" in capsys.readouterr().err
    assert not data_root(source).exists()


def test_a_broken_link_in_the_place_of_a_video_is_no_missing_part(
    source: Path, capsys: pytest.CaptureFixture
) -> None:
    for t in range(2):
        write(source / f"JPEGImages/rat/{t}.jpg", image(t))
        write(source / f"Annotations/rat/{t}.png", objects(1))
    (source / "JPEGImages/dressage").symlink_to(source / "elsewhere")
    assert main(command("long_videos", source, "--partial")) == 1
    message = capsys.readouterr().err
    assert f"{source / 'JPEGImages/dressage'}: broken link" in message


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
        "JPEGImages/480p/swing: no images",
        "JPEGImages/480p/goat: no images",
        "JPEGImages/480p/bear/00001.jpg: image without mask",
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


def test_images_and_masks_that_do_not_pair_up(source: Path, capsys: pytest.CaptureFixture) -> None:
    write_duts(source)
    (source / "DUTS-TR/DUTS-TR-Mask/sun_TR1.png").unlink()
    write(source / "DUTS-TR/DUTS-TR-Mask/other.png", objects(1))
    with pytest.raises(DatasetError) as error:
        run("duts", source)
    message = str(error.value)
    assert message.startswith("2 problems in")
    assert "sun_TR1.jpg: image without mask" in message
    assert "other.png: mask without image" in message
    capsys.readouterr()
    prepared = run("duts", source, accept_partial=True)
    (train,) = [one for one in prepared if one.set_name == "DUTS_train"]
    kept = {frame.name for frame in still_images(data_root(source), "DUTS_train")}
    assert "sun_TR1" not in kept and train.counts["images"] == len(kept) > 0
    printed = capsys.readouterr().out
    assert "accepted: 2 problems" in printed and "(by --partial)" in printed
    assert "sun_TR1.jpg: image without mask" in printed and "other.png: mask without" in printed


def test_folder_that_is_there_twice(source: Path) -> None:
    write_duts(source)
    shutil.copytree(source / "DUTS-TR", source / "copy")
    with pytest.raises(DatasetError, match=r"-Image, both in .*DUTS-TR and in .*copy; give one"):
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
        run("davis2016_from_2017", source)
    assert f"{mask}: 8 x 6, its image 16 x 12" in str(error.value)
    assert "dog/00001.png: empty" in str(error.value)
    assert not data_root(source).exists()


def test_files_that_differ_from_the_source_are_listed_and_nothing_is_written(source: Path) -> None:
    write_mixed(source)
    train = data_root(source) / "DAVIS_train"
    write(train / "RGB/bear_00000.jpg", image(0))  # as in the source
    image_path = write(train / "RGB/bear_00001.jpg", image(50))
    mask = write(train / "GT/bear_00000.png", objects(0, 1))  # would be converted
    before = tree(data_root(source))
    with pytest.raises(DatasetError) as error:
        run("davis2016_from_2017", source)
    message = str(error.value)
    assert "2 x file that is there already and differs from the source" in message
    assert str(image_path) in message and str(mask) in message
    assert tree(data_root(source)) == before


def test_converted_masks_of_the_same_pixels_are_kept_in_any_encoding(source: Path) -> None:
    write_mixed(source)
    run("davis2016_from_2017", source)
    masks = data_root(source).rglob("GT/*.png")
    converted = [path for path in masks if path.stat().st_nlink == 1]
    for path in converted:
        with Image.open(path) as picture:
            picture.load()
        picture.save(path, compress_level=0)
    before = tree(data_root(source))
    assert len(converted) == sum(p.files["kept"] for p in run("davis2016_from_2017", source)) - 8
    assert tree(data_root(source)) == before


def test_images_of_another_source_are_counted(source: Path, capsys: pytest.CaptureFixture) -> None:
    write_duts(source)
    write(data_root(source) / "DUTS_train/RGB/another.jpg", image(9))
    run("duts", source)
    said = "note: images in DUTS_train that the source does not have: 1"
    assert said in capsys.readouterr().out
    (data_root(source) / "DUTS_train/RGB/another.jpg").unlink()
    run("duts", source)
    assert "note" not in capsys.readouterr().out


def test_symbolic_links_in_the_source_give_files(source: Path) -> None:
    write_duts(source)
    path = source / "DUTS-TR/DUTS-TR-Image/sun_TR0.jpg"
    target = path.rename(source / "elsewhere.jpg")
    path.symlink_to("../../elsewhere.jpg")
    run("duts", source)
    frame = still_images(data_root(source), "DUTS_train")[0]
    assert not frame.image.is_symlink()
    assert frame.image.samefile(target)
