"""The network that comes with the code, as a user meets it in the first minute."""

import subprocess
import sys
from pathlib import Path

import av
import cv2
import numpy as np
from PIL import Image

import inference
from inference import load, segment_video
from tests.utils.evaluation.test_video import overlap

ROOT = Path(inference.__file__).parent
STARTER = ROOT / "assets" / "starter.pt"


def write_disc(path: Path) -> list[np.ndarray]:
    """A clip of a coloured disc with texture; returns its true masks."""
    rng, truths = np.random.default_rng(0), []
    ground = cv2.GaussianBlur(rng.integers(60, 200, (192, 320, 3), np.uint8), (0, 0), 6)
    skin = cv2.GaussianBlur(rng.integers(0, 255, (192, 320, 3), np.uint8), (0, 0), 2)
    with av.open(str(path), "w") as film:
        stream = film.add_stream("libx264", rate=10)
        stream.height, stream.width, stream.pix_fmt = 192, 320, "yuv420p"
        for number in range(10):
            centre = (110 + 8 * number, 96)
            truths.append(cv2.circle(np.zeros((192, 320), np.uint8), centre, 50, 1, -1) > 0)
            disc = np.roll(skin, 8 * number, axis=1) // 2 + np.array([120, 40, 0], np.uint8)
            image = np.where(truths[-1][..., None], disc, ground)
            film.mux(stream.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
        film.mux(stream.encode())
    return truths


def test_a_clip_gets_masks_without_a_checkpoint(tmp_path):
    """A disc that moves over a still background is masked, by a real process in its own folder."""
    clip = tmp_path / "my clip.mp4"
    truths = write_disc(clip)
    command = sys.executable, ROOT / "evaluate.py"
    done = subprocess.run(
        [*command, "--video", clip.name, "--gpu", "", "--mixed-precision", "false"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    first = done.stdout.splitlines()[0]
    assert f"from {STARTER}, on cpu in float32; flow: dis, camera motion removed" in first
    masks = sorted((tmp_path / "my clip_masks/masks").iterdir())
    assert len(masks) == 10 and (tmp_path / "my clip_masks/overlay.mp4").is_file()
    found = [np.asarray(Image.open(path)) > 0 for path in masks]
    assert np.mean([overlap(*pair) for pair in zip(found, truths, strict=True)]) > 0.7

    same = segment_video(load(device="cpu"), tmp_path / clip.name)
    assert all((one > 0).tolist() == other.tolist() for one, other in zip(same, found, strict=True))


def test_a_clip_that_cannot_be_used_leaves_no_folder(tmp_path):
    (tmp_path / "clip.mp4").write_bytes(b"no film")
    done = subprocess.run(
        [sys.executable, ROOT / "evaluate.py", "--video", "clip.mp4", "--gpu", ""],
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 1 and done.stderr.startswith("error: clip.mp4: ")
    assert not (tmp_path / "clip_masks").exists()


def test_it_is_small():
    assert STARTER.stat().st_size < 15e6
