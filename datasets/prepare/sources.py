"""The data sets as their authors' archives unpack: the places and formats of frames and masks.

`SOURCES` has an entry for each data set. A new one needs a function that lists its frames, and an
entry. The archives themselves were not at hand. The facts are from public code that reads them,
which the functions below name.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from itertools import pairwise
from pathlib import Path

from datasets.known_sets import YOUTUBE_OBJECTS_CLASSES
from datasets.layout import list_pictures
from datasets.masks import one_object, read_label_map
from datasets.prepare.archives import (
    WRONG,
    Convert,
    SourceFrame,
    first,
    folders,
    frames_of,
    locate,
    numbered,
    paired,
    pictures,
)
from datasets.prepare.fbms import read_fbms
from datasets.prepare.masks import convert_size, convert_void, refuse_several_objects
from datasets.prepare.segtrack import read_segtrack
from datasets.problems import Problems, add_problems


@dataclass(frozen=True)
class Source:
    """Description of one data set."""

    read: Callable[[Path, Problems], list[SourceFrame]]  # the frames found below a folder
    sets: tuple[str, ...]  # their names in KNOWN_SETS


def _read_duts(source: Path, problems: Problems) -> list[SourceFrame]:
    """DUTS (Wang et al., CVPR 2017): DUTS-TR.zip and DUTS-TE.zip, grey masks with 0 and 255.

    The folders are those that U-2-Net's u2net_train.py reads. 10,553 and 5,019 images:
    http://saliencydetection.net/duts/.
    """
    frames = []
    for part, set_name in (("TR", "DUTS_train"), ("TE", "DUTS_test")):
        root = locate(source, [f"DUTS-{part}-Image"], problems, required=part == "TR")
        if root is not None:
            parts = root / f"DUTS-{part}-Image", root / f"DUTS-{part}-Mask"
            for folder in parts:  # early copies have a wrong mask beside some right ones
                list_pictures(folder, problems)
            images, masks = paired(*parts, problems, every=True, by=pictures)
            for name, image in images.items():
                frames.append(SourceFrame(set_name, "", name, image, masks[name]))
    return frames


def _read_davis(
    source: Path,
    problems: Problems,
    year: str,
    annotations: tuple[str, ...],
    sets: tuple[str, str],
    convert: Convert = convert_void,
) -> list[SourceFrame]:
    """DAVIS 2016 or DAVIS 2017 at 480p, or the sequences of DAVIS 2016 in the archive of 2017.

    Folders and lists as in fperazzi/davis and davisvideochallenge/davis2017-evaluation. Masks of
    2016 are 0 and 255 (some with several channels, as bear/00077.png). Those of 2017 have a
    palette, a label for each object, and 255 for void.
    """
    root = locate(source, ["JPEGImages/480p"], problems)
    masks_root = root and first(root, [f"{name}/480p" for name in annotations], problems)
    frames = []
    for split, set_name in zip(("train", "val"), sets):
        lists = [f"ImageSets/{folder}/{split}.txt" for folder in (year, "480p")]
        split_list = masks_root and first(root, lists, problems)
        for sequence in _listed(split_list, problems) if split_list else ():
            folder = root / "JPEGImages/480p" / sequence
            images, masks = paired(folder, masks_root / sequence, problems, every=True)
            goal = set_name if split == "train" else f"{set_name}/{sequence}"
            frames += frames_of(goal, sequence, images, masks, convert)
    return frames


def _listed(path: Path, problems: Problems) -> list[str]:
    """Sequences of a DAVIS split, of lines as "bear" or "/JPEGImages/480p/bear/00000.jpg ..."."""
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except UnicodeDecodeError:
        add_problems(problems, WRONG, f"{path}: list that is not UTF-8 text")
        return []
    paths = [Path(line.split()[0]) for line in lines if line.strip()]
    return list(dict.fromkeys(path.parent.name or path.name for path in paths))


def _read_youtube_vos(source: Path, problems: Problems) -> list[SourceFrame]:
    """YouTube-VOS (Xu et al., 2018 or 2019), the `train` archive: palette masks, a label an object.

    Every fifth image of a video is there and is annotated while an object is in view. The archive
    `train_all_frames` has all images. Annotated images become frames. Flow is the motion to the
    next image of the two archives, annotated or not. 3,471 videos:
    https://youtube-vos.org/dataset/vos/.
    """
    # Beside train there often are valid and test, which have an Annotations folder too.
    above = locate(source, ["train/Annotations"], problems, required=False)
    root = above / "train" if above else locate(source, ["Annotations"], problems)
    every_root = locate(source, ["train_all_frames/JPEGImages"], problems, required=False)
    if root is None:
        return []
    every_folder = (every_root or root.absolute().parent) / "train_all_frames/JPEGImages"
    frames, videos, with_all = [], folders(root / "Annotations", problems), 0
    for video in videos:
        parts = root / "JPEGImages" / video, root / "Annotations" / video
        images, masks = paired(*parts, problems)
        every = numbered(every_folder / video)
        with_all += len(every) > 0
        every |= images
        after = dict(pairwise(sorted(every)))
        images = {number: path for number, path in images.items() if number in masks}
        for number, frame in zip(images, frames_of("YTVOS_train", video, images, masks)):
            is_frame = after.get(number, number) in images  # the last image has none after it
            frames.append(frame if is_frame else replace(frame, following=every[after[number]]))
    print(
        f"YTVOS_train: train_all_frames has {with_all:,} of {len(videos):,} videos; flow will be "
        "the motion over one frame there, over five elsewhere"
    )
    return frames


def _read_youtube_objects(source: Path, problems: Problems) -> list[SourceFrame]:
    """YouTube-Objects with the masks of Jain and Grauman (ECCV 2014), in one of two forms.

    In youtube_masks, masks are <number>.jpg. Images are <number>.png, the annotated frames alone,
    or in a full form frame<number>.jpg, every frame. Some are twice as large as the masks, which
    are then enlarged (YoutubeObjectsFull_oneshot.py of OnAVOS, a copy in MSiam/motion_adaptation,
    datasets/YoutubeObjects). The other form is that of dataset/ytobj.py of suhwan-cho/TMO.

    126 sequences of 10 classes; two of them, cow 0019 and motorbike 0007, with a single mask.
    """
    names = [f for name in YOUTUBE_OBJECTS_CLASSES for f in (f"{name}/data", f"JPEGImages/{name}")]
    root = locate(source, names, problems)
    found = []  # a sequence, its folder of images, its folder of masks
    for name in YOUTUBE_OBJECTS_CLASSES if root else ():
        for video in folders(root / "JPEGImages" / name, problems):
            parts = (root / part / name / video for part in ("JPEGImages", "Annotations"))
            found.append((f"{name}_{video}", *parts))
        for video in folders(root / name / "data", problems):
            shots = root / name / "data" / video / "shots"
            for shot in folders(shots, problems):
                sequence = f"{name}_{video}" if shot == "001" else f"{name}_{video}-{shot}"
                if (shots / shot / "labels").is_dir():  # others are not annotated
                    found.append((sequence, shots / shot / "images", shots / shot / "labels"))
    return [
        frame
        for sequence, *parts in found
        for frame in frames_of(
            f"YTOBJ_test/{sequence}", sequence, *paired(*parts, problems), convert_size
        )
    ]


def _read_long_videos(source: Path, problems: Problems) -> list[SourceFrame]:
    """Long-Videos (Liang et al., NeurIPS 2020), https://www.kaggle.com/gvclsu/long-videos.

    Some copies have 480p above the videos. A part of the frames has masks, in which 255 is void,
    whether they have a palette or not (dataset/LongVideo_DS.py of the authors' xmlyqing00/AFB-URR).
    """
    root = locate(source, ["Annotations"], problems)
    if root is None:
        return []
    inner = "480p" if (root / "JPEGImages/480p").is_dir() else ""
    images_root, masks_root = root / "JPEGImages" / inner, root / "Annotations" / inner
    convert = partial(convert_void, grey=True)
    frames = []
    for video in folders(images_root, problems):
        parts = images_root / video, masks_root / video
        folder = f"LongVideos_test/{video}"
        found = frames_of(folder, video, *paired(*parts, problems), convert)
        masks = [frame.mask for frame in found if frame.mask]
        if masks and not any(one_object(read_label_map(path)).any() for path in masks):
            add_problems(problems, WRONG, f"{parts[1]}: the masks hold nothing but void (255)")
        frames += found
    return frames


_DAVIS_2016 = "DAVIS_train", "DAVIS_test"
_DAVIS_2017 = "DAVIS17_train", "DAVIS17_val"
_SEMI_2017 = "DAVIS17semi_train", "DAVIS17semi_val"

SOURCES: dict[str, Source] = {
    "duts": Source(_read_duts, ("DUTS_train", "DUTS_test")),
    "davis2016": Source(
        partial(
            _read_davis,
            year="2016",
            annotations=("Annotations",),
            sets=_DAVIS_2016,
            convert=refuse_several_objects,
        ),
        _DAVIS_2016,
    ),
    # DAVIS 2016 by the files of 2017, whose objects count as one.
    "davis2016_from_2017": Source(
        partial(
            _read_davis,
            year="2016",
            annotations=("Annotations", "Annotations_unsupervised"),
            sets=_DAVIS_2016,
        ),
        _DAVIS_2016,
    ),
    "davis2017": Source(
        partial(
            _read_davis, year="2017", annotations=("Annotations_unsupervised",), sets=_DAVIS_2017
        ),
        _DAVIS_2017,
    ),
    # Other objects are annotated for the semi-supervised task, and there is no void.
    "davis2017_semi_supervised": Source(
        partial(_read_davis, year="2017", annotations=("Annotations",), sets=_SEMI_2017),
        _SEMI_2017,
    ),
    "youtube_vos": Source(_read_youtube_vos, ("YTVOS_train",)),
    "fbms": Source(read_fbms, ("FBMS_test", "FBMS_train")),
    "segtrack_v2": Source(read_segtrack, ("SegTrackv2_test",)),
    "youtube_objects": Source(_read_youtube_objects, ("YTOBJ_test",)),
    "long_videos": Source(_read_long_videos, ("LongVideos_test",)),
}
