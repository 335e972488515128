"""How much each parameter had to do with a trial being among the best."""

import warnings
from collections.abc import Sequence

import optuna
from optuna.importance import PedAnovaImportanceEvaluator
from optuna.trial import FrozenTrial, create_trial

from tuner.config import TrialConfig
from tuner.run.trial import TrialRecord, score_of
from tuner.space import SearchSpace
from tuner.space.searched import ALL
from tuner.tuning.sampling.reconstruct import params_of
from tuner.tuning.sampling.study import make_study

MIN_TRIALS = 20
"""Below, a few lucky trials would decide."""
BEST_SHARE = 0.1
"""The best trials whose parameters are compared with all."""
MIN_BEST = 5
"""Least number of them, as Optuna advises."""


def importances(space: SearchSpace, trials: Sequence[TrialRecord]) -> dict[str, dict[str, float]]:
    """Return each parameter's share of the importance, by PED-ANOVA (Watanabe et al. 2023).

    It compares how the values of the best tenth of the trials are distributed with how all are
    (arXiv 2304.10255; parameters of branches as in arXiv 2601.20800). A trial counts with its best
    value, stopped or not: a scheduler stops those that are worse. One that ended badly does not
    count.

    Args:
        space: What was searched.
        trials: Of the run; those that lie outside of the space are left out.

    Returns:
        ``all trials``, and each family if there are several -> parameter -> share, the largest
        first, summing to 1; without the groups that have too few trials to say anything.
    """
    scored = (
        (trial.config, score_of(trial.best, trial.metric))
        for trial in trials
        if trial.is_scored and trial.best
    )
    return importances_of(space, [(config, score) for config, score in scored if score is not None])


def importances_of(
    space: SearchSpace, scored: Sequence[tuple[TrialConfig, float]]
) -> dict[str, dict[str, float]]:
    """Return the same from configurations with their scores; see ``importances``."""
    told: dict[str, list[FrozenTrial]] = {ALL: []}
    for config, score in scored:
        if drawn := params_of(space, config):
            frozen = create_trial(
                value=score, params=drawn.params, distributions=drawn.distributions
            )
            for group in (ALL, config.model.family):
                told.setdefault(group, []).append(frozen)
    families = [group for group in told if group != ALL]
    if len(families) == 1:
        del told[families[0]]
    shares = {
        group: _shares(members) for group, members in told.items() if len(members) >= MIN_TRIALS
    }
    return {group: share for group, share in shares.items() if share}


def _shares(trials: list[FrozenTrial]) -> dict[str, float]:
    # Scores, of which more is better whatever the metric.
    study = make_study("accuracy")
    study.add_trials(trials)
    quantile = max(BEST_SHARE, MIN_BEST / len(trials))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        evaluator = PedAnovaImportanceEvaluator(target_quantile=quantile)
        raw = evaluator.evaluate(study)
    total = sum(raw.values())
    return {name: value / total for name, value in raw.items()} if total else {}
