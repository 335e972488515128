"""What a running search shows: one live table on a terminal, plain lines elsewhere."""

from collections.abc import Sequence
from types import TracebackType
from typing import Self

from rich.console import Console, RenderableType

from tuner.config import TrialConfig
from tuner.monitor.live_table import draw, summary
from tuner.monitor.terminal import LiveTable
from tuner.run.state import Tally
from tuner.run.trial import EpochMetrics, TrialStatus
from tuner.tuning.tuner import Conductor


class Progress:
    """Shows a search from ``with`` to the end of its block, on ``console``."""

    def __init__(self, conductor: Conductor, console: Console) -> None:
        self.conductor = conductor
        self.console = console
        self.tally = Tally(conductor.run.record.search)
        self._is_live = console.is_terminal and not console.is_dumb_terminal
        self._live = LiveTable(self._table, console)

    def __enter__(self) -> Self:
        self.tally.add(self.conductor.run.trials())
        self.conductor.observers.append(self)
        if self._is_live:
            self._live.start()
        else:
            self.console.print(summary(self.tally, self.conductor.slots.count, None), markup=False)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._is_live:
            self._live.stop()
        self.conductor.observers.remove(self)

    def trial_began(
        self, number: int, config: TrialConfig, history: Sequence[EpochMetrics]
    ) -> None:
        """See ``Observer``."""
        self.tally.trial_began(number, config, history)

    def epoch_ended(self, number: int, row: EpochMetrics) -> None:
        """See ``Observer``."""
        self.tally.epoch_ended(number, row)

    def trial_ended(
        self, number: int, status: TrialStatus, history: Sequence[EpochMetrics]
    ) -> None:
        """Count how a trial ended, and say it in a line where there is no table."""
        self.tally.trial_ended(number, status, history)
        if not self._is_live:
            line = str(self.tally.ending(number, status, history))
            self.console.print(line, soft_wrap=True, markup=False)

    def _table(self, width: int, height: int) -> RenderableType:
        slots = self.conductor.slots.count
        note = ""
        if self.conductor.draining:
            when = "" if self.conductor.is_over else ": running trials finish their epoch"
            note = f"Ending{when}. Ctrl-C aborts."
        left = self.tally.seconds_left(slots)
        if left is not None:
            left = min(left, self.conductor.budget_seconds)
        return draw(self.tally, slots, left, note, width, height)
