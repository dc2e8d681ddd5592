"""A web page on this machine: drop a clip, see its masks, download them.

``pip install "gradio>=6"``, then ``python -m utils.app``

docs/evaluation.md says more.
"""

import argparse
import os
import re
import tempfile
import threading
import time
import zipfile
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
from PIL import Image

import config
from datasets.flow.estimators import Estimator
from errors import UserError
from utils.evaluation.segmenting import Segmenter
from utils.evaluation.soft_masks import PROBABILITIES
from utils.evaluation.trained_network import STARTER, load_trained_network, refuse_flags
from utils.evaluation.video import (
    MASKED,
    MASKS,
    OVERLAY,
    certainty,
    settings_estimator,
    write_frames,
)
from utils.processes import start_process
from utils.reports.pictures import OVERLAY_COLOUR, Colour
from utils.scripts import run_script
from utils.settings import Settings, parse_settings, positive, settings_parser
from utils.training.interrupts import terminated_in_order

_PATIENCE = 30  # seconds to wait for a frame at the end
_KEPT = 3600  # seconds for which uploads and results are kept
_LOOK = 0.5  # seconds between two pictures of a frame while the network works
_MASKS = 8  # masks on the page
# As many masks in a row as a screen is wide enough for.
_STYLE = "#masks .grid-container {grid-template-columns: repeat(auto-fill, minmax(140px, 1fr))}"
_WAITING = "Drop a clip, then press Start."


class AppError(UserError):
    """The page cannot be served."""


def main() -> None:
    """Read the settings, load the network and serve the page until Ctrl-C."""
    settings, arguments = parse_settings(app_parser(), config)
    refuse_flags(arguments.given & {"FRAME_RATE"})
    device = start_process(settings.gpu.split(",")[0]).device
    given = (arguments.checkpoint, settings, arguments.given)
    trained = load_trained_network(*given, ("video",), device)
    estimator = settings_estimator(trained, settings)
    with terminated_in_order(), tempfile.TemporaryDirectory(prefix="masks-") as folder:
        uploads, jobs = Path(folder, "uploads"), Path(folder, "jobs")
        os.environ["GRADIO_TEMP_DIR"] = str(uploads)  # so that nothing is left at the end
        jobs.mkdir()  # Gradio serves copies of files that lie outside of its own folder
        gradio = import_gradio()
        job = Job(trained.segmenter, settings, estimator, jobs)
        print(f"http://{arguments.host}:{arguments.port} is the page; Ctrl-C ends it")
        try:
            build_page(gradio, job, trained.method).launch(
                server_name=arguments.host,
                server_port=arguments.port,
                max_file_size=arguments.max_upload * 2**20,
                footer_links=[],
                share=False,  # not even where the environment asks for a public address
                ssr_mode=False,
                quiet=True,
                css=_STYLE,
            )
        except (OSError, OverflowError) as error:
            raise AppError(f"port {arguments.port} of {arguments.host}: {error}") from error
        finally:
            job.computing.acquire(timeout=_PATIENCE)  # kept: nothing is computed from here on


def app_parser() -> argparse.ArgumentParser:
    """The flags of this program, and those of the settings."""
    listed = ("test", "objects", "masks", "machine", "video")
    parser = settings_parser(config, __doc__.split("\n")[0], listed)
    add = parser.add_argument
    network = "network that segments (default: assets/starter.pt)"
    add("--checkpoint", type=Path, metavar="FILE", default=STARTER, help=network)
    address = "address to serve on; 0.0.0.0 lets other machines in (default: %(default)s)"
    add("--host", metavar="ADDRESS", default="127.0.0.1", help=address)
    add("--port", type=positive, default=7860, help="port to serve on (default: %(default)s)")
    largest = "largest upload in MiB (default: %(default)s)"
    add("--max-upload", type=positive, metavar="MIB", default=500, help=largest)
    return parser


def import_gradio() -> ModuleType:
    """Gradio, told to send no reports. Raises AppError if it is not installed."""
    os.environ["GRADIO_ANALYTICS_ENABLED"] = os.environ["GRADIO_RUN_HISTORY"] = "False"
    try:
        import gradio
    except ImportError as error:
        raise AppError("the page needs the package gradio: pip install 'gradio>=6'") from error
    return gradio


@dataclass(frozen=True)
class Progress:
    """How far a clip is."""

    done: int  # frames
    count: int
    picture: np.ndarray | None  # the last frame, tinted


@dataclass(frozen=True)
class Results:
    """Files of a clip: a film, masks to show, and what can be downloaded."""

    film: Path
    masks: list[Path]
    downloads: list[Path]
    certainty: str  # of frames without a mask


@dataclass(frozen=True)
class Job:
    """What is done with each clip."""

    segmenter: Segmenter
    settings: Settings
    estimator: Estimator | None
    folder: Path  # for temporary files
    computing: threading.Lock = field(default_factory=threading.Lock)  # held for each frame

    def run(self, clip: Path, colour: Colour) -> Iterator[Progress | Results]:
        """Segment a clip. Its results are removed when the iterator goes on or is closed.

        Raises:
            UserError: the clip cannot be used. The message has its name without its folder.
        """
        with tempfile.TemporaryDirectory(dir=self.folder) as folder:
            output = Path(folder)
            given = (self.segmenter, clip, output, self.settings, self.estimator, colour)
            try:
                with closing(write_frames(*given)) as written:
                    for done, (count, picture) in enumerate(self._one_by_one(written)):
                        yield Progress(done, count, picture)
            except UserError as error:
                raise AppError(str(error).replace(f"{clip.parent}/", "")) from error
            yield _collect(output, clip.stem)

    def _one_by_one(self, frames: Iterator[Any]) -> Iterator[Any]:
        """The frames, each computed when nothing else is, and not after the end of the page."""
        while True:
            with self.computing:
                frame = next(frames, None)
            if frame is None:
                return
            yield frame


def _collect(output: Path, name: str) -> Results:
    """The files of a clip, with its name in theirs."""
    film, table = output / f"{name}_{OVERLAY}", output / f"{name}_{MASKED}"
    (output / OVERLAY).rename(film)
    (output / MASKED).rename(table)
    masks = sorted((output / MASKS).iterdir())
    archives = []
    for kind in (MASKS, PROBABILITIES):
        if (output / kind).is_dir():
            archives.append(output / f"{name}_{kind}.zip")
            with zipfile.ZipFile(archives[-1], "w") as archive:
                for picture in sorted((output / kind).iterdir()):
                    archive.write(picture, picture.relative_to(output))
    shown = [masks[int((i + 0.5) * len(masks) / _MASKS)] for i in range(_MASKS)]
    return Results(film, list(dict.fromkeys(shown)), [film, *archives, table], certainty(table))


def build_page(gradio: ModuleType, job: Job, method: str) -> Any:
    """The page as ``gradio.Blocks``; one clip at a time is segmented, others wait."""
    one_object = job.segmenter.network.needs.masks
    with gradio.Blocks(
        title="Video object segmentation", analytics_enabled=False, delete_cache=(60, _KEPT)
    ) as page:
        gradio.Markdown(f"# Video object segmentation\n{method}")
        with gradio.Row():
            with gradio.Column(scale=1, min_width=300):
                clip = gradio.File(label="Clip", height=140)
                start_colour = "#{:02x}{:02x}{:02x}".format(*OVERLAY_COLOUR)
                colour = gradio.ColorPicker(start_colour, label="Colour", visible=one_object)
                with gradio.Row():
                    start = gradio.Button("Start", variant="primary", min_width=100)
                    cancel = gradio.Button("Cancel", interactive=False, min_width=100)
                status = gradio.Textbox(_WAITING, label="Status", lines=2, interactive=False)
            with gradio.Column(scale=2, min_width=300):
                frame = gradio.Image(label="Frame", interactive=False, buttons=["fullscreen"])
                film = gradio.Video(label="Overlay", interactive=False, visible=False)
                masks = gradio.Gallery(
                    label="Masks",
                    elem_id="masks",
                    height="auto",
                    object_fit="contain",
                    visible=False,
                )
                files = gradio.File(label="Downloads", interactive=False, visible=False)

        def state(text: str, running: bool = False) -> dict[Any, Any]:
            """The page while a clip is segmented, or before and after."""
            return {
                status: text,
                start: gradio.update(interactive=not running),
                cancel: gradio.update(interactive=running),
            }

        def hidden() -> dict[Any, Any]:
            return {part: gradio.update(value=None, visible=False) for part in (film, masks, files)}

        def shown_frame() -> dict[Any, Any]:
            return {frame: gradio.update(value=None, visible=True)}

        def segment(upload: str | None, tint: str) -> Iterator[dict[Any, Any]]:
            if upload is None:
                yield state(_WAITING)
                return
            yield state("Reading the clip", running=True) | hidden() | shown_frame()
            began = shown = time.monotonic()
            try:
                with closing(job.run(Path(upload), parse_colour(tint))) as results:
                    for result in results:
                        if isinstance(result, Results):
                            yield finished(result)
                        elif time.monotonic() > shown + _LOOK or not result.done:
                            shown = time.monotonic()
                            text = in_words(result, shown - began)
                            yield state(text, running=True) | {frame: result.picture}
            except UserError as error:
                yield state(f"Error: {error}") | shown_frame()
            except Exception as error:  # the page can be used again; the log has the traceback
                yield state(f"Error: {type(error).__name__}: {error}") | shown_frame()
                raise

        def finished(result: Results) -> dict[Any, Any]:
            pictures = [
                (np.asarray(Image.open(path).convert("RGB")), path.stem) for path in result.masks
            ]
            return state(f"Done\n{result.certainty}".strip()) | {
                frame: gradio.update(value=None, visible=False),
                film: gradio.update(value=str(result.film), visible=True),
                masks: gradio.update(value=pictures, visible=True),
                files: gradio.update(value=[str(path) for path in result.downloads], visible=True),
            }

        parts = [status, start, cancel, frame, film, masks, files]
        running = start.click(segment, [clip, colour], parts, concurrency_limit=1)
        cancel.click(
            lambda: state("Cancelled") | hidden() | shown_frame(), None, parts, cancels=[running]
        )
    return page


def in_words(progress: Progress, seconds: float) -> str:
    """How far a clip is, and how long the rest takes."""
    text = f"{progress.done} of {progress.count} frames"
    if progress.done:
        rest = seconds / progress.done * (progress.count - progress.done)
        text += f", about {rest:.0f} s to go"
    return text


def parse_colour(text: str) -> Colour:
    """The colour of a colour picker, ``#ff0080`` or ``rgba(255, 0, 128, 1)``.

    Raises:
        AppError: it is neither.
    """
    if re.fullmatch("#[0-9a-fA-F]{6}", text):
        return tuple(bytes.fromhex(text[1:]))
    number = r"\s*(\d+(?:\.\d+)?)\s*"
    found = re.fullmatch(rf"rgba?\({number},{number},{number}(?:,.*)?\)", text)
    colour = tuple(round(float(x)) for x in found.groups()) if found else (256,)
    if max(colour) > 255:
        raise AppError(f"Colour: found {text!r}, expected one as #ff0080")
    return colour


if __name__ == "__main__":
    run_script(main)
