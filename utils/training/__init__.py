"""Training: the step, the loop, checkpoints, run folders, interrupts."""
