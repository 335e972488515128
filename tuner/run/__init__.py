"""A run's folder: its record, its trials, its checkpoints, and what they add up to."""
