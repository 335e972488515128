"""Finds the draws from a space that produce a given configuration."""

from collections.abc import Sequence
from typing import Any

from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
)

from tuner.config import TrialConfig
from tuner.errors import UsageError
from tuner.space import SearchSpace
from tuner.space.axes import value_of


class RecordingTrial:
    """A trial that draws the values of a configuration, and records which ones were requested."""

    def __init__(self, config: TrialConfig) -> None:
        self.params: dict[str, Any] = {}
        self.distributions: dict[str, BaseDistribution] = {}
        self._plain = config.to_dict()

    def suggest_float(
        self, name: str, low: float, high: float, *, step: float | None = None, log: bool = False
    ) -> float:
        """Return the configuration's number, if it may be drawn."""
        return float(self._take(name, FloatDistribution(low, high, log, step)))

    def suggest_int(
        self, name: str, low: int, high: int, *, step: int = 1, log: bool = False
    ) -> int:
        """Return the configuration's whole number, if it may be drawn."""
        return int(self._take(name, IntDistribution(low, high, log, step)))

    def suggest_categorical(self, name: str, choices: Sequence[Any]) -> Any:
        """Return the configuration's choice, if it may be drawn."""
        return self._take(name, CategoricalDistribution(choices))

    def _take(self, name: str, distribution: BaseDistribution) -> Any:
        value = value_of(self._plain, name)
        if value is None:
            raise _OutsideError(name)
        try:
            is_inside = distribution._contains(distribution.to_internal_repr(value))
        except (ValueError, TypeError):
            is_inside = False
        if not is_inside:
            raise _OutsideError(name)
        self.params[name] = value
        self.distributions[name] = distribution
        return value


class _OutsideError(Exception):
    """A value that lies outside its axis."""


def reconstruct(
    space: SearchSpace, config: TrialConfig, baseline: int | None
) -> RecordingTrial | None:
    """Find the draws with which ``space`` produces ``config``; ``None`` if there are none.

    Args:
        space: The space to draw from.
        config: The configuration, with its seed and epochs.
        baseline: As in ``SearchSpace.sample``.
    """
    drawn = RecordingTrial(config)
    try:
        again = space.sample(drawn, epochs=config.epochs, seed=config.seed, baseline=baseline)
    except (_OutsideError, UsageError):
        return None
    return drawn if again == config else None


def params_of(space: SearchSpace, config: TrialConfig) -> RecordingTrial | None:
    """Find the draws that produce ``config`` with one of the baselines of ``space``, or without."""
    for baseline in (None, *range(len(space.baseline))):
        if (drawn := reconstruct(space, config, baseline)) is not None:
            return drawn
    return None
