"""Synthetic scenes: one textured object that moves, in a world that a moving camera sees.

The world rests. It holds distractors, which have the object's colours and pattern, and in some
videos an occluder that the object passes behind.
"""

from dataclasses import dataclass, replace

import cv2
import numpy as np
from numpy.random import Generator

from datasets.augmentation import rotation

SUPERSAMPLING = 3  # samples per pixel side; odd, so that the majority is never a tie
REFERENCE_HEIGHT = 128  # lengths and speeds below are in pixels of a picture of this height

SHAPES = ("blob", "polygon", "limbs")
PATTERNS = ("clouds", "stripes", "spots")

# How fast object and background move in the picture, in pixels per frame, and the angle between
# their directions in degrees. In all of them they differ by about 2 to 5 pixels per frame.
MOTIONS = {
    "follow": {"object": (0.0, 0.5), "background": (2.5, 4.0), "angle": (0, 180)},
    "cross": {"object": (1.5, 2.5), "background": (1.5, 2.5), "angle": (100, 180)},
    "chase": {"object": (0.8, 1.5), "background": (3.5, 4.5), "angle": (0, 45)},
    "static": {"object": (2.0, 3.5), "background": (0.0, 0.3), "angle": (0, 180)},
}


# Videos without an object, in all of their frames or from the middle on: nothing moves, only the
# camera moves, or the object is gone.
EMPTY = ("rest", "camera", "gone")


@dataclass
class Scene:
    """The parts of one video. Lengths are in samples, ``SUPERSAMPLING`` to the pixel.

    ``camera`` and ``pose`` are affine maps from the picture to the world and to the object's own
    canvas, one per frame.
    """

    size: tuple[int, int]  # height and width of the picture, in pixels
    world: np.ndarray  # (Hw, Ww, 3) uint8, background with distractors
    occluders: np.ndarray  # (Hw, Ww) uint8, above 127 where an occluder is
    occluder_texture: np.ndarray  # (Hw, Ww, 3) uint8
    silhouette: np.ndarray  # (S, S) uint8, above 127 where the object is
    texture: np.ndarray  # (S, S, 3) uint8, of the object
    camera: np.ndarray  # (T, 2, 3)
    pose: np.ndarray  # (T, 2, 3)
    wobble: np.ndarray  # (T, 2) phases of the waves that deform the object
    wave: tuple[float, float]  # amplitude and length of these waves
    shown: int  # number of frames, the first ones, that have the object


def make_scene(
    rng: Generator, shape: str, motion: str | None, frames: int, height: int, width: int
) -> Scene:
    """Draw a random scene, to be rendered with ``render_frame``.

    ``shape`` is one of ``SHAPES``. ``motion`` is one of ``MOTIONS``; None gives a still image,
    without distractors and occluder.
    """
    size = np.array([width, height]) * SUPERSAMPLING
    unit = SUPERSAMPLING * height / REFERENCE_HEIGHT
    side = SUPERSAMPLING * height
    object_path, world_path = _paths(rng, motion, frames) * unit
    camera, world_size = _camera(rng, world_path, size)
    silhouette = _silhouette(rng, shape, side)
    area = rng.uniform(0.11, 0.24) * size.prod()
    scale = np.sqrt(np.count_nonzero(silhouette > 127) / area)
    centre = size * (0.5 + rng.uniform(-0.18, 0.18, 2)) + object_path
    pose = _pose(rng, centre, side, scale)
    look = _palette(rng, vivid=True), rng.choice(PATTERNS)
    texture = _texture(rng, (side, side), unit * scale, *look)

    ground = _palette(rng, vivid=False), rng.choice(PATTERNS)
    world = _texture(rng, world_size, unit, *ground)
    occluders = np.zeros(world_size, np.uint8)
    occluder_texture = np.zeros_like(world)
    if motion is not None:
        # One is in view at the start, one in the middle, one at the end; any may overlap another.
        for t in rng.permutation(np.linspace(0, frames - 1, 3).astype(int)):
            place = _to(camera[t], _free_place(rng, size, centre[t]))
            _paint_distractor(rng, world, place, shape, rng.uniform(0.7, 1.0) * area, unit, look)
        if rng.random() < 0.35:
            middle = frames // 2
            thickness = int(rng.uniform(0.12, 0.2) * np.sqrt(area))
            _draw_post(rng, occluders, _to(camera[middle], centre[middle]), thickness)
            ground = _palette(rng, vivid=False), rng.choice(PATTERNS)
            occluder_texture = _texture(rng, world_size, unit, *ground)

    return Scene(
        size=(height, width),
        world=world,
        occluders=occluders,
        occluder_texture=occluder_texture,
        silhouette=silhouette,
        texture=texture,
        camera=camera,
        pose=pose,
        wobble=rng.uniform(0, 6.3, 2) + np.arange(frames)[:, None] * rng.uniform(0.15, 0.35, 2),
        wave=(rng.uniform(0.015, 0.03) * side, rng.uniform(0.5, 0.8) * side),
        shown=frames,
    )


def without_object(scene: Scene, kind: str) -> Scene:
    """A scene as one of ``EMPTY``, with its distractors."""
    if kind == "rest":
        scene = replace(scene, camera=np.repeat(scene.camera[:1], len(scene.camera), axis=0))
    return replace(scene, shown=len(scene.camera) // 2 if kind == "gone" else 0)


def render_frame(scene: Scene, frame: int) -> tuple[np.ndarray, np.ndarray]:
    """One frame, (H, W, 3) uint8 RGB, and the share of each pixel that shows the object.

    The latter is (H, W) float32 in [0, 1].
    """
    height, width = (side * SUPERSAMPLING for side in scene.size)
    camera = scene.camera[frame]
    picture = _warp(scene.world, camera, width, height)
    x, y = _object_coordinates(scene, frame, width, height)
    visible = cv2.remap(scene.silhouette, x, y, cv2.INTER_LINEAR) > 127
    visible &= frame < scene.shown
    picture[visible] = cv2.remap(scene.texture, x, y, cv2.INTER_LINEAR)[visible]
    if scene.occluders.any():
        hidden = _warp(scene.occluders, camera, width, height) > 127
        picture[hidden] = _warp(scene.occluder_texture, camera, width, height)[hidden]
        visible &= ~hidden
    target = scene.size[::-1]
    coverage = cv2.resize(visible.astype(np.float32), target, interpolation=cv2.INTER_AREA)
    return cv2.resize(picture, target, interpolation=cv2.INTER_AREA), coverage


def _paths(rng: Generator, motion: str | None, frames: int) -> np.ndarray:
    """Paths of object and background in the picture around zero, (2, T, 2)."""
    if motion is None:
        return np.zeros((2, frames, 2))
    ranges = MOTIONS[motion]
    # Both turn at the same rate, so that their velocities always differ by the same amount.
    start, way, turn = rng.uniform(0, 6.3), rng.choice([-1, 1]), rng.uniform(0.08, 0.24)
    heading = start + way * turn * np.arange(frames)
    offset = rng.choice([-1, 1]) * np.deg2rad(rng.uniform(*ranges["angle"]))
    paths = []
    for speed, direction in [
        (rng.uniform(*ranges["object"]), heading + offset),
        (rng.uniform(*ranges["background"]), heading),
    ]:
        path = speed * np.cumsum(np.stack([np.cos(direction), np.sin(direction)], axis=1), axis=0)
        paths.append(path - path.mean(axis=0))
    return np.stack(paths)


def _camera(
    rng: Generator, path: np.ndarray, size: np.ndarray
) -> tuple[np.ndarray, tuple[int, int]]:
    """Maps from picture to world (T, 2, 3) where the background follows ``path``; world's size."""
    zoom, turn = 0.04 * _swing(rng, len(path)), 0.04 * _swing(rng, len(path))
    maps = [_similarity(size / 2, *one) for one in zip(-path, 1 + zoom, turn)]
    camera = np.stack(maps)
    corners = np.array([[0, 0, 1], [size[0], 0, 1], [0, size[1], 1], [*size, 1]])
    seen = camera @ corners.T  # (T, 2, 4)
    camera[:, :, 2] -= seen.min(axis=(0, 2))
    width, height = np.ceil(np.ptp(seen, axis=(0, 2))).astype(int) + 1
    return camera, (int(height), int(width))


def _pose(rng: Generator, centre: np.ndarray, side: int, scale: float) -> np.ndarray:
    """Maps from picture to the object's canvas (T, 2, 3); the object is at ``centre`` (T, 2)."""
    zoom, turn = 0.05 * _swing(rng, len(centre)), 0.15 * _swing(rng, len(centre))
    turn += rng.uniform(0, 6.3)
    middle, scales = np.full(2, side / 2), scale * (1 + zoom)
    return np.stack([_similarity(at, middle, *one) for at, *one in zip(centre, scales, turn)])


def _swing(rng: Generator, frames: int) -> np.ndarray:
    """A slow sine over the frames, (T,) in [-1, 1]."""
    return np.sin(rng.uniform(0, 6.3) + rng.uniform(0.1, 0.25) * np.arange(frames))


def _paint_distractor(
    rng: Generator,
    world: np.ndarray,
    place: np.ndarray,
    shape: str,
    area: float,
    unit: float,
    look: tuple,
) -> None:
    """Paint a new object of the given look into the world, in place."""
    height, width = world.shape[:2]
    side = int(2.5 * np.sqrt(area))
    silhouette = _silhouette(rng, shape, side)
    scale = np.sqrt(np.count_nonzero(silhouette > 127) / area)
    onto = _similarity(place, np.full(2, side / 2), scale, rng.uniform(0, 6.3))
    texture = _texture(rng, (side, side), unit * scale, *look)
    inside = _warp(silhouette, onto, width, height) > 127
    world[inside] = _warp(texture, onto, width, height)[inside]


def _draw_post(rng: Generator, occluders: np.ndarray, place: np.ndarray, thickness: int) -> None:
    """Draw a straight bar through ``place``, from border to border, in place."""
    angle = rng.uniform(0, np.pi)
    reach = np.array([np.cos(angle), np.sin(angle)]) * sum(occluders.shape)
    ends = [tuple(int(value) for value in place + sign * reach) for sign in (-1, 1)]
    cv2.line(occluders, ends[0], ends[1], 255, thickness)


def _similarity(
    source: np.ndarray, destination: np.ndarray, scale: float, angle: float
) -> np.ndarray:
    """Affine map (2, 3) that takes ``source`` to ``destination`` and scales and turns around it."""
    linear = scale * rotation(angle)
    return np.concatenate([linear, (destination - linear @ source)[:, None]], axis=1)


def _to(affine: np.ndarray, point: np.ndarray) -> np.ndarray:
    """The image of a point under an affine map."""
    return affine[:, :2] @ point + affine[:, 2]


def _warp(image: np.ndarray, affine: np.ndarray, width: int, height: int) -> np.ndarray:
    """Look up ``image`` at ``affine`` of each sample of a (height, width) picture; 0 outside."""
    flags = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
    return cv2.warpAffine(image, affine, (width, height), flags=flags)


def _object_coordinates(
    scene: Scene, frame: int, width: int, height: int
) -> tuple[np.ndarray, np.ndarray]:
    """Places on the object's canvas of the picture's samples, deformed by two waves."""
    row, column = np.ogrid[:height, :width]
    a, row, column = (value.astype(np.float32) for value in (scene.pose[frame], row, column))
    x, y = (one[0] * column + one[1] * row + one[2] for one in a)
    amplitude, length = np.float32(scene.wave)
    turn = np.float32(2 * np.pi) / length
    phase = scene.wobble[frame].astype(np.float32)
    return x + amplitude * np.sin(turn * y + phase[0]), y + amplitude * np.sin(turn * x + phase[1])


def _free_place(rng: Generator, size: np.ndarray, taken: np.ndarray) -> np.ndarray:
    """A point of the picture that is far from ``taken``: the farthest of a few random ones."""
    candidates = rng.uniform(0.0, 1.0, (4, 2)) * size
    return candidates[np.argmax(np.linalg.norm(candidates - taken, axis=1))]


def _silhouette(rng: Generator, shape: str, side: int) -> np.ndarray:
    """A random shape on a (side, side) canvas, uint8, soft at its border and above 127 inside."""
    canvas = np.zeros((side, side), np.uint8)
    centre, radius = side / 2, 0.27 * side
    if shape == "blob":
        angle = np.linspace(0, 2 * np.pi, 180, endpoint=False)
        waves = (
            rng.uniform(0.0, 0.36) / k * np.cos(k * angle + rng.uniform(0, 6.3))
            for k in range(2, 6)
        )
        reach = 1 + sum(waves)
    elif shape == "polygon":
        corners = rng.integers(4, 8)
        angle = 2 * np.pi * (np.arange(corners) + rng.uniform(-0.25, 0.25, corners)) / corners
        reach = rng.uniform(0.75, 1.4, corners)
    else:
        angle = np.linspace(0, 2 * np.pi, 90, endpoint=False)
        reach = 0.8 / np.hypot(np.cos(angle), np.sin(angle) / rng.uniform(0.6, 0.9))
        limbs = rng.integers(3, 6)
        for direction in 2 * np.pi * (np.arange(limbs) + rng.uniform(-0.2, 0.2, limbs)) / limbs:
            reach_of_limb = rng.uniform(1.1, 1.4) * radius
            tip = centre + reach_of_limb * np.array([np.cos(direction), np.sin(direction)])
            ends = (int(centre), int(centre)), (int(tip[0]), int(tip[1]))
            cv2.line(canvas, *ends, 255, int(rng.uniform(0.5, 0.7) * radius))
    outline = centre + radius * np.stack([reach * np.cos(angle), reach * np.sin(angle)], axis=1)
    cv2.fillPoly(canvas, [np.round(outline).astype(np.int32)], 255)
    return cv2.GaussianBlur(canvas, (0, 0), 0.02 * side)


def _palette(rng: Generator, vivid: bool) -> np.ndarray:
    """Two RGB colours of related hue in [0, 255], (2, 3) float32: a dark and a light one."""
    hue = (rng.uniform(0, 360) + np.array([0, rng.uniform(-40, 40)])) % 360
    saturation = rng.uniform(0.6, 0.95, 2) if vivid else rng.uniform(0.0, 0.3, 2)
    value = np.array([rng.uniform(0.3, 0.5), rng.uniform(0.65, 0.95)])
    hsv = np.stack([hue, saturation, value], axis=1).astype(np.float32)
    return cv2.cvtColor(hsv[None], cv2.COLOR_HSV2RGB)[0] * 255


def _texture(
    rng: Generator, size: tuple[int, int], unit: float, palette: np.ndarray, pattern: str
) -> np.ndarray:
    """A random texture, (height, width, 3) uint8; ``unit`` is samples per pixel."""
    height, width = size
    if pattern == "clouds":
        mix = 0.5 + 0.3 * _noise(rng, height, width, rng.uniform(8, 20) * unit)
    elif pattern == "stripes":
        length, angle = rng.uniform(9, 16) * unit, rng.uniform(0, np.pi)
        ramp = np.cos(angle) * np.arange(width)[None] + np.sin(angle) * np.arange(height)[:, None]
        bend = _noise(rng, height, width, rng.uniform(20, 40) * unit)
        mix = 0.5 + 0.5 * np.sin(2 * np.pi * ramp / length + 1.5 * bend)
    else:
        mix = 0.4 + 2.0 * _noise(rng, height, width, rng.uniform(6, 12) * unit)
    mix = np.clip(mix, 0, 1).astype(np.float32)[..., None]
    # Finer shades that flow estimation can hold on to within one colour.
    shade = 1 + 0.1 * _noise(rng, height, width, 4 * unit)[..., None]
    shade += 0.1 * _noise(rng, height, width, 25 * unit)[..., None]
    colour = ((1 - mix) * palette[0] + mix * palette[1]) * shade
    return np.clip(colour, 0, 255).astype(np.uint8)


def _noise(rng: Generator, height: int, width: int, length: float) -> np.ndarray:
    """Smooth noise of about unit variance and the given length of detail, (height, width)."""
    rows, columns = (int(side / length) + 3 for side in (height, width))
    grid = rng.standard_normal((rows, columns)).astype(np.float32)
    full = (int(np.ceil(columns * length)), int(np.ceil(rows * length)))
    return cv2.resize(grid, full, interpolation=cv2.INTER_CUBIC)[:height, :width]
