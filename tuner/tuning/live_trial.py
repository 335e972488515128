"""A trial between its proposal and its end, as the conductor knows it."""

import math
from dataclasses import dataclass, field

from tuner.config import TrialConfig
from tuner.run.trial import EpochMetrics, Stop, TrialState, TrialStatus
from tuner.tuning.ray_backend.resources import Share


@dataclass(frozen=True, kw_only=True, slots=True)
class Outcome:
    """How a trial ends: the worker's last word, or the conductor's decision."""

    state: TrialState
    reason: str = ""
    stop: Stop | None = None
    traceback: str = ""


@dataclass(slots=True)
class LiveTrial:
    """A trial that is under way, or waits to be taken up again."""

    number: int
    config: TrialConfig
    status: TrialStatus
    share: Share
    history: list[EpochMetrics] = field(default_factory=list)
    num_judged: int = 0
    """Epochs of which the scheduler knows; one that is trained again is not judged again."""
    began: float = -math.inf
    """When it was last started, in seconds of the monotonic clock."""
    lost_on: list[str] = field(default_factory=list)
    """The nodes on which it lost a worker; empty for a worker that had not said a word."""
    outcome: Outcome | None = None
