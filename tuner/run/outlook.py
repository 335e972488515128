"""The gain that a search can expect if it continues.

If trials are independent draws, each new best is a record, and records become ever rarer. If small
errors follow a power law, a search that becomes ``r`` times as long has ``r ** -a`` times the error
of its best. Here ``a`` is the mean log distance of the small errors from the next one (the
estimator of Hill 1975). ``tests/benchmarks/patience.py`` measures how accurate the estimate is, on
searches of recorded curves with TPE and promoting ASHA.
"""

import heapq
import math
from collections.abc import Iterable, Sequence

from tuner.config import Metric
from tuner.metrics import goal
from tuner.run.run import Run, clock
from tuner.run.trial import TrialRecord, TrialState, score_of

MIN_TRIALS = 12
"""Minimum number of trials for an estimate."""
TAIL, LEAST_TAIL = 0.1, 3
"""Share of the trials that form the tail, and the minimum number of trials in it."""
FACTOR = 2.0
"""Multiplies the exponent, as measured on LCBench: a few small errors underestimate it, because it
is largest where the best is smallest, and because a sampler learns. On Taskset it is twice too
much, which makes a search end later rather than sooner."""
LEAST_ERROR = 1e-9
"""Replaces an error of 0, which has no logarithm."""
MIN_SHARE = 1 / 4
"""Share of the budget below which no search is ended: no sampler has learnt much by then."""
AHEAD = 1 / 4
"""Share of the budget whose expected gain decides whether a search continues."""
LONGEST = 3600.0
"""Maximum seconds to look ahead, but never longer than a search has taken so far."""
COUNTED: frozenset[TrialState] = frozenset({"completed", "stopped", "paused"})
"""States of the trials whose scores are used for the estimate."""


def expected_gain(scores: Iterable[float], ratio: float, metric: Metric) -> float | None:
    """Return how much the best score of a search is likely to improve as the search continues.

    Args:
        scores: The best score of each trial in one of the states ``COUNTED``; more is better.
        ratio: How many times as long the search becomes.
        metric: The metric of the scores.

    Returns:
        The expected gain, from 0 to the error of the best; ``None`` if there are too few trials.
    """
    most = 0.0 if metric in goal.LOWER_IS_BETTER else 1.0
    known = [max(most - score, LEAST_ERROR) for score in scores]
    if len(known) < MIN_TRIALS:
        return None
    size = max(LEAST_TAIL, math.ceil(TAIL * len(known)))
    *tail, threshold = heapq.nsmallest(size + 1, known)
    exponent = sum(math.log(threshold / error) for error in tail) / size
    return tail[0] * (1 - math.pow(ratio, -FACTOR * exponent))


def why_not_go_on(scores: Iterable[float], share: float, patience: float, metric: Metric) -> str:
    """Return why a search is not worth continuing; empty if it may be, or too little is known.

    Args:
        scores: As in ``expected_gain``.
        share: Share of its budget that is spent.
        patience: Points that the next quarter of the budget has to gain.
        metric: The metric to improve.
    """
    if share < MIN_SHARE:
        return ""
    gain = expected_gain(scores, (share + AHEAD) / share, metric)
    if gain is None or 100 * gain >= patience:
        return ""
    return (
        f"a further quarter of the budget is expected to bring {in_points(gain, metric)}, "
        f"less than the {patience:g} of --patience"
    )


def in_points(gain: float, metric: Metric) -> str:
    """Format a gain in points; for NLL, a point is a hundredth of a nat."""
    sign = "-" if metric in goal.LOWER_IS_BETTER else "+"
    points = 100 * gain
    return f"{sign}{points:.{1 if points >= 0.1 else 2}f} points"


def outlook_of(run: Run, trials: Sequence[TrialRecord]) -> str:
    """Describe the gain of continuing a search; empty for a refit, and before it has begun.

    Args:
        run: The run.
        trials: Its trials.
    """
    record = run.record
    seconds, metric = record.active_seconds, record.search.metric
    if record.refit or not trials or not seconds:
        return ""
    bests = [trial.best for trial in trials if trial.is_scored and trial.status.state in COUNTED]
    scores = [score_of(best, metric) for best in bests if best is not None]
    known = [score for score in scores if score is not None]
    ahead = min(LONGEST, seconds)
    gain = expected_gain(known, (seconds + ahead) / seconds, metric)
    if gain is None:
        return (
            f"The gain of continuing can be estimated from {MIN_TRIALS} scored trials; there are "
            f"{len(known)} so far."
        )
    span = "Another hour" if ahead == LONGEST else f"As long again, {clock(seconds)},"
    return f"{span} would bring about {in_points(gain, metric)}."
