"""Text files that are written whole or not at all."""

import os

import pytest

from utils.files import printable, write_text


def test_a_file_is_replaced_whole_and_its_folder_made(tmp_path):
    path = tmp_path / "new/folder/notes.txt"
    write_text(path, "first\r\n")
    write_text(path, "zweiter: ü\n")
    assert path.read_bytes() == "zweiter: ü\n".encode()
    assert [p.name for p in path.parent.iterdir()] == ["notes.txt"]


def test_names_that_are_not_utf_8_keep_their_bytes_and_can_be_shown(tmp_path):
    name = os.fsdecode(b"\xff\xc3\xbc")
    write_text(tmp_path / name, name)
    assert (tmp_path / name).read_bytes() == b"\xff\xc3\xbc"
    assert printable(name) == "\\udcff\u00fc"


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
