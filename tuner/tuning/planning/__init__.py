"""Estimates the cost of a search: measures configurations, then simulates searches."""
