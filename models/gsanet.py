"""Guided slot attention network, GSA-Net (Figure 2): two streams and one mask decoder."""

from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from models.backbones import STRIDES, Normalise, build_backbone, check_size
from models.blocks import conv_norm_relu, resize
from models.fat import FeatureAggregationTransformer
from models.global_extractor import GlobalExtractor
from models.guided_slot_attention import GuidedSlotAttention
from models.local_extractor import LocalExtractor
from models.mask_decoder import MaskDecoder
from models.plain_transformer import PlainTransformer
from models.precision import without_weight_cache
from models.prediction import Prediction, References
from models.slot_decoder import correlation_maps
from models.slot_generator import RandomSlots, SlotGenerator

SLOT_LEVEL = 2  # slots live at stride 16, the third of the four levels


class GSANet(nn.Module):
    """The network of the paper; its stage 1 form has the RGB stream alone (Sec. 4.3).

    Args:
        motion: False builds stage 1's network: RGB encoder and decoder, no flow stream, no slots.
        backbone, pretrained_backbone, backbone_weights: see ``models.backbones``.
        channels: C_L = C_G, the width of embedded features, slots and decoder.
        num_slots: N_S, foreground first.
        num_clusters: M.
        kmeans: implementation of the clustering, "batched" or "package".
        num_neighbours: N of KNN filtering.
        num_iterations: T.
        guided_slots, knn_filtering, slot_attention, aggregation_transformer: Table 2's GS, KNN, SA
            and FAT. With slot attention off, guided slots are used as they are, and random slots
            not at all: then the correlation maps of the aggregated features remain.
        reference_gradient: train the encoder through the reference frames too.
        decoder_image: the mask decoder's finest level sees the image again.

    Attributes:
        loss: of eq. 5, see ``utils.losses``.

    Images and flow maps are RGB in [0, 1], with height and width multiples of 32; the network
    normalises them itself.
    """

    loss = "iou+bce"

    def __init__(
        self,
        motion: bool = True,
        backbone: str = "mit_b2",
        pretrained_backbone: bool = True,
        backbone_weights: Path | None = None,
        channels: int = 128,
        num_slots: int = 2,
        num_clusters: int = 64,
        kmeans: str = "batched",
        num_neighbours: int = 16,
        num_iterations: int = 3,
        guided_slots: bool = True,
        knn_filtering: bool = True,
        slot_attention: bool = True,
        aggregation_transformer: bool = True,
        reference_gradient: bool = False,
        decoder_image: bool = True,
    ):
        super().__init__()
        self.motion = motion

        def stream() -> Stream:
            encoder = build_backbone(backbone, pretrained_backbone, backbone_weights)
            slots = SlotModule(
                channels,
                num_slots,
                num_clusters,
                kmeans,
                num_neighbours,
                num_iterations,
                guided_slots,
                knn_filtering,
                slot_attention,
                aggregation_transformer,
            )
            return Stream(encoder, channels, slots if motion else None, reference_gradient)

        self.rgb_stream = stream()
        self.flow_stream = stream() if motion else None
        self.norms = nn.ModuleList(
            nn.Sequential(nn.BatchNorm2d(channels), nn.ReLU(inplace=True)) for _ in STRIDES
        )
        self.decoder = MaskDecoder(channels, len(STRIDES), decoder_image)
        # The layout that convolutions are fastest in; features follow that of the weights.
        self.to(memory_format=torch.channels_last)

    def forward(
        self,
        image: Tensor,
        flow: Tensor | None = None,
        reference_images: Tensor | None = None,
        reference_flows: Tensor | None = None,
    ) -> Prediction:
        """Target and references together, as in training.

        Args:
            image, flow: target frames and their flow maps (B, 3, H, W).
            reference_images, reference_flows: (B, R, 3, H, W).
                Stage 1's network takes ``image`` alone.
        """
        if not self.motion:
            check_size(image)
            return self._decode([self.rgb_stream(image)], image)
        return self.segment(image, flow, self.encode_references(reference_images, reference_flows))

    def encode_references(self, images: Tensor, flows: Tensor) -> References:
        """What ``segment`` needs of the reference frames and their flow maps (B, R, 3, H, W)."""
        check_size(images)
        return References(
            {
                "rgb": self.rgb_stream.encode_references(images),
                "flow": self.flow_stream.encode_references(flows),
            }
        )

    def segment(self, image: Tensor, flow: Tensor, references: References) -> Prediction:
        """Masks of target frames (B, 3, H, W), given references of the same batch size."""
        check_size(image)
        outputs = [
            self.rgb_stream(image, references.features["rgb"]),
            self.flow_stream(flow, references.features["flow"]),
        ]
        return self._decode(outputs, image)

    def parts(self) -> dict[str, list[nn.Module]]:
        """What the benchmark tells apart; a part within another one counts for itself."""
        streams = [stream for stream in (self.rgb_stream, self.flow_stream) if stream is not None]
        parts = {"encoders": [stream.encoder for stream in streams], "decoder": [self.decoder]}
        if self.motion:
            parts["k-means"] = [stream.slots.local_extractor.cluster for stream in streams]
            parts["FAT and slot attention"] = [stream.slots for stream in streams]
        return parts

    def maps_by_iteration(
        self, image: Tensor, flow: Tensor, references: References
    ) -> list[dict[str, Tensor]]:
        """``maps`` of ``segment`` after 0, 1, ... T rounds of slot attention (Figure 8)."""
        attentions = [m for m in self.modules() if isinstance(m, GuidedSlotAttention)]
        rounds = [attention.num_iterations for attention in attentions]
        maps = []
        for count in range(max(rounds, default=0) + 1):
            for attention in attentions:
                attention.num_iterations = count
            maps.append(self.segment(image, flow, references).maps)
        for attention, count in zip(attentions, rounds):
            attention.num_iterations = count
        return maps

    def _decode(self, streams: list["StreamOutput"], image: Tensor) -> Prediction:
        # A mean of two linear maps is a 1 x 1 convolution of the concatenated streams, and one
        # that stage 1's single stream fits too.
        features = [
            norm(sum(level) / len(level))
            for norm, *level in zip(self.norms, *(output.features for output in streams))
        ]
        prediction = Prediction(self.decoder(features, self.rgb_stream.normalise(image)))
        for name, output in zip(("RGB", "flow"), streams):
            prediction.auxiliary += foreground_logits(output)
            if output.slot_maps is not None:
                probabilities = (output.slot_maps + 1) / 2
                prediction.maps[f"{name} foreground slot"] = probabilities[:, 0]
                prediction.maps[f"{name} background slot"] = probabilities[:, 1]
        return prediction


@dataclass
class StreamOutput:
    """What one stream gives the decoder.

    Attributes:
        features: four maps (B, C, H_l, W_l), finest first.
        slot_logits: X_S of eq. 1 (B, S, h, w), if slots are guided.
        slot_maps: CM_Sr of eq. 4 (B, S, h, w), if there are slots.
    """

    features: list[Tensor]
    slot_logits: Tensor | None = None
    slot_maps: Tensor | None = None


class Stream(nn.Module):
    """Encoder of one modality, RGB or flow, with its slot module (none in stage 1)."""

    def __init__(
        self,
        encoder: nn.Module,
        channels: int,
        slots: "SlotModule | None" = None,
        reference_gradient: bool = False,
    ):
        super().__init__()
        self.encoder = encoder
        self.normalise = Normalise(encoder.mean, encoder.deviation)
        self.reference_gradient = reference_gradient
        # No biases where batch normalisation follows (``GSANet.norms``): it would cancel them.
        self.laterals = nn.ModuleList(
            nn.Conv2d(width, channels, 1, bias=False) for width in encoder.channels
        )
        self.slots = slots
        if slots is not None:
            widths = encoder.channels[SLOT_LEVEL] + encoder.channels[-1]
            self.embed = conv_norm_relu(widths, channels, 1)

    def forward(self, images: Tensor, references: Tensor | None = None) -> StreamOutput:
        """Target images (B, 3, H, W) and the references' P_G (B, R, C, C) to decoder features."""
        pyramid = self.encoder(self.normalise(images))
        features = [lateral(x) for lateral, x in zip(self.laterals, pyramid)]
        if self.slots is None:
            return StreamOutput(features)
        correlation, slot_logits, slot_maps = self.slots(self._embed(pyramid), references)
        features[SLOT_LEVEL] = features[SLOT_LEVEL] + correlation
        return StreamOutput(features, slot_logits, slot_maps)

    def encode_references(self, images: Tensor) -> Tensor:
        """Reference images (B, R, 3, H, W) to their global features P_G (B, R, C, C)."""
        with without_weight_cache():
            with nullcontext() if self.reference_gradient else torch.no_grad():
                pyramid = self.encoder(self.normalise(images.flatten(0, 1)))
            features = self._embed(pyramid)
            return self.slots.global_extractor(features.unflatten(0, images.shape[:2]))

    def _embed(self, pyramid: list[Tensor]) -> Tensor:
        """X_T or X_R: the slot level, with what the coarsest level knows of the whole scene."""
        level = pyramid[SLOT_LEVEL]
        return self.embed(torch.cat([level, resize(pyramid[-1], level.shape[2:])], dim=1))


class SlotModule(nn.Module):
    """Everything between one stream's encoder and the decoder: Figure 2's middle part."""

    def __init__(
        self,
        channels: int,
        num_slots: int,
        num_clusters: int,
        kmeans: str,
        num_neighbours: int,
        num_iterations: int,
        guided_slots: bool,
        knn_filtering: bool,
        slot_attention: bool,
        aggregation_transformer: bool,
    ):
        super().__init__()
        self.local_extractor = LocalExtractor(channels, channels, num_clusters, kmeans)
        self.global_extractor = GlobalExtractor(channels, channels)
        self.aggregate = (
            FeatureAggregationTransformer(channels)
            if aggregation_transformer
            else PlainTransformer(channels)
        )
        self.slot_generator = SlotGenerator(channels, num_slots) if guided_slots else None
        self.random_slots = (
            RandomSlots(channels, num_slots) if slot_attention and not guided_slots else None
        )
        self.slot_attention = (
            GuidedSlotAttention(
                channels, num_neighbours, num_iterations, knn_filtering, aggregation_transformer
            )
            if slot_attention
            else None
        )
        has_slots = guided_slots or slot_attention
        maps = num_clusters + (num_slots if has_slots else 0)
        self.to_features = nn.Conv2d(maps, channels, 1, bias=False)

    def forward(
        self, target: Tensor, references: Tensor
    ) -> tuple[Tensor, Tensor | None, Tensor | None]:
        """Sec. 3.2 to 3.6 for one stream.

        Args:
            target: X_T (B, C, H, W).
            references: P_G (B, R, C, C).

        Returns:
            The correlation maps, embedded for the decoder (B, C, H, W); X_S of eq. 1 and CM_Sr of
            eq. 4 (B, S, H, W), each ``None`` where an ablation has no such thing.
        """
        local, local_features = self.local_extractor(target)  # X_L, P_L
        if isinstance(self.aggregate, FeatureAggregationTransformer):
            aggregated = self.aggregate(local_features, references)  # P_A
        else:
            aggregated = self.aggregate(local_features, references.flatten(1, 2))
        slots, slot_logits = self._initial_slots(target, local)
        if self.slot_attention is not None:
            slots = self.slot_attention(slots, aggregated)  # P_Sr
        correlation = correlation_maps(local, aggregated)  # CM_A
        if slots is None:
            return self.to_features(correlation), None, None
        slot_maps = correlation_maps(local, slots)  # CM_Sr
        correlation = torch.cat([correlation, slot_maps], dim=1)
        return self.to_features(correlation), slot_logits, slot_maps

    def _initial_slots(self, target: Tensor, local: Tensor) -> tuple[Tensor | None, Tensor | None]:
        if self.slot_generator is not None:
            return self.slot_generator(target, local)
        if self.random_slots is not None:
            return self.random_slots(target.shape[0]), None
        return None, None


def foreground_logits(output: StreamOutput) -> list[Tensor]:
    """Logits (B, 1, h, w) of what a stream's slots say is foreground.

    The guided foreground mask M_S of eq. 1, and the foreground slot's similarity map and one minus
    the background slot's, where (1 + cosine) / 2 is taken as the probability.
    """
    logits = []
    if output.slot_logits is not None:
        others = output.slot_logits[:, 1:].logsumexp(dim=1, keepdim=True)
        logits.append(output.slot_logits[:, :1] - others)
    if output.slot_maps is not None:
        # The logit of (1 + c) / 2 is 2 atanh(c); kept off +-1, where it is infinite.
        foreground = 2 * torch.atanh(output.slot_maps[:, :2].clamp(-1 + 1e-4, 1 - 1e-4))
        logits += [foreground[:, :1], -foreground[:, 1:]]
    return logits
