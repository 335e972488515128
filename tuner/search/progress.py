"""What a running search shows: one live table on a terminal, plain lines elsewhere."""

import time
from collections import deque
from types import TracebackType
from typing import Self

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.table import Table
from rich.text import Text

from tuner.search.cluster import Slots
from tuner.search.conductor import Conductor, LiveTrial
from tuner.trial import best_row

BARS = "▁▂▃▄▅▆▇█"
MAX_ROWS = 16
"""Running trials shown; more are counted in a last line."""
RECENT = 4
"""Ended trials shown below them."""


class Progress:
    """Shows a search from ``with`` to the end of its block, on ``console``."""

    def __init__(self, conductor: Conductor, slots: Slots, console: Console) -> None:
        self.conductor = conductor
        self.slots = slots
        self.console = console
        self.started = time.monotonic()
        # What a resumed search had done before says nothing about its present speed.
        self._epochs_before = conductor.num_epochs
        self._ended_before = sum(conductor.ended.values())
        self._endings: deque[str] = deque(maxlen=RECENT)
        self._is_live = console.is_terminal and not console.is_dumb_terminal
        self._live = Live(console=console, get_renderable=self._table, refresh_per_second=4)

    def __enter__(self) -> Self:
        if self._is_live:
            self._live.start()
        else:
            self.console.print(self._summary())
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._is_live:
            self._live.stop()

    def trial_ended(self, trial: LiveTrial) -> None:
        """Say how a trial ended: for a while below the table, for good where there is none."""
        best = best_row(trial.history)
        parts = [
            f"trial {trial.number} {trial.status.state}",
            f"{len(trial.history)} epochs",
            f"accuracy {best.val_accuracy:.4f}" if best else "no accuracy",
            trial.status.reason,
        ]
        line = " · ".join(part for part in parts if part)
        if self._is_live:
            self._endings.append(line)
        else:
            self.console.print(line, soft_wrap=True, markup=False)

    def _table(self) -> RenderableType:
        rows = sorted(list(self.conductor.live.values()), key=lambda trial: trial.number)
        table = Table(box=None, padding=(0, 2, 0, 0), header_style="dim")
        for heading in ("trial", "model"):
            table.add_column(heading, no_wrap=True)
        for heading in ("epoch", "accuracy"):
            table.add_column(heading, justify="right", no_wrap=True)
        table.add_column("curve", no_wrap=True, overflow="ellipsis")
        for trial in rows[:MAX_ROWS]:
            best = best_row(trial.history)
            table.add_row(
                str(trial.number),
                trial.config.model.family,
                f"{len(trial.history)}/{trial.config.epochs}",
                f"{best.val_accuracy:.4f}" if best else "-",
                sparkline([row.val_accuracy for row in trial.history]),
            )
        hidden = len(rows) - MAX_ROWS
        more = [Text(f"and {hidden} more running", style="dim")] if hidden > 0 else []
        endings = [
            Text(line, style="dim", no_wrap=True, overflow="ellipsis") for line in self._endings
        ]
        return Group(self._summary(), *([table] if rows else []), *more, *endings)

    def _summary(self) -> Text:
        conductor = self.conductor
        counts = {"running": len(conductor.live)} | conductor.ended
        text = Text(f"{sum(conductor.ended.values())}/{conductor.budget.trials} trials", "bold")
        for state, number in counts.items():
            text.append(f" · {number} {state.replace('_', ' ')}", style="not bold")
        text.append("\n" if self._is_live else " · ")
        if conductor.best:
            number, row = conductor.best
            text.append(f"best {row.val_accuracy:.4f} (trial {number})", style="green")
            text.append(" · ")
        seconds = time.monotonic() - self.started
        rate = (conductor.num_epochs - self._epochs_before) / seconds
        text.append(f"{rate:.2g} epochs/s · ETA {self._eta(seconds)}", style="not bold")
        if conductor.draining:
            text.append(
                "\nEnding: running trials finish their epoch. Ctrl-C aborts.", style="yellow"
            )
        return text

    def _eta(self, seconds: float) -> str:
        """Guess the time left: what is to come is taken to be like what has ended."""
        num_ended = sum(self.conductor.ended.values())
        if num_ended <= self._ended_before:
            return "-"
        left = self.conductor.budget.trials - num_ended
        remaining = int(seconds / (num_ended - self._ended_before) * left)
        return f"{remaining // 3600}:{remaining % 3600 // 60:02d}:{remaining % 60:02d}"


def sparkline(values: list[float]) -> str:
    """Draw a curve with one character a value, from its lowest to its highest."""
    finite = [value for value in values if value == value]
    if not finite:
        return ""
    low, high = min(finite), max(finite)
    scale = (len(BARS) - 1) / (high - low) if high > low else 0
    return "".join(
        BARS[round((value - low) * scale)] if value == value else " " for value in values
    )
