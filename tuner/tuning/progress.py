"""What a running search shows: one live table on a terminal, plain lines elsewhere."""

from types import TracebackType
from typing import Self

from rich.console import Console, RenderableType

from tuner.monitor.live_table import draw, summary
from tuner.monitor.terminal import LiveTable
from tuner.run.events import Event, TrialEnded
from tuner.tuning.tuner import Conductor


class Progress:
    """Shows a search from ``with`` to the end of its block, on ``console``."""

    def __init__(self, conductor: Conductor, console: Console) -> None:
        self.conductor = conductor
        self.console = console
        self._is_live = console.is_terminal and not console.is_dumb_terminal
        self._live = LiveTable(self._table, console)

    def __enter__(self) -> Self:
        self.conductor.observers.append(self._on)
        if self._is_live:
            self._live.start()
        else:
            line = summary(self.conductor.state, self.conductor.slots.count, None)
            self.console.print(line, markup=False)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._is_live:
            self._live.stop()
        self.conductor.observers.remove(self._on)

    def _on(self, event: Event) -> None:
        """Say in a line how a trial ended, where there is no table."""
        if isinstance(event, TrialEnded) and not self._is_live:
            line = str(self.conductor.state.endings[-1])
            self.console.print(line, soft_wrap=True, markup=False)

    def _table(self, width: int, height: int) -> RenderableType:
        slots = self.conductor.slots.count
        note = ""
        if self.conductor.draining:
            when = "" if self.conductor.is_over else ": running trials finish their epoch"
            note = f"Ending{when}. Ctrl-C aborts."
        left = self.conductor.state.seconds_left(slots)
        if left is not None:
            left = min(left, self.conductor.budget_seconds)
        return draw(self.conductor.state, slots, left, note, width, height)
