"""``leaderboard``: the trials of a run, best first."""

import sys
from typing import TYPE_CHECKING

import click

from tuner.cli.options import JSON, METRIC, STORAGE, option
from tuner.cli.output import (
    leaderboard_document,
    print_json,
    print_leaderboard,
)
from tuner.storage.paths import AnyPath

if TYPE_CHECKING:
    from tuner.config import Metric


@click.command(epilog="Example: cifar-tune leaderboard --format parquet > trials.parquet")
@click.argument("run", required=False)
@STORAGE
@option("--rows", type=click.IntRange(min=1), default=20, show_default=True, help="Of the table.")
@option(
    "--format",
    "form",
    type=click.Choice(["table", "csv", "json", "parquet"]),
    default="table",
    show_default=True,
    help="What to write on stdout; all but the table have every trial and parameter.",
)
@METRIC
@JSON
def leaderboard(
    run: str | None,
    storage: AnyPath,
    rows: int,
    form: str,
    metric: "Metric | None",
    as_json: bool,
) -> None:
    """Show the trials of a run, best first; also while it is searched."""
    from tuner.run.run import find_run, write_parquet

    found = find_run(storage, run)
    if metric is not None:
        from tuner.training.remeasure import ranked_by

        found = ranked_by(found, metric)
    if as_json or form == "json":
        print_json(leaderboard_document(found))
    elif form == "csv":
        found.write_csv(sys.stdout)
    elif form == "parquet":
        if sys.stdout.isatty():
            raise click.UsageError("Parquet is no text for a terminal; write > trials.parquet.")
        write_parquet(found.ranked(), sys.stdout.buffer)
    else:
        print_leaderboard(found, rows)
