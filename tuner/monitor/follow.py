"""Watch a search through its run folder, from another terminal or another machine."""

import math
import time
from collections.abc import Iterator, Sequence

from rich.console import Console, RenderableType

from tuner.monitor.live_table import Clocks, draw, summary
from tuner.monitor.steps import PULSE
from tuner.monitor.terminal import LiveTable, is_live, tell
from tuner.run.events import (
    EpochEnded,
    Event,
    TrialEnded,
    TrialMeasured,
    TrialPlaced,
    TrialPromoted,
    TrialStarted,
)
from tuner.run.layout import HISTORY, RUN, STATUS
from tuner.run.run import Run, clock
from tuner.run.state import Ending, SearchState, num_alike
from tuner.run.trial import TrialRecord
from tuner.space.searched import Column
from tuner.storage.paths import AnyPath, etag, modified

SECONDS = 1.0
"""Seconds between two looks at the folder."""
SILENT_SECONDS = 60.0
"""After this time and 5 epochs without a change, a note says that the search may be dead."""


class RunWatcher:
    """Keeps the state of a search up to date with its run folder.

    The clocks of the search, the storage and this machine may differ: for events that it watches,
    it only uses its own. That of the storage dates what happened before.
    """

    def __init__(self, path: AnyPath) -> None:
        self.run = Run.open(path)
        self._written = modified(path / RUN)
        self._noted = time.monotonic() - max(0.0, time.time() - self._written)
        """When the search last recorded its active time, which it does every few seconds; like all
        times here, in seconds of the monotonic clock."""
        self._changed = self._noted
        """When a change was last seen: the search may have been killed long ago."""
        # Read first: files written while the trials are read will be read again.
        self._etags = {int(path.name): _etags(path) for path in self.run.trial_paths()}
        """Trial -> when its status and its history were last written."""
        self.state = SearchState.of(self.run)

    @property
    def slots(self) -> int:
        """Number of trials that the search trains at once; 0 if it was not recorded."""
        return int(self.run.record.slots.get("count", 0))

    @property
    def has_ended(self) -> bool:
        """Whether the search has recorded its end."""
        return self.run.record.status != "running"

    def look(self) -> list[Ending]:
        """Update the state; return how trials ended since the last look."""
        self.run = Run.open(self.run.path)
        now, written = time.monotonic(), modified(self.run.path / RUN)
        if written != self._written:
            self._written, self._noted, self._changed = written, now, now
        self.state.search = self.run.record.search
        ended = []
        for path in self.run.trial_paths():
            number, etags = int(path.name), _etags(path)
            if etags[0] is None or self._etags.get(number) == etags:
                continue
            self._etags[number], self._changed = etags, now
            for event in list(_news(self.state, self.run.trial(number))):
                self.state.apply(event)
                if isinstance(event, TrialEnded):
                    ended.append(self.state.endings[-1])
        return ended

    def clocks(self) -> Clocks:
        """Return the times of the search, with the remaining time as estimated from its folder."""
        record = self.run.record
        elapsed = record.active_seconds
        if not self.has_ended:
            elapsed += time.monotonic() - self._noted
        budget = math.inf if record.budget_seconds is None else record.budget_seconds - elapsed
        # As in ``Tuner.seconds_left``.
        holding = self.state.placed or list(self.state.running.values())
        held = sum(trial.gpus for trial in holding)
        if record.budget_gpu_hours is not None and held:
            spent = self.state.gpu_seconds + record.lost_gpu_seconds
            unspent = 3600 * record.budget_gpu_hours - spent
            budget = min(budget, unspent / held)
        left = None if self.has_ended else self.state.seconds_left(self.slots)
        return Clocks(
            elapsed=elapsed, left=left, budget=max(0.0, budget) if math.isfinite(budget) else None
        )

    def note(self, now: float) -> str:
        """Return a note if no change was seen for long; otherwise empty.

        Args:
            now: Time of the monotonic clock, in seconds.
        """
        silent = now - self._changed
        limit = max(SILENT_SECONDS, 5 * self._epoch(), 2 * self.run.record.save_seconds)
        if self.has_ended or not self.state.num_epochs or silent < limit:
            return ""
        return f"No news for {clock(silent)}; was the search killed?"

    def _epoch(self) -> float:
        running = list(self.state.running.values())
        return max((row.seconds for trial in running for row in trial.history[-1:]), default=0.0)


def _etags(path: AnyPath) -> tuple[object, object]:
    """Return values that change when the status or the history of a trial is written."""
    return etag(path / STATUS), etag(path / HISTORY)


def _news(state: SearchState, record: TrialRecord) -> Iterator[Event]:
    """Yield the events that lead a trial from its known state to ``record``."""
    number, status = record.number, record.status
    known = state.trials.get(number)
    history = known.history if known else []
    kept = num_alike(history, record.history)
    if known and known.status == status and kept == len(history) == len(record.history):
        return
    goes_on = number in state.running and kept == len(history)
    if known is None or not goes_on or known.status.attempts != status.attempts:
        yield TrialStarted(
            number=number,
            config=record.config,
            history=record.history[:kept],
            attempt=status.attempts,
            cpus=status.cpus,
            gpus=record.gpus,
            num_parameters=status.num_parameters,
            time=status.started,
        )
    yield TrialPlaced(number=number, node=status.node)
    measured = status.latency_ms, status.size_mb
    if (known.status.latency_ms, known.status.size_mb) != measured if known else any(measured):
        yield TrialMeasured(number=number, latency_ms=measured[0], size_mb=measured[1])
    if known is None or known.status.passed != status.passed:
        yield TrialPromoted(number=number, rung=status.passed)
    for row in record.history[kept:]:
        yield EpochEnded(
            number=number,
            metrics=row,
            num_parameters=status.num_parameters,
            execution=status.execution,
            halved_from=status.halved_from,
        )
    if status.state != "running":
        yield TrialEnded(
            number=number,
            state=status.state,
            reason=status.reason,
            stop=status.stop,
            traceback=status.traceback,
            time=status.finished,
        )


def follow(path: AnyPath, console: Console, columns: Sequence[Column] = ()) -> Run:
    """Show the search of a run folder until it ends or the user interrupts.

    Args:
        path: Path of the run.
        console: The console.
        columns: The searched parameters, the most important first.

    Raises:
        UsageError: If there is no run.
        TunerError: If it is damaged.
    """
    watcher = RunWatcher(path)

    if not is_live(console):
        printed = -math.inf
        while True:
            if time.monotonic() - printed >= PULSE:
                line = summary(watcher.state, watcher.slots, watcher.clocks())
                tell(console, line)
                printed = time.monotonic()
            if watcher.has_ended:
                return watcher.run
            time.sleep(SECONDS)
            for ending in watcher.look():
                tell(console, str(ending))
                printed = time.monotonic()

    def table(width: int, height: int) -> RenderableType:
        note = watcher.note(time.monotonic())
        return draw(
            watcher.state,
            watcher.slots,
            watcher.clocks(),
            note,
            width,
            height,
            columns=columns,
        )

    with LiveTable(table, console):
        while not watcher.has_ended:
            time.sleep(SECONDS)
            watcher.look()
    return watcher.run
