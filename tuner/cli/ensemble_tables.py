"""Ensembles on the terminal: their scores, their members, and what they are compared with."""

import string
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from rich.markup import escape
from rich.table import Table

from tuner.cli.output import (
    TRAINED_ON_VALIDATION,
    interval_text,
    make_console,
    make_table,
    print_sentence,
    print_stripped,
    spelt_scores,
)
from tuner.cli.student_table import print_student
from tuner.config import Metric
from tuner.console import Console
from tuner.data import names
from tuner.errors import TunerError
from tuner.metrics.goal import name_of, spelt
from tuner.metrics.intervals import margin
from tuner.monitor.terminal import tell
from tuner.run.resuming import command_line, short_path, storage_words
from tuner.storage.paths import AnyPath

if TYPE_CHECKING:
    from tuner.metrics.figures import Estimate, Intervals
    from tuner.report.ensembles import EnsembleFigures, FrontierPoint, Scores
    from tuner.run.ensemble_record import Excluded

VAL = "cross-fit: validation images, each by a choice that was made without it."
TESTED = "test, NLL and ECE: test images, which choose nothing."
UNTESTED = """\
No test images. held-out, NLL and ECE: validation images, the ensemble and the best single
cross-fitted (not over the method that auto takes), members alone as they were chosen there,
which flatters them."""
SEEN = "No test images. training, NLL and ECE: images that the networks were trained on."
MOST_CLASSES = 12
"""Maximum number of classes for which the confusion matrix is printed."""
MOST_LETTERS = 24
"""Maximum number of letters of a class name."""
MOST_MEMBERS = 5
"""Maximum number of lines for members, unless all tables are requested."""
MOST_REASONS = 6
MOST_TRIALS = 8
"""Maximum number of trials that are named for each reason why trials were left out."""


def print_ensemble(
    folder: AnyPath, *, is_whole: bool, moved: Sequence[str] = (), trust_code: bool = False
) -> None:
    """Print the scores of an ensemble, and the commands that may come next.

    Args:
        folder: Folder of the ensemble.
        is_whole: Whether to print all tables, not only those requested by options.
        moved: Options that name the place where images are now, for the commands.
        trust_code: Whether the commands have to trust the code that came with the run.

    Raises:
        TunerError: If its files are damaged.
    """
    from tuner.report.ensembles import read_confusion, read_figures

    result = read_figures(folder)
    console = make_console()
    calibrated = f", temperature {result.temperature:.3f}" if result.temperature != 1 else ""
    tta = f", --tta {result.tta}" if result.tta != "none" else ""
    by = "" if result.metric == "accuracy" else f", by {name_of(result.metric)}"
    title = f"{result.run}: {result.method} of {len(result.members)}{calibrated}{tta}{by}"
    console.print(title, style="bold", markup=False, soft_wrap=True)
    if result.verdict:
        print_sentence(console, result.verdict.text)
    elif result.is_val_seen:
        console.print(TRAINED_ON_VALIDATION, markup=False)
    console.print()
    _print_members(console, result, None if is_whole else MOST_MEMBERS)
    meaning = {"test": TESTED, "held-out": UNTESTED, "training": SEEN}[result.tested_on]
    console.print(meaning if result.is_val_seen else f"{VAL}\n{meaning}", markup=False)
    if count := result.test_images:
        accuracy = result.ensemble.test.accuracy
        console.print(
            f"Accuracy on {count} {result.tested_on} images: {margin(accuracy, count)} for the "
            "ensemble (95% interval).",
            markup=False,
        )
    if result.gain:
        _print_gain(console, result, is_whole=is_whole)
    console.print()
    if is_whole:
        _print_more(console, result)
        _print_sizes(console, result)
        if confusion := read_confusion(folder):
            title = f"true \\ predicted, {result.tested_on} images"
            print_confusion(console, confusion.classes, confusion.counts, title)
    if result.comparison:
        _print_comparison(console, result)
    if result.frontier:
        _print_frontier(console, result)
    if result.teacher is not None:
        print_student(result.teacher, result.metric)
        console.print()
    if note := result.duplicates:
        console.print(
            f"{note.images} test images have near-duplicates in the training data: accuracy "
            f"{note.accuracy_of_these:.2%};\nwithout them {note.accuracy_of_others:.2%}, gain "
            f"{interval_text(note.gain_of_others)}.\n",
            markup=False,
        )
    if is_whole:
        _print_left_out(console, result.left_out)
    trust = ("--trust-code",) if trust_code else ()
    _print_next(console, folder, result, is_whole=is_whole, moved=moved, trust=trust)


def _print_members(console: Console, result: "EnsembleFigures", most: int | None) -> None:
    headings = ("", "model", "weight", "val", "cross-fit", result.tested_on, "NLL", "ECE")
    table = make_table("", headings, 2)
    if most is None or len(result.members) <= most:
        shown = result.members
    else:
        shown = result.members[: most - 1]
    for member in shown:
        scores = _scores(result, member.val, None, member.test)
        table.add_row(f"trial {member.trial}", member.family, f"{member.weight:.3f}", *scores)
    if more := len(result.members) - len(shown):
        table.add_row(f"and {more} more")
    table.add_section()
    if mean := result.mean_member:
        table.add_row("mean member", "", "", *_scores(result, mean.val, None, mean.test))
    if single := result.best_single_figures:
        scores = _scores(result, single.val, single.crossfit, single.test)
        table.add_row(f"{result.single_called}: {result.best_single}", "", "", *scores)
    whole = result.ensemble
    scores = _scores(result, whole.val, whole.crossfit, whole.test)
    table.add_row("ensemble", "", "", *scores, style="bold")
    print_stripped(console, table)


def _print_gain(console: Console, result: "EnsembleFigures", *, is_whole: bool) -> None:
    gain = result.gain
    assert gain is not None
    over_single = interval_text(gain.over_best_single)
    if not is_whole:
        what = "gain" if result.metric == "accuracy" else "gain in accuracy"
        console.print(
            f"{result.tested_on.capitalize()} {what} over trial {result.best_single}, in points: "
            f"{over_single}, McNemar p = {gain.mcnemar_p:.2g}",
            markup=False,
            soft_wrap=True,
        )
        return
    single = f"  over the {result.single_called}, trial {result.best_single}"
    console.print(
        f"\nGain in {result.tested_on} accuracy, {gain.level:.0%} interval, in points:\n"
        f"{single:<35}{over_single}"
        f"  McNemar p = {gain.mcnemar_p:.2g}\n"
        f"  over the mean member             {interval_text(gain.over_mean_member)}",
        markup=False,
    )


def _print_next(
    console: Console,
    folder: AnyPath,
    result: "EnsembleFigures",
    *,
    is_whole: bool,
    moved: Sequence[str],
    trust: Sequence[str],
) -> None:
    """Print the commands that may come next, one per line."""
    from tuner.run.ensembles import run_folder_of

    run = run_folder_of(folder)
    storage = storage_words(run.parent) if run else []
    place = short_path(folder) if storage or not run else f"{run.name}/{folder.name}"
    lines = []
    if run and result.verdict and not result.verdict.is_taken:
        method = result.verdict.advised.method
        members = ["--front"] if result.front else ["--top", str(result.verdict.top)]
        words = [*members, "--method", method] if method else ["--top", "1"]
        words += [*result.conditions, *moved, *trust]
        if result.metric != _metric_of(run):
            words += ["--metric", result.metric]
        lines.append(command_line("ensemble", *words, "--run", run.name, *storage))
    if not is_whole:
        lines.append(command_line("show", names=[place]))
    named = ("--ensemble", place, *trust)
    lines += [
        command_line("predict", "IMAGE...", *named),
        command_line("export", *named, "--output", "model.onnx"),
    ]
    if is_whole:
        lines.insert(1, command_line("evaluate", "DATA", *named))
    tell(console, f"Ensemble: {short_path(folder)}. Next:")
    tell(console, "\n".join(f"  {line}" for line in lines))


def _metric_of(run: AnyPath) -> Metric | None:
    """Return the metric of a run; ``None`` if it cannot be read."""
    from tuner.run.run import Run

    try:
        return Run.open(run).record.search.metric
    except TunerError:
        return None


def _print_more(console: Console, result: "EnsembleFigures") -> None:
    """Print scores other than accuracy, NLL and ECE, and the temperatures of the members."""
    if any(member.temperature != 1 for member in result.members):
        temperatures = " ".join(f"{member.temperature:.3f}" for member in result.members)
        console.print(
            f"The members' own figures are uncalibrated. Each votes at its own temperature:\n"
            f"{temperatures}\n"
        )
    test = result.ensemble.test
    parts = [f"Brier {test.brier:.4f}"]
    if test.top3 is not None:
        parts.insert(0, f"top-3 {test.top3:.2%}")
    if test.ece_equal_mass is not None:
        parts.append(f"ECE by equal mass {test.ece_equal_mass:.4f}")
    lines = [f"{result.tested_on.capitalize()} images: {', '.join(parts)}"]
    if result.coverage:
        half = min(result.coverage, key=lambda row: abs(row.coverage - 0.5))
        lines.append(f"accuracy on the surest {half.coverage:.0%} of them {half.accuracy:.2%}")
    seen = [entry for entry in result.per_class if entry.accuracy is not None]
    if seen:
        worst = min(seen, key=lambda entry: entry.accuracy or 0)
        lines.append(
            f"accuracy on the hardest class, {cut(worst.label)}, {worst.accuracy or 0:.2%}"
        )
    console.print(";\n".join(lines) + ".\n", markup=False)
    if result.intervals is not None:
        print_intervals(console, result.intervals)


def print_intervals(console: Console, found: "Intervals") -> None:
    """Print figures with their bootstrap intervals."""

    def shares(entry: "Estimate") -> str:
        return f"{entry.value:.2%} [{100 * entry.low:.2f}, {100 * entry.high:.2f}]"

    def numbers(entry: "Estimate") -> str:
        return f"{entry.value:.4f} [{entry.low:.4f}, {entry.high:.4f}]"

    console.print(
        "With 95% intervals, by bootstrap:\n"
        f"  balanced accuracy {shares(found.balanced_accuracy)}, "
        f"macro F1 {shares(found.macro_f1)}\n"
        f"  hardest class {shares(found.worst_class)}\n"
        f"  NLL {numbers(found.nll)}, ECE {numbers(found.ece)}\n",
        markup=False,
    )


def print_plan(plan: dict[str, Any], left_out: "Sequence[Excluded]") -> None:
    """Print the choices with their figures on the validation images; no test image was read."""
    console = make_console()
    if plan["verdict"]:
        print_sentence(console, plan["verdict"]["text"])
        console.print()
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
    print_stripped(console, table)
    for skipped in plan["skipped"]:
        console.print(f"{skipped['method']}: {skipped['reason']}.", markup=False)
    count, accuracy = plan["val_images"], plan["choices"][0]["crossfit"]["accuracy"]
    told = (
        f"Accuracy on {count} validation images: {margin(accuracy, count)} for the first (95% "
        "interval)."
    )
    console.print(f"\n{TRAINED_ON_VALIDATION if plan['is_val_seen'] else told}\n")
    _print_left_out(console, left_out)


def _print_sizes(console: Console, result: "EnsembleFigures") -> None:
    if not result.by_size:
        return
    headings = (
        "members",
        "trial",
        result.tested_on,
        "interval",
        f"gain over {result.single_called}",
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
    print_stripped(console, table)
    told = "\nadds: accuracy with the member minus accuracy without it."
    if result.oracle is not None:
        told += (
            f" At least one member is\nright on {result.oracle:.2%} of the {result.tested_on} "
            "images."
        )
    console.print(f"{told}\n")


def _print_comparison(console: Console, result: "EnsembleFigures") -> None:
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
            *(spelt_scores(scores, metric) for scores in (val, crossfit, test)),
            interval_text(row.gain),
            f"{test.nll:.3f}",
            f"{test.ece:.3f}",
        )
    print_stripped(console, table)
    console.print("\nn: trials in it; + T: calibrated by one temperature.")
    for skipped in result.skipped:
        console.print(f"{skipped.method}: {skipped.reason}.", markup=False)
    console.print()


def _print_frontier(console: Console, result: "EnsembleFigures") -> None:
    from tuner.ensemble.latency import MOST_COMBINED

    # Without test images, this column would repeat figures of images that members were chosen on.
    tested = [result.tested_on] if result.has_test else []
    headings = ("ms", "ms, 256 images", "val", *tested, "trials")
    table = make_table("Best for their time", headings, 0)
    for point in result.frontier:
        table.add_row(
            f"{point.latency_ms:.2f}",
            "-" if point.latency_256_ms is None else f"{point.latency_256_ms:.1f}",
            *_point_values(point, result.metric)[: 1 + len(tested)],
            " ".join(map(str, point.members)),
        )
    print_stripped(console, table)
    if len(result.members) > MOST_COMBINED:
        console.print(
            f"\nOnly the first {MOST_COMBINED} of {len(result.members)} members were combined."
        )
    console.print()


def _print_left_out(console: Console, left_out: "Sequence[Excluded]") -> None:
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


def _scores(
    result: "EnsembleFigures", val: "Scores", crossfit: "Scores | None", test: "Scores"
) -> list[str]:
    cells = (spelt_scores(scores, result.metric) for scores in (val, crossfit, test))
    return [*cells, f"{test.nll:.4f}", f"{test.ece:.4f}"]


def _point_values(point: "FrontierPoint", metric: Metric) -> tuple[str, str]:
    """Return the figures that a point was chosen by; earlier versions recorded only accuracies."""
    if point.metric is None or point.val_metric is None:
        val = "-" if point.val_accuracy is None else f"{point.val_accuracy:.2%}"
        return val, f"{point.accuracy:.2%}"
    return spelt(point.val_metric, metric), spelt(point.metric, metric)


def print_confusion(
    console: Console, classes: Sequence[str], rows: Sequence[Sequence[int]], title: str
) -> None:
    """Print a confusion matrix, one row per true class; columns have the letters of the rows.

    It is left out if there are too many classes.
    """
    if len(classes) > MOST_CLASSES:
        return
    table = Table(title=escape(title), box=None, padding=(0, 1, 0, 0))
    table.add_column("", no_wrap=True)
    letters = string.ascii_lowercase[: len(classes)]
    for letter in letters:
        table.add_column(letter, justify="right", no_wrap=True)
    for number, (label, row) in enumerate(zip(classes, rows, strict=True)):
        cells = [str(count) if count else "·" for count in row]
        cells[number] = f"[bold]{cells[number]}[/bold]"
        table.add_row(f"{letters[number]} {escape(cut(label))}", *cells)
    print_stripped(console, table)
    console.print()


def cut(label: str) -> str:
    """Return the name of a class, shortened with an ellipsis if it is long."""
    return names.cut(label, MOST_LETTERS)
