"""Tests of datasets/flow/__main__.py; tests/test_many_processes.py has those of torchrun."""

import errno
import os
import re
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.models.optical_flow import Raft_Large_Weights

from datasets.files import write_picture
from datasets.flow.__main__ import _device, main
from datasets.flow.colour_wheel import flow_to_picture
from datasets.flow.estimators import FlowError, raft_estimator
from datasets.flow.origin import flow_origin
from datasets.pictures import read_image
from tests.datasets.flow.frames import moving_frames, names, write_frames

ROOT = Path(__file__).parents[3]


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


def test_motion_that_is_not_finite_names_the_frame(
    flat: Path, raft_weights: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    state = torch.load(raft_weights, weights_only=True)
    torch.save({name: value * np.nan for name, value in state.items()}, tmp_path / "nan.pth")
    arguments = ["--data-root", str(flat), "--set", "DAVIS_train", "--device", "cpu"]
    assert main([*arguments, "--weights", str(tmp_path / "nan.pth")]) == 1
    message = capsys.readouterr().err
    assert "a_cat_00000.png: the motion between frames of 100 x 96 pixels is not finite" in message


def test_the_program_tells_of_maps_that_it_made_anew(
    flat: Path, capsys: pytest.CaptureFixture
) -> None:
    arguments = ["--data-root", str(flat), "--set", "DAVIS_train", "--estimator", "dis"]
    main(arguments)
    write_frames(flat / "DAVIS_train" / "RGB", "dog-run", moving_frames(5))
    capsys.readouterr()
    assert main(arguments) == 0
    assert "2 flow maps written, 6 were there already\n  1 of those" in capsys.readouterr().out


def test_a_full_disk_is_said_with_the_file_and_a_remedy(
    flat: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    def full(source: Path, _: Path) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "replace", full)
    arguments = ["--data-root", str(flat), "--set", "DAVIS_train", "--estimator", "dis"]
    assert main(arguments) == 1
    message = capsys.readouterr().err
    assert re.search(r"No space left on device: .*DAVIS_train.*; mend that and start", message)


@pytest.mark.parametrize("folder", ["FLOW", "bear/FLOW"])
def test_flo_files_become_pictures(
    tmp_path: Path, folder: str, capsys: pytest.CaptureFixture
) -> None:
    flow = np.random.default_rng(0).normal(0, 3, (24, 40, 2)).astype(np.float32)
    unknown = np.where(np.arange(40)[:, None] < 3, np.float32(1e10), flow)
    target = tmp_path / "set" / folder
    target.mkdir(parents=True)
    for name in ("bear_00000", "bear_00001"):
        write_picture(target.parent / f"RGB/{name}.jpg", np.zeros((24, 40, 3), np.uint8))
    cv2.writeOpticalFlow(str(target / "bear_00000.flo"), flow)
    cv2.writeOpticalFlow(str(target / "bear_00001.flo"), unknown)
    (tmp_path / "set" / ".flow.json").write_text('{"made_by": "dis"}')
    arguments = ["--data-root", str(tmp_path), "--set", "set", "--from-flo"]
    assert main(arguments) == 0
    assert "2 flow maps written" in capsys.readouterr().out
    assert main(arguments) == 0
    assert "0 flow maps written from .flo files, 2 kept" in capsys.readouterr().out
    assert flow_origin(tmp_path, "set") is None
    known = np.where(np.arange(40)[:, None] < 3, np.float32(0), flow)
    for name, motion in (("bear_00000", flow), ("bear_00001", known)):
        apart = read_image(target / f"{name}.jpg").astype(int) - flow_to_picture(motion)
        assert np.abs(apart).mean() < 6
    whole = (target / "bear_00001.flo").read_bytes()
    for content in (b"", whole[:-1], whole[:10], b"P" + whole[:-1], whole[:4] + bytes(8)):
        (target / "bear_00001.flo").write_bytes(content)
        assert main([*arguments, "--overwrite"]) == 1
        assert "bear_00001.flo: no whole .flo file" in capsys.readouterr().err
    for path in target.iterdir():
        path.unlink()
    assert main(arguments) == 1
    assert "has no .flo files" in capsys.readouterr().err


def test_flo_files_replace_other_maps_only_when_told_to_and_fit_their_frames(
    tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    folder = tmp_path / "set/bear"
    for number in range(2):
        write_picture(folder / f"RGB/bear_{number}.jpg", np.zeros((24, 40, 3), np.uint8))
        write_picture(folder / f"FLOW/bear_{number}.png", np.zeros((24, 40, 3), np.uint8))
        cv2.writeOpticalFlow(
            str(folder / f"FLOW/bear_{number}.flo"), np.ones((24, 40, 2), np.float32)
        )
    (tmp_path / "set/.flow.json").write_text('{"made_by": "dis"}')
    arguments = ["--data-root", str(tmp_path), "--set", "set", "--from-flo"]
    before = {path: path.read_bytes() for path in (tmp_path / "set").rglob("*") if path.is_file()}
    assert main(arguments) == 1
    assert "flow maps of another kind (dis); pass --overwrite" in capsys.readouterr().err
    after = {path: path.read_bytes() for path in (tmp_path / "set").rglob("*") if path.is_file()}
    assert after == before
    assert main([*arguments, "--overwrite"]) == 0
    maps = sorted(path.name for path in (folder / "FLOW").iterdir() if path.suffix != ".flo")
    assert maps == ["bear_0.jpg", "bear_1.jpg"]
    cv2.writeOpticalFlow(str(folder / "FLOW/bear_1.flo"), np.ones((12, 20, 2), np.float32))
    assert main([*arguments, "--overwrite"]) == 1
    assert "bear_1.flo: no whole .flo file" in capsys.readouterr().err


def test_maps_that_complete_those_made_elsewhere_are_mentioned(
    flat: Path, capsys: pytest.CaptureFixture
) -> None:
    arguments = ["--data-root", str(flat), "--set", "DAVIS_train", "--estimator", "dis"]
    assert main(arguments) == 0
    (flat / "DAVIS_train/.flow.json").unlink()
    next((flat / "DAVIS_train/FLOW").iterdir()).unlink()
    capsys.readouterr()
    assert main(arguments) == 0
    expected = "note: those that were there were made elsewhere, the new ones by dis, camera"
    assert expected in capsys.readouterr().out


@pytest.mark.parametrize(
    ("variables", "message"),
    [({"LOCAL_RANK": "0"}, "'RANK'"), ({"LOCAL_RANK": "x", "RANK": "0", "WORLD_SIZE": "2"}, "'x'")],
)
def test_an_environment_that_describes_no_processes_is_refused(
    flat: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture,
    variables: dict[str, str],
    message: str,
) -> None:
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert main(["--data-root", str(flat), "--set", "DAVIS_train", "--estimator", "dis"]) == 1
    error = capsys.readouterr().err
    assert "does not describe several processes" in error and message in error


def test_names_that_are_not_utf8_are_written(tmp_path: Path) -> None:
    path = tmp_path / "set" / "FLOW" / os.fsdecode(b"b\xffr_00000.flo")
    image = path.parent.parent / "RGB" / path.with_suffix(".jpg").name
    write_picture(image, np.zeros((3, 4, 3), np.uint8))
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


def test_each_process_has_a_gpu_of_its_own(
    monkeypatch: pytest.MonkeyPatch, raft_weights: Path
) -> None:
    assert _device("cuda") == "cuda" and _device(None) is None
    monkeypatch.setenv("LOCAL_RANK", "1")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert _device(None) is None
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert [_device(wanted) for wanted in (None, "cuda", "cpu")] == ["cuda:1", "cuda:1", "cpu"]
    with pytest.raises(FlowError, match="there is no device 'cuda:99' for RAFT"):
        raft_estimator(raft_weights, "cuda:99")


def test_program_with_raft_and_a_weights_file(
    tmp_path: Path, raft_weights: Path, capsys: pytest.CaptureFixture, monkeypatch
) -> None:
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: True)
    write_frames(tmp_path / "DAVIS_train" / "RGB", "dog", moving_frames(2, 128, 128))
    arguments = ["--data-root", str(tmp_path), "--set", "DAVIS_train", "--estimator", "raft"]
    assert main([*arguments, "--weights", str(raft_weights), "--device", "cpu"]) == 0
    printed = capsys.readouterr().out
    assert "RAFT on cpu in bfloat16" in printed and "2 flow maps written" in printed
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
    assert "--weights" in message
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
