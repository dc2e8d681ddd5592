"""Samples: what is in them, which references they have, and what broken files do."""

import dataclasses
import itertools
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader

from datasets.augmentation import Augmentation, whole_frame
from datasets.flow.colour_wheel import flow_to_picture
from datasets.layout import Frame, VideoFiles, still_images, video_sequences
from datasets.problems import DatasetError
from datasets.samples import (
    StillImages,
    TestFrames,
    VideoFrames,
    VideoWindows,
    random_references,
)
from models.two_streams import uniform_references
from tests.readers import picture_to_flow

SIZE = 32


def write(path: Path, pixels: np.ndarray) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)
    return path


def make_frame(folder: Path, name: str, value: int, size: tuple[int, int] = (SIZE, SIZE)) -> Frame:
    """Files of a frame whose image is ``value`` all over, and its flow map 255 minus that."""
    height, width = size
    mask = np.zeros(size, np.uint8)
    mask[: height // 2] = 255
    return Frame(
        name,
        write(folder / f"RGB/{name}.png", np.full((height, width, 3), value, np.uint8)),
        write(folder / f"GT/{name}.png", mask),
        write(folder / f"FLOW/{name}.png", np.full((height, width, 3), 255 - value, np.uint8)),
    )


def make_sequence(folder: Path, name: str, length: int, first: int = 0) -> VideoFiles:
    """Frames with the values ``first``, ``first`` + 1 and so on."""
    return VideoFiles(
        name, tuple(make_frame(folder, f"{name}_{t}", first + t) for t in range(length))
    )


def values_of(pictures: torch.Tensor) -> list[int]:
    """The values of constant uint8 pictures (..., 3, S, S)."""
    assert pictures.dtype == torch.uint8
    flat = pictures.flatten(-3)
    assert (flat == flat[..., :1]).all()
    return flat[..., 0].tolist()


def shown(frame: Frame, size: int = SIZE) -> dict[str, torch.Tensor]:
    """A frame as it is shown in test."""
    return TestFrames([frame], [whole_frame(size)], flow=frame.flow is not None)[0][0]


def apart(one: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
    """Absolute differences of uint8 pictures, in units of 255."""
    return (one.float() - other.float()).abs() / 255


def as_picture(tensor: torch.Tensor) -> np.ndarray:
    """A uint8 tensor (3, H, W) as a picture (H, W, 3)."""
    return tensor.permute(1, 2, 0).contiguous().numpy()


def equal(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return all(torch.equal(a[name], b[name]) for name in a.keys() | b.keys())


def break_pixels(path: Path) -> None:
    """Damage a PNG so that its header and its end are still right."""
    content = bytearray(path.read_bytes())
    start = content.index(b"IDAT") + 4
    content[start : start + 8] = b"\xff" * 8
    path.write_bytes(content)


def test_video_samples_have_target_labels_and_references_as_bytes(tmp_path):
    first = make_sequence(tmp_path, "a", 5)
    second = make_sequence(tmp_path, "b", 4, first=200)
    dataset = VideoFrames([[first], [second]], SIZE, num_references=3)
    assert len(dataset) == 9
    assert dataset.set_sizes == [5, 4]
    for index in range(9):
        sample = dataset[0, index]
        assert {name: tuple(tensor.shape) for name, tensor in sample.items()} == {
            "image": (3, SIZE, SIZE),
            "flow": (3, SIZE, SIZE),
            "reference_images": (3, 3, SIZE, SIZE),
            "reference_flows": (3, 3, SIZE, SIZE),
            "labels": (SIZE, SIZE),
        }
        assert {tensor.dtype for tensor in sample.values()} == {torch.uint8}
        value = index if index < 5 else 200 + index - 5
        assert (sample["image"] == value).all()
        assert (sample["flow"] == 255 - value).all()
        assert (sample["labels"][: SIZE // 2] == 1).all()
        assert (sample["labels"][SIZE // 2 :] == 0).all()


def test_references_are_different_other_frames_of_the_targets_sequence(tmp_path):
    first = make_sequence(tmp_path, "a", 5)
    second = make_sequence(tmp_path, "b", 4, first=100)
    dataset = VideoFrames([[first, second]], SIZE, num_references=3)
    seen = set()
    for epoch in range(20):
        for index in range(9):
            sample = dataset[epoch, index]
            references = values_of(sample["reference_images"])
            others = set(range(5) if index < 5 else range(100, 104))
            others -= set(values_of(sample["image"].unsqueeze(0)))
            assert set(references) <= others
            assert len(set(references)) == 3
            assert values_of(sample["reference_flows"]) == [255 - value for value in references]
            if index == 0:
                seen.add(tuple(references))
    assert len(seen) > 10


def test_frames_without_a_mask_are_references_and_no_targets(tmp_path):
    whole = make_sequence(tmp_path, "a", 5)
    frames = [
        dataclasses.replace(f, mask=f.mask if i == 3 else None) for i, f in enumerate(whole.frames)
    ]
    dataset = VideoFrames([[VideoFiles("a", tuple(frames))]], SIZE, num_references=3)
    assert dataset.set_sizes == [1] and dataset.name(0) == frames[3].name
    seen = set()
    for epoch in range(10):
        sample = dataset[epoch, 0]
        assert (sample["image"] == 3).all()
        seen.update(values_of(sample["reference_images"]))
    assert seen == {0, 1, 2, 4}


def test_sequences_with_too_few_frames_repeat_references(tmp_path):
    two = make_sequence(tmp_path, "two", 2)
    one = make_sequence(tmp_path, "one", 1, first=50)
    dataset = VideoFrames([[two, one]], SIZE, num_references=3)
    assert [values_of(dataset[0, index]["reference_images"]) for index in range(3)] == [
        [1, 1, 1],
        [0, 0, 0],
        [50, 50, 50],
    ]


def test_every_other_frame_is_drawn_equally_often():
    rng = np.random.default_rng(0)
    draws = np.array([random_references(6, 2, 3, rng) for _ in range(1000)])
    counts = np.bincount(draws.ravel(), minlength=6)
    assert counts[2] == 0
    assert np.abs(np.delete(counts, 2) / 1000 - 3 / 5).max() < 0.06
    with_repeats = [random_references(3, 0, 4, rng) for _ in range(50)]
    assert {len(draw) for draw in with_repeats} == {4}
    assert set(np.ravel(with_repeats)) == {1, 2}


@pytest.mark.parametrize(
    "length, count, expected",
    [
        (10, 3, [1, 5, 8]),
        (9, 3, [1, 4, 7]),
        (3, 3, [0, 1, 2]),
        (7, 1, [3]),
        (100, 4, [12, 37, 62, 87]),
        (1, 3, [0, 0, 0]),
        (2, 3, [0, 1, 1]),
    ],
)
def test_uniform_references_are_the_middles_of_equal_parts(length, count, expected):
    assert uniform_references(length, count) == expected


def test_uniform_references_are_in_order_evenly_apart_and_symmetric():
    for length in range(1, 60):
        for count in range(1, min(length, 8) + 1):
            chosen = uniform_references(length, count)
            assert len(chosen) == count
            gaps = np.diff(chosen)
            assert len(gaps) == 0 or (gaps.min() >= 1 and gaps.max() - gaps.min() <= 1)
            assert abs(chosen[0] - (length - 1 - chosen[-1])) <= 1
            assert chosen[0] >= 0


def test_the_same_seed_epoch_and_index_give_the_same_sample_and_others_another(tiny_root):
    frames = still_images(tiny_root, "DUTS_train")
    sequences = video_sequences(tiny_root, "DAVIS_train")
    for make in (
        lambda seed: StillImages(frames, SIZE, Augmentation(), seed),
        lambda seed: VideoFrames([sequences], SIZE, 3, Augmentation(flow_turn=50), seed),
    ):
        sample = make(3)[4, 1]
        dataset = make(3)
        _ = dataset[0, 2]
        assert equal(sample, dataset[4, 1])
        assert not equal(sample, dataset[5, 1])
        assert not equal(sample, dataset[4, 2])
        assert not equal(sample, make(4)[4, 1])
        for name, tensor in sample.items():
            assert tensor.dtype == torch.uint8
            assert tensor.shape[-2:] == (SIZE, SIZE)
            assert name != "labels" or set(tensor.unique().tolist()) == {0, 1}


def test_references_are_augmented_each_in_its_own_way(tmp_path):
    rng = np.random.default_rng(0)
    frames = []
    for t in range(2):
        frame = make_frame(tmp_path, f"a_{t}", t)
        write(frame.image, rng.integers(0, 256, (SIZE, SIZE, 3), dtype=np.uint8))
        frames.append(frame)
    dataset = VideoFrames([[VideoFiles("a", tuple(frames))]], SIZE, 3, Augmentation())
    references = dataset[0, 0]["reference_images"]
    assert not torch.equal(references[0], references[1])
    assert not torch.equal(references[1], references[2])


def test_still_samples_have_image_and_labels(tmp_path):
    frames = [make_frame(tmp_path, f"s{i}", 10 * i) for i in range(3)]
    frames = [Frame(f.name, f.image, f.mask, None) for f in frames]
    dataset = StillImages(frames, SIZE)
    assert len(dataset) == 3
    assert dataset.set_sizes == [3]
    sample = dataset[0, 2]
    assert sample.keys() == {"image", "labels"}
    assert values_of(sample["image"]) == 20
    assert sample["labels"].sum() == SIZE * SIZE / 2


def test_test_frames_come_in_order_and_leave_the_masks_on_disk(tmp_path):
    frames = [make_frame(tmp_path, f"a_{t}", t) for t in range(3)]
    for frame in frames:
        frame.mask.unlink()
    samples = [TestFrames(frames, [whole_frame(SIZE)], flow=True)[index][0] for index in range(3)]
    assert [sample.keys() for sample in samples] == [{"image", "flow"}] * 3
    assert values_of(torch.stack([sample["image"] for sample in samples])) == [0, 1, 2]
    # Networks without flow get none, though some frames of a set may have a map.
    assert TestFrames(frames, [whole_frame(SIZE)], flow=False)[1][0].keys() == {"image"}


def test_pictures_are_rgb_and_resized_to_the_square(tmp_path):
    picture = np.zeros((2 * SIZE, 4 * SIZE, 3), np.uint8)
    picture[:, : 2 * SIZE] = (250, 100, 0)
    frame = Frame("x", write(tmp_path / "x.png", picture), None, None)
    image = shown(frame)["image"]
    assert (image[:, :, : SIZE // 2] == torch.tensor([250, 100, 0])[:, None, None]).all()
    assert (image[:, :, SIZE // 2 :] == 0).all()


@pytest.mark.parametrize("flip", [False, True])
def test_test_frames_are_whole_frames_resized_by_area_as_bytes(tmp_path, flip):
    frame = make_frame(tmp_path, "x", 0, (70, 121))
    pictures = np.random.default_rng(0).integers(0, 256, (2, 70, 121, 3), dtype=np.uint8)
    write(frame.image, pictures[0]), write(frame.flow, pictures[1])
    view = whole_frame(SIZE, flip)
    found = TestFrames([frame], [view], flow=True, recolour_flow=False)[0][0]
    # A sample that is not augmented shows the whole frame too.
    sample = VideoFrames([[VideoFiles("x", (frame,))]], SIZE)[0, 0]
    for name, picture in zip(("image", "flow"), pictures):
        small = cv2.resize(picture, (SIZE, SIZE), interpolation=cv2.INTER_AREA)
        small = small[:, ::-1] if flip else small
        assert found[name].dtype == torch.uint8 and found[name].is_contiguous()
        np.testing.assert_array_equal(found[name].numpy(), small.transpose(2, 0, 1))
        assert flip or torch.equal(sample[name], found[name])


def test_references_are_what_loading_their_frames_gives(tmp_path):
    sequence = make_sequence(tmp_path, "a", 4)
    rng = np.random.default_rng(0)
    for frame in sequence.frames:
        write(frame.image, rng.integers(0, 256, (SIZE, SIZE, 3), dtype=np.uint8))
        write(frame.flow, rng.integers(0, 256, (SIZE, SIZE, 3), dtype=np.uint8))
    sample = VideoFrames([[sequence]], SIZE, num_references=3)[0, 1]
    loaded = [shown(frame) for frame in sequence.frames]
    for name, part in (("reference_images", "image"), ("reference_flows", "flow")):
        for reference in sample[name]:
            matches = [torch.equal(reference, frame[part]) for frame in loaded]
            assert sum(matches) == 1 and not matches[1]


def test_still_images_are_targets_without_motion(tiny_root, tmp_path):
    stills = still_images(tiny_root, "DUTS_train")
    videos = video_sequences(tiny_root, "DAVIS_train")
    count = sum(len(video.frames) for video in videos)
    dataset = VideoFrames([videos], SIZE, 2, stills=stills)
    assert (len(dataset), dataset.set_sizes) == (count + len(stills), [count, len(stills)])
    assert dataset.name(count + 1) == stills[1].name
    # Without augmentation the references are the image itself.
    sample, alone = dataset[0, count + 1], StillImages(stills, SIZE)[0, 1]
    white = torch.full_like(alone["image"], 255)
    assert torch.equal(sample["image"], alone["image"])
    assert torch.equal(sample["labels"], alone["labels"])
    assert torch.equal(sample["flow"], white)
    for name, picture in (("reference_images", alone["image"]), ("reference_flows", white)):
        assert torch.equal(sample[name], torch.stack([picture] * 2))
    np.testing.assert_array_equal(
        flow_to_picture(np.zeros((SIZE, SIZE, 2), np.float32)), white.permute(1, 2, 0)
    )
    # With it they are drawn anew; the frames of videos are the same with and without stills.
    dataset = VideoFrames([videos], SIZE, 2, Augmentation(), 3, stills)
    sample = dataset[0, count + 1]
    assert not torch.equal(*sample["reference_images"])
    assert not torch.equal(sample["image"], sample["reference_images"][0])
    assert equal(dataset[0, 1], VideoFrames([videos], SIZE, 2, Augmentation(), 3)[0, 1])


def test_samples_do_not_depend_on_the_number_of_workers(tiny_root):
    augmentation = Augmentation(rotation_probability=0.5, sharpness=2.0)
    sequences = video_sequences(tiny_root, "DAVIS_train")
    dataset = VideoFrames([sequences], SIZE, 3, augmentation, seed=1)
    keys = [[(2, index), (2, index + 1)] for index in range(0, 10, 2)]
    alone, together = (
        list(DataLoader(dataset, batch_sampler=keys, num_workers=workers)) for workers in (0, 2)
    )
    assert len(alone) == 5
    assert all(equal(a, b) for a, b in zip(alone, together))


def test_a_mask_pixel_is_foreground_where_most_of_it_is(tmp_path):
    labels = np.random.default_rng(0).integers(0, 2, (3 * SIZE, 3 * SIZE)).astype(np.uint8)
    frame = make_frame(tmp_path, "x", 0, labels.shape)
    write(frame.mask, labels)
    expected = labels.reshape(SIZE, 3, SIZE, 3).sum(axis=(1, 3)) > 4.5
    np.testing.assert_array_equal(StillImages([frame], SIZE)[0, 0]["labels"].numpy(), expected)


def test_several_labelled_objects_become_one(tmp_path):
    labels = np.zeros((SIZE, SIZE), np.uint8)
    labels[2:8, 2:8], labels[10:20, 5:9], labels[22:, 22:] = 1, 2, 7
    frame = make_frame(tmp_path, "a_0", 0)
    picture = Image.frombytes("P", (SIZE, SIZE), labels.tobytes())
    picture.putpalette([0, 0, 0, 128, 0, 0, 0, 128, 0] + [0] * (253 * 3))
    picture.save(frame.mask)
    sample = VideoFrames([[VideoFiles("a", (frame,))]], SIZE)[0, 0]
    np.testing.assert_array_equal(sample["labels"].numpy(), labels > 0)
    # A window keeps all of them.
    sample = VideoWindows([[VideoFiles("a", (frame,))]], SIZE, 1, labels=True)[0, 0]
    np.testing.assert_array_equal(sample["labels"][0].numpy(), labels)


@pytest.mark.parametrize("part", ["image", "mask", "flow"])
def test_a_file_that_breaks_later_stops_with_its_path(tmp_path, part):
    sequence = make_sequence(tmp_path, "a", 2)
    dataset = VideoFrames([[sequence]], SIZE)
    _ = dataset[0, 0]
    path = getattr(sequence.frames[0], part)
    break_pixels(path)
    with pytest.raises(DatasetError, match=str(path)):
        _ = dataset[0, 0]
    path.unlink()
    with pytest.raises(DatasetError, match=f"{path}: no such file"):
        _ = dataset[0, 0]


@pytest.mark.parametrize("part", ["mask", "flow"])
def test_a_partner_of_another_size_is_named_with_both_sizes(tmp_path, part):
    frame = make_frame(tmp_path, "a_0", 0)
    path = getattr(frame, part)
    other = np.zeros((SIZE, SIZE - 3) if part == "mask" else (SIZE, SIZE - 3, 3), np.uint8)
    write(path, other)
    with pytest.raises(DatasetError) as caught:
        _ = VideoFrames([[VideoFiles("a", (frame,))]], SIZE)[0, 0]
    message = str(caught.value)
    assert f"{path} has {SIZE - 3} x {SIZE} pixels" in message
    assert f"{frame.image} has {SIZE} x {SIZE}" in message


def test_samples_know_the_names_of_their_frames(tmp_path):
    sequences = [make_sequence(tmp_path, "a", 3), make_sequence(tmp_path, "b", 2)]
    dataset = VideoFrames([sequences], SIZE)
    assert [dataset.name(index) for index in range(5)] == [
        frame.name for sequence in sequences for frame in sequence.frames
    ]


# Samples of all kinds


@pytest.mark.parametrize("kind", ["stills", "videos", "windows"])
def test_a_key_with_a_size_gives_the_sample_at_that_size(kind, tmp_path):
    def dataset(size: int):
        augmentation = Augmentation(rotation_probability=0.5)
        if kind == "videos":
            return VideoFrames([[make_sequence(tmp_path, "a", 4)]], size, 2, augmentation, 3)
        if kind == "windows":
            sets, kinds = [[make_sequence(tmp_path, "a", 4)]], {"labels": True, "flow": True}
            return VideoWindows(sets, size, 3, **kinds, augmentation=augmentation, seed=3)
        frames = [make_frame(tmp_path, str(value), value) for value in (50, 60)]
        return StillImages(frames, size, augmentation, 3)

    found, own = dataset(32)[1, 0, 64], dataset(64)[1, 0]
    assert found.keys() == own.keys()
    for name, value in found.items():
        assert value.shape[-2:] == (64, 64) and torch.equal(value, own[name])


# Windows

STILL_AUGMENTATION = Augmentation(
    flip_probability=0,
    crop_scale=1,
    rotation_probability=0,
    brightness=0,
    contrast=0,
    saturation=0,
)


def changed_everywhere(**changes) -> Augmentation:
    """Geometry that always changes something, and no colours unless they are named."""
    changes = {"crop_scale": 0.6, "rotation_probability": 0.5, "flip_probability": 0.5, **changes}
    return dataclasses.replace(STILL_AUGMENTATION, **changes)


def test_windows_are_the_frames_of_one_sequence_at_the_gap_from_every_start(tmp_path):
    first, second = make_sequence(tmp_path, "a", 6), make_sequence(tmp_path, "b", 4, first=100)
    other = make_sequence(tmp_path, "c", 3, first=200)
    for frames, gap, expected in (
        (3, 1, [*([t, t + 1, t + 2] for t in (0, 1, 2, 3, 100, 101)), [200, 201, 202]]),
        (2, 2, [*([t, t + 2] for t in (0, 1, 2, 3, 100, 101)), [200, 202]]),
        (2, 3, [[0, 3], [1, 4], [2, 5], [100, 103], [200, 202]]),  # short videos have less
        (3, 4, [[0, 2, 4], [1, 3, 5], [100, 101, 102], [101, 102, 103], [200, 201, 202]]),
        (1, 5, [[t] for t in (*range(6), *range(100, 104), *range(200, 203))]),
    ):
        dataset = VideoWindows([[first, second], [other]], SIZE, frames, gap)
        assert len(dataset) == len(expected) == sum(dataset.set_sizes)
        in_other = sum(window[0] >= 200 for window in expected)
        assert dataset.set_sizes == [len(expected) - in_other, in_other]
        for index, window in enumerate(expected):
            sample = dataset[0, index]
            assert sample.keys() == {"image"}
            assert sample["image"].shape == (frames, 3, SIZE, SIZE)
            assert values_of(sample["image"]) == window
            sequence = {0: "a", 1: "b", 2: "c"}[window[0] // 100]
            assert dataset.name(index) == f"{sequence}_{window[0] % 100}"


def test_windows_have_labels_and_flow_maps_only_where_they_are_wanted(tmp_path):
    sequence = make_sequence(tmp_path, "a", 4)
    sample = VideoWindows([[sequence]], SIZE, 3, labels=True, flow=True)[0, 1]
    assert {name: tuple(x.shape) for name, x in sample.items()} == {
        "image": (3, 3, SIZE, SIZE),
        "flow": (3, 3, SIZE, SIZE),
        "labels": (3, SIZE, SIZE),
    }
    assert {x.dtype for x in sample.values()} == {torch.uint8}
    assert values_of(sample["flow"]) == [254, 253, 252]
    assert (sample["labels"][:, : SIZE // 2] == 1).all()
    assert (sample["labels"][:, SIZE // 2 :] == 0).all()
    assert VideoWindows([[sequence]], SIZE, 3, labels=True)[0, 1].keys() == {"image", "labels"}
    assert VideoWindows([[sequence]], SIZE, 3, flow=True)[0, 1].keys() == {"image", "flow"}
    # Without labels, masks stay on disk.
    for frame in sequence.frames:
        frame.mask.unlink()
    assert values_of(VideoWindows([[sequence]], SIZE, 3)[0, 1]["image"]) == [1, 2, 3]


def test_sequences_that_are_too_short_give_no_windows_and_none_in_a_set_is_an_error(tmp_path):
    short, long = make_sequence(tmp_path, "a", 2), make_sequence(tmp_path, "b", 5, first=100)
    dataset = VideoWindows([[long, short]], SIZE, 3, gap=2)
    assert dataset.set_sizes == [1]
    assert values_of(dataset[0, 0]["image"]) == [100, 102, 104]
    with pytest.raises(DatasetError, match=r"of set 1 in TRAIN_SETS has the 6 frames that"):
        VideoWindows([[short, long]], SIZE, 6, gap=2)
    # The first set decides how many of the others are taken: none would train on nothing.
    with pytest.raises(DatasetError, match=r"of set 1 in TRAIN_SETS has the 3 frames that"):
        VideoWindows([[short], [long]], SIZE, 3)


def equal_frames(folder: Path, length: int = 3) -> VideoFiles:
    """A sequence in which all frames are one: a bright square that moves right on a dark ground."""
    frames = []
    for t in range(length):
        frame = make_frame(folder, f"w_{t}", 0, (2 * SIZE, 3 * SIZE))
        image = np.full((2 * SIZE, 3 * SIZE, 3), 40, np.uint8)
        flow = np.full_like(image, 255)
        mask = np.zeros(image.shape[:2], np.uint8)
        square = np.s_[SIZE // 2 : SIZE, SIZE : 2 * SIZE - 7]
        image[square], flow[square], mask[square] = 150, (255, 0, 0), 255
        for path, pixels in ((frame.image, image), (frame.flow, flow), (frame.mask, mask)):
            write(path, pixels)
        frames.append(frame)
    return VideoFiles("w", tuple(frames))


def test_geometry_and_mirroring_are_one_for_all_frames_of_a_window(tmp_path):
    """Frames that are the same stay the same; another epoch crops, mirrors and rotates anew."""
    sets = [[equal_frames(tmp_path)]]
    kinds = {"labels": True, "flow": True}
    dataset = VideoWindows(sets, SIZE, 3, **kinds, augmentation=changed_everywhere())
    seen, leftward = [], []
    for epoch in range(24):
        sample = dataset[epoch, 0]
        for one in sample.values():
            assert torch.equal(one[0], one[1]) and torch.equal(one[0], one[2])
        bright, moving = sample["image"][0, 0] > 95, sample["flow"][0].amin(dim=0) < 128
        inside = sample["labels"][0] > 0
        for found in (bright, moving):
            assert (found & inside).sum() / (found | inside).sum() > 0.85
        assert not any(torch.equal(sample["image"], earlier) for earlier in seen)
        seen.append(sample["image"])
        # Motion to the right is red; mirrored, it is cyan.
        leftward.append(bool(sample["flow"][0, 0][inside].float().mean() < 128))
    assert 4 < sum(leftward) < 20
    again = VideoWindows(sets, SIZE, 3, **kinds, augmentation=changed_everywhere())
    assert equal(dataset[5, 0], again[5, 0])
    other = VideoWindows(sets, SIZE, 3, **kinds, augmentation=changed_everywhere(), seed=1)
    assert not equal(dataset[5, 0], other[5, 0])


def test_mirrored_windows_are_mirrored_with_labels_and_motion(tmp_path):
    sets, kinds = [[equal_frames(tmp_path)]], {"labels": True, "flow": True}
    plain, mirrored = (
        VideoWindows(
            sets,
            SIZE,
            3,
            **kinds,
            augmentation=dataclasses.replace(STILL_AUGMENTATION, flip_probability=flip),
        )[0, 0]
        for flip in (0, 1)
    )
    assert equal(plain, VideoWindows(sets, SIZE, 3, **kinds)[0, 0])
    for name in ("image", "labels"):
        assert torch.equal(mirrored[name], plain[name].flip(-1))
    for one, other in zip(plain["flow"], mirrored["flow"]):
        motion, back = picture_to_flow(as_picture(one)), picture_to_flow(as_picture(other))
        assert motion[..., 0].max() > 0.9
        np.testing.assert_allclose(back[:, ::-1] * [-1, 1], motion, atol=0.08)


def test_colours_are_drawn_anew_for_each_frame_of_a_window(tmp_path):
    augmentation = changed_everywhere(brightness=0.5)
    plain = VideoWindows([[equal_frames(tmp_path)]], SIZE, 3, augmentation=changed_everywhere())
    changed = VideoWindows([[equal_frames(tmp_path)]], SIZE, 3, augmentation=augmentation)
    before, after = plain[0, 0]["image"].float(), changed[0, 0]["image"].float()
    factors = (after.mean(dim=(1, 2, 3)) / before.mean(dim=(1, 2, 3))).tolist()
    assert min(abs(a - b) for a, b in itertools.combinations(factors, 2)) > 0.01
    # Nothing but the brightness differs between the frames.
    levels = after / torch.tensor(factors)[:, None, None, None]
    assert (levels - before).abs().max() < 2


def test_a_frame_of_a_window_that_breaks_stops_with_its_path(tmp_path):
    sequence = make_sequence(tmp_path, "a", 5)
    dataset = VideoWindows([[sequence]], SIZE, 2, labels=True)
    break_pixels(sequence.frames[1].mask)
    with pytest.raises(DatasetError, match=str(sequence.frames[1].mask)):
        _ = dataset[0, 0]
