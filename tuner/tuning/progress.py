"""The display of a running search: a live table on a terminal, plain lines elsewhere."""

import contextlib
import math
from collections.abc import Callable
from types import TracebackType
from typing import Self

from rich.console import Console, RenderableType

from tuner.monitor.live_table import Clocks, draw, summary
from tuner.monitor.steps import Pulse
from tuner.monitor.terminal import LiveTable, is_live
from tuner.run.events import Event, TrialEnded
from tuner.run.trial import best_row, score_of
from tuner.space import SearchSpace
from tuner.space.searched import ALL, LEAST_WEIGHED, columns
from tuner.tuning.tuner import Tuner

MOST_WEIGHED = 320
"""Number of trials after which the order of the searched parameters no longer changes."""


class Progress:
    """Displays a search for the duration of a ``with`` block.

    Args:
        tuner: Decides what the trials do.
        console: Where to show it.
        slots: Returns how many trials fit at once.
        space: The space whose parameters are shown.
    """

    def __init__(
        self,
        tuner: Tuner,
        console: Console,
        slots: Callable[[], int],
        space: SearchSpace,
    ) -> None:
        self.tuner = tuner
        self.console = console
        self._slots = slots
        self._space = space
        self._columns = columns(space, {})
        self._next_weighing = LEAST_WEIGHED
        self._is_live = is_live(console)
        self._live = LiveTable(self._table, console)
        self._pulse = Pulse(console, self._line)
        self._stack = contextlib.ExitStack()

    def __enter__(self) -> Self:
        self.tuner.observers.append(self._on)
        if self._is_live:
            self._live.start()
        else:
            line = summary(self.tuner.state, self._slots(), None)
            self.console.print(line, soft_wrap=not self.console.is_terminal, markup=False)
            self._stack.enter_context(self._pulse)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._is_live:
            self._live.stop()
        self._stack.close()
        self.tuner.observers.remove(self._on)

    def _on(self, event: Event) -> None:
        """Print how a trial ended; with a live table, update the order of its columns instead."""
        if not isinstance(event, TrialEnded):
            return
        if self._is_live:
            self._weigh()
        else:
            line = str(self.tuner.state.endings[-1])
            self.console.print(line, soft_wrap=not self.console.is_terminal, markup=False)
            self._pulse.rest()

    def _weigh(self) -> None:
        """Put the most important parameters first, each time the number of trials has doubled."""
        state = self.tuner.state
        if not self._next_weighing <= state.num_done <= MOST_WEIGHED:
            return
        # Optuna's importances import scikit-learn, which takes a second: do not delay the start.
        from tuner.tuning.sampling.importance import importances_of

        self._next_weighing = 2 * state.num_done
        metric = state.search.metric
        known = [
            (trial.config, score)
            for trial in state.trials.values()
            if trial.config
            and not trial.has_ended_badly
            and (best := best_row(trial.history, metric))
            and (score := score_of(best, metric)) is not None
        ]
        shares = importances_of(self._space, known).get(ALL, {})
        self._columns = columns(self._space, shares)

    def _clocks(self) -> Clocks:
        budget = self.tuner.seconds_left()
        return Clocks(
            elapsed=self.tuner.spending.seconds,
            left=self.tuner.state.seconds_left(self._slots()),
            budget=budget if math.isfinite(budget) else None,
        )

    def _line(self) -> str:
        return summary(self.tuner.state, self._slots(), self._clocks())

    def _table(self, width: int, height: int) -> RenderableType:
        note = ""
        if self.tuner.draining and self.tuner.live:
            when = "" if self.tuner.is_over else ": running trials finish their epoch"
            note = f"Ending{when}. Ctrl-C aborts."
        elif not self.tuner.state.num_epochs:
            note = "Workers load PyTorch and train their first epoch."
        return draw(
            self.tuner.state,
            self._slots(),
            self._clocks(),
            note,
            width,
            height,
            columns=self._columns,
        )
