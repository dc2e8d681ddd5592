"""Tests of datasets/sources.py; its readers are tested through tests/datasets/test_prepare.py."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from datasets.layout import DatasetError
from datasets.sources import SOURCES, read_foreground, read_labels, read_regions

LABELS = np.array([[0, 1, 2], [3, 200, 255]], np.uint8)


@pytest.mark.parametrize("suffix", [".png", ".pgm", ".bmp"])
def test_labels_of_grey_and_palette_masks(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"mask{suffix}"
    Image.fromarray(LABELS).save(path)
    np.testing.assert_array_equal(read_labels(path), LABELS)
    np.testing.assert_array_equal(read_foreground(path), LABELS != 0)
    void = read_foreground(path, void=255)
    np.testing.assert_array_equal(void, [[False, True, True], [True, True, False]])
    if suffix == ".png":
        picture = Image.fromarray(LABELS)
        picture.putpalette([7] * 768)  # the index counts, not the colour
        picture.save(path)
        np.testing.assert_array_equal(read_labels(path), LABELS)


def test_labels_of_deep_and_of_bilevel_masks(tmp_path: Path) -> None:
    deep = LABELS.astype(np.uint16) * 100
    Image.fromarray(deep).save(tmp_path / "deep.pgm")
    np.testing.assert_array_equal(read_labels(tmp_path / "deep.pgm"), deep)
    Image.fromarray(LABELS > 2).save(tmp_path / "bilevel.png")
    np.testing.assert_array_equal(read_labels(tmp_path / "bilevel.png") != 0, LABELS > 2)


def test_void_in_masks_with_colour_channels(tmp_path: Path) -> None:
    Image.fromarray(np.repeat(LABELS[..., None], 3, axis=2)).save(tmp_path / "mask.png")
    void = read_foreground(tmp_path / "mask.png", void=255)
    np.testing.assert_array_equal(void, [[False, True, True], [True, True, False]])


def test_regions_by_colour(tmp_path: Path) -> None:
    colours = np.array([[[255, 255, 255], [1, 2, 3], [0, 0, 1], [1, 2, 4]]], np.uint8)
    path = tmp_path / "mask.ppm"
    Image.fromarray(colours).save(path)
    labels = [0xFFFFFF, 0x010203, 1, 0x010204]
    np.testing.assert_array_equal(read_labels(path), [labels])
    found = read_regions(path, foreground=(0x010203, 1))
    np.testing.assert_array_equal(found, [[False, True, True, False]])


def test_file_that_is_no_picture(tmp_path: Path) -> None:
    for content in (b"", b"<html>"):
        (tmp_path / "mask.png").write_bytes(content)
        with pytest.raises(DatasetError, match=r"mask\.png: cannot be read"):
            read_labels(tmp_path / "mask.png")


def test_known_counts_add_up_to_those_of_the_whole_data_sets() -> None:
    def total(name: str, what: str) -> int:
        return sum(getattr(known, what) for known in SOURCES[name].known.values())

    assert total("davis2016", "images") == total("davis2017", "masks") == 3455
    assert total("davis2016", "sequences") == 50
    assert total("duts", "images") == total("duts", "masks") == 15572
    assert total("fbms", "sequences") == 59
