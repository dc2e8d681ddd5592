"""Flow maps as pictures: the Middlebury colour wheel, and changes of the motion that they show.

The wheel (Baker et al., IJCV 2011) shows the direction of motion as a hue and its length as
saturation: white is no motion, a full colour is the largest motion of the frame. Every colour at
the wheel's rim has one channel at 255 and one at 0. The spread of a colour's channels therefore
gives the length. Motion vectors are (x, y), x to the right and y down.
"""

import cv2
import numpy as np

UNKNOWN = 1e9  # motion, in pixels, from which on it is unknown: a convention of Middlebury's files

# Steps between neighbouring pure colours: red-yellow, yellow-green, green-cyan, ... magenta-red.
_STEPS = (15, 6, 4, 11, 13, 6)
_PURE = ((255, 0, 0), (255, 255, 0), (0, 255, 0), (0, 255, 255), (0, 0, 255), (255, 0, 255))

# Table sizes, fine enough that the error of a look-up stays well below one grey level.
_DIRECTIONS = 8192
_HUES = 4096


def _wheel() -> np.ndarray:
    """The 55 colours of the rim, (55, 3) in 0..255, from red by way of yellow back towards red."""
    colours = []
    for start, end, steps in zip(_PURE, (*_PURE[1:], _PURE[0]), _STEPS, strict=True):
        change = np.sign(np.subtract(end, start))
        # The original code rounds the change down, also where the channel falls.
        colours += [np.add(start, change * (255 * i // steps)) for i in range(steps)]
    return np.array(colours, dtype=np.float32)


def _ink_of_directions() -> np.ndarray:
    """(_DIRECTIONS, 3) float32: white less the colour of the longest motion, by direction."""
    wheel = _wheel()
    # As in the original code, the circle ends at the last colour and is not closed to the first.
    places = (np.arange(_DIRECTIONS) + 0.5) / _DIRECTIONS * (len(wheel) - 1)
    ink = [np.interp(places, np.arange(len(wheel)), 255 - wheel[:, c]) for c in range(3)]
    return np.stack(ink, axis=1).astype(np.float32)


def _vectors_of_hues() -> np.ndarray:
    """(_HUES, 2) float32: the unit vector that each hue (0 to 360 degrees in _HUES parts) shows."""
    wheel = _wheel()
    hues = cv2.cvtColor(wheel[None] / 255, cv2.COLOR_RGB2HSV)[0, :, 0]
    # Resizing and JPEG make hues between the last colour and red where the motion is to the right.
    # np.interp continues the last angle, which is to the right too.
    places = np.interp((np.arange(_HUES) + 0.5) * 360 / _HUES, hues, np.arange(len(wheel)))
    angles = places / (len(wheel) - 1) * 2 * np.pi
    return np.stack([np.cos(angles), np.sin(angles)], axis=1).astype(np.float32)


_INK = _ink_of_directions()
_VECTORS = _vectors_of_hues()


def flow_to_picture(flow: np.ndarray, at_least: float = 0.0) -> np.ndarray:
    """Draw a flow map (H, W, 2) in pixels with the colour wheel: uint8 RGB (H, W, 3).

    It is normalised by its largest motion, or by `at_least` pixels, if that is more. Motion of 1e9
    pixels or more is unknown (Middlebury's convention) and drawn as none. Raises ValueError if a
    value is not finite.
    """
    x, y = cv2.split(np.ascontiguousarray(flow, dtype=np.float32))
    length, angle = cv2.cartToPolar(x, y)
    largest = float(length.max())
    if not largest < UNKNOWN:
        if not np.isfinite(flow).all():
            raise ValueError("a flow map holds values that are not finite")
        length[~(length < UNKNOWN)] = 0
        largest = float(length.max())
    largest = max(largest, at_least)
    if largest > 0:
        length /= largest
    index = (angle * np.float32(_DIRECTIONS / (2 * np.pi))).astype(np.intp)
    ink = np.take(_INK, index, axis=0, mode="clip")
    ink *= length[..., None]
    return cv2.convertScaleAbs(ink, alpha=-1, beta=255)


def change_motion(picture: np.ndarray, linear: np.ndarray) -> np.ndarray:
    """Turn, mirror or shorten the motion that a colour-wheel picture shows; no pixel is moved.

    For augmentation: mirroring and rotation of a picture, uint8 RGB (H, W, 3), also change its
    motion. ``linear`` (2, 2) is multiplied with every motion vector (x, y), and makes none longer.
    All colours of a hue change as its full colour at the rim does.
    """
    index, spread = _hues(picture)
    vectors = (_VECTORS @ np.asarray(linear).T).astype(np.float32)
    rim = np.zeros((_HUES, 4), np.uint8)
    rim[:, :3] = 255 - flow_to_picture(vectors[None], at_least=1.0)[0]
    # NumPy looks up numbers of four bytes several times as fast as rows of three.
    ink = np.take(rim.view(np.uint32)[:, 0], index, mode="clip")
    ink = cv2.cvtColor(ink.view(np.uint8).reshape(*ink.shape, 4), cv2.COLOR_RGBA2RGB)
    return cv2.bitwise_not(cv2.multiply(ink, cv2.merge([spread] * 3), scale=1 / 255))


def _hues(picture: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Each pixel's hue, as an index up to `_HUES`, and its largest less its smallest channel."""
    channels = cv2.split(picture)
    spread = cv2.subtract(
        cv2.max(cv2.max(*channels[:2]), channels[2]), cv2.min(cv2.min(*channels[:2]), channels[2])
    )
    hue = cv2.extractChannel(cv2.cvtColor(picture.astype(np.float32), cv2.COLOR_RGB2HSV), 0)
    return (hue * np.float32(_HUES / 360)).astype(np.intp), spread
