"""Trials on a Ray cluster: nodes, workers, and Ray Tune's events."""
