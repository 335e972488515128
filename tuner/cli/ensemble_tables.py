"""An ensemble on the terminal: its members, its worth, and what it was compared with."""

import shlex
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from rich.markup import escape
from rich.table import Table

from tuner.cli.output import TRAINED_ON_VALIDATION, interval_text, make_console, make_table
from tuner.cli.student_table import print_student
from tuner.config import Metric
from tuner.console import Console
from tuner.metrics.goal import name_of, spelt
from tuner.run.resuming import short_path

if TYPE_CHECKING:
    from tuner.ensemble.pool import Excluded
    from tuner.ensemble.result import EnsembleResult
    from tuner.metrics.predict import Scores

VAL = """\
Val: on the images it was chosen on; cross-fit: on the same, each by a choice
made without it, from the same candidates."""
TESTED = "Test, NLL and ECE: on the test images, which choose nothing."
UNTESTED = """\
There are no test images. Held-out, NLL and ECE: on the validation images, the
ensemble as cross-fitted; members as they were chosen on them, which flatters them."""
MOST_CLASSES = 12
"""Up to which the confusion matrix is printed."""
MOST_REASONS = 6
MOST_TRIALS = 8
"""Up to which the trials left out for one reason are named."""


def print_ensemble(result: "EnsembleResult") -> None:
    """Print an ensemble beside its members, its gain, its confusion matrix, and its rivals."""
    console = make_console()
    calibrated = f", temperature {result.temperature:.3f}" if result.temperature != 1 else ""
    tta = f", --tta {result.tta}" if result.tta != "none" else ""
    by = "" if result.metric == "accuracy" else f", by {name_of(result.metric)}"
    title = f"{result.run}: {result.method} of {len(result.members)}{calibrated}{tta}{by}"
    images = result.tested_on
    table = make_table(title, ("", "model", "weight", "val", "cross-fit", images, "NLL", "ECE"), 2)
    for member in result.members:
        table.add_row(
            f"trial {member.trial}",
            member.family,
            f"{member.weight:.3f}",
            *_scores(result.metric, member.val, None, member.test),
        )
    mean, whole = result.mean_member, result.ensemble
    single = result.best_single_figures
    table.add_section()
    table.add_row("mean member", "", "", *_scores(result.metric, mean["val"], None, mean["test"]))
    table.add_row(
        f"best single: {result.best_single}",
        "",
        "",
        *_scores(result.metric, single.val, single.crossfit, single.test),
    )
    scores = _scores(result.metric, whole.val, whole.crossfit, whole.test)
    table.add_row("ensemble", "", "", *scores, style="bold")
    console.print(table)
    meaning = TRAINED_ON_VALIDATION if result.is_val_seen else VAL
    console.print(f"\n{meaning}\n{TESTED if result.has_test else UNTESTED}\n")
    if any(member.temperature != 1 for member in result.members):
        temperatures = " ".join(f"{member.temperature:.3f}" for member in result.members)
        console.print(
            f"Members stand as they were trained. Each is mixed at a temperature of its own:\n"
            f"{temperatures}\n"
        )
    gain = result.gain
    over_single, over_mean = map(interval_text, (gain.over_best_single, gain.over_mean_member))
    console.print(
        f"Gain in {images} accuracy, {gain.level:.0%} interval, in points:\n"
        f"  over the best single, trial {result.best_single:<5}{over_single}"
        f"  McNemar p = {gain.mcnemar_p:.2g}\n"
        f"  over the mean member             {over_mean}\n"
    )
    _print_test_scores(console, result)
    if result.comparison:
        _print_comparison(console, result)
    else:
        _print_sizes(console, result)
        if len(result.classes) <= MOST_CLASSES:
            console.print(
                confusion_table(
                    result.classes, result.confusion.tolist(), f"true \\ predicted, {images} images"
                )
            )
            console.print()
    if result.frontier:
        _print_frontier(console, result)
    if result.teacher is not None:
        print_student(result.teacher)
        console.print()
    if note := result.duplicates:
        console.print(
            f"{note.images} test images have near-duplicates in the training data: accuracy "
            f"{note.accuracy_of_these:.2%};\nwithout them {note.accuracy_of_others:.2%}, gain "
            f"{interval_text(note.gain_of_others)}.\n"
        )
    _print_left_out(console, result.left_out)
    console.print(
        f"Ensemble: {short_path(result.path)}  (model_card.md, metrics.json, *.png)", soft_wrap=True
    )
    _print_next(console, result)


def _print_next(console: Console, result: "EnsembleResult") -> None:
    """Name what is done with an ensemble next."""
    place = shlex.quote(short_path(result.path))
    run = shlex.quote(short_path(result.path.parent.parent))
    lines = (
        f"Next, with --ensemble {place}:",
        "  cifar-tune predict IMAGE...",
        "  cifar-tune evaluate DATA",
        "  cifar-tune export --format onnx --output model.onnx",
        f"and for the whole run: cifar-tune report {run}",
    )
    console.print("\n".join(lines), soft_wrap=True, markup=False)


def _print_test_scores(console: Console, result: "EnsembleResult") -> None:
    test = result.ensemble.test
    half = next(row for row in result.coverage if row.coverage >= 0.5)
    seen = [entry for entry in result.per_class if entry.accuracy is not None]
    worst = min(seen, key=lambda entry: entry.accuracy or 0)
    console.print(
        f"{result.tested_on.capitalize()} images: balanced accuracy {test.balanced_accuracy:.2%}, "
        f"macro F1 {test.macro_f1:.2%};\n"
        f"top-3 {test.top3:.2%}, Brier {test.brier:.4f}, "
        f"ECE by equal mass {test.ece_equal_mass:.4f};\n"
        f"the surest {half.coverage:.0%} of them {half.accuracy:.2%}; "
        f"the hardest class, {worst.label[:24]}, {worst.accuracy or 0:.2%}.\n",
        markup=False,
    )


def print_plan(plan: dict[str, Any], left_out: Sequence["Excluded"]) -> None:
    """Print choices with their figures on the validation images; no test image was read."""
    console = make_console()
    headings = ("", "trials: weights", "val", "cross-fit", "NLL, cross-fit")
    metric = plan["metric"]
    by = "" if metric == "accuracy" else f", by {name_of(metric)}"
    table = make_table(f"{plan['run']}: chosen{by}, not tested", headings, 2)
    table.columns[1].no_wrap = False
    for choice in plan["choices"]:
        weights = [f"{member['trial']}: {member['weight']:.2f}" for member in choice["members"]]
        table.add_row(
            f"{choice['method']}{' + T' if choice['calibrated'] else ''}",
            ", ".join(weights),
            spelt(choice["val"][metric], metric),
            spelt(choice["crossfit"][metric], metric),
            f"{choice['crossfit']['nll']:.4f}",
        )
    console.print(table)
    console.print(f"\n{TRAINED_ON_VALIDATION}\n" if plan["is_val_seen"] else "")
    _print_left_out(console, left_out)


def _print_sizes(console: Console, result: "EnsembleResult") -> None:
    if not result.by_size:
        return
    images = result.tested_on
    headings = (
        "members",
        "trial",
        images,
        "interval",
        "gain over best single",
        "McNemar p",
        "adds",
    )
    table = make_table("The first members together", headings, 0)
    for row, member in zip(result.by_size, result.members, strict=True):
        added = member.contribution
        table.add_row(
            str(row.k),
            str(member.trial),
            f"{row.accuracy:.2%}",
            f"{100 * row.low:.2f} - {100 * row.high:.2f}",
            f"{100 * row.gain:+.2f} [{100 * row.gain_low:+.2f}, {100 * row.gain_high:+.2f}]",
            f"{row.mcnemar_p:.2g}",
            "-" if added is None else f"{100 * added:+.2f}",
        )
    console.print(table)
    console.print(
        f"\nadds: accuracy with the member less that without it. At least one member is\n"
        f"right on {result.oracle:.2%} of the {images} images.\n"
    )


def _print_comparison(console: Console, result: "EnsembleResult") -> None:
    images = result.tested_on
    metric = result.metric
    gain = "gain over best single" if metric == "accuracy" else "gain in accuracy"
    headings = ("", "n", "val", "cross-fit", images, gain, "NLL", "ECE")
    table = make_table(f"All methods, by the same reading of the {images} images", headings, 1)
    for row in result.comparison:
        val, crossfit, test = row.figures.val, row.figures.crossfit, row.figures.test
        table.add_row(
            f"{row.method}{' + T' if row.calibrated else ''}",
            str(len(row.members)),
            spelt(val.value(metric), metric),
            spelt(crossfit.value(metric), metric) if crossfit else "-",
            spelt(test.value(metric), metric),
            interval_text(row.gain),
            f"{test.nll:.3f}",
            f"{test.ece:.3f}",
        )
    console.print(table)
    console.print("\nn: trials in it; + T: calibrated by one temperature.")
    for skipped in result.skipped:
        console.print(f"{skipped.method}: {skipped.reason}.", markup=False)
    console.print()


def _print_frontier(console: Console, result: "EnsembleResult") -> None:
    from tuner.ensemble.latency import MOST_COMBINED

    images = result.tested_on
    table = make_table("Best for their time", ("ms", "ms, 256 images", "val", images, "trials"), 0)
    for point in result.frontier or ():
        table.add_row(
            f"{point.latency_ms:.2f}",
            f"{point.latency_256_ms:.1f}",
            spelt(point.val_metric, result.metric),
            spelt(point.metric, result.metric),
            " ".join(map(str, point.members)),
        )
    console.print(table)
    if len(result.members) > MOST_COMBINED:
        console.print(
            f"\nOnly the first {MOST_COMBINED} of {len(result.members)} members were combined."
        )
    console.print()


def _print_left_out(console: Console, left_out: Sequence["Excluded"]) -> None:
    by_reason: dict[str, list[str]] = {}
    for entry in left_out:
        by_reason.setdefault(entry.reason, []).append(str(entry.trial))
    if by_reason:
        console.print("Left out, best first:")
    for reason, trials in list(by_reason.items())[:MOST_REASONS]:
        few = ", ".join(trials[:MOST_TRIALS])
        more = f" and {len(trials) - MOST_TRIALS} more" if len(trials) > MOST_TRIALS else ""
        console.print(f"  {few}{more}: {reason}", markup=False)
    if len(by_reason) > MOST_REASONS:
        console.print("  and others, in metrics.json")
    console.print()


def _scores(metric: Metric, val: "Scores", crossfit: "Scores | None", test: "Scores") -> list[str]:
    return [
        spelt(val.value(metric), metric),
        spelt(crossfit.value(metric), metric) if crossfit else "-",
        spelt(test.value(metric), metric),
        f"{test.nll:.4f}",
        f"{test.ece:.4f}",
    ]


def confusion_table(classes: Sequence[str], rows: list[list[int]], title: str) -> Table:
    """Return a confusion matrix, rows true."""
    table = Table(title=title, title_justify="left", box=None)
    table.add_column("", style="bold", no_wrap=True)
    for label in classes:
        table.add_column(escape(label[:4]), justify="right", no_wrap=True)
    for number, (label, row) in enumerate(zip(classes, rows, strict=True)):
        cells = [str(count) if count else "·" for count in row]
        cells[number] = f"[bold]{cells[number]}[/bold]"
        table.add_row(escape(label[:12]), *cells)
    return table
