"""Tests of datasets/files.py."""

import os

import numpy as np
import pytest
from PIL import Image

from datasets.files import printable, write_picture, write_text


def test_a_file_is_replaced_whole_and_its_folder_made(tmp_path):
    path = tmp_path / "new/folder/notes.txt"
    write_text(path, "first\r\n")
    write_text(path, "zweiter: ü\n")
    assert path.read_bytes() == "zweiter: ü\n".encode()
    assert [p.name for p in path.parent.iterdir()] == ["notes.txt"]


def test_a_write_that_fails_leaves_the_old_file_and_names_it(tmp_path, monkeypatch):
    path = tmp_path / "notes.txt"
    write_text(path, "old")

    def full(descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left on device") as caught:
        write_text(path, "new")
    assert caught.value.filename == str(path)
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_pictures_are_written_as_rgb_into_folders_that_are_made(tmp_path):
    picture = np.zeros((4, 5, 3), np.uint8)
    picture[..., 0], picture[0, 0] = 200, (1, 2, 3)
    path = tmp_path / "deep/er/x.png"
    write_picture(path, picture)
    np.testing.assert_array_equal(np.asarray(Image.open(path)), picture)
    grey = np.arange(20, dtype=np.uint8).reshape(4, 5)
    write_picture(path, grey)
    written = Image.open(path)
    assert written.mode == "L"
    np.testing.assert_array_equal(np.asarray(written), grey)


def test_a_picture_that_cannot_be_written_raises(tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(OSError):
        write_picture(tmp_path / "file/x.png", np.zeros((4, 5), np.uint8))


def test_names_that_are_not_utf_8_keep_their_bytes_and_can_be_shown(tmp_path):
    name = os.fsdecode(b"\xff\xc3\xbc")
    write_text(tmp_path / name, name)
    assert (tmp_path / name).read_bytes() == b"\xff\xc3\xbc"
    assert printable(name) == "\\udcff\u00fc"
