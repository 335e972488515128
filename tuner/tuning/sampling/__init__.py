"""Proposals: Optuna's samplers, drawn through the search space."""
