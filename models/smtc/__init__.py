"""SMTC (arXiv 2308.09951): semantic slots, and instance slots inside each, without masks."""
