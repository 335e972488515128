"""How well the order of trials at a rung predicts their order at the next one.

It is shown, but nothing depends on it. Under a scheduler that promotes, it is known only for the
best at a rung, and is too low: by ``tests/benchmarks/patience.py``, a rule that skips a rung whose
interval reaches below 0.3 would skip many, hardly any of which are worth so little among all.
"""

import itertools
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from tuner.config import SearchConfig, rung_epochs
from tuner.run.trial import EpochMetrics, score_of

MIN_TRIALS = 8
"""Minimum number of trials; with fewer, an interval would say nothing."""
MOST_TRIALS = 500
"""Maximum number of trials; of more, the newest are enough."""
RESAMPLES = 400

Pairs = tuple[tuple[float, float], ...]
"""Scores of trials at a rung and at the next one, by the metric of the search."""


@dataclass(frozen=True, kw_only=True, slots=True)
class RungWorth:
    """The rank correlation (Spearman) of scores at a rung with those at the next one.

    It covers the trials that reached both. If the others were held back, these are the best, whose
    order is harder to predict than the order of all trials.
    """

    epoch: int
    next_epoch: int
    is_end: bool
    """Whether the next one is the last epoch."""
    correlation: float
    low: float
    high: float
    """Ends of the 95 % interval, from a bootstrap over trials."""
    trials: int

    def __str__(self) -> str:
        told = "the end" if self.is_end else f"epoch {self.next_epoch}"
        span = f"{self.correlation:.2f} ({self.low:.2f} to {self.high:.2f})"
        return f"epoch {self.epoch} tells {told}: {span}, {self.trials} trials"


def rung_worths(
    search: SearchConfig, histories: Iterable[Sequence[EpochMetrics]]
) -> list[RungWorth]:
    """Return the worth of each rung for which enough trials are known, lowest rung first.

    Args:
        search: Defines the rungs; there are none without a scheduler.
        histories: The histories of its trials.
    """
    if search.scheduler == "none":
        return []
    known, metric = list(histories), search.metric
    marks = [*rung_epochs(search.grace, search.reduction, search.epochs), search.epochs]
    worths = []
    for epoch, next_epoch in itertools.pairwise(marks):
        # Cut first: in a running search, another thread may take an epoch back.
        cut = [history[:next_epoch] for history in known if len(history) >= next_epoch]
        came = [rows for rows in cut if len(rows) == next_epoch]
        # The live table lists trials in the order of their start, the pages by rank.
        came = sorted(came, key=lambda rows: rows[-1].time)[-MOST_TRIALS:]
        scores = [(score_of(rows[epoch - 1], metric), score_of(rows[-1], metric)) for rows in came]
        # A diverged epoch has no score.
        pairs = tuple((one, end) for one, end in scores if one is not None and end is not None)
        found = _correlation(pairs) if len(pairs) >= MIN_TRIALS else None
        if found is not None:
            correlation, low, high = found
            worths.append(
                RungWorth(
                    epoch=epoch,
                    next_epoch=next_epoch,
                    is_end=next_epoch == search.epochs,
                    correlation=correlation,
                    low=low,
                    high=high,
                    trials=len(pairs),
                )
            )
    return worths


# The live table calls this several times a second.
@lru_cache(maxsize=32)
def _correlation(pairs: Pairs) -> tuple[float, float, float] | None:
    """Return the correlation with its interval; ``None`` if all scores at a rung are equal."""
    # Trials come in the order of their start or rank; the resamples must not depend on it.
    values = np.array(sorted(pairs))
    whole = _spearman(values)
    generator = np.random.default_rng(0)
    drawn = [
        _spearman(values[generator.integers(len(values), size=len(values))])
        for _ in range(RESAMPLES)
    ]
    known = [one for one in drawn if one is not None]
    if whole is None or not known:
        return None
    low, high = map(float, np.quantile(known, [0.025, 0.975]))
    return whole, low, high


def _spearman(values: np.ndarray) -> float | None:
    ranks = np.array([_ranks(column) for column in values.T])
    deviations = ranks - ranks.mean(axis=1, keepdims=True)
    scale = np.sqrt((deviations**2).sum(axis=1).prod())
    return float((deviations[0] * deviations[1]).sum() / scale) if scale else None


def _ranks(values: np.ndarray) -> np.ndarray:
    """Return the rank of each value, from 1; equal values share their mean rank."""
    _, places, counts = np.unique(values, return_inverse=True, return_counts=True)
    return (counts.cumsum() - (counts - 1) / 2)[places]
