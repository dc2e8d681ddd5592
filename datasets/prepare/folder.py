"""A user's own videos with masks on some of their frames.

    DIR/videos/<video>.mp4            video files, whose frames are numbered from 0
    DIR/frames/<video>/<frame>.jpg    or folders of frames
    DIR/masks/<video>/<frame>.png     masks, or .json files of LabelMe
    DIR/annotations.json              or one file of COCO or YouTube-VIS in the place of masks

A mask belongs to the frame of the same number at the end of its name, or of the same name if it
has no number.
"""

from collections.abc import Iterable
from pathlib import Path

from datasets.clips import check_clip
from datasets.files import write_picture
from datasets.known_sets import KNOWN_SETS
from datasets.layout import list_pictures
from datasets.masks import read_labels
from datasets.prepare.annotations import Annotation, read_coco, read_labelme, refuse_turned
from datasets.prepare.archives import INCOMPLETE, WRONG, SourceFrame, digits, folders
from datasets.problems import DatasetError, Problems, add_problems

_NO_FRAME = (
    "annotation of a frame that does not exist",
    "name masks as their frames; frames of a video file are numbered from 0",
)
_TWICE = "two files of one frame or video", "keep one of them"

Key = int | str  # a frame's number, or its name without one


def read_folder(
    source: Path, problems: Problems, set_name: str, decoded: Path
) -> list[SourceFrame]:
    """All frames of all videos; video files are decoded into the folder ``decoded``.

    Raises:
        UserError: the set's name is another set's, a video or an annotation cannot be read.
    """
    if set_name in KNOWN_SETS or Path(set_name).name != set_name or set_name.startswith("."):
        raise DatasetError(f"--set {set_name}: expected a name of your own for the set's folder")
    videos = _videos(source, problems, decoded)
    if not videos:
        add_problems(problems, WRONG, f"{source}: neither videos/<video>.mp4 nor frames/<video>/")
    annotations = _annotations(source, problems, list(videos))
    frames = []
    for video, images in videos.items():
        of_video = annotations.pop(video, {})
        unknown = [f"{of_video[key][0]}: {video}, {key}" for key in of_video.keys() - images.keys()]
        add_problems(problems, _NO_FRAME, *sorted(unknown))
        if not of_video:
            add_problems(problems, INCOMPLETE, f"{video}: no frame of it has a mask")
            continue
        for key, image in images.items():
            name = f"{video}_{_label(image.stem, video)}"
            annotation = of_video.get(key, (None, None))
            frames.append(SourceFrame(f"{set_name}/{video}", video, name, image, *annotation))
    for video, of_video in annotations.items():
        add_problems(problems, _NO_FRAME, f"{next(iter(of_video.values()))[0]}: no video {video}")
    return frames


def _videos(source: Path, problems: Problems, decoded: Path) -> dict[str, dict[Key, Path]]:
    """The images of each video."""
    found = {}
    for video in folders(source / "frames", problems):
        images = list_pictures(source / "frames" / video, problems)
        found[video] = _by_key(images.values(), video, problems)
    files = sorted((source / "videos").iterdir()) if (source / "videos").is_dir() else ()
    for path in files:
        if path.name.startswith("."):
            continue
        if path.stem in found:
            add_problems(problems, _TWICE, f"{path}: another video has its name")
            continue
        for frame in check_clip(path).frames():
            write_picture(decoded / path.stem / f"{frame.name}.jpg", frame.image)
        images = list_pictures(decoded / path.stem, problems)
        found[path.stem] = _by_key(images.values(), path.stem, problems)
    return found


def _annotations(
    source: Path, problems: Problems, videos: list[str]
) -> dict[str, dict[Key, Annotation]]:
    """The annotations of each video's frames."""
    found: dict[str, dict[Key, Annotation]] = {}
    for video in folders(source / "masks", problems):
        folder = source / "masks" / video
        masks = _by_key(list_pictures(folder, problems).values(), video, problems)
        files = _by_key(sorted(folder.glob("[!.]*.json")), video, problems)
        both = [str(files[key]) for key in files if key in masks]
        add_problems(problems, _TWICE, *both)
        found[video] = read_labelme(files) | {k: (path, _check) for k, path in masks.items()}
    if (path := source / "annotations.json").is_file():
        if found:
            add_problems(problems, _TWICE, f"{path} beside {source / 'masks'}")
        for name, annotation in read_coco(path).items():
            video = Path(name).parent.name or (videos[0] if len(videos) == 1 else "")
            found.setdefault(video, {})[_key(Path(name).stem, video)] = annotation
    return found


def _by_key(paths: Iterable[Path], video: str, problems: Problems) -> dict[Key, Path]:
    """Files by the frame that they are of."""
    found: dict[Key, Path] = {}
    for path in paths:
        if (other := found.setdefault(_key(path.stem, video), path)) != path:
            add_problems(problems, _TWICE, f"{path} and {other.name}")
    return found


def _key(stem: str, video: str) -> Key:
    label = _label(stem, video)
    return int(digits(label)) if digits(label) else label


def _label(stem: str, video: str) -> str:
    """A frame's name without its video's; "_" would end the video's name in this layout."""
    return stem.removeprefix(f"{video}_").replace("_", "-")


def _check(image: Path, mask: Path) -> None:
    """Refuses a mask that training could not read, or not rightly; all others stay as they are."""
    refuse_turned(image, mask, read_labels(mask).shape)
