"""SegTrack v2 (Li et al., ICCV 2013): SegTrackv2.zip, 14 sequences with 24 objects.

Images are JPEGImages/<sequence>/<name>, masks GroundTruth/<sequence>/<name>, or of several objects
GroundTruth/<sequence>/<object>/<name>. Both are PNG or BMP, which differs even between the objects
of a sequence (SegTrack2/loader.py of Graviti-AI/tensorbay-python-sdk). Masks are white on black,
some with soft edges.
"""

from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np

from datasets.layout import natural_order
from datasets.prepare.archives import (
    INCOMPLETE,
    SourceFrame,
    digits,
    folders,
    frames_of,
    locate,
)
from datasets.prepare.masks import open_any
from datasets.problems import DatasetError, Problems, add_problems


def read_segtrack(source: Path, problems: Problems) -> list[SourceFrame]:
    """All frames, each with a mask of all of its objects."""
    root = locate(source, ["GroundTruth"], problems)
    frames = []
    for sequence in folders(root / "GroundTruth", problems) if root else ():
        images = _pictures(root / "JPEGImages" / sequence)
        if not images:
            item = f"{root / 'JPEGImages' / sequence}: no images"
            add_problems(problems, INCOMPLETE, item)
        truth = root / "GroundTruth" / sequence
        names = sorted(folders(truth, problems), key=natural_order)
        objects = [_pictures(truth / name) for name in names] or [_pictures(truth)]
        for frame in frames_of(f"SegTrackv2_test/{sequence}", sequence, images, {}):
            number = int(digits(frame.image.stem))
            masks = [of_object.get(number) for of_object in objects]
            if None in masks:
                item = f"{frame.image}: masks of {len(masks) - masks.count(None)} of {len(masks)} "
                add_problems(problems, INCOMPLETE, f"{item}objects")
                continue
            merge = partial(merge_objects, masks=tuple(masks))
            frames.append(replace(frame, mask=masks[0], convert=merge))
    return frames


def _pictures(folder: Path) -> dict[int, Path]:
    """PNG and BMP files of a folder by the number at the end of their names."""
    paths = sorted(folder.iterdir()) if folder.is_dir() else ()
    return {
        int(digits(path.stem)): path
        for path in paths
        if path.suffix.lower() in (".png", ".bmp") and digits(path.stem) and path.name[0] != "."
    }


def merge_objects(image: Path, mask: Path, masks: tuple[Path, ...]) -> np.ndarray | None:
    """One label map of the masks of several objects; None for one object's PNG.

    A pixel is of an object if it is lighter than the middle of the range; of two objects that
    overlap, of the later one.
    """
    if len(masks) == 1 and mask.suffix.lower() == ".png":
        return None
    found = [np.asarray(open_any(path).convert("L")) > 127 for path in masks]
    if len({one.shape for one in found}) > 1:
        raise DatasetError(f"{mask}: its size is not that of the other objects' masks")
    labels = np.zeros(found[0].shape, np.uint8)
    for number, one in enumerate(found, 1):
        labels[one] = number
    return labels
