"""Tables and figures on the terminal."""

import json
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from rich.markup import escape
from rich.table import Table

from tuner.console import Console, visible
from tuner.metrics.goal import name_of
from tuner.run.resuming import short_path

if TYPE_CHECKING:
    from tuner.metrics.significance import Interval
    from tuner.run.run import Run

CURVE_WIDTH = 16
"""Characters of the longest curve."""
TRAINED_ON_VALIDATION = """\
The validation images were trained on (refit --all-data): figures on them mean
nothing. Trials stand by number, the best configuration of the search first."""
WIDE = 110
"""Columns of a terminal from which all of a leaderboard or a comparison is shown."""


def leaderboard_document(run: "Run") -> dict[str, Any]:
    """Return the leaderboard for ``--json``, best trial first."""
    return {
        "run": str(run.path),
        "metric": run.metric,
        "is_val_seen": run.record.data.all_data,
        "trials": [trial.as_row() for trial in run.ranked()],
    }


def print_leaderboard(run: "Run", most: int) -> None:
    """Print the ``most`` best trials of a run."""
    trials = run.ranked()
    column = "loss" if run.metric == "nll" else run.metric
    columns = ["trial", "model", "state", column, "epochs", "reason"]
    if make_console().width >= WIDE:
        wide = ("accuracy", "loss", "seconds", "parameters")
        columns[5:5] = [name for name in wide if name != column]
    rows = [trial.as_row() for trial in trials[:most]]
    short = [{key: figure(row[key]) for key in columns} for row in rows]
    which = "first" if run.record.data.all_data else "best"
    hidden = f", the {which} {most}" if len(trials) > most else ""
    is_usual = run.metric == run.record.search.metric == "accuracy"
    by = "" if is_usual else f", by {name_of(run.metric)}"
    print_table(short, f"{run.record.name}: {len(trials)} trials{hidden}{by}")
    if run.record.data.all_data:
        print(f"\n{TRAINED_ON_VALIDATION}")
    print(f"\nRun: {short_path(run.path)}  (leaderboard.csv, trials/)")


def print_comparison(runs: Sequence[Mapping[str, Any]]) -> None:
    """Print runs side by side, a row each, with the curves of their best so far.

    The curves share their scales: the same column is the same budget, the same height the same
    accuracy.
    """
    from tuner.monitor.live_table import sparkline, stretched
    from tuner.run.run import clock

    hours = "GPU-hours" if any(run["gpu_hours"] for run in runs) else "hours"
    key = "gpu_hours" if hours == "GPU-hours" else "training_hours"
    bests = [point[2] for run in runs for point in run["best_so_far"]]
    scale = (min(bests), max(bests)) if bests else None

    def curve(run: Mapping[str, Any], place: int, end: float) -> str:
        steps = [(point[place], point[2]) for point in run["best_so_far"]]
        if not steps:
            return "-"
        last = steps[-1][0]
        width = max(1, round(CURVE_WIDTH * last / end)) if end else 1
        return sparkline(stretched(steps, last, width), scale)

    most_epochs = max(run["epochs"] for run in runs)
    most_hours = max(run[key] for run in runs)
    rows = [
        {
            "run": run["run"],
            "best": figure(run["best"]),
            "model": figure(run["model"]),
            "trials": str(run["trials"]),
            "epochs": str(run["epochs"]),
            hours: f"{run[key]:.3g}" if run[key] else "-",
            "time": clock(run["seconds"]),
            "over epochs": curve(run, 0, most_epochs),
            # A run that held no GPU has no place on a scale of GPU-hours.
            f"over {hours}": curve(run, 1, most_hours) if run[key] else "-",
        }
        for run in runs
    ]
    if make_console().width < WIDE:
        for row in rows:
            del row[f"over {hours}"]
    metric = runs[0]["metric"]
    print_table(rows, "" if metric == "accuracy" else f"By {name_of(metric)}")


def figure(value: Any) -> str:
    """Return a table's cell for a number, a word, or nothing."""
    if isinstance(value, float):
        return f"{value:.4f}" if abs(value) < 10 else f"{value:.1f}"
    return "-" if value is None else str(value)


def print_table(rows: Sequence[Mapping[str, Any]], title: str) -> None:
    """Print rows of the same keys under a title; as wide as it needs to be off a terminal."""
    console = make_console()
    table = Table(title=escape(title) or None, title_justify="left", box=None, padding=(0, 2, 0, 0))
    for heading in rows[0] if rows else ():
        cells = [_cell(row[heading]) for row in rows]
        is_text = not any(cell.replace(".", "").isdigit() for cell in cells)
        # Where a terminal is narrow, what is long gives way, not what is short.
        is_long = heading in ("reason", "values", "data", "over epochs")
        table.add_column(
            heading,
            justify="left" if is_text else "right",
            no_wrap=heading != "values",
            overflow="ellipsis",
            min_width=None if is_long else max(map(len, (heading, *cells))),
        )
    for row in rows:
        table.add_row(*(escape(_cell(value)) for value in row.values()))
    console.print(table)


def make_table(title: str, headings: Iterable[str], num_text: int) -> Table:
    """Return a table whose first ``num_text`` columns are words."""
    table = Table(title=escape(title) or None, title_justify="left", box=None, padding=(0, 1, 0, 0))
    for number, heading in enumerate(headings):
        table.add_column(heading, justify="left" if number < num_text else "right", no_wrap=True)
    return table


def interval_text(interval: "Interval") -> str:
    """Return a gain with its interval, in percentage points."""
    low, high = 100 * interval.low, 100 * interval.high
    return f"{100 * interval.gain:+.2f} [{low:+.2f}, {high:+.2f}]"


def _cell(value: Any) -> str:
    """Return a value on one line."""
    return visible(str(value), keep="")


def make_console() -> Console:
    """Return a console for stdout; off a terminal nothing has to fit a width."""
    return Console(highlight=False, width=None if sys.stdout.isatty() else 200)


@contextmanager
def progress_bar(
    console: Console, count: int | None, *, is_free: bool
) -> Iterator[Callable[[int], None]]:
    """Yield what shows how many images are done, on a terminal, gone when all are.

    Args:
        console: For stderr.
        count: Of all images; ``None`` where nobody knows.
        is_free: Whether nothing else is written to the terminal in the meantime.
    """
    from rich import progress

    columns = (
        progress.BarColumn(),
        progress.MofNCompleteColumn(),
        progress.TextColumn("images, left:"),
        progress.TimeRemainingColumn(),
    )
    is_live = console.is_terminal and not console.is_dumb_terminal and not console.no_color
    with progress.Progress(
        *columns, console=console, transient=True, disable=not (is_live and is_free)
    ) as bar:
        task = bar.add_task("", total=count)

        def show(done: int) -> None:
            bar.update(task, completed=done)

        yield show


def print_json(document: Any) -> None:
    """Print the one document of ``--json``."""
    print(json.dumps(document, indent=2, allow_nan=False))
