"""What a running search shows: one live table on a terminal, plain lines elsewhere."""

from collections.abc import Callable
from types import TracebackType
from typing import Self

from rich.console import Console, RenderableType

from tuner.monitor.live_table import draw, summary
from tuner.monitor.terminal import LiveTable
from tuner.run.events import Event, TrialEnded
from tuner.tuning.tuner import Tuner


class Progress:
    """Shows a search from ``with`` to the end of its block.

    Args:
        tuner: Decides what its trials do.
        console: Where it is shown.
        slots: Returns how many trials fit at once.
    """

    def __init__(self, tuner: Tuner, console: Console, slots: Callable[[], int]) -> None:
        self.tuner = tuner
        self.console = console
        self._slots = slots
        self._is_live = console.is_terminal and not console.is_dumb_terminal
        self._live = LiveTable(self._table, console)

    def __enter__(self) -> Self:
        self.tuner.observers.append(self._on)
        if self._is_live:
            self._live.start()
        else:
            line = summary(self.tuner.state, self._slots(), None)
            self.console.print(line, soft_wrap=True, markup=False)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._is_live:
            self._live.stop()
        self.tuner.observers.remove(self._on)

    def _on(self, event: Event) -> None:
        """Say in a line how a trial ended, where there is no table."""
        if isinstance(event, TrialEnded) and not self._is_live:
            line = str(self.tuner.state.endings[-1])
            self.console.print(line, soft_wrap=True, markup=False)

    def _table(self, width: int, height: int) -> RenderableType:
        slots = self._slots()
        note = ""
        if self.tuner.draining:
            when = "" if self.tuner.is_over else ": running trials finish their epoch"
            note = f"Ending{when}. Ctrl-C aborts."
        left = self.tuner.state.seconds_left(slots)
        if left is not None:
            left = min(left, self.tuner.budget_seconds)
        return draw(self.tuner.state, slots, left, note, width, height)
