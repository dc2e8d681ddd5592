"""Networks. ``build_model`` makes one of them by its name, the setting MODEL."""

import difflib

from models.backbones import ModelError
from models.dpa.network import DPA
from models.gsanet.network import GSANet
from models.interface import Network
from models.smtc.network import SMTC
from models.ssl_uvos.network import SSLUVOS

MODELS = {"gsanet": GSANet, "dpa": DPA, "smtc": SMTC, "ssl_uvos": SSLUVOS}

__all__ = ["MODELS", "ModelError", "build_model", "model_class"]


def model_class(name: str) -> type[Network]:
    """The network called ``name``.

    Raises:
        ModelError: there is no such network.
    """
    if name not in MODELS:
        near = difflib.get_close_matches(name, MODELS, n=1)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        raise ModelError(f"MODEL is {name!r}, but the networks are {', '.join(MODELS)}{hint}")
    return MODELS[name]


def build_model(name: str, **arguments) -> Network:
    """The network called ``name``; ModelError if it or its backbone cannot be built."""
    return model_class(name)(**arguments)
