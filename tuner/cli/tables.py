"""Tables and figures on the terminal."""

import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

if TYPE_CHECKING:
    from tuner.ensemble import EnsembleResult
    from tuner.run import Run


WIDE = 110
"""Columns of a terminal from which all of the leaderboard is shown."""


def print_ensemble(run: "Run", result: "EnsembleResult") -> None:
    """Print an ensemble beside its members, its gain, and its confusion matrix."""
    console = Console(highlight=False)
    table = Table(
        title=f"{run.record.name}: soft vote of {len(result.members)}",
        title_justify="left",
        box=None,
    )
    table.add_column("")
    for heading in ("model", "weight", "validation", "test", "NLL", "ECE", "Brier"):
        table.add_column(heading, justify="left" if heading == "model" else "right")

    def scores(val: Any, test: Any) -> list[str]:
        return [f"{val.accuracy:.2%}", f"{test.accuracy:.2%}"] + [
            f"{value:.4f}" for value in (test.nll, test.ece, test.brier)
        ]

    for member in result.members:
        row = scores(member.val, member.test)
        table.add_row(f"trial {member.trial}", member.family, f"{member.weight:.2f}", *row)
    table.add_row("ensemble", "", "1.00", *scores(result.val, result.test), style="bold")
    console.print(table)
    gain = result.gain
    console.print(
        f"\nGain over the best single member (trial {result.members[0].trial}, by validation): "
        f"{100 * gain.gain:+.2f} points of test accuracy, "
        f"95 % interval {100 * gain.low:+.2f} to {100 * gain.high:+.2f}.\n"
    )
    if len(result.classes) <= 12:
        console.print(_confusion_table(result.classes, result.confusion.tolist()))
    console.print(
        f"\nEnsemble: {short_path(result.path)}  (confusion.png, metrics.json)", soft_wrap=True
    )


def _confusion_table(classes: tuple[str, ...], rows: list[list[int]]) -> Table:
    table = Table(title="true \\ predicted, test images", title_justify="left", box=None)
    table.add_column("", style="bold", no_wrap=True)
    for label in classes:
        table.add_column(escape(label[:4]), justify="right", no_wrap=True)
    for number, (label, row) in enumerate(zip(classes, rows, strict=True)):
        cells = [str(count) if count else "·" for count in row]
        cells[number] = f"[bold]{cells[number]}[/bold]"
        table.add_row(escape(label[:12]), *cells)
    return table


def leaderboard_rows(run: "Run") -> list[dict[str, Any]]:
    """Give the leaderboard, best trial first."""
    return [trial.as_row() for trial in run.ranked()]


def print_leaderboard(run: "Run", most: int) -> None:
    """Print the ``most`` best trials of a run."""
    rows = leaderboard_rows(run)
    columns = ["trial", "model", "state", "accuracy", "epochs", "reason"]
    if _console().width >= WIDE:
        columns[5:5] = ["loss", "seconds", "parameters"]
    short = [{key: figure(row[key]) for key in columns} for row in rows[:most]]
    hidden = f", the best {most}" if len(rows) > most else ""
    print_table(short, f"{run.record.name}: {len(rows)} trials{hidden}")
    print(f"\nRun: {short_path(run.path)}  (leaderboard.csv, trials/)")


def figure(value: Any) -> str:
    """Give a table's cell for a number, a word, or nothing."""
    if isinstance(value, float):
        return f"{value:.4f}" if abs(value) < 10 else f"{value:.1f}"
    return "-" if value is None else str(value)


def print_table(rows: Sequence[Mapping[str, Any]], title: str) -> None:
    """Print rows of the same keys under a title; as wide as it needs to be off a terminal."""
    console = _console()
    table = Table(title=escape(title) or None, title_justify="left", box=None, padding=(0, 2, 0, 0))
    for heading in rows[0] if rows else ():
        cells = [str(row[heading]) for row in rows]
        is_text = not any(cell.replace(".", "").isdigit() for cell in cells)
        # Where a terminal is narrow, what is long gives way, not what is short.
        is_long = heading in ("reason", "values", "data")
        table.add_column(
            heading,
            justify="left" if is_text else "right",
            no_wrap=heading != "values",
            overflow="ellipsis",
            min_width=None if is_long else max(map(len, (heading, *cells))),
        )
    for row in rows:
        table.add_row(*(escape(str(value)) for value in row.values()))
    console.print(table)


def _console() -> Console:
    """Give a console for stdout; off a terminal nothing has to fit a width."""
    return Console(highlight=False, width=None if sys.stdout.isatty() else 200)


def print_json(document: Any) -> None:
    """Print the one document of ``--json``."""
    print(json.dumps(document, indent=2, allow_nan=False))


def short_path(path: Path) -> str:
    """Give a path as the user would type it here."""
    return str(path.relative_to(Path.cwd())) if path.is_relative_to(Path.cwd()) else str(path)
