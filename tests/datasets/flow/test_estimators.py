"""Tests of datasets/flow/estimators.py."""

from pathlib import Path

import numpy as np
import pytest
import torch
from torchvision.models.optical_flow import Raft_Large_Weights, raft_large

from datasets.flow.estimators import (
    FlowError,
    dis_estimator,
    of_small_frames,
    raft_device,
    raft_estimator,
    without_camera_motion,
)
from datasets.flow.making import make_flow
from datasets.flow.raft import Raft
from datasets.pictures import read_image
from tests.datasets.flow.frames import STEP, moving_frames, write_frames


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


def test_large_frames_are_reduced_and_others_are_not() -> None:
    first, second = (np.kron(frame, np.ones((12, 12, 1), np.uint8)) for frame in moving_frames(2))
    motion = of_small_frames(dis_estimator())(first, second)  # of 1536 x 1728 pixels
    assert motion.shape == (720, 810, 2)
    inner = motion[90:-90, 90:-90].reshape(-1, 2)
    # The texture moves by 12 times STEP, and its pixels are 720 / 1536 as large afterwards.
    np.testing.assert_allclose(np.median(inner, axis=0), np.multiply(STEP, 12 * 720 / 1536), atol=1)
    seen = []

    def look(*pair):
        seen.append(pair[0])

    of_small_frames(look)(first[:, :1000], second[:, :1000])
    of_small_frames(look, at_least=896)(first, second)
    assert [one.shape[:2] for one in seen] == [(1106, 720), (896, 1008)]
    for small in (first[:720], first[:, :720]):
        of_small_frames(look)(small, small)
        assert np.array_equal(seen[-1], small)


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


@pytest.mark.parametrize("said", ["CUDA out of memory. Tried", "x DefaultCPUAllocator: can't"])
def test_frames_that_are_too_large_for_the_memory_are_named(raft_weights, monkeypatch, said):
    def estimate(*_):
        raise RuntimeError(said)

    monkeypatch.setattr(Raft, "estimate", estimate)
    estimator = raft_estimator(raft_weights, "cpu")
    with pytest.raises(FlowError, match=r"144 x 128 pixels needs more memory.*smaller frames"):
        estimator(*moving_frames(2))
    said = "another fault"
    with pytest.raises(RuntimeError, match="another fault"):
        estimator(*moving_frames(2))


def test_a_frame_of_the_pair_before_is_not_encoded_again(raft_weights, monkeypatch):
    one, two, three = moving_frames(3, 128, 144)
    encode, encoded = Raft.encode, []
    monkeypatch.setattr(
        Raft, "encode", lambda raft, frame: encoded.append(frame) or encode(raft, frame)
    )
    estimate = raft_estimator(raft_weights, "cpu")
    for first, second, new in ((one, two, 2), (two, three, 1), (three, two, 0), (one, two, 1)):
        encoded.clear()
        flow = estimate(first.copy(), second.copy())
        assert len(encoded) == new
        np.testing.assert_allclose(
            flow, raft_estimator(raft_weights, "cpu")(first, second), atol=1e-4
        )


def test_raft_computes_in_bfloat16_on_cpus_that_have_it(raft_weights, monkeypatch):
    first, second = moving_frames(2, 128, 144)
    expected = raft_estimator(raft_weights, "cpu")(first, second)
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: True)
    same = raft_estimator(raft_weights, "cpu", mixed_precision=False)(first, second)
    np.testing.assert_array_equal(same, expected)
    flow = raft_estimator(raft_weights, "cpu")(first, second)
    assert flow.dtype == np.float32
    length = np.linalg.norm(expected, axis=-1).mean()
    assert 0 < np.linalg.norm(flow - expected, axis=-1).mean() < 0.02 * length


def test_raft_computes_in_float32_on_gpus():
    assert raft_device("cuda:1", True) == (torch.device("cuda", 1), False)
    assert raft_device("cpu", True) == (torch.device("cpu"), True)
    assert raft_device("cpu", False) == (torch.device("cpu"), False)


def test_raft_computes_in_float32_under_autocast(raft_weights):
    first, second = moving_frames(2, 128, 144)
    expected = raft_estimator(raft_weights, "cpu")(first, second)
    with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16):
        flow = raft_estimator(raft_weights, "cpu")(first, second)
    np.testing.assert_array_equal(flow, expected)


def test_raft_refuses_files_that_are_not_its_weights(tmp_path: Path) -> None:
    url = Raft_Large_Weights.DEFAULT.url
    with pytest.raises(FlowError, match=r"cannot be loaded from .*missing\.pth.*" + url):
        raft_estimator(tmp_path / "missing.pth", "cpu")
    text, other = tmp_path / "text.pth", tmp_path / "other.pth"
    text.write_text("<html>not found</html>")
    torch.save({"weight": torch.zeros(3)}, other)
    for path in (text, other):
        with pytest.raises(
            FlowError, match=rf"raft_large cannot be loaded from .*{path.name} .*" + url
        ):
            raft_estimator(path, "cpu")


def test_raft_names_a_missing_gpu(raft_weights: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(FlowError, match="there is no device 'cuda' for RAFT"):
        raft_estimator(raft_weights, "cuda")


@pytest.mark.parametrize("cover", [0.2, 0.55])
def test_camera_motion_is_removed_and_the_objects_own_is_kept(cover):
    """A quadratic field under an object in the middle that moves against it."""
    y, x = np.mgrid[0:90, 0:120].astype(np.float32)
    camera = np.stack(
        [
            3 + 0.02 * x - 0.01 * y + 4e-4 * x * y - 2e-4 * x * x,
            -1 + 0.015 * x + 0.01 * y - 3e-4 * x * y + 2e-4 * y * y,
        ],
        axis=-1,
    )
    inside = np.hypot((x - 62) / 120, (y - 43) / 90) < (cover / np.pi) ** 0.5
    own = np.where(inside[..., None], np.float32([4.0, 2.5]), np.float32(0))
    noise = np.random.default_rng(0).normal(0, 0.05, camera.shape).astype(np.float32)
    residual = without_camera_motion((camera + own + noise).astype(np.float32))
    assert residual.dtype == np.float32
    np.testing.assert_allclose(residual - noise, own, atol=0.15)
