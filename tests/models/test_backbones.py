"""Encoders: their pyramids, their weights from files, and what is refused."""

import os
import re
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import timm
import torch
from PIL import Image
from safetensors.torch import save_file
from transformers import SegformerConfig, SegformerForImageClassification, SegformerModel

from models.backbones import STRIDES, ModelError, Normalise, build_backbone
from models.backbones.mix_transformer import (
    HEADS,
    MIX_TRANSFORMERS,
    REDUCTIONS,
    Linear,
    MixTransformer,
)

ROOT = Path(__file__).resolve().parents[2]

# Parameters in millions: SegFormer's encoders (Xie et al., NeurIPS 2021, Table 1).
PUBLISHED_SIZES = {
    "mit_b0": 3.3,
    "mit_b1": 13.1,
    "mit_b2": 24.2,
    "mit_b3": 44.0,
    "mit_b4": 60.8,
    "mit_b5": 81.4,
}


def mix_transformer_shapes(name):
    """Names and shapes in the published file of an ImageNet classifier, nvidia/mit-b0 to b5."""
    widths, depths = MIX_TRANSFORMERS[name]
    shapes = {}

    def add(prefix, weight):
        shapes[f"{prefix}.weight"] = weight
        shapes[f"{prefix}.bias"] = weight[:1]

    before = 3
    for stage, (width, depth) in enumerate(zip(widths, depths)):
        kernel, reduction = (7, 3, 3, 3)[stage], (8, 4, 2, 1)[stage]
        embedding = f"segformer.encoder.patch_embeddings.{stage}"
        add(f"{embedding}.proj", (width, before, kernel, kernel))
        add(f"{embedding}.layer_norm", (width,))
        for index in range(depth):
            block = f"segformer.encoder.block.{stage}.{index}"
            add(f"{block}.layer_norm_1", (width,))
            for part in ("query", "key", "value"):
                add(f"{block}.attention.self.{part}", (width, width))
            if reduction > 1:
                add(f"{block}.attention.self.sr", (width, width, reduction, reduction))
                add(f"{block}.attention.self.layer_norm", (width,))
            add(f"{block}.attention.output.dense", (width, width))
            add(f"{block}.layer_norm_2", (width,))
            add(f"{block}.mlp.dense1", (4 * width, width))
            add(f"{block}.mlp.dwconv.dwconv", (4 * width, 1, 3, 3))
            add(f"{block}.mlp.dense2", (width, 4 * width))
        add(f"segformer.encoder.layer_norm.{stage}", (width,))
        before = width
    add("classifier", (1000, widths[-1]))
    return shapes


def random_state(shapes):
    """Small random tensors; all alike, as the test needs only that each ends in its place."""
    generator = torch.Generator().manual_seed(0)
    return {name: 0.1 * torch.randn(shape, generator=generator) for name, shape in shapes.items()}


def mit_folder(folder):
    """The published layout of nvidia/mit-b0 with random weights; also what transformers loads."""
    folder.mkdir()
    SegformerConfig(num_labels=1000).save_pretrained(folder)
    state = random_state(mix_transformer_shapes("mit_b0"))
    save_file(state, folder / "model.safetensors", metadata={"format": "pt"})
    return folder, state, SegformerModel.from_pretrained(folder)


def assert_same_features(backbone, reference):
    images = torch.rand(1, 3, 64, 64, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        features = backbone.eval()(images)
        expected = reference.eval()(images, output_hidden_states=True).hidden_states
    for feature, hidden in zip(features, expected, strict=True):
        torch.testing.assert_close(feature, hidden)


def random_timm_state(name):
    """State dict of a whole classifier, statistics of the normalisation included."""
    generator = torch.Generator().manual_seed(0)
    return {
        key: torch.rand(value.shape, generator=generator) if value.is_floating_point() else value
        for key, value in timm.create_model(name, pretrained=False).state_dict().items()
    }


def forbid_network(monkeypatch):
    def refuse(*arguments, **options):
        raise AssertionError(f"went to the network: {arguments}")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    monkeypatch.setattr(socket, "create_connection", refuse)


@pytest.mark.parametrize(
    "name, channels",
    [
        ("mit_b0", [32, 64, 160, 256]),
        ("resnet10t", [64, 128, 256, 512]),
        ("regnety_002", [24, 56, 152, 368]),
    ],
)
def test_there_are_four_maps_at_strides_4_to_32(name, channels):
    backbone = build_backbone(name, pretrained=False).eval()
    assert backbone.channels == channels
    features = backbone(torch.rand(2, 3, 64, 96))
    expected = [(2, c, 64 // stride, 96 // stride) for c, stride in zip(channels, STRIDES)]
    assert [tuple(feature.shape) for feature in features] == expected


def test_resnet101_has_the_four_stages_of_the_paper():
    with torch.device("meta"):
        backbone = build_backbone("resnet101", pretrained=False)
        features = backbone(torch.rand(2, 3, 64, 64))
    assert backbone.channels == [256, 512, 1024, 2048]
    assert [tuple(f.shape[1:]) for f in features] == [
        (256, 16, 16),
        (512, 8, 8),
        (1024, 4, 4),
        (2048, 2, 2),
    ]
    # torchvision's resnet101 without its classifier.
    assert sum(p.numel() for p in backbone.parameters()) == 44_549_160 - 2_049_000


@pytest.mark.parametrize("name", MIX_TRANSFORMERS)
def test_mix_transformers_have_the_published_sizes(name):
    with torch.device("meta"):
        backbone = build_backbone(name, pretrained=False)
    count = sum(parameter.numel() for parameter in backbone.parameters())
    assert count / 1e6 == pytest.approx(PUBLISHED_SIZES[name], abs=0.1)
    shapes = mix_transformer_shapes(name)
    sizes = sum(torch.Size(s).numel() for n, s in shapes.items() if "classifier" not in n)
    assert count == sizes


def test_a_windowed_network_with_channels_last_takes_any_size_and_gives_channels_first():
    backbone = build_backbone("swin_tiny_patch4_window7_224", pretrained=False).eval()
    images = torch.rand(1, 3, 64, 96)
    with torch.no_grad():
        raw, features = backbone.encoder(images), backbone(images)
    assert backbone.channels == [96, 192, 384, 768]
    for feature, last, channels, stride in zip(features, raw, backbone.channels, STRIDES):
        assert feature.shape == (1, channels, 64 // stride, 96 // stride)
        assert torch.equal(feature[0, 5], last[0, :, :, 5])


def test_a_network_of_one_image_size_is_refused():
    with pytest.raises(ModelError, match=r"hiera_tiny_224.*one size"):
        build_backbone("hiera_tiny_224", pretrained=False)


@pytest.mark.parametrize(
    "name, nearest", [("resnet1o1", "resnet101"), ("mit_b6", "mit_b5"), ("mitb2", "mit_b2")]
)
def test_an_unknown_name_is_refused_with_the_nearest_ones(name, nearest):
    with pytest.raises(ModelError, match=f"'{name}'.*did you mean.*{nearest}"):
        build_backbone(name, pretrained=False)


def test_a_name_like_no_other_is_refused_without_a_guess():
    with pytest.raises(ModelError, match=r"'%%%'.*timm") as caught:
        build_backbone("%%%", pretrained=False)
    assert "did you mean" not in str(caught.value)


def test_a_network_without_a_pyramid_is_refused():
    with pytest.raises(ModelError, match=r"vit_tiny_patch16_224.*\[16, 16, 16\].*\[4, 8, 16, 32\]"):
        build_backbone("vit_tiny_patch16_224", pretrained=False)


def test_a_network_that_timm_cannot_take_features_from_is_refused():
    with pytest.raises(ModelError, match="mixer_s32_224"):
        build_backbone("mixer_s32_224", pretrained=False)


@pytest.mark.parametrize("name", ["mit_b0", "resnet10t"])
def test_random_weights_need_neither_network_nor_file(name, monkeypatch, tmp_path):
    forbid_network(monkeypatch)
    backbone = build_backbone(name, pretrained=False, weights=tmp_path / "not there")
    assert len(backbone.channels) == 4


@pytest.mark.parametrize("name", ["mit_b0", "resnet10t"])
def test_weights_from_a_file_need_no_network(name, monkeypatch, tmp_path):
    forbid_network(monkeypatch)
    file = tmp_path / "weights.safetensors"
    if name == "mit_b0":
        SegformerForImageClassification(SegformerConfig()).save_pretrained(tmp_path)
        file = tmp_path / "model.safetensors"
    else:
        save_file(random_timm_state(name), file)
    build_backbone(name, weights=file)


@pytest.mark.parametrize(
    "form", ["bin", "pt", "safetensors", "folder", "folder with pytorch_model.bin"]
)
def test_mix_transformer_takes_the_published_file(form, tmp_path):
    """By the names of nvidia/mit-b0; transformers' own loader says what the features should be."""
    folder, state, reference = mit_folder(tmp_path / "mit-b0")
    if form == "folder":
        path = folder
    elif form == "safetensors":
        path = folder / "model.safetensors"
    elif form in ("bin", "pt"):
        path = tmp_path / f"weights.{form}"
        torch.save(state, path)
    else:
        path = tmp_path / "other"
        path.mkdir()
        torch.save(state, path / "pytorch_model.bin")
    assert_same_features(build_backbone("mit_b0", weights=path), reference)


def test_mix_transformer_takes_what_transformers_saved(tmp_path):
    torch.manual_seed(2)
    model = SegformerForImageClassification(SegformerConfig())
    model.save_pretrained(tmp_path / "saved")
    torch.save(model.state_dict(), tmp_path / "state.pt")
    for path in (tmp_path / "saved", tmp_path / "state.pt"):
        assert_same_features(build_backbone("mit_b0", weights=path), model.segformer)


def in_the_authors_release(name):
    """What SegFormer's own release calls a tensor of ``mix_transformer_shapes``."""
    name = name.removeprefix("segformer.encoder.")
    kind, stage, rest = name.split(".", 2) if name[0] in "pbl" else ("head", "0", name)
    number = int(stage) + 1
    if kind == "patch_embeddings":
        return f"patch_embed{number}.{rest.replace('layer_norm', 'norm')}"
    if kind == "layer_norm":
        return f"norm{number}.{rest}"
    for theirs, authors in {
        "layer_norm_1": "norm1",
        "layer_norm_2": "norm2",
        "attention.self.query": "attn.q",
        "attention.self.sr": "attn.sr",
        "attention.self.layer_norm": "attn.norm",
        "attention.output.dense": "attn.proj",
        "mlp.dense": "mlp.fc",
    }.items():
        rest = rest.replace(theirs, authors)
    return f"block{number}.{rest}" if kind == "block" else f"head.{rest}"


def test_mix_transformer_takes_the_file_of_its_authors(tmp_path):
    _, state, reference = mit_folder(tmp_path / "mit-b0")
    released = {}
    for name, tensor in state.items():
        released[in_the_authors_release(name)] = tensor
    for name in [name for name in released if ".self.key." in name]:
        key, value = released.pop(name), released.pop(name.replace(".key.", ".value."))
        released[name.replace("attention.self.key", "attn.kv")] = torch.cat([key, value])
    assert {"block1.0.attn.kv.bias", "norm4.weight", "patch_embed2.proj.bias"} <= released.keys()
    torch.save(released, tmp_path / "mit_b0.pth")
    assert_same_features(build_backbone("mit_b0", weights=tmp_path / "mit_b0.pth"), reference)


def test_drop_path_leaves_branches_out_by_sample_and_makes_up_for_it():
    torch.manual_seed(5)
    block = MixTransformer("mit_b0").levels[0].blocks[1].train()
    block.drop = 0.5
    block.perceptron = torch.nn.Identity()
    block.norm_perceptron = torch.nn.Identity()
    x = torch.rand(64, 8, 8, 32)
    branch = block.attention(block.norm_attention(x))
    after = block(x) - x
    counts = [0, 0, 0, 0]
    for one, shortcut, result in zip(x, branch, after):
        # Kept branches count twice; the second one is the identity of what the first has made.
        middle = (one, one + 2 * shortcut)
        cases = [middle[0], 3 * middle[0], middle[1], 3 * middle[1]]
        matches = [torch.allclose(one + result, case, atol=1e-5) for case in cases]
        assert sum(matches) == 1
        counts[matches.index(True)] += 1
    assert min(counts) > 4


def test_the_hidden_maps_of_a_mix_transformer_are_kept_once_for_the_backward_pass():
    perceptron = MixTransformer("mit_b0").levels[0].blocks[0].perceptron.train()
    x = torch.rand(1, 8, 8, 32, requires_grad=True)
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(
        lambda t: kept.append(t.numel()) or t, lambda t: t
    ):
        perceptron(x)
    assert sum(size for size in kept if size >= 8 * 8 * 128) <= 8 * 8 * 128


def test_a_linear_layer_is_the_same_by_convolution():
    layer = Linear(6, 10)
    x = torch.rand(2, 3, 4, 6)
    torch.testing.assert_close(layer(x), torch.nn.functional.linear(x, layer.weight, layer.bias))


def test_attention_of_a_mix_transformer_is_that_of_separate_steps():
    torch.manual_seed(3)
    encoder = MixTransformer("mit_b0")
    assert [len(level.blocks) for level in encoder.levels] == [2, 2, 2, 2]
    drops = [block.drop for level in encoder.levels for block in level.blocks]
    assert drops == pytest.approx([0.1 * i / 7 for i in range(8)])
    for level, heads, reduction in zip(encoder.levels, HEADS, REDUCTIONS):
        attention = level.blocks[0].attention
        width = attention.to_query.in_features
        x = torch.rand(2, 16, 8, width)
        memory = x
        if reduction > 1:
            memory = attention.reduce(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
            memory = attention.norm_reduced(memory)
        key, value = attention.to_key_value(memory).flatten(1, 2).chunk(2, dim=2)
        query, size = attention.to_query(x).flatten(1, 2), width // heads
        parts = [slice(h * size, (h + 1) * size) for h in range(heads)]
        weights = [query[..., p] @ key[..., p].transpose(1, 2) / size**0.5 for p in parts]
        attended = [w.softmax(dim=2) @ value[..., p] for w, p in zip(weights, parts)]
        output = attention.to_output
        expected = torch.cat(attended, dim=2).unflatten(1, (16, 8)) @ output.weight.T + output.bias
        torch.testing.assert_close(attention(x), expected)


def test_gradients_of_a_mix_transformer_are_those_of_transformers(tmp_path):
    folder, _, reference = mit_folder(tmp_path / "mit-b0")
    encoder = build_backbone("mit_b0", weights=folder).eval()
    images = torch.rand(2, 3, 64, 96, generator=torch.Generator().manual_seed(4))
    given = [images.clone().requires_grad_() for _ in range(2)]
    sum(f.square().mean() for f in encoder(given[0])).backward()
    hidden = reference.eval()(given[1], output_hidden_states=True).hidden_states
    sum(f.square().mean() for f in hidden).backward()
    torch.testing.assert_close(given[0].grad, given[1].grad)
    mixed = encoder.levels[1].blocks[0].perceptron.mix.weight.grad
    (theirs,) = [
        parameter.grad
        for key, parameter in reference.named_parameters()
        if re.search(r"\.1\.(blocks\.)?0\.mlp\.dwconv\.dwconv\.weight", key)
    ]
    torch.testing.assert_close(mixed, theirs)


@pytest.mark.parametrize("form", ["pth", "bin", "safetensors", "folder"])
def test_timm_network_takes_the_file_of_its_classifier(form, tmp_path):
    state = random_timm_state("resnet10t")
    path = tmp_path / f"weights.{form}"
    if form == "safetensors":
        save_file(state, path)
    elif form == "folder":
        path.mkdir()
        save_file(state, path / "model.safetensors")
    else:
        torch.save(state, path)
    loaded = build_backbone("resnet10t", weights=path).encoder.state_dict()
    assert len(loaded) > 50
    for key, value in loaded.items():
        assert torch.equal(value, state[key]), key


def test_weights_in_a_file_may_be_given_as_a_string(tmp_path):
    """As they come from the settings."""
    state = random_timm_state("resnet10t")
    torch.save(state, tmp_path / "weights.pth")
    loaded = build_backbone("resnet10t", weights=str(tmp_path / "weights.pth"))
    assert torch.equal(loaded.encoder.state_dict()["bn1.weight"], state["bn1.weight"])


@pytest.mark.parametrize("from_file", [False, True])
@pytest.mark.parametrize("name", ["resnet10t", "tf_efficientnet_lite0"])
def test_features_are_those_of_timm_with_its_own_transform(name, from_file, tmp_path):
    """Each name's images have a mean and deviation of their own; so has a file with its weights."""
    file = tmp_path / "weights.pth"
    torch.save(random_timm_state(name), file)
    torch.manual_seed(0)
    backbone = build_backbone(name, from_file, file if from_file else None).eval()
    reference = timm.create_model(name, features_only=True, out_indices=(1, 2, 3, 4)).eval()
    reference.load_state_dict(backbone.encoder.state_dict())
    options = timm.data.resolve_data_config({"input_size": (3, 64, 64)}, model=reference)
    transform = timm.data.create_transform(**(options | {"crop_pct": 1.0}))
    pixels = torch.randint(256, (64, 64, 3), generator=torch.Generator().manual_seed(1))
    image = (pixels / 255).permute(2, 0, 1)[None]
    with torch.no_grad():
        features = backbone(Normalise(backbone.mean, backbone.deviation)(image))
        expected = reference(transform(Image.fromarray(pixels.byte().numpy()))[None])
    for feature, other in zip(features, expected, strict=True):
        torch.testing.assert_close(feature, other)


def unfit_states(name):
    """What a wrong file may hold, each with its description."""
    if name == "mit_b0":
        fit = random_state(mix_transformer_shapes("mit_b0"))
        other = random_state(mix_transformer_shapes("mit_b1"))
        last = "segformer.encoder.block.3"
    else:
        fit, other, last = random_timm_state(name), random_timm_state("resnet18"), "layer4"
    return {
        "another network": other,
        "nothing that fits": {"weight": torch.zeros(3)},
        "a part alone": {k: v for k, v in fit.items() if not k.startswith(last)},
    }


@pytest.mark.parametrize("content", ["another network", "nothing that fits", "a part alone"])
@pytest.mark.parametrize("name", ["mit_b0", "resnet10t"])
@pytest.mark.parametrize("form", ["pth", "safetensors"])
def test_a_file_that_does_not_fit_is_refused_by_its_name(name, content, form, tmp_path):
    state, file = unfit_states(name)[content], tmp_path / f"wrong.{form}"
    if form == "safetensors":
        save_file(state, file)
    else:
        torch.save(state, file)
    with pytest.raises(ModelError, match=rf"wrong\.{form}.*{name}"):
        build_backbone(name, weights=file)


@pytest.mark.parametrize("name", ["mit_b0", "resnet10t"])
@pytest.mark.parametrize("form", ["pth", "safetensors"])
def test_a_file_that_holds_no_tensors_is_refused_by_its_name(name, form, tmp_path):
    file = tmp_path / f"page.{form}"
    file.write_text("<html>404: not found</html>")
    with pytest.raises(ModelError, match=rf"page\.{form}.*{name}"):
        build_backbone(name, weights=file)


@pytest.mark.parametrize("name", ["mit_b0", "resnet10t"])
def test_a_missing_file_or_a_folder_without_weights_is_refused_by_its_name(name, tmp_path):
    with pytest.raises(ModelError, match=r"absent\.pth.*no such file"):
        build_backbone(name, weights=tmp_path / "absent.pth")
    folder = tmp_path / "folder"
    folder.mkdir()
    (folder / "readme.txt").touch()
    with pytest.raises(ModelError, match=r"folder.*model\.safetensors nor pytorch_model\.bin"):
        build_backbone(name, weights=folder)


def test_mix_transformers_are_downloaded_from_their_authors(monkeypatch):
    asked = []

    def refuse(name, *arguments, weights_only=False):
        asked.append(name)
        assert weights_only
        raise OSError("no network")

    monkeypatch.setattr(timm.models, "load_state_dict_from_hf", refuse)
    for name in ("mit_b0", "mit_b5"):
        with pytest.raises(ModelError, match=f"{name}.*no network"):
            build_backbone(name)
    assert asked == ["nvidia/mit-b0", "nvidia/mit-b5"]


def test_without_network_the_error_says_what_to_set(tmp_path):
    """In a process of its own, as the hub's client reads its address when it is imported."""
    script = (
        "import time\n"
        "time.sleep = lambda seconds: None\n"  # between the client's attempts
        "from models import ModelError\n"
        "from models.backbones import build_backbone\n"
        "for name in ('mit_b0', 'resnet10t'):\n"
        "    try:\n"
        "        build_backbone(name)\n"
        "    except ModelError as error:\n"
        "        print(f'refused: {error}')\n"
    )
    hidden = ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE", "HF_HUB_CACHE", "TRANSFORMERS_CACHE")
    environment = {
        **{name: value for name, value in os.environ.items() if name not in hidden},
        "HF_ENDPOINT": "http://127.0.0.1:9",  # nothing listens there
        "HF_HOME": str(tmp_path),
        "PYTHONPATH": str(ROOT),
        "NO_PROXY": "127.0.0.1",
    }
    result = subprocess.run(
        [sys.executable, "-c", script], env=environment, capture_output=True, text=True, timeout=120
    )
    lines = [line for line in result.stdout.splitlines() if line.startswith("refused: ")]
    assert len(lines) == 2, result.stdout + result.stderr
    for line, name in zip(lines, ("mit_b0", "resnet10t")):
        assert name in line
        assert "BACKBONE_WEIGHTS" in line and "PRETRAINED_BACKBONE = False" in line
