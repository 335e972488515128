"""Optuna's study and samplers: which sampler proposes, and which spaces it can search."""

import math
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from typing import Literal

import optuna
from optuna.storages import BaseStorage

from tuner.config import Metric, SearchConfig
from tuner.errors import UsageError, how_to_get
from tuner.metrics.goal import LOWER_IS_BETTER
from tuner.space import SearchSpace
from tuner.space.axes import Branch, Range, parameters


def check_study_fits(space: SearchSpace, search: SearchConfig) -> None:
    """Refuse a sampler that cannot search ``space``, rather than let it draw at random.

    Raises:
        UsageError: With the parameter that is in the way.
    """
    axes = list(parameters(space.axes))
    obstacle = ""
    match search.sampler:
        case "grid" if space.cardinality() is None:
            endless = [a.name for a in axes if isinstance(a, Range) and math.isinf(a.size())]
            obstacle = f"tries every value, but {endless[0]} is continuous; give it a step"
        case "gp" if branches := _branches(space):
            # Optuna would model only what all branches share, and draw the rest at random.
            obstacle = f"cannot search branches, and {branches[0]} has some; choose one of them"
        case "cmaes" if others := [axis.name for axis in axes if not isinstance(axis, Range)]:
            obstacle = f"searches numbers alone, and {others[0]} is a choice; fix it"
        case "cmaes" if len(axes) < 2:
            obstacle = f"needs two numbers to search, the space has {len(axes)}; add some"
    if obstacle:
        others_fit = "random" if search.sampler == "grid" else "tpe"
        raise UsageError(f"--sampler {search.sampler} {obstacle}, or take --sampler {others_fit}")
    if search.sampler == "cmaes" and find_spec("cmaes") is None:
        raise UsageError(
            f"--sampler cmaes needs a package that is not installed: {how_to_get('cmaes')}"
        )


def direction_of(metric: Metric) -> Literal["minimize", "maximize"]:
    """Return the direction of a study of ``metric``."""
    return "minimize" if metric in LOWER_IS_BETTER else "maximize"


def make_study(metric: Metric, storage: BaseStorage | None = None) -> optuna.Study:
    """Make an empty study of ``metric``, in memory unless another storage is given."""
    with quiet_optuna():
        return optuna.create_study(storage=storage, direction=direction_of(metric))


@contextmanager
def quiet_optuna() -> Iterator[None]:
    """Keep Optuna's notices off the terminal in the block, and restore its level afterwards."""
    before = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    try:
        yield
    finally:
        optuna.logging.set_verbosity(before)


def _branches(space: SearchSpace) -> list[str]:
    """Return the parameters that decide which other parameters are drawn."""
    return [
        axis.name
        for axis in parameters(space.axes)
        if isinstance(axis, Branch) and any(any(parameters(g)) for g in axis.options.values())
    ]


def make_optuna_sampler(
    space: SearchSpace, search: SearchConfig, seed: int
) -> optuna.samplers.BaseSampler:
    """Return the sampler that proposes the parameters that are not pinned."""
    with warnings.catch_warnings():
        # For the options multivariate and consider_pruned_trials.
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        match search.sampler:
            case "tpe":
                # Each parameter by itself: if most trials were stopped early, there are too few
                # good ones to learn which values go together.
                return optuna.samplers.TPESampler(seed=seed, multivariate=False)
            case "gp":
                return optuna.samplers.GPSampler(seed=seed)
            case "cmaes":
                # It only ranks, and a stopped trial ranks correctly by the value that it reached.
                return optuna.samplers.CmaEsSampler(seed=seed, consider_pruned_trials=True)
            case "random" | "grid":
                return optuna.samplers.RandomSampler(seed=seed)
