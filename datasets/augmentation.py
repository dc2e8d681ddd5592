"""From decoded frames to network inputs: resizing, and random changes for training (Sec. 4.4)."""

from dataclasses import dataclass, replace

import cv2
import numpy as np
from numpy.random import Generator

from datasets.flow.colour_wheel import change_motion

Size = int | tuple[int, int]  # of a network's input in pixels: a square's side, or height and width

GREY_WEIGHTS = np.array([0.299, 0.587, 0.114])
BLUR = np.array([[1, 1, 1], [1, 5, 1], [1, 1, 1]]) / 13  # what Pillow calls SMOOTH


@dataclass(frozen=True)
class Augmentation:
    """Random flip, crop, rotation, colour and sharpness; the names are those of config.py.

    The frame, its label map and its flow map get the same geometry, the frame alone the colours.
    With ``recolour_flow`` the flow map's colours follow the geometry: mirrored motion points the
    other way. Cropping and resizing change motion by a factor that colours do not show.
    """

    flip_probability: float = 0.5
    crop_scale: float = 0.8
    rotation_probability: float = 0.2
    rotation_degrees: float = 15.0
    brightness: float = 0.5
    contrast: float = 0.5
    saturation: float = 1.0
    sharpness: float = 0.0
    recolour_flow: bool = True
    flow_turn: float = 0.0

    def __call__(
        self,
        rng: Generator,
        size: Size,
        image: np.ndarray,
        flow: np.ndarray | None = None,
        labels: np.ndarray | None = None,
    ) -> tuple[np.ndarray, np.ndarray | None, np.ndarray | None]:
        """One random version of a frame, at the given size.

        Takes an image and a flow picture of any size, uint8 RGB (H, W, 3), and a label map, uint8
        (H, W). The same random numbers are drawn with and without a flow map.
        """
        geometry = self._draw_geometry(rng, size)
        factors = [
            1 + rng.uniform(-1, 1) * strength
            for strength in (self.brightness, self.contrast, self.saturation)
        ]
        motion_rng = np.random.default_rng(rng.integers(2**63))
        image = change_colours(geometry.apply(image), *factors)
        if self.sharpness > 0:
            # From a generator of its own: with and without, all other draws are the same.
            factor = motion_rng.spawn(1)[0].uniform(max(0, 1 - self.sharpness), 1 + self.sharpness)
            image = change_sharpness(image, factor)
        if flow is not None:
            flow = self._change_flow(motion_rng, geometry, geometry.apply(flow))
        return image, flow, None if labels is None else geometry.apply_labels(labels)

    def in_two(self) -> "tuple[Augmentation, Augmentation]":
        """Crop, rotation and mirroring, then all the rest."""
        first = dict.fromkeys(("brightness", "contrast", "saturation", "sharpness", "flow_turn"), 0)
        rest = {"crop_scale": 1.0, "rotation_probability": 0.0, "flip_probability": 0.0}
        return replace(self, **first), replace(self, **rest)

    def _draw_geometry(self, rng: Generator, size: Size) -> "Geometry":
        flip = rng.random() < self.flip_probability
        shares = rng.uniform(self.crop_scale, 1, size=2)
        corner = rng.random(2) * (1 - shares)
        angle = rng.uniform(-1, 1) * self.rotation_degrees
        if rng.random() >= self.rotation_probability:
            angle = 0.0
        return Geometry(size, flip, tuple(shares), tuple(corner), angle)

    def _change_flow(self, rng: Generator, geometry: "Geometry", flow: np.ndarray) -> np.ndarray:
        linear = geometry.linear if self.recolour_flow else np.eye(2)
        linear = rotation(np.deg2rad(rng.uniform(-1, 1) * self.flow_turn)) @ linear
        return flow if np.allclose(linear, np.eye(2)) else change_motion(flow, linear)


@dataclass(frozen=True)
class Geometry:
    """A crop, resized, then perhaps mirrored and rotated about its centre."""

    size: Size  # of the result
    flip: bool  # mirror left to right
    shares: tuple[float, float]  # width and height of the crop, as shares of the frame's
    corner: tuple[float, float]  # its left and upper edge, likewise
    angle: float  # rotation in degrees, clockwise as seen in the picture

    @property
    def sides(self) -> np.ndarray:
        """Width and height of the result in pixels, (2,)."""
        return np.array([self.size] * 2 if isinstance(self.size, int) else self.size[::-1])

    @property
    def linear(self) -> np.ndarray:
        """Mirroring and rotation of a motion vector (x right, y down), (2, 2)."""
        mirror = np.diag([-1.0 if self.flip else 1.0, 1.0])
        return rotation(np.deg2rad(self.angle)) @ mirror

    def apply(self, picture: np.ndarray) -> np.ndarray:
        """(H, W) or (H, W, C) of uint8 to the result's size.

        A whole frame that is not rotated is resized by ``resize``. Otherwise each side is halved
        until its scale is at least 2 / 3, and one bilinear step does the rest. This is about as
        smooth as resizing by area, and several times as fast.
        """
        if self.angle == 0:
            picture = self._crop(picture)
            return cv2.flip(picture, 1) if self.flip else picture
        picture, frame = self._shrink(picture)
        # OpenCV has the middle of the first pixel at 0, shares have it at half a pixel.
        crop_middle = np.add(self.corner, np.divide(self.shares, 2)) * frame - 0.5
        result_middle = (self.sides - 1) / 2
        linear = self.linear / (np.multiply(self.shares, frame) / self.sides)
        return cv2.warpAffine(
            picture,
            np.column_stack([linear, result_middle - linear @ crop_middle]),
            self.sides.tolist(),
            borderMode=cv2.BORDER_REFLECT_101,
        )

    def apply_labels(self, labels: np.ndarray) -> np.ndarray:
        """A label map, uint8 (H, W): each pixel of the result gets the label it has most of."""
        found = np.flatnonzero(np.bincount(labels.ravel(), minlength=256)[1:]) + 1
        shares = [self.apply((labels == label).astype(np.uint8) * 255) for label in found]
        if len(found) == 1:
            return (shares[0] > 127).astype(np.uint8) * np.uint8(found[0])
        shares = np.stack([self.apply((labels == 0).astype(np.uint8) * 255), *shares])
        return np.array([0, *found], np.uint8)[shares.argmax(axis=0)]

    def _crop(self, picture: np.ndarray) -> np.ndarray:
        """The crop, resized; its edges are rounded to pixels of the shrunk frame."""
        if self.shares == (1, 1):
            return resize(picture, *self.sides[::-1])
        picture, frame = self._shrink(picture)
        last = np.subtract(picture.shape[1::-1], 1)
        left, upper = start = np.minimum(np.round(self.corner * frame), last).astype(int)
        end = np.round(np.add(self.corner, self.shares) * frame).astype(int)
        right, lower = np.maximum(end, start + 1)
        return cv2.resize(picture[upper:lower, left:right], self.sides.tolist())

    def _shrink(self, picture: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Halve each side until the crop's is at most 1.5 times the result's.

        Also returns the frame's width and height in the new pixels. Pixels at the right and lower
        edge that do not fill a whole block are left out of the picture, but not of these sides.
        """
        sides = np.array(picture.shape[1::-1])
        too_large = np.multiply(self.shares, sides) / (1.5 * self.sides)
        wide, high = halvings = np.ceil(np.log2(np.maximum(too_large, 1))).astype(int)
        picture = picture[: sides[1] >> high << high, : sides[0] >> wide << wide]
        while wide or high:
            # At half the size, bilinear is the mean of two pixels; OpenCV is much faster at it.
            shape = picture.shape[1] >> (wide > 0), picture.shape[0] >> (high > 0)
            picture = cv2.resize(picture, shape, interpolation=cv2.INTER_LINEAR)
            wide, high = max(wide - 1, 0), max(high - 1, 0)
        return picture, sides / 2.0**halvings


def whole_frame(size: Size, flip: bool = False) -> Geometry:
    """The geometry of a test frame: all of it, resized, perhaps mirrored."""
    return Geometry(size, flip, shares=(1.0, 1.0), corner=(0.0, 0.0), angle=0.0)


def resize(picture: np.ndarray, height: int, width: int) -> np.ndarray:
    """Resize uint8 (H, W) or (H, W, C), by area where it shrinks and bilinearly where it grows."""
    if picture.shape[:2] == (height, width):
        return picture
    shrinks = height <= picture.shape[0] and width <= picture.shape[1]
    method = cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR
    return cv2.resize(picture, (width, height), interpolation=method)


def change_colours(
    image: np.ndarray, brightness: float, contrast: float, saturation: float
) -> np.ndarray:
    """Multiply brightness, then contrast about the mean grey, then saturation; uint8 RGB (H, W, 3).

    Only the result is rounded and cut off at 0 and 255.
    """
    mean = brightness * GREY_WEIGHTS @ cv2.mean(image)[:3]
    # All three steps are linear in the picture, its grey version and their mean: one matrix.
    colours = saturation * np.eye(3) + (1 - saturation) * GREY_WEIGHTS
    offset = np.full(3, (1 - contrast) * mean)
    return cv2.transform(image, np.column_stack([brightness * contrast * colours, offset]))


def change_sharpness(image: np.ndarray, factor: float) -> np.ndarray:
    """Multiply the difference to a slightly blurred image; uint8 RGB (H, W, 3).

    A factor of 0 gives the blurred image, 1 the image as it is, more than 1 a sharper one.
    """
    unchanged = np.zeros((3, 3))
    unchanged[1, 1] = 1
    return cv2.filter2D(image, -1, BLUR + factor * (unchanged - BLUR))


def rotation(radians: float) -> np.ndarray:
    """Matrix (2, 2) of a rotation, clockwise as seen in a picture (x right, y down)."""
    cosine, sine = np.cos(radians), np.sin(radians)
    return np.array([[cosine, -sine], [sine, cosine]])
