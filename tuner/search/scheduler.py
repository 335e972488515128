"""ASHA by epochs: which trials are stopped early, and the reason for each."""

import math

import numpy as np

from tuner.config import SearchConfig
from tuner.run import Stop


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

    def judge(self, epoch: int, value: float) -> Stop | None:
        """Enter a trial's accuracy after ``epoch``; say why it has to stop, or ``None``.

        Raises:
            ValueError: If ``value`` is not finite, since NaN would pass every comparison.
        """
        if not math.isfinite(value):
            raise ValueError(f"an accuracy must be finite, got {value}")
        if epoch not in self.rungs:
            return None
        arrived = self.rungs[epoch]
        cut = float(np.quantile(arrived, 1 - 1 / self.reduction)) if arrived else value
        peers = len(arrived)
        arrived.append(value)
        return Stop(rung=epoch, value=value, cut=cut, peers=peers) if value < cut else None


def make_scheduler(search: SearchConfig) -> Asha:
    """Give the scheduler that ``search`` names; ``none`` is ASHA without a rung."""
    grace = search.grace if search.scheduler == "asha" else search.epochs
    return Asha(grace=grace, reduction=search.reduction, epochs=search.epochs)
