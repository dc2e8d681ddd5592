"""SSL-UVOS, *Betrayed by Attention* (arXiv 2311.17893): all objects of a video, without masks."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.backbones import Normalise
from models.backbones.vision_transformer import KINETICS, VisionTransformer
from models.colour_views import colour_view
from models.graphs import key_graphs
from models.interface import (
    WINDOWS,
    Graph,
    Indicator,
    Needs,
    Network,
    Prediction,
    Video,
    decay_matrices,
)
from models.precision import full_precision, without_autocast
from models.ssl_uvos.attention_maps import WINDOW, AttentionMaps
from models.ssl_uvos.block import SpatioTemporalBlock
from models.ssl_uvos.clustering import distances_to_centres, find_centres
from models.ssl_uvos.losses import motion_consistency, ranked, semantic_consistency

QUERIES = 8  # positions of each frame that the losses look at
# Most and least attended tokens of a query; frames of fewer tokens than these have fewer.
SEMANTIC, SEMANTIC_TOKENS = (30, 200), 720
MOTION, MOTION_TOKENS = (10, 50), 360
WEIGHT_DECAY = 0.1
MANY_CLUSTERS = 100  # per video; a useful result has one for each object and for the background
TOO_MANY = (
    "the attention maps have become too sharp for the distance at which clusters merge; raise "
    "MERGE_DISTANCE (2, 3 or 4), or use an earlier checkpoint"
)
# Tokens whose attention maps are shown, by their place in the frame (row, column).
SHOWN = {"centre": (0.5, 0.5), "upper left": (0.2, 0.2), "lower right": (0.8, 0.8)}


class SSLUVOS(Network):
    """Frozen features, one trained block, and clusters of its attention maps.

    Args:
        backbone, pretrained_backbone, backbone_weights: the vision transformer.
        position_table: ``dino`` or ``timm``, how its positions are resampled.
        frame_gap: distance of a training clip's frames.
        key_frame_step: r; every r-th frame's tokens are the columns of attention maps.
        key_frame_tail: whether the last frames, fewer than r, have a key frame, too.
        merge_distance: tau, the divergence in nats up to which maps are near.
        max_objects: at most this number of clusters, the largest, are objects.
        soft_masks: enlarge the similarities to the clusters; False enlarges the labels.
        kinetics_statistics: videos are normalised as those of Kinetics.
    """

    random_weights = {"pretrained_backbone": False}  # noqa: RUF012
    size_step = 8
    looks_ahead = True

    def __init__(
        self,
        backbone: str = "vit_small_patch8_224.dino",
        pretrained_backbone: bool = True,
        backbone_weights: Path | None = None,
        position_table: str = "dino",
        frame_gap: int = 4,
        key_frame_step: int = 10,
        key_frame_tail: bool = True,
        merge_distance: float = 1.0,
        max_objects: int = 20,
        soft_masks: bool = True,
        kinetics_statistics: bool = False,
    ):
        super().__init__()
        self.encoder = VisionTransformer(
            backbone, pretrained_backbone, backbone_weights, positions=position_table
        )
        self.encoder.requires_grad_(False)
        self.normalise = Normalise(self.encoder.mean, self.encoder.deviation)
        self.block = SpatioTemporalBlock(self.encoder.channels)
        self.frame_gap = frame_gap
        self.key_frame_step = key_frame_step
        self.key_frame_tail = key_frame_tail
        self.merge_distance = merge_distance
        self.max_objects = max_objects
        self.soft_masks = soft_masks
        self.normalise_as_kinetics = Normalise(*KINETICS)
        self.kinetics_statistics = kinetics_statistics

    def graphs(self, height: int, width: int) -> dict[str, Graph]:
        """The encoder's keys; clusters are found over a whole video, in PyTorch alone."""
        return key_graphs(self.encoder, height, width)

    @property
    def needs(self) -> Needs:
        """Clips of three frames, without masks."""
        return Needs(WINDOWS, masks=False, frames=WINDOW, gap=self.frame_gap)

    @property
    def changeable(self) -> tuple[str, ...]:
        """What belongs to the clustering."""
        return (
            "key_frame_step",
            "key_frame_tail",
            "merge_distance",
            "max_objects",
            "soft_masks",
            "kinetics_statistics",
        )

    def train(self, mode: bool = True) -> "SSLUVOS":
        """As of any module, but the frozen encoder stays in evaluation mode."""
        super().train(mode)
        self.encoder.eval()
        return self

    def parameter_groups(self) -> list[dict[str, Any]]:
        """Matrices decay, vectors do not."""
        return decay_matrices(self.block.parameters(), WEIGHT_DECAY)

    def loss(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        """Both losses of clips (B, 3, 3, H, W), whose colours are changed as one."""
        clips = colour_view(batch["image"])
        with torch.no_grad():
            features = self.encoder(self.normalise(clips.flatten(0, 1)))
        shape = clips.shape[:2]
        return self.loss_of_features(
            features.keys.unflatten(0, shape), features.class_token.unflatten(0, shape)
        )

    def loss_of_features(self, keys: Tensor, class_tokens: Tensor) -> dict[str, Tensor]:
        """Both losses of the encoder's keys (B, T, N, C) and class tokens (B, T, C).

        The same random positions of all frames are the queries. Their attention ranks the tokens.
        """
        batch, frames, count = keys.shape[:3]
        tokens = torch.cat([class_tokens[:, :, None], keys], dim=2)
        outputs, queries, columns = self.block(tokens.flatten(1, 2))
        patches = torch.arange(tokens.shape[1] * tokens.shape[2], device=keys.device)
        patches = patches.view(frames, count + 1)[:, 1:]  # (T, N): where patches are in the clip
        chosen = torch.randperm(count, device=keys.device)[:QUERIES]

        def rows(places: Tensor) -> Tensor:
            """Attention of the tokens at places (B, Q) to all patches, (B, Q, T, N)."""
            asked = queries.take_along_dim(places[:, None, :, None], dim=2)
            return self.block.attention_rows(asked, columns)[..., patches]

        attention = rows(patches[:, chosen].flatten().expand(batch, -1))  # (B, T * Q, T, N)
        features = F.normalize(outputs[:, patches.flatten()], dim=2).unflatten(1, (frames, count))
        cosines = torch.einsum("bqc,btnc->bqtn", features[:, :, chosen].flatten(1, 2), features)
        semantic = semantic_consistency(
            full_precision(cosines), attention, *_in_share(SEMANTIC, count / SEMANTIC_TOKENS)
        )

        attention = attention.unflatten(1, (frames, -1))  # (B, T, Q, T, N)
        own = torch.stack([attention[:, t, :, t] for t in range(frames)], dim=1)
        near, far = ranked(
            own, *_in_share(MOTION, count / MOTION_TOKENS)
        )  # (B, T, Q, P) and (B, T, Q, R)
        starts = patches[:, :1, None]  # of each frame
        maps = rows((torch.cat([near, far], dim=3) + starts).flatten(1)).flatten(2)
        maps = maps.unflatten(1, (*near.shape[1:3], -1))  # (B, T, Q, P + R, M)
        positive, negative = maps.split([near.shape[3], far.shape[3]], dim=3)
        with without_autocast(attention):
            motion = motion_consistency(attention.flatten(3), positive, negative)
        return {"semantic": semantic, "motion": motion}

    def segment_video(self, video: Video) -> Iterator[Prediction]:
        """Predictions of batches; the whole video is clustered before the first one.

        A logit, in [-1, 1], is the similarity to an object minus that to the nearest cluster that
        is not an object. Logits have the size of the patches' grid, or with ``soft_masks=False``
        of the images.
        """
        queries, columns, sizes, shown = [], [], [], []
        normalise = self.normalise_as_kinetics if self.kinetics_statistics else self.normalise
        for batch in video:
            features = self.encoder(normalise(batch["image"]), class_token=False)
            own, keys = self.block.queries_and_keys(features.keys)
            first = sum(map(len, queries))
            columns += [k for t, k in enumerate(keys, first) if t % self.key_frame_step == 0]
            queries.append(own)
            sizes.append(batch["image"].shape[2:])
            shown.append(self._shown(own, keys, features.grid))
        frames = sum(map(len, queries))
        if not self.key_frame_tail:
            columns = columns[: max(1, frames // self.key_frame_step)]
        # Distances near the limit need more digits than bfloat16 has.
        with without_autocast(columns[0]):
            own, keys = (full_precision(x) for x in (torch.cat(queries), torch.cat(columns, dim=1)))
            logits, clusters = self._scores(AttentionMaps(own, keys))
        indicators = {"clusters": Indicator(clusters, MANY_CLUSTERS, TOO_MANY)}
        logits = logits.unflatten(0, (frames, *features.grid)).permute(0, 3, 1, 2)
        batches = logits.split([len(own) for own in queries])
        for of_batch, size, maps in zip(batches, sizes, shown):
            if not self.soft_masks:
                of_batch = F.interpolate(of_batch, size)  # nearest
            yield Prediction([of_batch], maps=maps, indicators=indicators)

    def parts(self) -> dict[str, list[nn.Module]]:
        """The boxes that the benchmark measures; the rest is the clustering."""
        return {"encoder": [self.encoder], "block": [self.block]}

    def _shown(self, queries: Tensor, keys: Tensor, grid: tuple[int, int]) -> dict[str, Tensor]:
        """Attention maps of a few tokens of each frame to their own frame, (B, h, w) each.

        They are scaled to a largest value of one, for pictures.
        """
        rows, columns = grid
        places = [int(y * rows) * columns + int(x * columns) for y, x in SHOWN.values()]
        maps = self.block.attention_rows(queries[:, :, places], keys)
        maps = maps / maps.amax(dim=-1, keepdim=True)
        names = [f"attention: {name}" for name in SHOWN]
        return dict(zip(names, maps.unflatten(2, grid).unbind(1)))

    def _scores(self, maps: AttentionMaps) -> tuple[Tensor, int]:
        """Logits of the largest clusters for all tokens of a video, (T * N, K).

        Also the number of clusters, of which objects are the largest.
        """
        centres = find_centres(maps, self.merge_distance)
        # A loop variable would keep a window in memory while the next one is computed.
        distances = map(lambda window: distances_to_centres(window, centres), maps)
        scores = -torch.cat(list(distances))
        labels = scores.argmax(dim=1)
        sizes = labels.bincount(minlength=len(centres))
        order = sizes.argsort(descending=True, stable=True)[: int((sizes > 0).sum())]
        if self.soft_masks:
            scores = scores.softmax(dim=1)
        else:
            scores = F.one_hot(labels, len(centres)).float()
        objects, rest = order[: self.max_objects], order[self.max_objects :]
        others = scores[:, rest].amax(dim=1, keepdim=True) if len(rest) else 0.0
        return scores[:, objects] - others, len(order)


def _in_share(counts: tuple[int, int], share: float) -> tuple[int, ...]:
    """Both counts times the share, which is at most 1; at least one each."""
    return tuple(max(1, round(count * min(1, share))) for count in counts)
