"""What a run's trials reveal about its space, for ``report`` and the end of ``search``."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

import click

from tuner.cli.output import TRAINED_ON_VALIDATION, print_sentence
from tuner.console import Console
from tuner.errors import TunerError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tuner.run.forecast import Spread
    from tuner.run.run import Run
    from tuner.run.trial import TrialRecord
    from tuner.space import SearchSpace
    from tuner.space.searched import Column


@dataclass(frozen=True, kw_only=True, slots=True)
class RunInsights:
    """What a run searched, which parameters mattered, and what to look at."""

    space: "SearchSpace"
    importance: dict[str, dict[str, float]]
    """Group of trials -> parameter -> share."""
    advice: list[str]


def insights_of(run: "Run", trials: "Sequence[TrialRecord]") -> RunInsights:
    """Derive from a run's trials what they reveal about its space."""
    from tuner.report.advice import advise
    from tuner.run.layout import SPACE
    from tuner.space import load_run_space
    from tuner.space.searched import ALL

    space = load_run_space(run.path / SPACE)
    shares = _importance(run, space, trials)
    if run.record.refit:
        advice = [TRAINED_ON_VALIDATION.replace("\n", " ")] if run.record.data.all_data else []
    else:
        advice = advise(space, run.record.search, trials, shares.get(ALL, {}))
    return RunInsights(space=space, importance=shares, advice=advice)


def _importance(
    run: "Run", space: "SearchSpace", trials: "Sequence[TrialRecord]"
) -> dict[str, dict[str, float]]:
    from tuner.space.searched import LEAST_WEIGHED

    # The trials of a refit were chosen, not drawn from the space.
    if run.record.refit or sum(trial.is_scored for trial in trials) < LEAST_WEIGHED:
        return {}
    # Importing Optuna takes half a second.
    from tuner.tuning.sampling.importance import importances

    return importances(space, trials)


def tentative_importance(
    run: "Run", known: RunInsights, trials: "Sequence[TrialRecord]"
) -> "dict[str, Spread]":
    """Return each parameter's share of the importance, with its range, if there are few trials.

    Trials outside the space, which a resumed search may have narrowed, do not count.
    """
    if run.record.refit or known.importance:
        return {}
    from tuner.tuning.sampling.importance import resampled_importances

    return resampled_importances(known.space, trials)


def searched_columns(run: "Run", trials: "Sequence[TrialRecord]") -> "list[Column]":
    """Return the searched parameters, the most important first; none if the space is damaged.

    The damage is reported, because the trials can be shown without the space.
    """
    from tuner.run.layout import SPACE
    from tuner.space import load_run_space
    from tuner.space.searched import ALL, columns

    try:
        space = load_run_space(run.path / SPACE)
    except TunerError as error:
        click.echo(f"Searched parameters are not shown: {error}", err=True)
        return []
    return columns(space, _importance(run, space, trials).get(ALL, {}))


def print_advice(advice: list[str]) -> None:
    """Print advice on stderr, if there is any."""
    console = Console(stderr=True, highlight=False)
    for line in advice:
        text = f"Worth a look: {line}"
        if console.is_terminal:
            print_sentence(console, text)
        else:
            click.echo(text, err=True)
