"""The budget of a search, and how much of it is spent."""

import math
import time
from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True, slots=True)
class Budget:
    """The budget of a search; once it is spent, the search ends as if no trials were left."""

    trials: int
    seconds: float = math.inf
    """Search time in seconds, summed over resumes."""
    gpu_seconds: float = math.inf
    """Seconds of GPU time held by trials during their epochs, summed over resumes."""


class Spending:
    """The part of its budget that a search has spent, summed over resumes.

    The GPU time of a running epoch counts from the end of the previous one, or from its worker's
    first message; once the epoch has ended, its own seconds count.

    Args:
        budget: The limits.
        seconds: Search time of earlier sessions.
        lost_gpu_seconds: GPU time of earlier sessions that no epoch of a trial accounts for.
        clock: Returns the time, in seconds.
    """

    def __init__(
        self,
        budget: Budget,
        *,
        seconds: float = 0.0,
        lost_gpu_seconds: float = 0.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.budget = budget
        self.clock = clock
        self.lost_gpu_seconds = lost_gpu_seconds
        self._gpu_seconds = lost_gpu_seconds
        self._earlier_seconds = seconds
        self._began = clock()
        self._under_way: dict[int, tuple[float, float]] = {}
        """Trial -> when its running epoch began, and the GPUs that it holds."""

    @property
    def seconds(self) -> float:
        """Seconds spent searching."""
        return self._earlier_seconds + self.clock() - self._began

    @property
    def gpu_seconds(self) -> float:
        """Seconds of GPU time spent in epochs, including the running ones so far."""
        now = self.clock()
        under_way = list(self._under_way.values())
        return self._gpu_seconds + sum((now - began) * gpus for began, gpus in under_way)

    @property
    def gpus_under_way(self) -> float:
        """GPUs held by the trials whose time is being counted."""
        return sum(gpus for _, gpus in list(self._under_way.values()))

    @property
    def is_endless(self) -> bool:
        """Whether neither time nor GPU time is limited."""
        return self.budget.seconds == self.budget.gpu_seconds == math.inf

    @property
    def is_over(self) -> bool:
        """Whether the time or the GPU time of the budget is spent."""
        if self.is_endless:
            return False
        return self.seconds >= self.budget.seconds or self.gpu_seconds >= self.budget.gpu_seconds

    def share(self, num_trials: int) -> float:
        """Return the spent share of the budget: the largest among trials, time and GPU time.

        Args:
            num_trials: Number of trials proposed so far.
        """
        budget = self.budget
        return max(
            num_trials / budget.trials,
            self.seconds / budget.seconds,
            self.gpu_seconds / budget.gpu_seconds,
        )

    def seconds_left(self, gpus: float) -> float:
        """Return the seconds left with ``gpus`` held; infinite if the budget has no limit."""
        if self.is_endless:
            return math.inf
        left = self.budget.seconds - self.seconds
        if gpus:
            left = min(left, (self.budget.gpu_seconds - self.gpu_seconds) / gpus)
        return max(0.0, left)

    def begin_epoch(self, number: int, gpus: float) -> None:
        """Start counting the time of a trial."""
        self._under_way[number] = (self.clock(), gpus)

    def end_epoch(self, number: int, seconds: float, gpus: float) -> None:
        """Count an epoch that has ended; if its trial is still running, begin the next one."""
        self._gpu_seconds += seconds * gpus
        if number in self._under_way:
            self.begin_epoch(number, gpus)

    def leave_epoch(self, number: int, counted: float = 0.0) -> None:
        """Count the time of a trial's unfinished epoch, if one is running.

        Args:
            number: The trial.
            counted: Seconds of this time that are counted separately, as epochs.
        """
        began, gpus = self._under_way.pop(number, (0.0, 0.0))
        spent = max(0.0, self.clock() - began - counted) * gpus
        self._gpu_seconds += spent
        self.lost_gpu_seconds += spent

    def write_off(self, seconds: float, gpus: float) -> None:
        """Record that epochs were trained for nothing; they still count as spent."""
        self.lost_gpu_seconds += seconds * gpus
