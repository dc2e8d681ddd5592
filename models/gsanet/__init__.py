"""Guided slot attention network (Lee et al., CVPR 2024): one file per box of Figure 2."""
