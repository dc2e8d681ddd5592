"""The data sets as their authors' archives unpack: the places and formats of frames and masks.

`SOURCES` has an entry for each data set. A new one needs a function that lists its frames, and an
entry. The archives themselves were not at hand. The facts are from public code that reads them,
which the functions below name; "issue" means a GitHub issue of the named repository.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from itertools import pairwise
from pathlib import Path

from datasets.masks import one_object, read_labels
from datasets.prepare.archives import (
    MISSING_SEQUENCE,
    UNREADABLE_LIST,
    Convert,
    SourceFrame,
    entries,
    first,
    frames_of,
    locate,
    numbered,
    paired,
    partly_annotated,
    pictures,
    videos,
)
from datasets.prepare.fbms import read_fbms
from datasets.prepare.masks import convert_size, convert_void, refuse_several_objects
from datasets.problems import Problems, add_problems

_ONLY_VOID = (
    "video whose masks hold nothing but void (255)",
    "give its objects labels of their own, from 1",
)

YOUTUBE_OBJECTS_CLASSES = tuple(
    ["aeroplane", "bird", "boat", "car", "cat", "cow", "dog", "horse", "motorbike", "train"]
)


@dataclass(frozen=True)
class Source:
    """Description of one data set.

    `read(source, problems)` returns the frames found below a folder, and adds to `problems`.
    """

    read: Callable[[Path, Problems], list[SourceFrame]]
    # By the name of this project's set: "sequences", "images", "masks", as far as they are known.
    known: dict[str, dict[str, int]]
    optional: str = ""  # the set that the source need not hold
    video: bool = True


def _read_duts(source: Path, problems: Problems) -> list[SourceFrame]:
    """DUTS (Wang et al., CVPR 2017): DUTS-TR.zip and DUTS-TE.zip, grey masks with 0 and 255.

    The folders are those that U-2-Net's u2net_train.py reads. 10,553 and 5,019 images:
    http://saliencydetection.net/duts/.
    """
    frames = []
    for part, set_name in (("TR", "DUTS_train"), ("TE", "DUTS_test")):
        root = locate(source, [f"DUTS-{part}-Image"], problems, required=part == "TR")
        if root is not None:
            folders = root / f"DUTS-{part}-Image", root / f"DUTS-{part}-Mask"
            images, masks = paired(*folders, problems, every=True, by=pictures)
            stems = sorted(images.keys() & masks.keys())
            frames += [SourceFrame(set_name, "", stem, images[stem], masks[stem]) for stem in stems]
    return frames


def _read_davis(
    source: Path,
    problems: Problems,
    annotations: tuple[str, ...],
    lists: tuple[str, ...],
    convert: Convert,
    sets: tuple[str, str] = ("DAVIS_train", "DAVIS_test"),
) -> list[SourceFrame]:
    """DAVIS 2016 and DAVIS 2017, at 480p.

    Folders and lists as in fperazzi/davis and davisvideochallenge/davis2017-evaluation. Masks of
    2016 are 0 and 255 (some with several channels, as bear/00077.png). Those of 2017 have a
    palette, a label for each object, and 255 for void.
    """
    root = locate(source, ["JPEGImages/480p"], problems)
    masks_root = root and first(root, [f"{name}/480p" for name in annotations], problems)
    frames = []
    for split, set_name in zip(("train", "val"), sets):
        names = [f"ImageSets/{name}/{split}.txt" for name in lists]
        split_list = root and first(root, names, problems)
        for sequence in _listed(split_list, problems) if masks_root and split_list else ():
            folder = root / "JPEGImages/480p" / sequence
            if not folder.is_dir():
                add_problems(problems, MISSING_SEQUENCE, f"{folder}, named in {split_list}")
                continue
            images, masks = paired(folder, masks_root / sequence, problems, every=True)
            images = {number: path for number, path in images.items() if number in masks}
            goal = set_name if split == "train" else f"{set_name}/{sequence}"
            frames += frames_of(goal, sequence, images, masks, convert)
    return frames


def _listed(path: Path, problems: Problems) -> list[str]:
    """Sequences of a DAVIS split. A line of the list begins with a sequence or a frame's path.

    As "bear" or "/JPEGImages/480p/bear/00000.jpg /Annotations/480p/bear/00000.png".
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except UnicodeDecodeError:
        add_problems(problems, UNREADABLE_LIST, path)
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
    if root is None:
        return []
    all_root = locate(source, ["train_all_frames/JPEGImages"], problems, required=False)
    frames = []
    for video in videos(root / "Annotations", problems):
        folders = root / "JPEGImages" / video, root / "Annotations" / video
        images, masks = paired(*folders, problems)
        annotated = {number: path for number, path in images.items() if number in masks}
        every = images
        if all_root is not None:
            every = numbered(all_root / "train_all_frames/JPEGImages" / video) | images
        after = dict(pairwise(sorted(every)))
        found = frames_of("YTVOS_train", video, annotated, masks)
        for number, frame in zip(sorted(annotated), found):
            if after.get(number, number) not in annotated:
                frame = replace(frame, following=every[after[number]])
            frames.append(frame)
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
    frames = []
    for sequence, *folders in _youtube_objects_videos(root, problems) if root else ():
        frames += partly_annotated("YTOBJ_test", sequence, *folders, problems, convert_size)
    return frames


def _youtube_objects_videos(root: Path, problems: Problems) -> Iterator[tuple[str, Path, Path]]:
    """Sequences of either form, each with its folders of images and masks."""
    for name in YOUTUBE_OBJECTS_CLASSES:
        for video in videos(root / "JPEGImages" / name, problems):
            folders = (root / part / name / video for part in ("JPEGImages", "Annotations"))
            yield f"{name}_{video}", *folders
        for video in videos(root / name / "data", problems):
            shots = root / name / "data" / video / "shots"
            for shot in entries(shots)[0]:
                if (shots / shot / "labels").is_dir():  # shots without masks are not annotated
                    sequence = f"{name}_{video}" if shot == "001" else f"{name}_{video}-{shot}"
                    yield sequence, shots / shot / "images", shots / shot / "labels"


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
    for video in videos(images_root, problems):
        folders = images_root / video, masks_root / video
        found = partly_annotated("LongVideos_test", video, *folders, problems, convert)
        masks = [frame.mask for frame in found if frame.mask]
        if masks and not any(one_object(read_labels(path, void=True)).any() for path in masks):
            add_problems(problems, _ONLY_VOID, folders[1])
        frames += found
    return frames


_DAVIS_KNOWN = {
    "DAVIS_train": {"sequences": 30, "images": 2079, "masks": 2079},
    "DAVIS_test": {"sequences": 20, "images": 1376, "masks": 1376},
}

SOURCES: dict[str, Source] = {
    "duts": Source(
        _read_duts,
        {
            "DUTS_train": {"images": 10553, "masks": 10553},
            "DUTS_test": {"images": 5019, "masks": 5019},
        },
        optional="DUTS_test",
        video=False,
    ),
    "davis2016": Source(
        partial(
            _read_davis,
            annotations=("Annotations",),
            lists=("480p", "2016"),
            convert=refuse_several_objects,
        ),
        _DAVIS_KNOWN,
    ),
    # DAVIS 2016 by the files of 2017, whose objects count as one.
    "davis2016_from_2017": Source(
        partial(
            _read_davis,
            annotations=("Annotations", "Annotations_unsupervised"),
            lists=("2016",),
            convert=convert_void,
        ),
        _DAVIS_KNOWN,
    ),
    "davis2017": Source(
        partial(
            _read_davis,
            annotations=("Annotations_unsupervised", "Annotations"),
            lists=("2017",),
            convert=convert_void,
            sets=("DAVIS17_train", "DAVIS17_val"),
        ),
        {"DAVIS17_train": {"sequences": 60}, "DAVIS17_val": {"sequences": 30}},
    ),
    "youtube_vos": Source(_read_youtube_vos, {"YTVOS_train": {"sequences": 3471}}),
    "fbms": Source(
        read_fbms,
        {"FBMS_test": {"sequences": 30}, "FBMS_train": {"sequences": 29}},
        optional="FBMS_train",
    ),
    # 126 where every frame is there: of two sequences a single frame is annotated.
    "youtube_objects": Source(_read_youtube_objects, {"YTOBJ_test": {"sequences": 124}}),
    "long_videos": Source(_read_long_videos, {"LongVideos_test": {"sequences": 3}}),
}


def published_sequences(set_name: str) -> int | None:
    """How many sequences a set of this name has as published; None if it is none of these."""
    for source in SOURCES.values():
        if set_name in source.known:
            return source.known[set_name].get("sequences")
    return None
