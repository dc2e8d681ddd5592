"""Motion simulated on still images, so that stage 1 can train both streams and the references.

An image with a mask is two layers, background and object. Each gets a motion of its own and is
drawn at other times too: a pseudo-clip, whose optical flow is known exactly. The frame at time 0 is
the image itself.
"""

from dataclasses import dataclass
from functools import lru_cache

import cv2
import numpy as np
import torch
from numpy.random import Generator

from datasets.augmentation import resize
from datasets.flow.colour_wheel import flow_to_picture

NODES = 17  # a side of the grid that motion is computed on
FLOW_SHARE = 0.5  # side of the flow maps, as a share of the frame's
_INVERSIONS = 8  # rounds of the fixed-point iteration for where a moved point has come from
_BEND = 0.25  # largest change of position from point to point, by each of camera, object, sway
_HASTE = 0.5  # largest change of speed over the span of a clip
_SWAY = 6, 16  # shortest and longest period of an object's deformation, in frames a cycle


@dataclass(frozen=True)
class MotionSimulation:
    """Sizes of all motion and of errors of flow maps; the names are config.py's SIMULATED_....

    Deformation is less where points would come close to overtaking others. Errors of flow maps are
    less where there is texture. With ``camera_removed`` flow maps are relative to the camera's
    motion, as those of datasets.flow with --remove-camera-motion nearly are.
    """

    camera: float = 0.02  # largest motion by pan, zoom and roll in a frame, in sides of the picture
    object: float = 0.03  # largest motion of the object's own, likewise
    parallax: float = 0.4  # how much more the near moves with the camera than the far, as a share
    deformation: float = 0.8  # the object's deformation to and fro, as a share of its motion
    flow_noise: float = 0.1  # smooth errors of flow maps, as a share of their largest motion
    flow_outliers: float = 1.0  # by how much stray pixels may exceed the largest motion, as a share
    flow_blur: float = 0.025  # largest blur and displacement of edges, in sides of the picture
    span: float = 8.0  # largest distance of reference frames, in frames
    camera_removed: bool = False

    def draw_times(self, rng: Generator, count: int) -> list[float]:
        """Random times of reference frames, from 1 to ``span`` frames before or after the image."""
        distances = rng.uniform(1, max(1, self.span), size=count)
        return (distances * rng.choice([-1, 1], size=count)).tolist()

    def draw(self, rng: Generator, image: np.ndarray, mask: np.ndarray) -> "PseudoClip":
        """A random pseudo-clip of an image, uint8 RGB (S, S, 3), with a mask, bool (S, S)."""
        size = len(image)
        camera_rng, object_rng, clip_rng = rng.spawn(3)
        pan = affine_field(camera_rng)
        pan *= self.camera * size * camera_rng.uniform(0.1, 1) / np.linalg.norm(pan, axis=2).max()
        relief = self.parallax * smooth_noise(camera_rng, cells=3)[..., None]
        nearness = 1 + self.parallax * camera_rng.uniform(0, 1)
        pan = self._unfolded(pan, size)
        with_camera = self._unfolded(pan * np.float32(nearness), size)
        rate, phase = 2 * np.pi / object_rng.uniform(*_SWAY), object_rng.uniform(0, 2 * np.pi)
        own, bend = self._object_motion(object_rng, mask, rate)
        far = self._unfolded(pan * (1 + relief), size)
        background = fill_behind(image, mask, clip_rng)
        # The object is drawn as wide as the filled hole: without motion, the image is whole.
        drawn = cv2.dilate(mask.astype(np.float32), np.ones((5, 5)))
        return PseudoClip(
            image=image,
            layers=[
                Layer(background, (far,)),
                Layer(
                    image, (with_camera, own, bend), _soft(drawn), _soft(mask.astype(np.float32))
                ),
            ],
            removed=pan if self.camera_removed else np.zeros_like(pan),
            acceleration=clip_rng.uniform(-1, 1, size=2) * _HASTE / self.span,
            sway=(rate, phase),
            flatness=flatness(image)[..., None],
            simulation=self,
        )

    def _object_motion(self, rng: Generator, mask: np.ndarray, rate: float) -> list[np.ndarray]:
        """The object's own motion, and its largest deformation to and fro at a rate."""
        size = len(mask)
        sums = cv2.moments(mask.astype(np.uint8))
        area = sums["m00"]
        centre = np.array([sums["m10"], sums["m01"]]) / area if area else np.full(2, size / 2)
        angle, length = rng.uniform(0, 2 * np.pi), self.object * size * rng.uniform(0.1, 1)
        shift = length * np.array([np.cos(angle), np.sin(angle)])
        linear = rng.uniform(-1, 1, size=(2, 2)) * length / size
        motion = shift + (node_places(size) - centre) @ linear.T
        bend = self.deformation * length * smooth_vectors(rng, cells=rng.integers(3, 7))
        motion = motion.astype(np.float32)
        return [self._unfolded(motion, size), self._unfolded(bend, size, 2 / rate)]

    def _unfolded(self, motion: np.ndarray, size: int, longest: float | None = None) -> np.ndarray:
        """The motion, made more even where points would come close to overtaking others.

        It goes on for ``longest`` frames, by default for ``span`` at the highest speed.
        """
        steepest = max(np.abs(np.diff(motion, axis=axis)).max() for axis in (0, 1))
        frames = longest or self.span * (1 + _HASTE / 2)
        change = frames * steepest * (NODES - 1) / (size - 1)
        if change <= _BEND:
            return motion
        mean = motion.mean(axis=(0, 1))
        return mean + (motion - mean) * np.float32(_BEND / change)


@dataclass(frozen=True, eq=False)
class Layer:
    """A part of the image that moves together."""

    picture: np.ndarray  # uint8 RGB (S, S, 3)
    # By the camera, of its own, and by deformation, (NODES, NODES, 2) in pixels per unit of each
    # one's time; the background has the first alone.
    motions: tuple[np.ndarray, ...]
    alpha: np.ndarray | None = None  # its opacity (S, S) in [0, 1], float32; None is opaque
    extent: np.ndarray | None = None  # its opacity in flow maps, likewise

    def moved(self, times: np.ndarray) -> np.ndarray:
        """Motion after these times of camera, object and deformation, (NODES, NODES, 2)."""
        return sum(time * motion for time, motion in zip(times, self.motions))


@dataclass(frozen=True, eq=False)
class PseudoClip:
    """An image, the motion of its parts, and the errors of its flow maps."""

    image: np.ndarray  # the frame at time 0, uint8 RGB (S, S, 3)
    layers: list[Layer]  # back to front, the object last
    removed: np.ndarray  # the camera's motion where flow maps are relative to it
    acceleration: np.ndarray  # of the camera's and the object's time, per frame
    sway: tuple[float, float]  # the deformation's rate in radians per frame, its phase at time 0
    flatness: np.ndarray  # lack of texture, (NODES, NODES, 1)
    simulation: MotionSimulation  # how large the flow maps' errors are

    def frame(self, time: float) -> np.ndarray:
        """The frame at a time, in frames from the image: uint8 RGB (S, S, 3)."""
        if time == 0:
            return self.image
        result = None
        for layer in self.layers:
            where = dense(self._origin(layer, time), len(self.image))
            # Cubic, so that references are not more blurred than the target.
            moved = cv2.remap(
                layer.picture, where, None, cv2.INTER_CUBIC, borderMode=cv2.BORDER_REFLECT_101
            )
            if layer.alpha is not None:
                alpha = _shifted(layer.alpha, where)
                moved = cv2.blendLinear(moved, result, alpha, 1 - alpha)
            result = moved
        return result

    def flow(
        self, time: float, size: int, blur: float = 0.0, displacement: np.ndarray | float = 0.0
    ) -> np.ndarray:
        """Motion from the frame at a time to the one a frame later, (size, size, 2) in its pixels.

        Errors are the blur of the layers' edges and their displacement (size, size, 2), in pixels.
        """
        full = len(self.image)
        step = self._times(time + 1) - self._times(time)
        result = camera = None
        for layer in self.layers:
            origin = self._origin(layer, time)
            motion = interpolate(layer.moved(step), origin, full)
            if camera is None:
                camera = interpolate(step[0] * self.removed, origin, full)
            motion = dense(motion - camera, size)
            if layer.extent is not None:
                where = dense(origin, size) + displacement * np.float32(full / size)
                extent = _shifted(layer.extent, where)
                if blur > 0:
                    extent = cv2.GaussianBlur(extent, (0, 0), blur)
                motion = result + extent[..., None] * (motion - result)
            result = motion
        return result * np.float32(size / full)

    def flow_picture(self, rng: Generator, time: float) -> np.ndarray:
        """The flow map at a time with errors, uint8 RGB, square, FLOW_SHARE of the frame's side."""
        errors = self.simulation
        size = max(1, round(FLOW_SHARE * len(self.image)))
        width = errors.flow_blur * size
        displacement = np.float32(width) * dense(smooth_vectors(rng, cells=8), size)
        flow = self.flow(time, size, rng.uniform(0, width), displacement)
        noise = dense(smooth_vectors(rng, cells=8) * self.flatness, size)
        largest = cv2.magnitude(*cv2.split(flow)).max()
        flow += np.float32(errors.flow_noise * rng.uniform(0, 1) * largest) * noise
        stray = largest * (1 + errors.flow_outliers * rng.uniform(0, 1))
        return flow_to_picture(flow, at_least=stray)

    def _times(self, time: float) -> np.ndarray:
        """Times of camera and object, which get evenly faster or slower, and of deformation."""
        rate, phase = self.sway
        swayed = (np.sin(rate * time + phase) - np.sin(phase)) / rate
        return np.append(time + self.acceleration * time**2 / 2, swayed)

    def _origin(self, layer: Layer, time: float) -> np.ndarray:
        """Places in the layer's picture of the points of a frame's grid: (NODES, NODES, 2)."""
        places = origin = node_places(len(self.image))
        motion = layer.moved(self._times(time))
        for _ in range(_INVERSIONS if time else 0):
            origin = places - interpolate(motion, origin, len(self.image))
        return origin


def _shifted(alpha: np.ndarray, where: np.ndarray) -> np.ndarray:
    """An object's opacity; an object that the frame cuts off goes on outside."""
    return cv2.remap(alpha, where, None, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)


@lru_cache(maxsize=8)
def node_places(size: int) -> np.ndarray:
    """Places of the nodes in a picture of that side: (NODES, NODES, 2), (x, y) in pixels."""
    line = np.linspace(0, size - 1, NODES)
    return np.stack(np.meshgrid(line, line), axis=-1)


def interpolate(nodes: np.ndarray, places: np.ndarray, size: int) -> np.ndarray:
    """Values of a grid (NODES, NODES, 2) at places in a picture, bilinear; outside as at the edge.

    The places are (M, N, 2), (x, y) in pixels of a picture of that ``size``. Returns (M, N, 2).
    """
    position = (places * ((NODES - 1) / (size - 1))).astype(np.float32)
    return cv2.remap(nodes, position, None, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)


def dense(nodes: np.ndarray, size: int) -> np.ndarray:
    """A grid (NODES, NODES, 2) at every pixel, bilinear: (size, size, 2) float32."""
    rows, columns = _weights(size)
    # Torch uses one thread in each of the loader's processes, NumPy's products do not.
    nodes = torch.from_numpy(nodes.astype(np.float32)).reshape(NODES, -1)
    return (rows @ nodes @ columns).view(size, size, 2).numpy()


@lru_cache(maxsize=8)
def _weights(size: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Weights of the nodes in a column (size, NODES) and in a row (2 NODES, 2 size) of pixels."""
    position = np.linspace(0, NODES - 1, size)
    weights = np.maximum(0, 1 - np.abs(position[:, None] - np.arange(NODES)))
    both = np.kron(weights.T, np.eye(2))
    return torch.from_numpy(weights.astype(np.float32)), torch.from_numpy(both.astype(np.float32))


def affine_field(rng: Generator) -> np.ndarray:
    """A camera's random pan, zoom and roll (NODES, NODES, 2), float32, of about unit length."""
    direction = rng.uniform(0, 2 * np.pi)
    pan = np.array([np.cos(direction), np.sin(direction)]) * rng.uniform(0, 1)
    change = rng.uniform(-0.4, 0.4, size=(2, 2))
    y, x = np.mgrid[-1 : 1 : NODES * 1j, -1 : 1 : NODES * 1j]
    field = pan + np.stack([x, y], axis=-1) @ change.T
    return field.astype(np.float32)


def smooth_noise(rng: Generator, cells: int) -> np.ndarray:
    """Random values (NODES, NODES), float32, mostly in [-1, 1], from a grid of that many cells."""
    coarse = rng.uniform(-1, 1, size=(cells + 1, cells + 1)).astype(np.float32)
    return cv2.resize(coarse, (NODES, NODES), interpolation=cv2.INTER_CUBIC)


def smooth_vectors(rng: Generator, cells: int) -> np.ndarray:
    """The same for vectors, (NODES, NODES, 2)."""
    return cv2.merge([smooth_noise(rng, cells) for _ in range(2)])


def flatness(image: np.ndarray) -> np.ndarray:
    """Lack of texture in each part of uint8 RGB (S, S, 3): (NODES, NODES) in (0, 1]."""
    grey = cv2.cvtColor(image, cv2.COLOR_RGB2GRAY).astype(np.float32)
    contrast = np.abs(cv2.subtract(grey, cv2.blur(grey, (5, 5))))
    contrast = cv2.resize(contrast, (NODES, NODES), interpolation=cv2.INTER_AREA)
    return 1 / (1 + contrast / max(float(contrast.mean()), 1e-3))


def _soft(mask: np.ndarray) -> np.ndarray:
    """A mask (S, S) float32 with edges a pixel wide."""
    return cv2.GaussianBlur(mask, (3, 3), 0)


def fill_behind(image: np.ndarray, mask: np.ndarray, rng: Generator) -> np.ndarray:
    """The image, uint8 RGB (S, S, 3), with texture from beside the object in its place.

    The image is shifted by the object's size to the side that covers most of it. Pixels that are
    not covered get the colours around the object.
    """
    hole = cv2.dilate(mask.astype(np.uint8), np.ones((3, 3), np.uint8))
    if not 0 < cv2.countNonZero(hole) < mask.size:
        return image
    size = len(image)
    around = resize(_spread(image, hole), size, size)
    filled = np.where(hole[..., None] > 0, around, image)
    *_, width, height = cv2.boundingRect(hole)
    shifts = np.array([(width, 0), (-width, 0), (0, height), (0, -height)])

    def shifted(picture: np.ndarray, shift: np.ndarray) -> np.ndarray:
        matrix = np.column_stack([np.eye(2), shift]).astype(np.float32)
        return cv2.warpAffine(picture, matrix, (size, size), flags=cv2.INTER_NEAREST)

    usable = [(shifted(1 - hole, shift) & hole, shift) for shift in rng.permutation(shifts)]
    covered, shift = max(usable, key=lambda one: cv2.countNonZero(one[0]))
    weight = cv2.blur(covered.astype(np.float32), (7, 7)) * covered
    return cv2.blendLinear(shifted(image, shift), filled, weight, 1 - weight)


def _spread(image: np.ndarray, hole: np.ndarray) -> np.ndarray:
    """An image at a quarter of its size; the colours around the hole spread into it."""
    quarter = max(1, len(image) // 4)
    known = (1 - hole).astype(np.float32)
    levels = [(_mean_of(image * known[..., None], quarter), _mean_of(known, quarter))]
    while len(levels[-1][1]) > 1:
        levels.append(tuple(_mean_of(x, (len(x) + 1) // 2) for x in levels[-1]))
    filled = levels[-1][0] / max(float(levels[-1][1][0, 0]), 1e-6)
    for colours, weight in reversed(levels[:-1]):
        coarser = cv2.resize(filled, weight.shape[::-1], interpolation=cv2.INTER_LINEAR)
        filled = colours + (1 - weight[..., None]) * coarser
    return filled.clip(0, 255).round().astype(np.uint8)


def _mean_of(x: np.ndarray, size: int) -> np.ndarray:
    """Mean over areas, (S, S[, C]) to (size, size[, C])."""
    return cv2.resize(x, (size, size), interpolation=cv2.INTER_AREA)
