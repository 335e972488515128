"""What every target shows of a trial, by the same names."""

import math
from typing import Any

from tuner.config import TrialConfig
from tuner.run.trial import EpochMetrics


def hyperparameters(config: TrialConfig) -> dict[str, Any]:
    """Return what defines a trial, without the text of a user's model file."""
    plain = config.to_dict()
    for params in plain["model"].values():
        params.pop("source", None)
    return plain


def figures(row: EpochMetrics) -> dict[str, float]:
    """Return an epoch's figures by the names that all targets show, without what is not finite."""
    named = {
        "accuracy/validation": row.val_accuracy,
        "loss/validation": row.val_loss,
        "loss/training": row.train_loss,
        "learning_rate": row.lr,
        "seconds": row.seconds,
    }
    return {name: value for name, value in named.items() if math.isfinite(value)}
