"""Checking the files of frames without decoding them."""

import os
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from datasets.file_checks import check_files, find_faults
from datasets.layout import (
    video_sequences,
)
from datasets.pictures import read_image
from tests.datasets.folders import (
    HEIGHT,
    WIDTH,
    complaint,
    frame_of,
    make_flat,
    make_nested,
    noise,
    write,
)
from tests.readers import read_mask


def test_clean_sets_pass_every_check(tmp_path, capsys):
    make_flat(tmp_path, ["a_0", "a_1"])
    make_nested(tmp_path / "nested", {"b": ["b_0"]})
    sequences = video_sequences(tmp_path, "videos") + video_sequences(tmp_path / "nested", "videos")
    frames = [frame for sequence in sequences for frame in sequence.frames]
    check_files(iter(frames))
    assert "3/3" in capsys.readouterr().err


@pytest.mark.parametrize("suffix", [".jpg", ".png"])
@pytest.mark.parametrize(
    ("kept", "fault"),
    [
        (slice(-2), "truncated"),
        (slice(-30), "truncated"),
        (slice(1000), "truncated"),
        (slice(12), ""),  # worded by the decoder
        (slice(0), "empty (0 bytes)"),
    ],
)
def test_truncated_files_are_found_by_check_and_by_reading(tmp_path, suffix, kept, fault):
    path = write(tmp_path / f"a{suffix}", noise(64, 64))
    path.write_bytes(path.read_bytes()[kept])
    message = complaint(check_files, [frame_of(path)])
    assert message.startswith("1 problem ") and str(path) in message
    for text in (message, complaint(read_image, path), complaint(read_mask, path)):
        assert str(path) in text and fault in text


def test_truncated_jpeg_with_an_embedded_preview_is_found(tmp_path):
    # The preview's own end marker must not count as the end of the file.
    preview = write(tmp_path / "preview.jpg", noise(8, 8)).read_bytes()
    exif = b"Exif\0\0" + preview
    segment = b"\xff\xe1" + (len(exif) + 2).to_bytes(2, "big") + exif
    path = write(tmp_path / "a.jpg", noise(64, 64))
    content = path.read_bytes()
    path.write_bytes(content[:2] + segment + content[2:])
    check_files([frame_of(path)])
    assert read_image(path).shape == (64, 64, 3)
    path.write_bytes(content[:2] + segment + content[2:-100])
    assert "truncated" in complaint(check_files, [frame_of(path)])


@pytest.mark.parametrize("suffix", [".jpg", ".png"])
def test_bytes_after_the_end_are_no_truncation(tmp_path, suffix):
    path = write(tmp_path / f"a{suffix}")
    expected = read_image(path)
    path.write_bytes(path.read_bytes() + bytes(100) + b"made by a camera")
    check_files([frame_of(path)])
    np.testing.assert_array_equal(read_image(path), expected)


def test_missing_and_foreign_files_are_named(tmp_path):
    missing = tmp_path / "missing.jpg"
    bitmap = tmp_path / "bitmap.png"
    Image.fromarray(noise()).save(bitmap, format="BMP")
    folder = tmp_path / "folder.png"
    folder.mkdir()
    message = complaint(check_files, [frame_of(missing, bitmap, folder)])
    assert message.startswith("3 problems ")
    assert f"{missing}: no such file" in message
    assert f"{bitmap}: not a JPEG or PNG" in message
    assert str(folder) in message
    for path in (missing, bitmap, folder):
        assert str(path) in complaint(read_image, path)
        assert str(path) in complaint(read_mask, path)


def test_pipes_are_not_waited_for_and_broken_links_are_called_so(tmp_path):
    os.mkfifo(tmp_path / "pipe.jpg")
    (tmp_path / "link.jpg").symlink_to(tmp_path / "gone.jpg")
    frames = [frame_of(tmp_path / "pipe.jpg"), frame_of(tmp_path / "link.jpg")]
    message = complaint(check_files, frames)
    assert f"{tmp_path / 'pipe.jpg'}: not a regular file" in message
    assert f"{tmp_path / 'link.jpg'}: a link to a file that is not there" in message


def test_partners_of_another_size_are_counted_with_both_sizes(tmp_path):
    image = write(tmp_path / "image.jpg")
    turned = write(tmp_path / "turned.png", noise(WIDTH, HEIGHT))
    broken = tmp_path / "broken.jpg"
    broken.touch()
    frames = [
        frame_of(image, image, image),
        frame_of(image, turned, image),
        frame_of(image, image, turned),
        frame_of(image, turned, turned),
        frame_of(broken, turned),
    ]
    message = complaint(check_files, frames)
    assert message.startswith("5 problems in the files of 5 frames:\n")
    assert "4 x mask, flow map or next image of another size than its image" in message
    assert message.count(f"{turned}: {HEIGHT} x {WIDTH}, its image {WIDTH} x {HEIGHT}") == 4


def test_broken_files_are_listed_up_to_ten(tmp_path):
    paths = [tmp_path / f"{i:02d}.png" for i in range(13)]
    for path in paths:
        path.touch()
    lines = complaint(check_files, map(frame_of, paths)).splitlines()
    assert lines[0].startswith("13 problems ")
    assert [line.split(":")[0].strip() for line in lines[2:12]] == [str(p) for p in paths[:10]]
    assert lines[12:] == ["    ... and 3 more"]


def test_next_images_are_checked_with_a_set_and_not_before_a_training(tmp_path):
    image, following = write(tmp_path / "image.png"), write(tmp_path / "next.png")
    following.write_bytes(following.read_bytes()[:-40])
    frame = replace(frame_of(image), following=following)
    problems = {}
    find_faults([frame], problems, "checking", deep=True)
    ((items),) = problems.values()
    assert len(items) == 1 and items[0].startswith(f"{following}: ")
    check_files([frame])
