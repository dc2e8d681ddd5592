"""A small synthetic data set in the project's folder layout, for the demo and for tests.

``python -m datasets.synthetic --data-root DIR`` writes three sets below ``DIR``:

- ``DUTS_train/{RGB,GT}``: still images of one object that is more vivid than its background;
- ``DAVIS_train/{RGB,GT}``: videos, as ``<sequence>_<frame>.jpg`` and ``.png``;
- ``DAVIS_test/<sequence>/{RGB,GT}``: other videos, with the same file names.

The videos are those of ``datasets.scenes``: only motion tells the object from distractors that look
alike, and the background often moves as much as the object. A pixel of a mask is foreground where
more than half of it shows the object. ``--empty N`` adds N videos to both video sets that have no
object, in all of their frames or from the middle on.
"""

import argparse
import json
import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from datasets.files import write_picture
from datasets.progress import progress_bar
from datasets.scenes import EMPTY, MOTIONS, SHAPES, make_scene, render_frame, without_object

SETS = ("DUTS_train", "DAVIS_train", "DAVIS_test")
KINDS = ("still", "train", "test")  # of the sets, with which their names begin
MARKER = "synthetic.json"  # says that the sets beside it were made here and may be overwritten


def write_synthetic(
    data_root: Path,
    seed: int = 0,
    stills: int = 240,
    train_sequences: int = 36,
    test_sequences: int = 4,  # show every kind of motion once
    frames: int = 12,
    height: int = 192,
    width: int = 240,
    overwrite: bool = False,
    empty_sequences: int = 0,  # further ones without an object, in each of the two video sets
) -> None:
    """Write the three sets below ``data_root``, which is made if it is missing.

    The same arguments give the same bytes. A still or a sequence depends on the seed and its index,
    not on the number of others. Videos have at least 2 ``frames``, pictures at least 32 x 32
    pixels. ``overwrite`` deletes the sets that an earlier call wrote there, with their flow maps.

    Raises:
        FileExistsError: a set is there already and ``overwrite`` is off, or it was not written by
            this function, so that real data is never deleted.
    """
    _clear(data_root, overwrite)
    data_root.mkdir(parents=True, exist_ok=True)
    (data_root / MARKER).write_text(json.dumps({"seed": seed}) + "\n")
    counts = (stills, train_sequences, test_sequences, empty_sequences, empty_sequences)
    videos = [(kind, index) for kind, count in enumerate(counts) for index in range(count)]

    def write(kind: int, index: int) -> int:
        """Write a still or a sequence; returns its number of images."""
        rng = np.random.default_rng([seed, kind, index])
        shape = SHAPES[index % len(SHAPES)]
        motion = list(MOTIONS)[index % len(MOTIONS)] if kind > 0 else None
        scene = make_scene(rng, shape, motion, frames if kind > 0 else 1, height, width)
        if kind > 2:
            turn = index + index // len(SHAPES)  # so that each kind has every shape
            motion, kind = EMPTY[turn % len(EMPTY)], kind - 2
            scene = without_object(scene, motion)
        sequence = f"{KINDS[kind]}_{motion}-{shape}-{index:02d}"
        folder = data_root / SETS[kind] / (sequence if kind == 2 else "")
        for t in range(len(scene.camera)):
            name = f"{sequence}_{t:05d}" if kind > 0 else f"still_{index:05d}"
            picture, coverage = render_frame(scene, t)
            write_picture(folder / "RGB" / f"{name}.jpg", picture)
            mask = np.where(coverage > 0.5, 255, 0).astype(np.uint8)
            write_picture(folder / "GT" / f"{name}.png", mask)
        return len(scene.camera)

    total = stills + sum(counts[1:]) * frames
    with (
        progress_bar(total=total, desc="synthetic data", unit="image") as progress,
        ThreadPoolExecutor() as pool,
    ):
        for written in pool.map(write, *zip(*videos)):
            progress.update(written)


def _clear(data_root: Path, overwrite: bool) -> None:
    """Make room for the sets, or say why that is not done."""
    found = [data_root / name for name in SETS if (data_root / name).exists()]
    if found and not (overwrite and (data_root / MARKER).is_file()):
        raise FileExistsError(
            f"{', '.join(map(str, found))}: already there. Choose another data root, or use "
            f"--overwrite, which deletes sets that were written by this program ({MARKER} beside "
            "them says so)."
        )
    for kind, path in zip(KINDS, (data_root / name for name in SETS)):
        for one in path.glob("[!.]*" if kind == "test" else "RGB/[!.]*"):
            if not one.name.startswith(f"{kind}_"):
                raise FileExistsError(
                    f"{one} was not written by this program, so {path} is not deleted. Choose "
                    "another data root."
                )
    for path in found:
        shutil.rmtree(path)


def main() -> None:
    """Read the command line and write the data set."""
    parser = argparse.ArgumentParser(description="Write the demo's synthetic data set.")
    parser.add_argument("--data-root", type=Path, required=True, help="folder for the sets")
    parser.add_argument("--seed", type=int, default=0, help="of everything random (default: 0)")
    text = "add this many videos without an object to both video sets (default: 0)"
    parser.add_argument("--empty", type=int, default=0, metavar="N", help=text)
    text = "delete synthetic sets that are there already"
    parser.add_argument("--overwrite", action="store_true", help=text)
    arguments = parser.parse_args()
    try:
        write_synthetic(
            arguments.data_root,
            arguments.seed,
            overwrite=arguments.overwrite,
            empty_sequences=arguments.empty,
        )
    except OSError as error:
        parser.exit(1, f"{error}\n")


if __name__ == "__main__":
    main()
