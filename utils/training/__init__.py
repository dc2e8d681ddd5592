"""Training: the loop, checkpoints, run folders, interrupts."""
