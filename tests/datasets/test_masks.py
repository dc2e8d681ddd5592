"""Reading masks as label maps, as one object, and as results."""

from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image

from datasets.file_checks import check_files
from datasets.masks import NotBinaryError, one_object, read_binary_mask, read_label_map, read_labels
from tests.datasets.folders import HEIGHT, WIDTH, complaint, frame_of, write
from tests.readers import read_mask

OBJECT = np.zeros((HEIGHT, WIDTH), bool)
OBJECT[3:8, 5:15] = True


def write_palette(path: Path, labels: np.ndarray, colours: list[int], **options) -> Path:
    """Labels with a palette, as red, green and blue of each label in turn."""
    picture = Image.fromarray(labels.astype(np.uint8)).convert("P")
    picture.putdata(labels.flatten().tolist())
    picture.putpalette(colours)
    picture.save(path, **options)
    return path


def soft(top: int = 255) -> np.ndarray:
    """A disk with soft edges, in all values to `top`."""
    edge = np.clip(np.linspace(-0.5, 1.5, WIDTH), 0, 1)
    dtype = np.uint8 if top < 256 else np.uint16
    return np.repeat((edge * top).round()[None], HEIGHT, 0).astype(dtype)


@pytest.mark.parametrize("form", ["L", "LA", "RGB", "RGBA", "I;16", "P", "white first"])
def test_grey_masks_with_soft_edges_are_cut_at_one_half(tmp_path, form):
    values, path = soft(65535 if form == "I;16" else 255), tmp_path / "mask.png"
    if form in ("P", "white first"):
        ramp = list(range(256)) if form == "P" else list(range(255, -1, -1))
        labels = values if form == "P" else 255 - values
        write_palette(path, labels, [level for level in ramp for _ in range(3)])
    else:
        picture = Image.fromarray(values)
        (picture if form in ("L", "I;16") else picture.convert(form)).save(path)
    expected = values > values.max() // 2
    assert np.unique(values).size > 5 and expected.any() and not expected.all()
    np.testing.assert_array_equal(read_mask(path), expected)
    np.testing.assert_array_equal(read_binary_mask(path, binarize=True), expected)


@pytest.mark.parametrize("top", [255, 200, 128])
def test_grey_masks_need_not_reach_white(tmp_path, top):
    np.testing.assert_array_equal(
        read_mask(write(tmp_path / "mask.png", soft(top))), soft(top) > 127
    )


@pytest.mark.parametrize(
    ("values", "foreground"),
    [
        ([0, 1, 2, 31], [0, 1, 1, 1]),  # numbers of objects
        ([1, 2, 1, 2], [1, 1, 1, 1]),
        ([0, 40, 0, 40], [0, 1, 0, 1]),
        ([40, 40, 40, 40], [1, 1, 1, 1]),
        ([1, 255, 1, 254], [0, 1, 0, 1]),
        ([0, 38, 75, 38], None),  # colours of a palette as grey
        ([0, 1, 2, 255], None),  # objects and void
        ([0, 5, 255, 255], None),
    ],
)
def test_grey_values_are_labels_soft_edges_or_refused(tmp_path, values, foreground):
    path = write(tmp_path / "mask.png", np.array([values], np.uint8))
    if foreground is None:
        assert "may be labels or soft edges; write 0" in complaint(read_mask, path)
    else:
        assert read_mask(path).tolist() == [[bool(value) for value in foreground]]


def test_areas_of_a_few_grey_levels_may_be_objects_and_are_refused(tmp_path):
    areas = np.zeros((20, 30), np.uint8)
    areas[:10, :10], areas[:, 12:20], areas[:, 24:] = 85, 170, 255
    path = write(tmp_path / "mask.png", areas)
    assert "(0, 85, 170, 255, up to 255) that may be labels" in complaint(read_mask, path)
    # A soft edge of three levels around the same object is none.
    edges = np.repeat(np.uint8([[0, 0, 0, 64, 128, 191, 255, 255, 255, 255]]), 20, axis=0)
    enlarged = edges.repeat(6, axis=1)
    nearly_white = np.where(edges > 127, 254, 1).astype(np.uint8)
    nearly_white[0, 0], nearly_white[0, -1] = 0, 255
    for mask in (edges, enlarged, nearly_white.repeat(9, axis=1)):
        np.testing.assert_array_equal(read_mask(write(path, mask)), mask > 127)


@pytest.mark.parametrize("suffix", [".png", ".jpg"])
def test_large_areas_of_a_grey_level_are_refused_beside_soft_edges(tmp_path, suffix):
    labels = np.zeros((200, 300), np.uint8)
    cv2.circle(labels, (80, 100), 50, 100, -1, cv2.LINE_AA)
    cv2.circle(labels, (220, 100), 50, 255, -1, cv2.LINE_AA)
    assert len(np.unique(labels)) > 8
    path = tmp_path / f"mask{suffix}"
    assert cv2.imwrite(str(path), labels)
    assert "up to 255) that may be labels or soft edges" in complaint(read_mask, path)
    # One small spot of grey, as masks of photographs may have, is not an object.
    object_alone = np.where(np.arange(300) < 150, 0, labels)
    for radius, refused in ((6, False), (20, True)):
        labels = object_alone.copy()
        cv2.circle(labels, (80, 100), radius, 100, -1, cv2.LINE_AA)
        assert cv2.imwrite(str(path), labels)
        if refused:
            complaint(read_mask, path)
        else:
            assert not read_mask(path)[:, :150].any()


def test_a_small_area_of_a_grey_level_is_refused_in_a_mask_of_few_levels(tmp_path):
    labels = np.zeros((200, 300), np.uint8)
    labels[20:180, 160:280], labels[90:101, 40:51] = 255, 100
    complaint(read_mask, write(tmp_path / "mask.png", labels))


@pytest.mark.parametrize("method", [Image.Quantize.MEDIANCUT, Image.Quantize.FASTOCTREE])
def test_palettes_of_black_and_white_are_read_by_their_colours(tmp_path, method):
    picture = Image.fromarray((OBJECT * 255).astype(np.uint8)).convert("RGB")
    first = picture.quantize(2, method=method)
    first.save(tmp_path / "mask.png")
    white_first = method == Image.Quantize.MEDIANCUT
    assert first.getpalette()[:3] == [255 * white_first] * 3
    for read in (read_mask, read_binary_mask):
        np.testing.assert_array_equal(read(tmp_path / "mask.png"), OBJECT)


def test_palettes_of_colours_that_do_not_begin_with_black_are_refused(tmp_path):
    path = write_palette(tmp_path / "mask.png", OBJECT, [200, 220, 210, 0, 0, 0])
    for read in (read_mask, read_label_map, read_binary_mask):
        assert "begins with the colour (200, 220, 210); expected black" in complaint(read, path)
    image = write(tmp_path / "image.png")
    assert "expected black" in complaint(check_files, [frame_of(image, path)])
    check_files([frame_of(path, image, path)])  # an image may have any palette


def test_255_is_void_in_a_palette_beside_other_labels(tmp_path):
    labels = OBJECT.astype(np.uint8)
    labels[0] = 255
    colours = [0, 0, 0, 128, 0, 0, *[0] * 759, 224, 224, 192]
    path = write_palette(tmp_path / "mask.png", labels, colours)
    for read in (read_mask, read_binary_mask):
        np.testing.assert_array_equal(read(path), OBJECT)
    np.testing.assert_array_equal(read_mask(write_palette(path, OBJECT * 255, colours)), OBJECT)


@pytest.mark.parametrize("value", [1, 7, 127, 255])
def test_read_mask_of_any_grey_label(tmp_path, value):
    mask = read_mask(write(tmp_path / "mask.png", (OBJECT * value).astype(np.uint8)))
    assert mask.dtype == bool
    np.testing.assert_array_equal(mask, OBJECT)


def test_read_mask_of_one_bit_and_sixteen_bits(tmp_path):
    np.testing.assert_array_equal(read_mask(write(tmp_path / "one.png", OBJECT)), OBJECT)
    deep = write(tmp_path / "sixteen.png", (OBJECT * 256).astype(np.uint16))
    np.testing.assert_array_equal(read_mask(deep), OBJECT)


@pytest.mark.parametrize("transparent", [False, True])
def test_read_mask_takes_labels_not_colours_of_a_palette(tmp_path, transparent):
    # Object 1 is black, object 2 too dark to survive a conversion to grey.
    labels = OBJECT.astype(np.uint8)
    labels[6:8, 5:15] = 2
    options = {"transparency": 1} if transparent else {}
    path = write_palette(tmp_path / "mask.png", labels, [0, 0, 0, 0, 0, 0, 0, 0, 1], **options)
    with Image.open(path) as written:
        assert written.mode == "P"
    np.testing.assert_array_equal(read_mask(path), OBJECT)


@pytest.mark.parametrize("channel", [0, 1, 2])
def test_read_mask_takes_any_colour_channel(tmp_path, channel):
    rgb = np.zeros((HEIGHT, WIDTH, 3), np.uint8)
    rgb[..., channel] = OBJECT
    np.testing.assert_array_equal(read_mask(write(tmp_path / "rgb.png", rgb)), OBJECT)


def test_read_mask_does_not_count_transparency(tmp_path):
    opaque = np.full((HEIGHT, WIDTH), 255, np.uint8)
    grey = (OBJECT * 255).astype(np.uint8)
    rgba = write(tmp_path / "rgba.png", np.dstack([grey, grey, grey, opaque]))
    np.testing.assert_array_equal(read_mask(rgba), OBJECT)
    both = tmp_path / "grey_alpha.png"
    Image.merge("LA", [Image.fromarray(grey), Image.fromarray(opaque)]).save(both)
    np.testing.assert_array_equal(read_mask(both), OBJECT)


@pytest.mark.parametrize("channels", [1, 3])
def test_read_mask_cuts_lossy_masks_at_half(tmp_path, channels):
    # JPEG rings around edges, so that values near 0 and 255 appear.
    disc = np.hypot(*np.mgrid[-32:32, -32:32]) < 20
    pixels = (disc * 255).astype(np.uint8)
    path = tmp_path / "mask.jpg"
    Image.fromarray(pixels if channels == 1 else np.dstack([pixels] * 3)).save(path, quality=60)
    decoded = cv2.imread(str(path), cv2.IMREAD_GRAYSCALE)
    assert np.any((decoded > 0) != disc)
    np.testing.assert_array_equal(read_mask(path), decoded > 127)
    assert np.mean(read_mask(path) != disc) < 0.01


@pytest.mark.parametrize("colour", [(128, 0, 0), (0, 128, 0), (255, 255, 0), (0, 0, 0)])
def test_what_surrounds_objects_in_lossy_coloured_masks_is_background(tmp_path, colour):
    disc = np.hypot(*np.mgrid[-32:32, -32:32]) < 20
    Image.fromarray(disc[..., None] * np.uint8(colour)).save(tmp_path / "mask.jpg", quality=60)
    expected = disc & (max(colour) > 0)
    assert np.mean(read_mask(tmp_path / "mask.jpg") != expected) < 0.05


@pytest.mark.parametrize("high", [1, 3, 128, 255])
@pytest.mark.parametrize("mode", ["L", "LA", "P", "RGB", "RGBA", "I;16"])
def test_a_mask_of_two_values_is_binary_in_any_form(tmp_path, mode, high):
    expected = np.zeros((6, 8), bool)
    expected[2:4, 3:] = True
    labels = (expected * high).astype(np.uint16 if mode == "I;16" else np.uint8)
    picture = Image.fromarray(labels)
    if mode == "P":
        picture.putpalette([0, 0, 0, 250, 200, 20] + [7] * 762)
    elif mode not in ("L", "I;16"):
        picture = picture.convert(mode)
    picture.save(tmp_path / "mask.png")
    np.testing.assert_array_equal(read_binary_mask(tmp_path / "mask.png"), expected)
    # To be cut, grey is grey, however few values there are: a soft mask may be nearly empty.
    cut = expected if mode == "P" else expected & (high > (32767 if mode == "I;16" else 127))
    np.testing.assert_array_equal(read_binary_mask(tmp_path / "mask.png", binarize=True), cut)


def test_masks_of_one_bit_one_colour_or_nothing_are_binary(tmp_path):
    expected = np.zeros((6, 8), bool)
    expected[2:4, 3:] = True
    Image.fromarray(expected).save(tmp_path / "bit.png")
    Image.fromarray(expected[..., None] * np.uint8([250, 0, 3])).save(tmp_path / "colour.png")
    for name in ("bit", "colour"):
        np.testing.assert_array_equal(read_binary_mask(tmp_path / f"{name}.png"), expected)
    for value in (0, 9):
        Image.fromarray(np.full((6, 8), value, np.uint8)).save(tmp_path / "flat.png")
        assert (read_binary_mask(tmp_path / "flat.png") == (value > 0)).all()


@pytest.mark.parametrize(("mode", "top"), [("L", 255), ("LA", 255), ("RGB", 255), ("I;16", 65535)])
def test_grey_masks_are_cut_at_the_middle_only_if_asked_for(tmp_path, mode, top):
    values = np.array([[0, top // 2, top // 2 + 1, top]], np.uint16 if top > 255 else np.uint8)
    picture = Image.fromarray(values)
    (picture if mode in ("L", "I;16") else picture.convert(mode)).save(tmp_path / "grey.png")
    with pytest.raises(NotBinaryError, match=rf"grey\.png: 4 values from 0 to {top}"):
        read_binary_mask(tmp_path / "grey.png")
    assert read_binary_mask(tmp_path / "grey.png", binarize=True).tolist() == [
        [False, False, True, True]
    ]


def test_several_labels_or_colours_are_never_cut(tmp_path):
    labels = np.array([[0, 1, 2]], np.uint8)
    picture = Image.fromarray(labels)
    picture.putpalette([0, 0, 0, 250, 0, 0, 0, 250, 0])
    picture.save(tmp_path / "labels.png")
    Image.fromarray(np.eye(3, dtype=np.uint8)[labels] * 200).save(tmp_path / "colours.png")
    for name in ("labels", "colours"):
        with pytest.raises(NotBinaryError, match=r"\.png: 3 labels or colours"):
            read_binary_mask(tmp_path / f"{name}.png", binarize=True)


# Label maps


def test_palettes_keep_their_labels_and_void(tmp_path):
    labels = np.array([[0, 1, 40, 254, 255]], np.uint8)
    path = write_palette(tmp_path / "mask.png", labels, [0, 0, 0, *range(1, 255), *range(1, 255)])
    np.testing.assert_array_equal(read_labels(path), labels)
    assert one_object(labels).tolist() == [[False, True, True, True, False]]
    np.testing.assert_array_equal(read_mask(path), one_object(labels))


@pytest.mark.parametrize(
    ("values", "labels"),
    [
        ([0, 1, 2, 31], [0, 1, 2, 31]),
        ([0, 255, 255, 0], [0, 1, 1, 0]),
        ([0, 100, 128, 255], [0, 0, 1, 1]),
        ([255, 255, 255, 255], [1, 1, 1, 1]),
    ],
)
def test_grey_pictures_are_labels_or_one_object(tmp_path, values, labels):
    found = read_labels(write(tmp_path / "mask.png", np.array([values], np.uint8)))
    assert found.dtype == np.uint8
    assert found.tolist() == [labels]


def test_colours_are_one_object(tmp_path):
    colours = np.array([[[0, 0, 0], [200, 0, 0], [0, 0, 1]]], np.uint8)
    assert read_labels(write(tmp_path / "mask.png", colours)).tolist() == [[0, 1, 1]]


@pytest.mark.parametrize("palette", [True, False])
def test_sets_of_label_maps_have_labels_and_void_in_any_format(tmp_path, palette):
    colours = [0, 0, 0, *range(1, 255), *range(1, 255)]
    for labels in ([[0, 1, 2, 255]], [[0, 255, 0, 0]], [[0, 0, 40, 1]]):
        path = write(tmp_path / "mask.png", np.array(labels, np.uint8))
        if palette:
            write_palette(path, np.array(labels), colours)
        assert read_label_map(path).tolist() == labels
    white = np.array([[[0, 0, 0], [200, 0, 0], [255, 255, 255]]], np.uint8)
    assert read_label_map(write(tmp_path / "mask.png", white)).tolist() == [[0, 1, 255]]
    # Without it a void alone is the object.
    path = write(tmp_path / "mask.png", np.array([[0, 255]], np.uint8))
    assert read_labels(path).tolist() == [[0, 1]]
