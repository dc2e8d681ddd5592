"""Checkpoints of small networks with random weights, as a run would have written them."""

from pathlib import Path

from tests.models.small_networks import SMALL, network
from utils.settings import Settings
from utils.training.checkpoints import save_checkpoint

FLOW = "dis, camera motion kept"


def save_small(
    path: Path, settings: Settings, name: str = "gsanet", flow: str | None = FLOW, **arguments
) -> Path:
    """Write the checkpoint of a small network; its probabilities lie on both sides of 0.5."""
    weights = network(name, **arguments).state_dict()
    arguments = {"backbone": "mit_b0", **SMALL[name], **arguments}
    parts = {"model": name, "arguments": arguments, "settings": settings.as_dict()}
    save_checkpoint(path, {**parts, "weights": weights, "flow": flow})
    return path
