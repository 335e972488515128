"""A run, or several, to look at: ``report`` and ``compare``."""

from pathlib import Path
from typing import TYPE_CHECKING

import click

from tuner.cli.options import JSON, STORAGE
from tuner.cli.tables import print_json, short_path

if TYPE_CHECKING:
    from tuner.run import Run
    from tuner.space import SearchSpace


@click.command(epilog="Example: cifar-tune report")
@click.argument("run", required=False)
@STORAGE
@JSON
def report(run: str | None, storage: Path, as_json: bool) -> None:
    """Write a run as one page, report.html in its folder, that opens without a network."""
    from tuner.report import write_report
    from tuner.run import find_run

    found = find_run(storage, run)
    space, importance, advice = _learnt(found)
    made = write_report(found, space, importance, advice)
    if as_json:
        print_json({"report": str(made.path), "verdict": made.verdict, "advice": advice})
        return
    click.echo(made.verdict)
    print_advice(advice)
    click.echo(f"Report: {short_path(made.path)}")


def _learnt(run: "Run") -> tuple["SearchSpace", dict[str, dict[str, float]], list[str]]:
    """Give what a run has searched, what mattered there, and what to look at."""
    from tuner.advice import advise
    from tuner.search.importance import ALL, importances
    from tuner.space import load_space

    space = load_space(run.path / "space.yaml")
    trials = run.trials()
    shares = importances(space, trials)
    return space, shares, advise(space, run.record.search, trials, shares.get(ALL, {}))


def print_advice(advice: list[str]) -> None:
    """Print what to look at, on stderr, where there is something."""
    for line in advice:
        click.echo(f"Worth a look: {line}", err=True)
