"""Reading images: what is read, and what is refused."""

import io
import os
import random

import cv2
import numpy as np
import pytest
from PIL import Image

from datasets.file_checks import check_files
from datasets.layout import (
    video_sequences,
)
from datasets.masks import read_binary_mask
from datasets.pictures import read_image, read_size
from datasets.problems import DatasetError
from tests.datasets.folders import (
    HEIGHT,
    WIDTH,
    complaint,
    frame_of,
    make_nested,
    noise,
    write,
)
from tests.readers import read_mask


def test_read_image_gives_rgb(tmp_path):
    path = write(tmp_path / "a.png")
    image = read_image(path)
    assert image.dtype == np.uint8
    np.testing.assert_array_equal(image, noise())
    colours = np.zeros((16, 16, 3), np.uint8)
    colours[:] = 200, 40, 90
    np.testing.assert_allclose(read_image(write(tmp_path / "a.jpg", colours)), colours, atol=4)


def test_read_image_of_grey_and_transparent_pictures(tmp_path):
    grey = noise()[..., 0]
    expected = np.stack([grey] * 3, axis=-1)
    np.testing.assert_array_equal(read_image(write(tmp_path / "grey.png", grey)), expected)
    rgba = np.dstack([noise(), np.full((HEIGHT, WIDTH), 7, np.uint8)])
    np.testing.assert_array_equal(read_image(write(tmp_path / "rgba.png", rgba)), noise())


def test_orientation_tags_are_ignored_by_all_readers(tmp_path):
    path, mask = tmp_path / "turned.jpg", write(tmp_path / "mask.png")
    exif = Image.Exif()
    exif[0x0112] = 6  # to be shown turned by 90 degrees
    Image.fromarray(noise()).save(path, exif=exif)
    assert cv2.imread(str(path)).shape[:2] == (WIDTH, HEIGHT)
    assert read_image(path).shape[:2] == read_mask(path).shape == (HEIGHT, WIDTH)
    check_files([frame_of(path, mask, path)])


def test_names_that_are_not_utf_8_are_read(tmp_path):
    folder = make_nested(tmp_path / os.fsdecode(b"\xff"), {"a": [os.fsdecode(b"a\xfe_0")]})
    (sequence,) = video_sequences(folder.parent, "videos")
    (frame,) = sequence.frames
    np.testing.assert_array_equal(read_image(frame.image)[..., 0], noise()[..., 0])
    np.testing.assert_array_equal(read_mask(frame.mask), noise()[..., 0] > 127)


def test_every_damaged_byte_of_a_png_is_noticed(tmp_path):
    content, rng = write(tmp_path / "a.png").read_bytes(), random.Random(0)
    for place in (*range(8, 60), *rng.sample(range(60, len(content) - 8), 40)):
        changed = bytearray(content)
        changed[place] ^= 1 << rng.randrange(8)
        (tmp_path / "a.png").write_bytes(changed)
        for read in (read_image, read_mask, read_binary_mask):
            assert str(tmp_path / "a.png") in complaint(read, tmp_path / "a.png")


def test_what_opencv_calls_a_corrupt_jpeg_is_refused_in_silence(tmp_path, capfd):
    content, rng = write(tmp_path / "a.jpg", noise(64, 64)).read_bytes(), random.Random(0)
    pixels = content.index(b"\xff\xda") + 14
    corrupt = 0
    for _ in range(40):
        place, changed = rng.randrange(pixels, len(content) - 20), bytearray(content)
        changed[place : place + 8] = rng.randbytes(8)
        (tmp_path / "a.jpg").write_bytes(changed)
        cv2.imdecode(np.frombuffer(changed, np.uint8), cv2.IMREAD_COLOR)
        told = capfd.readouterr().err
        if "Corrupt JPEG" in told or "Premature end" in told:
            corrupt += 1
            for read in (read_image, read_mask, read_binary_mask):
                assert "damaged inside" in complaint(read, tmp_path / "a.jpg")
            assert capfd.readouterr().err == ""
    assert 10 < corrupt < 40


def test_unusual_jpegs_are_read(tmp_path):
    inks = noise()[..., [0, 1, 2, 0]]
    Image.fromarray(inks, "CMYK").save(tmp_path / "inks.jpg")
    with Image.open(tmp_path / "inks.jpg") as picture:
        expected = np.asarray(picture.convert("RGB")).astype(int)
    assert abs(read_image(tmp_path / "inks.jpg") - expected).max() <= 2
    path = write(tmp_path / "a.jpg")
    content, expected = bytearray(path.read_bytes()), read_image(path)
    content[content.index(b"JFIF") + 5] = 9  # a version that there is not
    path.write_bytes(content)
    np.testing.assert_array_equal(read_image(path), expected)
    for grey in (noise()[..., 0], noise()):
        buffer = io.BytesIO()
        Image.fromarray(grey).save(buffer, "JPEG", progressive=True, subsampling=2)
        path.write_bytes(buffer.getvalue())
        expected = cv2.imdecode(np.frombuffer(buffer.getvalue(), np.uint8), cv2.IMREAD_COLOR)
        np.testing.assert_array_equal(read_image(path), expected[..., ::-1])


@pytest.mark.parametrize("progressive", [False, True])
def test_a_film_behind_a_jpeg_is_no_fault_and_a_small_jpeg_in_its_header_no_end(
    tmp_path, progressive
):
    small = write(tmp_path / "small.jpg").read_bytes()
    header = b"\xff\xe1" + (len(small) + 2).to_bytes(2, "big") + small  # as EXIF has it
    options = {"progressive": progressive, "quality": 90}
    Image.fromarray(noise(64, 48)).save(tmp_path / "a.jpg", **options)
    content = (tmp_path / "a.jpg").read_bytes()
    content = content[:2] + b"\xff" + header + content[2:]  # with a byte that fills a gap
    (tmp_path / "a.jpg").write_bytes(content)
    expected = read_image(tmp_path / "a.jpg")
    (tmp_path / "a.jpg").write_bytes(content + b"film \xff\xda film")
    np.testing.assert_array_equal(read_image(tmp_path / "a.jpg"), expected)
    (tmp_path / "a.jpg").write_bytes(content[: len(content) * 3 // 4])
    assert "truncated, its end is missing" in complaint(read_size, tmp_path / "a.jpg")


def test_the_size_of_a_picture_is_its_height_and_width(tmp_path):
    write(tmp_path / "x.png", noise(7, 11))
    assert read_size(tmp_path / "x.png") == read_image(tmp_path / "x.png").shape[:2]
    with pytest.raises(DatasetError, match="no such file"):
        read_size(tmp_path / "gone.png")
