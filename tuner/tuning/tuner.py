"""What happens to each trial, from its proposal to its end.

The tuner asks the proposer, has the scheduler judge each epoch, and minds the budget. It runs
nothing itself and writes nothing: a driver asks it for trials (``next``) and leads what becomes of
them here (``on``). ``ray_backend`` is such a driver, ``planning.simulated`` another.
"""

import math
from collections import deque
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

from tuner.config import TrialConfig
from tuner.run.events import (
    EpochEnded,
    Event,
    Observer,
    TrialEnded,
    TrialPaused,
    TrialPlaced,
    TrialStarted,
)
from tuner.run.run import now
from tuner.run.state import SearchState, TrialProgress, in_order, is_known, num_alike
from tuner.run.trial import OPEN, EpochMetrics, Stop, TrialRecord
from tuner.tuning.budget import Spending
from tuner.tuning.proposers import Proposer
from tuner.tuning.resources import TrialResources
from tuner.tuning.schedulers import Scheduler

DrainReason = Literal["", "interrupted", "budget", "broken"]
Decision = Literal["continue", "stop"]
"""Whether a worker goes on with its trial."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Assignment:
    """A trial as a worker is given it."""

    number: int
    config: TrialConfig
    attempt: int
    """How often the trial was given to a worker, with this time."""
    num_epochs: int
    """Epochs that are known, after which it goes on."""
    resources: TrialResources
    num_parameters: int
    halved_from: int | None
    """See ``TrialStatus``."""
    judged_epochs: tuple[int, ...]
    """Those after which it may be stopped."""
    budget_seconds: float
    """Time until the budget is spent."""


@dataclass(slots=True)
class LiveTrial:
    """What is known, beside its progress, of a trial that is under way or waits."""

    resources: TrialResources
    num_judged: int = 0
    """Epochs of which the scheduler knows; one that is trained again is not judged again."""
    began: float = -math.inf
    """When it was last given to a worker, in seconds of the tuner's clock."""
    lost_on: list[str] = field(default_factory=list)
    """The nodes on which it lost a worker; empty for a worker that had not said a word."""
    ending: TrialEnded | None = None
    """Its worker's last word, or the scheduler's decision."""


class Tuner:
    """Decides what the trials of a search do.

    Attributes:
        state: How the search stands.
        live: Trials under way, by number.
        observers: Are told of each event; the one that records the run comes first.
        draining: Why no trial is started any more and running ones end, if so.
        failures: Number and reason of each trial that failed since this search began or went on.
        num_started: Trials that were proposed, over all resumes.
    """

    def __init__(
        self,
        state: SearchState,
        proposer: Proposer,
        scheduler: Scheduler,
        spending: Spending,
        resources_of: Callable[[TrialConfig], TrialResources],
        *,
        count_parameters: Callable[[TrialConfig], int] = lambda config: 0,
    ) -> None:
        self.state = state
        self.proposer = proposer
        self.scheduler = scheduler
        self.spending = spending
        self.resources_of = resources_of
        self.count_parameters = count_parameters
        self.live: dict[int, LiveTrial] = {}
        self.observers: list[Observer] = []
        self.draining: DrainReason = ""
        self.failures: list[tuple[int, str]] = []
        self.num_started = 0
        self._waiting: deque[tuple[int, LiveTrial]] = deque()

    # What to start

    def next(
        self, has_room: Callable[[Collection[TrialResources]], bool]
    ) -> Assignment | Literal["wait", "done"]:
        """Return the next trial to start.

        Args:
            has_room: Whether one more trial finds its place beside those that run.

        Returns:
            ``wait`` where none can be started for now, ``done`` where none will be.
        """
        # Asked before there is room: no node need come for a search to end.
        if self.is_draining() or not self.has_more:
            if not self.live:
                self.end_waiting()
            return "wait" if self.live else "done"
        # More trials than there is room for would be proposed before they could learn from those
        # under way.
        if not has_room([trial.resources for trial in self.live.values()]):
            return "wait"
        # A trial under way may lose its worker, and has to be started again then.
        return self._start() or ("wait" if self.live else "done")

    @property
    def has_more(self) -> bool:
        """Whether trials wait, or may still be proposed."""
        return bool(self._waiting) or self.num_started < self.spending.budget.trials

    def is_draining(self) -> bool:
        """Whether no trial is started any more, for ``draining`` or because the budget is spent."""
        if not self.draining and self.is_over:
            self.draining = "budget"
        return bool(self.draining)

    @property
    def is_over(self) -> bool:
        """Whether running trials end where they are, for the budget is spent."""
        return self.draining == "budget" or self.spending.is_over

    @property
    def budget_seconds(self) -> float:
        """Time until the budget is spent, with as many GPUs held as are now; infinite without."""
        held = sum(trial.resources.gpus for trial in list(self.live.values()))
        return self.spending.seconds_left(held)

    def _start(self) -> Assignment | None:
        """Take up a waiting trial, or propose a new one; ``None`` if there is none."""
        if self._waiting:
            number, trial = self._waiting.popleft()
            progress = self.state.trials[number]
            assert progress.config is not None, "it has not ended"
            config, history = progress.config, tuple(progress.history)
            attempt = progress.status.attempts + 1
        else:
            number = self.num_started
            proposed = self.proposer.ask(number)
            if proposed is None:
                return None
            self.num_started += 1
            config, history, attempt = proposed, (), 1
            trial = LiveTrial(self.resources_of(config))
        # In the state first, which the observer that records the run writes: a trial's status is
        # there before its worker starts.
        started = TrialStarted(
            number=number,
            config=config,
            history=history,
            attempt=attempt,
            cpus=trial.resources.cpus,
            gpus=trial.resources.gpus,
            # Counted here: a worker may be lost with its epochs saved and none of them reported.
            num_parameters=self.count_parameters(config),
            time=now(),
        )
        self._tell(started)
        trial.began = self.spending.clock()
        self.live[number] = trial
        return Assignment(
            number=number,
            config=config,
            attempt=attempt,
            num_epochs=len(history),
            resources=trial.resources,
            num_parameters=started.num_parameters,
            halved_from=self.state.trials[number].status.halved_from,
            judged_epochs=tuple(self.scheduler.judged_epochs(number)),
            budget_seconds=self.budget_seconds,
        )

    # What becomes of it

    def on(self, event: Event) -> Decision:
        """Take a worker's message; say whether its trial goes on."""
        match event:
            case TrialPlaced():
                # The first word of every worker: where it is.
                self._tell(event)
                self.spending.begin_epoch(event.number, self.live[event.number].resources.gpus)
            case TrialStarted():
                return self._go_on(event)
            case EpochEnded():
                return self._hear(event)
            case TrialEnded():
                self.spending.leave_epoch(event.number)
                self.live[event.number].ending = event
            case TrialPaused():
                raise AssertionError("a worker does not pause a trial")
        return "continue"

    def _go_on(self, event: TrialStarted) -> Decision:
        """Have a trial go on after other epochs than it was known to be at, with its worker.

        Short of memory, or with a state that it cannot use, it trains some again. Others may have
        been saved, and not heard, by a worker that was lost.
        """
        progress = self.state.trials[event.number]
        kept = num_alike(progress.history, event.history)
        if kept < len(progress.history):
            self._write_off(event.number, kept)
            self._tell(replace(event, history=event.history[:kept], time=progress.status.started))
        return self._hear_all(progress, event.history[kept:])

    def _hear_all(self, progress: TrialProgress, rows: Sequence[EpochMetrics]) -> Decision:
        for row in rows:
            status = progress.status
            event = EpochEnded(
                number=progress.number,
                metrics=row,
                num_parameters=status.num_parameters,
                execution=status.execution,
                halved_from=status.halved_from,
            )
            if self._hear(event) == "stop":
                return "stop"
        return "continue"

    def _hear(self, event: EpochEnded) -> Decision:
        number, row = event.number, event.metrics
        trial, progress = self.live[number], self.state.trials[number]
        if is_known(row, progress.history):
            return "continue"
        self._write_off(number, row.epoch - 1)
        self.spending.end_epoch(number, row.seconds, trial.resources.gpus)
        self._tell(event)
        was_judged = row.epoch <= trial.num_judged
        trial.num_judged = max(trial.num_judged, row.epoch)
        if was_judged or not math.isfinite(row.train_loss + row.val_loss):
            return "continue"
        stop = self.scheduler.judge(number, row.epoch, row.val_accuracy)
        if stop is None:
            return "continue"
        trial.ending = _stopped(number, stop)
        return "stop"

    def _write_off(self, number: int, num_epochs: int) -> None:
        """Count the epochs of a trial after the first ``num_epochs`` as trained for nothing."""
        if gone := self.state.trials[number].history[num_epochs:]:
            seconds = sum(row.seconds for row in gone)
            self.spending.write_off(seconds, self.live[number].resources.gpus)

    # How it ends

    def end(self, number: int, lost: str = "") -> None:
        """Close a trial's books.

        Args:
            number: Which trial.
            lost: Why its worker is gone, if that is how it ended.
        """
        trial = self.live.pop(number)
        self.spending.leave_epoch(number)
        ending = TrialEnded(number=number, state="failed", reason=lost) if lost else trial.ending
        assert ending is not None, f"trial {number} ended without a word"
        # Recorded before the proposer learns of it: what it learns after a kill, it reads there.
        self._tell(replace(ending, time=now()))
        if ending.state != "interrupted":
            self.proposer.tell(number, ending.state, self.state.trials[number].history)
        if ending.state == "failed":
            self.failures.append((number, ending.reason))
            reasons = [reason for _, reason in self.failures]
            others = self.state.ended.keys() - {"failed", "interrupted"}
            if not others and reasons == 3 * reasons[:1]:
                self.draining = self.draining or "broken"

    def lose(self, number: int, saved: Sequence[EpochMetrics], fatal: str = "") -> None:
        """Have a trial whose worker is gone taken up again, or end it.

        Args:
            number: Which trial.
            saved: The epochs that its worker had saved.
            fatal: Why it may not go on, if so.
        """
        trial = self.live[number]
        if self._has_ended(number, saved):
            self.end(number)
        elif fatal:
            self.end(number, fatal)
        elif self.draining:
            self.withdraw(number, "with its worker")
            self.end(number)
        else:
            trial.lost_on.append(self.state.trials[number].status.node)
            self._waiting.append((number, self.live.pop(number)))

    def requeue(self, number: int, saved: Sequence[EpochMetrics]) -> None:
        """Have a trial taken up again whose worker is gone for no fault of its own or its node."""
        if self._has_ended(number, saved):
            self.end(number)
        else:
            self._waiting.append((number, self.live.pop(number)))

    def _has_ended(self, number: int, saved: Sequence[EpochMetrics]) -> bool:
        """Whether a trial had ended when it lost its worker; if not, go back to what was saved."""
        trial, progress = self.live[number], self.state.trials[number]
        if trial.ending is None:
            self.spending.leave_epoch(number)
            kept = num_alike(progress.history, saved)
            self._write_off(number, kept)
            self._tell(TrialPaused(number=number, num_epochs=kept))
            # The worker was lost between saving and reporting the others.
            self._hear_all(progress, saved[kept:])
        return trial.ending is not None

    def withdraw(self, number: int, how: str) -> None:
        """Have a trial without a worker end where it is, to be taken up when the run goes on.

        Args:
            number: Which trial.
            how: What became of its worker.
        """
        epoch = len(self.state.trials[number].history)
        self.live[number].ending = TrialEnded(
            number=number, state="interrupted", reason=f"after epoch {epoch}, {how}"
        )

    def end_waiting(self) -> None:
        """End the trials that lost their worker and, now that nothing starts, get no other."""
        while self._waiting:
            number, trial = self._waiting.popleft()
            # The others were interrupted in an earlier session of the run.
            if self.state.trials[number].status.state == "running":
                self.live[number] = trial
                self.withdraw(number, "with its worker")
                self.end(number)

    # How it goes on after a resume

    def restore(self, trials: Sequence[TrialRecord]) -> int:
        """Come to where an earlier session of this search had come.

        The proposer learns of the trials that ended, the rungs are filled in the order in which
        their epochs ended, and the others wait to be taken up again.

        Args:
            trials: As their folders tell them, with the epochs after which they can go on.

        Returns:
            How many trials the space does not hold, after it was changed.
        """
        num_outside = 0
        restored: dict[int, LiveTrial] = {}
        unjudged: set[tuple[int, int]] = set()
        self.state.add(trials, have_workers=False)
        for record in trials:
            number, config, state = record.number, record.config, record.status.state
            trial = restored[number] = LiveTrial(self._resources_of(record))
            if state in OPEN:
                num_outside += not self.proposer.restore(number, config)
                self._waiting.append((number, trial))
            else:
                num_outside += not self.proposer.add(config, state, record.history, number)
            if state == "running":
                # An epoch of which the scheduler's word was lost is judged again; one that was
                # interrupted had passed.
                unjudged.add((number, len(record.history)))
            self.num_started = max(self.num_started, number + 1)
        for number, row in in_order({record.number: record.history for record in trials}):
            trial = restored[number]
            self.spending.end_epoch(number, row.seconds, trial.resources.gpus)
            trial.num_judged = max(trial.num_judged, row.epoch)
            if not math.isfinite(row.train_loss + row.val_loss):
                continue
            if (number, row.epoch) not in unjudged:
                self.scheduler.enter(number, row.epoch, row.val_accuracy)
            elif stop := self.scheduler.judge(number, row.epoch, row.val_accuracy):
                trial.ending = _stopped(number, stop)
                self._waiting.remove((number, trial))
                self.live[number] = trial
                self.end(number)
        return num_outside

    def _resources_of(self, record: TrialRecord) -> TrialResources:
        """Return what a trial of an earlier session held, or what it is to go on with."""
        status = record.status
        if status.state in OPEN or status.cpus is None or status.gpus is None:
            return self.resources_of(record.config)
        return TrialResources(cpus=status.cpus, gpus=status.gpus)

    def _tell(self, event: Event) -> None:
        self.state.apply(event)
        for observer in self.observers:
            observer(event)


def _stopped(number: int, stop: Stop) -> TrialEnded:
    return TrialEnded(number=number, state="stopped", stop=stop, reason=str(stop))
