"""What happens to each trial, from its proposal to its end.

The conductor asks the sampler, has the scheduler judge each epoch, and keeps the run folder. It
knows no engine: ``tuner.tuning.ray_backend.callbacks`` leads Ray Tune's events here.
"""

import math
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Literal, Protocol

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
from tuner.run.run import Run, now
from tuner.run.state import SearchState
from tuner.run.trial import (
    OPEN,
    EpochMetrics,
    TrialRecord,
    TrialState,
    TrialStatus,
    write_status,
    write_trial,
)
from tuner.storage.files import remove_leftovers
from tuner.training.saving import restore_files
from tuner.tuning.budget import Budget, Spending
from tuner.tuning.live_trial import LiveTrial, Outcome
from tuner.tuning.ray_backend.resources import Share, Slots
from tuner.tuning.schedulers import Scheduler

EPOCH_KEYS = tuple(EpochMetrics.__dataclass_fields__)
NOTE_SECONDS = 10.0
"""Between two records of what a search has spent."""
TOLD = ("num_parameters", "execution", "halved_from")
"""What a worker tells of its trial's status beside an epoch."""


class Proposer(Protocol):
    """Gives trials their configurations: ``Sampler``, or a list of what was chosen before."""

    def ask(self, number: int) -> TrialConfig | None:
        """Propose the configuration of trial ``number``; ``None`` if there are no more."""

    def tell(self, number: int, state: TrialState, history: Sequence[EpochMetrics]) -> None:
        """Take note of how trial ``number`` ended."""

    def add(
        self, config: TrialConfig, state: TrialState, history: Sequence[EpochMetrics], number: int
    ) -> bool:
        """Take note of a trial of an earlier session that ended; say whether it may be known."""

    def readd(self, number: int, config: TrialConfig) -> bool:
        """Take note of one that has not ended, and goes on; say as ``add``."""


DrainReason = Literal["", "interrupted", "budget", "broken"]


class Conductor:
    """Leads a search's trials and keeps its books.

    Attributes:
        live: Trials under way, by number.
        state: How the search stands.
        observers: Told of what happens.
        draining: Why no trial is started any more and running ones end, if so.
    """

    def __init__(
        self, run: Run, sampler: Proposer, scheduler: Scheduler, budget: Budget, slots: Slots
    ) -> None:
        self.run = run
        self.sampler = sampler
        self.scheduler = scheduler
        self.spending = Spending(
            budget,
            seconds=run.record.active_seconds,
            lost_gpu_seconds=run.record.lost_gpu_seconds,
        )
        self.slots = slots
        self.live: dict[int, LiveTrial] = {}
        self.state = SearchState(run.record.search)
        self.observers: list[Observer] = []
        self.draining: DrainReason = ""
        self._spending_noted = time.monotonic()
        self.failures: list[tuple[int, str]] = []
        """Number and reason of each trial that failed since this search began or went on."""
        self.num_started = 0
        self._waiting: deque[LiveTrial] = deque()

    @property
    def budget_seconds(self) -> float:
        """Time until the budget is spent, with as many GPUs held as are now; infinite without."""
        return self.spending.seconds_left(
            sum(trial.share.gpus for trial in list(self.live.values()))
        )

    @property
    def is_over(self) -> bool:
        """Whether running trials end where they are, for the budget is spent."""
        return self.draining == "budget" or self.spending.is_over

    def replay(self, trials: Sequence[TrialRecord]) -> int:
        """Bring the books to where an earlier search of this run had come.

        The sampler learns of the trials that ended, the rungs are filled in the order in which
        their epochs ended, and the others wait to be taken up again from their saved states.

        Returns:
            How many trials the space does not hold, after it was changed.
        """
        num_outside = 0
        arrivals: list[tuple[LiveTrial, EpochMetrics, bool]] = []
        mended = [self._mended(record) for record in trials]
        self.state.add(mended, have_workers=False)
        for record in mended:
            trial = LiveTrial(
                record.number,
                record.config,
                record.status,
                self._share(record),
                list(record.history),
            )
            state = record.status.state
            if state in OPEN:
                num_outside += not self.sampler.readd(trial.number, trial.config)
                self._waiting.append(trial)
            else:
                num_outside += not self.sampler.add(
                    trial.config, state, trial.history, trial.number
                )
            for row in trial.history:
                # An epoch of which the scheduler's word was lost is judged again; one that was
                # interrupted had passed.
                is_last = row.epoch == len(trial.history)
                arrivals.append((trial, row, state == "running" and is_last))
            self.num_started = max(self.num_started, record.number + 1)
        for trial, row, is_unjudged in sorted(arrivals, key=lambda arrival: arrival[1].time):
            self.spending.end_epoch(trial.number, row.seconds, trial.share.gpus)
            trial.num_judged = max(trial.num_judged, row.epoch)
            if not math.isfinite(row.train_loss + row.val_loss):
                continue
            if not is_unjudged:
                self.scheduler.enter(trial.number, row.epoch, row.val_accuracy)
            elif stop := self.scheduler.judge(trial.number, row.epoch, row.val_accuracy):
                trial.outcome = Outcome(state="stopped", stop=stop, reason=str(stop))
                self._waiting.remove(trial)
                self.live[trial.number] = trial
                self.end(trial.number)
        return num_outside

    @staticmethod
    def _mended(record: TrialRecord) -> TrialRecord:
        """Bring the folder of an earlier session's trial to where it goes on, or ended."""
        if record.status.state not in OPEN:
            # There still if the search was killed while it closed this trial's books.
            record.state.unlink(missing_ok=True)
            return record
        remove_leftovers(record.path)
        # What was not saved has to be trained again.
        return replace(record, history=tuple(restore_files(record.path)))

    @property
    def has_more(self) -> bool:
        """Whether trials wait, or may still be proposed."""
        return bool(self._waiting) or self.num_started < self.spending.budget.trials

    def is_draining(self) -> bool:
        """Whether no trial is started any more, for ``draining`` or because the budget is spent."""
        if not self.draining and self.is_over:
            self.draining = "budget"
        return bool(self.draining)

    def start(self) -> dict[str, Any] | None:
        """Take up a waiting trial, or propose a new one.

        Returns:
            What its worker is given; ``None`` when there is no trial to start. ``path`` is the
            trial's folder, ``config`` its plain configuration, ``attempt`` the number of this
            taking up, ``known`` how many of its epochs are in the books, ``cpus`` and ``gpus`` its
            share of the node, ``halved_from`` of its status, ``judged`` the epochs after which it
            may be stopped, and ``budget_seconds`` the time until the budget is spent.
        """
        if self.is_draining():
            return None
        if self._waiting:
            trial = self._waiting.popleft()
            attempts = trial.status.attempts + 1
            trial.status = replace(
                trial.status, state="running", reason="", node="", attempts=attempts
            )
        elif self.num_started < self.spending.budget.trials:
            number = self.num_started
            config = self.sampler.ask(number)
            if config is None:
                return None
            self.num_started += 1
            status = TrialStatus(state="running", attempts=1, started=now())
            trial = LiveTrial(number, config, status, self.slots.share(config))
            write_trial(self.run.trial_path(number), config)
        else:
            return None
        path = self.run.trial_path(trial.number)
        trial.status = replace(
            trial.status,
            cpus=trial.share.cpus,
            gpus=trial.share.gpus,
            # Counted here: a worker may be lost with its epochs saved and none of them reported.
            num_parameters=self.slots.num_parameters(trial.config),
        )
        write_status(path, trial.status)
        trial.began = time.monotonic()
        self.live[trial.number] = trial
        self._tell_start(trial)
        return {
            "number": trial.number,
            "path": str(path),
            "attempt": trial.status.attempts,
            "known": len(trial.history),
            "config": trial.config.to_dict(),
            "cpus": trial.share.cpus,
            "gpus": trial.share.gpus,
            "halved_from": trial.status.halved_from,
            "judged": list(self.scheduler.judged_epochs(trial.number)),
            "budget_seconds": self.budget_seconds,
        }

    def requeue(self) -> None:
        """Have the trials under way taken up again, for their workers are gone."""
        for number, trial in list(self.live.items()):
            if self._has_ended(trial):
                self.end(number)
            else:
                self._waiting.append(self.live.pop(number))

    def lose(self, number: int, fatal: str = "") -> None:
        """Have a trial whose worker is gone taken up again, or end it.

        Args:
            number: Which trial.
            fatal: Why it may not go on, if so.
        """
        trial = self.live[number]
        if self._has_ended(trial):
            self.end(number)
        elif fatal:
            self.end(number, fatal)
        elif self.draining:
            self.withdraw(number, "with its worker")
            self.end(number)
        else:
            trial.lost_on.append(trial.status.node)
            self._waiting.append(self.live.pop(number))

    def _has_ended(self, trial: LiveTrial) -> bool:
        """Whether a trial had ended when it lost its worker; if not, go back to what was saved."""
        if trial.outcome is None:
            path = self.run.trial_path(trial.number)
            self.spending.leave_epoch(trial.number)
            remove_leftovers(path)
            saved = restore_files(path)
            self._go_back(trial, len(saved))
            self._tell(TrialPaused(number=trial.number, num_epochs=len(trial.history)))
            for row in saved[len(trial.history) :]:
                # The worker was lost between saving and reporting it.
                self._hear(trial, row)
        return trial.outcome is not None

    def withdraw(self, number: int, how: str) -> None:
        """Have a trial without a worker end where it is, to be taken up when the run goes on.

        Args:
            number: Which trial.
            how: What became of its worker.
        """
        trial = self.live[number]
        trial.outcome = Outcome(
            state="interrupted", reason=f"after epoch {len(trial.history)}, {how}"
        )

    def end_waiting(self) -> None:
        """End the trials that lost their worker and, now that nothing starts, get no other."""
        while self._waiting:
            trial = self._waiting.popleft()
            # The others are as an earlier session of the run has left them.
            if trial.lost_on:
                self.live[trial.number] = trial
                self.withdraw(trial.number, "with its worker")
                self.end(trial.number)

    def keeps_going(self, number: int, report: dict[str, Any]) -> bool:
        """Take a worker's report; say whether its trial goes on."""
        trial = self.live[number]
        if "outcome" in report:
            self.spending.leave_epoch(number)
            trial.outcome = Outcome(
                state=report["outcome"],
                reason=report.get("reason", ""),
                traceback=report.get("traceback", ""),
            )
            return True
        if "node" in report:
            # The first word of every worker: where it is.
            trial.status = replace(trial.status, node=report["node"])
            self._tell(TrialPlaced(number=number, node=report["node"]))
            self.spending.begin_epoch(number, trial.share.gpus)
            write_status(self.run.trial_path(number), trial.status)
            return True
        if "back_to" in report:
            self._take_back(trial, report["back_to"])
            return True
        if "saved" in report:
            return True
        row = EpochMetrics(**{key: report[key] for key in EPOCH_KEYS})
        if row in trial.history:
            # Told by this worker before it ran short of memory and went back to what was saved.
            return True
        if row.epoch <= len(trial.history):
            # Short of memory, it had to train again what was not saved.
            self._take_back(trial, row.epoch - 1)
        # A worker that takes up a saved state knows none of it at its first epoch.
        told = {key: report[key] for key in TOLD if key in report}
        status = replace(trial.status, **told)
        if status != trial.status:
            trial.status = status
            write_status(self.run.trial_path(number), status)
        return self._hear(trial, row)

    def _hear(self, trial: LiveTrial, row: EpochMetrics) -> bool:
        """Take note of an epoch; say whether the trial goes on."""
        trial.history.append(row)
        self.spending.end_epoch(trial.number, row.seconds, trial.share.gpus)
        self._tell(
            EpochEnded(
                number=trial.number,
                metrics=row,
                num_parameters=trial.status.num_parameters,
                execution=trial.status.execution,
                halved_from=trial.status.halved_from,
            )
        )
        is_known = row.epoch <= trial.num_judged
        trial.num_judged = max(trial.num_judged, row.epoch)
        if is_known or not math.isfinite(row.train_loss + row.val_loss):
            return True
        stop = self.scheduler.judge(trial.number, row.epoch, row.val_accuracy)
        if stop is not None:
            trial.outcome = Outcome(state="stopped", stop=stop, reason=str(stop))
        return stop is None

    def _take_back(self, trial: LiveTrial, num_epochs: int) -> None:
        """Go back with a trial that has a worker."""
        self._go_back(trial, num_epochs)
        self._tell_start(trial)

    def _go_back(self, trial: LiveTrial, num_epochs: int) -> None:
        """Leave a trial's later epochs out of the books: they are trained again."""
        gone = trial.history[num_epochs:]
        del trial.history[num_epochs:]
        self.spending.write_off(sum(row.seconds for row in gone), trial.share.gpus)

    def end(self, number: int, lost: str = "") -> None:
        """Close a trial's books.

        Args:
            number: Which trial.
            lost: Why its worker is gone, if that is how it ended.
        """
        trial = self.live.pop(number)
        self.spending.leave_epoch(number)
        outcome = Outcome(state="failed", reason=lost) if lost else trial.outcome
        assert outcome is not None, f"trial {number} ended without a word"
        state = outcome.state
        trial.status = replace(
            trial.status,
            state=state,
            reason=outcome.reason,
            stop=outcome.stop,
            traceback=outcome.traceback,
            finished=now(),
        )
        path = self.run.trial_path(number)
        write_status(path, trial.status)
        if state != "interrupted":
            (path / "state.safetensors").unlink(missing_ok=True)
            self.sampler.tell(number, state, trial.history)
        self._tell(
            TrialEnded(
                number=number,
                state=state,
                reason=outcome.reason,
                stop=outcome.stop,
                traceback=outcome.traceback,
                time=trial.status.finished,
            )
        )
        if state == "failed":
            self.failures.append((number, outcome.reason))
            reasons = [reason for _, reason in self.failures]
            others = self.state.ended.keys() - {"failed", "interrupted"}
            if not others and reasons == 3 * reasons[:1]:
                self.draining = self.draining or "broken"
        self._record_spending()

    def note_spending(self) -> None:
        """Record what was spent, once in a while: a kill of the driver may forget no more."""
        if time.monotonic() - self._spending_noted >= NOTE_SECONDS:
            self._record_spending()

    def _record_spending(self) -> None:
        self._spending_noted = time.monotonic()
        self.run.update(
            active_seconds=self.spending.seconds,
            lost_gpu_seconds=self.spending.lost_gpu_seconds,
        )

    def _tell_start(self, trial: LiveTrial) -> None:
        self._tell(
            TrialStarted(
                number=trial.number,
                config=trial.config,
                history=tuple(trial.history),
                attempt=trial.status.attempts,
                cpus=trial.share.cpus,
                gpus=trial.share.gpus,
                num_parameters=trial.status.num_parameters,
                time=trial.status.started,
            )
        )

    def _tell(self, event: Event) -> None:
        self.state.apply(event)
        for observer in self.observers:
            observer(event)

    def _share(self, record: TrialRecord) -> Share:
        """Return what a trial of an earlier session held, or what it is to go on with."""
        status = record.status
        if status.state in OPEN or status.cpus is None or status.gpus is None:
            return self.slots.share(record.config)
        return Share(cpus=status.cpus, gpus=status.gpus)
