"""Tests of datasets/flow/origin.py."""

import os
from pathlib import Path

import pytest

from datasets.flow.__main__ import main
from datasets.flow.making import make_flow
from datasets.flow.origin import flow_origin
from tests.datasets.flow.frames import to_the_right


def command(root: Path, *flags: str) -> list[str]:
    return ["--data-root", str(root), "--set", "DAVIS_train", "--estimator", "dis", *flags]


def test_kinds_are_not_mixed_and_a_mixture_is_of_unknown_origin(
    flat: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    assert main(command(flat)) == 0
    assert flow_origin(flat, "DAVIS_train") == "dis, camera motion kept"
    assert main(command(flat, "--remove-camera-motion")) == 1
    assert "of another kind (dis, camera motion kept)" in capsys.readouterr().err
    replace = os.replace

    def stopped(source: Path, destination: Path) -> None:
        if destination.name == "dog-run_00003.jpg":
            raise KeyboardInterrupt
        replace(source, destination)

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", stopped)
        assert main(command(flat, "--remove-camera-motion", "--overwrite")) == 130
    assert flow_origin(flat, "DAVIS_train") is None
    assert main(command(flat, "--remove-camera-motion", "--overwrite")) == 0
    assert flow_origin(flat, "DAVIS_train") == "dis, camera motion removed"


def test_flow_maps_of_unknown_origin_are_not_said_to_be_of_a_new_one(flat: Path) -> None:
    make_flow(flat, "DAVIS_train", to_the_right)
    next((flat / "DAVIS_train/FLOW").iterdir()).unlink()
    assert main(command(flat)) == 0
    assert flow_origin(flat, "DAVIS_train") is None
    assert main(command(flat, "--overwrite")) == 0
    assert flow_origin(flat, "DAVIS_train") == "dis, camera motion kept"
