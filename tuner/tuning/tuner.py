"""Decides what happens to each trial, from its proposal to its end.

The tuner gets configurations from the proposer, has the scheduler judge each epoch, and enforces
the budget. It neither runs nor writes anything itself: a driver requests trials (``next``) and
passes their events back (``on``). ``ray_backend`` is one driver, ``planning.simulated`` another.
"""

import math
import statistics
from collections import Counter, deque
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field, replace
from itertools import islice
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
from tuner.run.run_record import now
from tuner.run.state import SearchState, TrialProgress, in_order, is_known, num_alike
from tuner.run.trial import OPEN, EpochMetrics, Stop, TrialRecord, best_row, order_of, score_of
from tuner.tuning.budget import Spending
from tuner.tuning.proposers import Proposer
from tuner.tuning.resources import TrialResources
from tuner.tuning.schedulers import Asha, Prefer, Scheduler

SPARE = 1.1
"""Time allowed for what is left of a trial, as a multiple of what its epochs so far predict."""

DrainReason = Literal["", "interrupted", "budget", "patience", "broken"]
Decision = Literal["continue", "pause", "stop"]
"""What a worker does with its trial; a paused trial has to be saved, too."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Assignment:
    """A trial as it is given to a worker."""

    number: int
    config: TrialConfig
    attempt: int
    """How often the trial was given to a worker, including this time."""
    num_epochs: int
    """Number of known epochs, after which it continues."""
    resources: TrialResources
    num_parameters: int
    is_measured: bool
    """Whether the costs of its network are known, or not needed."""
    halved_from: int | None
    """See ``TrialStatus``."""
    judged_epochs: tuple[int, ...]
    """Epochs after which it may be paused or stopped."""
    budget_seconds: float
    """Seconds until the budget is spent."""


@dataclass(slots=True)
class LiveTrial:
    """A trial that is under way or waits: what is known in addition to its progress."""

    resources: TrialResources
    num_judged: int = 0
    """Number of epochs that the scheduler knows; a repeated epoch is not judged again."""
    began: float = -math.inf
    """When it was last given to a worker, in seconds of the tuner's clock."""
    lost_on: list[str] = field(default_factory=list)
    """Nodes on which it lost a worker; an empty string for a worker that had sent no message."""
    ending: TrialEnded | None = None
    """Its worker's last message, or the scheduler's decision."""
    came_from: int | None = None
    """The last rung that it reached, 0 before the first; ``None`` if it heads for no other one."""


class Tuner:
    """Decides what the trials of a search do.

    Attributes:
        state: Current state of the search.
        live: Trials under way, by number.
        paused: Trials that wait at a rung, by number.
        observers: Notified of each event; the one that records the run comes first.
        draining: Why no more trials are started and running ones end; empty otherwise.
        reason: Why continuing is not worth it, if the search ends by its patience.
        failures: Number and reason of each trial that failed since the search began or resumed.
        num_started: Number of trials proposed, over all resumes.
        prefer: Chooses the waiting trial to promote at every second promotion in the last third of
            the budget; see ``Asha.next_promotion``.
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
        """Trial that has ended, or is paused -> its best score, if the search has patience."""
        self.prefer: Prefer | None = None
        self._waiting: deque[tuple[int, LiveTrial]] = deque()
        self._asha = scheduler if isinstance(scheduler, Asha) else None
        self._under_way: Counter[int] = Counter()
        """Rung -> number of trials that left it and continue; see ``LiveTrial.came_from``."""
        self._is_exhausted = False
        """Whether the proposer has no more configurations."""

    # What to start

    def next(
        self, has_room: Callable[[Collection[TrialResources]], bool]
    ) -> Assignment | Literal["wait", "done"]:
        """Return the next trial to start.

        Args:
            has_room: Returns whether one more trial fits alongside the running ones.

        Returns:
            ``wait`` if none can be started for now, ``done`` if none will be.
        """
        # Checked before room: a search can end without waiting for a node.
        if self.is_draining() or not self.has_more:
            if not self.live:
                self.end_waiting()
            return "wait" if self.live else "done"
        if self._next_promotion() in self.live:
            # Its worker is about to return it.
            return "wait"
        # Trials beyond the available room would be proposed before the sampler could learn from
        # those under way.
        if not has_room([trial.resources for trial in self.live.values()]):
            return "wait"
        # A trial under way may lose its worker, and then has to be started again.
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
        """Whether no trial is started any more: ``draining`` is set, or the budget is spent."""
        if not self.draining and self.is_over:
            self.draining = "budget"
        return bool(self.draining)

    @property
    def is_over(self) -> bool:
        """Whether running trials end at once because the budget is spent."""
        return self.draining == "budget" or self.spending.is_over

    def seconds_left(self, starting: float = 0.0) -> float:
        """Return the seconds until the budget is spent with the GPUs held; infinite if never.

        Trials that wait for a node count only before the first one runs.

        Args:
            starting: GPUs of a trial that is about to start, in addition to those held now.
        """
        held = self.spending.gpus_under_way
        if held:
            held += starting
        else:
            held = sum(trial.resources.gpus for trial in list(self.live.values()))
        return self.spending.seconds_left(held)

    @property
    def _num_to_propose(self) -> int:
        """Number of trials that may still be proposed."""
        left = self.spending.budget.trials - self.num_started
        return 0 if self._is_exhausted else max(0, left)

    def _next_promotion(self) -> int | None:
        """Return the paused trial to promote next, if there is one."""
        if self._asha is None:
            return None
        prefer = self.prefer if self.prefer and self._is_last_third else None
        due = self._asha.next_promotion(self._coming(), prefer)
        ending = self._last_to_end_in_time(due)
        return due if ending is None else ending

    def _last_to_end_in_time(self, due: int | None) -> int | None:
        """Return a waiting trial that ends before the budget only if it is promoted now, if any.

        Under a schedule whose learning rate falls to the end, trials gain most in their last
        epochs, and those that wait when the time is over have not had them. As many of the best
        waiting trials are considered as there are slots: each slot can train one to its end.

        Args:
            due: The trial that would be promoted now, if any; otherwise, a new one is started.
        """
        slow = self.state.slowest_epoch_seconds
        if self._asha is None or self.spending.is_endless or slow is None:
            return None
        left = self.seconds_left()
        rung = 0 if due is None else self._asha.last_rung(due)
        stage = slow * self._asha.epochs_to_next_rung(rung)
        if left > slow * self.state.search.epochs * SPARE + stage:
            # The usual case, in which none has to be looked at.
            return None
        for number in islice(self._asha.waiting(), max(1, len(self.live))):
            progress = self.state.trials[number]
            assert progress.config is not None, "it has not ended"
            mean = statistics.fmean(row.seconds for row in progress.history)
            needed = mean * (progress.config.epochs - len(progress.history))
            if needed <= left < needed * SPARE + stage:
                return number
        return None

    @property
    def _is_last_third(self) -> bool:
        """Whether two thirds of the budget are spent: of its trials, its time or its GPU time."""
        return self.spending.share(self.num_started) >= 2 / 3

    def _coming(self) -> Counter[int]:
        """Return the number of trials under way by the last rung they reached; see ``Asha``."""
        coming = self._under_way.copy()
        coming[0] += self._num_to_propose
        return coming

    def _set_ending(self, number: int, trial: LiveTrial, ending: TrialEnded | None) -> None:
        """Record how a trial under way, or waiting for a worker, will end; ``None`` to continue.

        Rungs are counted here, per event: looking through a thousand trials would take longer than
        all other decisions.
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
        """Start a waiting trial, promote one, or propose a new one; ``None`` if there is none."""
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
        # Apply the event first: the observer that records the run writes the state, so a trial's
        # status exists before its worker starts.
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
        # A promoted trial no longer waits; see COUNTED.
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
            budget_seconds=self.seconds_left(trial.resources.gpus),
        )

    # What happens to it

    def on(self, event: Event) -> Decision:
        """Process a worker's message; return whether its trial continues."""
        match event:
            case TrialPlaced():
                # The first message of every worker: where it is.
                self._tell(event)
                self.spending.begin_epoch(event.number, self.live[event.number].resources.gpus)
            case TrialMeasured():
                self._tell(event)
            case TrialStarted():
                return self._go_on(event)
            case EpochEnded():
                return self._count_and_judge(event)
            case TrialEnded():
                self.spending.leave_epoch(event.number)
                self._set_ending(event.number, self.live[event.number], event)
            case TrialLost() | TrialPromoted():
                raise AssertionError("a worker does not say so")
        return "continue"

    def _go_on(self, event: TrialStarted) -> Decision:
        """Continue a trial after the epochs that its worker reports, if others were known.

        A worker that is short of memory, or cannot use the saved state, repeats some epochs. A lost
        worker may have saved others without reporting them.
        """
        progress = self.state.trials[event.number]
        kept = num_alike(progress.history, event.history)
        if kept < len(progress.history):
            self._write_off(event.number, kept)
            self._tell(replace(event, history=event.history[:kept], time=progress.status.started))
        return self._count_and_judge_all(progress, event.history[kept:])

    def _count_and_judge_all(
        self, progress: TrialProgress, rows: Sequence[EpochMetrics]
    ) -> Decision:
        for row in rows:
            status = progress.status
            event = EpochEnded(
                number=progress.number,
                metrics=row,
                num_parameters=status.num_parameters,
                execution=status.execution,
                halved_from=status.halved_from,
            )
            if (decision := self._count_and_judge(event)) != "continue":
                return decision
        return "continue"

    def _count_and_judge(self, event: EpochEnded) -> Decision:
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
        """Decide what a trial does at the rung that it has reached.

        It continues at once if its slot, once free, would be given to this same trial.
        """
        # It is no longer on its way, which affects which trial is due.
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
        """Return the score, the tie-breaker and the costs by which a trial's epoch is judged."""
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
        """Record the end of a trial.

        Args:
            number: Number of the trial.
            lost: Why its worker was lost, if that is how it ended.
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
        """End the search if the gain that is still expected is not worth its patience.

        At least one trial is trained to its end: with many slots, all may wait at the first rung.
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
        """Stop the paused trials that can no longer be promoted, whatever the others achieve."""
        # When an interrupted search is resumed, more trials follow.
        if self._asha is None or self.is_draining():
            return
        for number, stop in self._asha.give_up(self._coming()):
            ending = self._stopped(number, stop)
            if number in self.live:
                # It has just arrived, and its worker is about to return it.
                self._set_ending(number, self.live[number], ending)
            else:
                del self.paused[number]
                self._close(ending)

    def _close(self, ending: TrialEnded) -> None:
        number = ending.number
        # Record it before the proposer learns of it: after a kill, it learns from the record.
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
        """Queue a trial whose worker was lost to be started again, or end it.

        Args:
            number: Number of the trial.
            saved: The epochs that its worker had saved.
            fatal: Why it may not continue, if so.
            is_excused: Whether the loss says nothing about the trial or its node.
        """
        trial = self.live[number]
        if trial.ending is None:
            self._go_back(number, saved)
        if trial.ending is not None:
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

    def _go_back(self, number: int, saved: Sequence[EpochMetrics]) -> None:
        """Revert a trial that lost its worker to its saved epochs, which may end it."""
        progress = self.state.trials[number]
        kept = num_alike(progress.history, saved)
        # The worker was lost between saving and reporting these.
        unheard = saved[kept:]
        self.spending.leave_epoch(number, sum(row.seconds for row in unheard))
        self._write_off(number, kept)
        self._tell(TrialLost(number=number, num_epochs=kept))
        self._count_and_judge_all(progress, unheard)

    def withdraw(self, number: int, how: str) -> None:
        """Interrupt a trial without a worker where it is; it continues when the run is resumed.

        Args:
            number: Number of the trial.
            how: What happened to its worker.
        """
        epoch = len(self.state.trials[number].history)
        reason = f"after epoch {epoch}, {how}"
        ending = TrialEnded(number=number, state="interrupted", reason=reason)
        self._set_ending(number, self.live[number], ending)

    def end_waiting(self) -> None:
        """End the trials that lost their worker and, now that nothing starts, get no other one."""
        while self._waiting:
            number, trial = self._waiting.popleft()
            # The others were interrupted in an earlier session of the run.
            if self.state.trials[number].status.state == "running":
                self.live[number] = trial
                self.withdraw(number, "with its worker")
                self.end(number)

    # How it continues after a resume

    def restore(self, trials: Sequence[TrialRecord]) -> int:
        """Restore the state that an earlier session of this search had reached.

        The proposer learns from the trials that ended, the rungs are filled in the order in which
        epochs ended, and the other trials wait to be promoted or started again.

        Args:
            trials: Records from the trials' folders, with the epochs after which they can continue.

        Returns:
            Number of trials that lie outside the space, which may have changed.
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
            if self._lacks_verdict(record):
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

    def _lacks_verdict(self, record: TrialRecord) -> bool:
        """Whether the verdict on a trial's last epoch in an earlier session may have been lost.

        An interrupted trial had passed its last epoch. If it is at a rung and was not promoted, a
        full disk cut it between saving and reporting.
        """
        is_open = record.status.state == "running" or (
            record.status.state == "interrupted" and self._is_at_rung(record)
        )
        return is_open and record.status.passed < len(record.history)

    def _waits_at_rung(self, record: TrialRecord) -> bool:
        """Whether a trial of an earlier session was paused, and not promoted since."""
        is_promoted = record.status.passed >= len(record.history)
        return record.status.state == "paused" and self._is_at_rung(record) and not is_promoted

    def _is_at_rung(self, record: TrialRecord) -> bool:
        """Whether a trial of an earlier session ended at a rung that pauses trials."""
        return self._asha is not None and len(record.history) in self._asha.rungs

    def _restore_rungs(self, trials: Sequence[TrialRecord], arrived: Sequence[int]) -> None:
        """Inform ASHA which trials were promoted from each rung.

        The trials that ``arrived`` at a rung are decided now, in their order of arrival.
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
        # A trial that passed a rung under another scheduler, or a larger grace, took no place.
        passed = [min(record.status.passed, len(record.history)) for record in trials]
        for epoch, peers in self._asha.rungs.items():
            peers.num_promoted = sum(last >= epoch for last in passed)
        waiting = dict(self._waiting)
        for number, trial in waiting.items():
            self._set_ending(number, trial, None)
        self.live.update((number, waiting.pop(number)) for number in arrived)
        self._waiting = deque(waiting.items())
        for number in arrived:
            trial = self.live[number]
            # The trial before may have ended this one, too.
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
        """Return the resources that a trial of an earlier session held, or will continue with."""
        status = record.status
        if status.state in OPEN or status.cpus is None or status.gpus is None:
            return self.resources_of(record.config)
        return TrialResources(cpus=status.cpus, gpus=status.gpus)

    def _tell(self, event: Event) -> None:
        self.state.apply(event)
        for observer in self.observers:
            observer(event)
