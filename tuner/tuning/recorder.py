"""Writes the run folder of a search: each event is on disk before anything acts on it."""

import time
from collections.abc import Callable
from dataclasses import replace

from tuner.run.events import Event, TrialEnded, TrialStarted
from tuner.run.layout import STATE
from tuner.run.run import Run
from tuner.run.state import SearchState
from tuner.run.trial import (
    OPEN,
    EpochMetrics,
    TrialRecord,
    TrialStatus,
    write_status,
    write_trial,
)
from tuner.storage.files import remove_leftovers
from tuner.training.saving import restore_files
from tuner.tuning.budget import Budget, Spending
from tuner.tuning.proposers import Proposer
from tuner.tuning.resources import CapacityPlan
from tuner.tuning.schedulers import make_scheduler
from tuner.tuning.tuner import Tuner

NOTE_SECONDS = 10.0
"""Seconds between two records of what a search has spent."""


class Recorder:
    """Writes the events of a search to its run folder: the first observer of the tuner.

    Args:
        run: The run.
        state: State of the search; each event is applied to it before it is passed here.
        spending: What the search has spent.
    """

    def __init__(self, run: Run, state: SearchState, spending: Spending) -> None:
        self.run = run
        self._state = state
        self._spending = spending
        self._spending_noted = time.monotonic()
        self._written: dict[int, TrialStatus] = {}
        """Number of a trial that has not ended -> its status as last written."""

    def on(self, event: Event) -> None:
        """Record an event; see ``Observer``."""
        number = event.number
        path = self.run.trial_path(number)
        if isinstance(event, TrialStarted) and event.attempt == 1 and number not in self._written:
            write_trial(path, event.config)
        status = self._state.trials[number].status
        if status != self._written.get(number):
            write_status(path, status)
            self._written[number] = status
        if isinstance(event, TrialEnded):
            del self._written[number]
            if event.state not in OPEN:
                (path / STATE).unlink(missing_ok=True)
            self.record_spending()

    def note_spending(self) -> None:
        """Record what was spent every ``NOTE_SECONDS``, so that a killed driver loses no more."""
        if time.monotonic() - self._spending_noted >= NOTE_SECONDS:
            self.record_spending()

    def record_spending(self) -> None:
        """Record what was spent."""
        self._spending_noted = time.monotonic()
        self.run.update(
            active_seconds=self._spending.seconds,
            lost_gpu_seconds=self._spending.lost_gpu_seconds,
        )

    def saved_epochs(self, number: int) -> list[EpochMetrics]:
        """Restore the saved state of a trial that lost its worker; return its epochs."""
        path = self.run.trial_path(number)
        remove_leftovers(path)
        return restore_files(path)

    def restore(self) -> list[TrialRecord]:
        """Restore the folder so that an earlier session can be resumed; return its trials."""
        return [self._restored(record) for record in self.run.trials()]

    def _restored(self, record: TrialRecord) -> TrialRecord:
        if record.status.state == "paused" and record.state.exists():
            # It was saved before it was paused.
            return record
        if record.status.state in OPEN:
            # Epochs that were not saved have to be trained, judged and promoted again.
            history = tuple(self.saved_epochs(record.number))
            passed = min(record.status.passed, len(history))
            return replace(record, history=history, status=replace(record.status, passed=passed))
        # It still exists if the search was killed while it was closing this trial.
        record.state.unlink(missing_ok=True)
        return record


def make_tuner(
    run: Run,
    proposer: Proposer,
    budget: Budget,
    plan: CapacityPlan,
    clock: Callable[[], float] = time.monotonic,
) -> tuple[Tuner, Recorder]:
    """Return the tuner of a run, and the recorder of its events."""
    record = run.record
    state = SearchState(record.search)
    spending = Spending(
        budget,
        seconds=record.active_seconds,
        lost_gpu_seconds=record.lost_gpu_seconds,
        clock=clock,
    )
    tuner = Tuner(
        state,
        proposer,
        make_scheduler(record.search),
        spending,
        plan.resources_of,
        count_parameters=plan.count_parameters,
    )
    recorder = Recorder(run, state, spending)
    tuner.observers.append(recorder.on)
    return tuner, recorder
