"""The searched parameters for people: columns of a table, and a configuration to copy."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import yaml

from tuner.errors import UsageError
from tuner.run.trial import OWN_COLUMNS
from tuner.space import TRIAL, RandomTrial, SearchSpace
from tuner.space.axes import Branch, parameters, placed, to_yaml, value_of
from tuner.space.baseline import Baseline

ALL = "all trials"
"""The group that holds all trials; importances are reported by group."""
LEAST_WEIGHED = 20
"""Least number of trials for importances: of fewer, a few lucky ones would decide."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Column:
    """One searched parameter in a table, or several of which a trial has only one.

    ``optimizer.sgd.lr`` and ``optimizer.adamw.lr`` share a column.
    """

    heading: str
    """The shortest ending of the name that no other column of the leaderboard has."""
    names: tuple[str, ...]
    """Dotted names of the parameters."""

    def text(self, config: Mapping[str, Any]) -> str:
        """Return a trial's value, floats with three digits; ``-`` if it has none.

        Args:
            config: As ``TrialConfig.to_dict`` returns it.
        """
        value = self.value(config)
        if value is None:
            return "-"
        return f"{value:.3g}" if isinstance(value, float) else to_yaml(value)

    def value(self, config: Mapping[str, Any]) -> Any:
        """Return a trial's value; ``None`` if it has none."""
        values = (value_of(config, name) for name in self.names)
        return next((value for value in values if value is not None), None)


def columns(space: SearchSpace, importance: Mapping[str, float]) -> list[Column]:
    """Return the searched parameters, the most important first, then in the order of the file.

    Args:
        space: The space.
        importance: Share of each parameter; may be empty.
    """
    merged: dict[str, list[str]] = {}
    for place, axis in placed(space.axes):
        # Every table names the family already.
        if axis.name != "model":
            merged.setdefault(".".join(place), []).append(axis.name)
    short = short_names(list(merged))
    found = [
        Column(heading=_heading(place, short[place]), names=tuple(names))
        for place, names in merged.items()
    ]
    return sorted(found, key=lambda column: -sum(importance.get(n, 0.0) for n in column.names))


def _heading(place: str, short: str) -> str:
    """Return the heading of a parameter: not that of another column of the leaderboard."""
    # ``epochs`` are those trained.
    if place == "epochs":
        return "max_epochs"
    return place if short in OWN_COLUMNS or short in TRIAL.fields else short


def short_names(names: Sequence[str]) -> dict[str, str]:
    """Return, for each dotted name, its shortest ending that no other one has."""
    short = {}
    for name in names:
        words = name.split(".")
        for length in range(1, len(words) + 1):
            ending = ".".join(words[-length:])
            if sum(f".{other}".endswith(f".{ending}") for other in names) == 1:
                break
        short[name] = ending
    return short


def searched_yaml(space: SearchSpace, config: Mapping[str, Any]) -> str:
    """Return a trial's values of the searched parameters, as a ``baseline`` to copy.

    If the trial came from a baseline, it also has what that sets beyond the space.

    Args:
        space: The searched space.
        config: The trial's configuration, as ``TrialConfig.to_dict`` returns it.
    """
    baseline: dict[str, Any] = {}
    for axis in parameters(space.axes):
        value = value_of(config, axis.name)
        if value is None:
            continue
        *path, last = axis.name.split(".")
        inner = baseline
        for key in path:
            inner = inner.setdefault(key, {})
        if isinstance(axis, Branch):
            inner.setdefault(last, {}).setdefault(str(value), {})
        else:
            inner[last] = value
    if (origin := _origin(space, config)) is not None:
        baseline = origin.complete(baseline)
    text = yaml.safe_dump([baseline], sort_keys=False, default_flow_style=None, width=72)
    return f"baseline:\n{text}"


def _origin(space: SearchSpace, config: Mapping[str, Any]) -> Baseline | None:
    """Return the baseline that a configuration came from; ``None`` if the space alone holds it."""
    params: dict[str, Any] = {}
    for axis in parameters(space.axes):
        value = value_of(config, axis.name)
        if value in axis.options if isinstance(axis, Branch) else axis.admits(value):
            params[axis.name] = value
    for index in (None, *range(len(space.baseline))):
        trial = RandomTrial(params=params)
        try:
            again = space.sample(
                trial, epochs=config["epochs"], seed=config["seed"], baseline=index
            )
        except UsageError:
            continue
        if again.to_dict() == config:
            return None if index is None else space.baseline[index]
    return None
