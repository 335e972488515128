"""``runs``: list the runs of a storage."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from tuner.cli.options import JSON, STORAGE
from tuner.cli.output import WIDE, figure, make_console, print_json, print_table
from tuner.errors import TunerError
from tuner.metrics.goal import name_of
from tuner.run.resuming import short_path
from tuner.storage.paths import AnyPath

if TYPE_CHECKING:
    from tuner.report.ensembles import Scores
    from tuner.run.run import Run


@click.command(epilog="Example: cifar-tune runs")
@STORAGE
@JSON
def runs(storage: AnyPath, as_json: bool) -> None:
    """List the runs with their best figures."""
    from tuner.run.run import open_runs

    found = sorted(open_runs(storage), key=lambda run: run.record.started)
    rows = [_row(run) for run in found]
    if as_json:
        print_json(rows)
    else:
        shown = [
            {
                "run": row["run"],
                "status": row["status"],
                "data": short_path(Path(row["data"])),
                "trials": f"{row['done']}/{row['trials']}",
                "metric": name_of(row["metric"]),
                "best": figure(row["best_by_metric"]),
                "ensemble": figure(row["test_by_metric"]),
                "started, UTC": row["started"],
            }
            for row in rows
        ]
        unneeded = []
        if all(row["metric"] == "accuracy" for row in rows):
            unneeded.append("metric")
        if make_console().width < WIDE:
            unneeded.append("started, UTC")
        for line in shown:
            for heading in unneeded:
                del line[heading]
        print_table(shown, f"Runs in {storage}" if rows else f"No run in {storage} yet.")
        if rows:
            click.echo(
                "\nbest: of the trials, on validation images; ensemble: the newest, on test images"
            )


def _row(run: "Run") -> dict[str, Any]:
    from tuner.run.run import leader
    from tuner.run.trial import OPEN

    record = run.record
    try:
        ranked = run.ranked()
    except TunerError as error:
        click.echo(f"{run.path.name}: no figures: {error}", err=True)
        ranked = []
    first = leader(ranked)
    best = first.best if first and not first.is_val_seen else None
    test = _test_scores(run)
    return {
        # The name that commands accept: a folder may have been copied or renamed.
        "run": run.path.name,
        "status": record.status,
        "data": record.data.source,
        "trials": record.search.trials,
        "done": sum(trial.status.state not in OPEN for trial in ranked),
        "metric": run.metric,
        "best": best and best.val_accuracy,
        "test": test and test.accuracy,
        "best_by_metric": best and best.value(run.metric),
        "test_by_metric": test and test.value(run.metric),
        "started": record.started[:19].replace("T", " "),
    }


def _test_scores(run: "Run") -> "Scores | None":
    """Return the test scores of a run's newest ensemble, if it has one that was tested."""
    from tuner.report.ensembles import read_figures
    from tuner.run.ensembles import ensemble_folders

    try:
        folders = ensemble_folders(run.path)
        result = read_figures(folders[0]) if folders else None
    except TunerError as error:
        click.echo(f"{run.path.name}: no figures of its ensemble: {error}", err=True)
        return None
    return result.ensemble.test if result and result.has_test else None
