"""``data``: prepare data sets, look at them, and split them."""

from pathlib import Path
from typing import Any

import click
from rich.markup import escape

from tuner.cli.options import (
    DATA_DIR,
    IMAGE_SIZE,
    JSON,
    RESIZE,
    SKIP_BROKEN,
    VAL_FRACTION,
)
from tuner.cli.output import make_console, print_json, print_table

MOST_FILES = 20
"""The most files left out for one reason that are named on a terminal."""


@click.group()
def data() -> None:
    """Prepare, describe and split data sets."""


@data.command("prepare", epilog="Example: cifar-tune data prepare cifar10")
@click.argument("source", metavar="[DATA]", default="cifar10")
@DATA_DIR
@IMAGE_SIZE
@RESIZE
@VAL_FRACTION
@SKIP_BROKEN
@JSON
def data_prepare(source: str, data_dir: Path, as_json: bool, **settings: Any) -> None:
    """Fetch and decode images before a search."""
    from tuner.data.splits import load_splits, load_test

    splits = load_splits(_config(source, settings), data_dir)
    assert splits.config is not None
    total = len(splits.train) + len(splits.val)
    notes = list(splits.notes)
    if splits.has_test:
        test = load_test(splits.config, data_dir)
        total += len(test.images)
        notes += test.notes
    if as_json:
        print_json({"data": source, "images": total, "notes": notes})
        return
    for note in notes:
        click.echo(note, err=True)
    click.echo(f"{source} is ready: {total} images.")


@data.command("info", epilog="Example: cifar-tune data info photos/")
@click.argument("source", metavar="[DATA]", default="cifar10")
@DATA_DIR
@IMAGE_SIZE
@RESIZE
@VAL_FRACTION
@JSON
def data_info(source: str, data_dir: Path, as_json: bool, **settings: Any) -> None:
    """Tell what images were found.

    Their layout, number by class and part, sizes, and what is left out and why.
    """
    from tuner.data.description import describe

    info = describe(_config(source, settings), data_dir)
    if as_json:
        print_json(info)
        return
    counts, left_out, notes = info.pop("images"), info.pop("left_out"), info.pop("notes")
    broken = info.pop("broken", {})
    console = make_console()
    for key, value in info.items():
        console.print(f"{key.replace('_', ' '):18} {escape(_words(value))}", soft_wrap=True)
    console.print()
    print_table([{"class": name, **parts} for name, parts in counts.items()], "Images")
    reasons = {**left_out, **({"cannot be read": broken} if broken else {})}
    for reason, files in reasons.items():
        click.echo(f"\nLeft out: {len(files)}, {reason}")
        for file in list(files)[:MOST_FILES]:
            click.echo(f"  {file}{f': {files[file]}' if isinstance(files, dict) else ''}")
        if len(files) > MOST_FILES:
            click.echo("  and others, all with --json")
    for note in notes:
        if not note.startswith("left out"):
            click.echo(f"\n{note}")


@data.command("split", epilog="Example: cifar-tune data split photos/ photos-split/")
@click.argument("source", metavar="DATA")
@click.argument("out", type=click.Path(path_type=Path))
@VAL_FRACTION
@JSON
def data_split(source: str, out: Path, val_fraction: float | None, as_json: bool) -> None:
    """Divide images into folders.

    They are copied into OUT/train, OUT/val and OUT/test, divided as a search would divide them.
    """
    from tuner.config import DataConfig
    from tuner.data.splitting import write_split

    share = DataConfig().val_fraction if val_fraction is None else val_fraction
    counts = write_split(source, out, val_fraction=share)
    if as_json:
        print_json({"data": str(out), "images": counts})
        return
    told = ", ".join(f"{part} {count}" for part, count in counts.items())
    click.echo(f"{out}: {told}. Search with --data {out}")


def _config(source: str, settings: dict[str, Any]) -> Any:
    from tuner.config import DataConfig
    from tuner.data.datasets import find_source
    from tuner.schema import build

    given = {key: value for key, value in settings.items() if value is not None}
    return build(DataConfig, {"resize": "auto", **given, "source": find_source(source)}, "data")


def _words(value: Any) -> str:
    """Return a value of the description in words."""
    if isinstance(value, dict):
        return ", ".join(f"{key} {_words(entry)}" for key, entry in value.items())
    if isinstance(value, list):
        is_size = len(value) == 2 and all(isinstance(entry, int) for entry in value)
        return (" x " if is_size else ", ").join(map(str, value))
    return "-" if value is None else str(value)
