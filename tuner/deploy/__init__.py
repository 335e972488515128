"""Use a finished ensemble: predict, evaluate, export, serve. Needs neither Ray nor Optuna."""
