"""Fixtures for the tests of flow maps."""

from pathlib import Path

import pytest
import torch
from torchvision.models.optical_flow import raft_large

from tests.datasets.flow.frames import moving_frames, write_frames


@pytest.fixture
def flat(tmp_path: Path) -> Path:
    """Data root with the flat set DAVIS_train: sequences of 4 and of 3 frames, without masks."""
    write_frames(tmp_path / "DAVIS_train" / "RGB", "dog-run", moving_frames(4))
    write_frames(tmp_path / "DAVIS_train" / "RGB", "a_cat", moving_frames(3, 96, 100))
    return tmp_path


@pytest.fixture(scope="session")
def raft_weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """File with random weights for raft_large, and random statistics of its norms."""
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("raft") / "weights.pth"
    model = raft_large()
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            for values in (module.weight.data, module.running_var):
                values.uniform_(0.5, 1.5)
            for values in (module.bias.data, module.running_mean):
                values.uniform_(-0.5, 0.5)
    torch.save(model.state_dict(), path)
    return path
