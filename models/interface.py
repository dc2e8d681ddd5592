"""The contract of a network: what it is trained on, how it is scored, updated and used.

Data sets, the training loop and the evaluation use nothing else of a network. A new network is a
class derived from :class:`Network` with a name in ``models.MODELS``.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, NamedTuple, Protocol

from torch import Tensor, nn

STILLS, REFERENCES, WINDOWS = "stills", "references", "windows"


@dataclass(frozen=True)
class Needs:
    """The samples that a network is trained on.

    Attributes:
        samples: ``STILLS``, single images; ``REFERENCES``, a target frame and reference frames of
            its video; or ``WINDOWS``, neighbouring frames of a video.
        masks: whether samples have label maps.
        flow: whether frames have flow maps.
        frames: T, the number of frames of a window.
        gap: distance of a window's neighbouring frames, in frames of the video.
    """

    samples: str
    masks: bool = True
    flow: bool = False
    frames: int = 1
    gap: int = 1


class Indicator(NamedTuple):
    """A number about a video that tells how well a network works where there are no masks."""

    value: float
    limit: float  # a larger value means that something is wrong
    advice: str  # what it may be, and what to do


@dataclass
class Prediction:
    """Result of a network for a batch of frames.

    Attributes:
        logits: scores of the K objects before the sigmoid, (B, K, h, w) each, of any size, finest
            first. The first is the prediction, the others are its deep supervision.
        auxiliary: further logits (B, 1, h, w) that training may supervise with the mask.
        maps: named maps (B, h, w) in [0, 1] for pictures, in the order in which panels show them.
        indicators: named numbers about the video, for the log and the evaluation.
    """

    logits: list[Tensor]
    auxiliary: list[Tensor] = field(default_factory=list)
    maps: dict[str, Tensor] = field(default_factory=dict)
    indicators: dict[str, Indicator] = field(default_factory=dict)


@dataclass(frozen=True)
class Loaded:
    """How many tensors stage 2 took over from stage 1.

    Attributes:
        loaded: tensors of the network from the checkpoint, by their own name.
        copied: from a tensor of another name.
        fresh: with their initial values.
        unused: tensors of the checkpoint that do not fit the network.
    """

    loaded: int
    copied: int
    fresh: int
    unused: int

    def __str__(self) -> str:
        copied = f"{self.copied} copied from the RGB to the flow stream, " if self.copied else ""
        return (
            f"{self.loaded} tensors loaded, {copied}{self.fresh} left at their initial values, "
            f"{self.unused} of the file not used"
        )


@dataclass(frozen=True)
class Ablation:
    """The variants of one network that its ablation compares.

    Attributes:
        switches: settings that leave out a part of the network, by the part's short name.
        rows: the parts of each variant, by its letter.
        table, sweep_table: file names of the tables of the rows and of the sweep.
        stage1_switches: the parts that exist in stage 1 already. Rows with the same ones share one
            stage 1.
        swept, symbol, sweep: a setting that may change after training, its letter, its values.
        sweep_needs: the part that the swept setting belongs to. Only the last row that has it is
            swept.
        paper: each row's G, J and F on DAVIS 2016 in the paper; empty if unknown.
    """

    switches: dict[str, str]
    rows: dict[str, tuple[str, ...]]
    table: str
    stage1_switches: tuple[str, ...]
    swept: str
    symbol: str
    sweep: tuple[int, ...]
    sweep_needs: str
    sweep_table: str
    paper: dict[str, tuple[float, float, float]] = field(default_factory=dict)


@dataclass(frozen=True)
class Graph:
    """A part of a network for programs that do not have this code; ``utils.export`` writes it.

    Attributes:
        module: takes the inputs in their order and returns the outputs as a tuple.
        inputs: examples by name. Images and flow maps are uint8 RGB (B, 3, H, W).
        outputs: their names. A later graph's input of the same name is this output.
        free: the axes of inputs that may have any length, by name: the axis and its name.
    """

    module: nn.Module
    inputs: dict[str, Tensor]
    outputs: tuple[str, ...]
    free: dict[str, dict[int, str]]


class Video(Protocol):
    """The frames of one video: uint8 RGB tensors ``image`` and, if needed, ``flow``.

    They are on the network's device.
    """

    def __len__(self) -> int:
        """Number of frames of the whole video."""

    def at(self, positions: Sequence[int]) -> dict[str, Tensor]:
        """The frames at these positions of the whole video, (R, 3, H, W)."""

    def __iter__(self) -> Iterator[dict[str, Tensor]]:
        """Batches of the frames that are to be segmented, in order, (B, 3, H, W)."""


class Network(nn.Module):
    """Base class of all networks. A constructor's arguments are settings of the same name.

    Attributes:
        stage1: constructor arguments that make the network of stage 1 (``pretrain.py``); ``None``
            for a network that is trained in one stage.
        random_weights: constructor arguments that skip published weights, for a network that is
            filled from a checkpoint.
        size_step: height and width of the input are multiples of this.
        looks_ahead: whether ``segment_video`` needs the whole video before the first result. Other
            networks segment a video of any length in bounded memory.
        tracks_objects: whether object k of ``segment_video`` is the same in all frames.
        streams_frames: whether the network has ``segment_stream``.
        compilable: whether ``compile_for_inference`` has an effect.
        skips_parameters: whether trainable parameters get no gradient in some steps.
        ablation: the variants that ``python -m utils.ablate`` compares.
    """

    stage1: dict[str, Any] | None = None
    random_weights: ClassVar[dict[str, Any]] = {}
    size_step: int = 32
    looks_ahead: bool = False
    tracks_objects: bool = True
    streams_frames: bool = False
    compilable: bool = False
    skips_parameters: bool = False
    ablation: Ablation | None = None

    @property
    def needs(self) -> Needs:
        """What the network is trained on."""
        raise NotImplementedError

    @property
    def changeable(self) -> tuple[str, ...]:
        """Constructor arguments that may change after training, for an evaluation."""
        return ()

    @property
    def image_encoder(self) -> nn.Module:
        """The encoder of images, for ``models.propagation``; by default ``encoder``."""
        return self.encoder

    def loss(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        """Named terms, scalars, whose sum is minimised.

        Args:
            batch: uint8 tensors. ``image`` (B, 3, H, W) or, of windows, (B, T, 3, H, W);
                ``labels`` (B, H, W) or (B, T, H, W): 0 background, 1 to K objects, 255 void;
                ``flow`` like ``image``; ``reference_images``, ``reference_flows`` (B, R, 3, H, W).
                Only what :attr:`needs` asks for is there.
        """
        raise NotImplementedError

    def predict(self, batch: dict[str, Tensor]) -> Prediction:
        """Predictions of the target frames of samples, for the validation of stage 1."""
        raise NotImplementedError

    def segment_video(self, video: Video) -> Iterator[Prediction]:
        """Predictions of the video's batches, in order."""
        raise NotImplementedError

    def segment_stream(self, frames: Iterable[dict[str, Tensor]]) -> Iterator[Prediction]:
        """Predictions of frames that come one by one, each before the next frame is read.

        Memory is constant. Object k is the same in all predictions.

        Args:
            frames: uint8 RGB tensors ``image`` and, if needed, ``flow`` (1, 3, H, W), on the
                network's device. Flow is the motion since the frame before; the first frame's
                shows none.
        """
        raise NotImplementedError

    def parameter_groups(self) -> list[dict[str, Any]]:
        """Groups of ``params`` for the optimizer.

        A group may have ``rate``, a factor of the learning rate, and ``weight_decay``.
        """
        return [{"params": [p for p in self.parameters() if p.requires_grad]}]

    def before_step(self, step: int) -> None:
        """Changes by the network itself before each step; ``step`` is the number of steps done.

        An example is a part that is frozen at first. A run that is resumed calls it, too.
        """

    def after_step(self, step: int) -> None:
        """Changes by the network itself after each step of the optimizer; ``step`` counts from 1.

        An example is a teacher's moving average. A teacher is a part of the network, so that
        checkpoints contain it.
        """

    def start_from(self, weights: dict[str, Tensor]) -> Loaded:
        """Take over the weights of stage 1: every tensor that has the same name and shape."""
        return fill(self, weights, {})

    def maps_by_iteration(self, video: Video) -> list[dict[str, Tensor]]:
        """Maps of the video's first batch after 0, 1, ... rounds, if the network has rounds."""
        return []

    def graphs(self, height: int, width: int) -> dict[str, Graph]:
        """The parts that other programs can run, by name, for images of this size; if any."""
        return {}

    def compile_for_inference(self, mode: str | None) -> None:
        """Compile the function that ``segment_video`` calls for every batch."""

    def parts(self) -> dict[str, list[nn.Module]]:
        """The parts that the benchmark measures; time in an inner part is not the outer one's."""
        return {}


def fill(network: nn.Module, weights: dict[str, Tensor], twins: dict[str, str]) -> Loaded:
    """Fill a network with the weights of another one that fit by name and shape.

    ``twins`` has the names of tensors to copy for those that ``weights`` does not have.
    """
    own = network.state_dict()
    found, copied, used = {}, 0, set()
    for name, tensor in own.items():
        for source in dict.fromkeys((name, twins.get(name, name))):
            if source in weights and weights[source].shape == tensor.shape:
                found[name] = weights[source]
                used.add(source)
                copied += source != name
                break
    network.load_state_dict(found, strict=False)
    return Loaded(len(found) - copied, copied, len(own) - len(found), len(weights) - len(used))


def decay_matrices(
    parameters: Iterable[nn.Parameter],
    weight_decay: float,
    without: Iterable[nn.Parameter] = (),
    **options: Any,
) -> list[dict[str, Any]]:
    """Two groups for the optimizer: parameters of several axes decay, the others do not.

    ``without`` are further ones that do not; ``options`` are those of both groups, as ``rate``.
    """
    out = set(without)
    decayed, others = [], []
    for parameter in parameters:
        (decayed if parameter.ndim > 1 and parameter not in out else others).append(parameter)
    return [
        {"params": decayed, "weight_decay": weight_decay, **options},
        {"params": others, **options},
    ]
