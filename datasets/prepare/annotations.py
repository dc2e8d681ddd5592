"""Annotations of frames in JSON files: of LabelMe, COCO and YouTube-VIS."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from datasets.pictures import open_picture
from datasets.prepare.archives import Convert
from datasets.prepare.shapes import Shape, circle, draw_shapes
from datasets.problems import DatasetError

_NO_OBJECT = "_background_", "__ignore__"  # LabelMe's names
_ORIENTATION, _TURNED, _QUARTER_TURNS = 0x0112, range(2, 9), range(5, 9)  # EXIF's tag and values

Annotation = tuple[Path, Convert]  # the file, and the function that makes a frame's label map of it
# The frame's height and width as the file states them, and its objects' numbers with their shapes.
Drawing = tuple[tuple[int | None, int | None], list[tuple[int, Shape]]]


def read_labelme(files: dict[Any, Path]) -> dict[Any, Annotation]:
    """The annotations of a video's frames by frame, from a file of LabelMe for each.

    Shapes of one label and group are one object, which has the same number in all frames.
    Raises DatasetError for a file that is not as LabelMe writes it.
    """
    found = {key: _read(path, _labelme_shapes) for key, path in files.items()}
    names = sorted({name for _, shapes in found.values() for name, _ in shapes})
    numbers = {name: number for number, name in enumerate(names, 1)}
    return {
        key: (files[key], partial(_drawn, (size, [(numbers[name], one) for name, one in shapes])))
        for key, (size, shapes) in found.items()
    }


def read_coco(path: Path) -> dict[str, Annotation]:
    """The annotations of all frames by name, as "<video>/<frame>.jpg", from one file.

    The file is COCO's, or YouTube-VIS's, which has "videos". A frame without any shape counts as
    not annotated. Raises DatasetError for a file that is neither.
    """
    drawings = _read(path, lambda file: (_of_videos if "videos" in file else _of_images)(file))
    return {name: (path, partial(_drawn, drawing)) for name, drawing in drawings.items()}


def _of_images(content: dict[str, Any]) -> dict[str, Drawing]:
    """COCO: an object keeps its number over frames if it has a track_id, as CVAT writes it.

    In each video tracks come first, then in each frame the objects without a track.
    """
    images = {image["id"]: image for image in content["images"]}
    for image in images.values():
        if not isinstance(image["file_name"], str):
            raise ValueError(f"file_name {image['file_name']!r}; expected text")
    tracks: dict[str, dict[Any, int]] = {}  # of each video, by its folder
    for one in content["annotations"]:
        if one.get("segmentation") and (track := _track(one)) is not None:
            of_video = tracks.setdefault(_video(images[one["image_id"]]), {})
            of_video.setdefault(track, len(of_video) + 1)
    drawings: dict[str, Drawing] = {}
    boxes = set()
    for one in content["annotations"]:
        image = images[one["image_id"]]
        if not one.get("segmentation"):
            boxes.add(image["file_name"])
            continue
        _, objects = drawings.setdefault(image["file_name"], (_size(image), []))
        of_video, track = tracks.get(_video(image), {}), _track(one)
        others = sum(number > len(of_video) for number, _ in objects)  # without a track
        number = len(of_video) + others + 1 if track is None else of_video[track]
        objects.append((number, one["segmentation"]))
    for name in sorted(boxes & drawings.keys()):
        raise ValueError(f"{name} has an object with a shape and another one with a box alone")
    return drawings


def _video(image: dict[str, Any]) -> str:
    """The folder of an image's file, which stands for its video."""
    return Path(image["file_name"]).parent.name


def _track(annotation: dict[str, Any]) -> Any:
    return annotation.get("track_id", (annotation.get("attributes") or {}).get("track_id"))


def _of_videos(content: dict[str, Any]) -> dict[str, Drawing]:
    """YouTube-VIS: an annotation is an object of a video, with a shape or null for each frame."""
    videos = {video["id"]: video for video in content["videos"]}
    counts = dict.fromkeys(videos, 0)
    drawings: dict[str, Drawing] = {}
    for one in content["annotations"]:
        video = videos[one["video_id"]]
        counts[video["id"]] += 1
        for name, shape in zip(video["file_names"], one["segmentations"], strict=True):
            if shape:
                _, objects = drawings.setdefault(name, (_size(video), []))
                objects.append((counts[video["id"]], shape))
    return drawings


def _labelme_shapes(content: dict[str, Any]) -> tuple[tuple, list[tuple[tuple[str, int], Shape]]]:
    """The stated size, and shapes with the names of their objects."""
    shapes = []
    for one in content["shapes"]:
        points, kind = one["points"], one.get("shape_type") or "polygon"
        if kind == "rectangle":
            (left, top), (right, bottom) = points
            points = [(left, top), (right, top), (right, bottom), (left, bottom)]
        elif kind == "circle":
            points = circle(*points)
        elif kind != "polygon":
            raise ValueError(f"shape {kind}; expected polygon, rectangle or circle")
        name = str(one["label"]), int(one.get("group_id") or 0)
        if name[0] not in _NO_OBJECT:
            shapes.append((name, [np.ravel(points).tolist()]))
    return (content.get("imageHeight"), content.get("imageWidth")), shapes


def _size(stated: dict[str, Any]) -> tuple[int | None, int | None]:
    return stated.get("height"), stated.get("width")


def _drawn(drawing: Drawing, image: Path, annotation: Path) -> np.ndarray:
    """The label map of a frame."""
    (height, width), objects = drawing
    size = refuse_turned(image, annotation, (height, width))
    if None not in (height, width) and (height, width) != size:
        item = f"{width} x {height}, its image {image.name} {size[1]} x {size[0]}"
        raise DatasetError(f"{annotation}: {item}")
    with _faults(f"{annotation}, {image.name}"):
        return draw_shapes(objects, size)


def refuse_turned(
    image: Path, annotation: Path, size: tuple[int | None, int | None]
) -> tuple[int, int]:
    """The image's height and width as it is stored, if its annotation is of the image as stored.

    ``size`` is the height and width that the annotation states. Raises DatasetError for an image
    with an EXIF orientation that the annotation may follow.
    """
    with open_picture(image) as picture:
        stored = picture.height, picture.width
        # PNG's own getexif would decode the pixels.
        orientation = Image.Image.getexif(picture).get(_ORIENTATION)
    as_stored = orientation in _QUARTER_TURNS and stored[0] != stored[1] and size == stored
    if orientation in _TURNED and not as_stored:
        raise DatasetError(
            f"{annotation}: {image.name} is stored turned (EXIF orientation {orientation}), which "
            "is ignored here but not by programs for annotation; save it upright and annotate that"
        )
    return stored


def _read(path: Path, understand: Any) -> Any:
    """A file's content, as ``understand`` makes it from the parsed JSON."""
    with _faults(path):
        return understand(json.loads(path.read_text(encoding="utf-8")))


@contextmanager
def _faults(where: str | Path) -> Iterator[None]:
    """Makes errors in the content of a file DatasetErrors."""
    try:
        yield
    except (AttributeError, IndexError, KeyError, TypeError, ValueError) as error:
        raise DatasetError(
            f"{where}: not as LabelMe, COCO or YouTube-VIS has it ({type(error).__name__}: "
            f"{error}); docs/data.md says which annotations are read"
        ) from error
