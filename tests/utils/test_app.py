"""The page in a real browser: Chromium, headless, at the width of a desktop and of a phone."""

import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
import zipfile
from pathlib import Path

import av
import numpy as np
import pytest

import config
from tests.small_checkpoints import save_small
from utils.app import AppError, parse_colour
from utils.settings import load_settings

CHROMIUM = shutil.which("chromium")
ROOT = Path(__file__).parents[2]
ARGUMENTS = ["--no-sandbox", "--disable-gpu", "--disable-background-networking"]
FRAMES, HEIGHT, WIDTH = 12, 48, 80

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium, as Debian's chromium")


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


def test_a_clip_can_be_cancelled(page, server, tmp_path):
    start(page, write_clip(tmp_path / "long.mp4", 600))
    text = status(page, "^[1-9][0-9]* of 600")
    assert re.fullmatch(r"\d+ of 600 frames, about \d+ s to go", text)
    assert list(server[1].glob("masks-*/jobs/*"))
    page.get_by_role("button", name="Cancel").click()
    status(page, "^Cancelled")
    for _ in range(100):
        if not list(server[1].glob("masks-*/jobs/*")):
            break
        time.sleep(0.1)
    assert not list(server[1].glob("masks-*/jobs/*"))
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
