"""Code of the scripts: settings, training loop, checkpoints, metrics, pictures."""

__version__ = "0.9.0"  # of the code; checkpoints and reports have it
