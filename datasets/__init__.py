"""Data on disk: folder layout, samples, augmentation, flow maps and the synthetic data set."""
