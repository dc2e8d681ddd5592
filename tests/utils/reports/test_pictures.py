"""Result pictures: panels with labels, heat maps, and files."""

import numpy as np

from datasets.augmentation import resize
from utils.reports.pictures import (
    LABEL_HEIGHT,
    OVERLAY_COLOUR,
    PANEL_WIDTH,
    draw_iterations,
    draw_mask,
    draw_overlay,
    draw_panels,
    heat_map,
)

NAMES = [
    f"{stream} {slot} slot" for stream in ("RGB", "flow") for slot in ("foreground", "background")
]


def scene(height: int = 48, width: int = 64):
    """Image (dark blue), flow map (red), label map (left half) and true label map (all)."""
    image = np.full((height, width, 3), (0, 0, 80), np.uint8)
    flow = np.full((height, width, 3), (255, 0, 0), np.uint8)
    labels = np.zeros((height, width), np.uint8)
    labels[:, : width // 2] = 1
    return image, flow, labels, np.ones((height, width), np.uint8)


def split(panels: np.ndarray) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """Pictures and label bands of a row of panels."""
    parts = np.split(panels, panels.shape[1] // PANEL_WIDTH, axis=1)
    return [part[:-LABEL_HEIGHT] for part in parts], [part[-LABEL_HEIGHT:] for part in parts]


def test_eight_panels_of_equal_width_keep_the_images_shape():
    maps = {name: np.zeros((4, 4), np.float32) for name in NAMES}
    panels = draw_panels(*scene(), maps, 1)
    assert panels.dtype == np.uint8
    assert panels.shape == (round(PANEL_WIDTH * 48 / 64) + LABEL_HEIGHT, 8 * PANEL_WIDTH, 3)
    large = draw_panels(*scene(480, 854), maps, 1)
    assert large.shape == (round(PANEL_WIDTH * 480 / 854) + LABEL_HEIGHT, 8 * PANEL_WIDTH, 3)


def test_panels_are_image_flow_prediction_truth_and_the_maps_in_order():
    image, flow, prediction, truth = scene()
    maps = {name: np.full((4, 4), i / 4) for i, name in enumerate(NAMES)}
    pictures, _ = split(draw_panels(image, flow, prediction, truth, maps, 1))
    assert (pictures[0] == (0, 0, 80)).all()
    assert (pictures[1] == (255, 0, 0)).all()
    assert (pictures[2][:, : PANEL_WIDTH // 2 - 4] == 255).all()
    assert (pictures[2][:, PANEL_WIDTH // 2 + 4 :] == 0).all()
    assert (pictures[3] == 255).all()
    for picture, values in zip(pictures[4:], maps.values()):
        assert np.abs(picture.astype(int) - heat_map(values, image)[0, 0]).max() <= 1


def test_stills_have_no_flow_panel_and_frames_without_annotation_a_grey_one():
    image, _, prediction, truth = scene()
    pictures, _ = split(draw_panels(image, None, prediction, truth, {}, 1))
    assert len(pictures) == 3
    assert (pictures[1][:, :100] == 255).all() and (pictures[1][:, -100:] == 0).all()
    pictures, _ = split(draw_panels(image, None, prediction, None, {}, 1))
    assert (pictures[2] == 128).all()


def test_every_panel_has_its_own_label_that_fits():
    maps = {name: np.zeros((4, 4)) for name in NAMES}
    _, bands = split(draw_panels(*scene(), maps, 1))
    assert len(bands) == 8
    for band in bands:
        dark = band.max(axis=2) < 128
        assert dark.sum() > 50
        assert (band[:, -4:] == 255).all() and (band[[0, -1]] == 255).all()
    assert len({band.tobytes() for band in bands}) == 8
    # The letters A to H alone differ too: the rest of the label starts further right.
    assert len({band[:, :16].tobytes() for band in bands}) == 8


def test_heat_maps_go_from_blue_to_red_half_transparent_over_the_image():
    values = np.array([[0.0, 0.5, 1.0]])
    black = np.zeros((1, 3, 3), np.uint8)
    low, middle, high = heat_map(values, black)[0].astype(int)
    assert low.tolist() == [0, 0, 64]
    assert high.tolist() == [64, 0, 0]
    assert middle.argmax() == 1 and middle[1] >= 120
    over = heat_map(values, black + 200)[0].astype(int)
    np.testing.assert_allclose(over - [low, middle, high], 100, atol=1)


def test_heat_maps_are_enlarged_to_the_image_and_clipped():
    image = np.zeros((40, 60, 3), np.uint8)
    values = np.array([[0.0, 1.0], [1.0, 0.0]])
    large = heat_map(values, image)
    assert large.shape == image.shape
    blue, red = [0, 0, 64], [64, 0, 0]
    corners = [large[y, x].tolist() for y in (0, -1) for x in (0, -1)]
    assert corners == [blue, red, red, blue]
    np.testing.assert_array_equal(heat_map(9 * values - 4, image), large)


def test_an_overlay_tints_and_outlines_the_object_and_nothing_else():
    image = np.random.default_rng(0).integers(0, 256, (40, 60, 3), dtype=np.uint8)
    before = image.copy()
    labels = np.zeros((40, 60), np.uint8)
    labels[10:30, 30:] = 1
    overlay, mask = draw_overlay(image, labels, 1), labels > 0
    np.testing.assert_array_equal(image, before)
    np.testing.assert_array_equal(overlay[~mask], image[~mask])
    inner = overlay[11:29, 31:].astype(int)
    assert np.abs(inner - (image[11:29, 31:] + np.array(OVERLAY_COLOUR)) / 2).max() <= 0.5
    outline = np.concatenate([overlay[10, 30:], overlay[29, 30:], overlay[10:30, 30]])
    assert (outline == OVERLAY_COLOUR).all()
    np.testing.assert_array_equal(draw_overlay(image, labels * 0, 1), image)


def test_void_is_drawn_as_background():
    image, flow, labels, truth = scene()
    image[::2] = 90
    void = labels.copy()
    void[:, -3:] = 255
    expected = draw_panels(image, flow, labels, truth, {}, 1)
    np.testing.assert_array_equal(draw_panels(image, flow, void, truth, {}, 1), expected)
    np.testing.assert_array_equal(draw_overlay(image, void, 1), draw_overlay(image, labels, 1))


def test_several_objects_have_the_colours_of_the_davis_palette():
    expected = {
        1: (128, 0, 0),
        2: (0, 128, 0),
        7: (128, 128, 128),
        8: (64, 0, 0),
        9: (191, 0, 0),
        15: (191, 128, 128),
        21: (128, 64, 128),
        22: (0, 0, 0),  # the video has 21 objects
        255: (0, 0, 0),
    }
    for label, colour in expected.items():
        mask = draw_mask(np.full((30, 40), label, np.uint8), num_objects=21)
        assert mask.shape == (180, PANEL_WIDTH, 3) and (mask == colour).all()
    panels = draw_panels(*scene()[:3], np.full((48, 64), 2, np.uint8), {}, num_objects=2)
    pictures, _ = split(panels)
    assert (pictures[2][:, :100] == (128, 0, 0)).all() and (pictures[3] == (0, 128, 0)).all()


def test_objects_that_touch_are_tinted_and_outlined_one_by_one():
    image = np.full((20, 30, 3), 200, np.uint8)
    labels = np.zeros((20, 30), np.uint8)
    labels[5:15, :15], labels[5:15, 15:25], labels[5:15, 25:] = 1, 2, 255
    overlay = draw_overlay(image, labels, num_objects=2)
    assert (overlay[:5] == 200).all() and (overlay[:, 25:] == 200).all()
    for colour, left, right in (((128, 0, 0), 0, 15), ((0, 128, 0), 15, 25)):
        assert (overlay[[5, 14], left:right] == colour).all()
        assert (overlay[5:15, right - 1] == colour).all()
        tint = (np.array(colour) + 200) / 2
        assert (overlay[6:14, left + 1 : right - 1] == tint).all()
    assert (overlay[5:15, 15] == (0, 128, 0)).all()
    assert (overlay[6:14, 0] == (164, 100, 100)).all()  # the picture's edge is no outline


def test_iterations_are_shown_from_left_to_right_with_a_row_for_each_map():
    image = scene()[0]
    maps = [
        {
            name: np.full((6, 8), value + t / 10, np.float32)
            for name, value in (("a", 0), ("b", 0.5))
        }
        for t in range(3)
    ]
    picture = draw_iterations(image, maps)
    height = round(PANEL_WIDTH * image.shape[0] / image.shape[1])
    assert picture.shape == (2 * (height + LABEL_HEIGHT), 3 * PANEL_WIDTH, 3)
    for row, name in enumerate("ab"):
        for t in range(3):
            top, left = row * (height + LABEL_HEIGHT), t * PANEL_WIDTH
            shown = picture[top : top + height, left : left + PANEL_WIDTH]
            expected = heat_map(maps[t][name], resize(image, height, PANEL_WIDTH))
            np.testing.assert_array_equal(shown, expected)
