"""What serves the scripts: settings, training loop, checkpoints, metrics, losses, pictures."""
