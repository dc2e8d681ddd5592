"""Clips: files that FFmpeg reads and folders, their times, their orientation, what is wrong."""

import os
import struct
import wave
from fractions import Fraction

import av
import numpy as np
import pytest
from PIL import Image

from datasets.clips import VideoError, check_clip
from errors import UserError

HEIGHT, WIDTH = 48, 64


def picture(number: int, height: int = HEIGHT, width: int = WIDTH) -> np.ndarray:
    """A dark slope with a bright square that moves, and noise so that packets are not tiny."""
    image = np.zeros((height, width, 3), np.uint8)
    image[..., 2] = np.linspace(0, 90, height).astype(np.uint8)[:, None]
    image += np.random.default_rng(number).integers(0, 30, (height, width, 1), dtype=np.uint8)
    image[8:24, 4 + number % 24 : 20 + number % 24] = (250, 240, 200)
    return image


def write_clip(
    path,
    count=12,
    *,
    size=(HEIGHT, WIDTH),
    rate=25,
    codec="libx264",
    pix_fmt="yuv420p",
    times=None,
    time_base=None,
    aspect=None,
    container_options=None,
    container_format=None,
    **options,
):
    """A clip of ``count`` pictures; ``times`` in units of ``time_base`` for a variable rate."""
    options_of_it = container_options or {}
    with av.open(str(path), "w", format=container_format, options=options_of_it) as container:
        stream = container.add_stream(codec, rate=rate)
        stream.height, stream.width = size
        stream.pix_fmt = pix_fmt
        stream.options = {name: str(value) for name, value in options.items()}
        if codec == "libx264":
            stream.options = {"bf": "0", "crf": "10", "g": "6", **stream.options}
        if time_base is not None:
            stream.codec_context.time_base = stream.time_base = time_base
        if aspect is not None:
            stream.codec_context.sample_aspect_ratio = aspect
        for number in range(count):
            frame = av.VideoFrame.from_ndarray(picture(number, *size), format="rgb24")
            if times is not None:
                frame.pts, frame.time_base = times[number], time_base
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path


def decoded(path) -> list[np.ndarray]:
    with av.open(str(path)) as container:
        return [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]


def turn(path, a, b, c, d):
    """Give an MP4 the display matrix ((a, b), (c, d)), as phones do."""
    content = bytearray(path.read_bytes())
    start = content.index(b"tkhd") + 44
    assert struct.unpack(">9i", content[start : start + 36])[::4] == (1 << 16, 1 << 16, 1 << 30)
    matrix = (a << 16, b << 16, 0, c << 16, d << 16, 0, 0, 0, 1 << 30)
    content[start : start + 36] = struct.pack(">9i", *matrix)
    path.write_bytes(content)
    return path


def cut(path, part: float):
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * part)])
    return path


def open_files() -> int:
    return len(os.listdir("/proc/self/fd"))


@pytest.mark.parametrize("rate", [Fraction(25), Fraction(30000, 1001)])
@pytest.mark.parametrize("suffix", ["mp4", "mkv", "ts"])
def test_a_file_of_constant_rate_has_exactly_that_rate_and_all_frames(tmp_path, rate, suffix):
    path = write_clip(tmp_path / f"clip.{suffix}", 40, rate=rate)
    clip = check_clip(path)
    assert (clip.count, clip.size, clip.aspect) == (40, (HEIGHT, WIDTH), 1)
    assert clip.rate == rate
    frames = list(clip.frames())
    assert [frame.name for frame in frames] == [f"{i:05d}" for i in range(40)]
    for frame, expected in zip(frames, decoded(path)):
        np.testing.assert_array_equal(frame.image, expected)
        assert np.abs(frame.image.astype(int) - picture(int(frame.name))).mean() < 6


@pytest.mark.parametrize(
    ("suffix", "codec", "pix_fmt"),
    [
        ("gif", "gif", "rgb8"),
        ("webm", "libvpx-vp9", "yuva420p"),
        ("avi", "mjpeg", "yuvj420p"),
        ("mkv", "ffv1", "yuv420p10le"),
    ],
)
def test_other_formats_are_read_too_without_alpha_and_in_8_bits(tmp_path, suffix, codec, pix_fmt):
    path = write_clip(tmp_path / f"clip.{suffix}", 6, codec=codec, pix_fmt=pix_fmt)
    clip = check_clip(path)
    assert (clip.count, clip.rate) == (6, 25)
    for number, frame in enumerate(clip.frames()):
        assert frame.image.dtype == np.uint8 and frame.image.shape == (HEIGHT, WIDTH, 3)
        assert np.abs(frame.image.astype(int) - picture(number)).mean() < 20


@pytest.mark.parametrize(("matrix", "number"), [("ITU709", 1), ("ITU601", 6)])
@pytest.mark.parametrize(("limits", "full"), [("MPEG", 1), ("JPEG", 2)])
def test_colours_are_those_that_the_file_says(tmp_path, matrix, number, limits, full):
    image = np.full((HEIGHT, WIDTH, 3), (247, 120, 184), np.uint8)
    with av.open(str(tmp_path / "clip.mp4"), "w") as container:
        stream = container.add_stream("libx264", rate=25)
        stream.height, stream.width, stream.pix_fmt = HEIGHT, WIDTH, "yuv420p"
        stream.codec_context.colorspace, stream.codec_context.color_range = number, full
        for _ in range(2):
            frame = av.VideoFrame.from_ndarray(image, format="rgb24").reformat(
                format="yuv420p", dst_colorspace=matrix, dst_color_range=limits
            )
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    for frame in check_clip(tmp_path / "clip.mp4").frames():
        assert np.abs(frame.image.astype(int) - image).max() <= 4


def test_a_variable_rate_counts_as_its_mean(tmp_path):
    times = [7, 40, 100, 110, 205, 500]
    path = write_clip(tmp_path / "clip.mkv", len(times), times=times, time_base=Fraction(1, 1000))
    clip = check_clip(path)
    assert clip.count == len(list(clip.frames())) == 6
    assert clip.rate == pytest.approx(5 / 0.493, rel=1e-3)


def test_a_stream_without_times_has_the_rate_that_it_states(tmp_path):
    clip = check_clip(write_clip(tmp_path / "clip.h264", rate=30))
    assert (clip.count, clip.rate) == (12, 30)


@pytest.mark.parametrize(
    ("matrix", "upright"),
    [
        ((1, 0, 0, 1), lambda image: image),
        ((0, 1, -1, 0), lambda image: np.rot90(image, -1)),
        ((-1, 0, 0, -1), lambda image: np.rot90(image, 2)),
        ((0, -1, 1, 0), lambda image: np.rot90(image)),
    ],
)
def test_frames_are_upright_however_the_phone_was_held(tmp_path, matrix, upright):
    path = turn(write_clip(tmp_path / "clip.mp4", 3, aspect=Fraction(4, 3)), *matrix)
    clip = check_clip(path)
    turned = matrix[0] == 0
    assert clip.size == ((WIDTH, HEIGHT) if turned else (HEIGHT, WIDTH))
    assert clip.aspect == (Fraction(3, 4) if turned else Fraction(4, 3))
    for frame, stored in zip(clip.frames(), decoded(path), strict=True):
        np.testing.assert_array_equal(frame.image, upright(stored))
        assert frame.image.flags.c_contiguous


@pytest.mark.parametrize("orientation", [1, 3, 6, 8])
def test_frames_with_exif_are_upright_too(tmp_path, orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = tmp_path / "clip.mjpeg"
    with path.open("wb") as file:
        for number in range(3):
            Image.fromarray(picture(number)).save(file, "JPEG", exif=exif)
    turns = {1: 0, 3: 2, 6: -1, 8: 1}[orientation]
    for number, frame in enumerate(check_clip(path).frames()):
        assert np.abs(frame.image.astype(int) - np.rot90(picture(number), turns)).mean() < 9


FAST = {"container_options": {"movflags": "+faststart"}}
FRAGMENTS = {"container_options": {"movflags": "+frag_keyframe+empty_moov"}}
Y4M = {"codec": "wrapped_avframe", "container_format": "yuv4mpegpipe"}


@pytest.mark.parametrize(
    ("suffix", "options"),
    [
        ("mkv", {}),
        ("webm", {"codec": "libvpx"}),
        ("webm", {"codec": "libvpx-vp9", "container_options": {"live": "1"}}),
        ("ts", {}),
        ("m2ts", {}),
        ("gif", {"codec": "gif", "pix_fmt": "rgb8"}),
        ("y4m", Y4M),
        ("y4m", {"pix_fmt": "gray", "size": (HEIGHT - 1, WIDTH - 1), **Y4M}),
        ("ogv", {"codec": "libvpx", "container_format": "ogg"}),
        ("wmv", {"codec": "wmv2", "container_format": "asf"}),
    ],
)
def test_a_file_that_is_cut_off_anywhere_is_found_out(tmp_path, suffix, options):
    path = write_clip(tmp_path / f"clip.{suffix}", 40, **options)
    assert check_clip(path).count == 40
    whole = path.read_bytes()
    for end in (len(whole) * 7 // 10, len(whole) * 9 // 10 + 1, -101, -7, -1):
        path.write_bytes(whole[:end])
        with pytest.raises(VideoError, match=r"clip\.\w+: cut off, its end.*whole copy.*ffmpeg -i"):
            check_clip(path)


@pytest.mark.parametrize(
    ("suffix", "options"),
    [
        ("mp4", FAST),
        ("mp4", FRAGMENTS),
        ("mov", {"codec": "prores_ks", "pix_fmt": "yuva444p10le", **FAST}),
        ("avi", {"codec": "mjpeg", "pix_fmt": "yuvj420p"}),
        ("flv", {"codec": "flv"}),
        ("ivf", {"codec": "libvpx"}),
    ],
)
def test_a_file_that_is_cut_off_within_a_frame_is_found_out(tmp_path, suffix, options):
    path = write_clip(tmp_path / f"clip.{suffix}", 40, **options)
    assert check_clip(path).count == 40
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) * 7 // 10])
    with pytest.raises(VideoError, match=r"clip\.\w+: cut off or damaged.*whole copy.*ffmpeg -i"):
        check_clip(path)


@pytest.mark.parametrize(
    "options", [{}, {"bf": 3}, {"codec": "mpeg4"}, {"codec": "mpeg2video"}, {"codec": "libvpx"}]
)
def test_a_clip_that_begins_within_another_begins_with_its_first_keyframe(tmp_path, options):
    source, path = write_clip(tmp_path / "whole.mkv", 24, g=12, **options), tmp_path / "clip.mkv"
    with av.open(str(source)) as whole, av.open(str(path), "w") as container:
        stream = container.add_stream_from_template(whole.streams.video[0])
        packets = list(whole.demux(video=0))[:-1]
        first = min(n for n, packet in enumerate(packets) if packet.is_keyframe and n > 5)
        for packet in packets[5:]:
            packet.stream = stream
            container.mux(packet)
    assert first < 23
    for frame, expected in zip(check_clip(path).frames(), decoded(source)[first:], strict=True):
        np.testing.assert_array_equal(frame.image, expected)


def test_a_raw_stream_that_is_cut_off_within_a_frame_is_found_out(tmp_path):
    path = cut(write_clip(tmp_path / "clip.h264", 40), 0.7)
    with pytest.raises(VideoError, match=r"clip\.h264: cut off or damaged after \d+ frames"):
        check_clip(path)


@pytest.mark.parametrize(
    ("suffix", "options", "more"),
    [
        ("mkv", {}, bytes(100)),
        ("ogv", {"codec": "libvpx", "container_format": "ogg"}, b"\xff" * 100),
        ("gif", {"codec": "gif", "pix_fmt": "rgb8"}, b"\0\r\n"),
        ("gif", {"codec": "gif", "pix_fmt": "rgb8"}, b"made by x"),
        ("gif", {"codec": "gif", "pix_fmt": "rgb8"}, bytes(200)),
    ],
)
def test_data_after_the_end_are_no_fault(tmp_path, suffix, options, more):
    path = write_clip(tmp_path / f"clip.{suffix}", 5, **options)
    path.write_bytes(path.read_bytes() + more)
    assert check_clip(path).count == 5


def test_frames_of_y4m_may_have_parameters(tmp_path):
    path = write_clip(tmp_path / "clip.y4m", 5, **Y4M)
    whole = path.read_bytes().replace(b"FRAME\n", b"FRAME Ip\n")
    path.write_bytes(whole)
    assert check_clip(path).count == 5
    path.write_bytes(whole[:-1])
    with pytest.raises(VideoError, match=r"clip\.y4m: cut off"):
        check_clip(path)


def test_an_mp4_without_its_index_is_found_out(tmp_path):
    path = write_clip(tmp_path / "clip.mp4")
    with pytest.raises(VideoError, match="no video, cut off or damaged"):
        check_clip(cut(path, 0.5))


def test_damage_in_the_middle_is_found_out(tmp_path):
    path = write_clip(tmp_path / "clip.mp4", 40, container_options={"movflags": "+faststart"})
    content = bytearray(path.read_bytes())
    half = len(content) // 2
    content[half : half + 300] = np.random.default_rng(0).bytes(300)
    path.write_bytes(content)
    with pytest.raises(VideoError, match=r"cut off or damaged after \d+ frames"):
        check_clip(path)


def test_a_damaged_first_keyframe_is_found_out(tmp_path):
    path = write_clip(tmp_path / "clip.mp4", container_options={"movflags": "+faststart"})
    content = bytearray(path.read_bytes())
    with av.open(str(path)) as container:
        first = next(container.demux(video=0))
    place = content.index(bytes(first)) + first.size // 2
    content[place : place + 40] = bytes(40)
    path.write_bytes(content)
    with pytest.raises(VideoError, match="cut off or damaged after 0 frames"):
        check_clip(path)


@pytest.mark.parametrize("now", [2, 11, 13])
def test_a_file_that_changes_after_the_check_is_a_clear_error(tmp_path, now):
    clip = check_clip(write_clip(tmp_path / "clip.mp4", 12))
    write_clip(tmp_path / "clip.mp4", now)
    with pytest.raises(VideoError, match=f"12 frames at first, {now} now"):
        list(clip.frames())


def test_what_is_no_clip_is_told_so(tmp_path):
    def message(name: str) -> str:
        with pytest.raises(VideoError) as error:
            check_clip(tmp_path / name)
        assert str(tmp_path / name) in str(error.value)
        return str(error.value)

    for name in ("text.mp4", "text.txt"):
        (tmp_path / name).write_text("This is no video.\n" * 50)
    os.mkfifo(tmp_path / "pipe.mp4")
    (tmp_path / "empty.mp4").touch()
    (tmp_path / "folder/RGB").mkdir(parents=True)
    (tmp_path / "folder/notes.txt").touch()
    with wave.open(str(tmp_path / "sound.wav"), "wb") as sound:
        sound.setparams((1, 2, 8000, 0, "NONE", None))
        sound.writeframes(bytes(16000))
    write_clip(tmp_path / "one.mp4", 1)
    Image.fromarray(picture(0)).save(tmp_path / "one.jpg")
    pictures = [Image.fromarray(picture(number)) for number in range(3)]
    pictures[0].save(tmp_path / "moving.webp", save_all=True, append_images=pictures[1:])
    assert "neither a file nor a folder" in message("missing.mp4")
    assert "neither a file nor a folder" in message("pipe.mp4")
    assert "no video" in message("text.mp4")
    assert "no video stream" in message("text.txt")
    assert "no video" in message("empty.mp4")
    assert "no pictures" in message("folder")
    assert "no video stream that FFmpeg can decode" in message("sound.wav")
    assert "1 frame; a clip needs at least two" in message("one.mp4")
    assert "1 frame;" in message("one.jpg")
    assert "no frame of it can be decoded (webp)" in message("moving.webp")
    assert "convert it" in message("moving.webp")


@pytest.mark.parametrize("name", ["a:b.mp4", "100%d.mp4", "ä ö.mp4", "#?.mp4", "-x.mp4"])
def test_names_may_be_strange(tmp_path, name):
    path = tmp_path / name
    write_clip(tmp_path / "clip.mp4", 3).rename(path)
    clip = check_clip(path)
    assert len(list(clip.frames())) == clip.count == 3


def test_a_frame_size_that_changes_is_told_with_its_frame(tmp_path):
    first = write_clip(tmp_path / "first.h264", 5)
    second = write_clip(tmp_path / "second.h264", 5, size=(HEIGHT, 96))
    both = tmp_path / "both.h264"
    both.write_bytes(first.read_bytes() + second.read_bytes())
    with pytest.raises(VideoError, match="frame 5 is 96 x 48 pixels, those before it 64 x 48"):
        check_clip(both)


def test_frames_are_not_converted_before_they_are_looked_at(tmp_path, monkeypatch):
    clip = check_clip(write_clip(tmp_path / "clip.mp4"))
    calls = []
    monkeypatch.setattr("datasets.clips.upright", lambda *given: calls.append(given) or "image")
    frames = list(clip.frames())
    assert calls == []
    assert frames[3].image == frames[3].image == "image"
    assert len(calls) == 1


def test_files_are_closed_also_when_reading_stops_early(tmp_path):
    path = write_clip(tmp_path / "clip.mp4")
    before = open_files()
    frames = check_clip(path).frames()
    next(frames)
    assert open_files() > before
    frames.close()
    assert open_files() == before


def folder_of(folder, names):
    folder.mkdir()
    for number, name in enumerate(names):
        Image.fromarray(picture(number)).save(folder / name)
    return folder


def test_a_folder_is_read_in_the_order_of_its_numbers(tmp_path):
    names = ["s2_1.png", "s2_2.PNG", "s2_10.png", "s10_1.JPG", "s10_3.jpeg"]
    folder = folder_of(tmp_path / "frames", names)
    (folder / ".hidden.png").write_text("no picture")
    (folder / "notes.txt").write_text("no picture")
    clip = check_clip(folder, 29.97)
    assert (clip.count, clip.size, clip.rate) == (5, (HEIGHT, WIDTH), Fraction(2997, 100))
    frames = list(clip.frames())
    assert [frame.name for frame in frames] == [name.rpartition(".")[0] for name in names]
    for number, frame in enumerate(frames[:3]):
        np.testing.assert_array_equal(frame.image, picture(number))


def test_what_is_wrong_with_a_folder_is_told_with_the_file(tmp_path):
    folder = folder_of(tmp_path / "frames", ["1.png", "2.jpg", "3.png"])
    Image.fromarray(picture(0, 40, 50)).save(folder / "4.png")
    with pytest.raises(VideoError, match=r"4\.png is 50 x 40 pixels, those before it 64 x 48"):
        check_clip(folder)
    cut(folder / "2.jpg", 0.9)
    with pytest.raises(UserError, match=r"2\.jpg: truncated"):
        check_clip(folder)
    (folder / "2.jpg").unlink()
    (folder / "2.jpg").symlink_to("nowhere.jpg")
    with pytest.raises(UserError, match=r"2\.jpg: a link to a file that is not there"):
        check_clip(folder)
    Image.fromarray(picture(1)).save(folder / "2.webp")  # of the name of one that counts
    Image.fromarray(picture(4)).save(folder / "5.WebP", format="WEBP")
    with pytest.raises(VideoError, match=r"1 x picture of another format(.|\n)*5\.WebP"):
        check_clip(folder)
    (folder / "5.WebP").unlink()
    (folder / "1.jpg").write_bytes((folder / "1.png").read_bytes())
    with pytest.raises(VideoError, match=r"same name(.|\n)*1\.png beside 1\.jpg"):
        check_clip(folder)
    with pytest.raises(VideoError, match="1 frame;"):
        check_clip(folder_of(tmp_path / "one", ["1.png"]))


def test_a_picture_that_is_lost_after_the_check_is_a_clear_error(tmp_path):
    folder = folder_of(tmp_path / "frames", ["1.png", "2.png"])
    first, second = check_clip(folder).frames()
    assert first.image.shape == (HEIGHT, WIDTH, 3)
    (folder / "2.png").unlink()
    with pytest.raises(UserError, match=r"2\.png: no such file"):
        second.image  # noqa: B018


def test_times_that_begin_anew_or_are_far_apart_give_a_usable_rate(tmp_path):
    twice = tmp_path / "twice.mpg"
    twice.write_bytes(2 * write_clip(tmp_path / "once.mpg", 20, codec="mpeg2video").read_bytes())
    assert check_clip(twice).rate == 25
    base = Fraction(1, 1000)
    repeated = write_clip(tmp_path / "two.mkv", 4, times=[0, 90, 90, 300], time_base=base)
    assert check_clip(repeated).rate == 10
    slow = write_clip(tmp_path / "slow.mkv", 2, times=[0, 10_000_000], time_base=base)
    assert check_clip(slow).rate == Fraction(1, 1001)


def test_wmv_that_a_pipe_got_is_whole_although_it_states_no_size(tmp_path):
    path = write_clip(tmp_path / "clip.wmv", 6, codec="wmv2", container_format="asf")
    content = bytearray(path.read_bytes())
    size = content.index(bytes.fromhex("3626b2758e66cf11a6d900aa0062ce6c")) + 16
    content[size : size + 8] = (50).to_bytes(8, "little")  # of the data object's own header
    path.write_bytes(content)
    assert check_clip(path).count == 6
