"""From a clip to masks and an overlay: what is written, when, and what is left after an error."""

import csv
import os
import shutil
import struct
import subprocess
import sys
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

import config
from datasets.clips import VideoError
from datasets.flow.colour_wheel import flow_to_picture
from datasets.flow.estimators import build_estimator
from datasets.samples import show
from models.interface import REFERENCES, Needs, Network, Prediction
from models.two_streams import uniform_references
from utils.evaluation.segmenting import Segmenter
from utils.evaluation.video import print_certainty, write_video
from utils.reports.pictures import OVERLAY_COLOUR
from utils.settings import load_settings

SIZE = 64
DEFAULTS = load_settings(config)
HEIGHT, WIDTH = 48, 80
RESULTS = "masks", "overlay.mp4", "masked.csv"


class Bright(Network):
    """Takes what is bright for the object, notes what it was given, and may fail at a batch."""

    needs = Needs(REFERENCES, flow=True)

    def __init__(self, fail_at=None, error=None, num_references=3):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1))
        self.fail_at, self.error = fail_at, error
        self.num_references = num_references
        self.references, self.images, self.flows = [], [], []

    def segment_video(self, video):
        frames = video.at(uniform_references(len(video), self.num_references))
        self.references.append((frames["image"].clone(), frames["flow"].clone()))
        for batch in video:
            if len(self.images) == self.fail_at:
                raise self.error
            self.note(batch)
            yield Prediction([20 * (batch["image"].float().mean(dim=1, keepdim=True) / 255 - 0.5)])

    def note(self, batch):
        self.images.append(batch["image"].clone())
        self.flows.append(batch["flow"].clone())


def difference(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """A flow that tells which two frames it is of, and in which order."""
    red, green = (second[..., c].astype(np.float32) - first[..., c] / 2 for c in (0, 1))
    return np.stack([red, green - 60], axis=-1)


def picture(number: int, height: int = HEIGHT, width: int = WIDTH) -> np.ndarray:
    """A bright square that moves over darkness, a little left of the middle and above it."""
    image = np.full((height, width, 3), (10, 30, 50), np.uint8)
    image[truth(number, height, width)] = 240
    return image


def truth(number: int, height: int = HEIGHT, width: int = WIDTH) -> np.ndarray:
    mask = np.zeros((height, width), bool)
    mask[6:24, 8 + number % 24 : 32 + number % 24] = True
    return mask


def write_clip(path, count=10, *, size=(HEIGHT, WIDTH), rate=25, times=None, time_base=None, **kw):
    with av.open(str(path), "w", **kw) as container:
        stream = container.add_stream("libx264", rate=rate)
        stream.height, stream.width = size
        stream.pix_fmt = "yuv444p"
        stream.options = {"bf": "0", "crf": "4", "preset": "ultrafast"}
        if time_base is not None:
            stream.codec_context.time_base = stream.time_base = time_base
        for number in range(count):
            frame = av.VideoFrame.from_ndarray(picture(number, *size), format="rgb24")
            if times is not None:
                frame.pts, frame.time_base = times[number], time_base
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path


def turn_clockwise(path):
    """Give an MP4 the display matrix of a phone held upright."""
    content = bytearray(path.read_bytes())
    start = content.index(b"tkhd") + 44
    one = 1 << 16
    content[start : start + 36] = struct.pack(">9i", 0, one, 0, -one, 0, 0, 0, 0, 1 << 30)
    path.write_bytes(content)
    return path


def decoded(path) -> list[np.ndarray]:
    with av.open(str(path)) as container:
        return [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]


def masks_of(output) -> dict[str, np.ndarray]:
    masks = {path.stem: np.asarray(Image.open(path)) for path in sorted(output.glob("masks/*"))}
    for mask in masks.values():
        assert mask.dtype == np.uint8 and set(np.unique(mask)) <= {0, 255}
    return {name: mask > 0 for name, mask in masks.items()}


def overlap(a: np.ndarray, b: np.ndarray) -> float:
    assert a.shape == b.shape
    return (a & b).sum() / (a | b).sum()


def run(source, output, model=None, *, estimator=difference, views=None, **settings):
    segmenter = Segmenter(model or Bright(), SIZE, **(views or {}))
    return write_video(segmenter, source, output, DEFAULTS.replace(**settings), estimator)


def files_in(folder) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in Path(folder).rglob("*"))


def test_a_file_gives_masks_and_an_overlay_that_browsers_play(tmp_path):
    rate = Fraction(30000, 1001)
    count, speed = run(write_clip(tmp_path / "clip.mp4", rate=rate), tmp_path / "a/b")
    assert count == 10 and speed > 0
    overlay = tmp_path / "a/b/overlay.mp4"
    assert {path.name for path in overlay.parent.iterdir()} == {*RESULTS}
    masks = masks_of(tmp_path / "a/b")
    assert list(masks) == [f"{number:05d}" for number in range(10)]
    for number, mask in enumerate(masks.values()):
        assert overlap(mask, truth(number)) > 0.9
    content = overlay.read_bytes()
    assert content.index(b"moov") < content.index(b"mdat")
    with av.open(str(overlay)) as container:
        (stream,) = container.streams
        codec = stream.codec_context
        assert (codec.name, codec.pix_fmt, codec.profile) == ("h264", "yuv420p", "High")
        assert (stream.height, stream.width) == (HEIGHT, WIDTH)
        assert stream.average_rate == rate and stream.frames == 10
        assert stream.duration * stream.time_base == 10 / rate
        assert (codec.color_range, codec.colorspace, codec.color_primaries) == (1, 1, 1)
    for number, (frame, mask) in enumerate(zip(decoded(overlay), masks.values())):
        inside = np.zeros_like(mask)
        inside[2:-2, 2:-2] = np.logical_and.reduce(
            [np.roll(mask, shift, (0, 1)) for shift in ((4, 0), (-4, 0), (0, 4), (0, -4))]
        )[2:-2, 2:-2]
        tinted = (np.array(OVERLAY_COLOUR) + 240) / 2
        assert np.abs(frame[inside] - tinted).mean() < 8
        outside = ~truth(number) & ~mask
        outside[1:-1, 1:-1] &= ~(
            mask[:-2, 1:-1] | mask[2:, 1:-1] | mask[1:-1, :-2] | mask[1:-1, 2:]
        )
        assert np.abs(frame[outside].astype(int) - (10, 30, 50)).mean() < 8


def test_a_rotated_source_comes_out_upright(tmp_path):
    run(turn_clockwise(write_clip(tmp_path / "clip.mp4")), tmp_path)
    for number, mask in enumerate(masks_of(tmp_path).values()):
        assert overlap(mask, np.rot90(truth(number), -1)) > 0.9
    with av.open(str(tmp_path / "overlay.mp4")) as container:
        frame = next(container.decode(video=0))
        assert (frame.height, frame.width, frame.rotation) == (WIDTH, HEIGHT, 0)


def test_a_clip_of_variable_rate_gives_a_film_of_the_same_length(tmp_path):
    times = [0, 33, 100, 110, 205, 500, 533, 900]
    source = tmp_path / "clip.mkv"
    write_clip(source, len(times), times=times, time_base=Fraction(1, 1000))
    run(source, tmp_path)
    with av.open(str(tmp_path / "overlay.mp4")) as container:
        shown = [float(frame.pts * frame.time_base) for frame in container.decode(video=0)]
    assert shown == pytest.approx(np.linspace(0, 0.9, 8).tolist(), abs=1e-3)


@pytest.mark.parametrize("size", [(47, 80), (48, 79), (47, 79)])
def test_odd_sizes_are_kept_in_masks_and_made_even_in_the_overlay(tmp_path, size):
    run(write_clip(tmp_path / "clip.mp4", 3, size=size), tmp_path)
    for number, mask in enumerate(masks_of(tmp_path).values()):
        assert overlap(mask, truth(number, *size)) > 0.9
    frame = decoded(tmp_path / "overlay.mp4")[0]
    assert frame.shape[:2] == (48, 80)
    assert np.abs(frame[-1, -1].astype(int) - (10, 30, 50)).max() < 10


def test_the_shape_of_pixels_is_kept(tmp_path):
    source = tmp_path / "clip.mp4"
    with av.open(str(source), "w") as container:
        stream = container.add_stream("libx264", rate=25)
        stream.height, stream.width, stream.pix_fmt = HEIGHT, WIDTH, "yuv420p"
        stream.codec_context.sample_aspect_ratio = Fraction(16, 11)
        for number in range(3):
            frame = av.VideoFrame.from_ndarray(picture(number), format="rgb24")
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    run(source, tmp_path)
    with av.open(str(tmp_path / "overlay.mp4")) as container:
        assert container.streams.video[0].sample_aspect_ratio == Fraction(16, 11)


def test_a_folder_keeps_its_names_and_has_the_rate_that_is_given(tmp_path):
    frames = tmp_path / "frames"
    frames.mkdir()
    names = ["bear_8", "bear_9", "bear_10", "bear_11"]
    for number, name in enumerate(names):
        Image.fromarray(picture(number)).save(frames / f"{name}.png")
    run(frames, tmp_path / "out", frame_rate=12.5)
    masks = masks_of(tmp_path / "out")
    assert sorted(masks) == sorted(names)
    for number, name in enumerate(names):
        assert overlap(masks[name], truth(number)) > 0.9
    with av.open(str(tmp_path / "out/overlay.mp4")) as container:
        assert container.streams.video[0].average_rate == Fraction(25, 2)


def shown(frames, position, view) -> dict[str, torch.Tensor]:
    """A frame as the network must see it, with flow to the next, or minus that to the previous."""
    if position + 1 < len(frames):
        flow = difference(frames[position], frames[position + 1])
    else:
        flow = -difference(frames[position], frames[position - 1])
    return show(frames[position], flow_to_picture(flow), view)


@pytest.mark.parametrize("count", [2, 7, 8])
@pytest.mark.parametrize("flip", [False, True])
def test_the_network_sees_every_frame_with_its_flow_and_references_of_the_whole_clip(
    tmp_path, count, flip
):
    source = write_clip(tmp_path / "clip.mp4", count)
    frames = decoded(source)
    model = Bright()
    run(source, tmp_path, model, views={"flip": flip})
    views = Segmenter(model, SIZE, flip=flip).views
    assert len(model.references) == len(views)
    for number, view in enumerate(views):
        expected = [shown(frames, position, view) for position in range(count)]
        for name, given in (("image", model.images), ("flow", model.flows)):
            everything = torch.stack([one[name] for one in expected])
            assert torch.equal(torch.cat(given[number :: len(views)]), everything)
        chosen = [expected[position] for position in uniform_references(count, 3)]
        for name, given in zip(("image", "flow"), model.references[number]):
            assert torch.equal(given, torch.stack([one[name] for one in chosen]))
    batches = [len(images) for images in model.images[:: len(views)]]
    assert batches == {2: [2], 7: [4, 3], 8: [4, 4]}[count]


def test_a_constant_clip_without_an_object_gives_empty_masks_and_a_film(tmp_path):
    frames = tmp_path / "frames"
    frames.mkdir()
    for number in range(5):
        Image.new("RGB", (WIDTH, HEIGHT), (10, 30, 50)).save(frames / f"{number}.png")
    run(frames, tmp_path / "out", estimator=build_estimator("dis"))
    masks = masks_of(tmp_path / "out")
    assert len(masks) == 5 and not any(mask.any() for mask in masks.values())
    film = decoded(tmp_path / "out/overlay.mp4")
    assert len(film) == 5
    assert all(np.abs(picture.astype(int) - (10, 30, 50)).max() < 8 for picture in film)


def test_a_table_tells_how_much_is_masked_and_how_sure_the_network_is(tmp_path, capsys):
    """Three frames have an object; the others are dark, at a probability below one half."""
    (tmp_path / "frames").mkdir()
    for number in range(5):
        image = picture(number) if number < 3 else np.full((HEIGHT, WIDTH, 3), 90, np.uint8)
        Image.fromarray(image).save(tmp_path / f"frames/a,{number}.png")
    run(tmp_path / "frames", tmp_path / "out")
    with (tmp_path / "out/masked.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    masks = masks_of(tmp_path / "out")
    assert [row["frame"] for row in rows] == list(masks)
    for row, mask in zip(rows, masks.values()):
        assert float(row["masked_share"]) == pytest.approx(mask.mean(), rel=1e-5)
    assert all(float(row["highest_probability"]) > 0.99 for row in rows[:3])
    dark = 1 / (1 + np.exp(-20 * (90 / 255 - 0.5)))
    assert [float(row["highest_probability"]) for row in rows[3:]] == pytest.approx(
        [dark] * 2, rel=1e-4
    )
    print_certainty(tmp_path / "out")
    assert (
        f"frames without a mask: 2; their highest probability is {dark:.2f} on"
        in capsys.readouterr().out
    )


def test_threshold_and_stretching_are_those_of_masks(tmp_path):
    source = write_clip(tmp_path / "clip.mp4", 2)
    run(source, tmp_path, threshold=1.0)
    assert not any(mask.any() for mask in masks_of(tmp_path).values())
    run(source, tmp_path, threshold=0.0)
    assert all(mask.all() for mask in masks_of(tmp_path).values())
    run(source, tmp_path, threshold=0.0, stretch_masks=True)
    assert not any(mask.all() for mask in masks_of(tmp_path).values())


@pytest.mark.parametrize("batch", [0, 2])
@pytest.mark.parametrize("error", [RuntimeError("lost"), KeyboardInterrupt()])
def test_an_error_in_the_middle_leaves_nothing_behind(tmp_path, error, batch):
    source = write_clip(tmp_path / "clip.mp4", 20)
    files = len(os.listdir("/proc/self/fd"))
    with pytest.raises(type(error)):
        run(source, tmp_path / "out", Bright(batch, error))
    assert files_in(tmp_path / "out") == []
    assert len(os.listdir("/proc/self/fd")) == files


def test_an_error_in_the_flow_is_raised_and_leaves_nothing_behind(tmp_path):
    calls = []

    def broken(first, second):
        calls.append(1)
        if len(calls) == 9:
            raise RuntimeError("no flow")
        return difference(first, second)

    with pytest.raises(RuntimeError, match="no flow"):
        run(write_clip(tmp_path / "clip.mp4", 20), tmp_path / "out", estimator=broken)
    assert files_in(tmp_path / "out") == []


def test_earlier_results_stay_until_new_ones_are_whole(tmp_path):
    source, output = write_clip(tmp_path / "clip.mp4", 12), tmp_path / "out"
    run(source, output)
    before = {name: (output / name).read_bytes() for name in files_in(output) if "." in name}
    (output / "scores.csv").write_text("of something else")
    with pytest.raises(RuntimeError):
        run(source, output, Bright(1, RuntimeError()))
    with pytest.raises(VideoError):
        run(tmp_path / "missing.mp4", output)
    assert all((output / name).read_bytes() == content for name, content in before.items())
    assert len(files_in(output)) == len(before) + 2
    run(write_clip(tmp_path / "short.mp4", 5), output)
    assert len(masks_of(output)) == len(decoded(output / "overlay.mp4")) == 5
    assert sorted(path.name for path in output.iterdir()) == sorted([*RESULTS, "scores.csv"])


def test_what_a_killed_run_has_left_is_cleared(tmp_path):
    for name in (".partial/masks", "notes"):
        (tmp_path / "out" / name).mkdir(parents=True)
    run(write_clip(tmp_path / "clip.mp4", 3), tmp_path / "out")
    assert {p.name for p in (tmp_path / "out").iterdir()} == {*RESULTS, "notes"}


def test_after_a_kill_only_results_that_were_being_replaced_are_taken_for_its_own(
    tmp_path, monkeypatch
):
    source, output = write_clip(tmp_path / "clip.mp4", 3), tmp_path / "out"
    (output / "masks").mkdir(parents=True)
    (output / "masks/mine.png").write_text("mine")
    (output / ".partial").mkdir()
    with pytest.raises(VideoError, match="masks is not an earlier video's result"):
        run(source, output)
    assert (output / "masks/mine.png").read_text() == "mine"
    shutil.rmtree(output)

    killed, replace = tmp_path / "killed", Path.replace

    def keep_a_copy(path, target):
        if target == output / "masks":  # the last that is moved
            shutil.copytree(output, killed)
        return replace(path, target)

    run(source, output)
    monkeypatch.setattr(Path, "replace", keep_a_copy)
    run(source, output)
    assert sorted(p.name for p in killed.iterdir()) == [".partial", "masked.csv", "overlay.mp4"]
    run(source, killed)
    assert sorted(p.name for p in killed.iterdir()) == sorted(RESULTS)


def test_results_that_cannot_be_written_are_a_clear_error(tmp_path, monkeypatch):
    source = write_clip(tmp_path / "clip.mp4", 3)

    def full(path, labels, num_objects):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("utils.evaluation.video.write_mask", full)
    with pytest.raises(VideoError, match=r"out: the results could not be written.*No space"):
        run(source, tmp_path / "out")
    assert files_in(tmp_path / "out") == []


def test_results_never_replace_the_source_or_files_of_others(tmp_path):
    for name in ("masks", "set/masks/bear"):
        (tmp_path / name).mkdir(parents=True)
        for number in range(2):
            Image.fromarray(picture(number)).save(tmp_path / name / f"{number}.png")
    (tmp_path / "film").mkdir()
    for name in ("overlay.mp4", "film/overlay.mp4", "clip.mp4"):
        write_clip(tmp_path / name, 3)
    before = files_in(tmp_path)
    for source in ("overlay.mp4", "masks", "masks/0.png"):
        with pytest.raises(VideoError, match="would be replaced"):
            run(tmp_path / source, tmp_path)
    for output, foreign in (("set", "masks"), ("film", r"overlay\.mp4")):
        with pytest.raises(VideoError, match=f"{output}/{foreign} is not an earlier video's"):
            run(tmp_path / "clip.mp4", tmp_path / output)
    assert files_in(tmp_path) == before


MEMORY = """
import resource, sys
from pathlib import Path
import numpy as np, torch
from test_video import DEFAULTS, Bright, Segmenter, write_video
torch.set_num_threads(1)

class Forgetful(Bright):
    def note(self, batch):
        pass

def still(first, second):
    return np.zeros((*first.shape[:2], 2), np.float32)

for clip in map(Path, sys.argv[1:]):
    write_video(Segmenter(Forgetful(), 32), clip, clip.with_suffix(""), DEFAULTS, still)
    print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)
"""


def test_memory_does_not_grow_with_the_clip(tmp_path):
    # 450 frames more are 104 MB as RGB and 52 MB as YUV; the process has some 850.
    clips = [write_clip(tmp_path / f"{n}.mp4", n, size=(240, 320)) for n in (50, 500)]
    folders = [str(Path(__file__).parents[up]) for up in (0, 3)]
    done = subprocess.run(
        [sys.executable, "-c", MEMORY, *map(str, clips)],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(folders)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    few, many = map(float, done.stdout.split())
    print(f"peak memory: {few:.0f} MB at 50 frames, {many:.0f} MB at 500")
    assert many < min(1.1 * few, few + 40)


def test_a_playlist_is_no_video_and_shows_no_other_file(tmp_path):
    with av.open(str(tmp_path / "other.ts"), "w", format="mpegts") as film:
        stream = film.add_stream("libx264", rate=10)
        stream.height, stream.width, stream.pix_fmt = HEIGHT, WIDTH, "yuv420p"
        for number in range(20):
            film.mux(stream.encode(av.VideoFrame.from_ndarray(picture(number), format="rgb24")))
        film.mux(stream.encode())
    head = "#EXTM3U\n#EXT-X-TARGETDURATION:2\n#EXTINF:2,\n"
    (tmp_path / "list.m3u8").write_text(f"{head}{tmp_path / 'other.ts'}\n#EXT-X-ENDLIST\n")
    with pytest.raises(VideoError, match="no video"):
        run(tmp_path / "list.m3u8", tmp_path / "out")
