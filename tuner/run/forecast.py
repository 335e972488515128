"""The forecast of a planned search, and how it compares with the result."""

import statistics
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self

import numpy as np

from tuner.config import Amount, Count, NonNegative, Share
from tuner.run.layout import PLAN
from tuner.run.run import Run
from tuner.run.trial import TrialRecord
from tuner.schema import plural
from tuner.storage.records import read_record


@dataclass(frozen=True, kw_only=True, slots=True)
class Spread:
    """A figure with the range that contains four of five values."""

    low: NonNegative
    """Tenth percentile."""
    median: NonNegative
    high: NonNegative
    """Ninetieth percentile."""

    @classmethod
    def of(cls, values: Sequence[float]) -> Self:
        """Summarize values, one or more."""
        low, median, high = map(float, np.quantile(values, [0.1, 0.5, 0.9]))
        return cls(low=low, median=median, high=high)


@dataclass(frozen=True, kw_only=True, slots=True)
class FamilyForecast:
    """The measured costs of one family's configurations; ranges are over configurations."""

    family: str
    configs: Count
    """Number of configurations that were measured."""
    cpus: NonNegative
    gpus: NonNegative
    epoch_seconds: Spread
    """Seconds per epoch of all training images, including validation."""
    parameters: Spread
    memory: Spread | None
    """Peak memory in bytes: of the GPU, or of the process if there is none; ``None`` if the system
    does not report it."""


@dataclass(frozen=True, kw_only=True, slots=True)
class RungForecast:
    """The number of trials that reach an epoch; the last forecast is for whole trainings."""

    epoch: Count
    trials: Spread


@dataclass(frozen=True, kw_only=True, slots=True)
class Infeasible:
    """A configuration that the search would draw but that could not be trained."""

    family: str
    parameters: Amount
    reason: str
    config: Mapping[str, Any]


@dataclass(frozen=True, kw_only=True, slots=True)
class Forecast:
    """The forecast of a search; each figure has a range over simulated searches."""

    space: str
    trials: Amount
    epochs: Count
    slots: Mapping[str, Amount | NonNegative]
    """As in the run's record."""
    refused: Share
    """Share of the drawn configurations that exceeded the space's limits."""
    measured_seconds: NonNegative
    """Seconds that the measuring took."""
    simulations: Amount
    seconds: Spread
    """Seconds of the whole search, like ``active_seconds`` of a run."""
    training_seconds: Spread
    """Seconds of all epochs of all trials."""
    gpu_hours: Spread
    started: Spread
    """Trials that are started; fewer than requested only if a budget ends the search."""
    done: Spread | None = None
    """Trials that end by themselves, not because the budget is spent."""
    seconds_of_all: Spread | None = None
    """Seconds that all trials would take; ``None`` if the budget is sufficient."""
    fitting_epochs: Count | None = None
    """Maximum epochs with which all trials would fit into the budget; ``None`` if no number would,
    or the requested one does."""
    rungs: tuple[RungForecast, ...]
    families: tuple[FamilyForecast, ...]
    disk_most: Spread
    """Bytes at the end of the search, before checkpoints that are not kept are removed."""
    disk_kept: Spread
    """Bytes that remain after that."""
    misfits: tuple[Infeasible, ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class Outcome:
    """One figure of a forecast, with the measured value."""

    name: str
    predicted: Spread
    measured: float

    @property
    def error(self) -> float | None:
        """Relative error of the prediction, positive if it was too high; ``None`` for a 0."""
        return self.predicted.median / self.measured - 1 if self.measured else None

    @property
    def is_within(self) -> bool:
        """Whether the measured value lies in the predicted range."""
        return self.predicted.low <= self.measured <= self.predicted.high


def outcomes(run: Run, trials: Sequence[TrialRecord]) -> list[Outcome]:
    """Compare a run with its plan; empty if it had none, or has not run to its end.

    Args:
        run: The run.
        trials: Its trials.

    Raises:
        TunerError: If the plan is damaged.
    """
    path = run.path / PLAN
    # A run that was ended by its patience is finished, too.
    if run.record.status != "finished" or run.record.reason or not path.exists():
        return []
    return list(_outcomes(read_record(path, Forecast), run, trials))


def _outcomes(forecast: Forecast, run: Run, trials: Sequence[TrialRecord]) -> Iterator[Outcome]:
    seconds = sum(trial.seconds for trial in trials)
    yield Outcome(
        name="time of the search, s", predicted=forecast.seconds, measured=run.record.active_seconds
    )
    yield Outcome(name="training time, s", predicted=forecast.training_seconds, measured=seconds)
    if any(trial.gpus for trial in trials):
        hours = sum(trial.gpu_hours for trial in trials)
        yield Outcome(name="GPU-hours", predicted=forecast.gpu_hours, measured=hours)
    for rung in forecast.rungs:
        came = sum(len(trial.history) >= rung.epoch for trial in trials)
        name = f"trials of {plural(rung.epoch, 'epoch')}"
        yield Outcome(name=name, predicted=rung.trials, measured=came)
    for family in forecast.families:
        means = [
            statistics.fmean(row.seconds for row in trial.history)
            for trial in trials
            if trial.history and trial.config.model.family == family.family
        ]
        if means:
            yield Outcome(
                name=f"an epoch of {family.family}, s",
                predicted=family.epoch_seconds,
                measured=statistics.median(means),
            )
