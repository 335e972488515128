"""The data that every target shows of a trial, by the same names."""

import math
from typing import Any

from tuner.config import Metric, TrialConfig
from tuner.run.trial import EpochMetrics


def hyperparameters(config: TrialConfig) -> dict[str, Any]:
    """Return the configuration of a trial, without the text of a user's model file."""
    plain = config.to_dict()
    for params in plain["model"].values():
        params.pop("source", None)
    return plain


def figures(row: EpochMetrics) -> dict[str, float]:
    """Return the finite figures of an epoch, by the names that all targets show."""
    named = {
        "accuracy/validation": row.val_accuracy,
        "balanced_accuracy/validation": row.val_balanced_accuracy,
        "macro_f1/validation": row.val_macro_f1,
        "worst_class/validation": row.val_worst_class,
        "loss/validation": row.val_loss,
        "loss/training": row.train_loss,
        "learning_rate": row.lr,
        "seconds": row.seconds,
    }
    return {
        name: value for name, value in named.items() if value is not None and math.isfinite(value)
    }


def best_figures(best: EpochMetrics | None, metric: Metric) -> dict[str, float | None]:
    """Return the accuracy and the run's metric of a trial's best epoch."""
    return {
        "best_accuracy": best.val_accuracy if best else None,
        f"best_{metric}": best.value(metric) if best else None,
    }
