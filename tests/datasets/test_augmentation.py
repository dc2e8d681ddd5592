"""Random changes for training: geometry, colours, and the motion that flow maps show."""

import cv2
import numpy as np
import pytest
from PIL import Image, ImageEnhance

from datasets.augmentation import (
    Augmentation,
    Geometry,
    change_colours,
    change_sharpness,
    resize,
    whole_frame,
)
from datasets.flow.colour_wheel import flow_to_picture
from tests.readers import picture_to_flow

OFF = {
    "flip_probability": 0.0,
    "crop_scale": 1.0,
    "rotation_probability": 0.0,
    "rotation_degrees": 0.0,
    "brightness": 0.0,
    "contrast": 0.0,
    "saturation": 0.0,
    "sharpness": 0.0,
    "recolour_flow": True,
    "flow_turn": 0.0,
}
SIZE = 64
RED = (255, 0, 0)  # motion to the right


def only(**changes) -> Augmentation:
    """An augmentation that does nothing but what is named."""
    return Augmentation(**{**OFF, **changes})


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def noise(height: int = SIZE, width: int = SIZE) -> np.ndarray:
    return rng(7).integers(0, 256, (height, width, 3), dtype=np.uint8)


def marked(height: int, width: int, x: int, y: int, half: int = 4):
    """Image, flow map and labels with a square marker centred at (x, y), nothing elsewhere."""
    square = np.s_[y - half : y + half + 1, x - half : x + half + 1]
    image = np.zeros((height, width, 3), np.uint8)
    flow = np.full((height, width, 3), 255, np.uint8)
    labels = np.zeros((height, width), np.uint8)
    image[square], flow[square], labels[square] = 255, RED, 1
    return image, flow, labels


def centre(weights: np.ndarray) -> np.ndarray:
    """Centre of gravity (x, y) of a map."""
    y, x = np.indices(weights.shape)
    return np.array([(x * weights).sum(), (y * weights).sum()]) / weights.sum()


def smooth_field(size: int = SIZE) -> np.ndarray:
    """A random smooth field whose largest vector has length 1."""
    field = cv2.GaussianBlur(rng(1).standard_normal((size, size, 2)), (0, 0), 8)
    return field / np.linalg.norm(field, axis=2).max()


def expansion(size: int = SIZE) -> np.ndarray:
    """Motion away from the centre, of length 1 at half the width."""
    axis = np.linspace(-1, 1, size)
    return np.stack(np.meshgrid(axis, axis), axis=2) / np.sqrt(2)


def read_flow(augmentation: Augmentation, seed: int, flow: np.ndarray) -> np.ndarray:
    """The motion that a flow picture shows after augmentation."""
    return picture_to_flow(augmentation(rng(seed), SIZE, noise(), flow)[1])


@pytest.mark.parametrize("height, width", [(SIZE, SIZE), (100, 160), (40, 50), (48, 90)])
def test_with_everything_off_it_only_resizes(height, width):
    image, flow = noise(height, width), noise(height, width)[::-1].copy()
    labels = (image[..., 0] > 100).astype(np.uint8)
    result = only()(rng(), SIZE, image, flow, labels)
    shrinks = height >= SIZE and width >= SIZE
    method = cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR
    np.testing.assert_array_equal(result[0], cv2.resize(image, (SIZE, SIZE), interpolation=method))
    np.testing.assert_array_equal(result[1], cv2.resize(flow, (SIZE, SIZE), interpolation=method))
    share = cv2.resize(labels.astype(np.float64), (SIZE, SIZE), interpolation=method)
    clear = np.abs(share - 0.5) > 0.01
    assert result[2].dtype == np.uint8
    np.testing.assert_array_equal(result[2][clear], share[clear] > 0.5)


def test_resizing_to_the_same_size_changes_nothing_and_shrinking_averages():
    image = noise()
    np.testing.assert_array_equal(resize(image, SIZE, SIZE), image)
    blocks = image.reshape(SIZE // 2, 2, SIZE // 2, 2, 3).mean(axis=(1, 3))
    assert np.abs(resize(image, SIZE // 2, SIZE // 2) - blocks).max() <= 0.5


@pytest.mark.parametrize("flip", [False, True])
@pytest.mark.parametrize("height, width", [(100, 161), (480, 854), (40, 50)])
def test_a_whole_frame_is_resized_in_one_step_whatever_its_scale(height, width, flip):
    image = noise(height, width)
    shrinks = height >= SIZE and width >= SIZE
    method = cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR
    expected = cv2.resize(image, (SIZE, SIZE), interpolation=method)
    expected = expected[:, ::-1] if flip else expected
    np.testing.assert_array_equal(whole_frame(SIZE, flip).apply(image), expected)


def box_average(picture: np.ndarray, rows, columns) -> np.ndarray:
    """Means (SIZE, SIZE, 3) over equal parts of a crop, its edges given in pixels (start, end)."""
    sums = np.zeros((picture.shape[0] + 1, picture.shape[1] + 1, 3))
    sums[1:, 1:] = picture.astype(float).cumsum(axis=0).cumsum(axis=1)
    for axis, (start, end) in ((0, rows), (1, columns)):
        # The sum up to a place within a pixel lies between the sums up to its two edges.
        places = np.linspace(start, end, SIZE + 1)
        low = np.floor(places).astype(int)
        high = np.minimum(low + 1, sums.shape[axis] - 1)
        share = np.expand_dims(places - low, (1, 2) if axis == 0 else (0, 2))
        sums = sums.take(low, axis) * (1 - share) + sums.take(high, axis) * share
        sums = np.diff(sums, axis=axis) * SIZE / (end - start)
    return sums


@pytest.mark.parametrize("angle", [0.0, 1e-9])
@pytest.mark.parametrize(
    "height, width", [(83, 97), (110, 171), (129, 207), (301, 533), (701, 1001)]
)
def test_a_crop_is_what_area_averages_make_of_a_smooth_picture(angle, height, width):
    shares, corner = (0.75, 0.875), (0.125, 0.0625)
    smooth = cv2.GaussianBlur(noise(height, width), (0, 0), 3 * height / SIZE)
    smooth = cv2.normalize(smooth, None, 0, 255, cv2.NORM_MINMAX)
    rows, columns = (
        (start * side, (start + share) * side)
        for start, share, side in zip(corner[::-1], shares[::-1], (height, width))
    )
    result = Geometry(SIZE, False, shares, corner, angle).apply(smooth)
    apart = result - box_average(smooth, rows, columns)
    # A level or so is what interpolation costs. Without rotation the crop's edges are rounded to
    # pixels, which shifts the picture by up to half a pixel.
    slope = np.abs(np.diff(result.astype(float), axis=1)).mean()
    assert slope > 4
    assert np.abs(apart).mean() < (1.5 if angle else 1 + slope / 2)


@pytest.mark.parametrize("angle", [0.0, 10.0])
@pytest.mark.parametrize("scale", [1.6, 2.0, 2.07, 2.9, 3.3, 5.0, 9.1])
def test_a_crop_that_shrinks_averages_whole_areas(angle, scale):
    geometry = Geometry(SIZE, False, (0.8, 0.8), (0.1, 0.1), angle)
    side = round(SIZE * scale / 0.8)
    image = noise(side, side)
    # The mean of n independent pixels varies by 1 / sqrt(n) as much as they do.
    assert geometry.apply(image).std() < 1.03 * image.std() / scale
    stripes = np.tile(np.uint8([0, 255])[:, None, None], (side // 2, side, 3))
    by_area = resize(stripes, round(SIZE / 0.8), round(SIZE / 0.8))
    assert geometry.apply(stripes).std() < 1.05 * by_area.std() + 1


@pytest.mark.parametrize("height, width", [(96, 120), (203, 305), (401, 701), (40, 50)])
def test_image_flow_and_labels_get_the_same_geometry(height, width):
    augmentation = only(
        flip_probability=0.5, crop_scale=0.7, rotation_probability=0.7, rotation_degrees=30
    )
    place = {"x": 5 * width // 12, "y": 5 * height // 12, "half": height // 20}
    image, flow, labels = marked(height, width, **place)
    places = []
    for seed in range(40):
        results = augmentation(rng(seed), SIZE, image, flow, labels)
        shades = [results[0].mean(axis=2), 255.0 - results[1].min(axis=2), 255.0 * results[2]]
        found = [centre(shade) for shade in shades]
        np.testing.assert_allclose(found[1], found[0], atol=0.2)
        np.testing.assert_allclose(found[2], found[0], atol=0.5)
        places.append(found[0])
    assert np.ptp(places, axis=0).min() > 10


@pytest.mark.parametrize("flip", [False, True])
@pytest.mark.parametrize("zoom", [1, 2, 4.37])
@pytest.mark.parametrize("angle", [0.0, 17.0, -40.0])
@pytest.mark.parametrize("shares, corner", [((1, 1), (0, 0)), ((0.8, 0.6), (0.15, 0.3))])
def test_crop_then_mirror_then_clockwise_rotation_moves_a_point_as_calculated(
    flip, angle, shares, corner, zoom
):
    geometry = Geometry(SIZE, flip, shares, corner, angle)
    height, width = round(100 * zoom), round(140 * zoom)
    for x, y in np.round(np.multiply(((60, 50), (75, 60), (66, 45)), zoom)).astype(int):
        picture = marked(height, width, x, y, half=round(4 * zoom))[0]
        # Of the crop's width and height, from its centre; y down, so this turns clockwise.
        across = ((x + 0.5) / width - corner[0]) / shares[0] - 0.5
        down = ((y + 0.5) / height - corner[1]) / shares[1] - 0.5
        across = -across if flip else across
        turn = np.deg2rad(angle)
        turned = (
            across * np.cos(turn) - down * np.sin(turn),
            across * np.sin(turn) + down * np.cos(turn),
        )
        expected = (np.array(turned) + 0.5) * SIZE - 0.5
        # The crop is rounded to whole pixels, which may be half a pixel either way.
        np.testing.assert_allclose(centre(geometry.apply(picture)[..., 0]), expected, atol=0.8)


def drawn_labels(height: int, width: int, labels: tuple[int, ...]) -> np.ndarray:
    """Smooth regions, one of each label, on background; they touch one another."""
    fields = rng(3).standard_normal((len(labels) + 1, height, width)).astype(np.float32)
    fields = [cv2.GaussianBlur(field, (0, 0), height / 12) for field in fields]
    return np.array([0, *labels], np.uint8)[np.argmax(fields, axis=0)]


GEOMETRIES = [
    whole_frame(SIZE),
    whole_frame(SIZE, flip=True),
    Geometry(SIZE, True, (0.8, 0.7), (0.1, 0.2), 0.0),
    Geometry(SIZE, False, (0.8, 0.9), (0.15, 0.05), 14.0),
]


@pytest.mark.parametrize("geometry", GEOMETRIES)
@pytest.mark.parametrize("height, width", [(SIZE, SIZE), (150, 211), (40, 50)])
@pytest.mark.parametrize("label", [1, 7, 255])
def test_one_label_is_where_its_resized_picture_is_above_127(label, height, width, geometry):
    labels = drawn_labels(height, width, (label,))
    expected = np.where(geometry.apply(np.where(labels, 255, 0).astype(np.uint8)) > 127, label, 0)
    result = geometry.apply_labels(labels)
    assert result.dtype == np.uint8
    np.testing.assert_array_equal(result, expected)
    assert 0.1 < (result > 0).mean() < 0.9


@pytest.mark.parametrize("geometry", GEOMETRIES)
@pytest.mark.parametrize("height, width", [(150, 211), (40, 50)])
def test_of_several_labels_each_pixel_gets_the_one_it_has_most_of(height, width, geometry):
    """255, void, is carried like any other; the smallest label wins where two have the same."""
    labels = drawn_labels(height, width, (1, 2, 5, 255))
    shares = {
        label: geometry.apply(np.where(labels == label, 255, 0).astype(np.uint8))
        for label in (0, 1, 2, 5, 255)
    }
    result = geometry.apply_labels(labels)
    assert result.dtype == np.uint8 and result.shape == (SIZE, SIZE)
    for y in range(SIZE):
        for x in range(SIZE):
            assert result[y, x] == max(shares, key=lambda label: shares[label][y, x])
    assert set(np.unique(result)) == {0, 1, 2, 5, 255}


def test_labels_shrunk_by_a_whole_factor_are_their_blocks_most_frequent_ones():
    labels = drawn_labels(3 * SIZE, 3 * SIZE, (1, 2, 3, 255))
    blocks = labels.reshape(SIZE, 3, SIZE, 3).swapaxes(1, 2).reshape(SIZE, SIZE, 9)
    counts = np.stack([(blocks == label).sum(axis=2) for label in (0, 1, 2, 3, 255)])
    expected = np.array([0, 1, 2, 3, 255])[counts.argmax(axis=0)]
    np.testing.assert_array_equal(whole_frame(SIZE).apply_labels(labels), expected)


def test_background_alone_stays_background():
    for geometry in GEOMETRIES:
        assert not geometry.apply_labels(np.zeros((50, 70), np.uint8)).any()


def test_an_augmentation_in_two_does_each_change_once():
    whole = Augmentation(sharpness=1.0, flow_turn=20, recolour_flow=False)
    where, rest = whole.in_two()
    assert (where.crop_scale, rest.crop_scale) == (whole.crop_scale, 1)
    assert where.rotation_probability == whole.rotation_probability
    assert rest.rotation_probability == 0
    assert (where.flip_probability, rest.flip_probability) == (whole.flip_probability, 0)
    assert where.recolour_flow is rest.recolour_flow is False
    others = ("brightness", "contrast", "saturation", "sharpness", "flow_turn")
    for name in others:
        assert getattr(where, name) == 0 and getattr(rest, name) == getattr(whole, name)


def test_flip_alone_mirrors_exactly():
    image, flow = noise(), noise()[:, :, ::-1].copy()
    labels = (image[..., 0] > 100).astype(np.uint8)
    augmentation = only(flip_probability=1.0, recolour_flow=False)
    flipped = augmentation(rng(), SIZE, image, flow, labels)
    for result, original in zip(flipped, (image, flow, labels)):
        np.testing.assert_array_equal(result, original[:, ::-1])


def test_crop_takes_a_random_part_of_each_side_between_the_scale_and_all():
    ramp = np.zeros((200, 200, 3), np.float32)
    ramp[..., 0] = np.arange(200)
    ramp[..., 1] = np.arange(200)[:, None]
    augmentation = only(crop_scale=0.5)
    shares, starts = [], []
    for seed in range(200):
        picture = augmentation(rng(seed), SIZE, ramp.astype(np.uint8))[0].astype(float)
        across, down = picture[SIZE // 2, :, 0], picture[:, SIZE // 2, 1]
        shares.append([(side[-1] - side[0]) / (SIZE - 1) * SIZE / 200 for side in (across, down)])
        starts.append([across[0], down[0]])
    shares = np.array(shares)
    assert shares.min() > 0.49 and shares.min() < 0.55
    assert shares.max() < 1.01 and shares.max() > 0.95
    assert abs(np.corrcoef(shares.T)[0, 1]) < 0.3
    assert np.ptp(starts, axis=0).min() > 60


def test_flips_and_rotations_are_as_frequent_and_as_large_as_set():
    image = marked(SIZE, SIZE, x=48, y=32)[0]
    augmentation = only(flip_probability=0.3, rotation_probability=0.6, rotation_degrees=20)
    flips, angles = [], []
    for seed in range(400):
        offset = centre(augmentation(rng(seed), SIZE, image)[0][..., 0]) - (SIZE - 1) / 2
        flips.append(offset[0] < 0)
        # The marker starts at 2 degrees (its centre is half a pixel below the picture's).
        start = np.rad2deg(np.arctan2(0.5, 16.5))
        angles.append(np.rad2deg(np.arctan2(offset[1], abs(offset[0]))) - start)
    angles = np.array(angles)
    assert 0.22 < np.mean(flips) < 0.38
    assert 0.52 < np.mean(np.abs(angles) > 0.3) < 0.68
    assert 17 < angles.max() < 21 and -21 < angles.min() < -17


def test_a_mirrored_flow_map_shows_the_mirrored_motion():
    field = smooth_field()
    mirrored = field[:, ::-1] * [-1, 1]
    picture = only(flip_probability=1.0)(rng(), SIZE, noise(), flow_to_picture(field))[1]
    # The wheel's two ends meet at motion to the right, where one level decides the colour.
    clear = np.abs(np.arctan2(mirrored[..., 1], mirrored[..., 0])) > 0.1
    apart = np.abs(picture.astype(int) - flow_to_picture(mirrored))[clear]
    assert apart.max() <= 6
    right = flow_to_picture(np.tile([1.0, 0.0], (SIZE, SIZE, 1)))
    left = flow_to_picture(np.tile([-1.0, 0.0], (SIZE, SIZE, 1)))
    seen = only(flip_probability=1.0)(rng(), SIZE, noise(), right)[1]
    assert np.abs(seen.astype(int) - left).max() <= 2


def test_without_recolouring_a_flow_map_keeps_its_colours():
    right = np.tile(np.uint8(RED), (SIZE, SIZE, 1))
    augmentation = only(
        flip_probability=1.0, rotation_probability=1.0, rotation_degrees=90, recolour_flow=False
    )
    for seed in range(5):
        assert (augmentation(rng(seed), SIZE, noise(), right)[1] == RED).all()


def test_motion_turns_with_the_picture():
    """Motion away from the centre looks the same however picture and motion are turned as one."""
    field = expansion()
    inside = np.linalg.norm(field, axis=2) < 0.6  # no corner is turned into here
    geometry = {"flip_probability": 0.5, "rotation_probability": 1.0, "rotation_degrees": 90}
    errors = {True: [], False: []}
    for recolour, found in errors.items():
        augmentation = only(recolour_flow=recolour, **geometry)
        for seed in range(8):
            read = read_flow(augmentation, seed, flow_to_picture(field))
            found.append(np.linalg.norm(read - field, axis=2)[inside].max())
    assert max(errors[True]) < 0.06
    assert min(errors[False]) > 0.06


def test_all_directions_are_turned_by_one_random_angle_within_the_limit():
    field = smooth_field()
    moving = np.linalg.norm(field, axis=2) > 0.3
    turns = []
    for seed in range(30):
        read = read_flow(only(flow_turn=40), seed, flow_to_picture(field))
        quotient = (read @ [1, 1j])[moving] / (field @ [1, 1j])[moving]
        np.testing.assert_allclose(np.abs(quotient), 1, atol=0.05)
        angles = np.rad2deg(np.angle(quotient))
        assert np.ptp(angles) < 6
        turns.append(angles.mean())
    assert -41 < min(turns) < -25 and 25 < max(turns) < 41


def test_changes_of_motion_leave_image_and_labels_as_they_are():
    image = noise()
    labels = (image[..., 0] > 100).astype(np.uint8)
    plain = Augmentation()(rng(5), SIZE, image, flow_to_picture(smooth_field()), labels)
    moved = Augmentation(flow_turn=90, recolour_flow=False)(
        rng(5), SIZE, image, flow_to_picture(smooth_field()), labels
    )
    np.testing.assert_array_equal(moved[0], plain[0])
    np.testing.assert_array_equal(moved[2], plain[2])
    assert (moved[1] != plain[1]).any()


def test_image_and_labels_do_not_depend_on_there_being_a_flow_map():
    image = noise(80, 90)
    labels = (image[..., 0] > 100).astype(np.uint8)
    augmentation = Augmentation(flow_turn=90)
    with_flow, without = rng(3), rng(3)
    first = augmentation(with_flow, SIZE, image, image, labels)
    second = augmentation(without, SIZE, image, None, labels)
    assert second[1] is None
    np.testing.assert_array_equal(first[0], second[0])
    np.testing.assert_array_equal(first[2], second[2])
    assert augmentation(rng(3), SIZE, image, image)[2] is None
    assert with_flow.random() == without.random()


def test_the_same_generator_gives_the_same_result_and_leaves_its_input_alone():
    image, flow = noise(80, 90), noise(80, 90)[::-1].copy()
    labels = (image[..., 0] > 100).astype(np.uint8)
    given = [array.copy() for array in (image, flow, labels)]
    augmentation = Augmentation(flow_turn=90)
    first, second, other = (augmentation(rng(s), SIZE, image, flow, labels) for s in (1, 1, 2))
    for a, b, c in zip(first, second, other):
        np.testing.assert_array_equal(a, b)
        assert (a != c).any()
        assert a.shape[:2] == (SIZE, SIZE)
    for array, before in zip((image, flow, labels), given):
        np.testing.assert_array_equal(array, before)


@pytest.mark.parametrize("factors", [(1, 1, 1), (0.5, 1.5, 2), (1.4, 0.6, 0), (1.5, 1.5, 0.3)])
def test_colours_against_the_formulas_one_after_the_other(factors):
    brightness, contrast, saturation = factors
    image = noise(20, 30)
    weights = np.array([0.299, 0.587, 0.114])
    picture = image.astype(np.float64) * brightness
    mean = (picture * weights).sum(axis=2).mean()
    picture = mean + contrast * (picture - mean)
    grey = (picture * weights).sum(axis=2, keepdims=True)
    picture = grey + saturation * (picture - grey)
    result = change_colours(image, *factors)
    assert result.dtype == np.uint8
    # Rounded to one of the two nearest grey levels.
    assert np.abs(result - picture.clip(0, 255)).max() < 0.9
    assert np.abs(result - picture.clip(0, 255)).mean() < 0.27
    if factors == (1, 1, 1):
        np.testing.assert_array_equal(result, image)


@pytest.mark.parametrize("factor", [0, 0.4, 1, 1.7, 3])
def test_sharpness_against_pillow(factor):
    image = noise(40, 50)
    expected = np.asarray(ImageEnhance.Sharpness(Image.fromarray(image)).enhance(factor))
    result = change_sharpness(image, factor)
    inside = np.s_[1:-1, 1:-1]  # Pillow leaves the edge as it is
    # Pillow rounds the blurred image before it extrapolates.
    bound = 1 + abs(factor - 1)
    assert np.abs(result[inside].astype(int) - expected[inside]).max() <= bound
    if factor == 1:
        np.testing.assert_array_equal(result, image)


def test_sharpness_is_drawn_from_0_or_1_less_its_strength_to_1_more_and_changes_nothing_else():
    image = noise(96, 120)
    labels, flow = (image[..., 0] > 100).astype(np.uint8), flow_to_picture(smooth_field())
    flow = cv2.resize(flow, (120, 96))
    step = np.zeros((SIZE, SIZE, 3), np.uint8)
    step[:, : SIZE // 2], step[:, SIZE // 2 :] = 100, 152
    for strength, lowest, highest in ((0.5, 0.5, 1.5), (2.0, 0.0, 3.0)):
        found = []
        for seed in range(100):
            picture = only(sharpness=strength)(rng(seed), SIZE, step)[0]
            # The edge's pixels blend in 3 of 13 parts of the other side: 52 * 3 / 13 = 12 levels.
            found.append(1 + (100 - picture[9, SIZE // 2 - 1, 0].astype(float)) / 12)
        assert abs(min(found) - lowest) < 0.15 and abs(max(found) - highest) < 0.15
        assert abs(np.mean(found) - (lowest + highest) / 2) < 0.25
        settings = {"flow_turn": 40}
        first, second = rng(7), rng(7)
        plain = Augmentation(**settings)(first, SIZE, image, flow, labels)
        sharp = Augmentation(**settings, sharpness=strength)(second, SIZE, image, flow, labels)
        assert (sharp[0] != plain[0]).any()
        np.testing.assert_array_equal(sharp[1], plain[1])
        np.testing.assert_array_equal(sharp[2], plain[2])
        assert first.random() == second.random()


def test_colour_strengths_bound_the_random_factors():
    grey = np.full((8, 8, 3), 100, np.uint8)
    halves = np.repeat(np.uint8([[[50] * 3, [150] * 3]]), 8, axis=0).repeat(4, axis=1)
    red = np.tile(np.uint8([150, 100, 100]), (8, 8, 1))
    values = {"brightness": [], "contrast": [], "saturation": []}
    for seed in range(200):
        values["brightness"].append(only(brightness=0.5)(rng(seed), 8, grey)[0][0, 0, 0] / 100)
        picture = only(contrast=0.5)(rng(seed), 8, halves)[0].astype(int)
        values["contrast"].append((picture[0, -1, 0] - picture[0, 0, 0]) / 100)
        picture = only(saturation=0.5)(rng(seed), 8, red)[0].astype(int)
        values["saturation"].append((picture[0, 0, 0] - picture[0, 0, 1]) / 50)
    for factors in values.values():
        assert 0.47 < min(factors) < 0.55
        assert 1.45 < max(factors) < 1.53
    assert not np.allclose(values["brightness"], values["contrast"], atol=0.1)


def test_colours_change_the_image_alone():
    image, labels = noise(), (noise()[..., 0] > 100).astype(np.uint8)
    strong = only(brightness=0.5, contrast=0.5, saturation=1.0)(rng(), SIZE, image, image, labels)
    assert (strong[0] != image).mean() > 0.5
    np.testing.assert_array_equal(strong[1], image)
    np.testing.assert_array_equal(strong[2], labels)
