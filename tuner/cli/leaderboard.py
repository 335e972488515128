"""``leaderboard``: the trials of a run, best first."""

import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click

from tuner.cli import completion
from tuner.cli.options import DATA, JSON, METRIC, MOVED_DATA_DIR, STORAGE, option
from tuner.cli.output import data_output, leaderboard_document, print_json
from tuner.cli.trials_table import print_leaderboard
from tuner.storage.paths import AnyPath

if TYPE_CHECKING:
    from tuner.config import Metric


@click.command(epilog="Example: cifar-tune leaderboard --format parquet > trials.parquet")
@click.argument("run", required=False, shell_complete=completion.runs)
@STORAGE
@option(
    "--rows",
    type=click.IntRange(min=1),
    default=20,
    show_default=True,
    help="Maximum number of rows in the table.",
)
@option("--all", "is_whole", is_flag=True, help="Show all trials, with every searched parameter.")
@option(
    "--columns",
    metavar="NAME,...",
    help="Columns of the table, such as trial,accuracy,lr; named as in the table or in the CSV.",
)
@option("--sort", metavar="NAME", help="Column to sort by. [default: the rank]")
@option(
    "--format",
    "form",
    type=click.Choice(["table", "csv", "json", "parquet"]),
    default="table",
    show_default=True,
    help="Output format; all except table include every trial and parameter.",
)
@METRIC
@DATA
@MOVED_DATA_DIR
@JSON
def leaderboard(
    run: str | None,
    storage: AnyPath,
    rows: int,
    is_whole: bool,
    columns: str | None,
    sort: str | None,
    form: str,
    metric: "Metric | None",
    data: str | None,
    data_dir: Path | None,
    as_json: bool,
) -> None:
    """Show the trials of a run, best first.

    Works while the run is being searched, too. The table has the most important searched
    parameters, as many as fit. Images are read only for --metric, and only for a run of an earlier
    version.
    """
    from tuner.run.run import find_run, write_parquet

    found = find_run(storage, run)
    if metric is not None:
        from tuner.training.run_images import ranked_by

        found = ranked_by(found, metric, data=data, data_dir=data_dir)
    if as_json or form == "json":
        print_json(leaderboard_document(found, found.ranked()))
    elif form == "csv":
        data_output().write(found.leaderboard_csv())
    elif form == "parquet":
        if sys.stdout.isatty():
            raise click.UsageError("Parquet cannot be shown on a terminal; write > trials.parquet.")
        write_parquet(found.ranked(), sys.stdout.buffer)
    else:
        wanted = [name.strip() for name in columns.split(",")] if columns else []
        most = None if is_whole else rows
        print_leaderboard(found, found.ranked(), most, wanted=wanted, sort=sort)
