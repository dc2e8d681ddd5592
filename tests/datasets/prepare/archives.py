"""Tiny archives in each official layout, for the tests of datasets/prepare."""

import dataclasses
from pathlib import Path

import numpy as np
from PIL import Image

from datasets.prepare.sources import SOURCES
from datasets.prepare.writing import Prepared, prepare

SIZE = (12, 16)  # height and width of the test pictures


def image(seed: int = 0) -> np.ndarray:
    """Noise, (H, W, 3) uint8."""
    return np.random.default_rng(seed).integers(0, 256, (*SIZE, 3), dtype=np.uint8)


def objects(*labels: int) -> np.ndarray:
    """Label map, (H, W) uint8: a rectangle for each label, side by side, on background 0."""
    drawn = np.zeros(SIZE, np.uint8)
    for i, label in enumerate(labels):
        drawn[3:9, 1 + 4 * i : 4 + 4 * i] = label
    return drawn


def write(path: Path, pixels: np.ndarray, palette: bool = False, size: tuple | None = None) -> Path:
    """Write pixels as a picture of the path's format; with random colours for labels but 0."""
    path.parent.mkdir(parents=True, exist_ok=True)
    picture = Image.fromarray(pixels)
    if palette:
        colours = np.random.default_rng(1).integers(1, 256, 765).tolist()
        picture.putpalette([0, 0, 0, *colours])
    if size is not None:
        picture = picture.resize(size, Image.Resampling.NEAREST)
    picture.save(path, **({"quality": 100} if path.suffix == ".jpg" else {}))
    return path


def tree(folder: Path) -> dict[str, tuple]:
    """Everything below a folder: kind, time of last change, and content."""
    return {
        str(path.relative_to(folder)): (
            path.is_dir(),
            path.lstat().st_mtime_ns,
            None if path.is_dir() else path.read_bytes(),
        )
        for path in folder.rglob("*")
    }


def run(name: str, source: Path, **options) -> list[Prepared]:
    """Prepare, without known counts, and check that the source stays as it is."""
    tiny = dataclasses.replace(SOURCES[name], sets=())
    before = tree(source)
    try:
        return prepare(source, source.parent / "data", tiny, **options)
    finally:
        assert tree(source) == before


def data_root(source: Path) -> Path:
    return source.parent / "data"


def command(name: str, source: Path, *flags: str) -> list[str]:
    return [name, "--source", str(source), "--data-root", str(data_root(source)), *flags]


def write_duts(source: Path, parts: tuple[str, ...] = ("TR",), images: int = 3) -> None:
    for part in parts:
        for i in range(images):
            folder = source / f"DUTS-{part}"
            write(folder / f"DUTS-{part}-Image" / f"sun_{part}{i}.jpg", image(i))
            write(
                folder / f"DUTS-{part}-Mask" / f"sun_{part}{i}.png", objects(255 if i == 0 else 1)
            )


def write_davis(
    source: Path, masks: dict[str, list[np.ndarray]], annotations: str = "Annotations", **options
) -> None:
    """Sequences of a DAVIS archive with a mask a frame, without the lists of the splits."""
    for sequence, labels in masks.items():
        for t, drawn in enumerate(labels):
            write(source / f"DAVIS/JPEGImages/480p/{sequence}/{t:05d}.jpg", image(t))
            write(source / f"DAVIS/{annotations}/480p/{sequence}/{t:05d}.png", drawn, **options)


def write_lists(source: Path, folder: str, **splits: str) -> None:
    (source / "DAVIS/ImageSets" / folder).mkdir(parents=True)
    for split, lines in splits.items():
        (source / "DAVIS/ImageSets" / folder / f"{split}.txt").write_text(lines)


def write_fbms(
    folder: Path,
    truths: dict[str, tuple[int, np.ndarray]],
    labels: tuple[int, ...] = (),
    frames: tuple[int, ...] = (1, 2, 3, 4),
) -> None:
    """FBMS sequence: masks by file name with the index of their frame, Def.dat where labels are."""
    for t in frames:
        write(folder / f"{folder.name}_{t:02d}.jpg", image(t))
    for name, (_, drawn) in truths.items():
        write(folder / "GroundTruth" / name, drawn)
    if not labels:
        return
    lines = ["Ground truth definition file; do not change!", "", "Total number of regions:"]
    lines += [str(len(labels)), ""]
    for i, label in enumerate(labels):
        lines += [f"Scale of region {i}:", str(label)]
    lines += ["", "Confusion penality matrix:", *["0 1"] * len(labels), ""]
    lines += ["Total number of frames in this shot:", str(len(frames))]
    lines += ["Total number of labeled frames for this shot:", str(len(truths))]
    for name, (index, _) in truths.items():
        lines += ["Frame number:", str(index), "File name:", name]
        lines += ["Input file name:", f"{folder.name}_{index + 1:02d}.ppm"]
    definition = folder / "GroundTruth" / f"{folder.name}Def.dat"
    definition.write_text("\r\n".join(lines) + "\r\n")


def coloured(labels: np.ndarray, colours: dict[int, tuple[int, int, int]]) -> np.ndarray:
    """Label map as a colour picture, (H, W, 3) uint8."""
    drawn = np.zeros((*SIZE, 3), np.uint8)
    for label, colour in colours.items():
        drawn[labels == label] = colour
    return drawn


def write_mixed(source: Path) -> None:
    """A source of which some files are converted and others are not."""
    write_davis(source, {"bear": [objects(255), objects(1)] * 2}, palette=True)
    write_davis(source, {"dog": [objects(255)] * 2}, palette=True)
    write_lists(source, "2016", train="bear\n", val="dog\n")
    write_lists(source, "2017", train="bear\n", val="dog\n")
