"""The data sets as their authors' archives unpack: where frames and masks are, and in what format.

One description a data set, in `SOURCES`, read by `datasets.prepare`. Facts were looked up in public
code that reads the archives (named in the readers below), not in the archives themselves, which
were not at hand; where that code knows several variants, all of them are read. "Issue" below means
a GitHub issue of the named repository.

A source may be given as the folder with the data in it, or one or two folders above it.
"""

import json
import os
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import pairwise
from pathlib import Path

import numpy as np
from PIL import Image

from datasets.layout import IMAGE_SUFFIXES, DatasetError, Problems

# What a partial copy of a data set lacks. Whoever reads only a part accepts these, and no others.
_COMPLETE = "complete the download, or take what is there with --partial"
FEWER = ("count below the known one", _COMPLETE)
MISSING_SEQUENCE = ("sequence without frames", _COMPLETE)
MISSING_FRAME = ("frame or mask that a list names and that is not there", _COMPLETE)
NO_MASK = ("image without mask", _COMPLETE)
NO_IMAGE = ("mask without image", _COMPLETE)
PARTIAL = {FEWER, MISSING_SEQUENCE, MISSING_FRAME, NO_MASK, NO_IMAGE}

MISSING = ("folder or file missing", "check that --source is the unpacked archive")
_AMBIGUOUS = ("folder found twice", "give the one that is meant as --source")
_DUPLICATE = ("second file for the same frame", "keep one of the two")
_NUMBERLESS = ("file whose name does not end in a frame number", "remove it")
_NO_MASKS = ("sequence without any mask", "unpack the archive again")
_LIST = ("list that cannot be read", "unpack the archive again")
_ONLY_VOID = (
    "video whose masks hold nothing but void (255)",
    "give its objects labels of their own, from 1",
)
_DEFINITION = ("definition file (Def.dat) that cannot be read", "unpack the archive again")

_PICTURES = (*IMAGE_SUFFIXES, ".ppm", ".pgm", ".bmp")

YOUTUBE_OBJECTS_CLASSES = (
    "aeroplane",
    "bird",
    "boat",
    "car",
    "cat",
    "cow",
    "dog",
    "horse",
    "motorbike",
    "train",
)


@dataclass(frozen=True)
class SourceFrame:
    """One image of a data set, what belongs to it, and where it goes."""

    folder: str  # that will hold its RGB and GT, relative to the data root: "DAVIS_test/cows"
    sequence: str  # "" for still images
    name: str  # without suffix, as "cows_00012"
    image: Path
    mask: Path | None
    # Makes (H, W) bool of a mask that this project would not read rightly; None: it is kept.
    read_mask: Callable[[Path], np.ndarray] | None = None
    following: Path | None = None  # the next image of the video, where no next frame has it


@dataclass(frozen=True)
class Known:
    """What a complete set holds; None where no number was found that could be relied on."""

    sequences: int | None = None
    images: int | None = None
    masks: int | None = None
    optional: bool = False  # the source need not hold this set
    note: str = ""  # where the numbers are from, and which others are published


@dataclass(frozen=True)
class Source:
    """Description of one data set.

    `read(source, problems)` returns the frames found below a folder and adds to `problems` what is
    wrong with it.
    """

    layout: tuple[str, ...]  # what is expected below the source, one pattern a line
    read: Callable[[Path, Problems], list[SourceFrame]]
    known: dict[str, Known] = field(default_factory=dict)  # by the name of this project's set
    video: bool = True
    void: int | None = None  # label that means neither object nor background
    void_in_grey: bool = False  # masks without a palette have the void label too
    one_object: bool = False  # masks hold one object and no void
    resize_masks: bool = False  # masks may be smaller than their images


@contextmanager
def open_picture(path: Path) -> Iterator[Image.Image]:
    """A picture of any format, not yet decoded; what goes wrong in it becomes a DatasetError."""
    try:
        with Image.open(path) as picture:
            yield picture
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise DatasetError(f"{path}: cannot be read ({error})") from error


def read_labels(path: Path) -> np.ndarray:
    """Labels of a mask in any format.

    Returns:
        (H, W) int64: palette index, grey value, or 65536 R + 256 G + B of a colour picture.

    Raises:
        DatasetError: the file cannot be decoded.
    """
    with open_picture(path) as picture:
        if picture.mode in ("1", "L", "P") or picture.mode.startswith("I"):
            return np.asarray(picture).astype(np.int64)
        return np.asarray(picture.convert("RGB")).astype(np.int64) @ (65536, 256, 1)


def read_foreground(path: Path, void: int | None = None) -> np.ndarray:
    """Mask with any number of objects as foreground, (H, W) bool: labels but 0 and `void`.

    In a colour picture, void is that value in all channels.
    """
    labels = read_labels(path)
    if void is not None and labels.max(initial=0) > 0xFFFF:
        void *= 0x010101
    return (labels != 0) & (labels != void)


def read_regions(path: Path, foreground: tuple[int, ...]) -> np.ndarray:
    """FBMS ground truth as foreground, (H, W) bool: the regions with the given labels.

    A label that the definition file does not know (there is one in cats04_0020_gt.ppm, says
    utils/fbms.py of achalddave/segment-any-moving) counts as background, as in the evaluation.
    """
    return np.isin(read_labels(path), foreground)


def _read_duts(source: Path, problems: Problems) -> list[SourceFrame]:
    """DUTS (Wang et al., CVPR 2017): DUTS-TR.zip and DUTS-TE.zip, grey masks with 0 and 255.

    The folders are those that U-2-Net's u2net_train.py reads. 10,553 and 5,019 images:
    http://saliencydetection.net/duts/.
    """
    frames = []
    for part, set_name, required in (("TR", "DUTS_train", True), ("TE", "DUTS_test", False)):
        images_folder = _locate(source, f"DUTS-{part}-Image", problems, required)
        if images_folder is None:
            continue
        masks_folder = images_folder.with_name(f"DUTS-{part}-Mask")
        images = _pictures(images_folder, problems)
        masks = _pictures(masks_folder, problems)
        _unpaired(images_folder, images, masks_folder, masks, problems, every=True)
        frames += [
            SourceFrame(set_name, "", stem, images[stem], masks[stem])
            for stem in sorted(images.keys() & masks.keys())
        ]
    return frames


def _read_davis(
    source: Path, problems: Problems, annotations: tuple[str, ...], lists: tuple[str, ...]
) -> list[SourceFrame]:
    """DAVIS 2016 and the 2016 split of DAVIS 2017, at 480p.

    Folders and lists as in fperazzi/davis and davisvideochallenge/davis2017-evaluation
    (davis2017/davis.py, whose loader turns label 255 into background). A list has a sequence a
    line, or, in the archive of 2016, a frame: "/JPEGImages/480p/bear/00000.jpg /Annotations/...".
    Masks of 2016 are 0 and 255 (some with several channels, as bear/00077.png), those of 2017 have
    a palette and a label an object.
    """
    images_root = _locate(source, "JPEGImages/480p", problems)
    if images_root is None:
        return []
    root = images_root.parents[1]
    masks_root = _first(root, [f"{name}/480p" for name in annotations], problems)
    frames = []
    for split, set_name in (("train", "DAVIS_train"), ("val", "DAVIS_test")):
        names = [f"ImageSets/{name}/{split}.txt" for name in lists]
        list_file = _first(root, names, problems)
        if masks_root is None or list_file is None:
            continue
        for sequence, listed in _read_list(list_file, problems).items():
            if not (images_root / sequence).is_dir():
                _add(problems, MISSING_SEQUENCE, f"{images_root / sequence}, named in {list_file}")
                continue
            images = _numbered(images_root / sequence, problems)
            masks = _numbered(masks_root / sequence, problems)
            for frame in sorted(listed - images.keys()):
                _add(problems, MISSING_FRAME, f"{images_root / sequence / f'{frame:05d}.jpg'}")
            for frame in sorted(listed - masks.keys()):
                _add(problems, MISSING_FRAME, f"{masks_root / sequence / f'{frame:05d}.png'}")
            # Frames that a list names were reported, so that --partial can leave them out.
            images = {n: path for n, path in images.items() if n in masks or n not in listed}
            masks = {n: path for n, path in masks.items() if n in images or n not in listed}
            folders = images_root / sequence, images, masks_root / sequence, masks
            _unpaired(*folders, problems, every=True)
            folder = set_name if split == "train" else f"{set_name}/{sequence}"
            frames += _frames(folder, sequence, images, masks, only_annotated=True)
    return frames


def _read_youtube_vos(source: Path, problems: Problems) -> list[SourceFrame]:
    """YouTube-VOS (Xu et al., 2018 or 2019), the `train` archive: palette masks, a label an object.

    train/{JPEGImages,Annotations}/<video>/<frame> and meta.json, {"videos": {<video>: ...}}; every
    fifth image of the video is there and is annotated while an object is in view. The archive
    `train_all_frames` has all images, train_all_frames/JPEGImages/<video>/<frame>. Annotated images
    become frames. Flow is the motion to the next image of the two archives, annotated or not.
    3,471 videos: https://youtube-vos.org/dataset/vos/.
    """
    # Beside train there often are valid and test, which have an Annotations folder too.
    masks_root = _locate(source, "train/Annotations", problems, required=False)
    masks_root = masks_root or _locate(source, "Annotations", problems)
    images_root = masks_root and _first(masks_root.parent, ["JPEGImages"], problems)
    if images_root is None or masks_root is None:
        return []
    videos = set(_subfolders(masks_root))
    meta = masks_root.with_name("meta.json")
    if meta.is_file():
        try:
            listed = set(json.loads(meta.read_text(encoding="utf-8"))["videos"].keys())
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
            _add(problems, _LIST, str(meta))
            listed = set()
        for video in sorted(listed - videos):
            _add(problems, MISSING_SEQUENCE, f"{masks_root / video}, named in {meta}")
    all_root = _locate(source, "train_all_frames/JPEGImages", problems, required=False)
    frames = []
    for video in sorted(videos):
        images_folder, masks_folder = images_root / video, masks_root / video
        images, masks = _numbered(images_folder, problems), _numbered(masks_folder, problems)
        _unpaired(images_folder, images, masks_folder, masks, problems)
        every = (_numbered(all_root / video, problems) if all_root else {}) | images
        following = dict(pairwise(sorted(every)))
        for frame in _frames("YTVOS_train", video, images, masks, only_annotated=True):
            after = following.get(_number(frame.image.stem))
            own = after is None or (after in images and after in masks)
            frames.append(replace(frame, following=None if own else every[after]))
    return frames


def _read_fbms(source: Path, problems: Problems) -> list[SourceFrame]:
    """FBMS-59 (Ochs et al., PAMI 2014): FBMS_Testset.zip and FBMS_Trainingset.zip.

    <part>/<sequence>/<sequence>_<number>.jpg, and in GroundTruth beside them a mask of about every
    20th frame: <image>.pgm with grey labels, or <image>_gt.ppm with colours, beside which
    <image>_gt.pgm is a probability map. <sequence>Def.dat lists the label of each region
    (65536 R + 256 G + B for ppm), then the masks with the index of their frame, from 0. The first
    region is the background. So the authors' own evaluation reads it (MoSegEval_PR.cpp, a copy of
    it in achalddave/fbms-evaluation; also utils/fbms.py of achalddave/segment-any-moving). Without
    a Def.dat, white is background in a ppm and black in a pgm, as loaders that do not use it do.

    In marple2 some regions but the first are background to two public converters: the third and
    fifth to one, all of a grey below 0.4 to the other (tools/FBMS_clean.py of
    charigyang/motiongrouping). Here it is the third and fifth. For marple7, marple10 and marple13
    only the former says anything like it, so there every region but the first is foreground.

    30 and 29 sequences: lists in the same FBMS_clean.py. 720 masks in all.
    """
    frames = []
    for part, set_name, required in (
        ("Testset", "FBMS_test", True),
        ("Trainingset", "FBMS_train", False),
    ):
        root = _locate(source, part, problems, required)
        for sequence in _subfolders(root) if root is not None else ():
            images = _numbered(root / sequence, problems)
            if not images:
                _add(problems, MISSING_SEQUENCE, str(root / sequence))
                continue
            masks, read_mask = _fbms_masks(root / sequence, images, problems)
            if not masks:
                _add(problems, _NO_MASKS, str(root / sequence / "GroundTruth"))
            folder = f"{set_name}/{sequence}"
            frames += _frames(folder, sequence, images, masks, read_mask=read_mask)
    return frames


def _fbms_masks(
    folder: Path, images: dict[int, Path], problems: Problems
) -> tuple[dict[int, Path], Callable[[Path], np.ndarray] | None]:
    """Masks of an FBMS sequence by frame number, and how they are read."""
    truth = folder / "GroundTruth"
    files = _files(truth)
    definitions = [path for name, path in files.items() if name.lower().endswith(".dat")]
    if not definitions:
        return _fbms_masks_by_name(files, images, problems)
    lines = [line.strip() for line in definitions[0].read_text(errors="replace").splitlines()]
    entries: dict[str, list[str]] = {"scale of region": [], "frame number": [], "file name": []}
    for key, value in pairwise(line for line in lines if line):
        for start in entries:
            if key.lower().startswith(start):
                entries[start].append(value)
    try:
        labels = [int(value) for value in entries["scale of region"]]
        named = [
            (int(index), name)
            for index, name in zip(entries["frame number"], entries["file name"], strict=True)
        ]
    except ValueError:
        labels, named = [], []
    if len(definitions) > 1 or len(labels) < 2 or not named:
        _add(problems, _DEFINITION, ", ".join(map(str, definitions)))
        return {}, None
    masks: dict[int, Path] = {}
    in_order = sorted(images)
    for index, name in named:
        if name not in files:
            _add(problems, MISSING_FRAME, f"{truth / name}, named in {definitions[0].name}")
            continue
        number = _number(Path(name).stem.removesuffix("_gt"))
        if number not in images:
            number = in_order[index] if 0 <= index < len(in_order) else None
        if number is None:
            _add(problems, NO_IMAGE, str(truth / name))
        elif number in masks:
            _add(problems, _DUPLICATE, f"{truth / name} beside {masks[number].name}")
        else:
            masks[number] = files[name]
    background = {0, 2, 4} if folder.name == "marple2" else {0}
    foreground = tuple(label for i, label in enumerate(labels) if i not in background)
    return masks, partial(read_regions, foreground=foreground)


def _fbms_masks_by_name(
    files: dict[str, Path], images: dict[int, Path], problems: Problems
) -> tuple[dict[int, Path], Callable[[Path], np.ndarray] | None]:
    """The same without a definition file; where there are both ppm and pgm, ppm has the labels."""
    for suffix, read_mask in ((".ppm", _not_white), (".pgm", read_foreground), (".png", None)):
        masks: dict[int, Path] = {}
        for name, path in files.items():
            number = _number(path.stem.removesuffix("_gt"))
            if path.suffix.lower() != suffix or "PROB" in name or number is None:
                continue
            if number in images:
                masks[number] = path
            else:
                _add(problems, NO_IMAGE, str(path))
        if masks:
            return masks, read_mask
    return {}, None


def _not_white(path: Path) -> np.ndarray:
    """Ground truth in colours without a definition file, (H, W) bool."""
    return read_labels(path) != 0xFFFFFF


def _read_youtube_objects(source: Path, problems: Problems) -> list[SourceFrame]:
    """YouTube-Objects with the masks of Jain and Grauman (ECCV 2014), in one of two forms.

    youtube_masks: <class>/data/<video>/shots/<shot>/{images,labels}, masks as <number>.jpg; images
    are <number>.png, the annotated frames alone, or, in a full form, frame<number>.jpg, every
    frame, some at twice the masks' size; masks are then enlarged (YoutubeObjectsFull_oneshot.py of
    OnAVOS, a copy in MSiam/motion_adaptation, datasets/YoutubeObjects). The other form is that of
    dataset/ytobj.py of suhwan-cho/TMO: {JPEGImages,Annotations}/<class>/<video>.

    The archives of https://data.vision.ee.ethz.ch/cvl/youtube-objects/ (v2.x: frames of a class in
    one folder, shots in ranges_<class>.mat) have no masks and are not read.

    126 sequences of 10 classes; two of them, cow 0019 and motorbike 0007, with a single mask.
    """
    for form, folders_of in (
        ("{}/data", _youtube_shots),
        ("JPEGImages/{}", _youtube_videos),
    ):
        roots = _roots(
            source,
            lambda root, form=form: any(
                (root / form.format(name)).is_dir() for name in YOUTUBE_OBJECTS_CLASSES
            ),
        )
        if len(roots) == 1:
            return [
                frame
                for name in YOUTUBE_OBJECTS_CLASSES
                for sequence, images, masks in folders_of(roots[0], name)
                for frame in _partly_annotated("YTOBJ_test", sequence, images, masks, problems)
            ]
        if roots:
            problems.setdefault(_AMBIGUOUS, []).extend(map(str, roots))
            return []
    _add(problems, MISSING, "no folder of a class, as aeroplane/data or JPEGImages/aeroplane")
    return []


def _youtube_shots(root: Path, name: str) -> Iterator[tuple[str, Path, Path]]:
    """Sequences of a class of youtube_masks, each with its folders of images and masks."""
    for video in _subfolders(root / name / "data"):
        shots = root / name / "data" / video / "shots"
        for shot in _subfolders(shots):
            # Shots without masks are not part of the annotated set. Public loaders know no video
            # with a shot but 001, but if there are some, their names must not collide.
            if (shots / shot / "labels").is_dir():
                sequence = f"{name}_{video}" if shot == "001" else f"{name}_{video}-{shot}"
                yield sequence, shots / shot / "images", shots / shot / "labels"


def _youtube_videos(root: Path, name: str) -> Iterator[tuple[str, Path, Path]]:
    """The same in the other form."""
    for video in _subfolders(root / "JPEGImages" / name):
        folders = (root / part / name / video for part in ("JPEGImages", "Annotations"))
        yield f"{name}_{video}", *folders


def _read_long_videos(source: Path, problems: Problems) -> list[SourceFrame]:
    """Long-Videos (Liang et al., NeurIPS 2020), https://www.kaggle.com/gvclsu/long-videos.

    {JPEGImages,Annotations}/<video>, some copies with 480p between; jpg or png images, masks of a
    part of the frames, in which 255 is void, whether they have a palette or not
    (dataset/LongVideo_DS.py and longvideo_evaluation/dataset.py of the authors' xmlyqing00/AFB-URR,
    which read every mask as labels).
    """
    masks_root = _locate(source, "Annotations", problems)
    images_root = masks_root and _first(masks_root.parent, ["JPEGImages"], problems)
    if images_root is None or masks_root is None:
        return []
    if (images_root / "480p").is_dir():
        images_root, masks_root = images_root / "480p", masks_root / "480p"
    for video in ("blueboy", "dressage", "rat"):
        if not (images_root / video).is_dir():
            _add(problems, MISSING_SEQUENCE, str(images_root / video))
    frames = []
    for video in _subfolders(images_root):
        folders = images_root / video, masks_root / video
        found = _partly_annotated("LongVideos_test", video, *folders, problems)
        masks = [frame.mask for frame in found if frame.mask]
        # As objects drawn in white would be.
        if masks and not any(read_foreground(path, void=255).any() for path in masks):
            _add(problems, _ONLY_VOID, str(folders[1]))
        frames += found
    return frames


def _partly_annotated(
    set_name: str, sequence: str, images_folder: Path, masks_folder: Path, problems: Problems
) -> list[SourceFrame]:
    """Frames of a sequence of which some have a mask."""
    images, masks = _numbered(images_folder, problems), _numbered(masks_folder, problems)
    if not images:
        _add(problems, MISSING_SEQUENCE, str(images_folder))
        return []
    if not masks:
        _add(problems, _NO_MASKS, str(masks_folder))
    _unpaired(images_folder, images, masks_folder, masks, problems)
    return _frames(f"{set_name}/{sequence}", sequence, images, masks)


def _frames(
    folder: str,
    sequence: str,
    images: dict[int, Path],
    masks: dict[int, Path],
    read_mask: Callable[[Path], np.ndarray] | None = None,
    only_annotated: bool = False,
) -> list[SourceFrame]:
    """Frames of a sequence in their order in time, named <sequence>_<number as in the source>."""
    numbers = images.keys() & masks.keys() if only_annotated else images.keys()
    return [
        SourceFrame(
            folder,
            sequence,
            f"{sequence}_{_digits(images[number].stem)}",
            images[number],
            masks.get(number),
            read_mask,
        )
        for number in sorted(numbers)
    ]


def _unpaired(
    images_folder: Path,
    images: dict,
    masks_folder: Path,
    masks: dict,
    problems: Problems,
    every: bool = False,
) -> None:
    """Report masks without image and, where every image must have one, images without mask.

    An empty folder is one problem, not one for each file of the other.
    """
    for folder, files, others in ((images_folder, images, masks), (masks_folder, masks, images)):
        if not files and (others or every):
            kind = "folder without pictures" if folder.is_dir() else MISSING[0]
            _add(problems, (kind, MISSING[1]), str(folder))
            return
    for key in sorted(masks.keys() - images.keys()):
        _add(problems, NO_IMAGE, str(masks[key]))
    for key in sorted(images.keys() - masks.keys() if every else ()):
        _add(problems, NO_MASK, str(images[key]))


def _read_list(path: Path, problems: Problems) -> dict[str, set[int]]:
    """Sequences of a split by name, with the numbers of those frames that the list names."""
    sequences: dict[str, set[int]] = {}
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except UnicodeDecodeError:
        _add(problems, _LIST, str(path))
        lines = []
    for line in lines:
        first = Path(line.split()[0] if line.split() else "")
        if len(first.parts) > 1:
            number = _number(first.stem)
            sequences.setdefault(first.parent.name, set()).update({number} - {None})
        elif first.name:
            sequences.setdefault(first.name, set())
    return sequences


def _files(folder: Path) -> dict[str, Path]:
    """Files of a folder by name, sorted, without hidden ones; none if there is no such folder."""
    try:
        with os.scandir(folder) as entries:
            names = [e.name for e in entries if not e.name.startswith(".") and e.is_file()]
    except (FileNotFoundError, NotADirectoryError):
        names = []
    return {name: folder / name for name in sorted(names)}


def _pictures(folder: Path, problems: Problems) -> dict[str, Path]:
    """Pictures of a folder by stem, sorted; of two forms of one, that which needs no conversion."""
    pictures: dict[str, Path] = {}
    paths = [path for path in _files(folder).values() if path.suffix.lower() in _PICTURES]
    for path in sorted(paths, key=lambda path: path.suffix.lower() not in IMAGE_SUFFIXES):
        if path.stem not in pictures:
            pictures[path.stem] = path
        elif path.suffix.lower() in IMAGE_SUFFIXES:
            _add(problems, _DUPLICATE, f"{path} beside {pictures[path.stem].name}")
    return dict(sorted(pictures.items()))


def _numbered(folder: Path, problems: Problems) -> dict[int, Path]:
    """Pictures of a folder by the number that their name ends in."""
    numbered: dict[int, Path] = {}
    for path in _pictures(folder, problems).values():
        number = _number(path.stem)
        if number is None:
            _add(problems, _NUMBERLESS, str(path))
        elif number in numbered:
            _add(problems, _DUPLICATE, f"{path} beside {numbered[number].name}")
        else:
            numbered[number] = path
    return numbered


def _digits(stem: str) -> str:
    """The digits at the end of a name."""
    return re.search(r"\d*$", stem).group()


def _number(stem: str) -> int | None:
    return int(_digits(stem)) if _digits(stem) else None


def _subfolders(folder: Path) -> list[str]:
    """Names of the folders in a folder, sorted; none if it is not there."""
    try:
        with os.scandir(folder) as entries:
            hidden = (".", "__MACOSX")
            return sorted(e.name for e in entries if not e.name.startswith(hidden) and e.is_dir())
    except (FileNotFoundError, NotADirectoryError, PermissionError):
        return []


def _roots(source: Path, is_root: Callable[[Path], bool]) -> list[Path]:
    """Folders that pass a test, at the first of three levels from the source down that has any."""
    level = [source]
    for depth in range(3):
        roots = [folder for folder in level if is_root(folder)]
        if roots or depth == 2:
            return roots
        level = [folder / name for folder in level for name in _subfolders(folder)]
    return []


def _locate(source: Path, relative: str, problems: Problems, required: bool = True) -> Path | None:
    """The only folder `relative` at the source or in folders below it."""
    roots = _roots(source, lambda root: (root / relative).is_dir())
    if len(roots) == 1:
        return roots[0] / relative
    if roots:
        problems.setdefault(_AMBIGUOUS, []).extend(str(root / relative) for root in roots)
    elif required:
        _add(problems, MISSING, f"{relative}, neither in {source} nor in folders of it")
    return None


def _first(root: Path, names: list[str], problems: Problems) -> Path | None:
    """The first of several files or folders that is there."""
    for name in names:
        if (root / name).exists():
            return root / name
    _add(problems, MISSING, " or ".join(str(root / name) for name in names))
    return None


def _add(problems: Problems, kind: tuple[str, str], item: str) -> None:
    problems.setdefault(kind, []).append(item)


# 3,455 frames in all (Perazzi et al., CVPR 2016). The "4K training frames" of some papers are those
# of DAVIS 2017's 60 training sequences (issue 3 of tfzhou/MATNet).
_FBMS_NOTE = "known: 720 masks in Testset and Trainingset together"
_DAVIS_KNOWN = {"DAVIS_train": Known(30, 2079, 2079), "DAVIS_test": Known(20, 1376, 1376)}

SOURCES: dict[str, Source] = {
    "duts": Source(
        layout=(
            "DUTS-TR/{DUTS-TR-Image,DUTS-TR-Mask}/<name>.jpg, .png",
            "DUTS-TE/{DUTS-TE-Image,DUTS-TE-Mask}/<name>.jpg, .png (may be missing)",
        ),
        read=_read_duts,
        known={
            "DUTS_train": Known(images=10553, masks=10553),
            "DUTS_test": Known(images=5019, masks=5019, optional=True),
        },
        video=False,
    ),
    "davis2016": Source(
        layout=(
            "DAVIS/{JPEGImages,Annotations}/480p/<sequence>/<frame>.jpg, .png",
            "DAVIS/ImageSets/480p/{train,val}.txt, or ImageSets/2016",
        ),
        read=partial(_read_davis, annotations=("Annotations",), lists=("480p", "2016")),
        known=_DAVIS_KNOWN,
        one_object=True,
    ),
    "davis2017": Source(
        layout=(
            "DAVIS/JPEGImages/480p/<sequence>/<frame>.jpg",
            "DAVIS/Annotations/480p/<sequence>/<frame>.png, or Annotations_unsupervised/480p",
            "DAVIS/ImageSets/2016/{train,val}.txt",
        ),
        read=partial(
            _read_davis, annotations=("Annotations", "Annotations_unsupervised"), lists=("2016",)
        ),
        known=_DAVIS_KNOWN,
        void=255,
    ),
    "youtube_vos": Source(
        layout=(
            "train/{JPEGImages,Annotations}/<video>/<frame>.jpg, .png",
            "train/meta.json (names the videos; may be missing)",
            "train_all_frames/JPEGImages/<video>/<frame>.jpg (for flow; may be missing)",
        ),
        read=_read_youtube_vos,
        known={
            "YTVOS_train": Known(
                3471,
                note="94,588 images, says the author of MATNet (issue 3 of tfzhou/MATNet). Flow is "
                "the motion to the next image: five frames later with the archive train alone, one "
                "with train_all_frames beside it. The two differ in size: do not mix them",
            )
        },
    ),
    "fbms": Source(
        layout=(
            "Testset/<sequence>/<sequence>_<number>.jpg",
            "Testset/<sequence>/GroundTruth/<sequence>Def.dat and *.pgm or *_gt.ppm",
            "Trainingset/... (the same; may be missing)",
        ),
        read=_read_fbms,
        known={
            "FBMS_test": Known(30, note=_FBMS_NOTE),
            "FBMS_train": Known(29, optional=True, note=_FBMS_NOTE),
        },
    ),
    "youtube_objects": Source(
        layout=(
            "youtube_masks/<class>/data/<video>/shots/001/{images,labels}/<number>.jpg, .png",
            "or {JPEGImages,Annotations}/<class>/<video>/<number>.jpg, .png",
        ),
        read=_read_youtube_objects,
        known={
            "YTOBJ_test": Known(
                124,
                note="126 where every frame is there: of annotated frames alone cow_0019 and "
                "motorbike_0007 have one each and are left out",
            )
        },
        resize_masks=True,
    ),
    "long_videos": Source(
        layout=("{JPEGImages,Annotations}/<video>/<frame>.jpg, .png",),
        read=_read_long_videos,
        known={
            "LongVideos_test": Known(
                3, note="7,411 images, and 20 masks a video spread evenly, say papers that use it"
            )
        },
        void=255,
        void_in_grey=True,
    ),
}


def published_sequences(set_name: str) -> int | None:
    """How many sequences a set of this name has as published; None if it is none of these."""
    for source in SOURCES.values():
        if set_name in source.known:
            return source.known[set_name].sequences
    return None
