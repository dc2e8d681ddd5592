"""What the scripts share: how training starts, errors as messages, checks of the data."""

import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

from datasets.clips import VideoError
from datasets.flow import FlowError
from datasets.layout import DatasetError, Frame, Sequence, check_files
from models import ModelError
from utils.checkpoints import CheckpointError
from utils.distributed import Process, end_process, launch_processes, start_process
from utils.results import ResultsError
from utils.settings import Settings, SettingsError, parse_settings, settings_parser
from utils.training import check_run, network_arguments, resumed_settings

USER_ERRORS = (
    DatasetError,
    FlowError,
    ModelError,
    CheckpointError,
    SettingsError,
    ResultsError,
    VideoError,
)


@dataclass(frozen=True)
class Run:
    """A training run that is about to start.

    Attributes:
        settings: of this run, or of the one that is resumed.
        process: this process.
        folder: of the run.
        resumed: whether it goes on.
    """

    settings: Settings
    process: Process
    folder: Path
    resumed: bool

    def network_arguments(self, motion: bool) -> dict:
        """What builds the network; a resumed run needs no ImageNet weights, it has its own."""
        arguments = network_arguments(self.settings, motion)
        return arguments | {"pretrained_backbone": False} if self.resumed else arguments


def start_training(config: ModuleType, name: str, description: str) -> Run | None:
    """Read the settings of a training script, find its device and its run folder.

    Args:
        config: the module ``config``.
        name: of the run's folder, unless RUN_NAME gives another.
        description: for ``--help``.

    Returns:
        The run; ``None`` if it was left to processes that have been started, and have ended.
    """
    parser = settings_parser(config, description)
    parser.add_argument("--resume", type=Path, metavar="RUN_DIR", help="go on with this run")
    settings, arguments = parse_settings(parser, config)
    given = arguments.given | ({"--config"} if arguments.config else set())
    settings = resumed_settings(settings, arguments.resume, given)
    if launch_processes(settings.gpu):
        return None
    process = start_process(settings.gpu)
    folder = check_run(name, settings, arguments.resume, process)
    return Run(settings, process, folder, arguments.resume is not None)


def run_script(main: Callable[[], None]) -> None:
    """Run a script's ``main``; what the user can mend ends it with a message and status 1."""
    try:
        main()
    except USER_ERRORS as error:
        # A loader process sends its whole traceback as the message; the error itself is its end.
        message = str(error).rpartition(f"{type(error).__name__}: ")[2].strip()
        sys.exit(f"error: {message}")
    except KeyboardInterrupt:
        sys.exit(130)
    finally:
        end_process()


def check_data(frames: list[Frame], process: Process | None = None) -> None:
    """Look at every file's header before anything starts, in the main process.

    Raises:
        DatasetError: files that are unreadable, truncated, or of another size than their image.
    """
    if process is None or process.is_main:
        check_files(frames)


def frames_of(sequences: list[Sequence]) -> list[Frame]:
    """All frames of all sequences."""
    return [frame for sequence in sequences for frame in sequence.frames]
