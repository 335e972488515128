"""Proposes configurations: Optuna's samplers draw them through the search space."""
