"""Check of a data root: what the table says, which problems are found, and when it exits 1."""

import os
import random
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from datasets.check import FLAT, NESTED, STILLS, check_set, main
from datasets.flow.making import make_flow

ROOT = Path(__file__).parents[2]
HEIGHT, WIDTH = 24, 32


def write(path: Path, height: int = HEIGHT, width: int = WIDTH) -> Path:
    """A picture of noise, grey if it is a mask."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)
    Image.fromarray(pixels[..., 0] if path.parent.name == "GT" else pixels).save(path)
    return path


def write_frames(folder: Path, names: list[str], parts: tuple[str, ...] = ("RGB", "GT")) -> Path:
    """Pictures of these names in each of the parts of a folder."""
    for part in parts:
        for name in names:
            write(folder / part / f"{name}.{'png' if part == 'GT' else 'jpg'}")
    return folder


def numbered(sequence: str, count: int, step: int = 1) -> list[str]:
    return [f"{sequence}_{step * i:05d}" for i in range(count)]


@pytest.fixture
def videos(tmp_path: Path) -> Path:
    """The flat set "videos" in tmp_path: two sequences of 4 frames with masks and flow maps."""
    names = numbered("bear", 4) + numbered("dog_1", 4)
    return write_frames(tmp_path / "videos", names, ("RGB", "GT", "FLOW"))


@pytest.fixture
def program(capsys: pytest.CaptureFixture):
    """Runs the command in this process; returns exit code, table by set, and all of stdout."""

    def run(root: Path, *arguments: str) -> tuple[int, dict[str, list[str]], str]:
        code = main(["--data-root", str(root), *arguments])
        out = capsys.readouterr().out
        header, *rows = (line.split("  ") for line in out.split("\nnote:")[0].splitlines())
        cells = [[cell.strip() for cell in row if cell.strip()] for row in (header, *rows)]
        return code, {row[0]: row[1:] for row in cells if row}, out

    return run


def contents(root: Path) -> dict[Path, tuple[int, bytes]]:
    return {p: (p.stat().st_mtime_ns, p.read_bytes()) for p in root.rglob("*") if p.is_file()}


def problems_of(root: Path, name: str = "videos", **options) -> dict[str, list[str]]:
    """Files by kind of problem."""
    report = check_set(root, name, **options)
    return {
        kind: [item.replace(f"{root / name}/", "") for item in items]
        for (kind, _), items in report.problems.items()
    }


# The table


def test_table_of_a_complete_root(tiny_root, program):
    before = contents(tiny_root)
    code, table, out = program(tiny_root)
    assert code == 0
    assert table == {
        "set": ["kind", "sequences", "frames", "masks", "flow maps", "problems"],
        "DAVIS_test": [NESTED, "2", "10", "10", "10", "0"],
        "DAVIS_train": [FLAT, "2", "10", "10", "10", "0"],
        "DUTS_train": [STILLS, "-", "6", "6", "-", "0"],
    }
    assert "note" not in out
    assert len({len(line) for line in out.splitlines()}) == 1  # aligned
    assert contents(tiny_root) == before


def test_sets_can_be_chosen(tiny_root, program):
    _, table, _ = program(tiny_root, "--set", "DUTS_train", "DAVIS_test")
    assert list(table) == ["set", "DUTS_train", "DAVIS_test"]


def test_freshly_prepared_videos_are_right_and_name_the_command(tmp_path, program):
    root = tmp_path / "my data"
    write_frames(root / "train", numbered("bear", 4) + numbered("dog", 2))
    write_frames(root / "test/dog", numbered("dog", 3))
    (root / "test/dog/FLOW").mkdir()  # as a flow run leaves it that could not begin
    code, table, out = program(root)
    assert code == 0
    assert table["train"] == [STILLS, "-", "6", "6", "-", "0"]
    assert table["test"] == [NESTED, "1", "3", "3", "0", "0"]
    for name, video in (("train", "if it is a video set: "), ("test", "")):
        command = f"python -m datasets.flow --data-root '{root}' --set {name}"
        assert f"note: {name}: no flow maps; {video}{command}\n" in out


def test_test_sets_may_be_annotated_on_some_frames_only(tmp_path, program):
    for sequence in ("bear", "dog"):
        write_frames(tmp_path / "test" / sequence, numbered(sequence, 4), ("RGB", "FLOW"))
        write_frames(tmp_path / "test" / sequence, numbered(sequence, 1), ("GT",))
        write_frames(tmp_path / "own" / sequence, numbered(sequence, 4), ("RGB", "FLOW"))
    code, table, out = program(tmp_path)
    assert code == 0
    assert table["test"] == [NESTED, "2", "8", "2", "8", "0"]
    assert table["own"] == [NESTED, "2", "8", "0", "8", "0"]
    assert "note: test: masks for 2 of 8 frames; only those are scored or learnt from" in out
    assert "note: own: masks for 0 of 8 frames" in out

    shutil.rmtree(tmp_path / "test/dog/GT")
    assert problems_of(tmp_path, "test") == {"GT folder missing": ["dog/GT"]}


# Still set or flat video set


def test_a_published_video_set_is_one_before_it_has_flow_maps(tmp_path):
    for name, kind in (("YTVOS_train", FLAT), ("DUTS_test", STILLS), ("own", STILLS)):
        write_frames(tmp_path / name, numbered("bear", 3))
        assert check_set(tmp_path, name).kind == kind


def test_flow_maps_make_a_video_set_whatever_the_names(tmp_path):
    write_frames(tmp_path / "videos", ["a_start", "a_x"], ("RGB", "GT", "FLOW"))
    report = check_set(tmp_path, "videos")
    assert (report.kind, report.sequences, report.problems) == (FLAT, 1, {})


# Problems


def test_files_that_are_missing(videos):
    (videos / "GT/bear_00001.png").unlink()
    (videos / "FLOW/dog_1_00002.jpg").unlink()
    assert problems_of(videos.parent) == {
        "image without mask": ["RGB/bear_00001.jpg"],
        "image without flow map": ["RGB/dog_1_00002.jpg"],
    }
    report = check_set(videos.parent, "videos")
    assert (report.frames, report.masks, report.flow_maps) == (8, 7, 7)


def test_flow_maps_of_some_sequences_only(tmp_path):
    write_frames(tmp_path / "test/bear", numbered("bear", 2), ("RGB", "GT", "FLOW"))
    write_frames(tmp_path / "test/dog", numbered("dog", 2))
    images = [f"dog/RGB/dog_0000{i}.jpg" for i in range(2)]
    assert problems_of(tmp_path, "test") == {"image without flow map": images}


def test_masks_of_photos_that_are_missing(tmp_path):
    write_frames(tmp_path / "stills", ["a", "b", "c"])
    (tmp_path / "stills/GT/b.png").unlink()
    assert problems_of(tmp_path, "stills") == {"image without mask": ["RGB/b.jpg"]}
    shutil.rmtree(tmp_path / "stills/GT")
    assert problems_of(tmp_path, "stills") == {"GT folder missing": ["GT"]}


@pytest.mark.parametrize("deep", [False, True])
def test_truncated_files_and_other_sizes_are_found_with_layout_problems(videos, deep):
    truncated, flow = videos / "RGB/bear_00000.jpg", videos / "FLOW/bear_00003.jpg"
    truncated.write_bytes(truncated.read_bytes()[:-40])
    write(flow, 2 * HEIGHT)
    (videos / "GT/bear_00001.png").unlink()
    found = problems_of(videos.parent, deep=deep)
    assert found == {
        "image without mask": ["RGB/bear_00001.jpg"],
        "file that cannot be used": [
            "RGB/bear_00000.jpg: truncated, its end is missing; replace this file"
        ],
        "mask, flow map or next image of another size than its image": [
            "FLOW/bear_00003.jpg: 32 x 48, its image 32 x 24"
        ],
    }


def test_frames_of_another_size_than_their_sequence(videos):
    for part, suffix in (("RGB", "jpg"), ("GT", "png"), ("FLOW", "jpg")):
        write(videos / part / f"bear_00002.{suffix}", 2 * HEIGHT)
        for i in range(4):  # a sequence of one size of its own is right
            write(videos / part / f"dog_1_{i:05d}.{suffix}", HEIGHT, 2 * WIDTH)
    assert problems_of(videos.parent) == {
        "frame of another size than most of its sequence": [
            "RGB/bear_00002.jpg: 32 x 48, most 32 x 24"
        ]
    }


def test_sequence_of_one_frame(tmp_path):
    write_frames(tmp_path / "videos", [*numbered("bear", 4), "cat_00000"], ("RGB", "GT", "FLOW"))
    assert problems_of(tmp_path) == {
        "sequence of a single frame, which has no flow": ["RGB/cat_00000.jpg"]
    }


def test_flow_maps_of_other_images_and_maps_missing_for_last_frames(tmp_path):
    rgb = tmp_path / "videos/RGB"
    write_frames(tmp_path / "videos", numbered("bear", 3), ("RGB", "GT"))
    make_flow(tmp_path, "videos", lambda a, b: np.zeros((*a.shape[:2], 2), np.float32))
    assert problems_of(tmp_path) == {}
    (rgb / "bear_00002.jpg").rename(rgb / "bear_00003.jpg")
    (tmp_path / "videos/GT/bear_00002.png").rename(tmp_path / "videos/GT/bear_00003.png")
    (tmp_path / "videos/FLOW/bear_00002.jpg").unlink()
    assert problems_of(tmp_path) == {}  # the same images under other names
    Image.fromarray(255 - np.asarray(Image.open(rgb / "bear_00003.jpg"))).save(
        rgb / "bear_00003.jpg"
    )
    assert problems_of(tmp_path) == {
        "flow map of other images than are there now": ["FLOW/bear_00001.jpg"]
    }
    report = check_set(tmp_path, "videos")
    assert report.flow_maps == 2
    assert "in 1 of 1 sequences the last frame has no flow map" in report.notes[0]


def damage(path: Path, replacement: bytes) -> None:
    """Replace bytes in the middle of a file's pixels."""
    content = path.read_bytes()
    pixels = content.index(b"IDAT" if path.suffix == ".png" else b"\xff\xda")
    middle = (pixels + len(content) - len(replacement)) // 2
    path.write_bytes(content[:middle] + replacement + content[middle + len(replacement) :])


@pytest.mark.parametrize("name", ["RGB/bear_00001.jpg", "GT/bear_00001.png", "FLOW/bear_00001.jpg"])
@pytest.mark.parametrize("replacement", [bytes(200), random.Random(0).randbytes(200)])
def test_damage_inside_a_file_is_found_by_decoding_alone(videos, name, replacement, capfd):
    damage(videos / name, replacement)
    assert problems_of(videos.parent) == {}
    found = problems_of(videos.parent, deep=True)
    assert list(found) == ["file that cannot be used"]
    (item,) = found["file that cannot be used"]
    assert item.startswith(f"{name}: ")
    assert "Corrupt" not in capfd.readouterr().err  # libjpeg's messages are in the list alone


def test_damage_inside_a_mask_as_jpeg_and_an_image_as_png(tmp_path):
    image, mask = write(tmp_path / "set/RGB/a.png"), write(tmp_path / "set/GT/a.jpg")
    write_frames(tmp_path / "set", ["b", "c"])
    assert problems_of(tmp_path, "set", deep=True) == {}
    content = bytearray(image.read_bytes())
    content[len(content) // 2] ^= 1
    image.write_bytes(content)
    damage(mask, bytes(100))
    found = problems_of(tmp_path, "set", deep=True)["file that cannot be used"]
    assert [item.split(": ")[0] for item in found] == ["RGB/a.png", "GT/a.jpg"]


def test_a_png_mask_that_decodes_in_spite_of_a_wrong_checksum(videos):
    path = videos / "GT/bear_00001.png"
    content = path.read_bytes()
    end = content.rindex(b"IEND") - 8  # the pixels' checksum, before the last chunk's length
    path.write_bytes(content[:end] + bytes(4) + content[end + 4 :])
    with Image.open(path) as picture:
        assert np.asarray(picture).shape == (HEIGHT, WIDTH)
    found = problems_of(videos.parent, deep=True)["file that cannot be used"]
    assert found[0].startswith("GT/bear_00001.png: ")


def test_masks_and_flow_maps_whose_names_fit_no_frame(tmp_path):
    write_frames(tmp_path / "test/bear", numbered("bear", 4), ("RGB",))
    write_frames(tmp_path / "test/bear", [f"{n}_mask" for n in numbered("bear", 4)], ("GT",))
    write_frames(tmp_path / "test/bear", [n.upper() for n in numbered("bear", 4)], ("FLOW",))
    assert {kind: len(items) for kind, items in problems_of(tmp_path, "test").items()} == {
        "mask without image": 4,
        "flow map without image": 4,
        "image without flow map": 4,
    }


def test_a_pipe_among_the_frames_does_not_stop_the_check(videos):
    (videos / "RGB/bear_00001.jpg").unlink()
    os.mkfifo(videos / "RGB/bear_00001.jpg")
    assert "not a regular file" in problems_of(videos.parent)["file that cannot be used"][0]


# The command


def test_one_broken_set_among_several(videos, tmp_path, program):
    write_frames(tmp_path / "clean", ["a", "b"])
    shutil.copytree(videos, tmp_path / "broken")
    for path in (tmp_path / "broken/GT").glob("bear*"):
        path.unlink()
    (tmp_path / "broken/FLOW/dog_1_00001.jpg").write_bytes(b"")
    code, table, out = program(tmp_path)
    assert code == 1
    assert {name: row[-1] for name, row in table.items() if name in os.listdir(tmp_path)} == {
        "broken": "5",
        "clean": "0",
        "videos": "0",
    }
    report = out.partition("\n\n")[2].splitlines()
    assert report[0] == f"5 problems in {tmp_path / 'broken'}:"
    assert report[1].startswith("  4 x image without mask (")
    assert report[2:6] == [f"    RGB/bear_{i:05d}.jpg" for i in range(4)]
    assert report[6].startswith("  1 x file that cannot be used (")
    assert len(report) == 8
    assert program(tmp_path, "--set", "clean", "videos")[0] == 0


def test_folders_that_are_no_sets_are_problems(videos, tmp_path, program):
    write(tmp_path / "DAVIS/JPEGImages/bear/00000.jpg")
    (tmp_path / ".cache/RGB").mkdir(parents=True)
    (tmp_path / "note.txt").touch()
    code, table, out = program(tmp_path)
    assert code == 1
    assert list(table)[:3] == ["set", "DAVIS", "videos"]
    assert "RGB folder missing" in out and "cache" not in out
    assert program(tmp_path, "--set", "videos")[0] == 0


def test_roots_that_cannot_be_checked(tmp_path, capsys):
    for root, arguments, words in (
        (tmp_path / "nowhere", [], f"{tmp_path / 'nowhere'}: no such folder"),
        (tmp_path, [], "holds no set"),
        (tmp_path, ["--set", "DAVIS_trian"], "Data set DAVIS_trian not found"),
    ):
        assert main(["--data-root", str(root), *arguments]) == 1
        captured = capsys.readouterr()
        assert words in captured.err and captured.out == ""


def test_program_decodes_and_writes_nothing(videos):
    """As a user runs it, with stderr in a log file."""
    write_frames(videos, numbered("cat", 40), ("RGB", "GT", "FLOW"))
    damaged = videos / "RGB/cat_00033.jpg"
    damage(damaged, random.Random(0).randbytes(200))
    before = contents(videos)
    arguments = [sys.executable, "-m", "datasets.check", "--data-root", str(videos.parent)]
    result = subprocess.run(
        [*arguments, "--deep"], cwd=ROOT, capture_output=True, text=True, timeout=60
    )
    assert result.returncode == 1, result.stderr
    assert "1 x file that cannot be used" in result.stdout
    assert f"    {damaged}: " in result.stdout
    assert "48/48" in result.stderr and "Traceback" not in result.stderr
    assert len(result.stderr.replace("\r", "\n").strip().splitlines()) < 6
    assert contents(videos) == before
