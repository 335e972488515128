"""What an ensemble is used for once it is made; needs neither Ray nor Optuna."""
