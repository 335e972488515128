"""``data``: prepare, describe and split data sets, and find errors in them."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from rich.markup import escape

from tuner.cli.options import (
    DATA,
    DATA_DIR,
    IMAGE_SIZE,
    JSON,
    MOVED_DATA_DIR,
    RESIZE,
    SKIP_BROKEN,
    STORAGE,
    VAL_FRACTION,
    option,
)
from tuner.cli.output import make_console, output_file, print_json, print_table
from tuner.storage.paths import AnyPath
from tuner.storage.spreadsheet import csv_of

if TYPE_CHECKING:
    from tuner.run.issues import Issues

MOST_FILES = 20
"""Maximum number of entries in a printed list, such as the files left out for one reason."""


@click.group()
def data() -> None:
    """Prepare, describe, split and check data sets."""


@data.command("prepare", epilog="Example: cifar-tune data prepare cifar10")
@click.argument("source", metavar="[DATA]", default="cifar10")
@DATA_DIR
@IMAGE_SIZE
@RESIZE
@VAL_FRACTION
@SKIP_BROKEN
@JSON
def data_prepare(source: str, data_dir: Path, as_json: bool, **settings: Any) -> None:
    """Download and decode images before a search.

    DATA is a data set such as cifar100, or a folder, an archive or a manifest of images. Without
    it, CIFAR-10 is used. Data sets are downloaded once.
    """
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
    """Report which images were found, and which were left out and why.

    Shows the layout, the number of images by class and part, and their sizes. DATA is a data set
    such as cifar100, or a folder, an archive or a manifest of images. Without it, CIFAR-10 is used.
    Data sets are downloaded once.
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
    """Copy images into one folder per part.

    Writes OUT/train, OUT/val and OUT/test, divided as a search would divide the images.
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


@data.command("issues", epilog="Example: cifar-tune data issues --csv issues.csv")
@click.argument("run", required=False)
@option(
    "--top",
    type=click.IntRange(min=1),
    default=5,
    show_default=True,
    help="Number of best trials that judge the labels.",
)
@option(
    "--csv",
    "csv_file",
    type=click.Path(path_type=Path, dir_okay=False),
    help="Write all issues to this CSV file.",
)
@DATA
@MOVED_DATA_DIR
@STORAGE
@JSON
def data_issues(
    run: str | None,
    top: int,
    csv_file: Path | None,
    data: str | None,
    data_dir: Path | None,
    storage: AnyPath,
    as_json: bool,
) -> None:
    """Find probably wrong labels and near-duplicate test images.

    Checks the labels of the validation images, by a vote of networks that were not trained on them;
    with --folds, these are all images except the test images. Test images are compared with those
    that the run was trained and validated on. The report of the run shows the issues.
    """
    from dataclasses import asdict

    from tuner.ensemble.issues import look_for_issues
    from tuner.run.run import find_run

    found = look_for_issues(
        find_run(storage, run),
        top=top,
        data=data,
        data_dir=data_dir,
    )
    if csv_file is not None:
        with output_file(csv_file, "--csv") as file:
            file.write(_csv_of(found))
    if as_json:
        document = asdict(found)
        for issue in (*document["labels"], *document["duplicates"]):
            issue.pop("picture")
            issue.pop("original_picture", None)
        print_json(document)
        return
    _print_issues(found)
    if csv_file is not None:
        click.echo(f"\nAll of them: {csv_file}")


def _csv_of(found: "Issues") -> str:
    """Return the issues as CSV, one row per issue."""
    head = ["kind", "path", "label", "suggested", "confidence", "original", "original_part"]
    labels = [
        ["label", i.path, i.given, i.suggested, f"{i.suggested_probability:.4f}", "", ""]
        for i in found.labels
    ]
    copies = [
        [
            *("duplicate", i.path, i.test_class, i.original_class, f"{i.similarity:.4f}"),
            *(i.original, i.original_part or ""),
        ]
        for i in found.duplicates
    ]
    return csv_of(head, [*labels, *copies])


def _print_issues(found: "Issues") -> None:
    labels = [
        {
            "image": issue.path,
            "label": issue.given,
            "rather": issue.suggested,
            "%": f"{100 * issue.suggested_probability:.0f}",
        }
        for issue in found.labels[:MOST_FILES]
    ]
    hidden = f", the likeliest {MOST_FILES}" if len(found.labels) > MOST_FILES else ""
    count = f"{len(found.labels)} of {found.checked} labels may be wrong{hidden}"
    print_table(labels, count) if labels else click.echo(count)
    if not found.test_images:
        click.echo("\nThere are no test images to compare.")
        return
    copies = [
        {"test image": issue.path, "resembles": issue.shown_original}
        for issue in found.duplicates[:MOST_FILES]
    ]
    hidden = f", the nearest {MOST_FILES}" if len(found.duplicates) > MOST_FILES else ""
    count = (
        f"{len(found.duplicates)} of {found.test_images} test images are nearly the same as others"
    )
    click.echo()
    print_table(copies, f"{count}{hidden}") if copies else click.echo(count)


def _config(source: str, settings: dict[str, Any]) -> Any:
    from tuner.config import DataConfig
    from tuner.data.datasets import find_source
    from tuner.schema import build

    given = {key: value for key, value in settings.items() if value is not None}
    return build(DataConfig, {"resize": "auto", **given, "source": find_source(source)}, "data")


def _words(value: Any) -> str:
    """Return a value of the description as text."""
    if isinstance(value, dict):
        return ", ".join(f"{key} {_words(entry)}" for key, entry in value.items())
    if isinstance(value, list):
        is_size = len(value) == 2 and all(isinstance(entry, int) for entry in value)
        return (" x " if is_size else ", ").join(map(str, value))
    return "-" if value is None else str(value)
