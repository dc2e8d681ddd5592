"""A web page on this machine: drop a clip, see its masks, download them.

``pip install "gradio>=6"``, then ``python -m utils.app``

docs/evaluation.md says more.
"""

import argparse
import os
import re
import shutil
import socket
import sys
import tempfile
import threading
import time
import zipfile
from collections.abc import Iterator
from concurrent.futures import CancelledError, Future, ThreadPoolExecutor, wait
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any

import cv2
import numpy as np

import config
from datasets.clips import check_clip
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

_KEPT = 3600  # seconds for which uploads and results are kept
_LOOK = 0.5  # seconds between two pictures of a frame while the network works
_MASKS = 8  # masks on the page
_LARGEST = 960  # pixels of a shown frame
# As many masks in a row as a screen is wide enough for.
_STYLE = "#masks .grid-container {grid-template-columns: repeat(auto-fill, minmax(140px, 1fr))}"
# Uploads are files, not folders. CUDA graphs of torch.compile belong to the main thread.
_WITHOUT_EFFECT = {"FRAME_RATE", "COMPILE"}
_WAITING, _READING = "Drop a clip, then press Start.", "Reading the clip"


class AppError(UserError):
    """The page cannot be served."""


def main() -> None:
    """Read the settings, load the network and serve the page until Ctrl-C."""
    settings, arguments = parse_settings(app_parser(), config)
    refuse_flags(arguments.given & _WITHOUT_EFFECT)
    if settings.compile:
        settings = settings.replace(compile=False)
        print("note: COMPILE is without effect on the page")
    host = check_address(arguments.host, arguments.port)
    device = start_process(settings.gpu.split(",")[0]).device
    given = (arguments.checkpoint, settings, arguments.given)
    trained = load_trained_network(*given, ("video",), device)
    estimator = settings_estimator(trained, settings)
    with (
        left_at_once(),
        terminated_in_order(),
        tempfile.TemporaryDirectory(prefix="masks-") as folder,
    ):
        uploads, jobs = Path(folder, "uploads"), Path(folder, "jobs")
        os.environ["GRADIO_TEMP_DIR"] = str(uploads)  # so that nothing is left at the end
        jobs.mkdir()  # Gradio serves copies of files that lie outside of its own folder
        gradio = import_gradio(arguments.host)
        job = Job(trained.segmenter, settings, estimator, jobs)
        print(f"http://{host}:{arguments.port} is the page; Ctrl-C ends it")
        try:
            build_page(gradio, job, trained.method).launch(
                server_name=host,
                server_port=arguments.port,
                max_file_size=arguments.max_upload * 2**20,
                footer_links=[],
                share=False,  # not even where the environment asks for a public address
                ssr_mode=False,
                quiet=True,
                css=_STYLE,
            )
        finally:
            job.end()


@contextmanager
def left_at_once() -> Iterator[None]:
    """Ends the program after the block, or at the SystemExit of a signal.

    Python's own end would abort it if one of Gradio's threads were in OpenCV.
    """
    code = 0
    try:
        yield
    except SystemExit as ended:
        code = ended.code
    sys.stdout.flush()
    os._exit(code)


def app_parser() -> argparse.ArgumentParser:
    """The flags of this program, and those of the settings."""
    listed = ("test", "objects", "masks", "machine", "video")
    parser = settings_parser(config, __doc__.split("\n")[0], listed, _WITHOUT_EFFECT)
    add = parser.add_argument
    network = "network that segments (default: assets/starter.pt)"
    add("--checkpoint", type=Path, metavar="FILE", default=STARTER, help=network)
    address = "address to serve on; 0.0.0.0 lets other machines in (default: %(default)s)"
    add("--host", metavar="ADDRESS", default="127.0.0.1", help=address)
    add("--port", type=positive, default=7860, help="port to serve on (default: %(default)s)")
    largest = "largest upload in MiB (default: %(default)s)"
    add("--max-upload", type=positive, metavar="MIB", default=500, help=largest)
    return parser


def check_address(host: str, port: int) -> str:
    """The host as it is written in a URL. Raises AppError if nothing can be served there."""
    try:
        family, *_, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        socket.create_server((address[0], port), family=family).close()
    except (OSError, OverflowError, UnicodeError) as error:
        reason = str(getattr(error, "strerror", None) or error).partition(" (while")[0]
        raise AppError(
            f"--host {host} --port {port}: {reason}; choose another --port, or a --host of this "
            "machine"
        ) from error
    return f"[{host}]" if ":" in host else host


def import_gradio(host: str) -> ModuleType:
    """Gradio, told to send no reports. Raises AppError if it is not installed."""
    os.environ["GRADIO_ANALYTICS_ENABLED"] = os.environ["GRADIO_RUN_HISTORY"] = "False"
    # At the start it asks itself for the page, which a proxy would refuse.
    others = os.environ.get("no_proxy", os.environ.get("NO_PROXY", ""))
    for name in ("NO_PROXY", "no_proxy"):
        os.environ[name] = ",".join(filter(None, (others, host, "localhost")))
    try:
        import gradio
    except ModuleNotFoundError as error:
        if error.name != "gradio":
            raise
        raise AppError("the page needs the package gradio: pip install 'gradio>=6'") from error
    return gradio


@dataclass
class Running:
    """The progress of a clip, which the thread that segments it writes and the page reads."""

    text: str = "Waiting for the clips before this one"
    picture: np.ndarray | None = None  # the last frame, tinted
    stopped: bool = False


@dataclass(frozen=True)
class Results:
    """Files of a clip: a film, masks to show, and what can be downloaded."""

    film: Path
    masks: list[Path]
    downloads: list[Path]
    certainty: str  # of frames without a mask


@dataclass(frozen=True)
class Job:
    """Segments clips, one after the other."""

    segmenter: Segmenter
    settings: Settings
    estimator: Estimator | None
    folder: Path  # for temporary files
    worker: ThreadPoolExecutor = field(default_factory=lambda: ThreadPoolExecutor(1))
    ended: threading.Event = field(default_factory=threading.Event)

    @contextmanager
    def started(self, upload: Path, colour: Colour) -> Iterator[tuple[Running, Future[Results]]]:
        """Segment a clip in the job's thread: how far it is, and its results.

        Leaving the block stops the work before its next frame, and removes all files. The future
        raises UserError for a clip that cannot be used. The message has its name without a folder.
        """
        running, folder = Running(), Path(tempfile.mkdtemp(dir=self.folder))
        results: Future[Results] = Future()
        try:
            clip = _kept(upload, folder)
            results = self.worker.submit(self._segment, clip, folder / "results", colour, running)
            yield running, results
        finally:  # does not wait: Gradio calls this where it serves all pages
            running.stopped = True
            results.cancel()
            results.add_done_callback(lambda _: shutil.rmtree(folder, ignore_errors=True))

    def _segment(self, clip: Path, output: Path, colour: Colour, running: Running) -> Results:
        began, running.text = 0.0, _READING

        def report(work: str, done: int, count: int | None) -> None:
            nonlocal began
            if running.stopped or self.ended.is_set():
                raise CancelledError
            if not done:
                began = time.monotonic()
            running.text = in_words(work, done, count, time.monotonic() - began)

        try:
            checked = check_clip(clip, progress=report)
            given = (self.segmenter, checked, output, self.settings, self.estimator)
            for picture in write_frames(*given, colour, report):
                running.picture = picture
        except UserError as error:
            raise AppError(str(error).replace(f"{clip.parent}/", "")) from error
        return _collect(output, clip.stem)

    def end(self) -> None:
        """Stop before the next frame; wait for that, so that no file is written afterwards."""
        self.ended.set()
        self.worker.shutdown(cancel_futures=True)


def _kept(upload: Path, folder: Path) -> Path:
    """A link to the clip in a folder, because Gradio may remove the upload while it waits."""
    if not upload.exists():
        raise AppError(f"{upload.name}: uploads are removed after an hour; drop it again")
    clip = folder / "clip" / upload.name
    clip.parent.mkdir()
    try:
        os.link(upload, clip)
    except OSError:  # not every file system has links
        return upload
    return clip


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
    clips: dict[str, Running] = {}  # of each page that has one
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

        def segment(
            upload: str | None, tint: str, request: gradio.Request
        ) -> Iterator[dict[Any, Any]]:
            if upload is None:
                yield state(_WAITING)
                return
            yield state(_READING, running=True) | hidden() | shown_frame()
            try:
                with job.started(Path(upload), parse_colour(tint)) as (running, results):
                    clips[request.session_hash] = running
                    while wait([results], _LOOK).not_done and not running.stopped:
                        picture = running.picture
                        shown = {} if picture is None else {frame: small(picture)}
                        yield state(running.text, running=True) | shown
                    if running.stopped:
                        yield state("Cancelled") | hidden() | shown_frame()
                    else:
                        yield finished(results.result())
            except CancelledError:
                yield state("The program has ended") | shown_frame()
            except UserError as error:
                yield state(f"Error: {error}") | shown_frame()
            except Exception as error:  # the page can be used again; the log has the traceback
                yield state(f"Error: {type(error).__name__}: {error}") | shown_frame()
                raise
            finally:
                clips.pop(request.session_hash, None)

        # Gradio's own way to cancel may let the page wait for ever.
        def stop(request: gradio.Request) -> None:
            if request.session_hash in clips:
                clips[request.session_hash].stopped = True

        def finished(result: Results) -> dict[Any, Any]:
            pictures = [(str(path), path.stem) for path in result.masks]
            return state(f"Done\n{result.certainty}".strip()) | {
                frame: gradio.update(value=None, visible=False),
                film: gradio.update(value=str(result.film), visible=True),
                masks: gradio.update(value=pictures, visible=True),
                files: gradio.update(value=[str(path) for path in result.downloads], visible=True),
            }

        parts = [status, start, cancel, frame, film, masks, files]
        private = {"api_visibility": "private"}
        start.click(segment, [clip, colour], parts, concurrency_limit=None, **private)
        cancel.click(stop, **private)
        clip.upload(lambda: "Press Start.", None, status, **private)
    return page


def small(picture: np.ndarray) -> np.ndarray:
    """A picture of at most 960 pixels: a larger one takes long to encode and to send."""
    scale = _LARGEST / max(picture.shape)
    if scale >= 1:
        return picture
    return cv2.resize(picture, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA)


def in_words(work: str, done: int, count: int | None, seconds: float) -> str:
    """The progress of a clip; from the second frame of segmenting on also the time that is left."""
    text = f"{done} of {count} frames" if count else f"{done} frames"
    if work != "segmenting":
        return f"{work.capitalize()}: {text}"
    if done:
        text += f", about {seconds / done * (count - done):.0f} s to go"
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
