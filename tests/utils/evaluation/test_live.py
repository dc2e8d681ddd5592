"""Videos that are segmented as they come, by real processes, and how they are read."""

import os
import signal
import subprocess
import sys
import threading
import time
from fractions import Fraction
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from itertools import islice
from pathlib import Path

import av
import numpy as np
import pytest

import evaluate
from datasets import live as live_module
from datasets.clips import VideoError
from datasets.live import LiveVideo, is_live, open_live
from datasets.masks import read_label_map
from inference import load, segment_stream
from tests.small_checkpoints import save_small
from tests.utils.evaluation.test_video import decoded, picture, write_clip

ROOT = Path(evaluate.__file__).parent
COUNT = 10


@pytest.fixture(scope="module")
def checkpoint(tiny_settings, tmp_path_factory):
    return save_small(tmp_path_factory.mktemp("run") / "best.pt", tiny_settings)


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    return write_clip(tmp_path_factory.mktemp("clips") / "clip.mkv", COUNT)


@pytest.fixture(scope="module")
def expected(checkpoint, clip):
    return list(segment_stream(load(checkpoint, "cpu"), decoded(clip), flow="dis"))


def flags(checkpoint, source, output):
    flags = ("--checkpoint", checkpoint, "--video", source, "--output", output)
    # In float32 everywhere, as the expected masks.
    return [*map(str, flags), "--flow-estimator", "dis", "--gpu", "", "--mixed-precision", "false"]


def check(output, expected):
    found = [read_label_map(path) for path in sorted((output / "masks").iterdir())]
    assert len(found) == len(expected) == len(decoded(output / "overlay.mp4"))
    for mask, labels in zip(found, expected):
        np.testing.assert_array_equal(mask != 0, labels != 0)


def run_evaluation(monkeypatch, *arguments):
    monkeypatch.setattr(sys, "argv", ["evaluate.py", *arguments])
    evaluate.main()


def test_a_file_is_segmented_without_looking_ahead(
    checkpoint, clip, expected, tmp_path, monkeypatch, capsys
):
    run_evaluation(monkeypatch, *flags(checkpoint, clip, tmp_path), "--stream")
    check(tmp_path, expected)
    assert f"{COUNT} frames, " in capsys.readouterr().out


def test_an_address_is_segmented(checkpoint, clip, expected, tmp_path, monkeypatch):
    handler = partial(SimpleHTTPRequestHandler, directory=str(clip.parent))
    handler.log_message = lambda *_: None
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        address = f"http://127.0.0.1:{server.server_port}/{clip.name}"
        run_evaluation(monkeypatch, *flags(checkpoint, address, tmp_path))
        server.shutdown()
    check(tmp_path, expected)


def write_y4m(path, count):
    """Frames that are not compressed, so that FFmpeg knows the format after the first ones."""
    height, width = picture(0).shape[:2]
    with path.open("wb") as file:
        file.write(f"YUV4MPEG2 W{width} H{height} F25:1 Ip A1:1 C444\n".encode())
        for number in range(count):
            frame = av.VideoFrame.from_ndarray(picture(number), format="rgb24")
            file.write(b"FRAME\n" + frame.reformat(format="yuv444p").to_ndarray().tobytes())
    return path


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_pipe_that_stays_open_is_stopped_and_its_results_are_kept(checkpoint, tmp_path, number):
    clip = write_y4m(tmp_path / "clip.y4m", 1000)
    command = [sys.executable, str(ROOT / "evaluate.py"), *flags(checkpoint, "-", tmp_path)]
    with subprocess.Popen(["cat", clip, "-"], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as cat:
        process = subprocess.Popen(
            command,
            stdin=cat.stdout,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
        )
        while process.poll() is None and len(list(tmp_path.glob(".partial/masks/*.png"))) < 5:
            time.sleep(0.05)
        process.send_signal(number)
        output, errors = process.communicate(timeout=60)
        cat.kill()
    assert process.returncode == 0, errors.decode()
    found = len(list((tmp_path / "masks").iterdir()))
    assert 5 <= found < 1000 and f"{found} frames, " in output.decode()
    assert "left out" not in output.decode()  # a pipe waits
    images = decoded(clip)[:found]
    check(tmp_path, list(segment_stream(load(checkpoint, "cpu"), images, flow="dis")))


def live(waits, images):
    return LiveVideo((4, 4), Fraction(25), Fraction(1), waits, iter(images), [])


def paced(count, seconds):
    for number in range(count):
        time.sleep(seconds)
        yield np.full((4, 4, 3), number, np.uint8)


def test_of_a_source_that_does_not_wait_the_newest_frame_is_taken():
    seen = []
    for image in live(False, paced(40, 0.01)).frames(lambda: False):
        seen.append(int(image[0, 0, 0]))
        time.sleep(0.1)
    assert seen == sorted(set(seen)) and len(seen) < 20 and seen[-1] == 39


def test_of_a_source_that_waits_every_frame_is_taken():
    frames = live(True, paced(20, 0)).frames(lambda: False)
    assert [int(image[0, 0, 0]) for image in frames] == [*range(20)]


def test_a_silent_source_can_be_stopped():
    stopped = []

    def images():
        yield picture(0)
        while not stopped:
            time.sleep(0.01)
        raise VideoError("broke off (timed out)")  # not what the user waits for

    video = live(False, images())
    frames = video.frames(lambda: bool(stopped))
    assert next(frames).shape == picture(0).shape
    stopped.append(True)
    assert list(frames) == [] and video.is_left


@pytest.mark.parametrize("error", [VideoError, ValueError])
def test_a_fault_of_the_source_comes_after_the_frames_before_it(error):
    def images():
        yield picture(0)
        raise error("broke off")

    frames = live(True, images()).frames(lambda: False)
    assert next(frames) is not None
    with pytest.raises(error, match="broke off"):
        next(frames)


def test_a_source_that_breaks_off_leaves_the_results_of_the_frames_before(
    checkpoint, tmp_path, monkeypatch, capsys
):
    clip = write_y4m(tmp_path / "rtsp_clip.y4m", 6)  # a file, whatever its name begins with
    decode = live_module._decoded

    def breaking(*arguments):
        yield from islice(decode(*arguments), 4)
        raise VideoError("rtsp_clip.y4m: broke off")

    monkeypatch.setattr(live_module, "_decoded", breaking)
    with pytest.raises(VideoError, match="broke off"):
        run_evaluation(monkeypatch, *flags(checkpoint, clip, tmp_path), "--stream")
    images = decoded(clip)[:4]
    check(tmp_path, list(segment_stream(load(checkpoint, "cpu"), images, flow="dis")))
    assert "4 frames, " in capsys.readouterr().out


def test_numbers_addresses_and_pipes_are_live_and_files_are_not(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert all(map(is_live, ("0", "12", "rtsp://host/stream", "-")))
    os.mkfifo("pipe")
    assert is_live("pipe")
    Path("0").mkdir()
    Path("clip.mp4").touch()
    assert not any(map(is_live, ("0", "clip.mp4", "missing.mp4")))
    assert is_live("/dev/null")  # a character device is a camera
    assert live_module._address("/dev/null") == ("/dev/null", {"format": "v4l2"}, False)
    assert live_module._address("clip.mp4")[2] and not live_module._address("RTSP://a/b")[2]
    assert live_module._address("file:///clip.mp4")[2]


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("77", "there is no camera /dev/video77"),
        ("rtsp://127.0.0.1:1/stream", "FFmpeg cannot open it"),
        ("missing.mp4", "FFmpeg cannot open it"),
        (str(ROOT / "docs"), "is a folder; --stream takes a video file"),
    ],
)
def test_a_source_that_is_not_there_is_named(source, message):
    with pytest.raises(VideoError, match=message), open_live(source):
        pass


def test_networks_that_need_the_whole_video_are_refused(tiny_settings, clip, tmp_path, monkeypatch):
    small = tiny_settings.replace(model="ssl_uvos", backbone="vit_tiny_patch16_224")
    path = save_small(tmp_path / "x.pt", small, "ssl_uvos", None)
    arguments = ("--checkpoint", path, "--video", clip, "--output", tmp_path / "out")
    with pytest.raises(VideoError, match="needs the whole video before its first result"):
        run_evaluation(monkeypatch, *map(str, arguments), "--gpu", "", "--stream")
    assert not (tmp_path / "out").exists()


def test_damaged_packets_are_left_out_and_counted(checkpoint, tmp_path, monkeypatch, capsys):
    path = tmp_path / "clip.mov"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("png", rate=25)
        stream.height, stream.width, _ = picture(0).shape
        stream.pix_fmt = "rgb24"
        packets = []
        for number in range(6):
            frame = av.VideoFrame.from_ndarray(picture(number), format="rgb24")
            packets += stream.encode(frame)
        packets += stream.encode()
        damaged = bytes(packets[2])
        container.mux(packets)
    content = path.read_bytes()
    assert content.count(damaged) == 1
    path.write_bytes(content.replace(damaged, bytes(len(damaged))))
    run_evaluation(monkeypatch, *flags(checkpoint, path, tmp_path / "out"), "--stream")
    assert "damaged packets left out: 1\n" in capsys.readouterr().out
    assert len(list((tmp_path / "out/masks").iterdir())) == 5


def test_a_pipe_has_the_rate_that_its_source_states(tmp_path):
    path = write_clip(tmp_path / "clip.nut", COUNT, rate=15)
    os.mkfifo(tmp_path / "pipe")
    writer = threading.Thread(target=lambda: (tmp_path / "pipe").write_bytes(path.read_bytes()))
    writer.start()
    with open_live(str(tmp_path / "pipe")) as video:
        assert video.rate == 15
        assert len(list(video.frames(lambda: False))) == COUNT
    writer.join()


def test_a_source_that_states_no_rate_has_25_frames_a_second(tmp_path):
    """A live WebM whose times are irregular: FFmpeg then takes the unit of the times."""
    base, times = Fraction(1, 1000), np.cumsum([17, 40, 33, 21, 52, 30, 44, 18, 29, 35])
    path = tmp_path / "clip.webm"
    with av.open(str(path), "w", options={"live": "1"}) as container:
        stream = container.add_stream("libvpx", rate=1000)
        stream.height, stream.width, _ = picture(0).shape
        stream.pix_fmt, stream.codec_context.time_base = "yuv420p", base
        for number, moment in enumerate(times):
            frame = av.VideoFrame.from_ndarray(picture(number), format="rgb24")
            frame.pts, frame.time_base = int(moment), base
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    content = bytearray(path.read_bytes())
    place = content.index(b"\x23\xe3\x83")  # the element DefaultDuration; it becomes a void one
    content[place : place + 2] = bytes([0xEC, 0x80 | (content[place + 3] & 0x7F) + 2])
    path.write_bytes(content)
    os.mkfifo(tmp_path / "pipe")
    writer = threading.Thread(target=lambda: (tmp_path / "pipe").write_bytes(content))
    writer.start()
    with open_live(str(tmp_path / "pipe")) as video:
        assert video.rate == 25
        assert len(list(video.frames(lambda: False))) == len(times)
    writer.join()
