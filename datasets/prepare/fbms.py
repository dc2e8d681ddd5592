"""FBMS-59 (Ochs et al., PAMI 2014): FBMS_Testset.zip and FBMS_Trainingset.zip.

Images are <part>/<sequence>/<sequence>_<number>.jpg. About every 20th has a mask in the folder
GroundTruth beside it: <image>.pgm with grey labels, or <image>_gt.ppm with colours, beside which
<image>_gt.pgm is a probability map. <sequence>Def.dat lists the label of each region
(65536 R + 256 G + B for ppm), then the masks with the index of their frame, from 0. The first
region is the background. The authors' evaluation reads it so (MoSegEval_PR.cpp, a copy of it in
achalddave/fbms-evaluation; also utils/fbms.py of achalddave/segment-any-moving). Without a Def.dat,
white is background in a ppm and black in a pgm, as in loaders that do not use it.

In marple2 two public converters take further regions as background: one the third and the fifth,
the other all of a grey below 0.4 (tools/FBMS_clean.py of charigyang/motiongrouping). Here it is the
third and the fifth. Only the former converter does the like in marple7, marple10 and marple13, so
that every region but the first is foreground there.
"""

import re
from functools import partial
from pathlib import Path

import numpy as np

from datasets.layout import Problems
from datasets.prepare.archives import (
    DUPLICATE,
    MISSING_FRAME,
    MISSING_SEQUENCE,
    NO_IMAGE,
    SourceFrame,
    add,
    entries,
    frames_of,
    locate,
    number_of,
    numbered,
)
from datasets.prepare.masks import Reader, read_foreground, read_labels

_NO_MASKS = ("sequence without any mask", "unpack the archive again")
_DEFINITION = ("definition file (Def.dat) that cannot be read", "unpack the archive again")


def read_fbms(source: Path, problems: Problems) -> list[SourceFrame]:
    """Frames of both parts, of which some have a mask."""
    frames = []
    for part, set_name in (("Testset", "FBMS_test"), ("Trainingset", "FBMS_train")):
        root = locate(source, [part], problems, required=part == "Testset")
        for sequence in entries(root / part)[0] if root is not None else ():
            folder = root / part / sequence
            images = numbered(folder, problems)
            if not images:
                add(problems, MISSING_SEQUENCE, folder)
                continue
            masks, read_mask = _fbms_masks(folder, images, problems)
            if not masks:
                add(problems, _NO_MASKS, folder / "GroundTruth")
            frames += frames_of(f"{set_name}/{sequence}", sequence, images, masks, read_mask)
    return frames


def _fbms_masks(
    folder: Path, images: dict[int, Path], problems: Problems
) -> tuple[dict[int, Path], Reader | None]:
    """Masks of an FBMS sequence by frame number, and how they are read."""
    truth = folder / "GroundTruth"
    files = entries(truth)[1]
    definitions = [truth / name for name in files if name.lower().endswith(".dat")]
    if not definitions:
        return _fbms_masks_by_name(truth, files, images, problems)
    try:
        (definition,) = definitions
        labels, named = _read_definition(definition)
    except ValueError:
        add(problems, _DEFINITION, ", ".join(map(str, definitions)))
        return {}, None
    masks: dict[int, Path] = {}
    for index, name in named:
        number = number_of(Path(name).stem.removesuffix("_gt"))
        if number not in images:
            number = dict(enumerate(sorted(images))).get(index)
        if name not in files:
            add(problems, MISSING_FRAME, f"{truth / name}, named in {definition.name}")
        elif number is None:
            add(problems, NO_IMAGE, truth / name)
        elif number in masks:
            add(problems, DUPLICATE, f"{truth / name} beside {masks[number].name}")
        else:
            masks[number] = truth / name
    background = {0, 2, 4} if folder.name == "marple2" else {0}
    foreground = tuple(label for i, label in enumerate(labels) if i not in background)
    return masks, partial(read_regions, foreground=foreground)


def _read_definition(path: Path) -> tuple[list[int], list[tuple[int, str]]]:
    """Labels of the regions of a Def.dat, and its masks as (index of the frame, file).

    Raises:
        ValueError: it has fewer than two regions, no mask, or no number where one should be.
    """
    text = path.read_text(errors="replace")

    def values(key: str) -> list[str]:
        """What follows in the next line after each line that begins with the key."""
        return re.findall(rf"(?im)^\s*{key}.*\s+(\S+)", text)

    labels = [int(value) for value in values("scale of region")]
    pairs = zip(values("frame number"), values("file name"), strict=True)
    named = [(int(index), name) for index, name in pairs]
    if len(labels) < 2 or not named:
        raise ValueError("too few regions or masks")
    return labels, named


def _fbms_masks_by_name(
    truth: Path, files: list[str], images: dict[int, Path], problems: Problems
) -> tuple[dict[int, Path], Reader | None]:
    """The same without a definition file; where there are both ppm and pgm, ppm has the labels."""
    for suffix, read_mask in ((".ppm", _not_white), (".pgm", read_foreground), (".png", None)):
        paths = [truth / name for name in files if name.lower().endswith(suffix)]
        numbers = {number_of(p.stem.removesuffix("_gt")): p for p in paths if "PROB" not in p.name}
        numbers.pop(None, None)
        add(problems, NO_IMAGE, *(path for n, path in numbers.items() if n not in images))
        masks = {number: path for number, path in numbers.items() if number in images}
        if masks:
            return masks, read_mask
    return {}, None


def read_regions(path: Path, foreground: tuple[int, ...]) -> np.ndarray:
    """FBMS ground truth as foreground, (H, W) bool: the regions with the given labels.

    A label that the definition file does not know (there is one in cats04_0020_gt.ppm, says
    utils/fbms.py of achalddave/segment-any-moving) counts as background, as in the evaluation.
    """
    return np.isin(read_labels(path), foreground)


def _not_white(path: Path) -> np.ndarray:
    """Ground truth in colours without a definition file, (H, W) bool."""
    return read_labels(path) != 0xFFFFFF
