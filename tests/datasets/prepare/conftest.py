"""Fixture for the tests of datasets/prepare."""

from collections.abc import Iterator
from pathlib import Path

import pytest


@pytest.fixture
def source(tmp_path: Path) -> Iterator[Path]:
    """Folder for the archive; checks at the end that nothing is beside it but the data root."""
    folder = tmp_path / "downloads"
    folder.mkdir()
    yield folder
    assert {path.name for path in tmp_path.iterdir()} <= {"downloads", "data"}
