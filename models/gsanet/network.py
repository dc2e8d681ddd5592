"""Guided slot attention network, GSA-Net (Figure 2): two streams and one mask decoder."""

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from models.backbones import STRIDES, ModelError, Normalise, build_backbone, check_size
from models.blocks import conv_norm_relu
from models.gsanet.ablation import ABLATION
from models.gsanet.fat import FeatureAggregationTransformer
from models.gsanet.global_extractor import GlobalExtractor
from models.gsanet.guided_slot_attention import GuidedSlotAttention
from models.gsanet.local_extractor import LocalExtractor
from models.gsanet.mask_decoder import MaskDecoder
from models.gsanet.plain_transformer import PlainTransformer
from models.gsanet.slot_decoder import decode_slots
from models.gsanet.slot_generator import NUM_SLOTS, RandomSlots, SlotGenerator
from models.interface import Prediction, Video
from models.ops import resize
from models.two_streams import References, TwoStreams

SLOT_LEVEL = 2  # slots live at stride 16, the third of the four levels


class GSANet(TwoStreams):
    """The network of the paper; stage 1's has the RGB stream alone, without slots (Sec. 4.3).

    Args:
        motion, num_references, reference_gradient, loss, sigma, supervise_slot_maps: see
            :class:`models.two_streams.TwoStreams`; the default loss is that of eq. 5.
        backbone, pretrained_backbone, backbone_weights: see ``models.backbones``.
        channels: C_L = C_G, the width of embedded features, slots and decoder.
        num_clusters: M.
        num_neighbours: N of KNN filtering.
        num_iterations: T; may change after training (Figure 7).
        guided_slots, knn_filtering, slot_attention, aggregation_transformer: Table 2's GS, KNN, SA
            and FAT. Without SA, guided slots are not refined and random ones are left out; with
            neither GS nor SA the decoder gets CM_A alone.
        decoder_image: the mask decoder's finest level sees the image again.

    Raises:
        ModelError: KNN filtering would keep more features than there are clusters, or a backbone
            that cannot be built.
    """

    ablation = ABLATION

    def __init__(
        self,
        motion: bool = True,
        backbone: str = "mit_b2",
        pretrained_backbone: bool = True,
        backbone_weights: Path | None = None,
        channels: int = 128,
        num_clusters: int = 64,
        num_neighbours: int = 16,
        num_iterations: int = 3,
        guided_slots: bool = True,
        knn_filtering: bool = True,
        slot_attention: bool = True,
        aggregation_transformer: bool = True,
        decoder_image: bool = True,
        num_references: int = 3,
        reference_gradient: bool = False,
        loss: str | None = None,
        sigma: float = 1.0,
        supervise_slot_maps: bool = True,
    ):
        loss = loss or "iou+bce"
        super().__init__(
            motion, num_references, reference_gradient, loss, sigma, supervise_slot_maps
        )
        if knn_filtering and num_neighbours > num_clusters:
            raise ModelError(
                f"NUM_NEIGHBOURS = {num_neighbours} is above NUM_CLUSTERS = {num_clusters}; change "
                "one of the two"
            )

        def stream() -> SlotStream:
            encoder = build_backbone(backbone, pretrained_backbone, backbone_weights)
            if not motion:
                return SlotStream(encoder, channels, None)
            slots = SlotModule(
                channels,
                num_clusters=num_clusters,
                num_neighbours=num_neighbours,
                num_iterations=num_iterations,
                guided_slots=guided_slots,
                knn_filtering=knn_filtering,
                slot_attention=slot_attention,
                aggregation_transformer=aggregation_transformer,
            )
            return SlotStream(encoder, channels, slots)

        self.rgb_stream = stream()
        self.flow_stream = stream() if motion else None
        self.norms = nn.ModuleList(
            nn.Sequential(nn.BatchNorm2d(channels), nn.ReLU(inplace=True)) for _ in STRIDES
        )
        self.decoder = MaskDecoder(channels, len(STRIDES), decoder_image)
        # Convolutions are fastest in this layout.
        self.to(memory_format=torch.channels_last)

    @property
    def changeable(self) -> tuple[str, ...]:
        """Also the rounds of slot attention, if it was trained (Figure 7)."""
        rounds = any(attention.num_iterations for attention in self._attentions)
        return (*super().changeable, *(("num_iterations",) if rounds else ()))

    @property
    def _attentions(self) -> list[GuidedSlotAttention]:
        return [module for module in self.modules() if isinstance(module, GuidedSlotAttention)]

    def segment(self, image: Tensor, flow: Tensor | None, references: References) -> Prediction:
        """Masks of target frames (B, 3, H, W), given references of the same batch size."""
        check_size(image)
        outputs = [self.rgb_stream(image, references.get("rgb"))]
        if self.motion:
            outputs.append(self.flow_stream(flow, references["flow"]))
        # The paper concatenates the streams. Both end in 1 x 1 convolutions, so their mean equals
        # a 1 x 1 convolution of the concatenation. Stage 1 has one stream.
        features = []
        for level, norm in enumerate(self.norms):
            of_streams = [output.features[level] for output in outputs]
            features.append(norm(sum(of_streams) / len(of_streams)))
        prediction = Prediction(self.decoder(features, self.rgb_stream.normalise(image)))
        for name, output in zip(("RGB", "flow"), outputs):
            prediction.auxiliary += foreground_logits(output)
            if output.slot_maps is not None:
                probabilities = (output.slot_maps + 1) / 2
                prediction.maps[f"{name} foreground slot"] = probabilities[:, 0]
                prediction.maps[f"{name} background slot"] = probabilities[:, 1]
        return prediction

    def maps_by_iteration(self, video: Video) -> list[dict[str, Tensor]]:
        """The slots' maps of the video's first batch after 0, 1, ... T rounds (Figure 8)."""
        attentions = self._attentions
        rounds = [attention.num_iterations for attention in attentions]
        if not rounds:
            return []
        references, batch, maps = self._references_of(video), next(iter(video)), []
        try:
            for count in range(max(rounds) + 1):
                for attention in attentions:
                    attention.num_iterations = count
                maps.append(self._segment(batch, references, self.segment).maps)
        finally:
            for attention, count in zip(attentions, rounds):
                attention.num_iterations = count
        return maps

    def parts(self) -> dict[str, list[nn.Module]]:
        """The boxes that the benchmark measures."""
        parts = {"encoders": [s.encoder for s in self.streams], "decoder": [self.decoder]}
        if self.motion:
            parts["k-means"] = [s.slots.local_extractor.cluster for s in self.streams]
            parts["FAT and slot attention"] = [s.slots for s in self.streams]
        return parts


@dataclass
class StreamOutput:
    """What the decoder gets from one stream.

    Attributes:
        features: four maps (B, C, H_l, W_l), finest first.
        slot_logits: X_S of eq. 1 (B, S, h, w), if slots are guided.
        slot_maps: CM_Sr of eq. 4 (B, S, h, w), if there are slots.
    """

    features: list[Tensor]
    slot_logits: Tensor | None = None
    slot_maps: Tensor | None = None


class SlotStream(nn.Module):
    """Encoder of one modality, RGB or flow, with its slot module (none in stage 1)."""

    def __init__(self, encoder: nn.Module, channels: int, slots: "SlotModule | None"):
        super().__init__()
        self.encoder = encoder
        self.normalise = Normalise(encoder.mean, encoder.deviation)
        # Without biases, which the batch normalisation of ``GSANet.norms`` would cancel.
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
        # The paper's decoder gets the correlation maps alone. Here the features are added to them.
        features[SLOT_LEVEL] = features[SLOT_LEVEL] + correlation
        return StreamOutput(features, slot_logits, slot_maps)

    def embed_references(self, pyramid: list[Tensor]) -> Tensor:
        """The encoder's maps of N reference frames to their global features P_G (N, C, C)."""
        return self.slots.global_extractor(self._embed(pyramid))

    def _embed(self, pyramid: list[Tensor]) -> Tensor:
        """X_T or X_R: the slot level together with the coarsest level, which sees the whole."""
        level = pyramid[SLOT_LEVEL]
        return self.embed(torch.cat([level, resize(pyramid[-1], level.shape[2:])], dim=1))


class SlotModule(nn.Module):
    """Everything between one stream's encoder and the decoder: Figure 2's middle part."""

    def __init__(
        self,
        channels: int,
        *,
        num_clusters: int,
        num_neighbours: int,
        num_iterations: int,
        guided_slots: bool,
        knn_filtering: bool,
        slot_attention: bool,
        aggregation_transformer: bool,
    ):
        super().__init__()
        self.local_extractor = LocalExtractor(channels, channels, num_clusters)
        self.global_extractor = GlobalExtractor(channels, channels)
        kind = FeatureAggregationTransformer if aggregation_transformer else PlainTransformer
        self.aggregate = kind(channels)
        self.slot_generator = SlotGenerator(channels) if guided_slots else None
        random = slot_attention and not guided_slots
        self.random_slots = RandomSlots(channels) if random else None
        self.slot_attention = None
        if slot_attention:
            self.slot_attention = GuidedSlotAttention(
                channels, num_neighbours, num_iterations, knn_filtering, aggregation_transformer
            )
        num_maps = num_clusters + (NUM_SLOTS if guided_slots or slot_attention else 0)
        self.to_features = nn.Conv2d(num_maps, channels, 1, bias=False)

    def forward(
        self, target: Tensor, references: Tensor
    ) -> tuple[Tensor, Tensor | None, Tensor | None]:
        """Sec. 3.2 to 3.6 for one stream, from X_T (B, C, H, W) and P_G (B, R, C, C).

        Returns the correlation maps, embedded for the decoder (B, C, H, W), and X_S of eq. 1 and
        CM_Sr of eq. 4 (B, S, H, W), each ``None`` where an ablation leaves it out.
        """
        local, local_features = self.local_extractor(target)  # X_L, P_L
        aggregated = self.aggregate(local_features, references)  # P_A
        slots = slot_logits = None
        if self.slot_generator is not None:
            slots, slot_logits = self.slot_generator(target, local)  # P_S, X_S
        elif self.random_slots is not None:
            slots = self.random_slots(target.shape[0])
        if self.slot_attention is not None:
            slots = self.slot_attention(slots, aggregated)  # P_Sr
        correlation, slot_maps = decode_slots(local, aggregated, slots)  # CM_A, CM_Sr
        return self.to_features(correlation), slot_logits, slot_maps


def foreground_logits(output: StreamOutput) -> list[Tensor]:
    """Logits (B, 1, h, w) of foreground by a stream's slots.

    Up to three: from M_S of eq. 1, from the foreground slot's map, and from the inverted map of the
    background slot. A map's probability is (1 + cosine) / 2.
    """
    logits = []
    if output.slot_logits is not None:
        others = output.slot_logits[:, 1:].logsumexp(dim=1, keepdim=True)
        logits.append(output.slot_logits[:, :1] - others)
    if output.slot_maps is not None:
        # The logit of (1 + c) / 2 is 2 atanh(c); the clamp keeps it finite.
        foreground = 2 * torch.atanh(output.slot_maps[:, :2].clamp(-1 + 1e-4, 1 - 1e-4))
        logits += [foreground[:, :1], -foreground[:, 1:]]
    return logits
