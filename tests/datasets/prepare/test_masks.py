"""Tests of datasets/prepare/masks.py and of how FBMS names its regions."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from datasets.masks import read_labels
from datasets.prepare.fbms import convert_regions
from datasets.prepare.masks import convert_size, convert_void, mask_picture
from datasets.problems import DatasetError
from tests.datasets.prepare.archives import write

LABELS = np.array([[0, 1, 2], [3, 200, 255]], np.uint8)
VOID_ALONE = np.array([[0, 255, 0]], np.uint8)


def test_label_maps_are_stored_so_that_they_are_read_again(tmp_path: Path) -> None:
    for labels in (LABELS, LABELS[:1], np.minimum(LABELS, 1), np.zeros_like(LABELS)):
        mask_picture(labels).save(tmp_path / "mask.png")
        np.testing.assert_array_equal(read_labels(tmp_path / "mask.png"), labels)
    # One object is stored as in the data sets of one object.
    assert mask_picture(np.minimum(LABELS, 1)).mode == "L"


def test_void_is_converted_where_it_would_be_read_as_an_object(tmp_path: Path) -> None:
    for palette in (True, False):
        path = write(tmp_path / "mask.png", VOID_ALONE, palette)
        for grey in (True, False):
            labels = convert_void(path, path, grey=grey)
            if palette or grey:
                np.testing.assert_array_equal(labels, 0 * VOID_ALONE)
            else:
                assert labels is None
        path = write(tmp_path / "mask.png", LABELS, palette)
        labels = convert_void(path, path, grey=True)
        if palette:  # it is void anyway
            assert labels is None
        else:
            np.testing.assert_array_equal(labels, LABELS)
    path = write(tmp_path / "mask.png", LABELS % 4)
    assert convert_void(path, path, grey=True) is None


def test_smaller_masks_are_enlarged_by_the_rules_of_all_masks(tmp_path: Path) -> None:
    image = write(tmp_path / "image.png", np.zeros((4, 8), np.uint8))
    assert convert_size(image, image) is None
    soft = write(tmp_path / "soft.png", np.array([[0, 100, 200, 255], [0, 0, 0, 50]], np.uint8))
    expected = np.repeat(np.repeat([[0, 0, 1, 1], [0, 0, 0, 0]], 2, axis=0), 2, axis=1)
    np.testing.assert_array_equal(convert_size(image, soft), expected)
    several = write(tmp_path / "several.png", np.array([[0, 1, 2, 3]] * 2, np.uint8))
    assert np.unique(convert_size(image, several)).tolist() == [0, 1, 2, 3]


def test_regions_by_colour_and_by_grey_value(tmp_path: Path) -> None:
    path = tmp_path / "mask.ppm"
    Image.fromarray(np.array([[[255, 255, 255], [1, 2, 3], [0, 0, 1], [1, 2, 4]]], np.uint8)).save(
        path
    )
    assert convert_regions(path, path, objects=(0x010203, 1)).tolist() == [[0, 1, 2, 0]]
    path = tmp_path / "mask.pgm"
    Image.fromarray(LABELS).save(path)
    assert convert_regions(path, path, objects=(2, 200)).tolist() == [[0, 0, 1], [0, 2, 0]]
    Image.fromarray(LABELS.astype(np.uint16) * 100).save(path)
    assert convert_regions(path, path, objects=(200,)).tolist() == [[0, 0, 1], [0, 0, 0]]
    path.write_bytes(b"<html>")
    with pytest.raises(DatasetError, match=r"mask\.pgm: cannot be read"):
        convert_regions(path, path, objects=(1,))
