"""What a search may spend, and what it has spent."""

import math
import time
from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True, slots=True)
class Budget:
    """What a search may spend; then it ends as if it had had no more trials."""

    trials: int
    seconds: float = math.inf
    """Seconds of searching, over all resumes."""
    gpu_seconds: float = math.inf
    """Seconds of GPUs held by trials in their epochs, over all resumes."""


class Spending:
    """What a search has spent of its budget, over all resumes.

    The GPU time of an epoch under way counts from the end of the one before, or from its worker's
    first word; once the epoch has ended, its own seconds count.

    Args:
        budget: What it may spend.
        seconds: Spent by earlier sessions.
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
        """Trial -> when its epoch under way began, and the GPUs that it holds."""

    @property
    def seconds(self) -> float:
        """Time spent searching."""
        return self._earlier_seconds + self.clock() - self._began

    @property
    def gpu_seconds(self) -> float:
        """GPU time spent in epochs, those under way as far as they have come."""
        now = self.clock()
        under_way = list(self._under_way.values())
        return self._gpu_seconds + sum((now - began) * gpus for began, gpus in under_way)

    @property
    def gpus_under_way(self) -> float:
        """GPUs of the trials whose time counts at present."""
        return sum(gpus for _, gpus in self._under_way.values())

    @property
    def is_endless(self) -> bool:
        """Whether there is no end to what may be spent."""
        return self.budget.seconds == self.budget.gpu_seconds == math.inf

    @property
    def is_over(self) -> bool:
        """Whether nothing of the budget is left."""
        if self.is_endless:
            return False
        return self.seconds >= self.budget.seconds or self.gpu_seconds >= self.budget.gpu_seconds

    def share(self, num_trials: int) -> float:
        """Return the share of the budget that is spent, of what ends first.

        Args:
            num_trials: Trials that were proposed.
        """
        budget = self.budget
        return max(
            num_trials / budget.trials,
            self.seconds / budget.seconds,
            self.gpu_seconds / budget.gpu_seconds,
        )

    def seconds_left(self, gpus: float) -> float:
        """Return the time until the budget is spent with ``gpus`` held; infinite without one."""
        if self.is_endless:
            return math.inf
        left = self.budget.seconds - self.seconds
        if gpus:
            left = min(left, (self.budget.gpu_seconds - self.gpu_seconds) / gpus)
        return max(0.0, left)

    def begin_epoch(self, number: int, gpus: float) -> None:
        """Count the time of a trial from now on."""
        self._under_way[number] = (self.clock(), gpus)

    def end_epoch(self, number: int, seconds: float, gpus: float) -> None:
        """Count an epoch; if its trial is under way, its next one begins."""
        self._gpu_seconds += seconds * gpus
        if number in self._under_way:
            self.begin_epoch(number, gpus)

    def leave_epoch(self, number: int, counted: float = 0.0) -> None:
        """Count the time of an epoch that is not trained to its end, if one is under way.

        Args:
            number: Its trial.
            counted: Seconds of this time that are those of epochs, and are counted as such.
        """
        began, gpus = self._under_way.pop(number, (0.0, 0.0))
        spent = max(0.0, self.clock() - began - counted) * gpus
        self._gpu_seconds += spent
        self.lost_gpu_seconds += spent

    def write_off(self, seconds: float, gpus: float) -> None:
        """Note that epochs were trained for nothing; they count all the same."""
        self.lost_gpu_seconds += seconds * gpus
