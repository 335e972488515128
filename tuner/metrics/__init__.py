"""Predictions, their scores, and the significance of a difference."""
