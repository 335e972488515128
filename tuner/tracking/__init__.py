"""Report a search to the programs in which people already follow their trainings.

TensorBoard files are always written, below the run folder; Weights & Biases and MLflow are
notified if the user asks for it. Each tracker has its own thread, so that a slow server delays no
trial and no other tracker.
"""

import queue
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from importlib.util import find_spec
from typing import Protocol

from tuner.config import Target, TrialConfig
from tuner.errors import UsageError, first_line, how_to_get
from tuner.run.events import EpochEnded, Event, Observer, TrialEnded, TrialStarted
from tuner.run.run import Run
from tuner.run.state import SearchState
from tuner.run.trial import EpochMetrics, TrialStatus

PATIENCE_SECONDS = 60.0
"""Seconds after which a tracker that accepts nothing is abandoned, once the search has ended."""


class Tracker(Protocol):
    """Records the trials of a search in an external program."""

    def trial_started(
        self, number: int, config: TrialConfig, history: Sequence[EpochMetrics]
    ) -> None:
        """Record that a trial starts, or resumes after the epochs of ``history``."""

    def epoch_ended(self, number: int, row: EpochMetrics) -> None:
        """Record an epoch."""

    def trial_ended(
        self, number: int, status: TrialStatus, history: Sequence[EpochMetrics]
    ) -> None:
        """Record that a trial has ended, for now or for good."""

    def close(self) -> None:
        """Write everything that is still pending."""


Call = Callable[[Tracker], None]


def check_installed(targets: Sequence[Target]) -> None:
    """Refuse targets whose packages are not installed, before any training.

    Raises:
        UsageError: With the command that installs the first of them.
    """
    for target in targets:
        if find_spec(target) is None:
            raise UsageError(
                f"--log {target} needs a package that is not installed: {how_to_get(target)}"
            )


def make_trackers(run: Run, targets: Sequence[Target]) -> dict[str, Tracker]:
    """Return the trackers of a run by name."""
    from tuner.tracking.tensorboard import TensorBoard

    trackers: dict[str, Tracker] = {"TensorBoard": TensorBoard(run)}
    if "wandb" in targets:
        from tuner.tracking.wandb import WeightsAndBiases

        trackers["Weights & Biases"] = WeightsAndBiases(run)
    if "mlflow" in targets:
        from tuner.tracking.mlflow import MLflow

        trackers["MLflow"] = MLflow(run)
    return trackers


class Tracking:
    """An observer that notifies each tracker in its own thread, in the order of events.

    Args:
        state: State of the search, with each event applied before it arrives here.
        trackers: Trackers by name.
        warn: Called with a line when a tracker fails, once per tracker, in that tracker's thread.
    """

    def __init__(
        self, state: SearchState, trackers: dict[str, Tracker], warn: Callable[[str], None]
    ) -> None:
        self._state = state
        self._told: set[int] = set()
        """Trials that are open in the trackers."""
        self._tellers = {name: _Teller(name, tracker, warn) for name, tracker in trackers.items()}

    def on(self, event: Event) -> None:
        """Notify the trackers of an event; see ``Observer``."""
        number = event.number
        match event:
            case TrialStarted(config=config, history=history):
                self._told.add(number)
                self._tell(lambda tracker: tracker.trial_started(number, config, history))
            case EpochEnded(metrics=row):
                self._tell(lambda tracker: tracker.epoch_ended(number, row))
            case TrialEnded():
                # Copied now: the trial may resume before a slow tracker is notified.
                trial = self._state.trials[number]
                status, rows = trial.status, tuple(trial.history)
                if number not in self._told:
                    # It was paused, and closed in the trackers.
                    reopened = trial.config
                    assert reopened is not None, "it had not ended"
                    self._tell(lambda tracker: tracker.trial_started(number, reopened, rows))
                self._told.discard(number)
                self._tell(lambda tracker: tracker.trial_ended(number, status, rows))

    def close(self) -> None:
        """Wait for all notifications, and close the trackers; abandon one that does not respond."""
        self._tell(lambda tracker: tracker.close())
        for teller in self._tellers.values():
            teller.wait()

    def _tell(self, call: Call) -> None:
        for teller in self._tellers.values():
            teller.tell(call)


class _Teller:
    """Notifies one tracker, in a thread, until its first error."""

    def __init__(self, name: str, tracker: Tracker, warn: Callable[[str], None]) -> None:
        self._has_failed = False
        self._name = name
        self._warn = warn
        self._tracker = tracker
        self._calls: queue.SimpleQueue[Call | None] = queue.SimpleQueue()
        # A daemon thread: a server that never responds cannot keep an interrupted program alive.
        self._thread = threading.Thread(target=self._work, name=f"tracking: {name}", daemon=True)
        self._thread.start()

    def tell(self, call: Call) -> None:
        if not self._has_failed:
            self._calls.put(call)

    def wait(self) -> None:
        self._calls.put(None)
        while self._thread.is_alive():
            left = self._calls.qsize()
            self._thread.join(PATIENCE_SECONDS)
            if self._thread.is_alive() and self._calls.qsize() == left:
                self._give_up(f"no answer for {PATIENCE_SECONDS:.0f} s")
                return

    def _work(self) -> None:
        while (call := self._calls.get()) is not None:
            try:
                call(self._tracker)
            except Exception as error:
                # Clients and servers may raise anything; the run folder has all the data anyway.
                self._give_up(f"{type(error).__name__}: {first_line(error)}")
                return

    def _give_up(self, problem: str) -> None:
        if self._has_failed:
            return
        self._has_failed = True
        self._warn(f"{self._name} receives no more trials: {problem}")


@contextmanager
def tracked(
    run: Run,
    targets: Sequence[Target],
    state: SearchState,
    observers: list[Observer],
    warn: Callable[[str], None],
) -> Iterator[None]:
    """Record a search, as one of its observers, until the block ends; see ``Tracking``.

    A search that is resumed where a target is not installed continues without it, with a warning.
    """
    there = [target for target in targets if find_spec(target) is not None]
    for target in targets:
        if target not in there:
            warn(
                f"--log {target}: is not installed here, and receives nothing: {how_to_get(target)}"
            )
    tracking = Tracking(state, make_trackers(run, there), warn)
    observers.append(tracking.on)
    try:
        yield
    finally:
        observers.remove(tracking.on)
        tracking.close()
