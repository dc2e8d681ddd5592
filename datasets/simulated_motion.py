"""Motion simulated on still images, so that stage 1 can train both streams and the references.

An image with a mask is two layers, background and object. Each gets a motion of its own, and what
moves together is drawn at other times too: a pseudo-clip, whose optical flow is known exactly. The
frame at time 0 is the image itself.
"""

from dataclasses import dataclass
from functools import lru_cache

import cv2
import numpy as np

from datasets.augmentation import affine_field, resize
from datasets.colour_wheel import flow_to_picture

NODES = 17  # a side of the grid that motion is computed on; it is interpolated in between
FLOW_SHARE = 0.5  # side of the flow maps as computed, as a share of the frame's
_INVERSIONS = 4  # rounds of the fixed-point iteration for where a moved point has come from


@dataclass(frozen=True)
class MotionSimulation:
    """What moves how much; the names are those of config.py, after SIMULATED_.

    Attributes:
        camera: largest motion that the camera's pan, zoom and roll make between two frames, as a
            share of the picture's side.
        object: largest motion of the object's own, likewise.
        rest: how often the camera rests, and how often the object does (never both).
        tracking: how often the camera follows the object.
        parallax: by how much near things move more than far ones with the camera, as a share.
        deformation: the object's smooth deformation, as a share of its motion.
        distractors: how often a part of the background moves by itself.
        flow_noise: smooth errors of flow maps, as a share of their largest motion, in flat regions.
        flow_outliers: by how much, as a share, the length of a stray pixel may exceed the largest
            motion; flow maps are normalised by it.
        flow_blur: largest width that motion's edges are blurred and displaced by, as a share of the
            picture's side.
        wrong_flow: how often a flow map shows nothing of the object.
        span: largest distance of reference frames, in frames.
        camera_removed: flow maps are relative to the camera's motion, as datasets.flow makes them
            with --remove-camera-motion.
    """

    camera: float = 0.02
    object: float = 0.03
    rest: float = 0.2
    tracking: float = 0.3
    parallax: float = 0.5
    deformation: float = 0.3
    distractors: float = 0.3
    flow_noise: float = 0.1
    flow_outliers: float = 1.0
    flow_blur: float = 0.015
    wrong_flow: float = 0.1
    span: float = 8.0
    camera_removed: bool = False

    def draw_times(self, rng: np.random.Generator, count: int) -> list[float]:
        """Random times of reference frames, from 1 to ``span`` frames before or after the image."""
        distances = rng.uniform(1, max(1, self.span), size=count)
        return (distances * rng.choice([-1, 1], size=count)).tolist()

    def draw(self, rng: np.random.Generator, image: np.ndarray, mask: np.ndarray) -> "Clip":
        """A random pseudo-clip of an image.

        Args:
            rng: source of all random choices.
            image: uint8 RGB (S, S, 3).
            mask: bool (S, S).
        """
        size = len(image)
        pan = affine_field(rng, NODES, NODES)
        pan *= self.camera * size * rng.uniform(0.1, 1) / np.linalg.norm(pan, axis=2).max()
        rests = rng.random() < self.rest
        camera_rests = rests and rng.random() < 0.5
        if camera_rests:
            pan[:] = 0
        own = self._object_motion(rng, mask, pan)
        if rests and not camera_rests:
            own[:] = 0
        relief = 1 + self.parallax * smooth_noise(rng, cells=3)[..., None]
        nearness = 1 + self.parallax * rng.uniform(0, 1)
        alpha = cv2.GaussianBlur(mask.astype(np.float32), (3, 3), 0)
        background = fill_behind(image, mask, rng)
        layers = [Layer(background, None, pan * relief)]
        if rng.random() < self.distractors:
            layers.append(self._distractor(rng, background, pan * relief))
        layers.append(Layer(image, alpha, pan * nearness, own))
        noticed = rng.random() >= self.wrong_flow
        return Clip(
            image=image,
            mask=mask,
            layers=layers,
            shown=layers if noticed else layers[:-1],
            removed=pan if self.camera_removed else np.zeros_like(pan),
            acceleration=rng.uniform(-0.1, 0.1, size=2),
            flatness=flatness(image)[..., None],
            errors=self,
        )

    def _object_motion(
        self, rng: np.random.Generator, mask: np.ndarray, pan: np.ndarray
    ) -> np.ndarray:
        """Motion of the object's own, (NODES, NODES, 2)."""
        size = len(mask)
        rows, columns = np.nonzero(mask)
        centre = np.array([columns.mean(), rows.mean()]) if len(rows) else np.full(2, size / 2)
        length = self.object * size * rng.uniform(0.1, 1)
        angle = rng.uniform(0, 2 * np.pi)
        shift = length * np.array([np.cos(angle), np.sin(angle)])
        linear = rng.uniform(-1, 1, size=(2, 2)) * length / size
        places = node_places(size)
        bend = self.deformation * length * smooth_vectors(rng, cells=4)
        motion = shift + (places - centre) @ linear.T + bend
        if rng.random() < self.tracking:
            motion = (
                0.3 * motion
                - rng.uniform(0.7, 1) * interpolate(pan, centre[None, None], size)[0, 0]
            )
        return motion.astype(np.float32)

    def _distractor(
        self, rng: np.random.Generator, background: np.ndarray, pan: np.ndarray
    ) -> "Layer":
        """A blob of the background that moves by itself."""
        size = len(background)
        blob = cv2.resize(smooth_noise(rng, cells=3), (size, size), interpolation=cv2.INTER_CUBIC)
        alpha = (blob > np.quantile(blob, rng.uniform(0.75, 0.95))).astype(np.float32)
        length = self.object * size * rng.uniform(0.1, 1)
        angle = rng.uniform(0, 2 * np.pi)
        shift = length * np.array([np.cos(angle), np.sin(angle)], np.float32)
        return Layer(
            background, cv2.GaussianBlur(alpha, (3, 3), 0), pan, np.zeros_like(pan) + shift
        )


@dataclass(frozen=True, eq=False)
class Layer:
    """What moves together.

    Attributes:
        picture: uint8 RGB (S, S, 3).
        alpha: opacity (S, S) in [0, 1], float32; ``None`` is opaque.
        with_camera: motion per unit of the camera's time, (NODES, NODES, 2) in pixels.
        own: likewise, of the object's time.
    """

    picture: np.ndarray
    alpha: np.ndarray | None
    with_camera: np.ndarray
    own: np.ndarray | None = None

    def moved(self, times: np.ndarray) -> np.ndarray:
        """Motion in that much of the camera's and of the object's time, (NODES, NODES, 2)."""
        motion = times[0] * self.with_camera
        return motion if self.own is None else motion + times[1] * self.own


@dataclass(frozen=True, eq=False)
class Clip:
    """A pseudo-clip: an image, what its parts do, and how flow maps of it err.

    Attributes:
        image, mask: the frame at time 0, uint8 (S, S, 3) and bool (S, S).
        layers: back to front, and ``shown`` those that flow maps know of.
        removed: the camera's motion where flow maps are relative to it, (NODES, NODES, 2).
        acceleration: of the camera's and the object's time, per frame.
        flatness: how little each part of the image has to follow, (NODES, NODES, 1).
        errors: how large the flow maps' errors are.
    """

    image: np.ndarray
    mask: np.ndarray
    layers: list[Layer]
    shown: list[Layer]
    removed: np.ndarray
    acceleration: np.ndarray
    flatness: np.ndarray
    errors: MotionSimulation

    def frame(self, time: float) -> tuple[np.ndarray, np.ndarray]:
        """The frame at a time, in frames from the image: uint8 (S, S, 3) and its mask, bool."""
        if time == 0:
            return self.image, self.mask
        result = None
        for layer in self.layers:
            where = dense(self._origin(layer, time), len(self.image))
            moved = cv2.remap(
                layer.picture, where, None, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REFLECT_101
            )
            if layer.alpha is None:
                result = moved
                continue
            # What the frame cuts off goes on outside.
            alpha = cv2.remap(
                layer.alpha, where, None, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE
            )
            result = cv2.blendLinear(moved, result, alpha, 1 - alpha)
        return result, alpha > 0.5

    def flow(
        self, time: float, size: int, blur: float = 0.0, bend: np.ndarray | None = None
    ) -> np.ndarray:
        """Motion from the frame at a time to the one a frame later, (size, size, 2) in its pixels.

        Args:
            time: in frames.
            size: side of the flow map in pixels.
            blur: standard deviation in pixels by which the layers' edges are blurred.
            bend: (size, size, 2), by which they are displaced, in pixels.
        """
        full = len(self.image)
        step = self._times(time + 1) - self._times(time)
        result = None
        for layer in self.shown:
            origin = self._origin(layer, time)
            nodes = interpolate(layer.moved(step), origin, full) - step[0] * self.removed
            motion = dense(nodes, size)
            if layer.alpha is None:
                result = motion
                continue
            where = dense(origin, size)
            if bend is not None:
                where += bend * np.float32(full / size)
            alpha = cv2.remap(
                layer.alpha, where, None, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE
            )
            if blur > 0:
                alpha = cv2.GaussianBlur(alpha, (0, 0), blur)
            result += alpha[..., None] * (motion - result)
        return result * np.float32(size / full)

    def flow_picture(self, rng: np.random.Generator, time: float) -> np.ndarray:
        """The flow map of the frame at a time with errors, as the colour wheel shows it.

        Returns:
            uint8 RGB (S, S, 3).
        """
        full = len(self.image)
        size = max(1, round(FLOW_SHARE * full))
        width = self.errors.flow_blur * size
        bend = np.float32(width) * dense(smooth_vectors(rng, cells=8), size)
        flow = self.flow(time, size, rng.uniform(0, width), bend)
        noise = smooth_vectors(rng, cells=8) * self.flatness
        largest = np.linalg.norm(flow, axis=2).max()
        strength = np.float32(self.errors.flow_noise * rng.uniform(0, 1) * largest)
        flow += strength * dense(noise, size)
        stray = largest * (1 + self.errors.flow_outliers * rng.uniform(0, 1))
        flow[tuple(rng.integers(0, size, size=2))] = stray, 0
        return resize(flow_to_picture(flow), full, full)

    def _times(self, time: float) -> np.ndarray:
        """Of camera and object: both move evenly faster or slower."""
        return time + self.acceleration * time**2 / 2

    def _origin(self, layer: Layer, time: float) -> np.ndarray:
        """Where in the layer's picture the points of a frame's grid are: (NODES, NODES, 2)."""
        places = node_places(len(self.image))
        if time == 0:
            return places
        motion = layer.moved(self._times(time))
        origin = places
        for _ in range(_INVERSIONS):
            origin = places - interpolate(motion, origin, len(self.image))
        return origin


def node_places(size: int) -> np.ndarray:
    """Where the grid's nodes are in a picture of that side: (NODES, NODES, 2), (x, y) in pixels."""
    line = np.linspace(0, size - 1, NODES)
    return np.stack(np.meshgrid(line, line), axis=-1)


def interpolate(nodes: np.ndarray, places: np.ndarray, size: int) -> np.ndarray:
    """Values of a grid anywhere in a picture, bilinear; outside as at the edge.

    Args:
        nodes: (NODES, NODES, 2) float32.
        places: (M, N, 2) as (x, y) in pixels of a picture of that ``size``.

    Returns:
        (M, N, 2).
    """
    position = (places * ((NODES - 1) / (size - 1))).astype(np.float32)
    return cv2.remap(nodes, position, None, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)


def dense(nodes: np.ndarray, size: int) -> np.ndarray:
    """A grid (NODES, NODES) or (NODES, NODES, 2) at every pixel, bilinear: (size, size[, 2])."""
    weights = _weights(size)
    nodes = nodes.astype(np.float32)
    if nodes.ndim == 2:
        return weights @ nodes @ weights.T
    return cv2.merge([weights @ nodes[..., axis] @ weights.T for axis in range(nodes.shape[2])])


@lru_cache(maxsize=8)
def _weights(size: int) -> np.ndarray:
    """How much each node counts at each pixel of a line: (size, NODES) float32."""
    position = np.linspace(0, NODES - 1, size)
    return np.maximum(0, 1 - np.abs(position[:, None] - np.arange(NODES))).astype(np.float32)


def smooth_noise(rng: np.random.Generator, cells: int) -> np.ndarray:
    """Random values (NODES, NODES), float32, mostly in [-1, 1], from a grid of that many cells."""
    coarse = rng.uniform(-1, 1, size=(cells + 1, cells + 1)).astype(np.float32)
    return cv2.resize(coarse, (NODES, NODES), interpolation=cv2.INTER_CUBIC)


def smooth_vectors(rng: np.random.Generator, cells: int) -> np.ndarray:
    """The same for vectors, (NODES, NODES, 2)."""
    return cv2.merge([smooth_noise(rng, cells) for _ in range(2)])


def flatness(image: np.ndarray) -> np.ndarray:
    """How little each part of uint8 RGB (S, S, 3) has to follow: (NODES, NODES) in (0, 1]."""
    grey = cv2.cvtColor(image, cv2.COLOR_RGB2GRAY).astype(np.float32)
    contrast = np.abs(cv2.subtract(grey, cv2.blur(grey, (5, 5))))
    contrast = cv2.resize(contrast, (NODES, NODES), interpolation=cv2.INTER_AREA)
    return 1 / (1 + contrast / max(float(contrast.mean()), 1e-3))


def fill_behind(image: np.ndarray, mask: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """The image with something plausible where the object is: texture from beside it.

    What no shift of the image by the object's size covers is filled with the colours around it.

    Args:
        image: uint8 RGB (S, S, 3).
        mask: bool (S, S).
        rng: chooses between sides that cover as much.
    """
    hole = cv2.dilate(mask.astype(np.uint8), np.ones((5, 5), np.uint8))
    rows, columns = np.nonzero(hole)
    if not 0 < len(rows) < mask.size:
        return image
    size = len(image)
    around = resize(_spread(image, hole), size, size)
    width, height = np.ptp(columns) + 1, np.ptp(rows) + 1
    shifts = np.array([(width, 0), (-width, 0), (0, height), (0, -height)])
    best, covered = None, 0
    for shift in rng.permutation(shifts):
        matrix = np.column_stack([np.eye(2), shift]).astype(np.float32)
        usable = cv2.warpAffine(1 - hole, matrix, (size, size), flags=cv2.INTER_NEAREST) & hole
        if (count := cv2.countNonZero(usable)) > covered:
            best, covered = (matrix, usable), count
    filled = np.where(hole[..., None] > 0, around, image)
    if best is not None:
        matrix, usable = best
        shifted = cv2.warpAffine(image, matrix, (size, size), flags=cv2.INTER_NEAREST)
        weight = cv2.blur(usable.astype(np.float32), (7, 7)) * usable
        filled = cv2.blendLinear(shifted, filled, weight, 1 - weight)
    return filled


def _spread(image: np.ndarray, hole: np.ndarray) -> np.ndarray:
    """An image at a quarter of its size whose hole has the colours around it, ever more blurred."""
    quarter = max(1, len(image) // 4)
    known = (1 - hole).astype(np.float32)
    levels = [(resize_area(image * known[..., None], quarter), resize_area(known, quarter))]
    while len(levels[-1][1]) > 1:
        levels.append(tuple(resize_area(x, (len(x) + 1) // 2) for x in levels[-1]))
    filled = levels[-1][0] / max(float(levels[-1][1][0, 0]), 1e-6)
    for colours, weight in reversed(levels[:-1]):
        coarser = cv2.resize(filled, weight.shape[::-1], interpolation=cv2.INTER_LINEAR)
        filled = colours + (1 - weight[..., None]) * coarser
    return filled.clip(0, 255).round().astype(np.uint8)


def resize_area(x: np.ndarray, size: int) -> np.ndarray:
    """Mean over areas, (S, S[, C]) to (size, size[, C])."""
    return cv2.resize(x, (size, size), interpolation=cv2.INTER_AREA)
