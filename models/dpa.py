"""Dual Prototype Attention network, DPA: two streams, IMA and IFA, and one mask decoder.

Cho, Lee et al., "Dual Prototype Attention for Unsupervised Video Object Segmentation", CVPR 2024
(arXiv 2211.12036).
"""

from contextlib import nullcontext
from pathlib import Path

import torch
from torch import Tensor, nn

from models.backbones import (
    ModelError,
    Normalise,
    build_backbone,
    check_size,
    stage_strides,
)
from models.inter_frame_attention import InterFrameAttention
from models.inter_modality_attention import InterModalityAttention
from models.precision import without_weight_cache
from models.prediction import Prediction, References
from models.refinement_decoder import RefinementDecoder, StreamEmbedding

CONTEXT_STRIDE = 32  # at which the decoder gathers context
ATTENDED = 2  # the encoder's last stages, at which IMA works; IFA works at the last one


class DPA(nn.Module):
    """The network of the paper; its stage 1 form has the RGB stream alone.

    Args:
        motion: False builds stage 1's network: no flow stream, no references; IMA's prototypes
            stay, without another modality.
        backbone, pretrained_backbone, backbone_weights: see ``models.backbones``.
        channels: C, the width of squeezed features and decoder, and the number of prototypes.
        graph_neighbours: prototypes that send messages to each one.
        graph_rounds: rounds of message passing.
        inter_modality_attention, inter_frame_attention: IMA and IFA; False leaves them out.
        reference_gradient: train the encoder through the reference frames too.
        decoder_image: the mask decoder's finest level sees the image again. With a VGG network it
            never does, because the first stage has the image's size.

    Attributes:
        loss: of the paper, see ``utils.losses``.

    Images and flow maps are RGB in [0, 1], with height and width multiples of 32; the network
    normalises them itself.

    Raises:
        ModelError: more neighbours than prototypes, or a backbone that cannot be built.
    """

    loss = "iou"

    def __init__(
        self,
        motion: bool = True,
        backbone: str = "vgg16",
        pretrained_backbone: bool = True,
        backbone_weights: Path | None = None,
        channels: int = 128,
        graph_neighbours: int = 10,
        graph_rounds: int = 3,
        inter_modality_attention: bool = True,
        inter_frame_attention: bool = True,
        reference_gradient: bool = False,
        decoder_image: bool = True,
    ):
        super().__init__()
        if inter_modality_attention and graph_neighbours > channels:
            raise ModelError(
                f"GRAPH_NEIGHBOURS = {graph_neighbours} is above CHANNELS = {channels}, the number "
                "of prototypes: expected at most that; change one of the two"
            )
        self.motion = motion
        strides = stage_strides(backbone)

        def stream() -> Stream:
            encoder = build_backbone(backbone, pretrained_backbone, backbone_weights, strides)
            return Stream(
                encoder,
                channels,
                pool_context=strides[-1] < CONTEXT_STRIDE,
                graph_neighbours=graph_neighbours,
                graph_rounds=graph_rounds,
                motion=motion,
                inter_modality_attention=inter_modality_attention,
                inter_frame_attention=inter_frame_attention,
                reference_gradient=reference_gradient,
            )

        self.rgb_stream = stream()
        self.flow_stream = stream() if motion else None
        skips = self.rgb_stream.encoder.channels[:-ATTENDED]
        self.decoder = RefinementDecoder(
            channels, skips, 2 if motion else 1, strides[0] > 1, decoder_image
        )
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
        if self.motion:
            references = self.encode_references(reference_images, reference_flows)
            return self.segment(image, flow, references)
        check_size(image)
        stages, correlations = self.rgb_stream(image)
        scales, _ = self.rgb_stream.attend(stages, correlations)
        return self._decode([scales], stages, image)

    def encode_references(self, images: Tensor, flows: Tensor) -> References:
        """What ``segment`` needs of the reference frames and their flow maps (B, R, 3, H, W)."""
        if self.rgb_stream.inter_frame is None:
            return References({})
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
        rgb_stages, rgb_own = self.rgb_stream(image)
        flow_stages, flow_own = self.flow_stream(flow)
        kept = references.features
        rgb_scales, rgb_maps = self.rgb_stream.attend(
            rgb_stages, rgb_own, flow_own, kept.get("rgb")
        )
        flow_scales, flow_maps = self.flow_stream.attend(
            flow_stages, flow_own, rgb_own, kept.get("flow")
        )
        prediction = self._decode([rgb_scales, flow_scales], rgb_stages, image)
        for name in rgb_maps:
            prediction.maps[f"RGB {name}"] = rgb_maps[name]
            prediction.maps[f"flow {name}"] = flow_maps[name]
        return prediction

    def parts(self) -> dict[str, list[nn.Module]]:
        """What the benchmark tells apart; merging IMA and IFA counts as the rest."""
        streams = [stream for stream in (self.rgb_stream, self.flow_stream) if stream is not None]
        return {
            "encoders": [stream.encoder for stream in streams],
            "IMA": [
                part
                for stream in streams
                for attention in stream.inter_modality
                for part in (attention, attention.correlation)
            ],
            "IFA": [stream.inter_frame for stream in streams if stream.inter_frame is not None],
            "decoder": [self.decoder, *(stream.embed for stream in streams)],
        }

    def _decode(
        self, streams: list[list[Tensor]], rgb_stages: list[Tensor], image: Tensor
    ) -> Prediction:
        skips = rgb_stages[:-ATTENDED]
        return Prediction(self.decoder(streams, skips, self.rgb_stream.normalise(image)))


class Stream(nn.Module):
    """One modality, RGB or flow: its encoder, its halves of IMA, its IFA, what its decoder gets."""

    def __init__(
        self,
        encoder: nn.Module,
        channels: int,
        *,
        pool_context: bool,
        graph_neighbours: int,
        graph_rounds: int,
        motion: bool,
        inter_modality_attention: bool,
        inter_frame_attention: bool,
        reference_gradient: bool,
    ):
        super().__init__()
        self.encoder = encoder
        self.normalise = Normalise(encoder.mean, encoder.deviation)
        self.reference_gradient = reference_gradient
        widths = encoder.channels[-ATTENDED:]
        self.inter_modality = nn.ModuleList(
            InterModalityAttention(width, channels, graph_neighbours, graph_rounds, motion)
            for width in (widths if inter_modality_attention else ())
        )
        has_frames = inter_frame_attention and motion
        self.inter_frame = InterFrameAttention(widths[-1], channels) if has_frames else None
        both = has_frames and inter_modality_attention
        self.merge = nn.Conv2d(2 * widths[-1], widths[-1], 1) if both else None
        self.embed = StreamEmbedding(widths, channels, pool_context)

    def forward(self, images: Tensor) -> tuple[list[Tensor], list[Tensor]]:
        """Images (B, 3, H, W) to the encoder's stages and to IMA's own correlation maps.

        The maps (B, C, h, w) are those of the last stages, finest first; none without IMA.
        """
        stages = self.encoder(self.normalise(images))
        correlations = [
            attention.correlation(stage)
            for attention, stage in zip(self.inter_modality, stages[-ATTENDED:])
        ]
        return stages, correlations

    def attend(
        self,
        stages: list[Tensor],
        own: list[Tensor],
        other: list[Tensor] | None = None,
        references: Tensor | None = None,
    ) -> tuple[list[Tensor], dict[str, Tensor]]:
        """IMA and IFA, and the embedding for the decoder.

        Args:
            stages, own: from ``forward``.
            other: the other modality's correlation maps, if there is one.
            references: from :meth:`encode_references`; ``None`` without IFA.

        Returns:
            Three scales for the decoder, finest first; and to look at, (B, h, w) in [0, 1] by the
            name of the attention, how much it finds at each position.
        """
        attended, maps = list(stages[-ATTENDED:]), {}
        for index, attention in enumerate(self.inter_modality):
            attended[index], correlation = attention(
                attended[index], own[index], other[index] if other else None
            )
            if index == 0:  # the finer stage shows more
                maps["inter-modality"] = summary(correlation)
        if self.inter_frame is not None:
            by_frames, correlation = self.inter_frame(stages[-1], references)
            maps["inter-frame"] = summary(correlation)
            attended[-1] = (
                self.merge(torch.cat([attended[-1], by_frames], dim=1)) if self.merge else by_frames
            )
        return self.embed(attended), maps

    def encode_references(self, images: Tensor) -> Tensor:
        """Reference images (B, R, 3, H, W) to IFA's keys and values (B, R, 2, C, C)."""
        with without_weight_cache():
            with nullcontext() if self.reference_gradient else torch.no_grad():
                stages = self.encoder(self.normalise(images.flatten(0, 1)))
            return self.inter_frame.encode_references(stages[-1]).unflatten(0, images.shape[:2])


def summary(correlation: Tensor) -> Tensor:
    """Mean over the prototypes of correlation maps (B, C, H, W), stretched to [0, 1] (B, H, W)."""
    mean = correlation.detach().float().mean(dim=1)
    low, high = mean.amin(dim=(1, 2), keepdim=True), mean.amax(dim=(1, 2), keepdim=True)
    return (mean - low) / (high - low).clamp(min=1e-6)
