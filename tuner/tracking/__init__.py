"""What a search tells to the programs that people already watch their trainings with.

TensorBoard's files are always written, below the run folder; Weights & Biases and MLflow are told
where the user asks for it. Each is told of the search in a thread of its own, so that a slow server
holds up no trial and no other tracker.
"""

import queue
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from importlib.util import find_spec
from typing import Literal, Protocol

from tuner.config import TrialConfig
from tuner.errors import UsageError
from tuner.run.run import Run
from tuner.run.state import Observer
from tuner.run.trial import EpochMetrics, TrialStatus

Target = Literal["wandb", "mlflow"]
PATIENCE_SECONDS = 60.0
"""A tracker that takes nothing for so long, once the search has ended, is left."""


class Tracker(Observer, Protocol):
    """An observer of a search that has to be closed."""

    def close(self) -> None:
        """Write what has not been written."""


Event = Callable[[Tracker], None]


def check_installed(targets: Sequence[Target]) -> None:
    """Refuse targets whose packages are not there, before anything is trained.

    Raises:
        UsageError: With the command that installs the first of them.
    """
    for target in targets:
        if find_spec(target) is None:
            raise UsageError(
                f"--log {target} needs a package that is not installed: "
                f"pip install 'cifar-tune[{target}]'"
            )


def make_trackers(run: Run, targets: Sequence[Target]) -> dict[str, Tracker]:
    """Return what records the trials of a run, by name."""
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
    """An observer that tells each tracker in a thread of its own, in the order of events.

    Args:
        trackers: By name.
        warn: Given a line when a tracker cannot go on, once each, in that tracker's thread.
    """

    def __init__(
        self, trackers: dict[str, Tracker], warn: Callable[[str], None] | None = None
    ) -> None:
        self._tellers = {name: _Teller(name, tracker, warn) for name, tracker in trackers.items()}

    @property
    def problems(self) -> dict[str, str]:
        """Name of each tracker that could not go on -> why. A search does not end for it."""
        return {name: teller.problem for name, teller in self._tellers.items() if teller.problem}

    def trial_began(
        self, number: int, config: TrialConfig, history: Sequence[EpochMetrics]
    ) -> None:
        """See ``Observer``."""
        rows = tuple(history)
        self._tell(lambda tracker: tracker.trial_began(number, config, rows))

    def epoch_ended(self, number: int, row: EpochMetrics) -> None:
        """See ``Observer``."""
        self._tell(lambda tracker: tracker.epoch_ended(number, row))

    def trial_ended(
        self, number: int, status: TrialStatus, history: Sequence[EpochMetrics]
    ) -> None:
        """See ``Observer``."""
        rows = tuple(history)
        self._tell(lambda tracker: tracker.trial_ended(number, status, rows))

    def close(self) -> None:
        """Wait until all is told, and close the trackers; leave one that has stopped answering."""
        self._tell(lambda tracker: tracker.close())
        for teller in self._tellers.values():
            teller.wait()

    def _tell(self, event: Event) -> None:
        for teller in self._tellers.values():
            teller.tell(event)


class _Teller:
    """Tells one tracker, in a thread, until its first error."""

    def __init__(self, name: str, tracker: Tracker, warn: Callable[[str], None] | None) -> None:
        self.problem = ""
        self._name = name
        self._warn = warn
        self._tracker = tracker
        self._events: queue.SimpleQueue[Event | None] = queue.SimpleQueue()
        # As a daemon, a server that never answers cannot keep an interrupted program alive.
        self._thread = threading.Thread(target=self._work, name=f"tracking: {name}", daemon=True)
        self._thread.start()

    def tell(self, event: Event) -> None:
        if not self.problem:
            self._events.put(event)

    def wait(self) -> None:
        self._events.put(None)
        while self._thread.is_alive():
            left = self._events.qsize()
            self._thread.join(PATIENCE_SECONDS)
            if self._thread.is_alive() and self._events.qsize() == left:
                self._give_up(f"no answer for {PATIENCE_SECONDS:.0f} s")
                return

    def _work(self) -> None:
        while (event := self._events.get()) is not None:
            try:
                event(self._tracker)
            except Exception as error:
                # Whatever a client or its server raises: the run folder has all of it anyway.
                self._give_up(f"{type(error).__name__}: {error}".splitlines()[0])
                return

    def _give_up(self, problem: str) -> None:
        if self.problem:
            return
        self.problem = problem
        if self._warn:
            self._warn(f"{self._name} is told of no more trials: {problem}")


@contextmanager
def tracked(
    run: Run,
    targets: Sequence[Target],
    observers: list[Observer],
    warn: Callable[[str], None] | None = None,
) -> Iterator[Tracking]:
    """Record a search, from its observers' list, until the block ends; see ``Tracking``."""
    tracking = Tracking(make_trackers(run, targets), warn)
    observers.append(tracking)
    try:
        yield tracking
    finally:
        observers.remove(tracking)
        tracking.close()
