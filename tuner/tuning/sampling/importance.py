"""Importance of parameters: how much each affects whether a trial is among the best."""

import math
import random
import warnings
from collections.abc import Iterator, Sequence

import optuna
from optuna.importance import PedAnovaImportanceEvaluator
from optuna.trial import FrozenTrial, create_trial

from tuner.config import TrialConfig
from tuner.run.forecast import Spread
from tuner.run.trial import TrialRecord, score_of
from tuner.space import SearchSpace
from tuner.space.searched import ALL, LEAST_WEIGHED
from tuner.tuning.sampling.reconstruct import params_of
from tuner.tuning.sampling.study import make_study

MOST_TRIALS = 1000
"""Maximum number of compared trials, evenly spaced among more: reading 10,000 takes seconds."""
MIN_RESAMPLED = 10
"""With fewer trials, nothing is returned: the best would be more than half of them."""
NUM_RESAMPLES = 40
BEST_SHARE = 0.1
"""Share of best trials whose parameters are compared with those of all trials."""
MIN_BEST = 5
"""Minimum number of best trials, as Optuna advises."""


def importances(space: SearchSpace, trials: Sequence[TrialRecord]) -> dict[str, dict[str, float]]:
    """Return each parameter's share of the importance, by PED-ANOVA (Watanabe et al. 2023).

    It compares the distribution of values in the best tenth of the trials with that in all trials
    (arXiv 2304.10255; parameters of branches as in arXiv 2601.20800). A trial counts with its best
    value, stopped or not, because a scheduler stops the worse ones. Trials that ended badly do not
    count.

    Args:
        space: The space that was searched.
        trials: Trials of the run; those outside the space are left out. If there are more than
            ``MOST_TRIALS``, evenly spaced ones are used.

    Returns:
        ``all trials``, and each family if there are several -> parameter -> share, the largest
        first, summing to 1; groups with too few trials are left out.
    """
    return importances_of(space, list(_scored(trials)))


def importances_of(
    space: SearchSpace, scored: Sequence[tuple[TrialConfig, float]]
) -> dict[str, dict[str, float]]:
    """Return importances from configurations with their scores; see ``importances``."""
    told: dict[str, list[FrozenTrial]] = {ALL: []}
    for family, frozen in _frozen(space, scored):
        for group in (ALL, family):
            told.setdefault(group, []).append(frozen)
    families = [group for group in told if group != ALL]
    if len(families) == 1:
        del told[families[0]]
    shares = {
        group: _shares(members) for group, members in told.items() if len(members) >= LEAST_WEIGHED
    }
    return {group: share for group, share in shares.items() if share}


def resampled_importances(space: SearchSpace, trials: Sequence[TrialRecord]) -> dict[str, Spread]:
    """Return each parameter's share of the importance in few trials, with its range.

    The trials are resampled with replacement ``NUM_RESAMPLES`` times (Efron 1979): a range shows
    how much the share depends on which trials happen to be there.

    Args:
        space: The space that was searched.
        trials: Trials of the run, as for ``importances``.

    Returns:
        Parameter -> median share and range, the largest median first; empty if there are fewer
        than ``MIN_RESAMPLED`` trials, or enough for ``importances``.
    """
    frozen = [trial for _, trial in _frozen(space, list(_scored(trials)))]
    if not MIN_RESAMPLED <= len(frozen) < LEAST_WEIGHED:
        return {}
    draw = random.Random(0)
    with warnings.catch_warnings():
        # Few trials have some parameters; that is why ranges are returned.
        warnings.filterwarnings("ignore", category=UserWarning, module="optuna")
        drawn = [_shares(draw.choices(frozen, k=len(frozen))) for _ in range(NUM_RESAMPLES)]
    names = dict.fromkeys(name for shares in drawn for name in shares)
    spreads = {name: Spread.of([shares.get(name, 0.0) for shares in drawn]) for name in names}
    return dict(sorted(spreads.items(), key=lambda item: -item[1].median))


def _scored(trials: Sequence[TrialRecord]) -> Iterator[tuple[TrialConfig, float]]:
    """Yield configuration and score of the trials that have one."""
    scored = [
        (trial, score)
        for trial in trials
        if trial.is_scored
        and trial.best
        and (score := score_of(trial.best, trial.metric)) is not None
    ]
    for trial, score in scored[:: math.ceil(len(scored) / MOST_TRIALS) or 1]:
        yield trial.config, score


def _frozen(
    space: SearchSpace, scored: Sequence[tuple[TrialConfig, float]]
) -> Iterator[tuple[str, FrozenTrial]]:
    """Yield family and trial of each configuration that lies in the space."""
    for config, score in scored:
        if drawn := params_of(space, config):
            params, distributions = drawn.params, drawn.distributions
            frozen = create_trial(value=score, params=params, distributions=distributions)
            yield config.model.family, frozen


def _shares(trials: list[FrozenTrial]) -> dict[str, float]:
    # Scores: higher is better, whatever the metric.
    study = make_study("accuracy")
    study.add_trials(trials)
    quantile = max(BEST_SHARE, MIN_BEST / len(trials))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        evaluator = PedAnovaImportanceEvaluator(target_quantile=quantile)
        raw = evaluator.evaluate(study)
    total = sum(raw.values())
    return {name: value / total for name, value in raw.items()} if total else {}
