"""``rerun``: train a trial again."""

import math
from typing import Any

import click

from tuner.cli import completion
from tuner.cli.options import DATA, DEVICE, JSON, MOVED_DATA_DIR, STORAGE, TRUST_CODE
from tuner.cli.output import (
    figure,
    finite,
    print_json,
    print_table,
)
from tuner.console import Console
from tuner.monitor.steps import loading, step
from tuner.schema import whole_number
from tuner.storage.paths import AnyPath


@click.command(epilog="Example: cifar-tune rerun quick-20260101-120000 7")
@click.argument(
    "words",
    nargs=-1,
    required=True,
    metavar="[RUN] TRIAL",
    shell_complete=completion.runs_or_trials,
)
@STORAGE
@DATA
@MOVED_DATA_DIR
@DEVICE
@TRUST_CODE
@JSON
def rerun(
    words: tuple[str, ...], storage: AnyPath, device: str, as_json: bool, **options: Any
) -> None:
    """Train a trial again and compare its figures.

    Without RUN, uses the newest run. The trial is trained alone and compared with its record.
    """
    *run, last = words
    trial = whole_number(last)
    if len(run) > 1 or trial is None:
        raise click.UsageError("give a trial's number, or a run and a trial's number")
    from tuner.run.run import find_run

    found = find_run(storage, run[0] if run else None)
    console = Console(stderr=True, highlight=False)
    with loading(console, "PyTorch"):
        from tuner.training.device import find_device
        from tuner.training.rerun import rerun as train_again
    rows = []
    with step(console, f"Training trial {trial} again") as tell:
        for then, now in train_again(found, trial, find_device(device), **options):
            rows.append(
                {
                    "epoch": now.epoch,
                    "accuracy": now.val_accuracy,
                    "recorded": then.val_accuracy,
                    "loss": now.val_loss,
                    "recorded loss": then.val_loss,
                    "same": _is_same(now.val_accuracy, then.val_accuracy)
                    and _is_same(now.val_loss, then.val_loss),
                }
            )
            tell(f"Training trial {trial} again, epoch {now.epoch} done")
    if as_json:
        told = [{key: finite(value) for key, value in row.items()} for row in rows]
        print_json({"run": str(found.path), "trial": trial, "epochs": told})
        return
    shown = [
        {key: figure(value) for key, value in row.items()}
        | {"same": "yes" if row["same"] else "no"}
        for row in rows
    ]
    print_table(shown, "")
    same = sum(row["same"] for row in rows)
    click.echo(f"\n{same} of {len(rows)} epochs gave the same numbers.")


def _is_same(one: float, other: float) -> bool:
    """Whether two figures are the same; those of an epoch that diverged may be NaN."""
    return one == other or (math.isnan(one) and math.isnan(other))
