"""Tests of datasets/flow/colour_wheel.py."""

import cv2
import numpy as np
import pytest
import torch
from torchvision.utils import flow_to_image

from datasets.flow.colour_wheel import change_motion, flow_to_picture
from tests.readers import picture_to_flow


def disc(size: int = 101) -> np.ndarray:
    """Flow map with every direction and length: (x, y) of each pixel, 0 outside the unit disc."""
    axis = np.linspace(-1, 1, size, dtype=np.float32)
    flow = np.stack(np.meshgrid(axis, axis), axis=2)
    flow[np.hypot(flow[..., 0], flow[..., 1]) > 1] = 0
    return flow


def lengths(flow: np.ndarray) -> np.ndarray:
    """Lengths of a field's vectors."""
    return np.linalg.norm(flow, axis=-1)


def angles_between(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Unsigned angles between two fields of vectors, in degrees."""
    first, second = (field.astype(np.float64) @ [1, 1j] for field in (first, second))
    return np.abs(np.degrees(np.angle(first * second.conj())))


def grey_levels_apart(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Differences of two pictures, per channel."""
    return np.abs(first.astype(int) - second.astype(int))


@pytest.mark.parametrize("scale", [0.01, 1.0, 40.0])
def test_drawing_agrees_with_torchvision(scale: float) -> None:
    noise = np.random.default_rng(0).standard_normal((200, 240, 2))
    for flow in (scale * noise.astype(np.float32), scale * disc()):
        expected = flow_to_image(torch.from_numpy(flow).permute(2, 0, 1)).permute(1, 2, 0).numpy()
        picture = flow_to_picture(flow)
        assert picture.dtype == np.uint8
        assert picture.shape == (*flow.shape[:2], 3)
        assert grey_levels_apart(picture, expected).max() <= 1


def test_no_motion_is_white_and_the_largest_motion_a_full_colour() -> None:
    assert (flow_to_picture(np.zeros((5, 7, 2), np.float32)) == 255).all()
    right = np.zeros((5, 7, 2), np.float32)
    right[2, 3] = (12.5, 0)
    picture = flow_to_picture(right)
    assert picture[2, 3].tolist() == [255, 0, 0]
    assert (np.delete(picture.reshape(-1, 3), 2 * 7 + 3, axis=0) == 255).all()


def test_drawing_takes_views_and_other_float_types() -> None:
    flow = disc(32)
    mirrored = flow_to_picture(flow[:, ::-1].astype(np.float64))
    np.testing.assert_array_equal(mirrored, flow_to_picture(flow)[:, ::-1])


def test_unchanged_motion_is_the_same_picture() -> None:
    picture = flow_to_picture(disc())
    assert grey_levels_apart(change_motion(picture, np.eye(2)), picture).max() <= 1


@pytest.mark.parametrize(
    "linear",
    [np.diag([-1, 1]), np.diag([1, -1]), np.array([[0, -1], [1, 0]]), 0.6 * np.eye(2)],
    ids=["mirrored", "upside down", "quarter turn", "slower"],
)
def test_change_multiplies_every_vector(linear: np.ndarray) -> None:
    flow = disc()
    read = picture_to_flow(change_motion(flow_to_picture(flow), linear))
    assert lengths(read - flow @ linear.T).max() < 0.015


def test_quarter_turn_shows_motion_to_the_right_as_motion_down() -> None:
    right = np.full((4, 4, 2), (1, 0), np.float32)
    turned = change_motion(flow_to_picture(right), np.array([[0, -1], [1, 0]]))
    down = flow_to_picture(np.full((4, 4, 2), (0, 1), np.float32))
    assert grey_levels_apart(turned, down).max() <= 2


def test_mirrored_flow_picture_is_the_picture_of_the_mirrored_motion() -> None:
    rng = np.random.default_rng(1)
    flow = cv2.GaussianBlur(rng.standard_normal((120, 160, 2)).astype(np.float32), (0, 0), 8)
    mirrored = np.ascontiguousarray(flow[:, ::-1]) * np.float32([-1, 1])
    picture = change_motion(flow_to_picture(flow)[:, ::-1], np.diag([-1, 1]))
    # The wheel's ends meet with a jump at motion to the right, where one level decides the side.
    angle = np.degrees(np.arctan2(mirrored[..., 1], mirrored[..., 0]))
    apart = grey_levels_apart(picture, flow_to_picture(mirrored))[np.abs(angle) > 5]
    assert apart.max() <= 6
    assert apart.mean() < 1


def turn(degrees: float) -> np.ndarray:
    """Matrix of a rotation."""
    cosine, sine = np.cos(np.radians(degrees)), np.sin(np.radians(degrees))
    return np.array([[cosine, -sine], [sine, cosine]])


@pytest.mark.parametrize(
    "linear",
    [np.diag([-1, 1]), turn(11), turn(-171) @ np.diag([-1, 1]), np.eye(2), 0.3 * turn(50)],
    ids=["mirrored", "turned", "both", "unchanged", "slower"],
)
@pytest.mark.parametrize("noise", [0, 30, 255])
def test_change_draws_what_reading_multiplying_and_drawing_give(linear, noise) -> None:
    rng = np.random.default_rng(3)
    picture = flow_to_picture(disc(200)).astype(int)
    picture = (picture + rng.integers(-noise, noise + 1, picture.shape)).clip(0, 255)
    picture = picture.astype(np.uint8)
    flow = picture_to_flow(picture) @ linear.T
    # Pictures are drawn relative to the largest motion: one pixel of length 1 is added to each.
    expected = flow_to_picture(np.concatenate([flow, np.ones_like(flow[:1]) * (0, 1)]))[:-1]
    apart = grey_levels_apart(change_motion(picture, linear), expected).max(axis=2)
    # The wheel's ends meet with a jump at motion to the right, where rounding decides the side.
    angle = np.degrees(np.arctan2(flow[..., 1], flow[..., 0]))
    seam = (np.abs(angle) < 0.5) & (lengths(flow) > 0)
    assert apart[~seam].max() <= 2
    assert seam.mean() < 0.2


def test_motion_that_is_not_finite_is_refused() -> None:
    for value in (np.nan, np.inf):
        with pytest.raises(ValueError, match="not finite"):
            flow_to_picture(np.full((5, 5, 2), value, np.float32))


def test_a_picture_may_be_normalised_by_more_than_its_largest_motion():
    rng = np.random.default_rng(0)
    flow = rng.normal(size=(9, 7, 2)).astype(np.float32)
    largest = np.linalg.norm(flow, axis=2).max()
    ink = 255 - flow_to_picture(flow).astype(float)
    paler = 255 - flow_to_picture(flow, at_least=4 * largest).astype(float)
    assert np.abs(paler - ink / 4).max() <= 1
    assert np.array_equal(flow_to_picture(flow, at_least=largest / 2), flow_to_picture(flow))


def test_motion_that_is_unknown_is_drawn_as_none():
    flow = np.random.default_rng(5).normal(size=(6, 8, 2)).astype(np.float32)
    flow[2, 3] = 0
    expected = flow_to_picture(flow)
    for unknown in (1.666666752e9, 1e30, -2e9):
        flow[2, 3] = unknown
        np.testing.assert_array_equal(flow_to_picture(flow), expected)
