"""What happens to each trial, from its proposal to its end.

The tuner asks the proposer, has the scheduler judge each epoch, and minds the budget. It runs
nothing itself and writes nothing: a driver asks it for trials (``next``) and leads what becomes of
them here (``on``). ``ray_backend`` is such a driver, ``planning.simulated`` another.
"""

import math
from collections import Counter, deque
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

from tuner.config import TrialConfig
from tuner.metrics import goal
from tuner.run.events import (
    EpochEnded,
    Event,
    Observer,
    TrialEnded,
    TrialLost,
    TrialMeasured,
    TrialPlaced,
    TrialPromoted,
    TrialStarted,
)
from tuner.run.outlook import COUNTED, why_not_go_on
from tuner.run.run import now
from tuner.run.state import SearchState, TrialProgress, in_order, is_known, num_alike
from tuner.run.trial import OPEN, EpochMetrics, Stop, TrialRecord, best_row, order_of, score_of
from tuner.tuning.budget import Spending
from tuner.tuning.proposers import Proposer
from tuner.tuning.resources import TrialResources
from tuner.tuning.schedulers import Asha, Prefer, Scheduler

DrainReason = Literal["", "interrupted", "budget", "patience", "broken"]
Decision = Literal["continue", "pause", "stop"]
"""Whether a worker goes on with its trial; one that is paused has to be saved, too."""


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
    is_measured: bool
    """Whether it is known what its network costs, or nobody asks."""
    halved_from: int | None
    """See ``TrialStatus``."""
    judged_epochs: tuple[int, ...]
    """Those after which it may be paused or stopped."""
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
    came_from: int | None = None
    """The last rung that it came to, or 0 before the first; ``None`` while it goes to no other."""


class Tuner:
    """Decides what the trials of a search do.

    Attributes:
        state: How the search stands.
        live: Trials under way, by number.
        paused: Trials that wait at a rung, by number.
        observers: Are told of each event; the one that records the run comes first.
        draining: Why no trial is started any more and running ones end, if so.
        reason: Why going on is not worth it, where the search ends by its patience.
        failures: Number and reason of each trial that failed since this search began or went on.
        num_started: Trials that were proposed, over all resumes.
        prefer: Says in the last third of the budget which of the waiting trials to promote, at
            every second promotion; see ``Asha.next_promotion``.
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
        self.paused: dict[int, LiveTrial] = {}
        self.observers: list[Observer] = []
        self.draining: DrainReason = ""
        self.reason = ""
        self.failures: list[tuple[int, str]] = []
        self.num_started = 0
        self._reached: dict[int, float] = {}
        """Trial that has ended, or is paused -> its best score, where the search has patience."""
        self.prefer: Prefer | None = None
        self._waiting: deque[tuple[int, LiveTrial]] = deque()
        self._asha = scheduler if isinstance(scheduler, Asha) else None
        self._under_way: Counter[int] = Counter()
        """How many trials have come from each rung, and go on; see ``LiveTrial.came_from``."""
        self._is_exhausted = False
        """Whether the proposer has no more configurations."""

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
        if self._next_promotion() in self.live:
            # Its worker is about to give it back.
            return "wait"
        # More trials than there is room for would be proposed before they could learn from those
        # under way.
        if not has_room([trial.resources for trial in self.live.values()]):
            return "wait"
        # A trial under way may lose its worker, and has to be started again then.
        return self._start() or ("wait" if self.live else "done")

    @property
    def has_more(self) -> bool:
        """Whether a trial waits, is due to be promoted, or may still be proposed."""
        is_one_known = bool(self._waiting) or self._next_promotion() is not None
        return is_one_known or self._num_to_propose > 0

    @property
    def up_next(self) -> int:
        """Number of the trial that would be started next."""
        if self._waiting:
            return self._waiting[0][0]
        promoted = self._next_promotion()
        return self.num_started if promoted is None else promoted

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

    @property
    def _num_to_propose(self) -> int:
        """Trials that may still be proposed."""
        left = self.spending.budget.trials - self.num_started
        return 0 if self._is_exhausted else max(0, left)

    def _next_promotion(self) -> int | None:
        """Return the paused trial that is due to go on, if there is one."""
        if self._asha is None:
            return None
        prefer = self.prefer if self.prefer and self._is_last_third else None
        return self._asha.next_promotion(self._coming(), prefer)

    @property
    def _is_last_third(self) -> bool:
        """Whether two thirds of the budget are spent: of its trials, its time or its GPU time."""
        return self.spending.share(self.num_started) >= 2 / 3

    def _coming(self) -> Counter[int]:
        """Return how many trials are on their way to each rung; see ``Asha``."""
        coming = self._under_way.copy()
        coming[0] += self._num_to_propose
        return coming

    def _set_ending(self, number: int, trial: LiveTrial, ending: TrialEnded | None) -> None:
        """Note how a trial that is under way, or waits for a worker, will end, or that it goes on.

        Counted here, for each event: to look through a thousand trials would take longer than all
        else that is to be decided.
        """
        trial.ending = ending
        if self._asha is None:
            return
        if trial.came_from is not None:
            self._under_way[trial.came_from] -= 1
        trial.came_from = self._asha.last_rung(number) if ending is None else None
        if trial.came_from is not None:
            self._under_way[trial.came_from] += 1

    def _start(self) -> Assignment | None:
        """Take up a waiting trial, promote one, or propose a new one; ``None`` if there is none."""
        if (given := self._take_up() or self._propose()) is not None:
            return given
        # Now that no more are proposed, one that waited for others may be due.
        self._stop_hopeless()
        return self._take_up()

    def _take_up(self) -> Assignment | None:
        """Start a trial that waits for a worker, or that is due to be promoted."""
        if self._waiting:
            number, trial = self._waiting.popleft()
        else:
            due = self._next_promotion()
            if due is None:
                return None
            number, trial = due, self.paused.pop(due)
            self._promote(number)
        progress = self.state.trials[number]
        assert progress.config is not None, "it has not ended"
        history, attempt = tuple(progress.history), progress.status.attempts + 1
        given = self._assign(number, trial, progress.config, history, attempt)
        self._stop_hopeless()
        return given

    def _propose(self) -> Assignment | None:
        """Start a new trial."""
        if not self._num_to_propose:
            return None
        number = self.num_started
        config = self.proposer.ask(number)
        if config is None:
            self._is_exhausted = True
            return None
        self.num_started += 1
        return self._assign(number, LiveTrial(self.resources_of(config)), config, (), 1)

    def _promote(self, number: int) -> None:
        assert self._asha is not None
        self._asha.promote(number)
        self._tell(TrialPromoted(number=number, rung=self._asha.last_rung(number)))

    def _assign(
        self,
        number: int,
        trial: LiveTrial,
        config: TrialConfig,
        history: tuple[EpochMetrics, ...],
        attempt: int,
    ) -> Assignment:
        self._set_ending(number, trial, None)
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
        # One that was promoted waits no more; see COUNTED.
        self._reached.pop(number, None)
        return Assignment(
            number=number,
            config=config,
            attempt=attempt,
            num_epochs=len(history),
            resources=trial.resources,
            num_parameters=started.num_parameters,
            is_measured=None not in self._costs(number),
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
            case TrialMeasured():
                self._tell(event)
            case TrialStarted():
                return self._go_on(event)
            case EpochEnded():
                return self._hear(event)
            case TrialEnded():
                self.spending.leave_epoch(event.number)
                self._set_ending(event.number, self.live[event.number], event)
            case TrialLost() | TrialPromoted():
                raise AssertionError("a worker does not say so")
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
            if (decision := self._hear(event)) != "continue":
                return decision
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
        verdict = self.scheduler.judge(number, row.epoch, *self._score(number, row))
        if verdict == "pause":
            return self._decide_at_rung(number, trial)
        if verdict is None:
            return "continue"
        self._set_ending(number, trial, self._stopped(number, verdict))
        return "stop"

    def _decide_at_rung(self, number: int, trial: LiveTrial) -> Decision:
        """Decide what a trial does that came to a rung.

        It goes on at once if its slot, given back, would take up this same trial.
        """
        # On its way it is no more, which bears on what is due.
        self._set_ending(number, trial, TrialEnded(number=number, state="paused"))
        if not self.is_draining() and self._next_promotion() == number:
            self._set_ending(number, trial, None)
            self._promote(number)
            self.proposer.note_rung(number, self.state.trials[number].history)
        self._stop_hopeless()
        if trial.ending is None:
            return "continue"
        return "pause" if trial.ending.state == "paused" else "stop"

    def _score(self, number: int, row: EpochMetrics) -> tuple[float, float, tuple[float, ...]]:
        """Return what a trial's epoch is judged by, what decides between equals, and its costs."""
        metric = self.state.search.metric
        score = score_of(row, metric)
        assert score is not None, "a run records its metric"
        costs = tuple(cost for cost in self._costs(number) if cost is not None)
        assert len(costs) == len(self.state.search.costs), "measured before its first epoch"
        return score, order_of(row, metric)[1], costs

    def _costs(self, number: int) -> list[float | None]:
        status = self.state.trials[number].status
        return [status.cost(objective) for objective in self.state.search.costs]

    def _stopped(self, number: int, stop: Stop) -> TrialEnded:
        """Return the ending of a trial that the scheduler stops, in the metric's own values."""
        value, cut = (goal.score(x, self.state.search.metric) for x in (stop.value, stop.cut))
        stop = replace(stop, value=value, cut=cut, metric=self.state.search.metric)
        return TrialEnded(number=number, state="stopped", stop=stop, reason=str(stop))

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
        if lost:
            failed = TrialEnded(number=number, state="failed", reason=lost)
            self._set_ending(number, trial, failed)
        ending = trial.ending
        assert ending is not None, f"trial {number} ended without a word"
        if ending.state == "paused":
            trial.ending = None
            self.paused[number] = trial
        self._close(ending)
        self._weigh_going_on()
        self._stop_hopeless()

    def _weigh_going_on(self) -> None:
        """End the search if what is to come is not worth the patience that it has.

        One trial at least is trained to its end: on many slots, all may wait at the first rung.
        """
        patience, metric = self.state.search.patience, self.state.search.metric
        is_one_left = bool(self.live) or self.has_more
        if patience and is_one_left and not self.draining and self.state.ended["completed"]:
            share = self.spending.share(self.num_started)
            self.reason = why_not_go_on(self._reached.values(), share, patience, metric)
            if self.reason:
                self.draining = "patience"

    def _note_reached(self, number: int) -> None:
        progress = self.state.trials[number]
        if not self.state.search.patience or progress.status.state not in COUNTED:
            self._reached.pop(number, None)
        elif best := best_row(progress.history, self.state.search.metric):
            self._reached[number] = self._score(number, best)[0]

    def _stop_hopeless(self) -> None:
        """Stop the paused trials that cannot be promoted any more, however the others do."""
        # When a search that was interrupted goes on, more trials come.
        if self._asha is None or self.is_draining():
            return
        for number, stop in self._asha.give_up(self._coming()):
            ending = self._stopped(number, stop)
            if number in self.live:
                # It came there just now, and its worker is about to give it back.
                self._set_ending(number, self.live[number], ending)
            else:
                del self.paused[number]
                self._close(ending)

    def _close(self, ending: TrialEnded) -> None:
        number = ending.number
        # Recorded before the proposer learns of it: what it learns after a kill, it reads there.
        self._tell(replace(ending, time=now()))
        self._note_reached(number)
        history = self.state.trials[number].history
        if ending.state == "paused":
            self.proposer.note_rung(number, history)
        elif ending.state != "interrupted":
            self.proposer.tell(number, ending.state, history)
        if ending.state == "failed":
            self.failures.append((number, ending.reason))
            reasons = [reason for _, reason in self.failures]
            others = self.state.ended.keys() - {"failed", "interrupted"}
            if not others and reasons == 3 * reasons[:1]:
                self.draining = self.draining or "broken"

    def lose(
        self,
        number: int,
        saved: Sequence[EpochMetrics],
        fatal: str = "",
        *,
        is_excused: bool = False,
    ) -> None:
        """Have a trial whose worker is gone taken up again, or end it.

        Args:
            number: Which trial.
            saved: The epochs that its worker had saved.
            fatal: Why it may not go on, if so.
            is_excused: Whether the loss says nothing of the trial.
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
            if not is_excused:
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
            kept = num_alike(progress.history, saved)
            # The worker was lost between saving and reporting these.
            unheard = saved[kept:]
            self.spending.leave_epoch(number, sum(row.seconds for row in unheard))
            self._write_off(number, kept)
            self._tell(TrialLost(number=number, num_epochs=kept))
            self._hear_all(progress, unheard)
        return trial.ending is not None

    def withdraw(self, number: int, how: str) -> None:
        """Have a trial without a worker end where it is, to be taken up when the run goes on.

        Args:
            number: Which trial.
            how: What became of its worker.
        """
        epoch = len(self.state.trials[number].history)
        reason = f"after epoch {epoch}, {how}"
        ending = TrialEnded(number=number, state="interrupted", reason=reason)
        self._set_ending(number, self.live[number], ending)

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
        their epochs ended, and the others wait to be promoted or to be taken up again.

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
            self.state.trials[number].config = config
            trial = restored[number] = LiveTrial(self._resources_of(record))
            if state in OPEN:
                num_outside += not self.proposer.restore(number, config)
                if self._waits_at_rung(record):
                    self.paused[number] = trial
                    self.proposer.note_rung(number, record.history)
                else:
                    self._waiting.append((number, trial))
            else:
                num_outside += not self.proposer.add(config, state, record.history, number)
            if state == "running" and record.status.passed < len(record.history):
                # An epoch of which the scheduler's word was lost is judged again; one that was
                # interrupted had passed.
                unjudged.add((number, len(record.history)))
            self._note_reached(number)
            self.num_started = max(self.num_started, number + 1)
        arrived: list[int] = []
        for number, row in in_order({record.number: record.history for record in trials}):
            trial = restored[number]
            self.spending.end_epoch(number, row.seconds, trial.resources.gpus)
            trial.num_judged = max(trial.num_judged, row.epoch)
            if not math.isfinite(row.train_loss + row.val_loss):
                continue
            if (number, row.epoch) not in unjudged:
                self.scheduler.enter(number, row.epoch, *self._score(number, row))
                continue
            verdict = self.scheduler.judge(number, row.epoch, *self._score(number, row))
            if verdict == "pause":
                arrived.append(number)
            elif verdict is not None:
                self._set_ending(number, trial, self._stopped(number, verdict))
                self._waiting.remove((number, trial))
                self.live[number] = trial
                self.end(number)
        self._restore_rungs(trials, arrived)
        self._weigh_going_on()
        return num_outside

    def _waits_at_rung(self, record: TrialRecord) -> bool:
        """Whether a trial of an earlier session was paused, and not promoted since."""
        epoch = len(record.history)
        is_at_rung = self._asha is not None and epoch in self._asha.judged_epochs(record.number)
        return record.status.state == "paused" and is_at_rung and record.status.passed < epoch

    def _restore_rungs(self, trials: Sequence[TrialRecord], arrived: Sequence[int]) -> None:
        """Tell ASHA which trials were promoted from the rung that they came to last.

        Of those that ``arrived`` there, in the order in which they did, it is decided now.
        """
        if self._asha is None:
            return
        for record in trials:
            number, status = record.number, record.status
            if number in self.paused or number in arrived:
                continue
            if status.state in OPEN or status.passed >= self._asha.last_rung(number):
                self._asha.promote(number)
                if status.state in OPEN and (rung := self._asha.last_rung(number)):
                    self.proposer.note_rung(number, record.history[:rung])
            else:
                self._asha.leave(number)
        waiting = dict(self._waiting)
        for number, trial in waiting.items():
            self._set_ending(number, trial, None)
        self.live.update((number, waiting.pop(number)) for number in arrived)
        self._waiting = deque(waiting.items())
        for number in arrived:
            trial = self.live[number]
            # The one before may have ended it, too.
            if trial.ending is None:
                self._decide_at_rung(number, trial)
        for number in arrived:
            if self.live[number].ending is None:
                waiting[number] = self.live.pop(number)
            else:
                self.end(number)
        self._waiting = deque(sorted(waiting.items(), key=lambda entry: entry[0]))
        self._stop_hopeless()

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
