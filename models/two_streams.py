"""Base class of networks with an RGB and a flow stream, which mask one object (Sec. 3.1, 4.3)."""

from collections.abc import Iterable, Iterator
from contextlib import nullcontext

import torch
from torch import Tensor, nn

from models.backbones import check_size
from models.graphs import pictures
from models.interface import (
    REFERENCES,
    STILLS,
    Graph,
    Loaded,
    Needs,
    Network,
    Prediction,
    Video,
    fill,
)
from models.losses import foreground, segmentation_loss
from models.ops import resize
from models.precision import without_weight_cache
from models.seen_references import SeenReferences

# What a network keeps of reference frames, by stream, such as GSA-Net's P_G (B, R, C_G, C_G).
References = dict[str, Tensor]
EXAMPLES = 3  # reference frames in a graph's examples; a graph takes any number


class TwoStreams(Network):
    """Network of an RGB stream and a flow stream; its stage 1 form has the RGB stream alone.

    A subclass has ``rgb_stream`` and ``flow_stream`` (``None`` in stage 1), each with an
    ``encoder``, ``normalise`` and ``embed_references``, and implements :meth:`segment`.
    Images and flow maps are RGB, uint8 or float in [0, 1], with height and width multiples of 32.

    Args:
        motion: False builds stage 1's network, without flow stream and references (Sec. 4.3).
        num_references: N_R, reference frames of a video in test; may change after training.
        reference_gradient: train the encoder through the reference frames too.
        loss: of each mask, see ``models.losses``.
        sigma: strength of the pixel weight in the cross-entropy (eq. 5).
        supervise_slot_maps: also train the maps in ``Prediction.auxiliary`` with the mask.
    """

    stage1 = {"motion": False}  # noqa: RUF012
    random_weights = {"pretrained_backbone": False}  # noqa: RUF012
    compilable = True
    streams_frames = True
    uses_references = True

    def __init__(
        self,
        motion: bool,
        num_references: int,
        reference_gradient: bool,
        loss: str,
        sigma: float,
        supervise_slot_maps: bool = True,
    ):
        super().__init__()
        self.motion = motion
        self.num_references = num_references
        self.reference_gradient = reference_gradient
        self.loss_settings = {"sigma": sigma, "supervise_maps": supervise_slot_maps, "loss": loss}
        self._compiled = None

    @property
    def image_encoder(self) -> nn.Module:
        """The RGB stream's pyramid."""
        return self.rgb_stream.encoder

    @property
    def needs(self) -> Needs:
        """Stage 1: still images with masks. Stage 2: a target and its references, with flow."""
        return Needs(REFERENCES if self.motion else STILLS, flow=self.motion)

    @property
    def changeable(self) -> tuple[str, ...]:
        """The number of reference frames, if there are any."""
        return ("num_references",) if self.motion and self.uses_references else ()

    @property
    def streams(self) -> list[nn.Module]:
        """RGB stream and, if there is one, flow stream."""
        return [stream for stream in (self.rgb_stream, self.flow_stream) if stream is not None]

    def forward(
        self,
        image: Tensor,
        flow: Tensor | None = None,
        reference_images: Tensor | None = None,
        reference_flows: Tensor | None = None,
    ) -> Prediction:
        """Targets (B, 3, H, W) and references (B, R, 3, H, W); in stage 1 ``image`` alone."""
        references = {}
        if self.motion:
            references = self.encode_references(reference_images, reference_flows)
        return self.segment(image, flow, references)

    def loss(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        """Terms of eq. 5, see ``models.losses.segmentation_loss``."""
        mask = foreground(batch["labels"])
        return segmentation_loss(self.predict(batch), mask, **self.loss_settings)

    def predict(self, batch: dict[str, Tensor]) -> Prediction:
        """``forward`` of a batch of samples."""
        return self(**{name: tensor for name, tensor in batch.items() if name != "labels"})

    def encode_references(self, images: Tensor, flows: Tensor) -> References:
        """What ``segment`` needs of reference frames and their flow maps (B, R, 3, H, W)."""
        if not self.uses_references:
            return {}
        check_size(images)
        streams = {"rgb": (self.rgb_stream, images), "flow": (self.flow_stream, flows)}
        return {name: self._encode(*pair) for name, pair in streams.items()}

    def _encode(self, stream: nn.Module, images: Tensor) -> Tensor:
        with without_weight_cache():
            with nullcontext() if self.reference_gradient else torch.no_grad():
                pyramid = stream.encoder(stream.normalise(images.flatten(0, 1)))
            return stream.embed_references(pyramid).unflatten(0, images.shape[:2])

    def segment(self, image: Tensor, flow: Tensor | None, references: References) -> Prediction:
        """Masks of target frames (B, 3, H, W), given references; stage 1 takes ``image`` alone."""
        raise NotImplementedError

    def segment_video(self, video: Video) -> Iterator[Prediction]:
        """References are spread over the whole video and encoded once (Sec. 4.4)."""
        references = self._references_of(video)
        for batch in video:
            yield self._segment(batch, references, self._compiled or self.segment)

    def segment_stream(self, frames: Iterable[dict[str, Tensor]]) -> Iterator[Prediction]:
        """References are spread over the frames seen so far, and encoded once."""
        seen, references = SeenReferences(self.num_references), {}
        for position, frame in enumerate(frames):
            if self.motion and self.uses_references and seen.takes(position):
                pair = (frame[name].unsqueeze(0) for name in ("image", "flow"))
                seen.add(position, self.encode_references(*pair))
                references = seen.spread()
            yield self._segment(frame, references, self._compiled or self.segment)

    def _references_of(self, video: Video) -> References:
        if not (self.motion and self.uses_references):
            return {}
        frames = video.at(uniform_references(len(video), self.num_references))
        return self.encode_references(frames["image"].unsqueeze(0), frames["flow"].unsqueeze(0))

    def _segment(self, batch: dict[str, Tensor], references: References, segment) -> Prediction:
        image, flow = batch["image"], batch["flow"] if self.motion else None
        return segment(image, flow, expand(references, len(image)))

    def graphs(self, height: int, width: int) -> dict[str, Graph]:
        """``references``, to run once for a video, and ``frames``, from which the masks come."""
        names = ("image", "flow") if self.motion else ("image",)
        inputs = {name: pictures(2, height, width) for name in names}
        free, graphs = {name: {0: "batch"} for name in names}, {}
        if self.motion and self.uses_references:
            examples = {
                name: pictures(EXAMPLES, height, width)
                for name in ("reference_images", "reference_flows")
            }
            with torch.no_grad():
                encoded = self.encode_references(*(x.unsqueeze(0) for x in examples.values()))
            names = tuple(f"{name}_references" for name in encoded)
            number = {name: {0: "references"} for name in examples}
            graphs["references"] = Graph(_References(self), examples, names, number)
            inputs |= dict(zip(names, encoded.values()))
            free |= {name: {1: "references"} for name in names}
        graphs["frames"] = Graph(_Frames(self), inputs, ("probability",), free)
        return graphs

    def start_from(self, weights: dict[str, Tensor]) -> Loaded:
        """Stage 1's weights; those of the RGB stream go into the flow stream too (Sec. 4.3)."""
        flow, rgb = "flow_stream.", "rgb_stream."
        names = [name for name in self.state_dict() if name.startswith(flow)]
        return fill(self, weights, {name: name.replace(flow, rgb, 1) for name in names})

    def compile_for_inference(self, mode: str | None) -> None:
        """Compile ``segment``; references are encoded too rarely to gain from it."""
        self._compiled = torch.compile(self.segment, mode=mode)


class _References(nn.Module):
    """From the reference frames of a video and their flow maps (R, 3, H, W) to what is kept."""

    def __init__(self, network: TwoStreams):
        super().__init__()
        self.network = network

    def forward(self, images: Tensor, flows: Tensor) -> tuple[Tensor, ...]:
        encoded = self.network.encode_references(images.unsqueeze(0), flows.unsqueeze(0))
        return tuple(encoded.values())


class _Frames(nn.Module):
    """From target frames (B, 3, H, W) to their probabilities (B, 1, H, W)."""

    def __init__(self, network: TwoStreams):
        super().__init__()
        self.network = network

    def forward(
        self,
        image: Tensor,
        flow: Tensor | None = None,
        rgb: Tensor | None = None,
        flow_references: Tensor | None = None,
    ) -> tuple[Tensor]:
        references = {} if rgb is None else {"rgb": rgb, "flow": flow_references}
        prediction = self.network.segment(image, flow, expand(references, image.shape[0]))
        return (resize(prediction.logits[0], image.shape[2:]).sigmoid(),)


def expand(references: References, batch: int) -> References:
    """The references of one video, for a batch of its target frames."""
    return {name: x.expand(batch, *x.shape[1:]) for name, x in references.items()}


def uniform_references(length: int, count: int) -> list[int]:
    """``count`` frames spread evenly over a video: the middles of equal parts (Sec. 4.4)."""
    return [int((part + 0.5) * length / count) for part in range(count)]
