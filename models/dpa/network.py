"""Dual Prototype Attention network, DPA: two streams, IMA and IFA, and one mask decoder.

Cho, Lee et al., "Dual Prototype Attention for Unsupervised Video Object Segmentation", CVPR 2024
(arXiv 2211.12036).
"""

from pathlib import Path

import torch
from torch import Tensor, nn

from models.backbones import (
    ModelError,
    Normalise,
    build_backbone,
    check_size,
    freeze_unused,
    stage_strides,
)
from models.dpa.ablation import ABLATION
from models.dpa.inter_frame_attention import InterFrameAttention
from models.dpa.inter_modality_attention import InterModalityAttention
from models.dpa.refinement_decoder import RefinementDecoder, StreamEmbedding
from models.interface import Prediction
from models.two_streams import References, TwoStreams

CONTEXT_STRIDE = 32  # at which the decoder gathers context
ATTENDED = 2  # the encoder's last stages, at which IMA works; IFA works at the last one


class DPA(TwoStreams):
    """The network of the paper; stage 1's has the RGB stream alone.

    Args:
        motion, num_references, reference_gradient, loss, sigma: see
            :class:`models.two_streams.TwoStreams`; the default loss is the release's IoU. Stage 1
            has IMA's prototypes, without another modality.
        backbone, pretrained_backbone, backbone_weights: see ``models.backbones``.
        channels: C, the width of squeezed features and decoder, and the number of prototypes.
        graph_neighbours: prototypes that send messages to each one.
        graph_rounds: rounds of message passing.
        inter_modality_attention, inter_frame_attention: IMA and IFA; False leaves them out.
        decoder_image: the mask decoder's finest level sees the image again. With a VGG network it
            never does, because the first stage has the image's size.

    Raises:
        ModelError: more neighbours than prototypes, or a backbone that cannot be built.
    """

    ablation = ABLATION

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
        decoder_image: bool = True,
        num_references: int = 3,
        reference_gradient: bool = False,
        loss: str | None = None,
        sigma: float = 1.0,
    ):
        loss = loss or "iou"
        super().__init__(motion, num_references, reference_gradient, loss, sigma)
        if inter_modality_attention and graph_neighbours > channels:
            raise ModelError(
                f"GRAPH_NEIGHBOURS = {graph_neighbours} is above CHANNELS = {channels}, the number "
                "of prototypes; change one of the two"
            )
        self.uses_references = motion and inter_frame_attention
        strides = stage_strides(backbone)

        def stream() -> PrototypeStream:
            encoder = build_backbone(backbone, pretrained_backbone, backbone_weights, strides)
            widths = encoder.channels[-ATTENDED:]
            inter_modality = [
                InterModalityAttention(width, channels, graph_neighbours, graph_rounds, motion)
                for width in (widths if inter_modality_attention else ())
            ]
            has_frames = self.uses_references
            inter_frame = InterFrameAttention(widths[-1], channels) if has_frames else None
            pool = strides[-1] < CONTEXT_STRIDE
            return PrototypeStream(encoder, inter_modality, inter_frame, channels, pool)

        self.rgb_stream = stream()
        self.flow_stream = stream() if motion else None
        if motion:
            freeze_unused(self.flow_stream.encoder, ATTENDED)
        skips = self.rgb_stream.encoder.channels[:-ATTENDED]
        self.decoder = RefinementDecoder(
            channels, skips, len(self.streams), strides[0] > 1, decoder_image
        )
        # Convolutions are fastest in this layout.
        self.to(memory_format=torch.channels_last)

    def segment(self, image: Tensor, flow: Tensor | None, references: References) -> Prediction:
        """Masks of target frames (B, 3, H, W), given references of the same batch size."""
        check_size(image)
        encoded = (stream(x) for stream, x in zip(self.streams, (image, flow)))
        stages, correlations = zip(*encoded)
        others = correlations[::-1] if self.motion else (None,)  # of the other modality
        scales, maps = [], []
        names = ("rgb", "flow")
        for name, stream, stage, own, other in zip(
            names, self.streams, stages, correlations, others
        ):
            scale, found = stream.attend(stage, own, other, references.get(name))
            scales.append(scale)
            maps.append(found)
        skips = stages[0][:-ATTENDED]
        prediction = Prediction(self.decoder(scales, skips, self.rgb_stream.normalise(image)))
        if self.motion:
            for name in maps[0]:
                prediction.maps[f"RGB {name}"] = maps[0][name]
                prediction.maps[f"flow {name}"] = maps[1][name]
        return prediction

    def parts(self) -> dict[str, list[nn.Module]]:
        """The boxes that the benchmark measures."""
        attentions = [one for stream in self.streams for one in stream.inter_modality]
        return {
            "encoders": [stream.encoder for stream in self.streams],
            "IMA": attentions + [attention.correlation for attention in attentions],
            "IFA": [s.inter_frame for s in self.streams if s.inter_frame is not None],
            "decoder": [self.decoder, *(stream.embed for stream in self.streams)],
        }


class PrototypeStream(nn.Module):
    """One modality, RGB or flow: its encoder, its halves of IMA, its IFA, its decoder input."""

    def __init__(
        self,
        encoder: nn.Module,
        inter_modality: list[InterModalityAttention],
        inter_frame: InterFrameAttention | None,
        channels: int,
        pool_context: bool,
    ):
        super().__init__()
        self.encoder = encoder
        self.normalise = Normalise(encoder.mean, encoder.deviation)
        self.inter_modality = nn.ModuleList(inter_modality)
        self.inter_frame = inter_frame
        widths = encoder.channels[-ATTENDED:]
        both = inter_modality and inter_frame is not None
        self.merge = nn.Conv2d(2 * widths[-1], widths[-1], 1) if both else None
        self.embed = StreamEmbedding(widths, channels, pool_context)

    def forward(self, images: Tensor) -> tuple[list[Tensor], list[Tensor]]:
        """Images (B, 3, H, W) to the encoder's stages and to IMA's own correlation maps.

        The maps (B, C, h, w) are those of the last stages, finest first; none without IMA.
        """
        stages = self.encoder(self.normalise(images))
        attended = zip(self.inter_modality, stages[-ATTENDED:])
        return stages, [attention.correlation(stage) for attention, stage in attended]

    def attend(
        self,
        stages: list[Tensor],
        own: list[Tensor],
        other: list[Tensor] | None = None,
        references: Tensor | None = None,
    ) -> tuple[list[Tensor], dict[str, Tensor]]:
        """IMA and IFA: from the results of ``forward`` to three scales for the decoder.

        ``other`` has the correlation maps of the other modality, ``references`` IFA's keys and
        values (B, R, 2, C, C). Scales come finest first, with maps for pictures, (B, h, w) in
        [0, 1], by the name of the attention.
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
            if self.merge is not None:
                by_frames = self.merge(torch.cat([attended[-1], by_frames], dim=1))
            attended[-1] = by_frames
        return self.embed(attended), maps

    def embed_references(self, stages: list[Tensor]) -> Tensor:
        """The encoder's stages of N reference frames to IFA's keys and values (N, 2, C, C)."""
        return self.inter_frame.encode_references(stages[-1])


def summary(correlation: Tensor) -> Tensor:
    """Mean over the prototypes of correlation maps (B, C, H, W), stretched to [0, 1] (B, H, W)."""
    mean = correlation.detach().float().mean(dim=1)
    low, high = mean.amin(dim=(1, 2), keepdim=True), mean.amax(dim=(1, 2), keepdim=True)
    return (mean - low) / (high - low).clamp(min=1e-6)
