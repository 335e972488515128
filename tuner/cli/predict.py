"""``predict``: classify image files with an ensemble."""

import os
import sys
import warnings
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from itertools import chain
from pathlib import Path
from typing import TextIO

import click

from tuner.cli.options import DEVICE, ENSEMBLE, STORAGE, TRUST_CODE, TTA, Amount, option
from tuner.cli.output import data_output, load_ensemble, output_file, progress_bar
from tuner.monitor.terminal import tell
from tuner.run.resuming import short_path
from tuner.storage.paths import AnyPath


@click.command(epilog="Example: cifar-tune predict photos/ --reject 0.8 --format csv")
@click.argument("paths", nargs=-1, required=True, metavar="PATH...")
@ENSEMBLE
@STORAGE
@option(
    "--format",
    "form",
    type=click.Choice(["table", "csv", "jsonl"]),
    default="table",
    show_default=True,
    help="Output format; jsonl has the probability of every class.",
)
@option(
    "--top",
    type=click.IntRange(min=1),
    default=3,
    show_default=True,
    help="Number of classes to show per image, the most probable ones.",
)
@TTA
@option("--reject", type=Amount(min=0, max=1), help="Mark images with a confidence below this.")
@option(
    "--output",
    type=click.Path(path_type=Path, dir_okay=False),
    help="Write to this file, whole or not at all. [default: stdout]",
)
@DEVICE
@TRUST_CODE
def predict(
    paths: tuple[str, ...],
    ensemble: str | None,
    storage: AnyPath,
    form: str,
    top: int,
    tta: str | None,
    reject: float | None,
    output: Path | None,
    device: str,
    trust_code: bool,
) -> None:
    """Classify images.

    PATH is a file, a folder with everything below it, or - for a list of files on stdin. Images may
    have any size and format; they are prepared like the training images. Files that cannot be read
    are named on stderr, as are images of kinds that are not read, such as HEIC; the others are
    processed, and the exit code is 1.
    """
    from tuner.console import Console

    warnings.filterwarnings("ignore", module=r"PIL\.")  # About invalid metadata.
    console = Console(stderr=True, highlight=False)
    found = load_ensemble(console, storage, ensemble, device, trust_code=trust_code)
    from tuner.deploy.rows import Rows
    from tuner.deploy.stream import predict_paths

    if ensemble is None and console.is_terminal:
        tell(console, f"Ensemble: {short_path(found.path)}")
    rows = Rows(classes=found.classes, form=form, top=top, reject=reject)  # type: ignore[arg-type]
    files, count = _files(paths)
    seen = failed = 0
    is_free = output is not None or not sys.stdout.isatty()
    with _opened(output, form) as out, progress_bar(console, count, is_free=is_free) as show:
        out.write(rows.head())
        for batch in predict_paths(found, files, tta=tta):  # type: ignore[arg-type]
            out.writelines(rows.lines(batch))
            out.flush()
            for error in filter(None, batch.errors):
                tell(console, error)
                failed += 1
            seen += len(batch.paths)
            show(seen)
    if failed:
        console.print(f"Could not be read: {failed} of {seen}", soft_wrap=True)
        sys.exit(1)


def _files(paths: tuple[str, ...]) -> tuple[Iterable[str], int | None]:
    """Return the files to classify and their number, which is ``None`` for a list on stdin."""
    from tuner.deploy.stream import find_images

    if "-" not in paths:
        files = list(find_images(paths))
        return files, len(files)
    named = (_stdin() if path == "-" else (path,) for path in paths)
    return find_images(chain.from_iterable(named)), None


def _stdin() -> Iterator[str]:
    for line in sys.stdin.buffer:
        if name := line.rstrip(b"\r\n"):
            yield os.fsdecode(name)


@contextmanager
def _opened(output: Path | None, form: str) -> Iterator[TextIO]:
    """Yield the output stream, to which data are written unchanged, as to a file."""
    if output is not None:
        with output_file(output, "--output") as file:
            yield file
        return
    yield sys.stdout if form == "table" else data_output()
