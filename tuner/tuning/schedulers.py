"""Which trials are stopped early, and the reason for each."""

import math
from collections.abc import Collection
from typing import Protocol

import numpy as np

from tuner.config import SearchConfig, rung_epochs
from tuner.run.trial import Stop

MIN_PEERS = 3
"""Trials that the median rule wants to compare with before it stops one."""


class Scheduler(Protocol):
    """Judges trials by their validation accuracy after each epoch.

    ``enter`` and ``judge`` leave the same state, so that a search that is resumed comes to where it
    was.
    """

    def judged_epochs(self, number: int) -> Collection[int]:
        """Return the epochs after which trial ``number`` may be stopped."""

    def enter(self, number: int, epoch: int, value: float) -> None:
        """Take note of a trial's accuracy after ``epoch``, without judging it.

        Raises:
            ValueError: If ``value`` is not finite, since NaN would pass every comparison.
        """

    def judge(self, number: int, epoch: int, value: float) -> Stop | None:
        """Take note of a trial's accuracy after ``epoch``; say why it has to stop, or ``None``.

        Raises:
            ValueError: As ``enter``.
        """


class Asha:
    """Asynchronous successive halving, the variant that stops (Li et al. 2020, arXiv 1810.05934).

    Rungs lie at ``grace * reduction ** i`` epochs, below the last epoch. A trial that comes to a
    rung goes on if its accuracy is in the best ``1 / reduction`` of those that came there before;
    the first always goes on.
    """

    def __init__(self, *, grace: int, reduction: int, epochs: int) -> None:
        self.reduction = reduction
        self.rungs: dict[int, list[float]] = {
            epoch: [] for epoch in rung_epochs(grace, reduction, epochs)
        }
        """Epoch of the rung -> the accuracies that arrived, in their order."""

    def judged_epochs(self, number: int) -> Collection[int]:
        """See ``Scheduler``."""
        return self.rungs.keys()

    def enter(self, number: int, epoch: int, value: float) -> None:
        """See ``Scheduler``."""
        _check_finite(value)
        if epoch in self.rungs:
            self.rungs[epoch].append(value)

    def judge(self, number: int, epoch: int, value: float) -> Stop | None:
        """See ``Scheduler``."""
        arrived = self.rungs.get(epoch, [])
        cut = float(np.quantile(arrived, 1 - 1 / self.reduction)) if arrived else -math.inf
        stop = Stop(rung=epoch, value=value, cut=cut, peers=len(arrived)) if value < cut else None
        self.enter(number, epoch, value)
        return stop


class Hyperband:
    """Hyperband without waiting: several ASHA side by side, each more patient than the one before.

    The rungs of bracket s begin at ``grace * reduction ** s`` epochs; the last bracket has none.
    Each trial is drawn into one bracket and judged by its peers there. A bracket with k rungs gets
    trials in proportion to ``reduction ** k / (k + 1)``, so that all brackets train about as many
    epochs (Li et al. 2018, JMLR 18:185, algorithm 1; drawn at random as by Klein et al. 2020, arXiv
    2003.10865).
    """

    def __init__(self, *, grace: int, reduction: int, epochs: int, seed: int) -> None:
        self.seed = seed
        self.brackets = [Asha(grace=grace, reduction=reduction, epochs=epochs)]
        while self.brackets[-1].rungs:
            grace *= reduction
            self.brackets.append(Asha(grace=grace, reduction=reduction, epochs=epochs))
        num_rungs = np.array([len(bracket.rungs) for bracket in self.brackets])
        weights = float(reduction) ** num_rungs / (num_rungs + 1)
        self.shares = weights / weights.sum()
        """Part of the trials that each bracket gets."""

    def bracket(self, number: int) -> Asha:
        """Return the bracket of trial ``number``, the same whenever it is asked for."""
        draw = np.random.default_rng((self.seed, number)).choice(len(self.brackets), p=self.shares)
        return self.brackets[draw]

    def judged_epochs(self, number: int) -> Collection[int]:
        """See ``Scheduler``."""
        return self.bracket(number).judged_epochs(number)

    def enter(self, number: int, epoch: int, value: float) -> None:
        """See ``Scheduler``."""
        self.bracket(number).enter(number, epoch, value)

    def judge(self, number: int, epoch: int, value: float) -> Stop | None:
        """See ``Scheduler``."""
        return self.bracket(number).judge(number, epoch, value)


class Median:
    """The median stopping rule of Vizier (Golovin et al. 2017, section 3.2.2).

    From ``grace`` epochs on and below the last, a trial stops if its best accuracy so far is below
    the median of what the other trials had on average from their first epoch to this one. It
    compares with those that came to this epoch before, if there are ``MIN_PEERS``.
    """

    def __init__(self, *, grace: int, epochs: int) -> None:
        self.judged = range(grace, epochs)
        self.averages: dict[int, list[float]] = {}
        """Epoch -> the mean accuracies up to it of the trials that arrived, in their order."""
        self._best: dict[int, float] = {}
        self._total: dict[int, float] = {}

    def judged_epochs(self, number: int) -> Collection[int]:
        """See ``Scheduler``."""
        return self.judged

    def enter(self, number: int, epoch: int, value: float) -> None:
        """See ``Scheduler``."""
        _check_finite(value)
        self._best[number] = max(value, self._best.get(number, value))
        self._total[number] = self._total.get(number, 0.0) + value
        self.averages.setdefault(epoch, []).append(self._total[number] / epoch)

    def judge(self, number: int, epoch: int, value: float) -> Stop | None:
        """See ``Scheduler``."""
        peers = list(self.averages.get(epoch, ()))
        self.enter(number, epoch, value)
        if epoch not in self.judged or len(peers) < MIN_PEERS:
            return None
        best, cut = self._best[number], float(np.median(peers))
        return Stop(rung=epoch, value=best, cut=cut, peers=len(peers)) if best < cut else None


def make_scheduler(search: SearchConfig) -> Scheduler:
    """Return the scheduler that ``search`` names; ``none`` is ASHA without a rung."""
    grace, reduction, epochs = search.grace, search.reduction, search.epochs
    match search.scheduler:
        case "asha":
            return Asha(grace=grace, reduction=reduction, epochs=epochs)
        case "hyperband":
            return Hyperband(grace=grace, reduction=reduction, epochs=epochs, seed=search.seed)
        case "median":
            return Median(grace=grace, epochs=epochs)
        case "none":
            return Asha(grace=epochs, reduction=reduction, epochs=epochs)


def _check_finite(value: float) -> None:
    if not math.isfinite(value):
        raise ValueError(f"an accuracy must be finite, got {value}")
