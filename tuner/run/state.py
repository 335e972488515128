"""How a search stands, counted event by event: what its live table shows.

A search tells its tally of each event as it happens; a reader of the run folder tells another one
of what has changed there. Both show the same.
"""

import math
from collections import Counter, deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol

from tuner.config import SearchConfig, TrialConfig, rung_epochs
from tuner.run.trial import EpochMetrics, TrialRecord, TrialState, TrialStatus, best_row

RECENT = 4
"""Ended trials that are remembered one by one."""
RECENT_EPOCHS = 200
"""Epochs from whose times the time left is foreseen."""


class Observer(Protocol):
    """Is told what happens in a search."""

    def trial_began(
        self, number: int, config: TrialConfig, history: Sequence[EpochMetrics]
    ) -> None:
        """A trial starts, or goes on after the epochs of ``history``."""

    def epoch_ended(self, number: int, row: EpochMetrics) -> None:
        """A trial has come to the end of an epoch."""

    def trial_ended(
        self, number: int, status: TrialStatus, history: Sequence[EpochMetrics]
    ) -> None:
        """A trial has ended, for now or for good."""


@dataclass(slots=True)
class RunningTrial:
    """A trial under way."""

    number: int
    family: str
    epochs: int
    """The most it is trained for."""
    history: list[EpochMetrics]


@dataclass(frozen=True, kw_only=True, slots=True)
class Ending:
    """How a trial ended."""

    number: int
    state: TrialState
    epochs: int
    accuracy: float | None
    reason: str

    def __str__(self) -> str:
        accuracy = "no accuracy" if self.accuracy is None else f"accuracy {self.accuracy:.4f}"
        parts = [f"trial {self.number} {self.state}", f"{self.epochs} epochs", accuracy]
        return " · ".join([*parts, self.reason] if self.reason else parts)


@dataclass(frozen=True, kw_only=True, slots=True)
class Rung:
    """What became of the trials that came to a rung."""

    epoch: int
    arrived: int
    stopped: int
    """By the scheduler, after this epoch and the ones since the rung before."""
    passed: int
    """Trained further, or waiting for the next epoch to end."""


@dataclass(slots=True)
class Tally:
    """Counts the events of a search of ``trials`` trials."""

    search: SearchConfig
    running: dict[int, RunningTrial] = field(default_factory=dict)
    ended: Counter[TrialState] = field(default_factory=Counter)
    errors: Counter[str] = field(default_factory=Counter)
    """Trials that failed, diverged or had not the memory, by the kind of error."""
    endings: deque[Ending] = field(default_factory=lambda: deque(maxlen=RECENT))
    num_epochs: int = 0
    best: tuple[int, EpochMetrics] | None = None
    """Number and best epoch of the leading trial."""
    best_curve: list[tuple[int, float]] = field(default_factory=list)
    """Epochs trained in all, and the best accuracy from then on, at each improvement."""
    _reached: Counter[int] = field(default_factory=Counter)
    """Epoch -> trials that were trained so far, or further."""
    _left: Counter[int] = field(default_factory=Counter)
    """Epoch -> trials that ended after it, for good."""
    _stopped: Counter[int] = field(default_factory=Counter)
    """Epoch -> trials that the scheduler stopped there."""
    _counted: dict[int, int] = field(default_factory=dict)
    """Trial that has not ended for good -> its epochs that are counted."""
    _interrupted: set[int] = field(default_factory=set)
    _seconds: deque[float] = field(default_factory=lambda: deque(maxlen=RECENT_EPOCHS))

    @property
    def num_ended(self) -> int:
        """How many trials have ended, for now or for good."""
        return sum(self.ended.values())

    def add(self, trials: Sequence[TrialRecord]) -> None:
        """Count what trials have been through already, in the order in which it happened."""
        rows = [(row.time, trial.number, row) for trial in trials for row in trial.history]
        for _, number, row in sorted(rows, key=lambda entry: entry[:2]):
            self._count(number, row)
        for trial in trials:
            if trial.status.state != "running":
                self._close(trial.number, trial.status, trial.history)

    def trial_began(
        self, number: int, config: TrialConfig, history: Sequence[EpochMetrics]
    ) -> None:
        """See ``Observer``."""
        family = config.model.family
        if number in self._interrupted:
            self._interrupted.remove(number)
            self.ended["interrupted"] -= 1
        self.running[number] = RunningTrial(number, family, config.epochs, list(history))

    def epoch_ended(self, number: int, row: EpochMetrics) -> None:
        """See ``Observer``."""
        # An epoch that was lost with its worker is trained, and told, again.
        if row.epoch > self._counted.get(number, 0):
            self._count(number, row)
        self._seconds.append(row.seconds)
        self.running[number].history.append(row)

    def trial_ended(
        self, number: int, status: TrialStatus, history: Sequence[EpochMetrics]
    ) -> None:
        """See ``Observer``."""
        self.running.pop(number, None)
        self._close(number, status, history)
        self.endings.append(self.ending(number, status, history))

    @staticmethod
    def ending(number: int, status: TrialStatus, history: Sequence[EpochMetrics]) -> Ending:
        """Say how a trial ended."""
        best = best_row(history)
        return Ending(
            number=number,
            state=status.state,
            epochs=len(history),
            accuracy=best.val_accuracy if best else None,
            reason=status.reason,
        )

    def _count(self, number: int, row: EpochMetrics) -> None:
        self.num_epochs += 1
        self._counted[number] = row.epoch
        self._reached[row.epoch] += 1
        best = best_row([row] if self.best is None else [self.best[1], row])
        if best is row:
            if self.best is None or row.val_accuracy > self.best[1].val_accuracy:
                self.best_curve.append((self.num_epochs, row.val_accuracy))
            self.best = (number, row)

    def _close(self, number: int, status: TrialStatus, history: Sequence[EpochMetrics]) -> None:
        self.ended[status.state] += 1
        if status.state == "interrupted":
            self._interrupted.add(number)
            return
        self._counted.pop(number, None)
        self._left[len(history)] += 1
        if status.stop is not None:
            self._stopped[status.stop.rung] += 1
        if kind := error_kind(status):
            self.errors[kind] += 1

    def rungs(self) -> list[Rung]:
        """Return the rungs of the search, the lowest first; none where nothing is stopped early."""
        if self.search.scheduler == "none":
            return []
        rungs = []
        below = 0
        for epoch in rung_epochs(self.search.grace, self.search.reduction, self.search.epochs):
            arrived = self._reached[epoch]
            span = range(below + 1, epoch + 1)
            stopped = sum(self._stopped[step] for step in span)
            passed = arrived - self._left[epoch]
            rungs.append(Rung(epoch=epoch, arrived=arrived, stopped=stopped, passed=passed))
            below = epoch
        return rungs

    def seconds_left(self, slots: int) -> float | None:
        """Foresee the time left, in seconds, from how long epochs take and how far trials come.

        Trials to come are taken to end after each epoch as often as those that came so far did;
        a rung that few came to counts with one trial as the scheduler means it to stop them.

        Args:
            slots: Trials that train at once.

        Returns:
            ``None`` before the first epoch has ended.
        """
        if not self._seconds:
            return None
        most = self.search.epochs
        rungs = self.rungs()
        prior = {rung.epoch: 1 - 1 / self.search.reduction for rung in rungs}
        to_come = [0.0] * (most + 1)
        for epoch in range(most - 1, -1, -1):
            doubt = 1 if epoch in prior else 0
            reached = self._reached[epoch] + doubt
            ends = (self._left[epoch] + prior.get(epoch, 0.0)) / reached if reached else 0.0
            # A trial that has come here, and is under way, was not ended here.
            goes_on = 1 - ends if epoch else 1.0
            to_come[epoch] = goes_on * (1 + to_come[epoch + 1])
        epochs = 0.0
        running = list(self.running.values())
        for trial in running:
            done = len(trial.history)
            if done < trial.epochs:
                epochs += 1 + to_come[min(done + 1, most)]
        waiting = max(0, self.search.trials - self.num_ended - len(running))
        epochs += waiting * to_come[0]
        mean = sum(self._seconds) / len(self._seconds)
        return mean * epochs / max(1, slots)


def error_kind(status: TrialStatus) -> str:
    """Return the kind of a trial's error in a word or two; empty if there was none."""
    match status.state:
        case "failed" if status.reason.startswith("its worker was lost"):
            return "worker lost"
        case "failed":
            return status.reason.partition(":")[0] or "failed"
        case "diverged" | "out_of_memory":
            return status.state.replace("_", " ")
        case _:
            return ""


def best_so_far(trials: Sequence[TrialRecord]) -> list[tuple[int, float, float]]:
    """Return the best accuracy so far at each improvement, over what had been spent by then.

    Args:
        trials: Of one run.

    Returns:
        Epochs trained, GPU-hours spent (training hours where no trial held a GPU) and the best
        validation accuracy of a trial that did not end badly, in the order of time; a last entry is
        where the search ended.
    """
    has_gpus = any(trial.gpus for trial in trials)
    rows = sorted(
        ((row, trial) for trial in trials for row in trial.history),
        key=lambda entry: (entry[0].time, entry[0].epoch),
    )
    points: list[tuple[int, float, float]] = []
    seconds, best = 0.0, -math.inf
    for epochs, (row, trial) in enumerate(rows, 1):
        seconds += row.seconds * (trial.gpus if has_gpus else 1)
        improves = trial.is_scored and math.isfinite(row.val_loss) and row.val_accuracy > best
        best = row.val_accuracy if improves else best
        if improves or (epochs == len(rows) and points):
            points.append((epochs, seconds / 3600, best))
    return points
