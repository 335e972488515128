"""What a run's trials tell about its space, for ``report`` and the end of ``search``."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

import click

from tuner.cli.output import TRAINED_ON_VALIDATION

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tuner.run.run import Run
    from tuner.run.trial import TrialRecord
    from tuner.space import SearchSpace


@dataclass(frozen=True, kw_only=True, slots=True)
class RunInsights:
    """What a run has searched, what mattered there, and what to look at."""

    space: "SearchSpace"
    importance: dict[str, dict[str, float]]
    """Group of trials -> parameter -> share."""
    advice: list[str]


def insights_of(run: "Run", trials: "Sequence[TrialRecord]") -> RunInsights:
    """Look at what a run's trials tell about its space."""
    from tuner.report.advice import advise
    from tuner.run.layout import SPACE
    from tuner.space import load_run_space
    from tuner.tuning.sampling.importance import ALL, importances

    space = load_run_space(run.path / SPACE)
    if run.record.refit:
        # Its trials were not drawn from the space, but chosen.
        advice = [TRAINED_ON_VALIDATION.replace("\n", " ")] if run.record.data.all_data else []
        return RunInsights(space=space, importance={}, advice=advice)
    shares = importances(space, trials)
    advice = advise(space, run.record.search, trials, shares.get(ALL, {}))
    return RunInsights(space=space, importance=shares, advice=advice)


def print_advice(advice: list[str]) -> None:
    """Print what to look at, on stderr, where there is something."""
    for line in advice:
        click.echo(f"Worth a look: {line}", err=True)
