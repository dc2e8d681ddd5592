"""VIP and JHMDB, on tiny archives whose frames have a colour of their own in each cell."""

from pathlib import Path

import numpy as np
import pytest
import scipy.io
import torch
import torch.nn.functional as F
from PIL import Image
from torch import nn

from datasets.problems import DatasetError
from models.propagation import RECIPES
from utils import propagate
from utils.evaluation.people import joint_maps, score_jhmdb, score_vip

SIDE = 40  # cells of a frame of JHMDB
FRAMES = 4


class Colours(nn.Module):
    """Features of stride 8 in which different colours have cosines near 0."""

    stride = 8

    def __init__(self):
        super().__init__()
        self.normalise = nn.Module()
        self.normalise.register_buffer("mean", torch.zeros(3))
        self.waves = torch.randn(64, 3, 1, 1, generator=torch.Generator().manual_seed(0)) / 10

    def forward(self, images, size):
        small = F.interpolate(images.float(), [side // 8 for side in size], mode="area")
        waves = F.conv2d(small, self.waves)
        return torch.cat([waves.sin(), waves.cos()], dim=1)


def save(path, pixels):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)


@pytest.fixture
def vip(tmp_path: Path) -> Path:
    """Two videos of which one is listed; its two classes are coloured squares that move."""
    root = tmp_path / "VIP_Fine"
    for video in ("videos1", "videos2"):
        for t in range(FRAMES):
            labels = np.zeros((140, 140), np.uint8)  # 2 pixels a cell of 560 / 8
            labels[20:60, 20 + 8 * t : 60 + 8 * t] = 3
            labels[80:120, 100 - 8 * t : 120 - 8 * t] = 19
            colours = np.zeros((20, 3), np.uint8)
            colours[[3, 19]] = (255, 0, 0), (0, 255, 0)
            save(root / "Images" / video / f"{t:012d}.png", colours[labels])
            if t == FRAMES - 1:
                labels[0:40, 0:140] = 7  # a class that appears late is never found
            save(root / "Annotations/Category_ids" / video / f"{t:012d}.png", labels)
    (root / "lists").mkdir()
    (root / "lists/val_videos.txt").write_text("videos2\n")
    return root


def test_vip_is_one_count_of_pixels_in_all_frames(vip: Path) -> None:
    # Class 7 takes 5,600 pixels of the last frame: 800 are of class 3, the others of class 0.
    background = FRAMES * (19600 - 1600 - 800)
    shares = [
        (background - 4800) / background,
        (4 * 1600 - 800) / (4 * 1600),
        1.0,
        0.0,
    ]
    expected = f"mIoU {np.mean(shares):.3f} in 1 videos of VIP"
    assert score_vip(vip, Colours(), RECIPES["vip"]) == expected


def test_vip_with_a_missing_label_map_is_refused(vip: Path) -> None:
    (vip / "Annotations/Category_ids/videos2/000000000001.png").unlink()
    with pytest.raises(DatasetError, match=r"videos2: 4 images and 3 label maps"):
        score_vip(vip, Colours(), RECIPES["vip"])
    (vip / "lists/val_videos.txt").write_text("")
    with pytest.raises(DatasetError, match="no test video in its lists"):
        score_vip(vip, Colours(), RECIPES["vip"])
    with pytest.raises(DatasetError, match="Images, neither in"):
        score_vip(vip / "Images" / "videos2", Colours(), RECIPES["vip"])


def write_jhmdb(root: Path, joints: np.ndarray, frames: list[np.ndarray]) -> Path:
    """One test video and one of training; joints (T, J, 2) in pixels from 0."""
    for name in ("run_a", "run_b"):
        for t, frame in enumerate(frames, 1):
            save(root / "Rename_Images/run" / name / f"{t:05d}.png", frame)
        folder = root / "joint_positions/run" / name
        folder.mkdir(parents=True)
        positions = {"pos_img": joints.transpose(2, 1, 0) + 1}
        scipy.io.savemat(folder / "joint_positions.mat", positions)
    (root / "splits").mkdir()
    (root / "splits/run_test_split1.txt").write_text("run_a.avi 1\nrun_b.avi 2\n")
    (root / "splits/run_test_split2.txt").write_text("run_a.avi 2\nrun_b.avi 1\n")
    return root


def test_jhmdb_follows_joints_through_frames_that_move(tmp_path: Path) -> None:
    """Cells of 6 x 4 pixels with random colours move by 2 cells to the right in each frame."""
    cells = np.random.default_rng(0).integers(0, 256, (SIDE, SIDE, 3), dtype=np.uint8)
    moved = [np.roll(cells, 2 * t, axis=1) for t in range(FRAMES)]
    frames = [one.repeat(4, axis=0).repeat(6, axis=1) for one in moved]
    at_first = np.array([[10, 10], [20, 10], [10, 30]])  # cells, so the box is 60 x 80 pixels
    joints = np.array([(at_first + np.array([2 * t, 0])) * [6, 4] for t in range(FRAMES)], float)
    recipe = RECIPES["jhmdb"]
    archive = write_jhmdb(tmp_path / "JHMDB", joints, frames)
    expected = "PCK@0.1 1.000, PCK@0.2 1.000 in 1 videos of JHMDB"
    assert score_jhmdb(tmp_path, Colours(), recipe) == expected
    # One of nine positions is 9 pixels away. The limits are 6 and 12 percent of 100 pixels; the
    # first frame does not count.
    joints[2, 1, 1] -= 9
    joints[0, 0] += 1
    write_jhmdb(tmp_path / "moved", joints, frames)
    expected = f"PCK@0.1 {8 / 9:.3f}, PCK@0.2 1.000 in 1 videos of JHMDB"
    assert score_jhmdb(tmp_path / "moved", Colours(), recipe) == expected
    (archive / "Rename_Images/run/run_b/00004.png").unlink()
    with pytest.raises(DatasetError, match="positions in 4 frames, but the video has 3 images"):
        score_jhmdb(archive, Colours(), recipe)
    (archive / "joint_positions/run/run_b/joint_positions.mat").write_bytes(b"x")
    with pytest.raises(DatasetError, match=r"no joint_positions\.mat of JHMDB"):
        score_jhmdb(archive, Colours(), recipe)
    (archive / "joint_positions/run/run_b/joint_positions.mat").unlink()
    with pytest.raises(DatasetError, match=r"run/run_b: 3 images, joint_positions\.mat missing"):
        score_jhmdb(archive, Colours(), recipe)


def test_maps_of_joints_by_hand() -> None:
    maps = joint_maps(np.array([[3.2, 1.6], [-9.0, 2.0]]), 8)
    assert maps.shape == (3, 8, 8)
    # The nearest cell is column 3, row 2; sigma is half a cell.
    assert maps[1, 2, 3] == 1
    torch.testing.assert_close(maps[1, 2, 4], torch.tensor(np.exp(-2.0), dtype=torch.float32))
    torch.testing.assert_close(maps[1, 1, 4], torch.tensor(np.exp(-4.0), dtype=torch.float32))
    assert maps[1, 2, 5] == maps[1, 4, 3] == 0 and not maps[2].any()
    inside = torch.zeros(8, 8)
    inside[0:4, 1:5] = 1
    assert maps[0].tolist() == (1 - inside).tolist()


def test_the_program_scores_vip(vip: Path, capsys, monkeypatch) -> None:
    tiny = ("--backbone", "mobilenetv3_small_100", "--pretrained-backbone", "false", "--gpu", "")
    flags = ("--vip", str(vip), "--level", "8", "--context", "1", *tiny)
    monkeypatch.setattr("sys.argv", ["propagate", *flags])
    propagate.main()
    first, last = capsys.readouterr().out.splitlines()
    assert "label propagation, vip with context 1, mobilenetv3_small_100" in first
    assert last.startswith("mIoU 0.") and last.endswith(" in 1 videos of VIP")
