"""Which trials are stopped early, and the reason for each."""

import math
from typing import Protocol

import numpy as np

from tuner.config import SearchConfig
from tuner.run import Stop


class Scheduler(Protocol):
    """Judges trials by their validation accuracy after each epoch."""

    def enter(self, number: int, epoch: int, value: float) -> None:
        """Take note of a trial's accuracy after ``epoch``, without judging it."""

    def judge(self, number: int, epoch: int, value: float) -> Stop | None:
        """Take note of a trial's accuracy after ``epoch``; say why it has to stop, or ``None``.

        Raises:
            ValueError: If ``value`` is not finite, since NaN would pass every comparison.
        """


class Asha:
    """Asynchronous successive halving, the variant that stops (Li et al. 2020, arXiv 1810.05934).

    Rungs lie at ``grace * reduction ** i`` epochs, below the last epoch. A trial that comes to a
    rung goes on if its accuracy is in the best ``1 / reduction`` of those that came there before;
    the first always goes on.
    """

    def __init__(self, *, grace: int, reduction: int, epochs: int) -> None:
        self.reduction = reduction
        self.rungs: dict[int, list[float]] = {}
        """Epoch of the rung -> the accuracies that arrived, in their order."""
        while grace < epochs:
            self.rungs[grace] = []
            grace *= reduction

    def enter(self, number: int, epoch: int, value: float) -> None:
        """See ``Scheduler``."""
        if epoch in self.rungs:
            self.rungs[epoch].append(value)

    def judge(self, number: int, epoch: int, value: float) -> Stop | None:
        """See ``Scheduler``."""
        _check_finite(value)
        arrived = self.rungs.get(epoch, [])
        cut = float(np.quantile(arrived, 1 - 1 / self.reduction)) if arrived else -math.inf
        stop = Stop(rung=epoch, value=value, cut=cut, peers=len(arrived)) if value < cut else None
        self.enter(number, epoch, value)
        return stop


def make_scheduler(search: SearchConfig) -> Scheduler:
    """Give the scheduler that ``search`` names; ``none`` is ASHA without a rung."""
    grace = search.grace if search.scheduler == "asha" else search.epochs
    return Asha(grace=grace, reduction=search.reduction, epochs=search.epochs)


def _check_finite(value: float) -> None:
    if not math.isfinite(value):
        raise ValueError(f"an accuracy must be finite, got {value}")
