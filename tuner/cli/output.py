"""Tables and figures on the terminal."""

import json
import math
import sys
import textwrap
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO, cast

from rich.markup import escape
from rich.table import Table
from rich.text import Text

from tuner.config import Metric
from tuner.console import Console, visible
from tuner.errors import UsageError
from tuner.metrics.goal import name_of, spelt
from tuner.monitor.steps import Pulse, step
from tuner.monitor.terminal import is_live, tell
from tuner.storage.paths import AnyPath

if TYPE_CHECKING:
    from io import TextIOWrapper

    from tuner.deploy.predictor import Ensemble
    from tuner.metrics.figures import Interval
    from tuner.metrics.predict import Scores
    from tuner.report.ensembles import Scores as ReadScores
    from tuner.run.run import Run
    from tuner.run.trial import TrialRecord

CURVE_WIDTH = 16
"""Width of the longest curve, in characters."""
TRAINED_ON_VALIDATION = """\
The validation images were trained on (refit --all-data): figures on them mean
nothing. Trials are listed by number, the best configuration of the search first."""
MOST_COLUMNS = 80
"""Maximum width of sentences on a wide terminal, in columns."""
LONG = ("reason", "values", "data", "over epochs")
"""Columns that are shortened on a narrow terminal; a table has one of them."""
WIDE = 110
"""Width of a terminal from which tables are shown in full, in columns."""


def leaderboard_document(run: "Run", ranked: "Sequence[TrialRecord]") -> dict[str, Any]:
    """Return the leaderboard for ``--json``, in the order of ``ranked``, the best trial first."""
    return {
        "run": str(run.path),
        "metric": run.metric,
        "is_val_seen": run.record.data.all_data,
        "val_images": run.record.num_val,
        "folds": run.record.data.folds,
        "trials": [trial.as_row() for trial in ranked],
    }


def print_comparison(runs: Sequence[Mapping[str, Any]]) -> None:
    """Print runs side by side, one row per run, with curves of their best value so far.

    The curves share their scales: the same column is the same budget, the same height the same
    value of the metric.
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
    digits = 1 if most_hours >= 100 else 2 if most_hours >= 1 else 4
    rows = [
        {
            "run": run["run"],
            "best": figure(run["best"]),
            "model": figure(run["model"]),
            "trials": str(run["trials"]),
            "epochs": str(run["epochs"]),
            hours: f"{run[key]:.{digits}f}" if run[key] else "-",
            "time": clock(run["seconds"]),
            "over epochs": curve(run, 0, most_epochs),
            # A run that held no GPU cannot be placed on a scale of GPU-hours.
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
    """Return a table cell for a number, a text, or nothing."""
    if isinstance(value, float):
        if 0 < abs(value) < 0.001:
            return f"{value:.3g}"
        return f"{value:.4f}" if abs(value) < 10 else f"{value:.1f}"
    return "-" if value is None else str(value)


def print_table(rows: Sequence[Mapping[str, Any]], title: str, *, is_whole: bool = False) -> None:
    """Print rows with the same keys under a title; except on a terminal, as wide as necessary.

    Args:
        rows: Rows with the same keys; may be empty.
        title: May be longer than the table is wide.
        is_whole: Whether to cut nothing to the width of a terminal, which then wraps lines.
    """
    console = make_console()
    table = Table(title=escape(title) or None, box=None, padding=(0, 2, 0, 0))
    widths = (
        {h: max(len(h), *(len(_cell(row[h])) for row in rows)) for h in rows[0]} if rows else {}
    )
    # The width that the other columns leave, with two blanks after each.
    room = console.width - sum(2 + (0 if h in LONG else width) for h, width in widths.items())
    for heading in widths:
        cells = [_cell(row[heading]) for row in rows]
        is_text = not any(cell.replace(".", "").isdigit() for cell in cells)
        # On a narrow terminal, long cells are shortened, not short ones.
        is_long = heading in LONG and not is_whole
        table.add_column(
            heading,
            justify="left" if is_text else "right",
            no_wrap=heading != "values" or is_whole,
            overflow="ellipsis",
            min_width=None if is_long or room < 0 else widths[heading],
            max_width=max(len(heading), room) if is_long and console.is_terminal else None,
        )
    for row in rows:
        table.add_row(*(escape(_cell(value)) for value in row.values()))
    print_stripped(console, table, is_whole=is_whole)


def print_stripped(console: Console, table: Table, *, is_whole: bool = False) -> None:
    """Print a table without blanks at the ends of its lines.

    Args:
        console: Console to print to.
        table: The table; its title may be longer than it is wide.
        is_whole: Whether to make it as wide as necessary.
    """
    if isinstance(table.title, str):
        console.print(table.title, style="italic", soft_wrap=True)
        table.title = None
    if not table.columns:
        return
    options = console.options
    if is_whole or not console.is_terminal:
        needed = console.measure(table, options=options.update(width=10**5)).maximum
        options = options.update(width=needed)
    for line in console.render_lines(table, options, pad=False):
        text = Text.assemble(*((segment.text, segment.style or "") for segment in line))
        text.rstrip()
        console.print(text, soft_wrap=True)


def make_table(title: str, headings: Iterable[str], num_text: int) -> Table:
    """Return a table whose first ``num_text`` columns hold text."""
    table = Table(title=escape(title) or None, title_justify="left", box=None, padding=(0, 1, 0, 0))
    for number, heading in enumerate(headings):
        table.add_column(heading, justify="left" if number < num_text else "right", no_wrap=True)
    return table


def print_sentence(console: Console, text: str) -> None:
    """Print text in lines that break between words; indented lines are not wrapped."""
    width = min(console.width, MOST_COLUMNS)
    for line in text.split("\n"):
        is_command = line.startswith(" ")
        told = line if is_command else textwrap.fill(line, width, break_on_hyphens=False)
        tell(console, told)


def interval_text(interval: "Interval") -> str:
    """Return a gain with its interval, in percentage points."""
    low, high = 100 * interval.low, 100 * interval.high
    return f"{100 * interval.gain:+.2f} [{low:+.2f}, {high:+.2f}]"


def spelt_scores(scores: "Scores | ReadScores | None", metric: Metric) -> str:
    """Return scores by a metric as text; a dash if they do not include it."""
    value = scores.value(metric) if scores else None
    return "-" if value is None else spelt(value, metric)


def _cell(value: Any) -> str:
    """Return a value as text on one line."""
    return visible(str(value), keep="")


def make_console() -> Console:
    """Return a console for stdout; except on a terminal, nothing has to fit a width."""
    return Console(highlight=False, width=None if sys.stdout.isatty() else 200)


def loading_on_terminal(console: Console, what: str) -> AbstractContextManager[object]:
    """Show on a terminal that the block loads something, which may take a second or more."""
    return step(console, f"Loading {what}") if is_live(console) else nullcontext()


def load_ensemble(
    console: Console, storage: AnyPath, name: str | None, device: str = "cpu", *, trust_code: bool
) -> "Ensemble":
    """Load the ensemble that a user names, for computing on a device.

    Args:
        console: Console for stderr.
        storage: Folder of the runs.
        name: As ``find_ensemble`` takes it.
        device: As ``find_device`` takes it.
        trust_code: Whether to run code that came with it, even if the code is not known here.

    Raises:
        TunerError: As ``find_ensemble``, ``find_device`` and ``read_ensemble``.
    """
    from tuner.run.ensembles import find_ensemble

    folder = find_ensemble(storage, name)
    with loading_on_terminal(console, "PyTorch"):
        from tuner.deploy.predictor import read_ensemble
        from tuner.training.device import find_device

        return read_ensemble(folder, find_device(device), trust_code=trust_code)


@contextmanager
def progress_bar(
    console: Console, count: int | None, *, is_free: bool
) -> Iterator[Callable[[int], None]]:
    """Yield a function that shows how many images are done: a bar on a terminal, else some lines.

    Args:
        console: Console for stderr.
        count: Number of all images; ``None`` if it is unknown.
        is_free: Whether nothing else is written to the terminal in the meantime.
    """
    from rich import progress

    columns = (
        progress.BarColumn(),
        progress.MofNCompleteColumn(),
        progress.TextColumn("images, left:"),
        progress.TimeRemainingColumn(),
    )
    if not is_live(console):
        seen = 0

        def count_up(done: int) -> None:
            nonlocal seen
            seen = done

        of = "" if count is None else f" of {count:,}"
        with Pulse(console, lambda: f"{seen:,}{of} images"):
            yield count_up
        return
    with progress.Progress(*columns, console=console, transient=True, disable=not is_free) as bar:
        task = bar.add_task("", total=count)

        def show(done: int) -> None:
            bar.update(task, completed=done)

        yield show


def data_output() -> TextIO:
    """Return stdout for data: except on a terminal, it is written unchanged, in UTF-8.

    File names that are not valid text are written unchanged, as in ``output_file``.
    """
    if sys.stdout.isatty():
        return sys.stdout
    # The console knows the stream beneath those that escape characters.
    stream = cast("TextIOWrapper", make_console().file)
    stream.reconfigure(encoding="utf-8", errors="surrogateescape")
    return stream


@contextmanager
def output_file(path: Path, option: str) -> Iterator[TextIO]:
    """Yield a file to write to, which in the end exists whole or not at all.

    Anything but a plain file, such as /dev/stdout, is written to directly. File names that are not
    valid text are written unchanged.

    Args:
        path: The file.
        option: The option that names it, for messages.

    Raises:
        UsageError: If it cannot be written.
    """
    from tuner.storage.files import replacing

    with ExitStack() as stack:
        try:
            is_special = path.is_symlink() or (path.exists() and not path.is_file())
            target = path if is_special else stack.enter_context(replacing(path))
            file = target.open("w", encoding="utf-8", errors="surrogateescape")
        except OSError as error:
            raise UsageError(f"{option} {path}: cannot be written: {error.strerror}") from error
        yield stack.enter_context(file)


def finite(value: Any) -> Any:
    """Return a value for JSON, which has no NaN or infinity: these become ``None``."""
    return None if isinstance(value, float) and not math.isfinite(value) else value


def print_json(document: Any) -> None:
    """Print the single document of ``--json``."""
    # json escapes every control character except this one; stdout would, but not as JSON does.
    print(json.dumps(document, indent=2, allow_nan=False).replace("\x7f", r"\u007f"))
