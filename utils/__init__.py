"""What serves the scripts: settings, training loop, checkpoints, metrics, pictures."""

import datasets  # noqa: F401  before all that takes time, for the sake of Ctrl-C

__version__ = "0.9.0"  # of the code; checkpoints and reports have it
