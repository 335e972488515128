"""How far a gain can be trusted, and what each member adds to it."""

import math
from dataclasses import dataclass

from torch import Tensor

from tuner.metrics.figures import Interval
from tuner.metrics.intervals import LEVEL, quantile, wilson
from tuner.voting import soft_vote

NO_GAIN = Interval(gain=0.0, low=0.0, high=0.0)
"""Gain of a classifier over itself: nothing is left to chance."""


def paired_gain(correct: Tensor, baseline: Tensor) -> Interval:
    """Return the gain in accuracy over a baseline on the same images, with its interval.

    The interval is the adjusted Wald interval of Bonett & Price (2012), "Adjusted Wald confidence
    interval for a difference of binomial proportions based on paired data", which adds two images:
    one that only the first gets right and one that only the baseline does. From 100 images on, its
    coverage is as stated, while the bootstrap and Newcombe's (1998) method 10 cover less if the two
    rarely differ. It is not empty even if the two never differ, since they may on other images.

    It reflects chance in the choice of test images, not in the training seeds.

    Args:
        correct: Whether each image is classified correctly, bool, shape (N,); or, for several
            classifiers, the share that are correct, in [0, 1].
        baseline: The same for the baseline.

    Raises:
        ValueError: If the two are not about the same images, or about none.
    """
    if correct.shape != baseline.shape or correct.ndim != 1 or not len(correct):
        raise ValueError(
            f"a paired gain needs two results for each image, got {tuple(correct.shape)} and "
            f"{tuple(baseline.shape)}"
        )
    differences = correct.double() - baseline.double()
    total = differences.sum().item()
    # The two added images contribute +1 and -1: nothing to the sum, 2 to the sum of squares.
    count = len(differences) + 2
    centre = total / count
    variance = (differences.square().sum().item() + 2) / count - centre**2
    margin = quantile(LEVEL) * math.sqrt(variance / count)
    return Interval(
        gain=total / len(differences),
        low=max(-1.0, centre - margin),
        high=min(1.0, centre + margin),
    )


def mcnemar(correct: Tensor, baseline: Tensor) -> float:
    """Return the p-value of McNemar's exact test (1947; two-sided, binomial).

    This is the chance of a split at least this uneven of the images that exactly one of the two
    gets right, if each were equally likely to be the right one.

    Args:
        correct: Whether each image is classified correctly, bool, shape (N,).
        baseline: The same for the baseline.
    """
    from scipy.special import bdtr  # Takes 0.1 s, which a search would otherwise wait for, too.

    won = int((correct & ~baseline).sum())
    lost = int((~correct & baseline).sum())
    # Twice the smaller tail, by symmetry. Like scipy.stats, whose import takes a second.
    return min(1.0, 2 * float(bdtr(min(won, lost), won + lost, 0.5)))


@dataclass(frozen=True, kw_only=True, slots=True)
class SizeResult:
    """Result of the first ``k`` members together, their weights scaled to sum to one."""

    k: int
    accuracy: float
    low: float
    high: float
    """95 % interval of the accuracy; see ``wilson``."""
    gain: float
    gain_low: float
    gain_high: float
    """Gain over the best single candidate, with its paired interval."""
    mcnemar_p: float
    """P-value of McNemar's exact test for the same comparison."""


def by_size(
    probs: Tensor,
    weights: Tensor,
    labels: Tensor,
    baseline: Tensor,
    *,
    is_baseline_first: bool = False,
) -> list[SizeResult]:
    """Return the result of each number of members, from the first alone to all.

    Args:
        probs: Probabilities of the members, shape (M, N, K), best first.
        weights: Shape (M,), positive.
        labels: int64, shape (N,).
        baseline: Whether the best single candidate gets each image right, bool, shape (N,).
        is_baseline_first: Whether that candidate is the first member.
    """
    results = []
    for k in range(1, len(probs) + 1):
        vote = soft_vote(probs[:k], weights[:k] / weights[:k].sum())
        correct = vote.argmax(dim=1) == labels
        accuracy = correct.double().mean().item()
        low, high = wilson(accuracy, len(correct))
        is_itself = is_baseline_first and k == 1
        gain = NO_GAIN if is_itself else paired_gain(correct, baseline)
        results.append(
            SizeResult(
                k=k,
                accuracy=accuracy,
                low=low,
                high=high,
                gain=gain.gain,
                gain_low=gain.low,
                gain_high=gain.high,
                mcnemar_p=mcnemar(correct, baseline),
            )
        )
    return results


def contributions(probs: Tensor, weights: Tensor, labels: Tensor) -> list[float | None]:
    """Return the accuracy of the vote minus that of the vote without each member.

    Args:
        probs: Shape (M, N, K).
        weights: Shape (M,), positive, summing to 1.
        labels: int64, shape (N,).

    Returns:
        One per member; ``None`` for a single member, without which nobody votes.
    """
    if len(probs) == 1:
        return [None]

    def accuracy(shares: Tensor) -> float:
        vote = soft_vote(probs, shares)
        return (vote.argmax(dim=1) == labels).double().mean().item()

    whole = accuracy(weights)
    changes: list[float | None] = []
    for member in range(len(probs)):
        others = weights.clone()
        others[member] = 0
        changes.append(whole - accuracy(others / others.sum()))
    return changes


def disagreement(probs: Tensor) -> Tensor:
    """Return the share of images that each two members classify differently, shape (M, M).

    Args:
        probs: Shape (M, N, K).
    """
    predicted = probs.argmax(dim=2)
    return (predicted[:, None] != predicted[None]).double().mean(dim=2)


def error_correlation(probs: Tensor, labels: Tensor) -> list[list[float | None]]:
    """Return the Pearson correlation of the members' mistakes, as M rows of M values.

    Args:
        probs: Shape (M, N, K).
        labels: int64, shape (N,).

    Returns:
        In [-1, 1]; ``None`` if a member is always right or always wrong.
    """
    wrong = (probs.argmax(dim=2) != labels).double()
    centred = wrong - wrong.mean(dim=1, keepdim=True)
    covariance = centred @ centred.T
    spread = covariance.diagonal().sqrt()
    is_defined = spread.outer(spread) > 0
    correlation = (covariance / spread.outer(spread)).clamp(-1, 1)
    return [
        [value if defined else None for value, defined in zip(*row, strict=True)]
        for row in zip(correlation.tolist(), is_defined.tolist(), strict=True)
    ]


def oracle_accuracy(probs: Tensor, labels: Tensor) -> float:
    """Return the share of images that at least one member gets right, the limit of any choice.

    Args:
        probs: Shape (M, N, K).
        labels: int64, shape (N,).
    """
    return (probs.argmax(dim=2) == labels).any(dim=0).double().mean().item()
