"""What a plan foresees of a search, and how it compares with what came."""

import statistics
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Self

import numpy as np

from tuner.config import Count, NonNegative
from tuner.run.layout import PLAN
from tuner.run.run import Run
from tuner.run.trial import Amount, TrialRecord
from tuner.schema import Bounds
from tuner.storage.paths import AnyPath
from tuner.storage.records import read_record, write_record


@dataclass(frozen=True, kw_only=True, slots=True)
class Spread:
    """A figure with the range in which four of five lie."""

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
    """What the measured configurations of one family cost; ranges are over configurations."""

    family: str
    configs: Count
    """How many were measured."""
    cpus: NonNegative
    gpus: NonNegative
    epoch_seconds: Spread
    """Seconds of an epoch of all training images, with its validation."""
    parameters: Spread
    memory: Spread | None
    """Bytes at the most: of the GPU, or of the process where there is none; ``None`` where the
    system does not tell."""


@dataclass(frozen=True, kw_only=True, slots=True)
class RungForecast:
    """How many trials are trained for so many epochs; the last one is that of whole trials."""

    epoch: Count
    trials: Spread


@dataclass(frozen=True, kw_only=True, slots=True)
class Infeasible:
    """A configuration that the search would draw, and that could not be trained."""

    family: str
    parameters: Amount
    reason: str
    config: Mapping[str, Any]


@dataclass(frozen=True, kw_only=True, slots=True)
class Forecast:
    """What a search will come to, each figure with its range over simulated searches."""

    space: str
    trials: Amount
    epochs: Count
    slots: Mapping[str, Amount | NonNegative]
    """As in the run's record."""
    refused: Annotated[float, Bounds(ge=0, le=1)]
    """Share of the drawn configurations that exceeded the space's limits."""
    measured_seconds: NonNegative
    """What the measuring took."""
    simulations: Amount
    seconds: Spread
    """Seconds of the whole search, as ``active_seconds`` of a run."""
    training_seconds: Spread
    """Sum of the epochs of all trials."""
    gpu_hours: Spread
    started: Spread
    """Trials that were begun; fewer than asked for only where a budget ends the search."""
    done: Spread | None = None
    """Trials that end by themselves, not for want of budget."""
    seconds_of_all: Spread | None = None
    """Seconds that all trials would take; ``None`` where the budget suffices."""
    fitting_epochs: Count | None = None
    """Most epochs with which all trials would fit into the budget; ``None`` where none would, or
    those that were asked for do."""
    rungs: tuple[RungForecast, ...]
    families: tuple[FamilyForecast, ...]
    disk_most: Spread
    """Bytes at the end of the search, before the checkpoints that are not kept are removed."""
    disk_kept: Spread
    """Bytes that stay."""
    misfits: tuple[Infeasible, ...]

    def write(self, path: AnyPath) -> None:
        """Write the forecast as JSON."""
        write_record(path, self)

    @classmethod
    def read(cls, path: AnyPath) -> Self:
        """Read what ``write`` wrote.

        Raises:
            TunerError: If the file is missing or damaged.
        """
        return read_record(path, cls)


@dataclass(frozen=True, kw_only=True, slots=True)
class Outcome:
    """One figure that was foreseen, beside what came."""

    name: str
    predicted: Spread
    measured: float

    @property
    def error(self) -> float | None:
        """How far the prediction was above what came, as a share of it; ``None`` for nothing."""
        return self.predicted.median / self.measured - 1 if self.measured else None

    @property
    def is_within(self) -> bool:
        """Whether what came lies in the range."""
        return self.predicted.low <= self.measured <= self.predicted.high


def outcomes(run: Run, trials: Sequence[TrialRecord]) -> list[Outcome]:
    """Compare a run with its plan; nothing for one that had none, or has not run to its end.

    Args:
        run: Which.
        trials: Its trials.

    Raises:
        TunerError: If the plan is damaged.
    """
    path = run.path / PLAN
    # One that ended by its patience is finished, too.
    if run.record.status != "finished" or run.record.reason or not path.exists():
        return []
    return list(_outcomes(Forecast.read(path), run, trials))


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
        name = f"trials of {rung.epoch} epoch{'s' if rung.epoch > 1 else ''}"
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
