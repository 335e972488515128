"""Draw the table of a search from its state, live or read from its folder."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from rich.console import Group, RenderableType
from rich.markup import escape
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from tuner.config import Metric
from tuner.metrics.goal import name_of
from tuner.run.run import clock
from tuner.run.rung_worth import rung_worths
from tuner.run.state import RungCount, SearchState, TrialProgress
from tuner.run.trial import EpochMetrics, best_row
from tuner.schema import plural
from tuner.space.searched import Column

BARS = "▁▂▃▄▅▆▇█"
WIDE = 110
"""Terminal width from which rungs are beside the running trials, not below."""
CURVE_WIDTH = 40
"""Maximum characters of a curve."""
FIXED_LINES = 12
"""Lines reserved for everything but running trials on a low terminal."""
MOST_RUNGS = 8
RUNGS_WIDTH = 46
"""Width of the rungs beside the running trials."""
LEAST_CURVE = 10
"""Minimum characters that searched parameters leave for a running trial's curve."""
MOST_NUMBER = 8
"""Maximum characters of a number with three digits, such as 0.000123."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Clocks:
    """Times of a search, in seconds."""

    elapsed: float
    """Time spent searching, over all resumes."""
    left: float | None
    """Estimated time until all trials have ended; ``None`` if unknown."""
    budget: float | None = None
    """Time until the budget is spent; ``None`` without a budget."""

    @property
    def remaining(self) -> float | None:
        """Time until the search ends because it has no more trials or no more budget."""
        if self.left is None or self.budget is None:
            return self.left
        return min(self.left, self.budget)


def draw(
    state: SearchState,
    slots: int,
    clocks: Clocks,
    note: str,
    width: int,
    height: int,
    *,
    columns: Sequence[Column] = (),
) -> RenderableType:
    """Draw the current state of a search.

    Args:
        state: State of the search.
        slots: Number of trials that train at once.
        clocks: Times of the search.
        note: A line about anything else; may be empty.
        width: Width of the terminal, in columns.
        height: Height of the terminal, in lines.
        columns: The searched parameters, the most important first; those that fit are shown.
    """
    running = sorted(list(state.running.values()), key=lambda trial: trial.number)
    rungs = state.rungs()[:MOST_RUNGS]
    worths = rung_worths(state.search, [t.history for t in list(state.trials.values())])[
        :MOST_RUNGS
    ]
    is_wide = width >= WIDE
    fixed = FIXED_LINES + len(worths) + (0 if is_wide else len(rungs) + 1)
    rows = max(3, height - fixed)
    parts: list[RenderableType] = [
        _bar(state, clocks, width),
        _line(" · ".join(_times(state, clocks))),
        _states(state, slots),
    ]
    # Read once: another thread may reset it.
    if best := state.best:
        parts.append(_best(state, best, width))
    tables: list[RenderableType] = []
    if running:
        room = width if not is_wide else width - RUNGS_WIDTH
        tables.append(_running(running[:rows], running[rows:], state.search.metric, room, columns))
    if rungs and state.num_epochs:
        tables.append(_rungs(rungs, is_promoting=state.search.scheduler == "asha"))
    if is_wide and len(tables) > 1:
        beside = Table.grid(padding=(0, 4, 0, 0))
        beside.add_row(*tables)
        parts += [Text(), beside]
    else:
        for table in tables:
            parts += [Text(), table]
    parts += [Text(str(worth), style="dim", no_wrap=True) for worth in worths]
    if endings := list(state.endings):
        parts.append(Text())
        parts += [
            Text(str(ending), style="dim", no_wrap=True, overflow="ellipsis") for ending in endings
        ]
    if note:
        parts.append(Text(note, style="yellow"))
    return Group(*parts)


def _line(text: str) -> Text:
    return Text(text, no_wrap=True, overflow="ellipsis")


def summary(state: SearchState, slots: int, clocks: Clocks | None) -> str:
    """Describe the current state of a search in one line.

    Args:
        state: State of the search.
        slots: Number of trials that train at once.
        clocks: Times of the search; ``None`` before it has begun.
    """
    parts = [f"{state.num_done}/{state.search.trials} trials", _counts(state, slots)]
    if state.best:
        parts.append(_best_text(state.best, state.search.metric))
    if clocks:
        parts += _times(state, clocks)
        if clocks.remaining is not None:
            parts.append(f"ETA {clock(clocks.remaining)}")
    return " · ".join(parts)


def _bar(state: SearchState, clocks: Clocks, width: int) -> RenderableType:
    grid = Table.grid(padding=(0, 2, 0, 0))
    eta = "-" if clocks.remaining is None else clock(clocks.remaining)
    grid.add_row(
        Text(f"{state.num_done}/{state.search.trials} trials", "bold"),
        ProgressBar(
            total=max(1, state.search.trials),
            completed=state.num_done,
            width=min(40, max(8, width - 50)),
        ),
        Text(f"ETA {eta}"),
    )
    return grid


def _times(state: SearchState, clocks: Clocks) -> list[str]:
    parts = [plural(state.num_epochs, "epoch")]
    if (seconds := state.epoch_seconds) is not None:
        parts[0] += f" of {f'{seconds:.0f}' if seconds >= 100 else f'{seconds:.2g}'} s"
    parts.append(f"elapsed {clock(clocks.elapsed)}")
    if clocks.budget is not None:
        parts.append(f"budget left {clock(clocks.budget)}")
    return parts


def _states(state: SearchState, slots: int) -> Text:
    text = _line(_counts(state, slots))
    if state.errors:
        kinds = ", ".join(f"{count} {kind}" for kind, count in state.errors.most_common())
        text.append(f"\nerrors: {kinds}", style="red")
    return text


def _counts(state: SearchState, slots: int) -> str:
    busy = f"{len(state.running)} running"
    if slots:
        num_placed = len(state.placed)
        # More than planned if some have smaller shares than the default, or nodes have joined.
        slots = max(slots, num_placed)
        busy = f"{num_placed} of {plural(slots, 'slot')} busy"
    ended = [f"{count} {name.replace('_', ' ')}" for name, count in state.ended.items()]
    return " · ".join([busy, *ended])


def _best(state: SearchState, best: tuple[int, EpochMetrics], width: int) -> Text:
    text = Text(_best_text(best, state.search.metric), style="green", no_wrap=True)
    room = min(CURVE_WIDTH, width - len(text) - 4)
    curve = list(state.best_curve)
    if room > 8 and len(curve) > 1:
        values = stretched(curve, state.num_epochs, room)
        text.append(f"  {sparkline(values)}", style="not bold")
    return text


def _best_text(best: tuple[int, EpochMetrics], metric: Metric) -> str:
    number, row = best
    what = "best" if metric == "accuracy" else f"best {name_of(metric)}"
    return f"{what} {row.value(metric):.4f} (trial {number})"


def _running(
    rows: list[TrialProgress],
    hidden: list[TrialProgress],
    metric: Metric,
    width: int,
    columns: Sequence[Column],
) -> RenderableType:
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="dim")
    families = [trial.config.model.family for trial in rows if trial.config]
    room = width - len("trial  ") - max(map(len, ("model", *families))) - 2
    room -= len("epoch   ") + len(f"{metric}  ") + LEAST_CURVE
    shown = []
    for column in columns:
        # Fixed widths keep the table still: no number is longer than this.
        if (room := room - max(len(column.heading), MOST_NUMBER) - 2) < 0:
            break
        shown.append(column)
    for heading in ("trial", "model"):
        table.add_column(heading, no_wrap=True)
    for heading in ("epoch", metric):
        table.add_column(heading, justify="right", no_wrap=True)
    for column in shown:
        size = max(len(column.heading), MOST_NUMBER)
        table.add_column(column.heading, width=size, no_wrap=True, overflow="ellipsis")
    table.add_column("curve", no_wrap=True, overflow="ellipsis")
    most_points = max(LEAST_CURVE, min(CURVE_WIDTH, room + LEAST_CURVE))
    for trial in rows:
        history = list(trial.history)
        best = best_row(history, metric)
        values = [math.nan if (v := row.value(metric)) is None else v for row in history]
        assert trial.config is not None, "it runs"
        config = trial.config.to_dict() if shown else {}
        table.add_row(
            str(trial.number),
            trial.config.model.family,
            f"{len(history)}/{trial.config.epochs}",
            f"{best.value(metric):.4f}" if best else "-",
            *(escape(column.text(config)) for column in shown),
            sparkline(values[-most_points:]),
        )
    if not hidden:
        return table
    return Group(table, Text(f"and {len(hidden)} more running", style="dim"))


def _rungs(rungs: list[RungCount], *, is_promoting: bool) -> Table:
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="dim")
    for heading in ("rung", "arrived", "passed", *["paused"] * is_promoting, "stopped"):
        table.add_column(heading, justify="right", no_wrap=True)
    for rung in rungs:
        paused = [rung.paused] * is_promoting
        counts = (rung.epoch, rung.arrived, rung.passed, *paused, rung.stopped)
        table.add_row(*map(str, counts))
    return table


def stretched(curve: Sequence[tuple[float, float]], end: float, width: int) -> list[float]:
    """Sample a step curve at ``width`` positions, evenly from its first step to ``end``.

    Args:
        curve: Position and value of each step, sorted by position.
        end: The last position.
        width: Number of values to return.
    """
    values, index = [], 0
    start = curve[0][0]
    for column in range(width):
        place = start + (end - start) * column / max(1, width - 1)
        while index + 1 < len(curve) and curve[index + 1][0] <= place:
            index += 1
        values.append(curve[index][1])
    return values


def sparkline(values: Sequence[float], scale: tuple[float, float] | None = None) -> str:
    """Draw a curve with one character per value, from minimum to maximum or on ``scale``."""
    finite = [value for value in values if math.isfinite(value)]
    if not finite:
        return ""
    low, high = scale or (min(finite), max(finite))
    steps = (len(BARS) - 1) / (high - low) if high > low else 0
    return "".join(
        BARS[round((value - low) * steps)] if math.isfinite(value) else " " for value in values
    )
