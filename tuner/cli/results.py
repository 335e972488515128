"""What a run has led to: ``leaderboard``, ``runs``, ``show``, ``rerun``."""

import sys
from collections import Counter
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import click

from tuner.cli.options import DEVICE, JSON, STORAGE, TRUST_CODE, option
from tuner.cli.tables import (
    figure,
    leaderboard_document,
    print_json,
    print_leaderboard,
    print_table,
)
from tuner.storage.paths import AnyPath

if TYPE_CHECKING:
    from tuner.run.run import Run


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
@JSON
def leaderboard(run: str | None, storage: AnyPath, rows: int, form: str, as_json: bool) -> None:
    """Show the trials of a run, best first; also while it is searched."""
    from tuner.run.run import find_run, write_parquet

    found = find_run(storage, run)
    if as_json or form == "json":
        print_json(leaderboard_document(found))
    elif form == "csv":
        found.leaderboard().to_csv(sys.stdout, index=False)
    elif form == "parquet":
        if sys.stdout.isatty():
            raise click.UsageError("Parquet is no text for a terminal; write > trials.parquet.")
        write_parquet(found.ranked(), sys.stdout.buffer)
    else:
        print_leaderboard(found, rows)


@click.command(epilog="Example: cifar-tune runs")
@STORAGE
@JSON
def runs(storage: AnyPath, as_json: bool) -> None:
    """List the runs."""
    from tuner.run.run import open_runs

    records = [run.record for run in open_runs(storage)]
    records.sort(key=lambda record: record.started)
    rows = [
        {
            "run": record.name,
            "status": record.status,
            "data": record.data.source,
            "trials": record.search.trials,
            "started": record.started[:19].replace("T", " "),
        }
        for record in records
    ]
    if as_json:
        print_json(rows)
    else:
        shown = [{"started, UTC" if k == "started" else k: row[k] for k in row} for row in rows]
        print_table(shown, f"Runs in {storage}" if rows else f"No run in {storage} yet.")


@click.command(epilog="Example: cifar-tune show quick-20260101-120000 7")
@click.argument("run")
@click.argument("trial", type=click.IntRange(min=0), required=False)
@STORAGE
@click.option("--follow", is_flag=True, help="Watch the search until it ends; Ctrl-C leaves it.")
@JSON
def show(run: str, trial: int | None, storage: AnyPath, follow: bool, as_json: bool) -> None:
    """Show a run, or one of its trials, in full; or watch a search that is running elsewhere."""
    from tuner.run.run import find_run
    from tuner.schema import to_plain

    found = find_run(storage, run)
    if follow:
        if trial is not None or as_json:
            raise click.UsageError("--follow shows a whole run as a table; leave out the rest.")
        _follow(found.path)
        return
    if trial is None:
        plain = {"path": str(found.path), **_standing(found), **to_plain(found.record)}
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
        columns = ("epoch", "train_loss", "val_loss", "val_accuracy", "lr", "seconds")
        rows = [{key: figure(row[key]) for key in columns} for row in history]
        # A rate may be small throughout.
        rows = [
            row | {"lr": f"{epoch['lr']:.3g}"} for row, epoch in zip(rows, history, strict=True)
        ]
        print_table(rows, "")


def _standing(run: "Run") -> dict[str, Any]:
    """Say how many trials came to which state, and which is the best."""
    from tuner.run.run import leader

    ranked = run.ranked()
    states = Counter(trial.status.state for trial in ranked)
    first = leader(ranked)
    best = first.best if first else None
    found = {"trial": first.number, "val_accuracy": best.val_accuracy} if first and best else None
    return {"states": dict(states.most_common()), "best": found}


def _follow(path: AnyPath) -> None:
    from contextlib import suppress

    from rich.console import Console

    from tuner.monitor.follow import follow

    # To leave is not to interrupt: the search goes on.
    with suppress(KeyboardInterrupt):
        follow(path, Console(highlight=False))


@click.command(epilog="Example: cifar-tune rerun quick-20260101-120000 7")
@click.argument("run")
@click.argument("trial", type=click.IntRange(min=0))
@STORAGE
@DEVICE
@TRUST_CODE
@JSON
def rerun(
    run: str, trial: int, storage: AnyPath, device: str, trust_code: bool, as_json: bool
) -> None:
    """Train one trial again, alone, and hold it against what was recorded."""
    from tuner.run.run import find_run
    from tuner.training.device import find_device
    from tuner.training.rerun import rerun as train_again

    found = find_run(storage, run)
    rows = [
        {
            "epoch": now.epoch,
            "accuracy": now.val_accuracy,
            "recorded": then.val_accuracy,
            "loss": now.val_loss,
            "recorded loss": then.val_loss,
            "same": (now.val_accuracy, now.val_loss) == (then.val_accuracy, then.val_loss),
        }
        for then, now in train_again(found, trial, find_device(device), trust_code=trust_code)
    ]
    if as_json:
        print_json({"run": str(found.path), "trial": trial, "epochs": rows})
        return
    print_table([{key: figure(value) for key, value in row.items()} for row in rows], "")
    same = sum(row["same"] for row in rows)
    click.echo(f"\n{same} of {len(rows)} epochs gave the same numbers.")
