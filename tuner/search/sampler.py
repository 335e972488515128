"""Optuna, told the truth: what ran its course, what was stopped, what failed."""

import json
import warnings
from collections.abc import Sequence

import numpy as np
import optuna
from optuna.trial import TrialState

from tuner.config import SearchConfig, TrialConfig
from tuner.run import EpochRow, best_row
from tuner.run import TrialState as State
from tuner.space import SearchSpace

MAX_DUPLICATES = 50
"""Draws of a configuration that has been tried before one is accepted again."""


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
        """Propose the configuration of trial ``number``."""
        seed = trial_seed(self.search.seed, number)
        baseline = self._baselines.pop(0) if self._baselines else None
        if baseline is not None:
            self.study.enqueue_trial(self.space.baseline_params(baseline))
        for _ in range(MAX_DUPLICATES):
            trial = self.study.ask()
            config = self.space.sample(
                trial, epochs=self.search.epochs, seed=seed, baseline=baseline
            )
            key = json.dumps(config.to_dict() | {"seed": None}, sort_keys=True)
            if key not in self._proposed:
                break
            self.study.tell(trial, state=TrialState.FAIL)
        else:
            trial = self.study.ask()
            config = self.space.sample(trial, epochs=self.search.epochs, seed=seed)
        self._proposed.add(key)
        self._asked[number] = trial
        return config

    def tell(self, number: int, state: State, history: Sequence[EpochRow]) -> None:
        """Tell Optuna how trial ``number`` ended.

        A trial that ran its course is COMPLETE with its best accuracy. A stopped one is PRUNED with
        its curve, which TPE ranks below the complete ones by how far it came and how good it was
        there. A diverged one, or one out of memory, is PRUNED without a value, the worst there is,
        so that its region is avoided. One that failed for another reason says nothing about its
        configuration: FAIL.
        """
        trial = self._asked.pop(number)
        best = best_row(history)
        match state:
            case "completed" if best is not None:
                self.study.tell(trial, best.val_accuracy)
            case "stopped":
                for row in history:
                    trial.report(row.val_accuracy, step=row.epoch)
                self.study.tell(trial, state=TrialState.PRUNED)
            case "diverged" | "out_of_memory":
                self.study.tell(trial, state=TrialState.PRUNED)
            case _:
                self.study.tell(trial, state=TrialState.FAIL)


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
