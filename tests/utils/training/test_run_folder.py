"""Run folders: new ones, resumed ones, and what a resumed run may change."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import config
from utils.processes import Process
from utils.settings import SettingsError, write_settings
from utils.training.accounts import Accounts
from utils.training.checkpoints import CheckpointError
from utils.training.run_folder import (
    check_run,
    find_run,
    locked,
    resumed_settings,
)

CPU = Process(torch.device("cpu"))
ROOT = Path(config.__file__).parent


def test_a_batch_that_the_processes_cannot_share_evenly_is_refused(tiny_settings):
    with pytest.raises(SettingsError, match="BATCH_SIZE = 4 cannot be shared evenly by 3"):
        check_run("train", tiny_settings, None, Process(torch.device("cpu"), 0, 3))


def test_a_run_folder_that_tensorboard_cannot_write_to_is_refused(tmp_path, tiny_settings):
    folder = os.fsdecode(os.fsencode(tmp_path) + b"/\xff")
    with pytest.raises(SettingsError, match=r"name is not UTF-8.* choose another OUTPUT_DIR"):
        check_run("train", tiny_settings.replace(output_dir=folder), None, CPU)


def test_a_run_is_called_after_its_script_unless_it_has_a_name(tmp_path, tiny_settings):
    settings = tiny_settings.replace(output_dir=str(tmp_path / "runs"))
    assert check_run("train", settings, None, CPU) == tmp_path / "runs/train"
    named = settings.replace(run_name="mine")
    assert check_run("train", named, None, CPU) == tmp_path / "runs/mine"
    assert not (tmp_path / "runs").exists()


def test_a_resumed_run_has_its_own_settings_but_for_those_that_are_given(tmp_path, tiny_settings):
    own = tiny_settings.replace(epochs=7, batch_size=6, sigma=2.0)
    write_settings(own, tmp_path / "settings.py")
    now = tiny_settings.replace(epochs=9, batch_size=8, workers=3)
    assert resumed_settings(now, tmp_path, frozenset()) == own
    given = frozenset({"EPOCHS", "WORKERS"})
    assert resumed_settings(now, tmp_path, given) == own.replace(epochs=9, workers=3)
    assert resumed_settings(now, None, given) is now


@pytest.mark.parametrize("name", ["SIGMA", "NUM_CLUSTERS", "SEED", "MODEL"])
def test_what_would_make_it_another_run_is_refused_on_resume(name, tmp_path, tiny_settings):
    write_settings(tiny_settings, tmp_path / "settings.py")
    now = tiny_settings.replace(epochs=9, sigma=0.5, num_clusters=16, seed=3, model="gsanet2")
    with pytest.raises(SettingsError, match=rf"{name} is .* there, .* here: a resumed run keeps"):
        resumed_settings(now, tmp_path, frozenset({name, "EPOCHS"}))


def test_flags_that_say_what_the_run_has_anyway_are_no_change(tmp_path, tiny_settings):
    write_settings(tiny_settings, tmp_path / "settings.py")
    given = frozenset(tiny_settings.as_dict())
    now = tiny_settings.replace(epochs=9)
    assert resumed_settings(now, tmp_path, given) == now
    with pytest.raises(SettingsError, match=r"SIGMA is 1\.0 there, 2\.0 here"):
        resumed_settings(now.replace(sigma=2.0), tmp_path, given)


def test_an_existing_run_is_refused_but_an_empty_folder_is_used(tmp_path, tiny_settings):
    settings = tiny_settings.replace(output_dir=str(tmp_path))
    (tmp_path / "train").mkdir()
    check_run("train", settings, None, CPU)
    (tmp_path / "train/notes.txt").write_text("")
    with pytest.raises(CheckpointError, match="exists already; choose another by --run-name"):
        check_run("train", settings, None, CPU)
    assert check_run("train", settings, None, CPU, dry_run=True) == tmp_path / "train"
    write_settings(settings, tmp_path / "train/settings.py")
    with pytest.raises(CheckpointError, match=r"exists already; continue it by --resume .*train"):
        check_run("train", settings, None, CPU)
    other = Process(torch.device("cpu"), rank=1, world_size=2)
    assert check_run("train", settings, None, other) == tmp_path / "train"


def test_a_folder_without_a_run_cannot_be_resumed(tmp_path, tiny_settings):
    with pytest.raises(SettingsError, match=r"cannot resume .*there is no .*settings\.py"):
        resumed_settings(tiny_settings, tmp_path, frozenset())


def test_auto_finds_the_run_of_that_name_if_it_was_begun(tmp_path, tiny_settings):
    settings = tiny_settings.replace(output_dir=str(tmp_path))
    assert find_run("train", settings, None) is None
    assert find_run("train", settings, "auto") is None
    assert find_run("train", settings, "elsewhere").name == "elsewhere"
    (tmp_path / "train").mkdir()
    assert find_run("train", settings, "auto") is None
    write_settings(settings, tmp_path / "train/settings.py")
    assert find_run("train", settings, "auto") == tmp_path / "train"
    named = settings.replace(run_name="mine")
    assert find_run("train", named, "auto") is None


def test_a_run_with_nothing_left_but_its_best_checkpoint_does_not_begin_anew(
    tmp_path, tiny_settings
):
    write_settings(tiny_settings, tmp_path / "settings.py")
    assert check_run("train", tiny_settings, tmp_path, CPU) == tmp_path
    (tmp_path / "best.pt").touch()
    with pytest.raises(CheckpointError, match=r"holds best\.pt, but no last\.pt"):
        check_run("train", tiny_settings, tmp_path, CPU)
    (tmp_path / "last.pt").touch()
    assert check_run("train", tiny_settings, tmp_path, CPU) == tmp_path


def test_lines_go_to_the_terminal_and_the_file_of_the_main_process(tmp_path, capsys):
    Accounts(None, None, tmp_path, Process(CPU.device, 1, 2)).log("nobody")
    for line in ("one", "two"):
        Accounts(None, None, tmp_path, CPU).log(line)
    assert capsys.readouterr().out == "one\ntwo\n"
    assert (tmp_path / "log.txt").read_text() == "one\ntwo\n"


def test_what_a_killed_process_has_left_half_written_does_not_block_a_new_run(
    tmp_path, tiny_settings
):
    settings = tiny_settings.replace(output_dir=str(tmp_path))
    (tmp_path / "train").mkdir()
    for name in (".settings.py.partial", ".lock"):
        (tmp_path / "train" / name).touch()
    assert check_run("train", settings, None, CPU) == tmp_path / "train"


def test_one_process_at_a_time_trains_into_a_folder(tmp_path):
    """The lock ends with its process, even if a child of that one lives on."""
    holder = (
        "import os, sys, time; from pathlib import Path\n"
        "from utils.training.run_folder import locked\n"
        "with locked(Path(sys.argv[1])):\n"
        "    child = os.fork()\n"
        "    if child: print(child, flush=True)\n"
        "    time.sleep(60)"
    )
    command = [sys.executable, "-c", holder, str(tmp_path)]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as process:
        child = int(process.stdout.readline())
        refused = pytest.raises(CheckpointError, match="another process is training into")
        with refused, locked(tmp_path):
            raise AssertionError("two at once")
        process.kill()
        process.wait()
        os.kill(child, 0)  # it is still there
        with locked(tmp_path):
            os.kill(child, signal.SIGKILL)
