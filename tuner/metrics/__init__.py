"""Predictions, the scores of them, and how sure a difference is."""
