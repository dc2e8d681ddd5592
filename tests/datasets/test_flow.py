"""Tests of datasets/flow.py."""

import errno
import os
import shutil
import subprocess
import sys
from itertools import pairwise
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.models.optical_flow import Raft_Large_Weights, raft_large

from datasets import flow as flow_module
from datasets.colour_wheel import flow_to_picture, picture_to_flow
from datasets.flow import (
    FlowError,
    dis_estimator,
    flow_origin,
    main,
    make_flow,
    motion_pairs,
    raft_estimator,
    remove_camera_motion,
    runs_of,
)
from datasets.layout import DatasetError, read_image, video_sequences

ROOT = Path(__file__).parents[2]
STEP = (4, 2)  # pixels to the right and down that the test video moves by from frame to frame


def moving_frames(count: int, height: int = 128, width: int = 144) -> list[np.ndarray]:
    """A textured plane that moves by STEP, (H, W, 3) uint8 RGB each."""
    noise = np.random.default_rng(0).standard_normal((height + 40, width + 80, 3))
    texture = cv2.GaussianBlur(noise, (0, 0), 2)
    texture = (255 * (texture - texture.min()) / np.ptp(texture)).astype(np.uint8)
    corners = [(40 - t * STEP[1], 80 - t * STEP[0]) for t in range(count)]
    return [texture[y : y + height, x : x + width] for y, x in corners]


def write_frames(folder: Path, sequence: str, frames: list[np.ndarray]) -> None:
    """Write frames as folder/<sequence>_<number>.png."""
    folder.mkdir(parents=True, exist_ok=True)
    for t, frame in enumerate(frames):
        cv2.imwrite(str(folder / f"{sequence}_{t:05d}.png"), frame[..., ::-1])


@pytest.fixture
def flat(tmp_path: Path) -> Path:
    """Data root with the flat set DAVIS_train: sequences of 4 and of 3 frames, without masks."""
    write_frames(tmp_path / "DAVIS_train" / "RGB", "dog-run", moving_frames(4))
    write_frames(tmp_path / "DAVIS_train" / "RGB", "a_cat", moving_frames(3, 96, 100))
    return tmp_path


@pytest.fixture(scope="module")
def raft_weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """File with random weights for raft_large."""
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("raft") / "weights.pth"
    torch.save(raft_large().state_dict(), path)
    return path


def to_the_right(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Estimator for tests that are not about the motion."""
    return np.full((*first.shape[:2], 2), (1, 0), np.float32)


def run_program(*arguments: str | Path, **environment: str) -> subprocess.CompletedProcess:
    """Run datasets.flow as a user would, with additional environment variables."""
    return subprocess.run(
        [sys.executable, "-m", "datasets.flow", *map(str, arguments)],
        cwd=ROOT,
        env=os.environ | environment,
        capture_output=True,
        text=True,
        timeout=120,
    )


def names(folder: Path) -> list[str]:
    """Names of all files in a folder, hidden ones too."""
    return sorted(path.name for path in folder.iterdir())


def test_every_frame_is_paired_with_the_next_and_the_last_with_its_predecessor():
    read = []
    pairs = motion_pairs(number for number in range(4) if read.append(number) is None)
    assert next(pairs) == (0, 1, 1) and read == [0, 1]
    assert list(pairs) == [(1, 2, 1), (2, 3, 1), (3, 2, -1)]
    assert list(motion_pairs("ab")) == [("a", "b", 1), ("b", "a", -1)]
    with pytest.raises(ValueError, match="at least two"):
        list(motion_pairs([1]))


def test_dis_measures_pixels_from_the_first_frame_to_the_second() -> None:
    first, second = moving_frames(2)
    flow = dis_estimator()(first, second)
    assert flow.dtype == np.float32
    assert flow.shape == (128, 144, 2)
    inner = flow[16:-16, 16:-16].reshape(-1, 2)
    np.testing.assert_allclose(np.median(inner, axis=0), STEP, atol=0.2)


SIZES = [(1, 1), (2, 2), (11, 11), (4, 16), (8, 64), (12, 64), (12, 300), (10, 320), (8, 4000)]


@pytest.mark.parametrize("size", [*SIZES, (64, 8), (31, 2000), (47, 48)])
def test_dis_takes_frames_of_any_size(size: tuple[int, int]) -> None:
    first, second = moving_frames(2, *size)
    flow = dis_estimator()(first, second)
    assert flow.shape == (*size, 2) and np.isfinite(flow).all()
    if min(size) > 30:
        inner = flow[8:-8, 16:-16].reshape(-1, 2)
        np.testing.assert_allclose(np.median(inner, axis=0), STEP, atol=0.3)


def test_equal_frames_have_no_motion_and_a_white_flow_map(
    tmp_path: Path, raft_weights: Path
) -> None:
    frame = moving_frames(1)[0]
    for estimator in (dis_estimator(), raft_estimator(raft_weights, "cpu")):
        for still in (frame, np.full_like(frame, 90)):
            assert not estimator(still, still.copy()).any()
    write_frames(tmp_path / "still" / "RGB", "a", [frame] * 3)
    make_flow(tmp_path, "still", dis_estimator())
    for path in (tmp_path / "still" / "FLOW").iterdir():
        assert (read_image(path) == 255).all()


def test_motion_that_is_not_finite_names_the_frame(
    flat: Path, raft_weights: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    state = torch.load(raft_weights, weights_only=True)
    torch.save({name: value * np.nan for name, value in state.items()}, tmp_path / "nan.pth")
    arguments = ["--data-root", str(flat), "--set", "DAVIS_train", "--device", "cpu"]
    assert main([*arguments, "--weights", str(tmp_path / "nan.pth")]) == 1
    message = capsys.readouterr().err
    assert "a_cat_00000.png: the motion between frames of 100 x 96 pixels is not finite" in message


def test_a_full_disk_is_said_with_the_file_and_leaves_nothing_half_written(
    flat: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole_write = Path.write_bytes

    def full(path: Path, content: bytes) -> int:
        whole_write(path, content[:10])
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    message = r"FLOW/a_cat_00000\.jpg cannot be written: No space left on device; .*start again"
    with pytest.raises(DatasetError, match=message):
        make_flow(flat, "DAVIS_train", to_the_right)
    assert names(flat / "DAVIS_train" / "FLOW") == []


def test_maps_of_other_images_are_made_anew(flat: Path) -> None:
    rgb, folder = flat / "DAVIS_train" / "RGB", flat / "DAVIS_train" / "FLOW"
    frames = moving_frames(7)
    make_flow(flat, "DAVIS_train", dis_estimator())
    assert Image.open(folder / "a_cat_00000.jpg").info["comment"].startswith(b"flow between images")
    moved = flat / "moved"
    shutil.copytree(flat / "DAVIS_train", moved, copy_function=shutil.copyfile)  # with new times
    for path in sorted((moved / "RGB").glob("dog*"), reverse=True):
        path.rename(path.with_name(f"dog-run_1{path.name[-8:]}"))
        path = moved / "FLOW" / f"{path.stem}.jpg"
        path.rename(path.with_name(f"dog-run_1{path.name[-8:]}"))
    assert make_flow(flat, "moved", dis_estimator()) == (0, 7, 0)

    write_frames(rgb, "dog-run", frames[:5])  # longer by one: the last map shows the next frame now
    assert make_flow(flat, "DAVIS_train", dis_estimator()) == (2, 6, 1)
    (rgb / "dog-run_00002.png").unlink()  # a gap
    (folder / "dog-run_00002.jpg").unlink()
    assert make_flow(flat, "DAVIS_train", dis_estimator()) == (1, 6, 1)
    write_frames(rgb, "dog-run", frames[:5])  # filled
    expected = {}
    for share in ((0, 2), (1, 2)):
        written, kept, renewed = make_flow(flat, "DAVIS_train", dis_estimator(), share=share)
        expected[share] = (written, kept, renewed)
    assert np.sum(list(expected.values()), axis=0).tolist() == [2, 6, 1]
    cv2.imwrite(str(rgb / "a_cat_00001.png"), 255 - cv2.imread(str(rgb / "a_cat_00001.png")))
    (folder / "a_cat_00002.jpg").unlink()
    cv2.imwrite(str(folder / "a_cat_00002.jpg"), np.zeros((96, 100, 3), np.uint8))  # of elsewhere
    assert make_flow(flat, "DAVIS_train", dis_estimator()) == (2, 6, 2)

    whole = {path.name: path.read_bytes() for path in folder.iterdir()}
    del whole["a_cat_00002.jpg"]
    shutil.rmtree(folder)
    make_flow(flat, "DAVIS_train", dis_estimator())
    assert all((folder / name).read_bytes() == content for name, content in whole.items())


def test_the_program_tells_of_maps_that_it_made_anew(
    flat: Path, capsys: pytest.CaptureFixture
) -> None:
    arguments = ["--data-root", str(flat), "--set", "DAVIS_train", "--estimator", "dis"]
    main(arguments)
    write_frames(flat / "DAVIS_train" / "RGB", "dog-run", moving_frames(5))
    capsys.readouterr()
    assert main(arguments) == 0
    assert "2 flow maps written, 6 were there already\n  1 of those" in capsys.readouterr().out


@pytest.mark.parametrize("folder", ["FLOW", "bear/FLOW"])
def test_flo_files_become_pictures(
    tmp_path: Path, folder: str, capsys: pytest.CaptureFixture
) -> None:
    flow = np.random.default_rng(0).normal(0, 3, (24, 40, 2)).astype(np.float32)
    unknown = np.where(np.arange(40)[:, None] < 3, np.float32(1e10), flow)
    target = tmp_path / "set" / folder
    target.mkdir(parents=True)
    cv2.writeOpticalFlow(str(target / "bear_00000.flo"), flow)
    cv2.writeOpticalFlow(str(target / "bear_00001.flo"), unknown)
    (tmp_path / "set" / ".flow.json").write_text('{"made_by": "dis"}')
    arguments = ["--data-root", str(tmp_path), "--set", "set", "--from-flo"]
    assert main(arguments) == 0
    assert "2 flow maps written" in capsys.readouterr().out
    assert flow_origin(tmp_path, "set") is None
    known = np.where(np.arange(40)[:, None] < 3, np.float32(0), flow)
    for name, motion in (("bear_00000", flow), ("bear_00001", known)):
        apart = read_image(target / f"{name}.jpg").astype(int) - flow_to_picture(motion)
        assert np.abs(apart).mean() < 6
    whole = (target / "bear_00001.flo").read_bytes()
    for content in (b"", whole[:-1], whole[:10], b"P" + whole[:-1], whole[:4] + bytes(8)):
        (target / "bear_00001.flo").write_bytes(content)
        assert main(arguments) == 1
        assert "bear_00001.flo: no whole .flo file" in capsys.readouterr().err
    for path in target.iterdir():
        path.unlink()
    assert main(arguments) == 1
    assert "has no .flo files" in capsys.readouterr().err


def test_names_that_are_not_utf8_are_written(tmp_path: Path) -> None:
    path = tmp_path / "set" / "FLOW" / os.fsdecode(b"b\xffr_00000.flo")
    path.parent.mkdir(parents=True)
    path.write_bytes(b"PIEH" + np.int32([4, 3]).tobytes() + bytes(8 * 4 * 3))
    assert main(["--data-root", str(tmp_path), "--set", "set", "--from-flo"]) == 0
    with path.with_suffix(".jpg").open("rb") as file:
        assert (np.asarray(Image.open(file)) == 255).all()


def test_photographs_are_refused_before_anything_is_written(
    flat: Path, capsys: pytest.CaptureFixture
) -> None:
    write_frames(flat / "photos" / "RGB", "n01", [frame[:90] for frame in moving_frames(2)])
    write_frames(flat / "photos" / "RGB", "n02", moving_frames(1))
    path = flat / "photos" / "RGB" / "n01_00002.png"
    cv2.imwrite(str(path), np.zeros((50, 60, 3), np.uint8))
    assert main(["--data-root", str(flat), "--set", "photos", "--estimator", "dis"]) == 1
    message = capsys.readouterr().err
    assert "n02_00000.png" in message and "n01_00002.png: 60 x 50, most 144 x 90" in message
    assert message.count("need no flow") == 2
    assert not (flat / "photos" / "FLOW").exists()


def test_every_frame_of_a_flat_set_gets_the_motion_that_it_has(flat: Path) -> None:
    assert make_flow(flat, "DAVIS_train", dis_estimator()) == (7, 0, 0)
    sequences = video_sequences(flat, "DAVIS_train", masks="none")
    assert [len(sequence.frames) for sequence in sequences] == [3, 4]
    assert len(names(flat / "DAVIS_train" / "FLOW")) == 7
    for frame in (frame for sequence in sequences for frame in sequence.frames):
        assert frame.flow == flat / "DAVIS_train" / "FLOW" / f"{frame.name}.jpg"
        picture = read_image(frame.flow)
        assert picture.shape == read_image(frame.image).shape
        motion = picture_to_flow(picture)[16:-16, 16:-16].reshape(-1, 2).mean(axis=0)
        cosine = motion @ STEP / np.linalg.norm(motion) / np.linalg.norm(STEP)
        assert cosine > 0.99, frame.name  # the last frame's sign, too


def test_which_frames_are_compared(flat: Path) -> None:
    frames = moving_frames(4)
    pairs = []

    def estimator(first: np.ndarray, second: np.ndarray) -> np.ndarray:
        if first.shape == frames[0].shape:
            index = [next(t for t in range(4) if (f == frames[t]).all()) for f in (first, second)]
            pairs.append(tuple(index))
        return to_the_right(first, second)

    make_flow(flat, "DAVIS_train", estimator)
    assert pairs == [(0, 1), (1, 2), (2, 3), (3, 2)]


def test_nested_set(tmp_path: Path) -> None:
    for sequence in ("swan", "bmx-trees"):
        write_frames(tmp_path / "DAVIS_test" / sequence / "RGB", sequence, moving_frames(2))
    assert make_flow(tmp_path, "DAVIS_test", to_the_right) == (4, 0, 0)
    for sequence in ("swan", "bmx-trees"):
        folder = tmp_path / "DAVIS_test" / sequence / "FLOW"
        assert names(folder) == [f"{sequence}_00000.jpg", f"{sequence}_00001.jpg"]
    assert all(s.frames[1].flow for s in video_sequences(tmp_path, "DAVIS_test", masks="none"))


def test_pictures_are_stored_with_full_chroma(flat: Path) -> None:
    stripes = np.zeros((128, 144, 2), np.float32)
    stripes[:, ::2, 0], stripes[:, 1::2, 0] = 1, -1

    def estimator(first: np.ndarray, second: np.ndarray) -> np.ndarray:
        return stripes[: first.shape[0], : first.shape[1]]

    make_flow(flat, "DAVIS_train", estimator)
    stored = read_image(flat / "DAVIS_train" / "FLOW" / "dog-run_00000.jpg")
    apart = np.abs(stored.astype(int) - flow_to_picture(stripes))
    assert apart.max() < 25  # with chroma at half the resolution all would be the same grey


def test_existing_maps_of_any_extension_are_kept(flat: Path) -> None:
    folder = flat / "DAVIS_train" / "FLOW"
    folder.mkdir()
    cv2.imwrite(str(folder / "dog-run_00001.png"), np.zeros((128, 144, 3), np.uint8))
    cv2.imwrite(str(folder / "dog-run_00003.JPEG"), np.zeros((128, 144, 3), np.uint8))
    before = {path: path.read_bytes() for path in folder.iterdir()}
    assert make_flow(flat, "DAVIS_train", to_the_right) == (5, 2, 0)
    assert all(path.read_bytes() == content for path, content in before.items())
    assert len(names(folder)) == 7
    assert make_flow(flat, "DAVIS_train", to_the_right) == (0, 7, 0)


def test_overwrite_replaces_maps_of_any_extension(flat: Path) -> None:
    folder = flat / "DAVIS_train" / "FLOW"
    folder.mkdir()
    for name in ("dog-run_00001.png", "dog-run_00002.jpg"):
        cv2.imwrite(str(folder / name), np.zeros((128, 144, 3), np.uint8))
    assert make_flow(flat, "DAVIS_train", to_the_right, overwrite=True) == (7, 0, 0)
    assert all(name.endswith(".jpg") for name in names(folder))
    assert len(names(folder)) == 7
    for t in (1, 2):
        assert read_image(folder / f"dog-run_{t:05d}.jpg").max() > 200


def test_stopped_while_writing_and_started_again(
    flat: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = flat / "DAVIS_train" / "FLOW"
    whole_write = Path.write_bytes

    def stopped_write(path: Path, content: bytes) -> int:
        if "dog-run_00001" not in path.name:
            return whole_write(path, content)
        whole_write(path, content[: len(content) // 2])
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Path, "write_bytes", stopped_write)
        with pytest.raises(KeyboardInterrupt):
            make_flow(flat, "DAVIS_train", to_the_right)
    visible = [path for path in folder.iterdir() if not path.name.startswith(".")]
    assert len(visible) == 4
    assert len(names(folder)) == 5  # the half-written one is there, and hidden
    for path in visible:
        read_image(path)
    sequences = video_sequences(flat, "DAVIS_train", masks="none", flow=False)
    assert sum(frame.flow is not None for s in sequences for frame in s.frames) == 4

    assert make_flow(flat, "DAVIS_train", to_the_right) == (3, 4, 0)
    assert len(names(folder)) == 7
    assert not [name for name in names(folder) if name.startswith(".")]


def test_interrupted_overwriting_keeps_the_old_map_whole(
    flat: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_flow(flat, "DAVIS_train", to_the_right)
    path = flat / "DAVIS_train" / "FLOW" / "a_cat_00000.jpg"
    before = path.read_bytes()

    def interrupt(*_: Path) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(flow_module.os, "replace", interrupt)
        with pytest.raises(KeyboardInterrupt):
            make_flow(flat, "DAVIS_train", lambda a, b: -to_the_right(a, b), overwrite=True)
    assert path.read_bytes() == before
    assert len(names(path.parent)) == 8
    assert make_flow(flat, "DAVIS_train", to_the_right) == (0, 7, 0)
    assert len(names(path.parent)) == 7  # the leftover is gone, though its frame was kept


def test_sequences_of_one_frame_are_named_before_anything_is_written(flat: Path) -> None:
    write_frames(flat / "DAVIS_train" / "RGB", "lonely", moving_frames(1))
    with pytest.raises(DatasetError, match=r"1 x .*single frame(.|\n)*lonely_00000\.png"):
        make_flow(flat, "DAVIS_train", to_the_right)
    assert not (flat / "DAVIS_train" / "FLOW").exists()


def test_frames_of_different_size_are_named(flat: Path) -> None:
    path = flat / "DAVIS_train" / "RGB" / "dog-run_00002.png"
    cv2.imwrite(str(path), np.zeros((50, 60, 3), np.uint8))
    with pytest.raises(DatasetError, match=r"dog-run_00002\.png: 60 x 50, most 144 x 128"):
        make_flow(flat, "DAVIS_train", to_the_right)
    assert not (flat / "DAVIS_train" / "FLOW").exists()


def test_raft_computes_what_torchvision_documents(raft_weights: Path) -> None:
    first, second = moving_frames(2, 128, 144)
    model = raft_large().eval()
    model.load_state_dict(torch.load(raft_weights, weights_only=True))
    batch = [torch.from_numpy(f.copy()).permute(2, 0, 1)[None] for f in (first, second)]
    with torch.inference_mode():
        expected = model(*Raft_Large_Weights.DEFAULT.transforms()(*batch))[-1][0]
    estimate = raft_estimator(raft_weights, "cpu")
    flow = estimate(first, second)
    assert np.isfinite(estimate(first[:96, :96], second[:96, :96])).all()
    assert flow.dtype == np.float32
    np.testing.assert_allclose(flow, expected.permute(1, 2, 0), atol=1e-3)

    # Sizes that RAFT refuses are padded with the border, and the padding is cut off again.
    cropped = [frame[3:-4, 9:-20] for frame in (first, second)]
    padded = [np.pad(f, ((3, 4), (6, 7), (0, 0)), mode="edge") for f in cropped]
    assert padded[0].shape == (128, 128, 3)
    np.testing.assert_allclose(
        estimate(*cropped), estimate(*padded)[3:-4, 6:-7], atol=1e-3, rtol=1e-3
    )


def test_raft_refuses_files_that_are_not_its_weights(tmp_path: Path) -> None:
    url = Raft_Large_Weights.DEFAULT.url
    with pytest.raises(FlowError, match=r"no weights file .*missing\.pth.*" + url):
        raft_estimator(tmp_path / "missing.pth", "cpu")
    text, other = tmp_path / "text.pth", tmp_path / "other.pth"
    text.write_text("<html>not found</html>")
    torch.save({"weight": torch.zeros(3)}, other)
    for path in (text, other):
        with pytest.raises(FlowError, match=rf"{path.name} is no state dict .*" + url):
            raft_estimator(path, "cpu")


def test_raft_names_a_missing_gpu(raft_weights: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(FlowError, match="no GPU"):
        raft_estimator(raft_weights, "cuda")


def test_each_process_has_a_gpu_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    alone, second = flow_module._Processes(), flow_module._Processes(5, 8, local_rank=1)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert second.device(None) is alone.device(None) is None
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert [second.device(wanted) for wanted in (None, "cuda", "cpu")] == ["cuda:1"] * 2 + ["cpu"]
    assert alone.device("cuda") == "cuda"
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    with pytest.raises(FlowError, match=r"no device 'cuda:1', as this machine has 1 GPU\(s\)"):
        raft_estimator(device=second.device(None))


def test_program_with_raft_and_a_weights_file(
    tmp_path: Path, raft_weights: Path, capsys: pytest.CaptureFixture
) -> None:
    write_frames(tmp_path / "DAVIS_train" / "RGB", "dog", moving_frames(2, 128, 128))
    arguments = ["--data-root", str(tmp_path), "--set", "DAVIS_train", "--estimator", "raft"]
    assert main([*arguments, "--weights", str(raft_weights), "--device", "cpu"]) == 0
    assert "2 flow maps written" in capsys.readouterr().out
    assert names(tmp_path / "DAVIS_train" / "FLOW") == ["dog_00000.jpg", "dog_00001.jpg"]


def test_program_with_dis(flat: Path) -> None:
    arguments = ("--data-root", flat, "--set", "DAVIS_train", "--estimator", "dis")
    result = run_program(*arguments)
    assert result.returncode == 0, result.stderr
    assert "7 flow maps written, 0 were there already" in result.stdout
    assert "7/7" in result.stderr  # the progress bar
    (flat / "DAVIS_train" / "FLOW" / "a_cat_00001.jpg").unlink()
    assert "1 flow maps written, 6 were there already" in run_program(*arguments).stdout
    assert "7 flow maps written, 0" in run_program(*arguments, "--overwrite").stdout


def test_program_says_what_to_do_without_network(flat: Path, tmp_path: Path) -> None:
    closed = "http://127.0.0.1:9"
    proxies = {"https_proxy": closed, "HTTPS_PROXY": closed, "no_proxy": "", "NO_PROXY": ""}
    result = run_program(
        *("--data-root", flat, "--set", "DAVIS_train", "--estimator", "raft"),
        **proxies,
        TORCH_HOME=str(tmp_path / "torch"),
    )
    assert result.returncode == 1
    assert "Traceback" not in result.stderr
    message = result.stderr.strip().splitlines()[-1]
    assert Raft_Large_Weights.DEFAULT.url in message
    assert "--weights FILE" in message
    assert not (flat / "DAVIS_train" / "FLOW").exists()


def test_program_reports_what_is_wrong_with_the_data(
    flat: Path, capsys: pytest.CaptureFixture
) -> None:
    arguments = ["--data-root", str(flat), "--estimator", "dis", "--set"]
    assert main([*arguments, "DAVIS_trian"]) == 1
    assert "DAVIS_trian" in capsys.readouterr().err
    (flat / "DAVIS_train" / "RGB" / "dog-run_00002.png").write_bytes(b"")
    assert main([*arguments, "DAVIS_train"]) == 1
    assert "dog-run_00002.png" in capsys.readouterr().err


def test_program_refuses_raft_flags_for_dis(flat: Path, capsys: pytest.CaptureFixture) -> None:
    with pytest.raises(SystemExit, match="2"):
        main(["--data-root", str(flat), "--set", "X", "--estimator", "dis", "--weights", "w.pth"])
    assert "--estimator raft" in capsys.readouterr().err


def test_camera_motion_is_removed_and_the_objects_own_is_kept():
    """An affine field under an object that covers a fifth of the frame and moves against it."""
    y, x = np.mgrid[0:90, 0:120].astype(np.float32)
    camera = np.stack([3 + 0.02 * x - 0.01 * y, -1 + 0.015 * x + 0.01 * y], axis=-1)
    inside = np.hypot(x - 70, y - 40) < 26
    own = np.where(inside[..., None], np.float32([4.0, 2.5]), np.float32(0))
    noise = np.random.default_rng(0).normal(0, 0.05, camera.shape).astype(np.float32)
    residual = remove_camera_motion((camera + own + noise).astype(np.float32))
    assert residual.dtype == np.float32
    np.testing.assert_allclose(residual - noise, own, atol=0.15)


@pytest.mark.parametrize("processes", [1, 2, 3, 8, 100])
@pytest.mark.parametrize("total", [1, 7, 63, 64, 128, 500, 1531])
def test_every_frame_is_one_processs_and_neighbours_stay_together(total: int, processes: int):
    shares = [runs_of((rank, processes), total) for rank in range(processes)]
    frames = [[position for run in share for position in run] for share in shares]
    assert sorted(position for mine in frames for position in mine) == list(range(total))
    lengths = [len(mine) for mine in frames]
    assert max(lengths) - min(lengths) <= 1
    for mine in frames:
        assert mine == sorted(mine)
        breaks = sum(after - before > 1 for before, after in pairwise(mine))
        assert breaks <= len(mine) / 64


def test_what_a_stopped_run_has_left_is_spread_over_more_processes():
    left = range(47_000, 94_000)  # one process has made the first half
    lengths = [
        sum(position in left for run in runs_of((rank, 4), 94_000) for position in run)
        for rank in range(4)
    ]
    assert max(lengths) - min(lengths) <= 64


def test_shares_make_the_files_of_one_process_and_keep_those_being_written(flat: Path) -> None:
    make_flow(flat, "DAVIS_train", dis_estimator())
    folder = flat / "DAVIS_train" / "FLOW"
    whole = {path.name: path.read_bytes() for path in folder.iterdir()}
    for path in folder.iterdir():
        path.unlink()
    # Of a frame of the first share, of one of the second, and of one that is gone.
    leftovers = [folder / f".{name}.jpg.partial" for name in ("a_cat_00000", "dog-run_00003", "x")]
    for path in leftovers:
        path.touch()
    read = []

    def estimator(first: np.ndarray, second: np.ndarray) -> np.ndarray:
        read.append(first)
        return dis_estimator()(first, second)

    assert make_flow(flat, "DAVIS_train", estimator, share=(1, 2)) == (4, 0, 0)
    assert [path.exists() for path in leftovers] == [True, False, False]
    assert make_flow(flat, "DAVIS_train", estimator, share=(0, 2)) == (3, 0, 0)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == whole
    assert len(read) == 7
    assert make_flow(flat, "DAVIS_train", estimator, share=(0, 2)) == (0, 3, 0)


def test_the_first_process_alone_says_what_made_the_set_and_only_when_all_are_done(
    flat: Path,
) -> None:
    make_flow(flat, "DAVIS_train", to_the_right, made_by="old")
    with pytest.raises(DatasetError, match=r"of another kind \(old\)"):
        make_flow(flat, "DAVIS_train", to_the_right, made_by="new", share=(0, 2))
    seen = []

    def other() -> None:
        """The second process, done with its share while the first one waits."""
        seen.append(flow_origin(flat, "DAVIS_train"))
        if len(seen) == 1:
            counts = make_flow(
                flat, "DAVIS_train", to_the_right, True, "new", share=(1, 2), wait=noting
            )
            assert counts == (4, 0, 0)

    def noting() -> None:
        seen.append(flow_origin(flat, "DAVIS_train"))

    assert make_flow(flat, "DAVIS_train", to_the_right, True, "new", share=(0, 2), wait=other) == (
        3,
        0,
        0,
    )
    assert seen == ["old, in part replaced by new"] * 4
    assert flow_origin(flat, "DAVIS_train") == "new"


def test_flow_maps_of_unknown_origin_are_not_said_to_be_of_a_new_one(flat):
    make_flow(flat, "DAVIS_train", to_the_right)
    next((flat / "DAVIS_train/FLOW").iterdir()).unlink()
    assert make_flow(flat, "DAVIS_train", to_the_right, made_by="new") == (1, 6, 0)
    assert flow_origin(flat, "DAVIS_train") is None
    assert make_flow(flat, "DAVIS_train", to_the_right, overwrite=True, made_by="new") == (7, 0, 0)
    assert flow_origin(flat, "DAVIS_train") == "new"
