"""SMTC, *Semantics Meets Temporal Correspondence* (arXiv 2308.09951): objects without masks."""

import copy
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.backbones import ModelError, Normalise
from models.backbones.vision_transformer import KINETICS, Tokens, VisionTransformer
from models.colour_views import colour_view
from models.graphs import key_graphs
from models.interface import (
    WINDOWS,
    Graph,
    Needs,
    Network,
    Prediction,
    Video,
    decay_matrices,
)
from models.precision import full_precision, without_autocast
from models.smtc import losses
from models.smtc.correspondence import previous_frames
from models.smtc.discovery import release, release_logits, track_logits, track_weights, tracks
from models.smtc.slot_network import CLIP, SlotNetwork, Slots

WEIGHT_DECAY = 0.1


class SMTC(Network):
    """A student learns to find the slots of its teacher, which sees the clip in other colours.

    Args:
        backbone, pretrained_backbone, backbone_weights, position_table: the vision transformer.
        drop_path: largest rate of its stochastic depth.
        frame_gap: distance of a training clip's frames.
        num_iterations: I, rounds of slot attention in each stage.
        semantic_slots, instance_slots: S, and P for each of them.
        correspondence_grid: side of the grid of the previous frame's positions.
        cyclic_clips: in training the frame before a clip's first one is its last one.
        instance_region: ``soft``, ``probability`` or ``logit``, where instances share tokens.
        reparameterised: the Gaussians of the instances learn through drawn slots.
        valid_probability, valid_area: see :func:`models.smtc.losses.valid_instances`.
        freeze_steps: number of first steps in which the encoder is frozen.
        encoder_rate: factor of its learning rate.
        drop_path_while_frozen: stochastic depth in these first steps, too.
        decay_gaussians: weight decay of the Gaussians' means and deviations.
        teacher_momentum: share of itself that the teacher keeps in a step.
        teacher_encoder_follows: the teacher's encoder follows the student's; False: never changes.
        discovery: ``tracks`` or ``release``; see ``segment_video``.
        max_objects: at most this number of tracks, the largest, are objects.
        noise_seed: of the instances in a video.
        kinetics_statistics: videos are normalised as those of Kinetics.
    """

    random_weights = {"pretrained_backbone": False}  # noqa: RUF012
    size_step = 16
    looks_ahead = True

    def __init__(
        self,
        backbone: str = "vit_small_patch16_224.dino",
        pretrained_backbone: bool = True,
        backbone_weights: Path | None = None,
        position_table: str = "dino",
        drop_path: float = 0.1,
        frame_gap: int = 4,
        num_iterations: int = 3,
        semantic_slots: int = 16,
        instance_slots: int = 4,
        correspondence_grid: int = 16,
        cyclic_clips: bool = True,
        instance_region: str = "soft",
        reparameterised: bool = True,
        valid_probability: float = 0.3,
        valid_area: float = 0.2,
        freeze_steps: int = 3000,
        encoder_rate: float = 0.01,
        drop_path_while_frozen: bool = False,
        decay_gaussians: bool = True,
        teacher_momentum: float = 0.999,
        teacher_encoder_follows: bool = False,
        discovery: str = "tracks",
        max_objects: int = 20,
        noise_seed: int = 0,
        kinetics_statistics: bool = False,
    ):
        super().__init__()
        if num_iterations < 1:
            raise ModelError(f"NUM_ITERATIONS is {num_iterations}; smtc needs at least 1")
        self.encoder = VisionTransformer(
            backbone, pretrained_backbone, backbone_weights, position_table, drop_path
        )
        self.encoder.train_keys_alone()
        self.slots = SlotNetwork(
            self.encoder.channels,
            semantic_slots,
            instance_slots,
            correspondence_grid,
            instance_region,
            reparameterised,
        )
        self.teacher_encoder = copy.deepcopy(self.encoder).requires_grad_(False)
        self.teacher_slots = copy.deepcopy(self.slots).requires_grad_(False)
        self.normalise = Normalise(self.encoder.mean, self.encoder.deviation)
        self.normalise_as_kinetics = Normalise(*KINETICS)
        self.frame_gap = frame_gap
        self.num_iterations = num_iterations
        self.cyclic_clips = cyclic_clips
        self.valid = (valid_probability, valid_area)
        self.freeze_steps = freeze_steps
        self.encoder_rate = encoder_rate
        self.drop_path_while_frozen = drop_path_while_frozen
        self.decay_gaussians = decay_gaussians
        self.teacher_momentum = teacher_momentum
        self.teacher_encoder_follows = teacher_encoder_follows
        self.discovery = discovery
        self.max_objects = max_objects
        self.noise_seed = noise_seed
        self.kinetics_statistics = kinetics_statistics
        self.frozen = freeze_steps > 0
        self.train()

    def graphs(self, height: int, width: int) -> dict[str, Graph]:
        """The encoder's keys; slots are found over a whole video, in PyTorch alone."""
        return key_graphs(self.encoder, height, width)

    @property
    def needs(self) -> Needs:
        """Clips of four frames, without masks."""
        return Needs(WINDOWS, masks=False, frames=CLIP, gap=self.frame_gap)

    @property
    def skips_parameters(self) -> bool:
        """The encoder's, while it is frozen."""
        return self.freeze_steps > 0

    @property
    def changeable(self) -> tuple[str, ...]:
        """The rounds, and what belongs to the discovery of objects."""
        return ("num_iterations", "discovery", "max_objects", "noise_seed", "kinetics_statistics")

    @property
    def tracks_objects(self) -> bool:
        """The release's discovery numbers the objects of each frame anew."""
        return self.discovery == "tracks"

    def train(self, mode: bool = True) -> "SMTC":
        """As of any module, but the teacher stays in evaluation mode, as does a frozen encoder."""
        super().train(mode)
        self.teacher_encoder.eval()
        self.teacher_slots.eval()
        self.encoder.train(mode and (not self.frozen or self.drop_path_while_frozen))
        return self

    def parameter_groups(self) -> list[dict[str, Any]]:
        """Matrices decay, vectors do not; the encoder's rate is a small share of the others'."""
        encoder, slots = (
            [p for p in part.parameters() if p.requires_grad] for part in (self.encoder, self.slots)
        )
        gaussians = [self.slots.semantic.mean, self.slots.instance.log_deviation]
        without = [] if self.decay_gaussians else gaussians
        return [
            *decay_matrices(encoder, WEIGHT_DECAY, rate=self.encoder_rate),
            *decay_matrices(slots, WEIGHT_DECAY, without),
        ]

    def before_step(self, step: int) -> None:
        """The encoder is frozen in the first steps: it gets no gradient, so nothing moves it."""
        before, self.frozen = self.frozen, step < self.freeze_steps
        if self.frozen != before:
            self.train(self.training)

    def after_step(self, step: int) -> None:
        """The teacher's moving average."""
        pairs = [(self.teacher_slots, self.slots)]
        if self.teacher_encoder_follows:
            pairs.append((self.teacher_encoder, self.encoder))
        for teacher, student in pairs:
            old, new = list(teacher.parameters()), list(student.parameters())
            torch._foreach_lerp_(old, new, 1 - self.teacher_momentum)

    def loss(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        """The three losses of clips (B, 4, 3, H, W), in other colours for the teacher."""
        own, other = (colour_view(batch["image"]).flatten(0, 1) for _ in range(2))
        with torch.no_grad():
            target = self.teacher_encoder(self.normalise(other), class_token=False)
        with torch.set_grad_enabled(torch.is_grad_enabled() and not self.frozen):
            features = self.encoder(self.normalise(own), class_token=False)
        keys, teacher_keys = (x.keys.unflatten(0, (-1, CLIP)) for x in (features, target))
        return self.loss_of_features(keys, teacher_keys, features.grid)

    def loss_of_features(
        self, keys: Tensor, teacher_keys: Tensor, size: tuple[int, int]
    ) -> dict[str, Tensor]:
        """The losses of keys (B, T, N, C) of both views, with N = h * w of ``size``."""
        own = self._of_clips(self.slots, keys, size)
        with torch.no_grad():
            other = self._of_clips(self.teacher_slots, teacher_keys, size)
        with without_autocast(keys):
            shape = keys.shape[:2]
            maps, teacher_maps = (x.maps.unflatten(0, shape) for x in (own, other))
            valid, teacher_valid = (
                losses.valid_instances(x.maps, x.scores, *self.valid).unflatten(0, shape)
                for x in (own, other)
            )
            w, teacher_w = (x.features.unflatten(0, shape) for x in (own, other))
            similarity = torch.einsum("bispc,bjsqc->bijspq", w, teacher_w)
            return {
                "difference": losses.slots_differ(maps),
                "semantic": losses.semantic_consistency(
                    maps, teacher_maps, full_precision(teacher_keys)
                ),
                "instance": losses.instance_consistency(similarity, valid, teacher_valid),
            }

    def _of_clips(self, slots: SlotNetwork, keys: Tensor, size: tuple[int, int]) -> Slots:
        before = previous_frames(keys, self.cyclic_clips)
        return slots(keys.flatten(0, 1), before.flatten(0, 1), size, self.num_iterations)

    def segment_video(self, video: Video) -> Iterator[Prediction]:
        """Predictions of batches; the whole video is looked at before the first one.

        ``tracks``: all frames start with the same noise, see their true predecessor, and are
        linked; the largest tracks are objects. ``release``: chunks of four frames, noise for each
        frame, and masks whose numbers differ from frame to frame.

        Logits have the size of the patches' grid and are in [-1, 1].
        """
        counts: list[int] = []

        def frames() -> Iterator[Tokens]:
            for batch in video:
                counts.append(len(batch["image"]))
                yield self._features(batch["image"])

        if self.discovery == "tracks":
            # The first frame has no predecessor, and its successor takes that place.
            before = self._features(video.at([min(1, len(video) - 1)])["image"]).keys
            found = tracks(self.slots, frames(), before, self.num_iterations, self.noise_seed)
        else:
            found = release(self.slots, frames(), self.num_iterations, self.noise_seed)
        kept, weights = [], 0.0
        for maps, scores in found:
            weights = weights + track_weights(maps, scores)
            kept.append((maps.half(), scores))  # far less than the features
        chosen = weights.argsort(descending=True, stable=True)[: self.max_objects]
        with without_autocast(weights):  # which does not know float16
            of_batches = [torch.cat(parts).split(counts) for parts in zip(*kept)]
        for maps, scores in zip(*of_batches):
            maps = maps.to(scores)
            if self.discovery == "tracks":
                logits = track_logits(maps, scores, chosen)
            else:
                logits = release_logits(maps, scores)
            yield Prediction([logits], maps=self._pictures(maps))

    def parts(self) -> dict[str, list[nn.Module]]:
        """The boxes that the benchmark measures."""
        return {"encoder": [self.encoder, self.teacher_encoder], "slots": [self.slots]}

    def _features(self, images: Tensor) -> Tokens:
        """Those of a video's frames."""
        normalise = self.normalise_as_kinetics if self.kinetics_statistics else self.normalise
        return self.encoder(normalise(images), class_token=False)

    def _pictures(self, maps: Tensor) -> dict[str, Tensor]:
        """The slot that each token belongs to, as a colour, from instance maps (B, S * P, h, w)."""
        semantics = maps.unflatten(1, self.slots.noise_shape[:2]).sum(dim=2)
        pictures = {}
        for name, of_slots in (("semantic slots", semantics), ("instance slots", maps)):
            numbers = of_slots.argmax(dim=1, keepdim=True) / max(1, of_slots.shape[1] - 1)
            # Panels interpolate, which should mix colours at edges alone.
            pictures[name] = F.interpolate(numbers, scale_factor=4.0, mode="nearest")[:, 0]
        return pictures
