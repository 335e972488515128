"""``rerun``: a trial trained again."""

from typing import TYPE_CHECKING, Any

import click

from tuner.cli.options import DATA, DEVICE, JSON, MOVED_DATA_DIR, STORAGE, TRUST_CODE
from tuner.cli.output import (
    figure,
    print_json,
    print_table,
)
from tuner.storage.paths import AnyPath

if TYPE_CHECKING:
    pass


@click.command(epilog="Example: cifar-tune rerun quick-20260101-120000 7")
@click.argument("run")
@click.argument("trial", type=click.IntRange(min=0))
@STORAGE
@DATA
@MOVED_DATA_DIR
@DEVICE
@TRUST_CODE
@JSON
def rerun(
    run: str, trial: int, storage: AnyPath, device: str, as_json: bool, **options: Any
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
        for then, now in train_again(found, trial, find_device(device), **options)
    ]
    if as_json:
        print_json({"run": str(found.path), "trial": trial, "epochs": rows})
        return
    print_table([{key: figure(value) for key, value in row.items()} for row in rows], "")
    same = sum(row["same"] for row in rows)
    click.echo(f"\n{same} of {len(rows)} epochs gave the same numbers.")
