"""Sets as folders: what is found, what is reported, and how files are read."""

import io
import os
import random
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image

from datasets.layout import (
    DatasetError,
    Frame,
    NotBinaryError,
    check_files,
    find_still_images,
    find_video_sequences,
    flow_note,
    format_problems,
    read_binary_mask,
    read_image,
    read_mask,
    read_size,
    still_images,
    video_sequences,
)

HEIGHT, WIDTH = 12, 20


def noise(height: int = HEIGHT, width: int = WIDTH) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)


def write(path: Path, pixels: np.ndarray | None = None) -> Path:
    """A picture in the format that the suffix names, RGB or grey."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(noise() if pixels is None else pixels).save(path)
    return path


def make_flat(root: Path, names: list[str], suffix: str = ".jpg") -> Path:
    """A complete flat set named "videos"; returns its folder."""
    for name in names:
        write(root / "videos/RGB" / f"{name}{suffix}")
        write(root / "videos/GT" / f"{name}.png", noise()[..., 0])
        write(root / "videos/FLOW" / f"{name}.jpg")
    return root / "videos"


def make_nested(root: Path, sequences: dict[str, list[str]]) -> Path:
    """A complete nested set named "videos"; returns its folder."""
    for sequence, names in sequences.items():
        for part in ("RGB", "GT", "FLOW"):
            for name in names:
                write(root / "videos" / sequence / part / f"{name}.png", noise()[..., 0])
    return root / "videos"


def names_of(sequences) -> dict[str, list[str]]:
    return {sequence.name: [frame.name for frame in sequence.frames] for sequence in sequences}


def complaint(call, *args, **kwargs) -> str:
    with pytest.raises(DatasetError) as caught:
        call(*args, **kwargs)
    return str(caught.value)


# What is found


def test_still_images_are_paired_by_name_whatever_their_suffix(tmp_path):
    for image, mask in (("b.JPG", "b.png"), ("a.jpeg", "a.PNG"), ("c.d.png", "c.d.jpg")):
        write(tmp_path / "stills/RGB" / image)
        write(tmp_path / "stills/GT" / mask, noise()[..., 0])
    folder = tmp_path / "stills"
    assert still_images(tmp_path, "stills") == [
        Frame("a", folder / "RGB/a.jpeg", folder / "GT/a.PNG", None),
        Frame("b", folder / "RGB/b.JPG", folder / "GT/b.png", None),
        Frame("c.d", folder / "RGB/c.d.png", folder / "GT/c.d.jpg", None),
    ]


def test_flat_set_is_split_at_the_last_underscore(tmp_path):
    folder = make_flat(
        tmp_path, ["kite_surf-2_00001", "kite_surf-2_00000", "a-b_00007", "kite_5", "kite-x_5"]
    )
    sequences = video_sequences(tmp_path, "videos")
    assert names_of(sequences) == {
        "a-b": ["a-b_00007"],
        "kite": ["kite_5"],
        "kite-x": ["kite-x_5"],
        "kite_surf-2": ["kite_surf-2_00000", "kite_surf-2_00001"],
    }
    assert [sequence.name for sequence in sequences] == ["a-b", "kite", "kite-x", "kite_surf-2"]
    assert sequences[0].frames[0] == Frame(
        "a-b_00007",
        folder / "RGB/a-b_00007.jpg",
        folder / "GT/a-b_00007.png",
        folder / "FLOW/a-b_00007.jpg",
    )


def test_nested_set_takes_sequence_names_from_folders_and_any_frame_names(tmp_path):
    folder = make_nested(tmp_path, {"dog_1": ["x_1", "x_0"], "bmx-trees": ["00001", "00000"]})
    sequences = video_sequences(tmp_path, "videos")
    assert names_of(sequences) == {"bmx-trees": ["00000", "00001"], "dog_1": ["x_0", "x_1"]}
    assert sequences[1].frames[0] == Frame(
        "x_0",
        folder / "dog_1/RGB/x_0.png",
        folder / "dog_1/GT/x_0.png",
        folder / "dog_1/FLOW/x_0.png",
    )


def test_frames_are_ordered_by_number_and_by_name_without_numbers(tmp_path):
    make_flat(
        tmp_path,
        ["a_10", "a_2", "a_1", "b_frame10", "b_frame9", "c_mid", "c_end", "d_0010", "d_9", "d_x"],
    )
    assert names_of(video_sequences(tmp_path, "videos")) == {
        "a": ["a_1", "a_2", "a_10"],
        "b": ["b_frame9", "b_frame10"],
        "c": ["c_end", "c_mid"],
        "d": ["d_9", "d_0010", "d_x"],
    }


def test_hidden_files_and_files_that_are_no_pictures_are_ignored(tmp_path):
    folder = make_flat(tmp_path, ["a_0"])
    for part in ("RGB", "GT", "FLOW"):
        for name in ("Thumbs.db", ".a_1.jpg", "._a_0.jpg", ".a_1.webp", "a_1.txt", "a_1"):
            (folder / part / name).touch()
    (folder / ".cache").mkdir()
    assert names_of(video_sequences(tmp_path, "videos")) == {"a": ["a_0"]}

    make_nested(tmp_path / "nested", {"b": ["b_0"], ".hidden": ["h_0"]})
    write(tmp_path / "nested/videos/__MACOSX/b/RGB/b_0.jpg")
    (tmp_path / "nested/videos/README.txt").touch()
    assert names_of(video_sequences(tmp_path / "nested", "videos")) == {"b": ["b_0"]}


@pytest.mark.parametrize("make", [make_flat, lambda root, names: make_nested(root, {"a": names})])
def test_masks_and_flow_that_are_not_needed_are_returned_but_never_missed(tmp_path, make):
    folder = make(tmp_path, ["a_0", "a_1"])
    for path in (*folder.rglob("GT/a_1.*"), *folder.rglob("FLOW/a_0.*")):
        path.unlink()
    write(next(folder.rglob("FLOW")) / "a_9.png")
    frames = video_sequences(tmp_path, "videos", masks="none", flow=False)[0].frames
    assert [frame.mask is None for frame in frames] == [False, True]
    assert [frame.flow is None for frame in frames] == [True, False]
    # Either alone is still asked for.
    message = complaint(video_sequences, tmp_path, "videos", flow=False)
    assert "x image without mask" in message and "x flow map" not in message
    message = complaint(video_sequences, tmp_path, "videos", masks="none")
    assert "x image without flow map" in message and "x mask" not in message

    for path in (*folder.rglob("GT/*"), *folder.rglob("FLOW/*")):
        path.unlink()
    next(folder.rglob("GT")).rmdir()
    frames = video_sequences(tmp_path, "videos", masks="none", flow=False)[0].frames
    assert [(frame.mask, frame.flow) for frame in frames] == [(None, None)] * 2


@pytest.mark.parametrize("make", [make_flat, lambda root, names: make_nested(root, {"a": names})])
def test_the_last_frame_alone_may_lack_its_flow_map(tmp_path, make):
    folder = make(tmp_path, ["a_0", "a_1", "a_2"])
    assert flow_note(video_sequences(tmp_path, "videos")) is None
    next(folder.rglob("FLOW/a_2.*")).unlink()
    (sequence,) = video_sequences(tmp_path, "videos")
    assert [frame.flow.stem for frame in sequence.frames] == ["a_0", "a_1", "a_1"]
    assert "in 1 of 1 sequences" in flow_note([sequence])
    (sequence,) = video_sequences(tmp_path, "videos", flow=False)
    assert sequence.frames[2].flow is None
    next(folder.rglob("FLOW/a_1.*")).unlink()
    message = complaint(video_sequences, tmp_path, "videos")
    assert "2 x image without flow map" in message  # nor is a gap handed on


def test_sequences_without_any_flow_map_are_missed(tmp_path):
    folder = make_flat(tmp_path, ["a_0", "a_1", "b_0", "b_1", "c_0"])
    for name in ("b_0", "b_1", "c_0"):
        (folder / f"FLOW/{name}.jpg").unlink()
    message = complaint(video_sequences, tmp_path, "videos")
    assert "3 x image without flow map" in message and "RGB/c_0.jpg" in message


def test_flo_files_in_the_place_of_flow_maps_name_the_way_to_convert_them(tmp_path):
    folder = make_flat(tmp_path, ["a_0"])
    (folder / "FLOW/a_0.jpg").rename(folder / "FLOW/a_0.flo")
    assert "--from-flo" in complaint(video_sequences, tmp_path, "videos")


# What is reported about folders


def test_missing_set_says_what_is_there_and_how_to_set_the_root(tmp_path):
    make_flat(tmp_path, ["a_0"])
    (tmp_path / "note.txt").touch()
    message = complaint(video_sequences, tmp_path, "DAVIS_train")
    assert f"{tmp_path} holds: videos." in message
    assert str(tmp_path / "DAVIS_train/{RGB,GT,FLOW}/<sequence>_<frame>") in message
    assert str(tmp_path / "DAVIS_train/<sequence>/{RGB,GT,FLOW}") in message
    assert "DATA_ROOT" in message and "--data-root" in message
    assert str(tmp_path / "DUTS/{RGB,GT}/<name>") in complaint(still_images, tmp_path, "DUTS")


def test_missing_data_root_is_named(tmp_path):
    message = complaint(still_images, tmp_path / "nowhere", "DUTS_train")
    assert f"{tmp_path / 'nowhere'} is not a folder" in message and "DATA_ROOT" in message


@pytest.mark.parametrize("part", ["RGB", "GT"])
@pytest.mark.parametrize("keep_folder", [False, True])
def test_still_set_without_images_or_masks(tmp_path, part, keep_folder):
    write(tmp_path / "stills/RGB/a.jpg")
    write(tmp_path / "stills/GT/a.png")
    next((tmp_path / "stills" / part).iterdir()).unlink()
    if not keep_folder:
        (tmp_path / "stills" / part).rmdir()
    message = complaint(still_images, tmp_path, "stills")
    state = "without pictures" if keep_folder else "missing"
    # One problem: the files of the other folder are not reported one by one.
    assert message.startswith(f"1 problem in {tmp_path / 'stills'}:\n  1 x {part} folder {state} (")
    assert message.endswith(f"\n    {part}")


@pytest.mark.parametrize("keep_folder", [False, True])
def test_missing_and_empty_flow_folders_name_the_command(tmp_path, keep_folder):
    root = tmp_path / "my data"
    folder = make_nested(root, {"a": ["a_0"], "b": ["b_0"], "c": ["c_0"]})
    for sequence in ("a", "c"):
        (folder / sequence / f"FLOW/{sequence}_0.png").unlink()
        if not keep_folder:
            (folder / sequence / "FLOW").rmdir()
    message = complaint(video_sequences, root, "videos")
    state = "without pictures" if keep_folder else "missing"
    assert message.splitlines() == [
        f"2 problems in {folder}:",
        f"  2 x FLOW folder {state} (make the flow maps: "
        f"python -m datasets.flow --data-root '{root}' --set videos)",
        "    a/FLOW",
        "    c/FLOW",
    ]
    assert video_sequences(root, "videos", flow=False)[0].frames[0].flow is None


def test_flat_set_without_rgb_is_not_taken_for_a_nested_one(tmp_path):
    folder = make_flat(tmp_path, ["a_0"])
    (folder / "RGB/a_0.jpg").unlink()
    (folder / "RGB").rmdir()
    message = complaint(video_sequences, tmp_path, "videos")
    assert message.startswith("1 problem ") and "1 x RGB folder missing" in message


def test_folder_of_another_layout_says_what_it_holds(tmp_path):
    folder = make_flat(tmp_path, ["a_0"])
    (folder / "RGB/a_0.jpg").unlink()
    write(folder / "RGB/bear/00000.jpg")
    assert "RGB (other entries: 1, as bear)" in complaint(video_sequences, tmp_path, "videos")


def test_nested_folders_without_rgb_and_sets_without_folders(tmp_path):
    folder = make_nested(tmp_path, {"a": ["a_0"]})
    write(folder / "b/frames/b_0.jpg")
    message = complaint(video_sequences, tmp_path, "videos")
    assert "1 x RGB folder missing" in message and "    b/RGB" in message
    (tmp_path / "empty").mkdir()
    assert "1 x set without any sequence" in complaint(video_sequences, tmp_path, "empty")


# What is reported about names


def test_all_kinds_of_unpaired_files_come_in_one_message(tmp_path):
    folder = make_flat(tmp_path, ["a_0", "a_1", "a_2", "a_3", "a_4"])
    (folder / "GT/a_1.png").unlink()
    (folder / "FLOW/a_2.jpg").unlink()
    write(folder / "GT/z_0.png")
    write(folder / "FLOW/y_0.png")
    write(folder / "RGB/a_3.png")
    write(folder / "GT/a_4.JPG")
    for part in ("RGB", "GT", "FLOW"):
        for name in ("portrait", "_00001", "bear_"):
            write(folder / part / f"{name}.png")
    message = complaint(video_sequences, tmp_path, "videos")
    assert message.startswith(f"9 problems in {folder}:\n")
    # Each kind with its number, then its files.
    lines = [line.split(" (")[0] for line in message.splitlines()]
    for kind, files in {
        "1 x image without mask": ["RGB/a_1.jpg"],
        "1 x mask without image": ["GT/z_0.png"],
        "1 x image without flow map": ["RGB/a_2.jpg"],
        "1 x flow map without image": ["FLOW/y_0.png"],
        "2 x file with the same name as another but for the suffix": [
            "RGB/a_3.png beside a_3.jpg",
            "GT/a_4.png beside a_4.JPG",
        ],
        "3 x image whose name is not <sequence>_<frame>": [
            "RGB/_00001.png",
            "RGB/bear_.png",
            "RGB/portrait.png",
        ],
    }.items():
        start = lines.index(f"  {kind}")
        assert lines[start + 1 : start + 1 + len(files)] == [f"    {file}" for file in files]
    assert "datasets.flow" in message


def test_unpaired_files_of_nested_and_still_sets_are_reported(tmp_path):
    folder = make_nested(tmp_path, {"a": ["a_0", "a_1"], "b": ["b_0"]})
    (folder / "a/GT/a_1.png").unlink()
    write(folder / "b/FLOW/b_1.png")
    message = complaint(video_sequences, tmp_path, "videos")
    assert message.startswith("2 problems ")
    assert "1 x image without mask" in message and "    a/RGB/a_1.png" in message
    assert "1 x flow map without image" in message and "    b/FLOW/b_1.png" in message

    for name in ("a.jpg", "a.png", "b.jpg", "d.jpg"):
        write(tmp_path / "stills/RGB" / name)
    for name in ("a.png", "c.png", "d.png"):
        write(tmp_path / "stills/GT" / name)
    message = complaint(still_images, tmp_path, "stills")
    assert message.startswith("3 problems ")
    for entry in ("RGB/b.jpg", "GT/c.png", "RGB/a.png beside a.jpg"):
        assert f"    {entry}" in message.splitlines()


def test_first_ten_are_listed_and_the_rest_counted(tmp_path):
    folder = make_flat(tmp_path, [f"a_{i:02d}" for i in range(13)])
    for path in sorted((folder / "GT").iterdir())[:12]:
        path.unlink()
    lines = complaint(video_sequences, tmp_path, "videos").splitlines()
    assert lines[0] == f"12 problems in {folder}:"
    assert lines[2:] == [f"    RGB/a_{i:02d}.jpg" for i in range(10)] + ["    ... and 2 more"]


def test_format_problems_lists_exactly_ten_without_a_rest():
    items = list("abcdefghij")
    assert format_problems("here", {("kind", "advice"): items}).splitlines() == [
        "10 problems in here:",
        "  10 x kind (advice)",
        *(f"    {item}" for item in items),
    ]


def test_what_is_there_can_be_had_together_with_what_is_wrong(tmp_path):
    folder = make_flat(tmp_path, ["a_0", "a_1", "portrait"])
    (folder / "GT/a_1.png").unlink()
    sequences, problems = find_video_sequences(tmp_path, "videos")
    assert names_of(sequences) == {"a": ["a_0", "a_1"]}
    assert sequences[0].frames[1].mask is None
    assert list(problems.values()) == [["RGB/a_1.jpg"], ["RGB/portrait.jpg"]]
    frames, problems = find_still_images(tmp_path, "videos")
    assert [frame.name for frame in frames] == ["a_0", "a_1", "portrait"]
    assert list(problems.values()) == [["RGB/a_1.jpg"]]

    make_nested(tmp_path / "nested", {"b": ["b_0"], "c": ["c_0"]})
    (tmp_path / "nested/videos/c/RGB/c_0.png").unlink()
    sequences, problems = find_video_sequences(tmp_path / "nested", "videos")
    assert names_of(sequences) == {"b": ["b_0"]}
    assert list(problems.values()) == [["c/RGB"]]


@pytest.mark.parametrize("masks", ["all", "some", "none"])
def test_masks_of_no_frame_are_named_whatever_is_asked_for(tmp_path, masks):
    folder = make_nested(tmp_path, {"Dog": ["Dog_1", "Dog_10"]})
    left = {
        "dog_1.png": " (of Dog_1.png?)",
        "Dog_10_mask.png": " (of Dog_10.png?)",
        "gt-Dog_1.png": " (of Dog_1.png?)",
        "Dog_100.png": "",
    }
    for name in left:
        write(folder / "Dog/GT" / name)
    _, problems = find_video_sequences(tmp_path, "videos", masks=masks, flow=False)
    assert {kind: sorted(items) for (kind, _), items in problems.items()} == {
        "mask without image": sorted(f"Dog/GT/{name}{hint}" for name, hint in left.items())
    }


@pytest.mark.parametrize("part", ["RGB", "GT", "FLOW"])
def test_pictures_of_another_format_and_broken_links_are_named(tmp_path, part):
    folder = make_nested(tmp_path, {"a": ["a_0", "a_1"]})
    for name in ("a_2.webp", "a_3.TIF", "a_1.bmp"):  # a_1 is there as PNG
        (folder / "a" / part / name).touch()
    (folder / "b").symlink_to(tmp_path / "unplugged")
    (folder / ".c").symlink_to(tmp_path / "unplugged")
    _, problems = find_video_sequences(tmp_path, "videos", masks="none" if part == "GT" else "all")
    assert {kind: items for (kind, _), items in problems.items()} == {
        "broken link": ["b"],
        "picture of another format": [f"a/{part}/a_2.webp", f"a/{part}/a_3.TIF"],
    }


# What is reported about files


def frame_of(image: Path, mask: Path | None = None, flow: Path | None = None) -> Frame:
    return Frame(image.stem, image, mask, flow)


def test_clean_sets_pass_every_check(tmp_path, capsys):
    make_flat(tmp_path, ["a_0", "a_1"])
    make_nested(tmp_path / "nested", {"b": ["b_0"]})
    sequences = video_sequences(tmp_path, "videos") + video_sequences(tmp_path / "nested", "videos")
    frames = [frame for sequence in sequences for frame in sequence.frames]
    check_files(iter(frames), workers=2, progress=False)
    assert capsys.readouterr().err == ""
    check_files(frames)
    assert "3/3" in capsys.readouterr().err


@pytest.mark.parametrize("suffix", [".jpg", ".png"])
@pytest.mark.parametrize(
    ("kept", "fault"),
    [
        (slice(-2), "truncated"),
        (slice(-30), "truncated"),
        (slice(1000), "truncated"),
        (slice(12), ""),  # worded by the decoder
        (slice(0), "empty (0 bytes)"),
    ],
)
def test_truncated_files_are_found_by_check_and_by_reading(tmp_path, suffix, kept, fault):
    path = write(tmp_path / f"a{suffix}", noise(64, 64))
    path.write_bytes(path.read_bytes()[kept])
    message = complaint(check_files, [frame_of(path)], progress=False)
    assert message.startswith("1 problem ") and str(path) in message
    for text in (message, complaint(read_image, path), complaint(read_mask, path)):
        assert str(path) in text and fault in text


def test_truncated_jpeg_with_an_embedded_preview_is_found(tmp_path):
    # The preview's own end marker must not count as the end of the file.
    preview = write(tmp_path / "preview.jpg", noise(8, 8)).read_bytes()
    exif = b"Exif\0\0" + preview
    segment = b"\xff\xe1" + (len(exif) + 2).to_bytes(2, "big") + exif
    path = write(tmp_path / "a.jpg", noise(64, 64))
    content = path.read_bytes()
    path.write_bytes(content[:2] + segment + content[2:])
    check_files([frame_of(path)], progress=False)
    assert read_image(path).shape == (64, 64, 3)
    path.write_bytes(content[:2] + segment + content[2:-100])
    assert "truncated" in complaint(check_files, [frame_of(path)], progress=False)


@pytest.mark.parametrize("suffix", [".jpg", ".png"])
def test_bytes_after_the_end_are_no_truncation(tmp_path, suffix):
    path = write(tmp_path / f"a{suffix}")
    expected = read_image(path)
    path.write_bytes(path.read_bytes() + bytes(100) + b"made by a camera")
    check_files([frame_of(path)], progress=False)
    np.testing.assert_array_equal(read_image(path), expected)


def test_missing_and_foreign_files_are_named(tmp_path):
    missing = tmp_path / "missing.jpg"
    bitmap = tmp_path / "bitmap.png"
    Image.fromarray(noise()).save(bitmap, format="BMP")
    folder = tmp_path / "folder.png"
    folder.mkdir()
    message = complaint(check_files, [frame_of(missing, bitmap, folder)], progress=False)
    assert message.startswith("3 problems ")
    assert f"{missing}: no such file" in message
    assert f"{bitmap}: not a JPEG or PNG" in message
    assert str(folder) in message
    for path in (missing, bitmap, folder):
        assert str(path) in complaint(read_image, path)
        assert str(path) in complaint(read_mask, path)


def test_pipes_are_not_waited_for_and_broken_links_are_called_so(tmp_path):
    os.mkfifo(tmp_path / "pipe.jpg")
    (tmp_path / "link.jpg").symlink_to(tmp_path / "gone.jpg")
    frames = [frame_of(tmp_path / "pipe.jpg"), frame_of(tmp_path / "link.jpg")]
    message = complaint(check_files, frames, progress=False)
    assert f"{tmp_path / 'pipe.jpg'}: not a regular file" in message
    assert f"{tmp_path / 'link.jpg'}: a link to a file that is not there" in message


def test_partners_of_another_size_are_counted_with_both_sizes(tmp_path):
    image = write(tmp_path / "image.jpg")
    turned = write(tmp_path / "turned.png", noise(WIDTH, HEIGHT))
    broken = tmp_path / "broken.jpg"
    broken.touch()
    frames = [
        frame_of(image, image, image),
        frame_of(image, turned, image),
        frame_of(image, image, turned),
        frame_of(image, turned, turned),
        frame_of(broken, turned),
    ]
    message = complaint(check_files, frames, progress=False)
    assert message.startswith("5 problems in the files of 5 frames:\n")
    assert "2 x mask of another size than its image" in message
    assert "2 x flow map of another size than its image" in message and "--overwrite" in message
    assert message.count(f"{turned}: {HEIGHT} x {WIDTH}, its image {WIDTH} x {HEIGHT}") == 4


def test_broken_files_are_listed_up_to_ten(tmp_path):
    paths = [tmp_path / f"{i:02d}.png" for i in range(13)]
    for path in paths:
        path.touch()
    lines = complaint(check_files, map(frame_of, paths), progress=False).splitlines()
    assert lines[0].startswith("13 problems ")
    assert [line.split(":")[0].strip() for line in lines[2:12]] == [str(p) for p in paths[:10]]
    assert lines[12:] == ["    ... and 3 more"]


# Reading


def test_read_image_gives_rgb(tmp_path):
    path = write(tmp_path / "a.png")
    image = read_image(path)
    assert image.dtype == np.uint8
    np.testing.assert_array_equal(image, noise())
    colours = np.zeros((16, 16, 3), np.uint8)
    colours[:] = 200, 40, 90
    np.testing.assert_allclose(read_image(write(tmp_path / "a.jpg", colours)), colours, atol=4)


def test_read_image_of_grey_and_transparent_pictures(tmp_path):
    grey = noise()[..., 0]
    expected = np.stack([grey] * 3, axis=-1)
    np.testing.assert_array_equal(read_image(write(tmp_path / "grey.png", grey)), expected)
    rgba = np.dstack([noise(), np.full((HEIGHT, WIDTH), 7, np.uint8)])
    np.testing.assert_array_equal(read_image(write(tmp_path / "rgba.png", rgba)), noise())


def test_orientation_tags_are_ignored_by_all_readers(tmp_path):
    path, mask = tmp_path / "turned.jpg", write(tmp_path / "mask.png")
    exif = Image.Exif()
    exif[0x0112] = 6  # to be shown turned by 90 degrees
    Image.fromarray(noise()).save(path, exif=exif)
    assert cv2.imread(str(path)).shape[:2] == (WIDTH, HEIGHT)
    assert read_image(path).shape[:2] == read_mask(path).shape == (HEIGHT, WIDTH)
    check_files([frame_of(path, mask, path)], progress=False)


def test_names_that_are_not_utf_8_are_read(tmp_path):
    folder = make_nested(tmp_path / os.fsdecode(b"\xff"), {"a": [os.fsdecode(b"a\xfe_0")]})
    (sequence,) = video_sequences(folder.parent, "videos")
    (frame,) = sequence.frames
    np.testing.assert_array_equal(read_image(frame.image)[..., 0], noise()[..., 0])
    np.testing.assert_array_equal(read_mask(frame.mask), noise()[..., 0] > 127)


def test_every_damaged_byte_of_a_png_is_noticed(tmp_path):
    content, rng = write(tmp_path / "a.png").read_bytes(), random.Random(0)
    for place in (*range(8, 60), *rng.sample(range(60, len(content) - 8), 40)):
        changed = bytearray(content)
        changed[place] ^= 1 << rng.randrange(8)
        (tmp_path / "a.png").write_bytes(changed)
        for read in (read_image, read_mask, read_binary_mask):
            assert str(tmp_path / "a.png") in complaint(read, tmp_path / "a.png")


def test_what_opencv_calls_a_corrupt_jpeg_is_refused_in_silence(tmp_path, capfd):
    content, rng = write(tmp_path / "a.jpg", noise(64, 64)).read_bytes(), random.Random(0)
    pixels = content.index(b"\xff\xda") + 14
    corrupt = 0
    for _ in range(40):
        place, changed = rng.randrange(pixels, len(content) - 20), bytearray(content)
        changed[place : place + 8] = rng.randbytes(8)
        (tmp_path / "a.jpg").write_bytes(changed)
        cv2.imdecode(np.frombuffer(changed, np.uint8), cv2.IMREAD_COLOR)
        told = capfd.readouterr().err
        if "Corrupt JPEG" in told or "Premature end" in told:
            corrupt += 1
            for read in (read_image, read_mask, read_binary_mask):
                assert "damaged inside" in complaint(read, tmp_path / "a.jpg")
            assert capfd.readouterr().err == ""
    assert 10 < corrupt < 40


def test_unusual_jpegs_are_read(tmp_path):
    inks = noise()[..., [0, 1, 2, 0]]
    Image.fromarray(inks, "CMYK").save(tmp_path / "inks.jpg")
    with Image.open(tmp_path / "inks.jpg") as picture:
        expected = np.asarray(picture.convert("RGB")).astype(int)
    assert abs(read_image(tmp_path / "inks.jpg") - expected).max() <= 2
    path = write(tmp_path / "a.jpg")
    content, expected = bytearray(path.read_bytes()), read_image(path)
    content[content.index(b"JFIF") + 5] = 9  # a version that there is not
    path.write_bytes(content)
    np.testing.assert_array_equal(read_image(path), expected)
    for grey in (noise()[..., 0], noise()):
        buffer = io.BytesIO()
        Image.fromarray(grey).save(buffer, "JPEG", progressive=True, subsampling=2)
        path.write_bytes(buffer.getvalue())
        expected = cv2.imdecode(np.frombuffer(buffer.getvalue(), np.uint8), cv2.IMREAD_COLOR)
        np.testing.assert_array_equal(read_image(path), expected[..., ::-1])


OBJECT = np.zeros((HEIGHT, WIDTH), bool)
OBJECT[3:8, 5:15] = True


def write_palette(path: Path, labels: np.ndarray, colours: list[int], **options) -> Path:
    """Labels with a palette, as red, green and blue of each label in turn."""
    picture = Image.fromarray(labels.astype(np.uint8)).convert("P")
    picture.putdata(labels.flatten().tolist())
    picture.putpalette(colours)
    picture.save(path, **options)
    return path


def soft(top: int = 255) -> np.ndarray:
    """A disk with soft edges, in all values to `top`."""
    edge = np.clip(np.linspace(-0.5, 1.5, WIDTH), 0, 1)
    dtype = np.uint8 if top < 256 else np.uint16
    return np.repeat((edge * top).round()[None], HEIGHT, 0).astype(dtype)


@pytest.mark.parametrize("form", ["L", "LA", "RGB", "RGBA", "I;16", "P", "white first"])
def test_grey_masks_with_soft_edges_are_cut_at_one_half(tmp_path, form):
    values, path = soft(65535 if form == "I;16" else 255), tmp_path / "mask.png"
    if form in ("P", "white first"):
        ramp = list(range(256)) if form == "P" else list(range(255, -1, -1))
        labels = values if form == "P" else 255 - values
        write_palette(path, labels, [level for level in ramp for _ in range(3)])
    else:
        picture = Image.fromarray(values)
        (picture if form in ("L", "I;16") else picture.convert(form)).save(path)
    expected = values > values.max() // 2
    assert np.unique(values).size > 5 and expected.any() and not expected.all()
    np.testing.assert_array_equal(read_mask(path), expected)
    np.testing.assert_array_equal(read_binary_mask(path, binarize=True), expected)


@pytest.mark.parametrize("top", [255, 200, 128])
def test_grey_masks_need_not_reach_white(tmp_path, top):
    np.testing.assert_array_equal(
        read_mask(write(tmp_path / "mask.png", soft(top))), soft(top) > 127
    )


@pytest.mark.parametrize(
    ("values", "foreground"),
    [
        ([0, 1, 2, 31], [0, 1, 1, 1]),  # numbers of objects
        ([1, 2, 1, 2], [1, 1, 1, 1]),
        ([0, 40, 0, 40], [0, 1, 0, 1]),
        ([40, 40, 40, 40], [1, 1, 1, 1]),
        ([1, 255, 1, 254], [0, 1, 0, 1]),
        ([0, 38, 75, 38], None),  # colours of a palette as grey
        ([0, 1, 2, 255], None),  # objects and void
        ([0, 5, 255, 255], None),
    ],
)
def test_grey_values_are_labels_soft_edges_or_refused(tmp_path, values, foreground):
    path = write(tmp_path / "mask.png", np.array([values], np.uint8))
    if foreground is None:
        assert "may be labels or soft edges; write 0" in complaint(read_mask, path)
    else:
        assert read_mask(path).tolist() == [[bool(value) for value in foreground]]


@pytest.mark.parametrize("method", [Image.Quantize.MEDIANCUT, Image.Quantize.FASTOCTREE])
def test_palettes_of_black_and_white_are_read_by_their_colours(tmp_path, method):
    picture = Image.fromarray((OBJECT * 255).astype(np.uint8)).convert("RGB")
    first = picture.quantize(2, method=method)
    first.save(tmp_path / "mask.png")
    white_first = method == Image.Quantize.MEDIANCUT
    assert first.getpalette()[:3] == [255 * white_first] * 3
    for read in (read_mask, read_binary_mask):
        np.testing.assert_array_equal(read(tmp_path / "mask.png"), OBJECT)


def test_palettes_of_colours_that_do_not_begin_with_black_are_refused(tmp_path):
    path = write_palette(tmp_path / "mask.png", OBJECT, [200, 220, 210, 0, 0, 0])
    for read in (read_mask, read_binary_mask):
        assert "begins with the colour (200, 220, 210); expected black" in complaint(read, path)
    image = write(tmp_path / "image.png")
    assert "expected black" in complaint(check_files, [frame_of(image, path)], progress=False)
    check_files([frame_of(path, image, path)], progress=False)  # an image may have any palette


def test_255_is_void_in_a_palette_beside_other_labels(tmp_path):
    labels = OBJECT.astype(np.uint8)
    labels[0] = 255
    colours = [0, 0, 0, 128, 0, 0, *[0] * 759, 224, 224, 192]
    path = write_palette(tmp_path / "mask.png", labels, colours)
    for read in (read_mask, read_binary_mask):
        np.testing.assert_array_equal(read(path), OBJECT)
    np.testing.assert_array_equal(read_mask(write_palette(path, OBJECT * 255, colours)), OBJECT)


@pytest.mark.parametrize("value", [1, 7, 127, 255])
def test_read_mask_of_any_grey_label(tmp_path, value):
    mask = read_mask(write(tmp_path / "mask.png", (OBJECT * value).astype(np.uint8)))
    assert mask.dtype == bool
    np.testing.assert_array_equal(mask, OBJECT)


def test_read_mask_of_one_bit_and_sixteen_bits(tmp_path):
    np.testing.assert_array_equal(read_mask(write(tmp_path / "one.png", OBJECT)), OBJECT)
    deep = write(tmp_path / "sixteen.png", (OBJECT * 256).astype(np.uint16))
    np.testing.assert_array_equal(read_mask(deep), OBJECT)


@pytest.mark.parametrize("transparent", [False, True])
def test_read_mask_takes_labels_not_colours_of_a_palette(tmp_path, transparent):
    # Object 1 is black, object 2 too dark to survive a conversion to grey.
    labels = OBJECT.astype(np.uint8)
    labels[6:8, 5:15] = 2
    options = {"transparency": 1} if transparent else {}
    path = write_palette(tmp_path / "mask.png", labels, [0, 0, 0, 0, 0, 0, 0, 0, 1], **options)
    with Image.open(path) as written:
        assert written.mode == "P"
    np.testing.assert_array_equal(read_mask(path), OBJECT)


@pytest.mark.parametrize("channel", [0, 1, 2])
def test_read_mask_takes_any_colour_channel(tmp_path, channel):
    rgb = np.zeros((HEIGHT, WIDTH, 3), np.uint8)
    rgb[..., channel] = OBJECT
    np.testing.assert_array_equal(read_mask(write(tmp_path / "rgb.png", rgb)), OBJECT)


def test_read_mask_does_not_count_transparency(tmp_path):
    opaque = np.full((HEIGHT, WIDTH), 255, np.uint8)
    grey = (OBJECT * 255).astype(np.uint8)
    rgba = write(tmp_path / "rgba.png", np.dstack([grey, grey, grey, opaque]))
    np.testing.assert_array_equal(read_mask(rgba), OBJECT)
    both = tmp_path / "grey_alpha.png"
    Image.merge("LA", [Image.fromarray(grey), Image.fromarray(opaque)]).save(both)
    np.testing.assert_array_equal(read_mask(both), OBJECT)


@pytest.mark.parametrize("channels", [1, 3])
def test_read_mask_cuts_lossy_masks_at_half(tmp_path, channels):
    # JPEG rings around edges, so that values near 0 and 255 appear.
    disc = np.hypot(*np.mgrid[-32:32, -32:32]) < 20
    pixels = (disc * 255).astype(np.uint8)
    path = tmp_path / "mask.jpg"
    Image.fromarray(pixels if channels == 1 else np.dstack([pixels] * 3)).save(path, quality=60)
    decoded = cv2.imread(str(path), cv2.IMREAD_GRAYSCALE)
    assert np.any((decoded > 0) != disc)
    np.testing.assert_array_equal(read_mask(path), decoded > 127)
    assert np.mean(read_mask(path) != disc) < 0.01


@pytest.mark.parametrize("colour", [(128, 0, 0), (0, 128, 0), (255, 255, 0), (0, 0, 0)])
def test_what_surrounds_objects_in_lossy_coloured_masks_is_background(tmp_path, colour):
    disc = np.hypot(*np.mgrid[-32:32, -32:32]) < 20
    Image.fromarray(disc[..., None] * np.uint8(colour)).save(tmp_path / "mask.jpg", quality=60)
    expected = disc & (max(colour) > 0)
    assert np.mean(read_mask(tmp_path / "mask.jpg") != expected) < 0.05


# Sets of which not every frame is annotated


@pytest.mark.parametrize("make", [make_flat, lambda root, names: make_nested(root, {"a": names})])
def test_some_masks_are_enough_where_they_are_asked_for(tmp_path, make):
    folder = make(tmp_path, ["a_0", "a_1", "a_2"])
    next(folder.rglob("GT/a_1.*")).unlink()
    (sequence,) = video_sequences(tmp_path, "videos", masks="some")
    assert [frame.mask is None for frame in sequence.frames] == [False, True, False]
    # But no mask may be without its image, and no sequence without any mask.
    write(next(folder.rglob("GT")) / "a_9.png")
    message = complaint(video_sequences, tmp_path, "videos", masks="some")
    assert "1 x mask without image" in message and "image without mask" not in message
    next(folder.rglob("GT/a_9.*")).unlink()
    make_nested(tmp_path / "two", {"a": ["a_0"], "b": ["b_0"]})
    next((tmp_path / "two").rglob("GT/b_0.*")).unlink()
    message = complaint(video_sequences, tmp_path / "two", "videos", masks="some")
    assert "GT folder without pictures" in message
    with pytest.raises(ValueError, match="expected 'all', 'some' or 'none'"):
        video_sequences(tmp_path, "videos", masks=True)


def test_a_flat_sequence_without_any_mask_is_named(tmp_path):
    folder = make_flat(tmp_path, ["a_0", "b_0"])
    next(folder.rglob("GT/b_0.*")).unlink()
    message = complaint(video_sequences, tmp_path, "videos", masks="some")
    assert "1 x sequence without any mask" in message and "    b" in message


# Masks as results


@pytest.mark.parametrize("high", [1, 3, 128, 255])
@pytest.mark.parametrize("mode", ["L", "LA", "P", "RGB", "RGBA", "I;16"])
def test_a_mask_of_two_values_is_binary_in_any_form(tmp_path, mode, high):
    expected = np.zeros((6, 8), bool)
    expected[2:4, 3:] = True
    labels = (expected * high).astype(np.uint16 if mode == "I;16" else np.uint8)
    picture = Image.fromarray(labels)
    if mode == "P":
        picture.putpalette([0, 0, 0, 250, 200, 20] + [7] * 762)
    elif mode not in ("L", "I;16"):
        picture = picture.convert(mode)
    picture.save(tmp_path / "mask.png")
    np.testing.assert_array_equal(read_binary_mask(tmp_path / "mask.png"), expected)
    # To be cut, grey is grey, however few values there are: a soft mask may be nearly empty.
    cut = expected if mode == "P" else expected & (high > (32767 if mode == "I;16" else 127))
    np.testing.assert_array_equal(read_binary_mask(tmp_path / "mask.png", binarize=True), cut)


def test_masks_of_one_bit_one_colour_or_nothing_are_binary(tmp_path):
    expected = np.zeros((6, 8), bool)
    expected[2:4, 3:] = True
    Image.fromarray(expected).save(tmp_path / "bit.png")
    Image.fromarray(expected[..., None] * np.uint8([250, 0, 3])).save(tmp_path / "colour.png")
    for name in ("bit", "colour"):
        np.testing.assert_array_equal(read_binary_mask(tmp_path / f"{name}.png"), expected)
    for value in (0, 9):
        Image.fromarray(np.full((6, 8), value, np.uint8)).save(tmp_path / "flat.png")
        assert (read_binary_mask(tmp_path / "flat.png") == (value > 0)).all()


@pytest.mark.parametrize(("mode", "top"), [("L", 255), ("LA", 255), ("RGB", 255), ("I;16", 65535)])
def test_grey_masks_are_cut_at_the_middle_only_if_asked_for(tmp_path, mode, top):
    values = np.array([[0, top // 2, top // 2 + 1, top]], np.uint16 if top > 255 else np.uint8)
    picture = Image.fromarray(values)
    (picture if mode in ("L", "I;16") else picture.convert(mode)).save(tmp_path / "grey.png")
    with pytest.raises(NotBinaryError, match=rf"grey\.png: 4 values from 0 to {top}"):
        read_binary_mask(tmp_path / "grey.png")
    assert read_binary_mask(tmp_path / "grey.png", binarize=True).tolist() == [
        [False, False, True, True]
    ]


def test_several_labels_or_colours_are_never_cut(tmp_path):
    labels = np.array([[0, 1, 2]], np.uint8)
    picture = Image.fromarray(labels)
    picture.putpalette([0, 0, 0, 250, 0, 0, 0, 250, 0])
    picture.save(tmp_path / "labels.png")
    Image.fromarray(np.eye(3, dtype=np.uint8)[labels] * 200).save(tmp_path / "colours.png")
    for name in ("labels", "colours"):
        with pytest.raises(NotBinaryError, match=r"\.png: 3 labels or colours"):
            read_binary_mask(tmp_path / f"{name}.png", binarize=True)


def test_the_size_of_a_picture_is_its_height_and_width(tmp_path):
    write(tmp_path / "x.png", noise(7, 11))
    assert read_size(tmp_path / "x.png") == read_image(tmp_path / "x.png").shape[:2]
    with pytest.raises(DatasetError, match="no such file"):
        read_size(tmp_path / "gone.png")
