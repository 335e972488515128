"""Events of a search, passed between workers, tuner, run folder and displays."""

from collections.abc import Callable
from dataclasses import dataclass

from tuner.config import TrialConfig
from tuner.run.trial import EpochMetrics, Stop, TrialState


@dataclass(frozen=True, kw_only=True, slots=True)
class TrialStarted:
    """A trial starts, resumes, or goes back to fewer epochs because it has to repeat some.

    The tuner emits it with each assignment. A worker reports it only if it resumes after other
    epochs than assigned, or tries again.
    """

    number: int
    config: TrialConfig
    history: tuple[EpochMetrics, ...] = ()
    """The epochs after which it resumes; later ones that are known are trained again."""
    attempt: int = 1
    """How many times a worker was given the trial, including this time."""
    cpus: float | None = None
    gpus: float | None = None
    """Its resources; ``None`` if they were not recorded."""
    num_parameters: int = 0
    """As in ``TrialStatus``."""
    time: str = ""
    """ISO 8601, UTC."""


@dataclass(frozen=True, kw_only=True, slots=True)
class TrialPlaced:
    """The worker of a trial has reported on which node of the cluster it runs."""

    number: int
    node: str


@dataclass(frozen=True, kw_only=True, slots=True)
class TrialMeasured:
    """The worker of a trial has measured the costs of its network, before its first epoch."""

    number: int
    latency_ms: float | None = None
    size_mb: float | None = None
    """Both as in ``TrialStatus``; ``None`` if it is not an objective of the search."""


@dataclass(frozen=True, kw_only=True, slots=True)
class TrialLost:
    """A trial has lost its worker and waits to be resumed."""

    number: int
    num_epochs: int
    """The epochs after which it will resume; later ones were lost with its worker."""


@dataclass(frozen=True, kw_only=True, slots=True)
class TrialPromoted:
    """A trial continues beyond a rung: at once, or after it has waited there."""

    number: int
    rung: int
    """In epochs."""


@dataclass(frozen=True, kw_only=True, slots=True)
class EpochEnded:
    """A trial has completed an epoch; includes what is known about its network by then."""

    number: int
    metrics: EpochMetrics
    num_parameters: int = 0
    execution: str = ""
    halved_from: int | None = None
    """All three as in ``TrialStatus``."""


@dataclass(frozen=True, kw_only=True, slots=True)
class TrialEnded:
    """A trial has ended, for good unless ``state`` is ``paused`` or ``interrupted``."""

    number: int
    state: TrialState
    reason: str = ""
    stop: Stop | None = None
    traceback: str = ""
    time: str = ""
    """ISO 8601, UTC."""


Event = (
    TrialStarted | TrialPlaced | TrialMeasured | TrialLost | TrialPromoted | EpochEnded | TrialEnded
)
Observer = Callable[[Event], None]
"""Is called with each event after it was applied to the state of the search."""
