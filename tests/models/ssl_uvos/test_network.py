"""SSL-UVOS: the trained block, its losses on a clip, what is frozen, and whole videos."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from models.ssl_uvos.attention_maps import AttentionMaps
from models.ssl_uvos.block import SpatioTemporalBlock
from models.ssl_uvos.losses import motion_consistency, semantic_consistency
from models.ssl_uvos.network import SSLUVOS
from tools import ssl_uvos_toy as toy

TINY = "vit_tiny_patch16_224"


class Clip:
    """A video of frames (T, 3, H, W) in batches of two."""

    def __init__(self, frames):
        self.frames = frames

    def __len__(self):
        return len(self.frames)

    def at(self, positions):
        return {"image": self.frames[list(positions)]}

    def __iter__(self):
        return ({"image": batch} for batch in self.frames.split(2))


def network(**arguments):
    torch.manual_seed(0)
    return SSLUVOS(TINY, pretrained_backbone=False, **arguments)


def frames(count, height=64, width=96, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (count, 3, height, width), dtype=torch.uint8, generator=generator)


def test_the_block_has_the_parameters_of_the_release():
    assert sum(p.numel() for p in SpatioTemporalBlock(384, 8).parameters()) == 1_773_312


def test_the_block_is_a_transformer_block_before_norm():
    block = SpatioTemporalBlock(16, 4).eval()
    x = torch.randn(2, 7, 16)
    output, _, _ = block(x)
    q, k, v = (
        F.layer_norm(x, (16,), *block.norm_attention.parameters()) @ part.T
        for part in block.to_qkv.weight.chunk(3)
    )
    heads = []
    for h in range(4):
        of_head = slice(4 * h, 4 * h + 4)
        attention = (q[..., of_head] @ k[..., of_head].transpose(1, 2) / 2).softmax(dim=-1)
        heads.append(attention @ v[..., of_head])
    y = x + block.project[0](torch.cat(heads, dim=-1))
    torch.testing.assert_close(output, y + block.feed_forward(y))


def test_losses_of_a_clip_are_those_of_the_whole_attention():
    """Against the attention of all tokens to all tokens, cut and ranked by loops."""
    model = network().eval()
    keys, class_tokens = torch.randn(2, 3, 30, 192), torch.randn(2, 3, 192)
    torch.manual_seed(5)
    losses = model.loss_of_features(keys, class_tokens)
    torch.manual_seed(5)
    chosen = torch.randperm(30)[:8]
    tokens = torch.cat([class_tokens[:, :, None], keys], dim=2).flatten(1, 2)
    outputs, q, k = model.block(tokens)
    attention = (q @ k.transpose(2, 3) * q.shape[-1] ** -0.5).softmax(dim=-1).mean(dim=1)
    patch = [t * 31 + 1 + i for t in range(3) for i in range(30)]
    attention = attention[:, patch][:, :, patch].unflatten(2, (3, 30)).unflatten(1, (3, 30))
    y = F.normalize(outputs[:, patch].unflatten(1, (3, 30)), dim=-1)
    cosines = torch.einsum("btic,bsjc->btisj", y[:, :, chosen], y).flatten(1, 2)
    of_queries = attention[:, :, chosen]
    semantic = semantic_consistency(cosines, of_queries.flatten(1, 2), 1, 8)
    torch.testing.assert_close(losses["semantic"], semantic)
    near, far = [], []
    for b, t, i in np.ndindex(2, 3, 8):
        order = of_queries[b, t, i, t].argsort(descending=True)
        near.append(attention[b, t, order[:1]].flatten(1))
        far.append(attention[b, t, order[-4:]].flatten(1))
    positive, negative = (torch.stack(rows).unflatten(0, (2, 3, 8)) for rows in (near, far))
    motion = motion_consistency(of_queries.flatten(3), positive, negative)
    torch.testing.assert_close(losses["motion"], motion)


def test_only_the_block_learns_and_the_encoder_stays_in_evaluation_mode():
    model = network().train()
    assert not model.encoder.training and model.block.training
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    groups = model.parameter_groups()
    optimizer = torch.optim.AdamW([{"weight_decay": 0.0, **group} for group in groups], lr=1e-3)
    for _ in range(3):
        losses = model.loss({"image": frames(6).unflatten(0, (2, 3))})
        optimizer.zero_grad()
        sum(losses.values()).backward()
        optimizer.step()
    changed = {
        name for name, tensor in model.state_dict().items() if not torch.equal(tensor, before[name])
    }
    assert changed == {f"block.{name}" for name, _ in model.block.named_parameters()}
    decayed = {id(p) for p in groups[0]["params"]}
    assert groups[0]["weight_decay"] == 0.1 and "weight_decay" not in groups[1]
    for parameter in model.block.parameters():
        assert (id(parameter) in decayed) == (parameter.ndim > 1)


def test_motion_consistency_reaches_queries_and_keys_alone():
    model = network().train()
    model.loss({"image": frames(3)[None]})["motion"].backward()
    gradients = {name: p.grad for name, p in model.block.named_parameters()}
    learning = {name for name, gradient in gradients.items() if gradient is not None}
    assert learning == {"norm_attention.weight", "norm_attention.bias", "to_qkv.weight"}
    assert gradients["to_qkv.weight"][:384].abs().sum() > 0
    assert gradients["to_qkv.weight"][384:].abs().sum() == 0  # values


@pytest.mark.parametrize(
    "count, tail, columns", [(79, True, 8), (79, False, 7), (8, True, 1), (8, False, 1)]
)
def test_key_frames_are_every_tenth(monkeypatch, count, tail, columns):
    model = network(key_frame_tail=tail).eval()
    seen = []

    def scores(maps):
        seen.append(maps)
        return torch.zeros(count * 24, 2), 2

    monkeypatch.setattr(model, "_scores", scores)
    with torch.inference_mode():
        list(model.segment_video(Clip(frames(count))))
    (maps,) = seen
    assert maps.columns.shape[1] == columns * 24 and len(maps.queries) == count
    with torch.inference_mode():
        of_frame = model.encoder(model.normalise(frames(count)[-1:]), class_token=False).keys
        queries, _ = model.block.queries_and_keys(of_frame)
    torch.testing.assert_close(maps.queries[-1:], queries)


def test_attention_maps_are_the_mean_softmax_of_the_heads():
    queries, columns = torch.randn(7, 4, 6, 4), torch.randn(4, 12, 4)
    windows = list(AttentionMaps(queries, columns))
    assert [len(window) for window in windows] == [18, 18, 6]
    heads = torch.einsum("thnd,hmd->tnhm", queries, columns) / 2
    expected = heads.softmax(dim=-1).mean(dim=2).flatten(0, 1)
    torch.testing.assert_close(torch.cat(windows), expected)
    torch.testing.assert_close(torch.cat(windows).sum(dim=1), torch.ones(42))


def test_clustering_is_in_float32_under_autocast(monkeypatch):
    model, seen = network().eval(), []
    scores = model._scores

    def noted(maps):
        windows = list(maps)
        seen.append({x.dtype for x in (maps.queries, maps.columns, *windows)})
        return scores(maps)

    monkeypatch.setattr(model, "_scores", noted)
    with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16):
        list(model.segment_video(Clip(frames(3))))
    assert seen == [{torch.float32}]


def test_the_block_learns_to_tell_objects_apart():
    """Also through an occlusion, after which an object has its cluster again.

    From noisy videos, as in ``tools.ssl_uvos_toy --check noisy``: less depends on rounding and on
    torch's random numbers there than after the 50 steps of ``plain``.
    """
    torch.manual_seed(0)
    model = toy.ToyNetwork()
    before = toy.held_out(model, noise=0.3)
    assert np.mean([j for j, *_ in before]) < 0.15
    assert [count for _, count, _ in before] == [1] * 8
    toy.train(model, toy.optimizer_of(model), range(100), noise=1.0)
    after = toy.held_out(model, noise=0.3)
    assert np.mean([j for j, *_ in after]) >= 0.95
    assert sum(count == 3 for _, count, _ in after) >= 7
    occluded = toy.held_out(model, noise=0.3, hidden=toy.HIDDEN)
    kept = [same for _, count, same in occluded if count == 3]
    assert len(kept) >= 6 and all(kept)


def test_the_number_of_clusters_is_a_figure_of_the_video():
    """Sharp maps have many: every different token is one."""
    model = network(merge_distance=1e-9).eval()
    with torch.inference_mode():
        (one, *_), count = list(model.segment_video(Clip(frames(3)))), 3 * 24
    value, most, advice = one.indicators["clusters"]
    assert value == count and most == 100 and "MERGE_DISTANCE" in advice
    assert one.logits[0].shape[1] == 20


def test_pictures_show_the_attention_of_three_tokens_to_their_own_frame():
    model = network().eval()
    with torch.inference_mode():
        first, second = model.segment_video(Clip(frames(3)))
        features = model.encoder(model.normalise(frames(3)[2:]), class_token=False)
        queries, keys = model.block.queries_and_keys(features.keys)
    assert list(first.maps) == [f"attention: {x}" for x in ("centre", "upper left", "lower right")]
    assert first.maps["attention: centre"].shape == (2, 4, 6)
    weights = (queries[0, :, 2 * 6 + 3, None] * keys[0]).sum(dim=-1) / queries.shape[-1] ** 0.5
    expected = weights.softmax(dim=-1).mean(dim=0).view(4, 6)
    found = second.maps["attention: centre"][0]
    torch.testing.assert_close(found, expected / expected.max())


def test_masks_depend_on_the_queries_and_keys_of_the_block_alone():
    model = network(merge_distance=1e-6).eval()
    with torch.inference_mode():
        before = [one.logits[0] for one in model.segment_video(Clip(frames(4)))]
        model.block.to_qkv.weight[2 * 192 :] = torch.randn(192, 192)  # values
        for name, parameter in model.block.named_parameters():
            if name.startswith(("project", "feed_forward")):
                parameter.normal_()
        after = [one.logits[0] for one in model.segment_video(Clip(frames(4)))]
    for one, other in zip(before, after):
        assert one.shape[1] > 1
        torch.testing.assert_close(one, other, rtol=0, atol=0)


def test_losses_are_in_float32_under_autocast():
    model = network().train()
    keys, class_tokens = torch.randn(2, 3, 24, 192), torch.randn(2, 3, 192)
    with torch.autocast("cpu", torch.bfloat16):
        losses = model.loss_of_features(keys, class_tokens)
    assert {loss.dtype for loss in losses.values()} == {torch.float32}
    sum(losses.values()).backward()
    assert all(p.grad.isfinite().all() for p in model.parameters() if p.grad is not None)
