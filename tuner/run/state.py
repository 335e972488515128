"""The state of a search, built from its events.

``SearchState.of`` reads a run folder, and ``apply`` continues from there. The tuner, the live
table, readers of the folder, the report and the comparison of runs all use this one state.
"""

import math
from collections import Counter, deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import accumulate, takewhile
from typing import Self

from tuner.config import Metric, SearchConfig, TrialConfig, rung_epochs
from tuner.metrics import goal
from tuner.run.events import (
    EpochEnded,
    Event,
    TrialEnded,
    TrialLost,
    TrialMeasured,
    TrialPlaced,
    TrialPromoted,
    TrialStarted,
)
from tuner.run.run import Run
from tuner.run.trial import (
    ENDED_BADLY,
    OPEN,
    EpochMetrics,
    TrialRecord,
    TrialState,
    TrialStatus,
    best_row,
    order_of,
    score_of,
)
from tuner.schema import plural

RECENT = 4
"""Number of ended trials that are remembered individually."""
RECENT_EPOCHS = 200
"""Number of recent epochs from whose durations the remaining time is estimated."""


@dataclass(slots=True)
class TrialProgress:
    """The progress of a trial."""

    number: int
    status: TrialStatus
    gpus: float
    """GPUs, or a share of one, that it holds during its epochs."""
    config: TrialConfig | None = None
    """``None`` if the trial had ended for good when its record was read."""
    history: list[EpochMetrics] = field(default_factory=list)

    @property
    def has_ended_badly(self) -> bool:
        """Whether it ended badly, so that nothing should build on its accuracy."""
        return self.status.state in ENDED_BADLY


@dataclass(frozen=True, kw_only=True, slots=True)
class Ending:
    """How a trial ended."""

    number: int
    state: TrialState
    epochs: int
    metric: Metric = "accuracy"
    value: float | None
    """Value of the metric."""
    reason: str

    def __str__(self) -> str:
        name = goal.name_of(self.metric)
        value = f"no {name}" if self.value is None else f"best {name} {self.value:.4f}"
        state = self.state.replace("_", " ")
        parts = [f"trial {self.number} {state}", plural(self.epochs, "epoch"), value]
        return " · ".join([*parts, self.reason] if self.reason else parts)


@dataclass(frozen=True, kw_only=True, slots=True)
class RungCount:
    """The number of trials that reached a rung, and what happened to them."""

    epoch: int
    arrived: int
    stopped: int
    """By the scheduler, after this epoch or one since the previous rung."""
    paused: int
    """Waiting there."""
    passed: int
    """Trained further, or waiting for the next epoch to end."""


def in_order(histories: Mapping[int, Sequence[EpochMetrics]]) -> list[tuple[int, EpochMetrics]]:
    """Return the epochs of trials, each with its trial's number, in the order in which they ended.

    The epochs of one trial stay in their own order: the clocks of the nodes it was on may differ.

    Args:
        histories: The epochs of each trial, by its number.
    """
    entries = [
        (time, number, row)
        for number, history in histories.items()
        for time, row in zip(accumulate((row.time for row in history), max), history, strict=True)
    ]
    entries.sort(key=lambda entry: (entry[0], entry[1], entry[2].epoch))
    return [(number, row) for _, number, row in entries]


@dataclass(slots=True)
class SearchState:
    """The current state of a search of ``search.trials`` trials."""

    search: SearchConfig
    trials: dict[int, TrialProgress] = field(default_factory=dict)
    """Every trial that has been started, by number."""
    running: dict[int, TrialProgress] = field(default_factory=dict)
    """The trials that have been given out and have not ended; some may wait for a worker."""
    ended: Counter[TrialState] = field(default_factory=Counter)
    errors: Counter[str] = field(default_factory=Counter)
    """Kind of error -> number of trials that failed, diverged or ran out of memory with it."""
    endings: deque[Ending] = field(default_factory=lambda: deque(maxlen=RECENT))
    """The last trials that ended, newest last."""
    num_epochs: int = 0
    gpu_seconds: float = 0.0
    """GPU time of these epochs, in seconds."""
    best: tuple[int, EpochMetrics] | None = None
    """Number and best epoch of the leading trial, among those that did not end badly."""
    best_curve: list[tuple[int, float]] = field(default_factory=list)
    """Total epochs trained, including some that were lost, and the best value of the search's
    metric from then on, at each improvement."""
    _leaders: set[int] = field(default_factory=set)
    """Trials that have been in the lead."""
    _reached: Counter[int] = field(default_factory=Counter)
    """Epoch -> number of trials that were trained this far, or further."""
    _left: Counter[int] = field(default_factory=Counter)
    """Epoch -> number of trials that ended for good after it."""
    _stopped: Counter[int] = field(default_factory=Counter)
    """Epoch -> number of trials that the scheduler stopped there."""
    _paused: Counter[int] = field(default_factory=Counter)
    """Epoch -> number of trials that wait there."""
    _seconds: deque[float] = field(default_factory=lambda: deque(maxlen=RECENT_EPOCHS))

    @classmethod
    def of(cls, run: Run) -> Self:
        """Return the state of a run's search, read from its folder."""
        return cls.from_trials(run.record.search, run.trials())

    @classmethod
    def from_trials(cls, search: SearchConfig, trials: Sequence[TrialRecord]) -> Self:
        """Return the state of a search with the given trials."""
        state = cls(search)
        state.add(trials)
        return state

    @property
    def num_ended(self) -> int:
        """Number of trials that have ended, for now or for good."""
        return sum(self.ended.values())

    @property
    def num_done(self) -> int:
        """Number of trials that have ended for good."""
        return sum(count for state, count in self.ended.items() if state not in OPEN)

    @property
    def placed(self) -> list[TrialProgress]:
        """The running trials that have a worker."""
        return [trial for trial in list(self.running.values()) if trial.status.node]

    @property
    def slowest_epoch_seconds(self) -> float | None:
        """Longest of the recent epochs in seconds; ``None`` before the first."""
        return max(self._seconds, default=None)

    @property
    def epoch_seconds(self) -> float | None:
        """Mean length of recent epochs in seconds; ``None`` before the first."""
        return sum(self._seconds) / len(self._seconds) if self._seconds else None

    def add(self, trials: Sequence[TrialRecord], *, have_workers: bool = True) -> None:
        """Add trials with everything that happened to them, in the order in which it happened.

        Args:
            trials: Records of trials that are not known yet.
            have_workers: Whether trials in state ``running`` really run; if not, their search was
                killed.
        """
        for record in trials:
            runs = have_workers and record.status.state == "running"
            trial = TrialProgress(
                number=record.number,
                status=record.status,
                gpus=record.gpus,
                config=record.config if record.status.state in OPEN else None,
            )
            self.trials[trial.number] = trial
            if runs:
                self.running[trial.number] = trial
        for number, row in in_order({trial.number: trial.history for trial in trials}):
            self._count(self.trials[number], row)
        closed = [record for record in trials if record.status.state != "running"]
        for record in sorted(closed, key=lambda record: (record.status.finished, record.number)):
            self._close(self.trials[record.number])

    def apply(self, event: Event) -> None:
        """Update the state with an event."""
        match event:
            case TrialStarted():
                self._start(event)
            case TrialPlaced():
                trial = self.trials[event.number]
                trial.status = replace(trial.status, node=event.node)
            case TrialMeasured():
                trial = self.trials[event.number]
                trial.status = replace(
                    trial.status, latency_ms=event.latency_ms, size_mb=event.size_mb
                )
            case TrialLost():
                self.running.pop(event.number, None)
                self._take_back(self.trials[event.number], event.num_epochs)
            case TrialPromoted():
                trial = self.trials[event.number]
                trial.status = replace(trial.status, passed=event.rung)
            case EpochEnded():
                self._end_epoch(event)
            case TrialEnded():
                trial = self.trials[event.number]
                if trial.status.state != "running":
                    # It was paused until now.
                    self._reopen(trial)
                trial.status = replace(
                    trial.status,
                    state=event.state,
                    reason=event.reason,
                    stop=event.stop,
                    traceback=event.traceback,
                    finished=event.time,
                )
                self.running.pop(event.number, None)
                self._close(trial)

    def _start(self, event: TrialStarted) -> None:
        trial = self.trials.get(event.number)
        if trial is None:
            status = TrialStatus(state="running", started=event.time)
            trial = self.trials[event.number] = TrialProgress(event.number, status, 0.0)
        elif trial.number not in self.running and trial.status.state != "running":
            self._reopen(trial)
        is_same_worker = trial.status.attempts == event.attempt
        trial.status = replace(
            trial.status,
            state="running",
            reason="",
            node=trial.status.node if is_same_worker else "",
            attempts=event.attempt,
            cpus=event.cpus,
            gpus=event.gpus,
            num_parameters=event.num_parameters,
        )
        trial.config = event.config
        gpus = event.gpus or 0.0
        # As in its record, all its epochs count with the GPUs that it holds now.
        self.gpu_seconds += sum(row.seconds for row in trial.history) * (gpus - trial.gpus)
        trial.gpus = gpus
        self._take_back(trial, num_alike(trial.history, event.history))
        for row in event.history[len(trial.history) :]:
            self._count(trial, row)
        self.running[trial.number] = trial

    def _end_epoch(self, event: EpochEnded) -> None:
        trial = self.trials[event.number]
        status = trial.status
        told = (event.num_parameters, event.execution, event.halved_from)
        if told != (status.num_parameters, status.execution, status.halved_from):
            trial.status = replace(
                status,
                num_parameters=event.num_parameters,
                execution=event.execution,
                halved_from=event.halved_from,
            )
        if not is_known(event.metrics, trial.history):
            self._take_back(trial, event.metrics.epoch - 1)
            self._count(trial, event.metrics)

    def _count(self, trial: TrialProgress, row: EpochMetrics) -> None:
        trial.history.append(row)
        self.num_epochs += 1
        self.gpu_seconds += row.seconds * trial.gpus
        self._reached[row.epoch] += 1
        self._seconds.append(row.seconds)
        if trial.has_ended_badly:
            return
        if improves(row, self.best, self.search.metric):
            if (value := self._new_best(row, self.best)) is not None:
                self.best_curve.append((self.num_epochs, value))
            self.best = (trial.number, row)
            self._leaders.add(trial.number)

    def _new_best(self, row: EpochMetrics, best: tuple[int, EpochMetrics] | None) -> float | None:
        """Return the value of an improved epoch; ``None`` if it equals that of the best."""
        value = row.value(self.search.metric)
        return value if best is None or value != best[1].value(self.search.metric) else None

    def _take_back(self, trial: TrialProgress, num_epochs: int) -> None:
        """Forget the epochs of a trial after the first ``num_epochs``; they are trained again."""
        gone = trial.history[num_epochs:]
        if not gone:
            return
        del trial.history[num_epochs:]
        self.num_epochs -= len(gone)
        self.gpu_seconds -= sum(row.seconds for row in gone) * trial.gpus
        self._reached.subtract(row.epoch for row in gone)
        self._find_best_without(trial)

    def _close(self, trial: TrialProgress) -> None:
        status = trial.status
        self.ended[status.state] += 1
        metric = self.search.metric
        best = best_row(trial.history, metric)
        self.endings.append(
            Ending(
                number=trial.number,
                state=status.state,
                epochs=len(trial.history),
                metric=metric,
                value=best.value(metric) if best else None,
                reason=status.reason,
            )
        )
        self._count_ending(trial, 1)
        if status.state in ENDED_BADLY:
            self._find_best_without(trial)

    def _reopen(self, trial: TrialProgress) -> None:
        self.ended[trial.status.state] -= 1
        # Drop zero counts, so that it equals a mapping without them.
        self.ended = +self.ended
        self._count_ending(trial, -1)
        self.errors = +self.errors

    def _count_ending(self, trial: TrialProgress, change: int) -> None:
        status = trial.status
        if status.state == "paused":
            self._paused[len(trial.history)] += change
        if status.state in OPEN:
            return
        self._left[len(trial.history)] += change
        if status.stop is not None:
            self._stopped[status.stop.rung] += change
        if kind := error_kind(status):
            self.errors[kind] += change

    def _find_best_without(self, trial: TrialProgress) -> None:
        """Find the leading trial again if ``trial``, which lost epochs or ended badly, has led."""
        if trial.number not in self._leaders:
            return
        metric = self.search.metric
        best: tuple[int, EpochMetrics] | None = None
        curve: list[tuple[int, float]] = []
        leaders: set[int] = set()
        for epochs, (row, other) in enumerate(self._rows(), 1):
            if other.status.state not in ENDED_BADLY and improves(row, best, metric):
                if (value := self._new_best(row, best)) is not None:
                    curve.append((epochs, value))
                best = (other.number, row)
                leaders.add(other.number)
        # Replace each as a whole: the live table is drawn in another thread.
        self.best, self.best_curve, self._leaders = best, curve, leaders

    def _rows(self) -> list[tuple[EpochMetrics, TrialProgress]]:
        """Return all epochs in the order in which they ended."""
        rows = in_order({number: trial.history for number, trial in self.trials.items()})
        return [(row, self.trials[number]) for number, row in rows]

    def best_so_far(self, metric: Metric | None = None) -> list[tuple[int, float, float]]:
        """Return the best value so far at each improvement, with what had been spent by then.

        Args:
            metric: The metric of the values; ``None`` is the search's. By another one, only the
                epoch of each trial counts that the search kept.

        Returns:
            Epochs trained, GPU-hours spent (training hours if no trial held a GPU) and the best
            validation value among trials that did not end badly, in order of time; the last entry
            is where the search ended.
        """
        own = self.search.metric
        metric = own if metric is None else metric
        kept = {number: best_row(trial.history, own) for number, trial in self.trials.items()}
        has_gpus = any(trial.gpus for trial in self.trials.values())
        rows = self._rows()
        points: list[tuple[int, float, float]] = []
        seconds, best = 0.0, -math.inf
        for epochs, (row, trial) in enumerate(rows, 1):
            seconds += row.seconds * (trial.gpus if has_gpus else 1)
            counts = metric == own or row is kept[trial.number]
            is_good = counts and trial.status.state not in ENDED_BADLY
            score = score_of(row, metric) if is_good else None
            is_better = score is not None and score > best
            best = score if score is not None and is_better else best
            if is_better or (epochs == len(rows) and points):
                points.append((epochs, seconds / 3600, goal.score(best, metric)))
        return points

    def rungs(self) -> list[RungCount]:
        """Return the rungs of the search, lowest first; empty if nothing is stopped early."""
        if self.search.scheduler == "none":
            return []
        rungs = []
        below = 0
        for epoch in rung_epochs(self.search.grace, self.search.reduction, self.search.epochs):
            arrived = self._reached[epoch]
            span = range(below + 1, epoch + 1)
            stopped = sum(self._stopped[step] for step in span)
            paused = self._paused[epoch]
            passed = arrived - self._left[epoch] - paused
            rungs.append(
                RungCount(
                    epoch=epoch, arrived=arrived, stopped=stopped, paused=paused, passed=passed
                )
            )
            below = epoch
        return rungs

    def seconds_left(self, slots: int) -> float | None:
        """Estimate the remaining time in seconds from the length of epochs and of trials.

        Trials to come are assumed to end after each epoch as often as the earlier ones did. Each
        rung also counts one trial that ends there as often as the scheduler intends, which matters
        if few trials have reached it. With promotion, each rung promotes as many as it may.

        Args:
            slots: Number of trials that train at once, unless more do already.

        Returns:
            ``None`` before the first epoch has ended.
        """
        seconds = self.epoch_seconds
        if seconds is None:
            return None
        is_promoting = self.search.scheduler == "asha"
        epochs = self._epochs_with_promotion() if is_promoting else self._epochs_left()
        return seconds * epochs / max(1, slots, len(self.placed))

    @property
    def _num_to_come(self) -> int:
        """Number of trials that have not been started yet."""
        return max(0, self.search.trials - self.num_ended - len(self.running))

    def _epochs_with_promotion(self) -> float:
        done = [len(trial.history) for trial in list(self.running.values())]
        epochs, below, coming = 0, 0, self._num_to_come
        last = RungCount(epoch=self.search.epochs, arrived=0, stopped=0, paused=0, passed=0)
        for rung in [*self.rungs(), last]:
            under_way = [rung.epoch - epoch for epoch in done if below <= epoch < rung.epoch]
            epochs += sum(under_way) + coming * (rung.epoch - below)
            most = rung.arrived + len(under_way) + coming
            places = max(most // self.search.reduction, min(1, most))
            coming = max(0, places - rung.passed)
            below = rung.epoch
        return epochs

    def _epochs_left(self) -> float:
        most = self.search.epochs
        rungs = self.rungs()
        prior = {rung.epoch: 1 - 1 / self.search.reduction for rung in rungs}
        remaining = [0.0] * (most + 1)
        for epoch in range(most - 1, -1, -1):
            doubt = 1 if epoch in prior else 0
            reached = self._reached[epoch] + doubt
            ends = (self._left[epoch] + prior.get(epoch, 0.0)) / reached if reached else 0.0
            # A running trial that has got this far was not ended here.
            goes_on = 1 - ends if epoch else 1.0
            remaining[epoch] = goes_on * (1 + remaining[epoch + 1])
        epochs = 0.0
        running = list(self.running.values())
        for trial in running:
            done = len(trial.history)
            assert trial.config is not None
            if done < trial.config.epochs:
                epochs += 1 + remaining[min(done + 1, most)]
        return epochs + self._num_to_come * remaining[0]


def improves(row: EpochMetrics, best: tuple[int, EpochMetrics] | None, metric: Metric) -> bool:
    """Whether an epoch is better than the best one so far, in the order of ``best_row``."""
    if score_of(row, metric) is None:
        return False
    if best is None:
        return True
    keys = [(*order_of(one, metric), one.epoch) for one in (row, best[1])]
    return keys[0] < keys[1]


def is_same(row: EpochMetrics, other: EpochMetrics) -> bool:
    """Whether two rows are of the same training of an epoch; NaN figures equal nothing."""
    return (row.epoch, row.time) == (other.epoch, other.time)


def is_known(row: EpochMetrics, history: Sequence[EpochMetrics]) -> bool:
    """Whether an epoch is in the history of its trial."""
    return row.epoch <= len(history) and is_same(row, history[row.epoch - 1])


def num_alike(one: Sequence[EpochMetrics], other: Sequence[EpochMetrics]) -> int:
    """Return the number of epochs, from the first on, that two histories have in common."""
    pairs = zip(one, other, strict=False)
    return sum(1 for _ in takewhile(lambda pair: is_same(*pair), pairs))


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
