"""FBMS-59 (Ochs et al., PAMI 2014): FBMS_Testset.zip and FBMS_Trainingset.zip.

Images are <part>/<sequence>/<sequence>_<number>.jpg. About every 20th has a mask in the folder
GroundTruth beside it: <image>.pgm with grey labels, or <image>_gt.ppm with colours, beside which
<image>_gt.pgm is a probability map. <sequence>Def.dat lists the label of each region
(65536 R + 256 G + B for ppm), then the masks with the index of their frame, from 0. The first
region is the background, as in the authors' evaluation (MoSegEval_PR.cpp, a copy of it in
achalddave/fbms-evaluation). In marple2 the third and the fifth region are background too, as in
tools/FBMS_clean.py of charigyang/motiongrouping.
"""

import re
from functools import partial
from pathlib import Path

import numpy as np

from datasets.prepare.archives import (
    INCOMPLETE,
    WRONG,
    SourceFrame,
    digits,
    folders,
    frames_of,
    locate,
    numbered,
)
from datasets.prepare.masks import open_any
from datasets.problems import Problems, add_problems


def read_fbms(source: Path, problems: Problems) -> list[SourceFrame]:
    """Frames of both parts, of which some have a mask."""
    frames = []
    for part, set_name in (("Testset", "FBMS_test"), ("Trainingset", "FBMS_train")):
        root = locate(source, [part], problems, required=part == "Testset")
        for sequence in folders(root / part, problems) if root else ():
            folder = root / part / sequence
            images = numbered(folder)
            try:
                (definition,) = (folder / "GroundTruth").glob("[!.]*Def.dat")
                labels, named = _read_definition(definition)
            except ValueError:
                item = f"{folder / 'GroundTruth'}: definition file (Def.dat) missing or unreadable"
                add_problems(problems, WRONG, item)
                continue
            background = {0, 2, 4} if sequence == "marple2" else {0}
            objects = tuple(label for i, label in enumerate(labels) if i not in background)
            masks = _masks_by_number(definition, named, images, problems)
            convert = partial(convert_regions, objects=objects)
            frames += frames_of(f"{set_name}/{sequence}", sequence, images, masks, convert)
    return frames


def _masks_by_number(
    definition: Path, named: list[tuple[int, str]], images: dict[int, Path], problems: Problems
) -> dict[int, Path]:
    """The masks that a definition file names, by frame number."""
    masks: dict[int, Path] = {}
    for index, name in named:
        path = definition.with_name(name)
        number = int(digits(path.stem.removesuffix("_gt")) or -1)
        if number not in images and index < len(images):
            number = sorted(images)[index]
        if number in images and path.is_file():
            masks[number] = path
        else:
            item = f"{path}, named in {definition.name}, or its image"
            add_problems(problems, INCOMPLETE, item)
    return masks


def _read_definition(path: Path) -> tuple[list[int], list[tuple[int, str]]]:
    """Labels of the regions of a Def.dat, and its masks as (index of the frame, file).

    Raises ValueError if it has fewer than two regions, no mask, or no number where one should be.
    """
    text = path.read_text(errors="replace")

    def values(key: str) -> list[str]:
        """The last word of the line after each line that begins with the key."""
        return re.findall(rf"(?im)^\s*{key}.*\s+(\S+)", text)

    labels = [int(value) for value in values("scale of region")]
    pairs = zip(values("frame number"), values("file name"), strict=True)
    named = [(int(index), name) for index, name in pairs]
    if len(labels) < 2 or not named:
        raise ValueError("too few regions or masks")
    return labels, named


def convert_regions(image: Path, mask: Path, objects: tuple[int, ...]) -> np.ndarray:
    """FBMS ground truth as a label map: the regions with the given labels are objects 1, 2, ...

    Labels that the definition file does not know are background, as in the authors' evaluation.
    """
    picture = open_any(mask)
    if picture.mode == "L" or picture.mode.startswith("I"):
        regions = np.asarray(picture).astype(np.int64)
    else:
        regions = np.asarray(picture.convert("RGB")).astype(np.int64) @ (65536, 256, 1)
    labels = np.zeros(regions.shape, np.uint8)
    for number, region in enumerate(objects, 1):
        labels[regions == region] = number
    return labels
