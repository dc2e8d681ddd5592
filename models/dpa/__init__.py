"""Dual Prototype Attention network (Cho, Lee et al., CVPR 2024): one file per box."""
