"""Simulated motion: the flow is that of the frames, at the object's edges too, errors apart."""

import dataclasses

import cv2
import numpy as np
import pytest

from datasets.flow.colour_wheel import flow_to_picture
from datasets.simulated_motion import (
    NODES,
    Layer,
    MotionSimulation,
    PseudoClip,
    dense,
    fill_behind,
    interpolate,
    node_places,
    smooth_noise,
)

SIZE = 96
EXACT = MotionSimulation(flow_noise=0, flow_outliers=0, flow_blur=0)


def scene(seed=0, size=SIZE):
    """A texture with a disc of another one: uint8 (S, S, 3) and bool (S, S)."""
    rng = np.random.default_rng(seed)
    coarse = rng.integers(0, 256, size=(2, size // 6, size // 6, 3)).astype(np.uint8)
    ground, thing = (cv2.resize(c, (size, size), interpolation=cv2.INTER_CUBIC) for c in coarse)
    y, x = np.mgrid[:size, :size]
    mask = (x - 0.45 * size) ** 2 + (y - 0.55 * size) ** 2 < (0.2 * size) ** 2
    return np.where(mask[..., None], thing, ground), mask


def constant(x, y):
    return np.broadcast_to(np.float32([x, y]), (NODES, NODES, 2))


def by_hand(camera, own, removed=(0, 0), acceleration=(0, 0), bend=(0, 0), sway=(1, 0)):
    """A clip whose camera and object move by whole pixels."""
    image, mask = scene()
    layers = [
        Layer(image, (constant(*camera),)),
        Layer(
            image,
            tuple(constant(*motion) for motion in (camera, own, bend)),
            *[mask.astype(np.float32)] * 2,
        ),
    ]
    flat = np.ones((NODES, NODES, 1), np.float32)
    acceleration = np.array(acceleration)
    removed = constant(*removed)
    return PseudoClip(image, layers, removed, acceleration, sway, flat, EXACT)


def mask_of(clip, time):
    """Where the object is in the frame at a time."""
    thing = clip.layers[-1]
    where = dense(clip._origin(thing, time), SIZE)
    return cv2.remap(thing.extent, where, None, cv2.INTER_LINEAR, borderMode=1) > 0.5


def moved(picture, x, y):
    """Where the picture has come from, x to the right and y down; only the inside counts."""
    return np.roll(picture, (y, x), axis=(0, 1))


def warped_back(clip, time):
    """The frame after one at a time, seen through the flow: what the flow says that one shows."""
    y, x = np.mgrid[:SIZE, :SIZE].astype(np.float32)
    flow = clip.flow(time, SIZE)
    later = clip.frame(time + 1)
    return cv2.remap(later, x + flow[..., 0], y + flow[..., 1], cv2.INTER_LINEAR)


inside = (slice(14, -14), slice(14, -14))


def test_whole_pixels_move_as_said():
    clip = by_hand(camera=(2, 1), own=(-3, 2))
    image, mask = scene()
    assert clip.frame(0) is clip.image
    for time in (1, 2, -2):
        frame, found = clip.frame(time), mask_of(clip, time)
        expected = moved(mask, -time, 3 * time)  # the camera's and its own
        np.testing.assert_array_equal(found[inside], expected[inside])
        thing, ground = moved(image, -time, 3 * time), moved(image, 2 * time, time)
        shown = np.where(expected[..., None], thing, ground)
        assert np.abs(frame[inside].astype(int) - shown[inside]).max() <= 1
        flow = clip.flow(time, SIZE)
        np.testing.assert_allclose(flow[expected], [[-1, 3]] * expected.sum(), atol=1e-4)
        np.testing.assert_allclose(flow[~expected], [[2, 1]] * (~expected).sum(), atol=1e-4)


def test_motion_that_gets_faster_is_that_between_the_frames():
    clip = by_hand(camera=(2, 0), own=(0, 4), acceleration=(0.5, -0.25))
    # x(t) = 2 (t + t^2 / 4), y(t) = 4 (t - t^2 / 8), so that from 2 to 3 they grow by 4.5 and 1.5.
    flow = clip.flow(2, SIZE)
    found = mask_of(clip, 2)
    np.testing.assert_allclose(flow[found], [[4.5, 1.5]] * found.sum(), atol=1e-4)
    np.testing.assert_allclose(flow[~found], [[4.5, 0]] * (~found).sum(), atol=1e-4)


def test_flow_relative_to_the_camera_shows_the_object_alone():
    clip = by_hand(camera=(2, 1), own=(-3, 2), removed=(2, 1))
    flow = clip.flow(1, SIZE)
    found = mask_of(clip, 1)
    np.testing.assert_allclose(flow[found], [[-3, 2]] * found.sum(), atol=1e-4)
    np.testing.assert_allclose(flow[~found], 0, atol=1e-4)


def test_a_smaller_flow_map_has_shorter_motion():
    clip = by_hand(camera=(4, -2), own=(0, 0))
    np.testing.assert_allclose(clip.flow(0, SIZE // 2), 0 * clip.flow(0, SIZE // 2) + [2, -1])


@pytest.mark.parametrize("time", [0, 2.5, -6])
def test_the_flow_of_drawn_clips_warps_their_frames_onto_each_other(time):
    """Less than a third of the error without warping, where nothing appears or goes."""
    errors = []
    for seed in range(8):
        clip = EXACT.draw(np.random.default_rng(seed), *scene(seed))
        frame = clip.frame(time).astype(float)
        still = np.abs(clip.frame(time + 1) - frame)[inside]
        through = np.abs(warped_back(clip, time) - frame)[inside]
        errors.append((np.median(through.mean(axis=2)), np.median(still.mean(axis=2))))
    with_flow, without = np.mean(errors, axis=0)
    assert with_flow < without / 3


def test_motion_changes_at_the_masks_edge():
    """The object's layer alone gives its own motion, which the flow has where the mask is."""
    # Without these the object's own motion vanishes nowhere on it.
    rigid = dataclasses.replace(EXACT, deformation=0)
    for seed in range(6):
        clip = rigid.draw(np.random.default_rng(seed), *scene(seed))
        for time in (0, 3):
            flow, mask = clip.flow(time, SIZE), mask_of(clip, time)
            without = dataclasses.replace(clip, layers=clip.layers[:1]).flow(time, SIZE)
            own = np.linalg.norm(flow - without, axis=2)
            differs = own > own.max() / 4
            assert (differs & mask).sum() / (differs | mask).sum() > 0.85


def drawn(seeds=30, **strengths):
    """Clips of one scene; what is not named is off."""
    off = dict.fromkeys(OFF, 0) | {"camera": 0.02, "object": 0.03, "span": 8}
    simulation = MotionSimulation(**(off | strengths))
    return [simulation.draw(np.random.default_rng(seed), *scene()) for seed in range(seeds)]


OFF = [
    *("parallax", "deformation", "flow_noise", "flow_outliers", "flow_blur"),
]


def affine_rest(motion):
    """Largest part of a motion (NODES, NODES, 2) that no affine motion explains, and its matrix."""
    places = np.concatenate([node_places(SIZE), np.ones((NODES, NODES, 1))], axis=2).reshape(-1, 3)
    matrix, *_ = np.linalg.lstsq(places, motion.reshape(-1, 2), rcond=None)
    return np.abs(places @ matrix - motion.reshape(-1, 2)).max(), matrix


def lengths(motions):
    return [np.linalg.norm(motion, axis=2).max() / SIZE for motion in motions]


def test_camera_and_object_move_as_much_as_they_may():
    clips = drawn()
    camera = lengths([clip.layers[0].motions[0] for clip in clips])
    assert 0.015 < max(camera) <= 0.02 + 1e-6 and min(camera) > 0.0019
    at_centre = [
        np.linalg.norm(interpolate(clip.layers[-1].motions[1], np.array([[[43.0, 53.0]]]), SIZE))
        / SIZE
        for clip in clips
    ]
    assert 0.022 < max(at_centre) <= 0.0301 and min(at_centre) > 0.0029
    assert max(lengths([clip.layers[0].motions[0] for clip in drawn(camera=0)])) == 0
    assert max(lengths([clip.layers[-1].motions[1] for clip in drawn(object=0)])) < 1e-9
    assert all(len(clip.layers) == 2 for clip in clips)


def test_parallax_and_deformation_are_what_is_not_affine():
    plain, rich = drawn(), drawn(parallax=0.5, deformation=0.5)
    for clip in plain:
        assert affine_rest(clip.layers[0].motions[0])[0] < 1e-4
        rest, matrix = affine_rest(clip.layers[-1].motions[1])
        assert rest < 1e-4 and np.abs(matrix[:2]).max() > 1e-5  # it also turns and grows
        assert not clip.layers[-1].motions[2].any()
        np.testing.assert_array_equal(clip.layers[0].motions[0], clip.layers[-1].motions[0])
    background = [affine_rest(clip.layers[0].motions[0])[0] for clip in rich]
    bent = [affine_rest(clip.layers[-1].motions[2])[0] for clip in rich]
    assert min(background) > 1e-3 and np.median(background) > 0.05
    assert min(bent) > 1e-3 and np.median(bent) > 0.05
    # The object is nearer than the ground, by up to that share.
    nearer = [
        np.linalg.norm(clip.layers[-1].motions[0]) / np.linalg.norm(one.layers[0].motions[0])
        for clip, one in zip(rich, plain)
    ]
    assert 1 <= min(nearer) < 1.2 < max(nearer) <= 1.5


@pytest.mark.parametrize("time", [-8, 8])
def test_no_point_overtakes_another_so_that_where_it_came_from_is_known(time):
    strong = {"parallax": 1, "deformation": 1, "camera": 0.05, "object": 0.06}
    for clip in drawn(10, **strong):
        for layer in clip.layers:
            origin = clip._origin(layer, time)
            motion = layer.moved(clip._times(time))
            there = origin + interpolate(motion, origin, SIZE)
            # Where the origin is outside the picture, motion is that at its edge.
            known = ((origin >= 0) & (origin <= SIZE - 1)).all(axis=2)
            assert np.abs(there - node_places(SIZE))[known].max() < 0.3


def test_speed_changes_over_a_clip():
    ratios = []
    for clip in drawn():
        then, now = (clip._times(t + 1) - clip._times(t) for t in (8, 0))
        ratios.append((then / now)[:2])
    assert 0.4 < np.min(ratios) < 0.7 and 1.3 < np.max(ratios) < 1.6
    assert all(clip.acceleration[0] != clip.acceleration[1] for clip in drawn(3))


@pytest.mark.parametrize("time", [3, -2])
def test_deformation_is_in_frames_and_flow_maps(time):
    """Its speed is a cosine, so how far it has come is the difference of two sines."""
    rate, phase, bend = 0.5, 0.7, np.array([6, -4])

    def way(time):
        return bend * (np.sin(rate * time + phase) - np.sin(phase)) / rate

    clip = by_hand((0, 0), (0, 0), bend=bend, sway=(rate, phase))
    found, frame = mask_of(clip, time), clip.frame(time)
    centres = [np.argwhere(mask).mean(axis=0)[::-1] for mask in (found, mask_of(clip, 0))]
    np.testing.assert_allclose(centres[0] - centres[1], way(time), atol=0.5)  # whole pixels
    inside = cv2.erode(found.astype(np.uint8), np.ones((5, 5))) > 0
    shift = np.column_stack([np.eye(2), way(time)])
    expected = cv2.warpAffine(clip.image, shift, (SIZE, SIZE)).astype(int)
    assert (
        np.abs(frame - expected)[inside].mean() < 3 < np.abs(clip.image - expected)[inside].mean()
    )
    flow = clip.flow(time, SIZE)
    expected = way(time + 1) - way(time)
    np.testing.assert_allclose(flow[inside], 0 * flow[inside] + expected, atol=0.01)
    assert np.abs(flow[0]).max() == 0


def test_deformation_is_a_share_of_the_motion_as_far_as_nothing_folds():
    def over_own(clip):
        own = interpolate(clip.layers[-1].motions[1], np.array([[[43.0, 53.0]]]), SIZE)
        return np.linalg.norm(clip.layers[-1].motions[2], axis=2).max() / np.linalg.norm(own)

    shares = [over_own(clip) for clip in drawn(deformation=0.05)]
    assert min(shares) > 0.03 and max(shares) < 0.05 * 2
    steepest = [
        max(np.abs(np.diff(clip.layers[-1].motions[2], axis=axis)).max() for axis in (0, 1))
        * (2 / clip.sway[0])  # from one end to the other
        / ((SIZE - 1) / (NODES - 1))
        for clip in drawn(deformation=1)
    ]
    assert max(steepest) == pytest.approx(0.25) == np.median(steepest)


def test_the_object_deforms_to_and_fro():
    periods, phases = [], []
    for clip in drawn(deformation=1):
        rate, phase = clip.sway
        period = 2 * np.pi / rate
        periods.append(period)
        phases.append(phase)
        swayed = [clip._times(share * period)[2] for share in (0, 0.5, 1)]
        np.testing.assert_allclose(swayed, [0, -2 * np.sin(phase) / rate, 0], atol=1e-9)
        speed = (clip._times(1e-4) - clip._times(-1e-4))[2] / 2e-4
        assert speed == pytest.approx(np.cos(phase), abs=1e-3)
    assert 6 <= min(periods) < 8 and 14 < max(periods) <= 16
    assert min(phases) < 1 and max(phases) > 5


def test_what_is_left_out_changes_nothing_else():
    for one, other in zip(drawn(10, parallax=0.5), drawn(10)):
        np.testing.assert_array_equal(one.layers[-1].motions[1], other.layers[-1].motions[1])
        np.testing.assert_array_equal(one.layers[0].picture, other.layers[0].picture)
        np.testing.assert_array_equal(one.acceleration, other.acceleration)


def test_without_motion_every_frame_is_the_image():
    (clip,) = drawn(1, camera=0, object=0)
    for time in (3, -5):
        frame, mask = clip.frame(time), mask_of(clip, time)
        assert np.abs(frame.astype(int) - clip.image).max() <= 2
        np.testing.assert_array_equal(mask, mask_of(clip, 0))
    assert (clip.flow_picture(np.random.default_rng(0), 3) == 255).all()


@pytest.mark.parametrize("time", [0, 8, -8])
def test_without_the_camera_what_rests_is_white_at_all_times(time):
    for clip in drawn(8, camera_removed=True, camera=0.05):
        flow, mask = clip.flow(time, SIZE), mask_of(clip, time)
        around = cv2.dilate(mask.astype(np.uint8), np.ones((11, 11))) == 0
        assert np.abs(flow[around]).max() < 1e-3
        assert np.abs(flow[mask]).max() > 0.05


def test_flow_errs_at_the_edges_of_motion_alone_where_it_is_blurred():
    width = 0.05
    for seed, clip in enumerate(drawn(8, flow_blur=width, camera=0)):
        exact = flow_to_picture(clip.flow(0, SIZE // 2))
        exact = cv2.resize(exact, (SIZE, SIZE)).astype(int)
        found = cv2.resize(clip.flow_picture(np.random.default_rng(seed), 0), (SIZE, SIZE))
        wrong = np.abs(found - exact).max(axis=2) > 40
        outside = cv2.distanceTransform((~mask_of(clip, 0)).astype(np.uint8), cv2.DIST_L2, 5)
        within = cv2.distanceTransform(mask_of(clip, 0).astype(np.uint8), cv2.DIST_L2, 5)
        distance = np.maximum(outside, within)
        assert wrong.any() and distance[wrong].max() < 4 * width * SIZE
        assert distance[wrong].max() > 2


def test_reference_times_are_before_and_after_the_image():
    times = MotionSimulation(span=5).draw_times(np.random.default_rng(0), 200)
    assert 0.4 < np.mean(np.array(times) > 0) < 0.6
    assert 4.8 < np.max(np.abs(times)) <= 5 and 1 <= np.min(np.abs(times)) < 1.2


def test_flow_maps_err_more_where_there_is_nothing_to_follow():
    image, mask = scene()
    image[:, : SIZE // 2] = 128
    simulation = MotionSimulation(parallax=0, flow_noise=0.5, flow_outliers=0)
    flat, textured = [], []
    for seed in range(10):
        clip = simulation.draw(np.random.default_rng(seed), image, mask)
        exact = cv2.resize(flow_to_picture(clip.flow(0, SIZE // 2)), (SIZE, SIZE)).astype(int)
        found = clip.flow_picture(np.random.default_rng(seed), 0)
        assert found.shape == (SIZE // 2, SIZE // 2, 3) and found.dtype == np.uint8
        found = cv2.resize(found, (SIZE, SIZE))
        error = np.abs(found - exact).mean(axis=2)
        flat.append(error[:, :15].mean())
        textured.append(error[:, -15:].mean())
    assert np.mean(flat) > np.mean(textured) > 0


def test_a_stray_pixel_pales_the_flow_map():
    """Which is normalised by its largest motion, whatever that is."""
    image, mask = scene()
    paler = []
    for seed in range(10):
        rng = np.random.default_rng(seed)
        clip = dataclasses.replace(EXACT, flow_outliers=3).draw(rng, image, mask)
        plain = flow_to_picture(clip.flow(0, SIZE // 2)).astype(int)
        found = clip.flow_picture(rng, 0)
        paler.append((255 - found).mean() / (255 - plain).mean())
    assert max(paler) < 1.1 and min(paler) < 0.35


def test_a_clip_follows_from_the_generator():
    def clip(seed):
        rng = np.random.default_rng(seed)
        drawn = MotionSimulation().draw(rng, *scene())
        return drawn.frame(3), drawn.flow_picture(rng, 3), MotionSimulation().draw_times(rng, 3)

    for one, other in zip(clip(5), clip(5)):
        np.testing.assert_array_equal(one, other)
    assert not np.array_equal(clip(5)[0], clip(6)[0])
    times = np.abs(clip(5)[2])
    assert ((times >= 1) & (times <= MotionSimulation().span)).all()


def test_nothing_of_the_object_is_left_behind_it():
    image, mask = scene()
    image = image // 2
    image[mask] = (255, 0, 0)
    filled = fill_behind(image, mask, np.random.default_rng(0))
    assert (filled[..., 0] < 200).all()
    far = cv2.dilate(mask.astype(np.uint8), np.ones((7, 7), np.uint8)) == 0
    np.testing.assert_array_equal(filled[far], image[far])
    # Texture, not one colour.
    assert filled[mask].std(axis=0).min() > 10


@pytest.mark.parametrize("value", [False, True])
def test_images_that_are_all_object_or_none_are_taken_too(value):
    image, mask = scene()
    mask[:] = value
    clip = MotionSimulation().draw(np.random.default_rng(0), image, mask)
    assert clip.frame(2).shape == (SIZE, SIZE, 3)
    assert mask_of(clip, 2).all() == value == mask_of(clip, 2).any()
    assert clip.flow_picture(np.random.default_rng(0), 2).shape == (SIZE // 2, SIZE // 2, 3)


def test_a_grid_of_an_affine_motion_is_exact_everywhere():
    places = node_places(SIZE)
    linear, shift = np.array([[0.02, -0.01], [0.03, 0.01]]), np.array([1.5, -2.0])
    nodes = (places @ linear.T + shift).astype(np.float32)
    y, x = np.mgrid[:SIZE, :SIZE]
    expected = np.stack([x, y], axis=-1) @ linear.T + shift
    np.testing.assert_allclose(dense(nodes, SIZE), expected, atol=1e-4)
    somewhere = np.array([[[3.3, 70.9], [50.2, 11.1]]])
    # OpenCV may know 32 places between two nodes.
    np.testing.assert_allclose(
        interpolate(nodes, somewhere, SIZE), somewhere @ linear.T + shift, atol=0.01
    )


def test_noise_is_about_one_and_smooth():
    noise = np.stack([smooth_noise(np.random.default_rng(seed), 4) for seed in range(20)])
    assert noise.shape == (20, NODES, NODES)
    assert 0.5 < np.abs(noise).max() < 1.7
    steps = np.abs(np.diff(noise, axis=1)).mean()
    assert steps < 0.5 * np.abs(noise - noise.mean()).mean()
