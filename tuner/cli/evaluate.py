"""``evaluate``: measure an ensemble on labelled images."""

import sys
import tempfile
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import click
from rich.markup import escape

from tuner.cli.ensemble_tables import cut, print_confusion, print_intervals
from tuner.cli.insights import print_advice
from tuner.cli.options import DATA_DIR, DEVICE, ENSEMBLE, JSON, STORAGE, TRUST_CODE, TTA, option
from tuner.cli.output import (
    interval_text,
    load_ensemble,
    loading_on_terminal,
    make_console,
    make_table,
    print_json,
    print_stripped,
    progress_bar,
)
from tuner.errors import UsageError
from tuner.monitor.terminal import tell
from tuner.run.resuming import short_path
from tuner.storage.paths import AnyPath

if TYPE_CHECKING:
    from tuner.console import Console
    from tuner.deploy.evaluation import AccuracyInterval, Evaluation

MOST_MISTAKES = 10
"""Number of mistakes that are printed; ``--output`` and ``--json`` list all."""


@click.command(epilog="Example: cifar-tune evaluate photos/ --corrupt --output evaluation/")
@click.argument("data")
@ENSEMBLE
@STORAGE
@TTA
@option(
    "--corrupt",
    is_flag=True,
    help="Measure on images with noise, blur, other light and compression, too, as in CIFAR-10-C.",
)
@option(
    "--output",
    type=click.Path(path_type=Path, file_okay=False),
    help="Folder for evaluation.json, the confusion matrix (CSV, PNG) and all mistakes.",
)
@DATA_DIR
@DEVICE
@TRUST_CODE
@JSON
def evaluate(
    data: str,
    ensemble: str | None,
    storage: AnyPath,
    tta: str | None,
    corrupt: bool,
    output: Path | None,
    data_dir: Path,
    device: str,
    trust_code: bool,
    as_json: bool,
) -> None:
    """Measure an ensemble on labelled images.

    DATA is a data set, or a folder, an archive or a manifest of labelled images. If it has parts
    for training and testing, only the test part is read. Classes are matched by name, and may be
    only some of the ensemble's. Each evaluation is recorded in evaluations.jsonl in the ensemble's
    folder.
    """
    from tuner.console import Console

    console = Console(stderr=True, highlight=False)
    warnings.filterwarnings("ignore", module=r"PIL\.")  # About invalid metadata.
    found = load_ensemble(console, storage, ensemble, device, trust_code=trust_code)
    with loading_on_terminal(console, "the images"):
        from tuner.data.labelled import find_labelled
        from tuner.deploy.evaluation import enter
        from tuner.deploy.evaluation import evaluate as measure
        from tuner.deploy.evaluation_folder import write_evaluation

        labelled = find_labelled(data, found.preprocessing.size, data_dir)
    if output:
        # Before the images are measured, and the reading is recorded.
        with _explaining_output(output):
            output.mkdir(parents=True, exist_ok=True)
            tempfile.TemporaryFile(dir=output).close()
    with progress_bar(console, len(labelled), is_free=True) as show:
        evaluation = measure(found, labelled, tta=tta, corrupt=corrupt, progress=show)  # type: ignore[arg-type]
    enter(evaluation)
    if output:
        with _explaining_output(output):
            write_evaluation(evaluation, output)
    if as_json:
        print_json(evaluation.to_plain())
    else:
        _print_evaluation(make_console(), evaluation)
        if output:
            click.echo(f"Evaluation: {short_path(output)}")
    for line in evaluation.unreadable:
        tell(console, line)
    if evaluation.is_trained_on:
        warning = (
            "the ensemble may have been trained on these images, or chosen by them; on others "
            "it is less accurate."
        )
        print_advice([warning])
    if evaluation.unreadable:
        count = len(evaluation.unreadable)
        console.print(f"Could not be read: {count} of {evaluation.images + count}")
        sys.exit(1)


@contextmanager
def _explaining_output(output: Path) -> Iterator[None]:
    """Report a folder that cannot be written in a line."""
    try:
        yield
    except OSError as error:
        raise UsageError(f"--output {output}: cannot be written: {error.strerror}") from error


def _print_evaluation(console: "Console", found: "Evaluation") -> None:
    part = "test images" if found.part == "test" else "images"
    title = f"{short_path(found.ensemble)} on {found.images} {part} of {found.source}"
    tell(console, title)
    table = make_table("", ("", "weight", "accuracy", "interval", "NLL", "ECE", "adds"), 1)
    for member in found.members:
        added = member.contribution
        table.add_row(
            member.member,
            f"{member.weight:.3f}",
            f"{member.scores.accuracy:.2%}",
            _range(member.interval),
            f"{member.scores.nll:.4f}",
            f"{member.scores.ece:.4f}",
            "-" if added is None else f"{100 * added:+.2f}",
        )
    scores = found.scores
    table.add_section()
    table.add_row(
        "ensemble",
        "",
        f"{scores.accuracy:.2%}",
        _range(found.interval),
        f"{scores.nll:.4f}",
        f"{scores.ece:.4f}",
        "",
        style="bold",
    )
    print_stripped(console, table)
    half = min(found.coverage, key=lambda row: abs(row.coverage - 0.5))
    gain, over_mean = map(interval_text, (found.gain_over_best_member, found.gain_over_mean_member))
    console.print(
        f"\nGain in accuracy over {found.members[0].member}, the first member, in points:\n"
        f"  {gain}  McNemar p = {found.mcnemar_p:.2g}; over the mean member {over_mean}\n"
        f"Top-3 {scores.top3:.2%}, Brier {scores.brier:.4f}, ECE by equal mass "
        f"{scores.ece_equal_mass:.4f};\naccuracy on the surest {half.coverage:.0%} "
        f"{half.accuracy:.2%}; at least one member is right on {found.oracle:.2%}.\n",
        markup=False,
    )
    print_intervals(console, found.intervals)
    _print_classes(console, found)
    if found.corrupted:
        _print_corrupted(console, found)
    if found.mistakes:
        _print_mistakes(console, found)


def _print_classes(console: "Console", found: "Evaluation") -> None:
    print_confusion(console, found.classes, found.confusion.tolist(), "true \\ predicted")
    rows = [(entry.label, entry.interval) for entry in found.per_class if entry.interval]
    hardest = sorted(rows, key=lambda row: row[1].accuracy)[:3]
    told = ", ".join(f"{label} {share.accuracy:.2%} ({_range(share)})" for label, share in hardest)
    console.print(f"Hardest classes: {told}\n", markup=False)


def _print_corrupted(console: "Console", found: "Evaluation") -> None:
    from tuner.deploy.corruption import KINDS, SEVERITIES

    table = make_table("Accuracy on corrupted images", ("severity", *map(str, SEVERITIES)), 1)
    accuracy = {(entry.kind, entry.severity): entry.accuracy for entry in found.corrupted}
    for kind in KINDS:
        cells = (f"{accuracy[kind, severity]:.2%}" for severity in SEVERITIES)
        table.add_row(kind.replace("_", " "), *cells)
    print_stripped(console, table)
    console.print(f"\nMean over all: {found.corrupted_accuracy:.2%}\n")


def _print_mistakes(console: "Console", found: "Evaluation") -> None:
    shown = found.mistakes[:MOST_MISTAKES]
    table = make_table("Mistakes, the surest first", ("true", "predicted", "", "image"), 2)
    table.columns[3].justify, table.columns[3].overflow = "left", "fold"
    table.columns[3].no_wrap = False
    for mistake in shown:
        row = (cut(mistake.true), cut(mistake.predicted), f"{mistake.confidence:.1%}", mistake.path)
        table.add_row(*map(escape, row))
    print_stripped(console, table)
    if (more := len(found.mistakes) - len(shown)) > 0:
        console.print(f"and {more} more; --output FOLDER writes them all")
    console.print()


def _range(share: "AccuracyInterval") -> str:
    return f"{100 * share.low:.2f} - {100 * share.high:.2f}"
