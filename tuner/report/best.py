"""The best configuration of a run, and why it is the best."""

from collections.abc import Sequence
from dataclasses import dataclass

from tuner.metrics.goal import name_of, spelt
from tuner.metrics.intervals import wilson
from tuner.run.run import Run, leader
from tuner.run.trial import TrialRecord
from tuner.space import SearchSpace
from tuner.space.searched import searched_yaml


@dataclass(frozen=True, kw_only=True, slots=True)
class BestTrial:
    """The leading trial of a run."""

    trial: int
    family: str
    epoch: int
    """Its best epoch, whose weights are kept."""
    epochs: int
    """Number of epochs that it was planned for."""
    accuracy: float
    """Accuracy on the validation images."""
    by: str
    """The ranking metric, with its value and a comma; empty for accuracy."""
    images: int
    """Number of validation images."""
    low: float
    high: float
    """95 % interval of the accuracy, given the chance in which images these are."""
    others_within: int
    """Number of other trials whose accuracy lies in the interval."""
    stopped_after: int | None
    """The epoch after which a scheduler stopped it; ``None`` if it was not stopped."""
    yaml: str
    """Its values of the searched parameters, as a ``baseline`` to copy."""


def best_trial(run: Run, ranked: Sequence[TrialRecord], space: SearchSpace) -> BestTrial | None:
    """Describe the best trial of a run; ``None`` if no accuracy determines it.

    Args:
        run: The run.
        ranked: Its trials, the best first.
        space: Its search space.
    """
    first = leader(ranked)
    if first is None or first.best is None or first.is_val_seen:
        return None
    best, metric = first.best, first.metric
    value = best.value(metric)
    by = ""
    if metric != "accuracy" and value is not None:
        by = f"{name_of(metric)} {spelt(value, metric)}, "
    low, high = wilson(best.val_accuracy, run.record.num_val)
    others = [trial.best.val_accuracy for trial in ranked[1:] if trial.best and trial.is_scored]
    return BestTrial(
        trial=first.number,
        family=first.config.model.family,
        epoch=best.epoch,
        epochs=first.config.epochs,
        accuracy=best.val_accuracy,
        by=by,
        images=run.record.num_val,
        low=low,
        high=high,
        others_within=sum(low <= accuracy <= high for accuracy in others),
        stopped_after=len(first.history) if first.status.state == "stopped" else None,
        yaml=searched_yaml(space, first.config.to_dict()),
    )
