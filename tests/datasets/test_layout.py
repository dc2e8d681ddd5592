"""Sets as folders: what is found, and what is reported."""

import pytest

from datasets.layout import Frame, flow_note, still_images, video_sequences
from tests.datasets.folders import complaint, make_flat, make_nested, names_of, noise, write


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


def test_frames_with_the_number_first_are_ordered_by_it(tmp_path):
    names = ["1_rgb", "2_rgb", "10_rgb"]
    make_nested(tmp_path, {"a": names})
    assert names_of(video_sequences(tmp_path, "videos")) == {"a": names}


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


@pytest.mark.parametrize("make", [make_flat, lambda root, names: make_nested(root, {"a": names})])
def test_flo_files_in_the_place_of_flow_maps_name_the_way_to_convert_them(tmp_path, make):
    path = next(make(tmp_path, ["a_0"]).rglob("FLOW/a_0.*"))
    path.rename(path.with_suffix(".flo"))
    assert "--from-flo" in complaint(video_sequences, tmp_path, "videos")


def test_missing_set_says_what_is_there_and_how_to_set_the_root(tmp_path):
    make_flat(tmp_path, ["a_0"])
    (tmp_path / "note.txt").touch()
    message = complaint(video_sequences, tmp_path, "DAVIS_train")
    assert f"{tmp_path} holds: videos." in message
    assert f"Expected {tmp_path / 'DAVIS_train'} with" in message
    assert "{RGB,GT,FLOW}/<sequence>_<frame>" in message and "<sequence>/{RGB,GT,FLOW}" in message
    assert "DATA_ROOT" in message and "--data-root" in message
    assert "{RGB,GT}/<name>" in complaint(still_images, tmp_path, "DUTS")


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
    assert message.splitlines() == [
        f"2 problems in {folder}:",
        "  2 x image without flow map (make the flow maps: "
        f"python -m datasets.flow --data-root '{root}' --set videos)",
        "    a/RGB/a_0.png",
        "    c/RGB/c_0.png",
    ]
    assert video_sequences(root, "videos", flow=False)[0].frames[0].flow is None


def test_flat_set_without_rgb_is_not_taken_for_a_nested_one(tmp_path):
    folder = make_flat(tmp_path, ["a_0"])
    (folder / "RGB/a_0.jpg").unlink()
    (folder / "RGB").rmdir()
    message = complaint(video_sequences, tmp_path, "videos")
    assert message.startswith("1 problem ") and "1 x RGB folder missing" in message


def test_nested_folders_without_rgb_and_sets_without_folders(tmp_path):
    folder = make_nested(tmp_path, {"a": ["a_0"]})
    write(folder / "b/frames/b_0.jpg")
    message = complaint(video_sequences, tmp_path, "videos")
    assert "1 x RGB folder missing" in message and "    b/RGB" in message
    (tmp_path / "empty").mkdir()
    assert "1 x set without any sequence" in complaint(video_sequences, tmp_path, "empty")


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


def test_problems_can_be_had_together_with_the_frames(tmp_path):
    folder = make_flat(tmp_path, ["a_0", "a_1", "portrait"])
    (folder / "GT/a_1.png").unlink()
    problems = {}
    sequences = video_sequences(tmp_path, "videos", problems=problems)
    assert names_of(sequences) == {"a": ["a_0", "a_1"]}
    assert sequences[0].frames[1].mask is None
    assert list(problems.values()) == [["RGB/a_1.jpg"], ["RGB/portrait.jpg"]]
    problems = {}
    frames = still_images(tmp_path, "videos", problems)
    assert [frame.name for frame in frames] == ["a_0", "a_1", "portrait"]
    assert list(problems.values()) == [["RGB/a_1.jpg"]]

    make_nested(tmp_path / "nested", {"b": ["b_0"], "c": ["c_0"]})
    (tmp_path / "nested/videos/c/RGB/c_0.png").unlink()
    problems = {}
    sequences = video_sequences(tmp_path / "nested", "videos", problems=problems)
    assert names_of(sequences) == {"b": ["b_0"]}
    assert list(problems.values()) == [["c/RGB"]]


@pytest.mark.parametrize("masks", ["all", "some", "none"])
def test_masks_of_no_frame_are_named_whatever_is_asked_for(tmp_path, masks):
    folder = make_nested(tmp_path, {"Dog": ["Dog_1", "Dog_10"]})
    left = ["Dog_100.png", "Dog_10_mask.png", "dog_1.png"]
    for name in left:
        write(folder / "Dog/GT" / name)
    problems = {}
    video_sequences(tmp_path, "videos", masks=masks, flow=False, problems=problems)
    assert {kind: items for (kind, _), items in problems.items()} == {
        "mask without image": [f"Dog/GT/{name}" for name in left]
    }


@pytest.mark.parametrize("part", ["RGB", "GT", "FLOW"])
def test_pictures_of_another_format_and_broken_links_are_named(tmp_path, part):
    folder = make_nested(tmp_path, {"a": ["a_0", "a_1"]})
    for name in ("a_2.webp", "a_3.TIF", "a_1.bmp"):  # a_1 is there as PNG
        (folder / "a" / part / name).touch()
    (folder / "b").symlink_to(tmp_path / "unplugged")
    (folder / ".c").symlink_to(tmp_path / "unplugged")
    problems = {}
    masks = "none" if part == "GT" else "all"
    video_sequences(tmp_path, "videos", masks=masks, problems=problems)
    assert {kind: items for (kind, _), items in problems.items()} == {
        "broken link": ["b"],
        "picture of another format": [f"a/{part}/a_2.webp", f"a/{part}/a_3.TIF"],
    }


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


def test_a_flat_sequence_without_any_mask_is_named(tmp_path):
    folder = make_flat(tmp_path, ["a_0", "b_0"])
    next(folder.rglob("GT/b_0.*")).unlink()
    message = complaint(video_sequences, tmp_path, "videos", masks="some")
    assert "1 x sequence without any mask" in message and "    b" in message


def test_a_flat_set_with_folders_of_sequences_is_refused(tmp_path):
    folder = make_flat(tmp_path, ["old_00000", "old_00001"])
    make_nested(tmp_path, {"new": ["00000", "00001"]})
    (folder / "notes").mkdir()
    message = complaint(video_sequences, tmp_path, "videos")
    assert "1 x folder of a sequence in a flat set (move its files" in message
    assert "    new" in message.splitlines() and "notes" not in message
