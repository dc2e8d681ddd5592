"""Flow maps for a video set: writes the `FLOW/` folder that belongs beside `RGB/`.

    python -m datasets.flow --data-root data --set DAVIS_train --estimator raft

Each frame's flow is its motion to the next image of the video: the next frame of the set, or the
frame's image in the folder NEXT, which `datasets.prepare` fills where the set leaves images out.
The last frame has no next image: its flow is the one to its predecessor, negated, so that it shows
the same motion as the frames before it. Flow maps are stored as colour-wheel pictures
(`datasets.colour_wheel`), each normalised by its own largest motion.

The program can be stopped at any time and started again: a flow map is there whole or not at all,
and those that are there are kept unless `--overwrite` is given. Each map carries checksums of the
two images that it was made from, as a JPEG comment. Where they are not the images of today, the map
is made anew. Maps without such a comment come from elsewhere and are kept.

`--from-flo` makes the pictures from Middlebury `.flo` files, `FLOW/<frame>.flo`, instead.

Several processes, on one machine or more that see the same folder, share a set's frames:

    torchrun --standalone --nproc-per-node 2 -m datasets.flow --data-root data --set DAVIS_train
"""

import argparse
import json
import os
import sys
import zlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from datetime import timedelta
from functools import lru_cache
from itertools import pairwise
from pathlib import Path
from typing import TypeVar

import cv2
import numpy as np

from datasets.colour_wheel import flow_to_picture
from datasets.layout import (
    DatasetError,
    Frame,
    Problems,
    Sequence,
    format_problems,
    read_image,
    read_size,
    unwritable,
    video_sequences,
)
from datasets.progress import print_any_name, progress_bar

Estimator = Callable[[np.ndarray, np.ndarray], np.ndarray]
Item = TypeVar("Item")

# The direction of motion is in the chroma, which JPEG by default stores at half the resolution.
_JPEG = [
    *(cv2.IMWRITE_JPEG_QUALITY, 95),
    *(cv2.IMWRITE_JPEG_SAMPLING_FACTOR, cv2.IMWRITE_JPEG_SAMPLING_FACTOR_444),
]

# In the set's folder: what made its flow maps.
_ORIGIN = ".flow.json"

# A file being written; the leading dot hides it from the layout's scan.
_PARTIAL = ".{stem}.jpg.partial"

# Begins the JPEG comment of a flow map; the sizes and checksums of its two images follow.
_RECORD = b"flow between images "
_TAIL = 8192  # bytes at a file's end that tell, with its size, one image from another

_SINGLE = (
    "sequence of a single frame, which has no flow",
    "add the frames that follow, or remove it; photographs need no flow",
)
_SIZES_DIFFER = (
    "frame of another size than most of its sequence",
    "bring them to the same size; photographs are no sequence and need no flow",
)

_FLAGS = (
    "The flags are --weights FILE and --estimator dis for datasets.flow, --flow-weights FILE and "
    "--flow-estimator dis for evaluate.py."
)

# Frames that a process makes in a row, where there are others: enough that hardly any is read by
# two of them, few enough that what a stopped run has left is spread over all that go on with it.
_RUN = 64

_RAFT_SMALLEST = 128  # pixels; RAFT's coarsest correlation map would be empty below
_DIS_SMALLEST = 32  # pixels; OpenCV fails or crashes below, depending on the width


class FlowError(RuntimeError):
    """A flow estimator cannot be set up; the message says what to do."""


def make_flow(
    data_root: Path,
    set_name: str,
    estimator: Estimator,
    overwrite: bool = False,
    made_by: str | None = None,
    share: tuple[int, int] = (0, 1),
    wait: Callable[[], object] = lambda: None,
) -> tuple[int, int, int]:
    """Write the flow map of every frame of a video set as `FLOW/<frame>.jpg`.

    Args:
        data_root: folder that holds the set.
        set_name: a video set, flat or with a folder per sequence (see `datasets.layout`); its masks
            are not needed.
        estimator: maps two frames, (H, W, 3) uint8 RGB, to the motion from the first to the second,
            (H, W, 2) float32 in pixels, x to the right and y down.
        overwrite: make flow maps anew that are there already, whatever their extension.
        made_by: the estimator in words, which `flow_origin` will tell. Flow maps of different ones
            are not mixed in a set.
        share: which process this is, from 0, and how many make the set's flow maps together. The
            first one shows a progress bar and writes down `made_by`.
        wait: returns when all processes have called it as often.

    Returns:
        The numbers of flow maps of this share that were written, that were there already, and of
        those written that took the place of a map of other images.

    Raises:
        DatasetError: if the set's layout is wrong, a sequence has a single frame, an image is
            unreadable or of another size than the others of its sequence, flow maps of another
            origin would be kept, or a file cannot be written.
        FlowError: if the estimator gives motion that is not finite.
    """
    rank, processes = share
    if rank > 0:
        wait()  # what is wrong with the set is said once, by the first process
    sequences = video_sequences(data_root, set_name, masks="none", flow=False)
    if rank == 0:
        _check_images(data_root / set_name, sequences, overwrite)
        if made_by is not None:
            some = any(frame.flow for sequence in sequences for frame in sequence.frames)
            _begin_origin(data_root / set_name, made_by, some, overwrite)
            if some and not overwrite and flow_origin(data_root, set_name) is None:
                made_by = None  # nobody knows what made those that are kept
        wait()
    pairs = [pair for sequence in sequences for pair in image_pairs(sequence)]
    mine = [pair for run in runs_of(share, len(pairs)) for pair in pairs[run.start : run.stop]]
    _prepare_folders([frame for frame, _, _ in pairs], [frame for frame, _, _ in mine])

    written = kept = renewed = 0
    read = lru_cache(maxsize=2)(read_image)  # neighbouring pairs share a frame
    title = f"{set_name} flow" + (f", share 1 of {processes}" if processes > 1 else "")
    for frame, other, sign in progress_bar(mine, desc=title, unit="frame", shown=rank == 0):
        stale = frame.flow is not None and not overwrite and is_of_other_images(frame, other)
        if frame.flow is not None and not overwrite and not stale:
            kept += 1
            continue
        flow = sign * _estimate(estimator, frame.image, other, read)
        path = _flow_folder(frame) / f"{frame.name}.jpg"
        _write(path, flow, _record(frame.image, other), replaced=frame.flow)
        written += 1
        renewed += stale
    wait()  # until the last one is done, the set may be a mixture
    if made_by is not None and rank == 0:
        _write_origin(data_root / set_name, made_by)
    return written, kept, renewed


def convert_flo(data_root: Path, set_name: str) -> int:
    """Write `FLOW/<frame>.jpg` for every Middlebury file `FLOW/<frame>.flo` of a video set.

    Returns:
        Their number.

    Raises:
        DatasetError: there is none, or one cannot be read or its picture not be written.
    """
    folder = data_root / set_name
    paths = [path for part in ("FLOW", "*/FLOW") for path in sorted(folder.glob(f"{part}/*.flo"))]
    if not paths:
        raise DatasetError(
            f"{folder} has no .flo files: expected FLOW/<frame>.flo, or <sequence>/FLOW/<frame>.flo"
        )
    (folder / _ORIGIN).unlink(missing_ok=True)  # nobody knows what made them
    for path in progress_bar(paths, desc=f"{set_name} flow", unit="frame"):
        _write(path.with_suffix(".jpg"), read_flo(path))
    return len(paths)


def read_flo(path: Path) -> np.ndarray:
    """Read a flow map in Middlebury's format (Baker et al., IJCV 2011).

    Returns:
        (H, W, 2) float32 motion in pixels, x to the right and y down; 0 where it is unknown.

    Raises:
        DatasetError: the file is another one, or cut off.
    """
    content = path.read_bytes()
    width, height = np.frombuffer(content[4:12].ljust(8, b"\0"), "<i4").tolist()
    if content[:4] != b"PIEH" or min(width, height) < 1 or len(content) != 12 + 8 * width * height:
        raise DatasetError(f"{path}: no whole .flo file (Middlebury's format); replace this file")
    flow = np.frombuffer(content, "<f4", offset=12).reshape(height, width, 2)
    return np.where(np.abs(flow).max(axis=2, keepdims=True) < 1e9, flow, np.float32(0))


def runs_of(share: tuple[int, int], total: int) -> list[range]:
    """Which of a set's frames are a process's share: runs of neighbours.

    Args:
        share: which process, from 0, and of how many.
        total: number of the set's frames, those of all sequences one after the other.

    Returns:
        Positions among them, in order. Every frame is one process's, and the processes' shares
        differ by one frame at most.
    """
    rank, processes = share
    rest = total % (processes * _RUN)  # too few for a whole run each
    starts = range(rank * _RUN, total - rest, processes * _RUN)
    first, last = (total - rest + rest * number // processes for number in (rank, rank + 1))
    return [*(range(start, start + _RUN) for start in starts), range(first, last)]


def flow_origin(data_root: Path, set_name: str) -> str | None:
    """What made a set's flow maps, in words, as "dis, camera motion removed"; None if unknown."""
    try:
        return json.loads((data_root / set_name / _ORIGIN).read_text(encoding="utf-8"))["made_by"]
    except (OSError, ValueError, KeyError, TypeError):
        return None


def origin_in_words(estimator: str, remove_camera_motion: bool) -> str:
    """The estimator's name and whether camera motion is kept, as `flow_origin` tells it."""
    return f"{estimator}, camera motion {'removed' if remove_camera_motion else 'kept'}"


def _begin_origin(folder: Path, made_by: str, some: bool, overwrite: bool) -> None:
    """Refuse to mix flow maps; note that they are being replaced, where they are."""
    known = flow_origin(folder.parent, folder.name)
    if known is None or not some or known == made_by:
        if not some:
            _write_origin(folder, made_by)
        return
    if not overwrite:
        raise DatasetError(
            f"{folder}: its flow maps are of another kind ({known}) than those that are to be made "
            f"({made_by}); pass --overwrite to make all of them anew"
        )
    # Until all are replaced, going on without --overwrite would leave a mixture.
    _write_origin(folder, f"{known}, in part replaced by {made_by}")


def _write_origin(folder: Path, made_by: str) -> None:
    content = json.dumps({"made_by": made_by}) + "\n"
    _replace(folder / _ORIGIN, folder / f"{_ORIGIN}.partial", content.encode())


def motion_pairs(frames: Iterable[Item]) -> Iterator[tuple[Item, Item, int]]:
    """For each frame the other one that its flow needs: the next, or for the last its predecessor.

    Args:
        frames: at least two of anything, in order in time; read one frame ahead.

    Returns:
        (frame, other, sign) for each: its flow is sign * the motion from it to the other.

    Raises:
        ValueError: fewer than two frames, which have no motion.
    """
    pair = None
    for pair in pairwise(frames):
        yield *pair, 1
    if pair is None:
        raise ValueError("a single frame has no motion: expected at least two")
    yield pair[1], pair[0], -1


def image_pairs(sequence: Sequence) -> Iterator[tuple[Frame, Path, int]]:
    """Each frame of a sequence with the other image that its flow needs, as `motion_pairs` has it.

    A frame's `following` image comes before the next frame. A single frame has no pair.
    """
    for frame, other, sign in motion_pairs(sequence.frames) if len(sequence.frames) > 1 else ():
        yield (frame, frame.following, 1) if frame.following else (frame, other.image, sign)


def sequence_problems(
    sequence: Sequence, sizes: Mapping[Path, tuple[int, int] | None]
) -> Iterator[tuple[tuple[str, str], str]]:
    """What keeps a sequence from having flow maps made.

    Args:
        sequence: of a video set.
        sizes: (width, height) by image, without those that are unknown or with None for them.

    Yields:
        (kind of problem and advice, image concerned).
    """
    if len(sequence.frames) == 1 and sequence.frames[0].flow is None:
        yield _SINGLE, str(sequence.frames[0].image)
    images = [path for frame in sequence.frames for path in (frame.image, frame.following) if path]
    known = {path: size for path in images if (size := sizes.get(path)) is not None}
    if len(set(known.values())) > 1:
        ((usual, _),) = Counter(known.values()).most_common(1)
        for path, size in known.items():
            if size != usual:
                item = f"{path}: {size[0]} x {size[1]}, most {usual[0]} x {usual[1]}"
                yield _SIZES_DIFFER, item


def is_of_other_images(frame: Frame, other: Path) -> bool:
    """Whether a frame's flow map says that it was made from other images than these two."""
    try:
        with frame.flow.open("rb") as file:
            head = file.read(256)
        return _RECORD in head and _record(frame.image, other) not in head
    except OSError:  # whoever reads the file says so
        return False


def stale_flow(sequence: Sequence) -> list[Path]:
    """Flow maps of a sequence that say that they were made from other images than those there."""
    return [
        frame.flow
        for frame, other, _ in image_pairs(sequence)
        # The last frame may be shown the map of the frame before.
        if frame.flow and frame.flow.stem == frame.name and is_of_other_images(frame, other)
    ]


def _record(*images: Path) -> bytes:
    """What a flow map's comment says of the images that it was made from, whatever their names."""
    identities = []
    for path in images:
        with path.open("rb") as file:
            size = file.seek(0, os.SEEK_END)
            file.seek(max(0, size - _TAIL))
            identities.append(f"{size}-{zlib.crc32(file.read()):08x}")
    return _RECORD + " ".join(identities).encode()


def _check_images(folder: Path, sequences: list[Sequence], overwrite: bool) -> None:
    """Refuse, before anything is written, sequences that can have no flow."""
    todo = [s for s in sequences if overwrite or any(frame.flow is None for frame in s.frames)]
    images = [
        path for s in todo for frame in s.frames for path in (frame.image, frame.following) if path
    ]
    with ThreadPoolExecutor() as pool:
        sizes = {path: size[::-1] for path, size in zip(images, pool.map(read_size, images))}
    problems: Problems = {}
    for sequence in todo:
        for kind, item in sequence_problems(sequence, sizes):
            problems.setdefault(kind, []).append(item)
    if problems:
        raise DatasetError(format_problems(str(folder), problems))


def _of_any_size(estimator: Estimator, smallest: int, multiple: int = 1) -> Estimator:
    """An estimator for frames of any size of one that wants sides of at least `smallest` pixels.

    Frames are padded with their border to that, and to a multiple; the flow is cropped. Equal
    frames have no motion.

    Raises:
        FlowError: from the estimator returned, if motion is not finite.
    """

    def estimate(first: np.ndarray, second: np.ndarray) -> np.ndarray:
        height, width = first.shape[:2]
        if np.array_equal(first, second):
            return np.zeros((height, width, 2), np.float32)
        pad_y, pad_x = (
            max(smallest, -(-side // multiple) * multiple) - side for side in (height, width)
        )
        top, left = pad_y // 2, pad_x // 2
        sides = top, pad_y - top, left, pad_x - left
        padded = [cv2.copyMakeBorder(x, *sides, cv2.BORDER_REPLICATE) for x in (first, second)]
        flow = estimator(*padded)[top : top + height, left : left + width]
        if not np.isfinite(flow).all():
            raise FlowError(
                f"the motion between frames of {width} x {height} pixels is not finite: look at "
                f"the frames, and use other weights or DIS. {_FLAGS}"
            )
        return flow

    return estimate


def dis_estimator() -> Estimator:
    """DIS optical flow of OpenCV (Kroeger et al., ECCV 2016), medium preset, on grey frames.

    Needs no weights and no GPU.

    Returns:
        An estimator for `make_flow`, for frames of any size.
    """
    dis = cv2.DISOpticalFlow_create(cv2.DISOPTICAL_FLOW_PRESET_MEDIUM)

    def estimate(first: np.ndarray, second: np.ndarray) -> np.ndarray:
        grey = [cv2.cvtColor(frame, cv2.COLOR_RGB2GRAY) for frame in (first, second)]
        return dis.calc(*grey, None)

    return _of_any_size(estimate, _DIS_SMALLEST)


def raft_estimator(weights: Path | None = None, device: str | None = None) -> Estimator:
    """RAFT (Teed and Deng, ECCV 2020), torchvision's `raft_large`: the paper's choice (Sec. 4.1).

    Args:
        weights: file with the network's state dict; None takes torchvision's published weights,
            from torch's cache if they are there, else downloaded.
        device: "cpu", "cuda" or "cuda:<index>"; None takes a GPU if there is one.

    Returns:
        An estimator for `make_flow`, for frames of any size.

    Raises:
        FlowError: if the weights cannot be had or do not fit, or the device is not there.
    """
    # Imported here because DIS needs none of it, and it takes seconds.
    import torch
    from torchvision.models.optical_flow import Raft_Large_Weights, raft_large

    has_gpu = torch.cuda.is_available()
    device = device or ("cuda" if has_gpu else "cpu")
    if device.startswith("cuda") and not has_gpu:
        raise FlowError(f"torch finds no GPU for the device {device!r}: use --device cpu")
    if (torch.device(device).index or 0) >= max(1, torch.cuda.device_count()):
        raise FlowError(
            f"there is no device {device!r}, as this machine has {torch.cuda.device_count()} "
            "GPU(s): start as many processes (torchrun's --nproc-per-node), or use --device cpu"
        )
    url = Raft_Large_Weights.DEFAULT.url
    if weights is None:
        try:
            state = torch.hub.load_state_dict_from_url(
                url, map_location="cpu", check_hash=True, weights_only=True
            )
        except Exception as error:  # no network, a proxy's error page, a damaged cache, ...
            raise FlowError(
                f"RAFT's weights could not be downloaded ({error}): fetch {url} on a machine with "
                f"network, or use DIS, which needs none. {_FLAGS}"
            ) from error
    elif not weights.is_file():
        raise FlowError(f"there is no weights file {weights}: give a copy of {url}. {_FLAGS}")
    model = raft_large()
    try:
        if weights is not None:
            state = torch.load(weights, map_location="cpu", weights_only=True)
        model.load_state_dict(state)
    except Exception as error:  # torch raises nearly anything for a file that is not its own
        reason = str(error).strip().split("\n")[0]
        raise FlowError(
            f"{weights or url} is no state dict of torchvision's raft_large ({reason}): give a "
            f"copy of {url}. {_FLAGS}"
        ) from error
    model.to(device).eval()

    @torch.inference_mode()
    def estimate(first: np.ndarray, second: np.ndarray) -> np.ndarray:
        pair = torch.from_numpy(np.stack([first, second])).to(device)
        pair = pair.permute(0, 3, 1, 2).float() / 127.5 - 1
        flow = model(pair[:1], pair[1:])[-1][0]  # RAFT returns each of its refinements
        return flow.permute(1, 2, 0).cpu().numpy()

    return _of_any_size(estimate, _RAFT_SMALLEST, multiple=8)


def build_estimator(
    name: str,
    weights: Path | None = None,
    device: str | None = None,
    remove_camera_motion: bool = False,
) -> Estimator:
    """An estimator by its name, ``"raft"`` or ``"dis"``; the other arguments as below.

    Raises:
        FlowError: it cannot be set up.
        ValueError: there is none of that name.
    """
    if name not in ("raft", "dis"):
        raise ValueError(f"no flow estimator {name!r}: expected 'raft' or 'dis'")
    estimator = dis_estimator() if name == "dis" else raft_estimator(weights, device)
    return camera_free(estimator) if remove_camera_motion else estimator


def camera_free(estimator: Estimator) -> Estimator:
    """The same estimator, with the camera's motion removed from its flow."""
    return lambda first, second: remove_camera_motion(estimator(first, second))


def remove_camera_motion(flow: np.ndarray) -> np.ndarray:
    """Motion relative to the camera's: what a robust affine fit of the whole frame leaves over.

    The paper's flow maps keep the camera's motion. Without it, what rests in the scene is near
    white in every flow map, whatever the camera does.

    Args:
        flow: (H, W, 2) float32 in pixels.

    Returns:
        The same shape, less the affine motion that most of the frame shares.
    """
    height, width = flow.shape[:2]
    y, x = np.mgrid[-1 : 1 : height * 1j, -1 : 1 : width * 1j].astype(np.float32)
    terms = np.stack([np.ones_like(x), x, y], axis=-1)
    step = max(1, min(height, width) // 60)  # a grid of some thousand points says enough
    points, motion = (a[::step, ::step].reshape(-1, a.shape[-1]) for a in (terms, flow))
    weights = np.ones(len(points), np.float32)
    for _ in range(20):  # iteratively reweighted least squares, Cauchy weights
        root = np.sqrt(weights)[:, None]
        affine = np.linalg.lstsq(points * root, motion * root, rcond=None)[0]
        residual = np.linalg.norm(motion - points @ affine, axis=1)
        scale = max(1.5 * float(np.median(residual)), 0.05)  # pixels
        weights = 1 / (1 + (residual / scale) ** 2)
    return flow - (terms @ affine).astype(np.float32)


def _flow_folder(frame: Frame) -> Path:
    return frame.image.parent.parent / "FLOW"


def _partial(frame: Frame) -> Path:
    """Where a frame's flow map is while it is being written."""
    return _flow_folder(frame) / _PARTIAL.format(stem=frame.name)


def _prepare_folders(frames: list[Frame], mine: list[Frame]) -> None:
    """Make the folders that this share's flow maps go to, without what stopped runs left there.

    What belongs to the other shares' frames stays: it may be being written.
    """
    others = {_partial(frame) for frame in frames} - {_partial(frame) for frame in mine}
    for folder in {_flow_folder(frame) for frame in mine}:
        folder.mkdir(exist_ok=True)
        for leftover in folder.glob(_PARTIAL.format(stem="*")):
            if leftover not in others:
                leftover.unlink(missing_ok=True)


def _estimate(
    estimator: Estimator, first: Path, second: Path, read: Callable[[Path], np.ndarray]
) -> np.ndarray:
    """Motion from one image to another, (H, W, 2)."""
    a, b = read(first), read(second)
    if a.shape != b.shape:
        raise DatasetError(
            f"frames of one sequence differ in size: {first} is {a.shape[1]} x {a.shape[0]}, "
            f"{second} is {b.shape[1]} x {b.shape[0]}; bring them to the same size"
        )
    try:
        return estimator(a, b)
    except FlowError as error:
        raise FlowError(f"{first}: {error}") from error


def _write(
    path: Path, flow: np.ndarray, comment: bytes = b"", replaced: Path | None = None
) -> None:
    """Write a flow map as JPEG whole or not at all, in place of another one."""
    picture = cv2.cvtColor(flow_to_picture(flow), cv2.COLOR_RGB2BGR)
    jpeg = cv2.imencode(".jpg", picture, _JPEG)[1].tobytes()
    if comment:  # the first segment after the file's start
        jpeg = jpeg[:2] + b"\xff\xfe" + (2 + len(comment)).to_bytes(2, "big") + comment + jpeg[2:]
    _replace(path, path.with_name(_PARTIAL.format(stem=path.stem)), jpeg, replaced)


def _replace(path: Path, partial: Path, content: bytes, replaced: Path | None = None) -> None:
    """Write a file whole or not at all, in place of another one."""
    try:
        partial.write_bytes(content)
        if replaced not in (None, path):
            replaced.unlink()  # two flow maps of one frame would be an error in the layout
        os.replace(partial, path)
    except OSError as error:
        with suppress(OSError):
            partial.unlink(missing_ok=True)
        raise unwritable(path, error) from error


@dataclass(frozen=True)
class _Processes:
    """This process among those that torchrun has started, or alone: the defaults.

    Attributes:
        rank, number: which of how many.
        local_rank: which of those on this machine.
    """

    rank: int = 0
    number: int = 1
    local_rank: int = 0

    @classmethod
    def join(cls) -> "_Processes":
        """Meet the others, if there are any."""
        names = ("RANK", "WORLD_SIZE", "LOCAL_RANK")
        if any(name not in os.environ for name in names):
            return cls()
        processes = cls(*(int(os.environ[name]) for name in names))
        if processes.number > 1:
            import torch.distributed

            # As long as the slowest may take; when one fails, torchrun ends them all.
            torch.distributed.init_process_group("gloo", timeout=timedelta(days=30))
        return processes

    def wait(self) -> None:
        """Return when all processes have come this far; FlowError if one has ended before."""
        if self.number > 1:
            import torch.distributed

            try:
                torch.distributed.barrier()
            except RuntimeError as error:  # torch's own is about a connection
                raise FlowError(
                    f"process {self.rank} stops, for another one has ended; its message tells why"
                ) from error

    def total(self, counts: tuple[int, ...]) -> list[int]:
        """The sums over all processes."""
        if self.number == 1:
            return list(counts)
        import torch.distributed

        sums = torch.tensor(counts)
        torch.distributed.all_reduce(sums)
        return sums.tolist()

    def leave(self) -> None:
        """End the group's threads: Python's exit would abort while some still run."""
        if self.number > 1:
            import torch.distributed

            torch.distributed.destroy_process_group()

    def device(self, wanted: str | None) -> str | None:
        """A GPU for each process, unless the CPU is wanted or there is no GPU."""
        if self.number == 1 or wanted == "cpu":
            return wanted
        import torch

        return f"cuda:{self.local_rank}" if wanted or torch.cuda.is_available() else None


def main(arguments: list[str] | None = None) -> int:
    """Command line of this module.

    Args:
        arguments: as in `sys.argv[1:]`, which is the default.

    Returns:
        Exit code: 0, or 1 after a message on stderr.
    """
    print_any_name()
    parser = argparse.ArgumentParser(
        prog="python -m datasets.flow", description="Write the flow maps (FLOW/) of a video set."
    )
    parser.add_argument("--data-root", type=Path, required=True, help="folder that holds the sets")
    parser.add_argument("--set", required=True, help="a video set in it, such as DAVIS_train")
    parser.add_argument(
        "--estimator",
        choices=("raft", "dis"),
        default="raft",
        help="raft (default): the paper's choice, wants weights and a GPU; dis: OpenCV's, "
        "needs neither",
    )
    parser.add_argument("--overwrite", action="store_true", help="make existing flow maps anew")
    parser.add_argument(
        "--from-flo",
        action="store_true",
        help="make the pictures from Middlebury files FLOW/<frame>.flo, and estimate nothing",
    )
    parser.add_argument(
        "--weights", type=Path, help="raft: state-dict file, in place of a download"
    )
    parser.add_argument(
        "--remove-camera-motion",
        action="store_true",
        help="show motion relative to a robust affine fit of the whole frame's",
    )
    parser.add_argument("--device", choices=("cpu", "cuda"), help="raft: default is a GPU if any")
    options = parser.parse_args(arguments)
    if options.estimator == "dis" and (options.weights or options.device):
        parser.error("--weights and --device are for --estimator raft")
    processes = _Processes.join()
    try:
        if options.from_flo:
            if processes.rank == 0:
                count = convert_flo(options.data_root, options.set)
                print(f"{options.set}: {count} flow maps written from .flo files")
            return 0
        if processes.local_rank > 0:
            processes.wait()  # for the first one on this machine to check, and fetch the weights
        # Before the weights are fetched.
        video_sequences(options.data_root, options.set, masks="none", flow=False)
        estimator = build_estimator(
            options.estimator,
            options.weights,
            processes.device(options.device) if options.estimator == "raft" else None,
            options.remove_camera_motion,
        )
        if processes.local_rank == 0:
            processes.wait()
        counts = make_flow(
            options.data_root,
            options.set,
            estimator,
            options.overwrite,
            origin_in_words(options.estimator, options.remove_camera_motion),
            (processes.rank, processes.number),
            processes.wait,
        )
        written, kept, renewed = processes.total(counts)
    except (DatasetError, FlowError, OSError) as error:
        # Not at the end of the line that the first process's progress bar is on.
        print(f"\n{error}" if processes.rank > 0 else error, file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    finally:
        processes.leave()
    if processes.rank == 0:
        print(f"{options.set}: {written} flow maps written, {kept} were there already")
        if renewed:
            print(f"  {renewed} of those written replace maps of other images than are there now")
    return 0


if __name__ == "__main__":
    sys.exit(main())
