"""What a forward pass does on a GPU, as far as that can be seen without one.

Tensors of two devices in one operation are an error of torch's fake tensors, as are types that do
not go together under autocast, and whatever asks the GPU for a number, which there would be a wait.
"""

from contextlib import nullcontext

import pytest
import torch
from torch import nn
from torch._subclasses.fake_tensor import DataDependentOutputException
from torch.utils._python_dispatch import TorchDispatchMode

from models.backbones.mix_transformer import MixTransformer
from models.precision import with_weights_as
from models.two_streams import expand
from tests.models.fake_gpu import OneAttention, bfloat16_autocast, fake_gpu, works
from tests.models.small_networks import TWO_STREAMS, FramesInMemory, network
from utils.evaluation.segmenting import Segmenter
from utils.processes import Process
from utils.training.step import Trainer
from utils.transfer import fetch

pytestmark = pytest.mark.skipif(not works(), reason="this torch wants a GPU for fake tensors")

SIZE = 64
GSANET_SWITCHES = ("guided_slots", "knn_filtering", "slot_attention", "aggregation_transformer")
DPA_SWITCHES = ("inter_modality_attention", "inter_frame_attention")


def frames(motion):
    shapes = [(2, 3, SIZE, SIZE)] * 2 + [(2, 3, 3, SIZE, SIZE)] * 2
    return [torch.empty(shape, device="cuda") for shape in (shapes if motion else shapes[:1])]


def samples(motion, device="cpu"):
    """A batch as the loader gives it."""
    shapes = {"image": (2, 3), "labels": (2,)}
    if motion:
        shapes |= {"flow": (2, 3), "reference_images": (2, 3, 3), "reference_flows": (2, 3, 3)}
    return {
        name: torch.empty(*shape, SIZE, SIZE, dtype=torch.uint8, device=device)
        for name, shape in shapes.items()
    }


class Seen(TorchDispatchMode):
    """All operations: name, first tensor, type of the result."""

    def __init__(self):
        super().__init__()
        self.operations = []
        self.copies = []  # how tensors were copied from one device to another

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        result = function(*args, **kwargs)
        dtype = getattr(result[0] if isinstance(result, tuple) else result, "dtype", None)
        if function is torch.ops.aten._to_copy.default and "device" in kwargs:
            self.copies.append(kwargs)
        self.operations.append((function.__name__.partition(".")[0], args[:1], dtype))
        return result

    def converted(self):
        """The tensors whose type was changed."""
        return [
            first[0]
            for name, first, dtype in self.operations
            if name == "_to_copy" and first[0].dtype != dtype
        ]

    def types_of(self, operation):
        return [dtype for name, _, dtype in self.operations if name == operation]


def leaves(tensor):
    """The parameters that a tensor has gradients for."""
    found, seen, pending = [], set(), [tensor.grad_fn]
    while pending:
        node = pending.pop()
        if node is not None and node not in seen:
            seen.add(node)
            found += [node.variable] if hasattr(node, "variable") else []
            pending += [following for following, _ in node.next_functions]
    return found


@pytest.mark.parametrize(
    "name, arguments, mixed_precision",
    [(name, {"motion": motion}, True) for name in TWO_STREAMS for motion in (False, True)]
    + [(name, {"backbone": "resnet10t"}, mixed) for name in TWO_STREAMS for mixed in (False, True)]
    + [("gsanet", {switch: False}, True) for switch in GSANET_SWITCHES]
    + [("dpa", {switch: False}, True) for switch in DPA_SWITCHES],
)
def test_a_training_step_s_forward_pass_stays_on_the_gpu(name, arguments, mixed_precision):
    model = network(name, **arguments).train()
    motion = arguments.get("motion", True)
    autocast = bfloat16_autocast() if mixed_precision else nullcontext()
    with fake_gpu(model), Seen() as seen, autocast:
        total = sum(model.loss(samples(motion, "cuda")).values())
    assert total.device.type == "cuda" and total.dtype == torch.float32
    # Gradients of what is resized are summed up in its type.
    assert set(seen.types_of("upsample_bilinear2d")) == {torch.float32}
    # Although references are encoded first, without gradients, and autocast keeps those weights.
    reached = {id(parameter) for parameter in leaves(total)}
    assert [key for key, p in model.named_parameters() if id(p) not in reached] == []


@pytest.mark.parametrize("name", TWO_STREAMS)
def test_segmenting_stays_on_the_gpu_and_in_bfloat16(name):
    """No weights are converted, but those of norms that autocast computes in float32."""
    model = with_weights_as(network(name).eval(), torch.bfloat16)
    with fake_gpu(model), torch.no_grad():
        image, flow, reference_images, reference_flows = frames(motion=True)
        with bfloat16_autocast():
            references = model.encode_references(reference_images[:1], reference_flows[:1])
            with Seen() as seen:
                prediction = model.segment(image, flow, expand(references, 2))
    converted = {id(tensor) for tensor in seen.converted()}
    assert len(converted) > 10
    weights = [
        (type(module), key)
        for module in model.modules()
        for key, parameter in module.named_parameters(recurse=False)
        if id(parameter) in converted
    ]
    assert {kind for kind, _ in weights} <= {nn.LayerNorm, nn.GRUCell}
    assert set(seen.types_of("upsample_bilinear2d")) == {torch.bfloat16}
    assert all(logits.dtype == torch.bfloat16 for logits in prediction.logits)
    for tensor in (*prediction.logits, *prediction.maps.values()):
        assert tensor.device.type == "cuda"
    assert all(values.dtype == torch.float32 for values in prediction.maps.values())


@pytest.mark.parametrize("training", [False, True])
def test_a_mix_transformer_is_bfloat16_throughout(training):
    """Autocast normalises in float32 on GPUs, and all that is added to that would be float32."""
    encoder = MixTransformer("mit_b0").train(training)
    seen = Seen()
    with fake_gpu(encoder), torch.set_grad_enabled(training), bfloat16_autocast():
        images = frames(motion=False)
        with OneAttention(), seen:
            features = encoder(*images)
    assert [x.dtype for x in features] == [torch.bfloat16] * 4
    given = {tuple(p.shape) for p in encoder.parameters()} | {(2, 3, SIZE, SIZE)}
    assert [x.shape for x in seen.converted() if tuple(x.shape) not in given] == []
    norms = seen.types_of("native_layer_norm")
    assert len(norms) == 4 + 16 + 6 + 4 and set(norms) == {torch.bfloat16}
    assert torch.float32 not in seen.types_of("add") + seen.types_of("addcmul")


def test_the_segmenter_converts_weights_where_it_computes_in_bfloat16(monkeypatch):
    asked = []
    monkeypatch.setattr(
        "utils.evaluation.segmenting.with_weights_as",
        lambda model, dtype: asked.append(dtype) or model,
    )
    model = network("gsanet").eval()
    Segmenter(model, SIZE, mixed_precision=True)
    assert not asked
    with fake_gpu(model):
        Segmenter(model, SIZE)
        assert not asked
        Segmenter(model, SIZE, mixed_precision=True)
    assert asked == [torch.bfloat16]
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: True)
    Segmenter(model, SIZE, mixed_precision=False)
    Segmenter(model, SIZE, mixed_precision=True)
    assert asked == [torch.bfloat16] * 2


@pytest.fixture
def events(gpu_events, monkeypatch):
    """What the GPU's events were used for; memory need not be pinned."""
    monkeypatch.setattr(torch.Tensor, "pin_memory", lambda tensor: tensor)  # which wants a GPU
    return gpu_events


def test_a_training_step_waits_only_when_its_numbers_are_wanted(events, monkeypatch, tiny_settings):
    """But for the backward pass, which is not to be had without a GPU."""
    settings = tiny_settings.replace(mixed_precision=False, clip_gradient=1.0, batch_size=2)
    model = network("gsanet")

    def backward(loss):
        for parameter in model.parameters():
            parameter.grad = torch.empty_like(parameter)

    with fake_gpu(model):
        monkeypatch.setattr(torch.Tensor, "backward", backward)
        monkeypatch.setattr(nn.Module, "to", lambda module, device: module)  # it is there already
        process = Process(torch.device("cuda", 0))
        trainer = Trainer(model, settings, process, num_steps=10)
        sample = samples(motion=True)
        with Seen() as seen:
            step = trainer.step([sample])
        assert events == ["cuda:0"]
        with pytest.raises(DataDependentOutputException):  # there are no numbers
            step.read()
    assert events == ["cuda:0", "wait"]
    assert len([options for options in seen.copies if options["device"].type == "cpu"]) == 1
    assert all(options["non_blocking"] for options in seen.copies)


class VideoOfOneBatch:
    """Three frames, in all views."""

    def __init__(self, views):
        self.views = views

    def __len__(self):
        return 3

    def at(self, positions):
        return self.views

    def __iter__(self):
        return iter([self.views])


@pytest.mark.parametrize("name", TWO_STREAMS)
def test_segmenting_waits_only_when_the_predictions_are_wanted(name, events, monkeypatch):
    done = []  # operations before the results of a view are fetched

    def noted(tensors):
        done.append(len(seen.operations))
        return fetch(tensors)

    monkeypatch.setattr("utils.evaluation.segmenting.fetch", noted)
    model = network(name).eval()
    with fake_gpu(model):
        segmenter = Segmenter(model, SIZE, flip=True)
        frames = {
            kind: torch.empty(3, 3, SIZE, SIZE, dtype=torch.uint8) for kind in ("image", "flow")
        }
        with Seen() as seen:
            predictions = next(segmenter.segment(VideoOfOneBatch([frames] * 2)))
        assert events == ["cuda:0"] * 2
        with pytest.raises(RuntimeError, match="numpy"):  # there are no numbers
            predictions()
    assert events == ["cuda:0"] * 2 + ["wait"] * 2
    assert all(options["non_blocking"] for options in seen.copies)
    # A view's results are fetched before the next one is computed, where CUDA graphs put its.
    assert len(done) == 2 and done[1] > done[0] + 100


def test_a_tensor_left_on_the_cpu_is_seen():
    model = network("gsanet", motion=False).eval()
    preparation = next(m for m in model.modules() if "mean" in m._buffers)
    with fake_gpu(model), torch.no_grad():
        preparation._buffers["mean"] = torch.empty(1, 3, 1, 1)
        with pytest.raises(RuntimeError, match="device"):
            model(*frames(motion=False))


def test_the_losses_and_tracks_of_smtc_are_computed_on_the_gpu():
    model = network("smtc", freeze_steps=0)
    shape = (3, SIZE, SIZE)
    with fake_gpu(model), bfloat16_autocast():
        keys = torch.empty(2, 4, 16, 192, dtype=torch.bfloat16, device="cuda")
        terms = model.loss_of_features(keys, keys.clone(), (4, 4))
        image = torch.empty(shape, dtype=torch.uint8, device="cuda")
        video = FramesInMemory([{"image": image}] * 5)
        for model.discovery in ("tracks", "release"):
            with torch.no_grad():
                results = [prediction.logits[0] for prediction in model.eval().segment_video(video)]
            assert {x.device.type for x in (*terms.values(), *results)} == {"cuda"}
            assert {x.dtype for x in (*terms.values(), *results)} == {torch.float32}
