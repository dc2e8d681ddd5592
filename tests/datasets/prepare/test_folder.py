"""Videos of the user's own: masks and annotation files, some frames annotated, and their faults."""

import json
from pathlib import Path

import av
import numpy as np
import pytest
from PIL import Image

from datasets.layout import video_sequences
from datasets.masks import read_labels
from datasets.prepare.__main__ import main
from datasets.prepare.shapes import draw_shapes
from tests.datasets.prepare.archives import SIZE, command, data_root, image, objects, tree, write

HEIGHT, WIDTH = SIZE


def write_frames(source: Path, video: str, names: list[str]) -> None:
    for number, name in enumerate(names):
        write(source / "frames" / video / f"{name}.png", image(number))


def turn(path: Path, orientation: int) -> None:
    """Give a picture an EXIF orientation."""
    with Image.open(path) as picture:
        picture.getexif()[0x0112] = orientation
        picture.save(path, exif=picture.getexif())


def rectangle(left: int, top: int, right: int, bottom: int) -> list[int]:
    """A polygon; it covers the pixels from left and top to those before right and bottom."""
    return [left, top, right, top, right, bottom, left, bottom]


def filled(*boxes: tuple[int, int, int, int]) -> np.ndarray:
    """A label map with a number for each rectangle."""
    labels = np.zeros(SIZE, np.uint8)
    for number, (left, top, right, bottom) in enumerate(boxes, 1):
        labels[top:bottom, left:right] = number
    return labels


def prepare(source: Path, *flags: str) -> dict[str, dict[str, np.ndarray]]:
    """The label maps of the prepared set's annotated frames, by video and frame."""
    before = tree(source)
    assert main(command("folder", source, "--set", "mine", *flags)) == 0
    assert tree(source) == before
    return {
        video.name: {f.name: read_labels(f.mask) for f in video.frames if f.mask}
        for video in video_sequences(data_root(source), "mine", masks="some", flow=False)
    }


def complaint(source: Path, capsys: pytest.CaptureFixture, *flags: str) -> str:
    """The message about a source that is refused; nothing is written."""
    assert main(command("folder", source, "--set", "mine", *flags)) == 1
    assert not data_root(source).exists()
    return capsys.readouterr().err


def same(found: dict, expected: dict) -> None:
    assert {v: set(frames) for v, frames in found.items()} == {
        v: set(frames) for v, frames in expected.items()
    }
    for video, frames in expected.items():
        for name, labels in frames.items():
            np.testing.assert_array_equal(found[video][name], labels, err_msg=name)


def test_masks_of_some_frames_in_every_format(source: Path, capsys) -> None:
    write_frames(source, "cat", ["IMG_0007", "IMG_0008", "IMG_0009", "IMG_0010"])
    write(source / "masks/cat/8.png", objects(1, 2), palette=True)
    write(source / "masks/cat/mask_0009.png", objects(255))
    write(source / "masks/cat/0010.png", objects(3, 1))
    write_frames(source, "dog", ["dog_first", "dog_second"])
    write(source / "masks/dog/dog_second.png", objects(0))
    found = prepare(source)
    same(
        found,
        {
            "cat": {
                "cat_IMG-0008": objects(1, 2),
                "cat_IMG-0009": objects(1),
                "cat_IMG-0010": objects(3, 1),
            },
            "dog": {"dog_second": objects(0)},
        },
    )
    said = capsys.readouterr().out
    assert "mine: 2 sequences, 6 images, 4 masks\n" in said
    assert "next: python -m datasets.flow" in said
    (sequence, _) = video_sequences(data_root(source), "mine", masks="some", flow=False)
    names = ["cat_IMG-0007", "cat_IMG-0008", "cat_IMG-0009", "cat_IMG-0010"]
    assert [frame.name for frame in sequence.frames] == names


def test_frames_of_a_video_file_are_numbered_from_0(source: Path) -> None:
    (source / "videos").mkdir()
    with av.open(str(source / "videos/clip.mp4"), "w") as container:
        stream = container.add_stream("mpeg4", rate=10)
        stream.width, stream.height = 64, 48
        for grey in (40, 120, 200):
            picture = np.full((48, 64, 3), grey, np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode())
    labels = np.zeros((48, 64), np.uint8)
    labels[8:20, 30:50] = 1
    write(source / "masks/clip/00002.png", labels * 255)
    same(prepare(source), {"clip": {"clip_00002": labels}})
    (sequence,) = video_sequences(data_root(source), "mine", masks="some", flow=False)
    greys = [np.asarray(Image.open(frame.image)).mean() for frame in sequence.frames]
    assert greys == pytest.approx([40, 120, 200], abs=4)
    # Nothing is left of the decoding.
    assert {path.name for path in data_root(source).iterdir()} == {"mine"}


def test_frames_that_a_killed_program_decoded_are_removed(source: Path) -> None:
    left = data_root(source) / ".mine.decoded/clip/00000.jpg"
    write(left, np.zeros((4, 4, 3), np.uint8))
    write_frames(source, "a", ["0", "1"])
    write(source / "masks/a/0.png", filled((0, 0, 8, 8)) * 255)
    assert prepare(source).keys() == {"a"}
    assert {path.name for path in data_root(source).iterdir()} == {"mine"}


def test_labelme(source: Path) -> None:
    write_frames(source, "cat", ["0", "1", "2"])

    def annotate(frame: int, *shapes: dict) -> None:
        path = source / f"masks/cat/{frame}.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        shapes = [{"group_id": None, **shape} for shape in shapes]
        path.write_text(json.dumps({"shapes": shapes, "imageHeight": HEIGHT, "imageWidth": WIDTH}))

    one = {"label": "ant", "points": [[1, 2], [5, 2], [5, 9], [1, 9]], "shape_type": "polygon"}
    two = {"label": "bee", "points": [[15, 10], [8, 3]], "shape_type": "rectangle"}
    ignored = {"label": "__ignore__", "points": [[0, 0], [9, 9]], "shape_type": "rectangle"}
    annotate(0, two, ignored)
    annotate(2, one, two)
    labels = filled((1, 2, 5, 9), (8, 3, 15, 10))
    same(prepare(source), {"cat": {"cat_0": labels * (labels == 2), "cat_2": labels}})


def test_coco_polygons_and_run_lengths(source: Path) -> None:
    write_frames(source, "cat", ["0", "1", "2"])
    box = filled((2, 3, 6, 8))
    # Down the columns: 2 whole ones and 3 pixels, then 5 object, 7 background, ...
    counts = [2 * HEIGHT + 3, 5, 7, 5, 7, 5, 7, 5]
    counts.append(HEIGHT * WIDTH - sum(counts))
    runs = {"size": [HEIGHT, WIDTH], "counts": counts}
    # As pycocotools packs it.
    packed = {"size": [HEIGHT, WIDTH], "counts": "k05700000e3"}
    images = [{"id": 10 + i, "file_name": f"cat/{i}.png"} for i in range(3)]
    annotations = [
        {"image_id": 10, "segmentation": [rectangle(2, 3, 6, 5), rectangle(2, 5, 6, 8)]},
        {"image_id": 11, "segmentation": runs, "iscrowd": 1},
        {"image_id": 12, "segmentation": packed, "iscrowd": 1},
    ]
    content = {"images": images, "annotations": annotations}
    (source / "annotations.json").write_text(json.dumps(content))
    same(prepare(source), {"cat": {f"cat_{i}": box for i in range(3)}})


def test_boxes_of_coco_without_a_shape_are_no_annotation(source: Path, capsys) -> None:
    write_frames(source, "cat", ["0", "1"])
    images = [{"id": i, "file_name": f"{i}.png"} for i in range(2)]
    annotations = [
        {"image_id": 0, "segmentation": [rectangle(2, 3, 6, 8)]},
        {"image_id": 1, "segmentation": [], "bbox": [0, 0, 4, 4]},
    ]
    content = {"images": images, "annotations": annotations}
    (source / "annotations.json").write_text(json.dumps(content))
    same(prepare(source), {"cat": {"cat_0": filled((2, 3, 6, 8))}})
    del annotations[1]["segmentation"]
    annotations.append({"image_id": 1, "segmentation": [rectangle(2, 3, 6, 8)]})
    (source / "annotations.json").write_text(json.dumps(content))
    assert main(command("folder", source, "--set", "mine")) == 1
    assert "1.png has an object with a shape and another one" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("orientation", "size", "turned"),
    [
        (0, {}, False),
        (1, {}, False),
        (3, {"height": HEIGHT, "width": WIDTH}, True),
        (6, {}, True),
        (6, {"height": WIDTH, "width": HEIGHT}, True),
        (6, {"height": HEIGHT, "width": WIDTH}, False),  # the program ignores it, too
    ],
)
def test_images_that_annotation_programs_turn_are_refused(
    source: Path, capsys, orientation, size, turned
) -> None:
    write_frames(source, "cat", ["0", "1"])
    turn(source / "frames/cat/1.png", orientation)
    images = [{"id": i, "file_name": f"{i}.png", **(size if i else {})} for i in range(2)]
    annotations = [{"image_id": i, "segmentation": [rectangle(2, 3, 6, 8)]} for i in range(2)]
    content = {"images": images, "annotations": annotations}
    (source / "annotations.json").write_text(json.dumps(content))
    if not turned:
        box = filled((2, 3, 6, 8))
        return same(prepare(source), {"cat": {"cat_0": box, "cat_1": box}})
    message = complaint(source, capsys)
    assert f"1.png is stored turned (EXIF orientation {orientation})" in message
    assert "save it upright" in message


def test_objects_of_coco_with_a_track_keep_their_number(source: Path) -> None:
    write_frames(source, "cat", ["0", "1"])
    images = [{"id": i, "file_name": f"{i}.png", "height": 12, "width": 16} for i in range(2)]
    left, right = rectangle(0, 0, 4, 4), rectangle(8, 0, 12, 4)
    annotations = [
        {"image_id": 0, "segmentation": [left], "attributes": {"track_id": 7}},
        {"image_id": 0, "segmentation": [right], "attributes": {"track_id": 9}},
        {"image_id": 1, "segmentation": [right], "attributes": {"track_id": 9}},
    ]
    content = {"images": images, "annotations": annotations}
    (source / "annotations.json").write_text(json.dumps(content))
    both = filled((0, 0, 4, 4), (8, 0, 12, 4))
    same(prepare(source), {"cat": {"cat_0": both, "cat_1": both * (both == 2)}})


def test_youtube_vis(source: Path) -> None:
    for video in ("cat", "dog"):
        write_frames(source, video, ["00000", "00005", "00010"])
    names = {v: [f"{v}/{n:05d}.jpg" for n in (0, 5, 10)] for v in ("cat", "dog")}
    videos = [{"id": i, "file_names": names[v]} for i, v in enumerate(names)]
    one, two = [rectangle(0, 0, 4, 4)], [rectangle(8, 0, 12, 4)]
    annotations = [
        {"video_id": 0, "segmentations": [one, None, None]},
        {"video_id": 0, "segmentations": [two, None, two]},
        {"video_id": 1, "segmentations": [None, one, None]},
    ]
    content = {"videos": videos, "annotations": annotations}
    (source / "annotations.json").write_text(json.dumps(content))
    both = filled((0, 0, 4, 4), (8, 0, 12, 4))
    same(
        prepare(source),
        {
            "cat": {"cat_00000": both, "cat_00010": both * (both == 2)},
            "dog": {"dog_00005": (both == 1).astype(np.uint8)},
        },
    )


def test_a_polygon_covers_the_pixels_whose_centre_is_inside() -> None:
    polygon = np.array([3.2, 1.1, 40.7, 12.4, 30.1, 44.9, 8.3, 30.2])
    drawn = draw_shapes([(1, [polygon.tolist()])], (50, 48))
    corners = polygon.reshape(-1, 2)
    y, x = np.mgrid[:50, :48] + 0.5
    sides = [
        ((b[0] - a[0]) * (y - a[1]) - (b[1] - a[1]) * (x - a[0])) / np.hypot(*(b - a))
        for a, b in zip(corners, np.roll(corners, -1, 0))
    ]
    inside = np.all([side > 0 for side in sides], axis=0)
    near = np.any([abs(side) < 0.4 for side in sides], axis=0)
    assert ((drawn == 1) == inside)[~near].all()


def test_annotations_that_do_not_fit(source: Path, capsys) -> None:
    write_frames(source, "cat", ["0", "1"])
    assert "cat: no frame of it has a mask" in complaint(source, capsys)
    write(source / "masks/cat/1.png", objects(1), size=(8, 6))
    assert "1.png: 8 x 6, its image 16 x 12" in complaint(source, capsys)
    write(source / "masks/cat/1.png", objects(1))
    write(source / "masks/cat/2.png", objects(1))
    write(source / "masks/cow/0.png", objects(1))
    said = complaint(source, capsys)
    assert "2 x annotation of a frame that does not exist" in said
    assert "masks/cat/2.png: cat, 2" in said and "no video cow" in said
    (source / "annotations.json").write_text('{"images": [], "annotations": []}')
    assert "annotations.json beside" in complaint(source, capsys)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "not as LabelMe, COCO or YouTube-VIS has it"),
        ({"images": [{"id": 0, "file_name": "cat/0.png"}]}, "KeyError: 'annotations'"),
        ("polygon", "fewer than three points"),
        ("size", "99 x 12, its image 0.png 16 x 12"),
        ("runs", "run lengths of another size than 16 x 12"),
    ],
)
def test_damaged_annotation_files(source: Path, capsys, content, message) -> None:
    write_frames(source, "cat", ["0", "1"])
    if content in ("polygon", "size", "runs"):
        frame = {"id": 0, "file_name": "cat/0.png"}
        shape = [[0, 0, 1, 1]] if content == "polygon" else {"size": [12, 16], "counts": [3]}
        frame |= {"height": 12, "width": 99} if content == "size" else {}
        annotation = {"image_id": 0, "segmentation": shape}
        content = {"images": [frame], "annotations": [annotation]}
    text = content if isinstance(content, str) else json.dumps(content)
    (source / "annotations.json").write_text(text)
    assert message in complaint(source, capsys)


def test_with_partial_a_video_without_masks_is_left_out(source: Path, capsys) -> None:
    for video in ("cat", "dog"):
        write_frames(source, video, ["0", "1"])
    write(source / "masks/dog/1.png", objects(1))
    same(prepare(source, "--partial"), {"dog": {"dog_1": objects(1)}})
    assert "cat: no frame of it has a mask" in capsys.readouterr().out


@pytest.mark.parametrize("name", ["DAVIS_train", "a/b", ".mine", ""])
def test_names_that_are_no_set_of_the_users_own(source: Path, capsys, name: str) -> None:
    write_frames(source, "cat", ["0", "1"])
    try:
        assert main(command("folder", source, "--set", name)) == 1
    except SystemExit as stop:
        assert stop.code == 2
    assert "--set" in capsys.readouterr().err


def test_objects_of_coco_without_a_track_come_after_the_tracks_of_their_video(
    source: Path,
) -> None:
    boxes = [(0, 0, 4, 4), (8, 0, 12, 4), (0, 6, 4, 10)]
    shapes = [[rectangle(*box)] for box in boxes]
    images, annotations = [], []
    for video in ("cat", "dog"):
        write_frames(source, video, ["0", "1"])
        for frame in range(2):
            images.append({"id": f"{video}{frame}", "file_name": f"{video}/{frame}.png"})
    for key in [one["id"] for one in images]:
        track = {"attributes": {"track_id": f"of {key[:3]}"}}
        annotations += [{"image_id": key, "segmentation": shapes[0]}]
        annotations += [{"image_id": key, "segmentation": shapes[1], **track}]
        if key == "dog1":
            annotations += [{"image_id": key, "segmentation": shapes[2]}]
    content = {"images": images, "annotations": annotations}
    (source / "annotations.json").write_text(json.dumps(content))
    track_first = filled(boxes[1], boxes[0])
    expected = {
        video: {f"{video}_{frame}": track_first for frame in range(2)} for video in ("cat", "dog")
    }
    expected["dog"]["dog_1"] = filled(boxes[1], boxes[0], boxes[2])
    same(prepare(source), expected)


@pytest.mark.parametrize(("orientation", "turned"), [(1, False), (3, True), (6, False)])
def test_images_that_are_turned_are_refused_with_masks_that_may_follow_them(
    source: Path, capsys, orientation, turned
) -> None:
    write_frames(source, "cat", ["0", "1"])
    turn(source / "frames/cat/1.png", orientation)
    mask = filled((2, 3, 6, 8))
    for number in range(2):
        write(source / f"masks/cat/{number}.png", mask)
    if turned:
        message = complaint(source, capsys)
        assert f"1.png is stored turned (EXIF orientation {orientation})" in message
    else:
        same(prepare(source), {"cat": {"cat_0": mask, "cat_1": mask}})
