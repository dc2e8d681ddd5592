"""Evaluation: masks of a set or a video, measures, protocols, results."""
