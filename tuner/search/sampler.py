"""Optuna, told the truth: what ran its course, what was stopped, what failed."""

import json
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import optuna
from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
)
from optuna.trial import TrialState as OptunaState
from optuna.trial import create_trial

from tuner.config import SearchConfig, TrialConfig
from tuner.errors import UsageError
from tuner.run import EpochRow, TrialState, best_row
from tuner.space import SearchSpace

MAX_DRAWS = 50
"""Draws before a configuration that has been proposed already is accepted again."""


class Sampler:
    """Proposes configurations from a space and learns from how their trials ended.

    The baselines of the space come first. A configuration that was proposed before is drawn again,
    unless the space seems to hold no other.
    """

    def __init__(self, space: SearchSpace, search: SearchConfig) -> None:
        self.space = space
        self.search = search
        optuna.logging.set_verbosity(optuna.logging.ERROR)
        self.study = optuna.create_study(direction="maximize", sampler=_make_sampler(search))
        self._baselines = list(range(len(space.baseline)))
        self._asked: dict[int, optuna.Trial] = {}
        self._proposed: set[str] = set()

    def ask(self, number: int) -> TrialConfig:
        """Propose the configuration of trial ``number``.

        Raises:
            UsageError: If the space hardly holds values that go together.
        """
        config = None
        for _ in range(MAX_DRAWS):
            baseline = self._baselines.pop(0) if self._baselines else None
            if baseline is not None:
                self.study.enqueue_trial(self.space.baseline_params(baseline))
            trial = self.study.ask()
            try:
                config = self._sample(trial, number, baseline)
            except UsageError as error:
                refusal = error
            else:
                if _key(config) not in self._proposed:
                    break
            self.study.tell(trial, state=OptunaState.FAIL)
        else:
            if config is None:
                raise refusal
            # The space seems to hold nothing else: the same configuration with another seed.
            trial = self.study.ask()
            config = self._sample(trial, number, None)
        self._asked[number] = trial
        self._proposed.add(_key(config))
        return config

    def _sample(self, trial: optuna.Trial, number: int, baseline: int | None) -> TrialConfig:
        seed = trial_seed(self.search.seed, number)
        epochs = self.search.epochs
        return self.space.sample(trial, epochs=epochs, seed=seed, baseline=baseline)

    def tell(self, number: int, state: TrialState, history: Sequence[EpochRow]) -> None:
        """Tell Optuna how trial ``number`` ended; see ``_verdict``."""
        trial = self._asked.pop(number, None)
        if trial is None:
            return
        optuna_state, value, curve = _verdict(state, history)
        for step, accuracy in curve.items():
            trial.report(accuracy, step)
        self.study.tell(trial, value, optuna_state)

    def add(self, config: TrialConfig, state: TrialState, history: Sequence[EpochRow]) -> bool:
        """Tell Optuna of a trial that ended earlier, in this run or another.

        Returns:
            Whether its configuration lies in the space; one that does not is left out.
        """
        drawn = self._retrace(config)
        if drawn is None:
            return False
        optuna_state, value, curve = _verdict(state, history)
        self.study.add_trial(
            create_trial(
                state=optuna_state,
                value=value,
                params=drawn.params,
                distributions=drawn.distributions,
                intermediate_values=curve,
            )
        )
        self._proposed.add(_key(config))
        return True

    def readd(self, number: int, config: TrialConfig) -> bool:
        """Take a trial up again that had been proposed, and has not ended.

        Returns:
            As ``add``.
        """
        self._proposed.add(_key(config))
        drawn = self._retrace(config)
        if drawn is None:
            return False
        self.study.enqueue_trial(drawn.params)
        self._asked[number] = self.study.ask(drawn.distributions)
        return True

    def _retrace(self, config: TrialConfig) -> "_Retraced | None":
        """Find the draws that give ``config``, or ``None`` if the space does not hold it."""
        for baseline in (None, *range(len(self.space.baseline))):
            drawn = _Retraced(config.to_dict())
            try:
                again = self.space.sample(
                    drawn, epochs=config.epochs, seed=config.seed, baseline=baseline
                )
            except _OutsideError:
                continue
            if again == config:
                return drawn
        return None


class _OutsideError(Exception):
    """A value that lies outside its axis."""


class _Retraced:
    """A trial that draws what a configuration holds."""

    def __init__(self, plain: Mapping[str, Any]) -> None:
        self.params: dict[str, Any] = {}
        self.distributions: dict[str, BaseDistribution] = {}
        self._plain = plain

    def suggest_float(
        self, name: str, low: float, high: float, *, step: float | None = None, log: bool = False
    ) -> float:
        return float(self._take(name, FloatDistribution(low, high, log, step)))

    def suggest_int(
        self, name: str, low: int, high: int, *, step: int = 1, log: bool = False
    ) -> int:
        return int(self._take(name, IntDistribution(low, high, log, step)))

    def suggest_categorical(self, name: str, choices: Sequence[Any]) -> Any:
        return self._take(name, CategoricalDistribution(choices))

    def _take(self, name: str, distribution: BaseDistribution) -> Any:
        value: Any = self._plain
        for key in name.split("."):
            if not isinstance(value, Mapping) or key not in value:
                raise _OutsideError(name)
            value = value[key]
        if isinstance(value, Mapping):
            # The name of a branch stands for which one was taken.
            value = next(iter(value))
        try:
            is_inside = distribution._contains(distribution.to_internal_repr(value))
        except (ValueError, TypeError):
            is_inside = False
        if not is_inside:
            raise _OutsideError(name)
        self.params[name] = value
        self.distributions[name] = distribution
        return value


def _verdict(
    state: TrialState, history: Sequence[EpochRow]
) -> tuple[OptunaState, float | None, dict[int, float]]:
    """Say what Optuna is told of a trial: its state, its value, its intermediate values.

    A trial that ran its course is COMPLETE with its best accuracy. A stopped one is PRUNED with its
    curve, which TPE ranks below the complete ones, by how far it came and how good it was there.
    A diverged one, or one out of memory, is PRUNED without a value, the worst there is, so that its
    region is avoided. One that failed for another reason says nothing of its configuration: FAIL.
    """
    best = best_row(history)
    if state == "completed" and best is not None:
        return OptunaState.COMPLETE, best.val_accuracy, {}
    if state == "stopped":
        return OptunaState.PRUNED, None, {row.epoch: row.val_accuracy for row in history}
    if state in ("diverged", "out_of_memory"):
        return OptunaState.PRUNED, None, {}
    return OptunaState.FAIL, None, {}


def _key(config: TrialConfig) -> str:
    """Give a configuration's text, the same for any seed."""
    return json.dumps(config.to_dict() | {"seed": None}, sort_keys=True)


def _make_sampler(search: SearchConfig) -> optuna.samplers.BaseSampler:
    if search.sampler == "random":
        return optuna.samplers.RandomSampler(seed=search.seed)
    with warnings.catch_warnings():
        # group: parameters under one choice are modelled together, not each alone.
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        return optuna.samplers.TPESampler(seed=search.seed, multivariate=True, group=True)


def trial_seed(run_seed: int, number: int) -> int:
    """Derive the seed of a trial from the run's, so that one trial can be run again alone."""
    return int(np.random.SeedSequence((run_seed, number)).generate_state(1)[0])
