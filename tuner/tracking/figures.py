"""An epoch's figures, by the names that every target shows."""

import math

from tuner.trial import EpochRow


def figures(row: EpochRow) -> dict[str, float]:
    """Give an epoch's figures by the names that all targets show, without what is not finite."""
    named = {
        "accuracy/validation": row.val_accuracy,
        "loss/validation": row.val_loss,
        "loss/training": row.train_loss,
        "learning_rate": row.lr,
        "seconds": row.seconds,
    }
    return {name: value for name, value in named.items() if math.isfinite(value)}
