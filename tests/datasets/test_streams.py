"""Programs whose output nobody reads, that have no standard error, or that are stopped early."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

import config

ROOT = Path(config.__file__).parent
PROGRAM = """
import sys, datasets
from datasets.problems import DatasetError
from tqdm import tqdm

def main():
    if sys.argv[1] == "head":
        while True:
            print("line", flush=sys.argv[2] == "flush")
    if sys.argv[1] == "short":
        return print("line")
    for _ in tqdm(range(3)):
        print("working")
    raise DatasetError("what is wrong")

"""
CALLS = {  # utils.scripts imports torch
    "run_script(main)": "from utils.scripts import run_script\nrun_script(main)\n",
    "main()": "main()\n",
}


def shell(command: str, *arguments: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        ["bash", "-c", command, "bash", sys.executable, *arguments],
        cwd=ROOT,
        env={
            **os.environ,
            "CUDA_VISIBLE_DEVICES": "",
            "PYTHONPATH": str(ROOT),
            "PYTHONUNBUFFERED": "",
        },
        capture_output=True,
        text=True,
        timeout=120,
    )


@pytest.fixture(params=[*CALLS])
def program(tmp_path, request):
    (tmp_path / "program.py").write_text(PROGRAM + CALLS[request.param])
    return str(tmp_path / "program.py")


@pytest.mark.parametrize("flush", ["flush", "buffer"])
def test_a_reader_that_leaves_ends_a_program_quietly(program, flush):
    ended = shell('"$1" "$2" head $3 | head -1; echo ${PIPESTATUS[0]}', program, flush)
    assert (ended.stdout, ended.stderr) == ("line\n141\n", "")
    ended = shell('"$1" "$2" short | true; echo ${PIPESTATUS[0]}', program)
    assert (ended.stdout, ended.stderr) == ("0\n", "")


def test_without_standard_error_the_message_is_on_standard_output(program):
    ended = shell('"$1" "$2" work 2>&-', program)
    assert ended.returncode == 1 and ended.stdout.count("working") == 3
    assert "DatasetError: what is wrong" in ended.stdout or "error: what is wrong" in ended.stdout
    ended = shell('"$1" "$2" work >&- 2>&-', program)
    assert ended.returncode == 1


def test_without_standard_error_a_misspelt_flag_is_said_on_standard_output():
    ended = shell('"$1" train.py --bacth-size 3 2>&-')
    assert ended.returncode == 2 and "--bacth-size: no such flag" in ended.stdout


def test_a_file_never_takes_the_place_of_a_closed_stream():
    code = "import datasets, os, sys; print(os.open('/', os.O_RDONLY) > 2, file=sys.stderr)"
    assert shell('"$1" -c "$2" 2>&-', code).stdout == "True\n"


@pytest.mark.parametrize(
    "command", [["train.py"], ["pretrain.py"], ["evaluate.py"], ["-m", "utils.preview"]]
)
def test_ctrl_c_while_modules_are_imported_leaves_no_traceback(command, tmp_path):
    """numpy, which comes early, is replaced by a module that gets the signal."""
    (tmp_path / "numpy").mkdir()
    (tmp_path / "numpy/__init__.py").write_text(
        "import os, signal, time\nos.kill(os.getpid(), signal.SIGINT)\ntime.sleep(30)\n"
    )
    ended = subprocess.run(
        [sys.executable, *command],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(tmp_path)},
        capture_output=True,
        text=True,
        timeout=60,
        # A shell has what it runs in the background ignore the signal.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    assert ended.returncode == -signal.SIGINT
    assert (ended.stdout, ended.stderr) == ("", "")
