"""The table of networks."""

import pytest
from torch import nn

from models import MODELS, ModelError, build_model
from models.gsanet.network import GSANet


def test_a_network_is_built_by_its_name():
    model = build_model("gsanet", motion=False, backbone="mit_b0", pretrained_backbone=False)
    assert isinstance(model, GSANet)
    assert model.flow_stream is None


def test_an_unknown_name_is_refused_with_the_nearest_one():
    with pytest.raises(ModelError, match=r"'gsa_net'.*gsanet.*did you mean 'gsanet'"):
        build_model("gsa_net")
    with pytest.raises(ModelError, match=r"'xyz'.*gsanet") as caught:
        build_model("xyz")
    assert "did you mean" not in str(caught.value)


def test_a_networks_own_errors_come_through():
    with pytest.raises(ModelError, match="resnet1o1"):
        build_model("gsanet", backbone="resnet1o1", pretrained_backbone=False)


def test_every_name_stands_for_a_module_class():
    for name, network in MODELS.items():
        assert name == name.lower()
        assert issubclass(network, nn.Module)
