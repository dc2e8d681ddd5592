"""The page: its work without a browser, and in Chromium, as wide as a desktop and as a phone."""

import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
import zipfile
from concurrent.futures import CancelledError
from pathlib import Path

import av
import numpy as np
import pytest
from torch import nn

import config
from models.interface import REFERENCES, Needs, Network, Prediction
from tests.small_checkpoints import save_small
from utils.app import AppError, Job, check_address, in_words, parse_colour, small
from utils.evaluation.segmenting import Segmenter
from utils.settings import load_settings

CHROMIUM = shutil.which("chromium")
ROOT = Path(__file__).parents[2]
ARGUMENTS = ["--no-sandbox", "--disable-gpu", "--disable-background-networking"]
FRAMES, HEIGHT, WIDTH = 12, 48, 80


class Bright(Network):
    """Takes what is bright for the object, and waits before it reads anything."""

    needs = Needs(REFERENCES)

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(1, 1)
        self.reached, self.go_on = threading.Event(), threading.Event()
        self.batches = 0

    def segment_video(self, video):
        self.reached.set()
        self.go_on.wait(60)
        video.at([0])
        for batch in video:
            self.batches += 1
            yield Prediction([batch["image"].float().mean(dim=1, keepdim=True) - 100])


def write_clip(path: Path, frames: int) -> Path:
    with av.open(str(path), "w") as film:
        stream = film.add_stream("libx264", rate=10)
        stream.height, stream.width, stream.pix_fmt = HEIGHT, WIDTH, "yuv420p"
        for number in range(frames):
            image = np.full((HEIGHT, WIDTH, 3), 40, np.uint8)
            image[10:30, 5 + number % 40 : 35 + number % 40] = (220, 200, 60)
            film.mux(stream.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
        film.mux(stream.encode())
    return path


def free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return one.getsockname()[1]


@pytest.fixture(scope="module")
def server(browser, tmp_path_factory):
    """The page's address and the folder of its temporary files; ended while it works on a clip."""
    folder = tmp_path_factory.mktemp("app")
    checkpoint = save_small(folder / "best.pt", load_settings(config).replace(image_size=64))
    port = free_port()
    command = [sys.executable, "-m", "utils.app", "--checkpoint", checkpoint, "--gpu", ""]
    command += ["--port", str(port), "--max-upload", "1"]
    (folder / "tmp").mkdir()
    environment = {"TMPDIR": str(folder / "tmp"), "PYTHONUNBUFFERED": "1"}
    with (folder / "log").open("w") as log:
        process = subprocess.Popen(
            [str(word) for word in command],
            cwd=ROOT,
            env=os.environ | environment,
            stdout=log,
            stderr=subprocess.STDOUT,
        )
        try:
            for _ in range(600):
                with socket.socket() as one:
                    if one.connect_ex(("127.0.0.1", port)) == 0:
                        break
                assert process.poll() is None, (folder / "log").read_text()
                time.sleep(0.1)
            yield f"http://127.0.0.1:{port}", folder / "tmp"
            page = browser.new_page()
            page.goto(f"http://127.0.0.1:{port}")
            start(page, write_clip(folder / "last.mp4", 600))
            status(page, "^[1-9][0-9]* of 600")
            process.send_signal(signal.SIGTERM)
            assert process.wait(30) == 143
            assert not [p for p in (folder / "tmp").iterdir() if p.name.startswith("masks-")]
        finally:
            process.kill()
            process.wait()


@pytest.fixture(scope="module")
def browser():
    if CHROMIUM is None:
        pytest.skip("needs Chromium, as Debian's chromium")
    with pytest.importorskip("playwright.sync_api").sync_playwright() as playwright:
        yield playwright.chromium.launch(executable_path=CHROMIUM, args=ARGUMENTS)


@pytest.fixture
def page(request, browser, server):
    """The page in a window, as wide as a desktop's if the test does not say otherwise."""
    width, height = getattr(request, "param", (1280, 900))
    page = browser.new_page(viewport={"width": width, "height": height})
    page.set_default_timeout(60_000)
    page.goto(server[0])
    page.get_by_role("button", name="Start").wait_for()
    yield page
    assert page.evaluate("document.documentElement.scrollWidth") == width  # nothing sticks out
    page.close()


@pytest.fixture
def job(tmp_path):
    (tmp_path / "jobs").mkdir()
    segmenter = Segmenter(Bright(), 64)
    job = Job(segmenter, load_settings(config), None, tmp_path / "jobs")
    yield job
    segmenter.network.go_on.set()
    job.end()


def is_empty(folder: Path) -> bool:
    """Whether the folder becomes empty."""
    for _ in range(100):
        if not list(folder.iterdir()):
            return True
        time.sleep(0.1)
    return False


def start(page, clip: Path) -> None:
    page.locator("input[type=file]").first.set_input_files(clip)
    page.get_by_text(clip.stem).first.wait_for()
    page.get_by_role("button", name="Start").click()


def replace(page, clip: Path) -> None:
    page.get_by_label("Clear").first.click()
    start(page, clip)


def status(page, expected: str) -> str:
    """The status once it matches."""
    found = page.get_by_label("Status")
    page.wait_for_function(
        "([box, text]) => RegExp(text).test(box.value)", arg=[found.element_handle(), expected]
    )
    return found.input_value()


def test_results_are_there_until_the_block_ends(job, tmp_path):
    job.segmenter.network.go_on.set()
    clip = write_clip(tmp_path / "clip.mp4", FRAMES)
    with job.started(clip, (255, 0, 0)) as (running, results):
        clip.unlink()  # as Gradio does with old uploads
        found = results.result(60)
        assert running.text.startswith(f"{FRAMES - 1} of {FRAMES} frames, about ")
        red = running.picture.reshape(-1, 3)[running.picture[..., 0].argmax()]
        assert running.picture.shape == (HEIGHT, WIDTH, 3) and red[0] > red[2]
        names = ["clip_overlay.mp4", "clip_masks.zip", "clip_masked.csv"]
        assert [path.name for path in found.downloads] == names
        assert all(path.is_file() for path in (*found.downloads, *found.masks))
        assert found.certainty == "" and len(found.masks) == 8
    assert is_empty(job.folder)


def test_a_clip_is_used_in_place_where_there_are_no_links(job, tmp_path, monkeypatch):
    def refuse(*_: Path) -> None:
        raise PermissionError

    monkeypatch.setattr(os, "link", refuse)
    job.segmenter.network.go_on.set()
    clip = write_clip(tmp_path / "clip.mp4", FRAMES).rename(tmp_path / "results")
    with job.started(clip, (255, 0, 0)) as (_, results):
        assert results.result(60).film.name == "results_overlay.mp4"
    assert is_empty(job.folder)


def test_an_upload_that_is_gone_is_said_to_be(job, tmp_path):
    with (
        pytest.raises(AppError, match=r"^old\.mp4: uploads are removed after an hour; drop it"),
        job.started(tmp_path / "old.mp4", (255, 0, 0)),
    ):
        pass
    assert is_empty(job.folder)


def test_a_stopped_clip_is_not_segmented(job, tmp_path):
    clip = write_clip(tmp_path / "clip.mp4", FRAMES)
    with job.started(clip, (255, 0, 0)) as (_, results):
        assert job.segmenter.network.reached.wait(60)
    assert list(job.folder.iterdir())  # not while its files are in use
    job.segmenter.network.go_on.set()
    with pytest.raises(CancelledError):
        results.result(60)
    assert not job.segmenter.network.batches
    assert is_empty(job.folder)


def test_a_clip_waits_and_can_be_cancelled_meanwhile(job, tmp_path):
    clip = write_clip(tmp_path / "clip.mp4", FRAMES)
    with job.started(clip, (255, 0, 0)) as (_, first):
        assert job.segmenter.network.reached.wait(60)
        with job.started(clip, (255, 0, 0)) as (running, second):
            assert running.text == "Waiting for the clips before this one"
        assert second.cancelled() and len(list(job.folder.iterdir())) == 1
        job.segmenter.network.go_on.set()
        assert first.result(60).film.is_file()


def test_the_end_of_the_program_stops_the_work(job, tmp_path):
    clip = write_clip(tmp_path / "clip.mp4", FRAMES)
    with (
        job.started(clip, (255, 0, 0)) as (_, first),
        job.started(clip, (255, 0, 0)) as (_, second),
    ):
        assert job.segmenter.network.reached.wait(60)
        threading.Timer(0.2, job.segmenter.network.go_on.set).start()
        job.end()
        for results in (first, second):
            with pytest.raises(CancelledError):
                results.result(60)
    assert not job.segmenter.network.batches


def test_a_clip_that_cannot_be_used(job, tmp_path):
    broken = tmp_path / "broken.mp4"
    broken.write_bytes(b"nothing")
    with (
        job.started(broken, (255, 0, 0)) as (_, results),
        pytest.raises(AppError, match=r"^broken\.mp4: "),
    ):
        results.result(60)
    assert is_empty(job.folder)


def test_how_far_a_clip_is():
    assert in_words("checking", 30, None, 2) == "Checking: 30 frames"
    assert in_words("references", 3, 40, 2) == "References: 3 of 40 frames"
    assert in_words("segmenting", 0, 40, 2) == "0 of 40 frames"
    assert in_words("segmenting", 10, 40, 2) == "10 of 40 frames, about 6 s to go"


def test_large_frames_are_shown_smaller():
    assert small(np.zeros((1080, 1920, 3), np.uint8)).shape == (540, 960, 3)
    assert small(np.zeros((HEIGHT, WIDTH, 3), np.uint8)).shape == (HEIGHT, WIDTH, 3)


def test_an_address_that_cannot_be_used():
    assert check_address("127.0.0.1", free_port()) == "127.0.0.1"
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(AppError, match=f"--port {port}: Address already in use; choose"):
            check_address("127.0.0.1", port)
    with pytest.raises(AppError, match="--port 70000: "):
        check_address("127.0.0.1", 70000)
    with pytest.raises(AppError, match=r"--host a\.\.b "):
        check_address("a..b", free_port())


def test_an_address_of_ipv6_is_in_brackets_and_a_name_is_not(monkeypatch):
    loopback = [(socket.AF_INET6, socket.SOCK_STREAM, 6, "", ("::1", 0, 0, 0))]
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: loopback)
    monkeypatch.setattr(socket, "create_server", lambda *_, **__: socket.socket())
    assert check_address("::1", 80) == "[::1]"
    assert check_address("my-machine", 80) == "my-machine"


@pytest.mark.parametrize("page", [(1280, 900), (390, 844)], ids=["desktop", "phone"], indirect=True)
def test_a_clip_gets_an_overlay_and_masks_to_download(page, server, tmp_path):
    start(page, write_clip(tmp_path / "a clip.mp4", FRAMES))
    status(page, "^Done")
    film = page.locator("video").first
    film.wait_for()
    page.wait_for_function("video => video.readyState >= 2", arg=film.element_handle())
    size = film.evaluate("video => [video.videoWidth, video.videoHeight, video.duration]")
    assert size == [WIDTH, HEIGHT, pytest.approx(FRAMES / 10)]
    shown = page.locator("#masks img")
    assert shown.count() >= 8
    with page.expect_download() as download:
        page.locator("a[download$='_masks.zip']").click()
    with zipfile.ZipFile(download.value.path()) as archive:
        names = [name for name in archive.namelist() if name.endswith(".png")]
    assert names == [f"masks/{number:05d}.png" for number in range(FRAMES)]
    assert not list(server[1].glob("masks-*/jobs/*"))


def test_a_broken_clip_is_said_to_be_and_can_be_replaced(page, tmp_path):
    whole = write_clip(tmp_path / "whole.mp4", FRAMES).read_bytes()
    broken = tmp_path / "broken.mp4"
    broken.write_bytes(whole[: len(whole) // 2])
    start(page, broken)
    assert status(page, "^Error").startswith("Error: broken.mp4: ")  # without a folder
    replace(page, write_clip(tmp_path / "whole.mp4", FRAMES))
    status(page, "^Done")


def test_a_clip_can_be_cancelled(browser, page, server, tmp_path):
    start(page, write_clip(tmp_path / "long.mp4", 600))
    text = status(page, "^[1-9][0-9]* of 600")
    assert re.fullmatch(r"\d+ of 600 frames, about \d+ s to go", text)
    jobs = next(server[1].glob("masks-*/jobs"))
    assert len(list(jobs.iterdir())) == 1
    other = browser.new_page()
    other.goto(server[0])
    start(other, write_clip(tmp_path / "second.mp4", 600))
    status(other, "^Waiting for the clips")
    other.get_by_role("button", name="Cancel").click()
    status(other, "^Cancelled")
    other.close()
    for _ in range(3):
        page.get_by_role("button", name="Cancel").click()
        status(page, "^Cancelled")
        assert is_empty(jobs)
        page.wait_for_timeout(1000)  # no later state of the work takes its place
        assert page.get_by_label("Status").input_value() == "Cancelled"
        page.get_by_role("button", name="Start").click()
        status(page, "^[1-9][0-9]* of 600")
    page.get_by_role("button", name="Cancel").click()
    status(page, "^Cancelled")
    replace(page, write_clip(tmp_path / "short.mp4", FRAMES))
    status(page, "^Done")


def test_a_large_upload_is_refused(page, server, tmp_path):
    large = tmp_path / "large.mp4"
    large.write_bytes(bytes(2**20 + 1))
    page.locator("input[type=file]").first.set_input_files(large)
    page.get_by_text("maximum allowed size").first.wait_for()
    assert not [path for path in server[1].rglob("large.mp4") if path.stat().st_size > 2**20]


def test_colours_of_the_picker():
    assert parse_colour("#ff0080") == (255, 0, 128)
    assert parse_colour("rgba(12.4, 255, 7.6, 1)") == (12, 255, 8)
    for wrong in ("", "#12", "pink", "rgb(1, 2)", "rgb(1, 2, 300)"):
        with pytest.raises(AppError, match="Colour: found"):
            parse_colour(wrong)
