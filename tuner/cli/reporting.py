"""A run, or several, to look at: ``report`` and ``compare``."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import click

from tuner.cli.options import JSON, STORAGE, option
from tuner.cli.tables import TRAINED_ON_VALIDATION, print_comparison, print_json, short_path
from tuner.storage.paths import AnyPath

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tuner.run.run import Run
    from tuner.run.trial import TrialRecord
    from tuner.space import SearchSpace


@click.command(epilog="Example: cifar-tune report")
@click.argument("run", required=False)
@STORAGE
@JSON
def report(run: str | None, storage: AnyPath, as_json: bool) -> None:
    """Write a run as one page, report.html in its folder, that opens without a network."""
    from tuner.report import write_report
    from tuner.run.run import find_run

    found = find_run(storage, run)
    ranked = found.ranked()
    known = learnt(found, ranked)
    made = write_report(found, ranked, known.space, known.importance, known.advice)
    if as_json:
        print_json({"report": str(made.path), "verdict": made.verdict, "advice": known.advice})
        return
    click.echo(made.verdict)
    print_advice(known.advice)
    click.echo(f"Report: {short_path(made.path)}")


@click.command(epilog="Example: cifar-tune compare tpe-1 random-1 --html compare.html")
@click.argument("runs", nargs=-1, required=True, metavar="RUN RUN...")
@STORAGE
@option("--html", type=click.Path(path_type=Path, dir_okay=False), help="Write a page, too.")
@JSON
def compare(runs: tuple[str, ...], storage: AnyPath, html: Path | None, as_json: bool) -> None:
    """Set runs side by side: what they spent, and what came of it."""
    from tuner.report.comparison import compare as describe
    from tuner.report.comparison import differences, write_comparison
    from tuner.run.run import find_run

    if len(runs) < 2:
        raise click.UsageError("give two runs or more; 'cifar-tune runs' lists them.")
    described = describe([find_run(storage, name) for name in runs])
    if html:
        write_comparison(described, html)
    if as_json:
        print_json({"runs": described, "html": str(html) if html else None})
        return
    print_comparison(described)
    if warning := differences(described):
        click.echo(f"Worth a look: {warning}", err=True)
    if html:
        click.echo(f"\nPage: {short_path(html)}")


@dataclass(frozen=True, kw_only=True, slots=True)
class RunInsights:
    """What a run has searched, what mattered there, and what to look at."""

    space: "SearchSpace"
    importance: dict[str, dict[str, float]]
    """Group of trials -> parameter -> share."""
    advice: list[str]


def learnt(run: "Run", trials: "Sequence[TrialRecord]") -> RunInsights:
    """Look at what a run's trials tell about its space."""
    from tuner.report.advice import advise
    from tuner.space import load_run_space
    from tuner.tuning.sampling.importance import ALL, importances

    space = load_run_space(run.path / "space.yaml")
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
