"""``runs``: the runs of a storage."""

from typing import TYPE_CHECKING

import click

from tuner.cli.options import JSON, STORAGE
from tuner.cli.output import (
    print_json,
    print_table,
)
from tuner.storage.paths import AnyPath

if TYPE_CHECKING:
    pass


@click.command(epilog="Example: cifar-tune runs")
@STORAGE
@JSON
def runs(storage: AnyPath, as_json: bool) -> None:
    """List the runs."""
    from tuner.run.run import open_runs

    found = sorted(open_runs(storage), key=lambda run: run.record.started)
    rows = [
        {
            # As the commands know it: a folder may have been copied or renamed.
            "run": run.path.name,
            "status": record.status,
            "data": record.data.source,
            "trials": record.search.trials,
            "metric": record.search.metric,
            "started": record.started[:19].replace("T", " "),
        }
        for run in found
        for record in (run.record,)
    ]
    if as_json:
        print_json(rows)
    else:
        columns = {name: name for name in rows[0]} if rows else {}
        columns |= {"started": "started, UTC"} if rows else {}
        if all(row["metric"] == "accuracy" for row in rows):
            columns.pop("metric", None)
        shown = [{title: row[name] for name, title in columns.items()} for row in rows]
        print_table(shown, f"Runs in {storage}" if rows else f"No run in {storage} yet.")
