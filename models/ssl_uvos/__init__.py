"""SSL-UVOS (arXiv 2311.17893): clusters of a trained block's attention maps, without masks."""
