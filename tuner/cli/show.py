"""``show``: a run or a trial in full."""

from collections import Counter
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import click

from tuner.cli.options import JSON, STORAGE
from tuner.cli.output import (
    figure,
    print_json,
    print_table,
)
from tuner.storage.paths import AnyPath

if TYPE_CHECKING:
    from tuner.run.run import Run


@click.command(epilog="Example: cifar-tune show quick-20260101-120000 7")
@click.argument("run")
@click.argument("trial", type=click.IntRange(min=0), required=False)
@STORAGE
@click.option("--follow", is_flag=True, help="Watch the search until it ends; Ctrl-C leaves it.")
@JSON
def show(run: str, trial: int | None, storage: AnyPath, follow: bool, as_json: bool) -> None:
    """Show a run, or one of its trials, in full; or watch a search that is running elsewhere."""
    from tuner.run.run import find_run
    from tuner.run.trial import METRIC_COLUMNS
    from tuner.schema import to_plain

    found = find_run(storage, run)
    if follow:
        if trial is not None or as_json:
            raise click.UsageError("--follow shows a whole run as a table; leave out the rest.")
        _follow(found.path)
        return
    if trial is None:
        plain = {"path": str(found.path), **_standing(found), **to_plain(found.record)}
        if found.record.teacher is not None:
            from tuner.ensemble.students import find_student

            plain["student"] = to_plain(find_student(found))
        history = []
    else:
        record = found.trial(trial)
        history = [asdict(row) for row in record.history]
        status = {key: value for key, value in to_plain(record.status).items() if value}
        plain = {"path": str(record.path), **status, "config": record.config.to_dict()}
    if as_json:
        print_json(plain | ({"history": history} if trial is not None else {}))
        return
    import yaml

    click.echo(yaml.safe_dump(plain, sort_keys=False, allow_unicode=True).rstrip())
    if history:
        columns = ["epoch", "train_loss", "val_loss", "val_accuracy", "lr", "seconds"]
        if (column := METRIC_COLUMNS[found.metric]) not in columns:
            columns.insert(4, column)
        rows = [{key: figure(row[key]) for key in columns} for row in history]
        # A rate may be small throughout.
        rows = [
            row | {"lr": f"{epoch['lr']:.3g}"} for row, epoch in zip(rows, history, strict=True)
        ]
        print_table(rows, "")


def _standing(run: "Run") -> dict[str, Any]:
    """Say how many trials came to which state, and which is the best."""
    from tuner.run.run import leader
    from tuner.run.trial import METRIC_COLUMNS

    ranked = run.ranked()
    states = Counter(trial.status.state for trial in ranked)
    first = leader(ranked)
    found = None
    if first and (best := first.best):
        column = METRIC_COLUMNS[run.metric]
        found = {
            "trial": first.number,
            "val_accuracy": best.val_accuracy,
            column: best.value(run.metric),
        }
    return {"states": dict(states.most_common()), "best": found}


def _follow(path: AnyPath) -> None:
    from contextlib import suppress

    from tuner.console import Console
    from tuner.monitor.follow import follow

    # To leave is not to interrupt: the search goes on.
    with suppress(KeyboardInterrupt):
        follow(path, Console(highlight=False))
