"""Whether combining is worth it, by cross-fitted figures of the validation images alone.

No test image has a part in it: what is advised was never chosen on them.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from tuner.config import Method, Metric
from tuner.ensemble.choosing import Choice
from tuner.metrics import goal
from tuner.metrics.bootstrap import paired_bootstrap
from tuner.metrics.intervals import LEVEL, quantile
from tuner.metrics.predict import score
from tuner.metrics.significance import NO_GAIN, Interval, paired_gain
from tuner.voting import SMALLEST_PROB, probs_of_truth

VOTES: tuple[Method, ...] = ("vote", "greedy", "weighted")
"""Methods whose choice computes no network, and among which one is advised."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Standing:
    """What a choice is worth on validation images that had no part in it."""

    method: Method | None
    """``None`` for the best single candidate."""
    num_members: int
    accuracy: float
    nll: float
    gain: Interval
    """In accuracy, over the best single candidate."""
    nll_gain: Interval
    """By how much the NLL is lower than that of the best single candidate, in nats."""
    metric: Metric = "accuracy"
    """What counts."""
    value: float
    """Value of the metric."""
    metric_gain: Interval
    """In the metric, over the best single candidate; above 0 it is the better one."""

    @property
    def better_by(self) -> Literal["metric", "NLL"] | None:
        """By what it is told apart from the best single candidate as the better one.

        A lower NLL counts only if the metric is no worse.
        """
        if self.metric_gain.low > 0:
            return "metric"
        return "NLL" if self.metric_gain.gain >= 0 and self.nll_gain.low > 0 else None


@dataclass(frozen=True, kw_only=True, slots=True)
class Verdict:
    """What was asked for, held against the best single candidate, and what is advised."""

    text: str
    """In a sentence."""
    images: int
    """Validation images that told."""
    top: int
    """Members, or most members, of what was asked for."""
    best_single: int
    """The trial that is the best by the metric on them all."""
    single: Standing
    asked: Standing
    advised: Standing


def judge(
    single: Choice,
    asked: Choice,
    votes: Sequence[Choice],
    labels: Tensor,
    *,
    top: int,
    trial: int,
    metric: Metric = "accuracy",
) -> Verdict:
    """Hold choices against the best single candidate.

    Args:
        single: The best single candidate, calibrated if the others are.
        asked: The choice that was asked for.
        votes: Choices among which one is advised, if one is better than the single candidate.
        labels: Of the validation images, int64, shape (N,).
        top: Members, or most members, of what was asked for.
        trial: Number of the best single candidate's trial.
        metric: What counts.
    """
    alone = _standing(single, single, labels, metric)
    own = _standing(asked, single, labels, metric)
    # What was asked for may be a soup, which is advised to none but who thought of it.
    standings = [own, *(_standing(vote, single, labels, metric) for vote in votes)]
    better = [standing for standing in standings if standing.better_by]
    advised = max(
        better,
        key=lambda one: (one.better_by == "metric", goal.score(one.value, metric), -one.nll),
        default=alone,
    )
    return Verdict(
        text=_sentence(alone, own, advised, trial, len(labels)),
        images=len(labels),
        top=top,
        best_single=trial,
        single=alone,
        asked=own,
        advised=advised,
    )


def _standing(choice: Choice, single: Choice, labels: Tensor, metric: Metric) -> Standing:
    scores = score(choice.crossfit, labels)
    if choice.members == single.members == (0,):
        gain = nll_gain = metric_gain = NO_GAIN
    else:
        correct = choice.crossfit.argmax(dim=1) == labels
        gain = paired_gain(correct, single.crossfit.argmax(dim=1) == labels)
        nll_gain = _nll_gain(choice.crossfit, single.crossfit, labels)
        match metric:
            case "accuracy":
                metric_gain = gain
            case "nll":
                metric_gain = nll_gain
            case _:
                metric_gain = paired_bootstrap(choice.crossfit, single.crossfit, labels, metric)
    return Standing(
        method=choice.method,
        num_members=len(choice.members),
        accuracy=scores.accuracy,
        nll=scores.nll,
        gain=gain,
        nll_gain=nll_gain,
        metric=metric,
        value=scores.value(metric),
        metric_gain=metric_gain,
    )


def _nll_gain(probs: Tensor, baseline: Tensor, labels: Tensor) -> Interval:
    """Return by how much the NLL is lower than a baseline's, with its paired 95 % interval."""
    both = probs_of_truth(torch.stack([probs, baseline]).double(), labels).clamp_min(SMALLEST_PROB)
    gains = both[0].log() - both[1].log()
    mean = gains.mean().item()
    margin = quantile(LEVEL) * gains.std().item() / math.sqrt(len(gains))
    return Interval(gain=mean, low=mean - margin, high=mean + margin)


def _sentence(single: Standing, asked: Standing, advised: Standing, trial: int, images: int) -> str:
    if asked.gain == NO_GAIN and asked.num_members == 1:
        what = "right on" if single.metric == "accuracy" else f"{goal.name_of(single.metric)}"
        on = "of" if single.metric == "accuracy" else "on"
        told = (
            f"The best single, trial {trial}, stands alone, {what} {_spelt(single)} {on} "
            f"{images} validation images"
        )
    else:
        what = asked.method or "vote"
        whole = f"The {what}" if what in ("vote", "soup") else f"The {what} vote"
        whole = whole.replace("soup vote", "soup")
        told = f"{whole} of {asked.num_members} {_compared(asked, single, trial, images)}"
    is_single = advised.method is None and asked.num_members == 1 and asked.gain == NO_GAIN
    if advised == asked or is_single:
        return f"{told}. Take it."
    if advised.method is None:
        return f"{told}. Take trial {trial} alone: --top 1."
    nll = "" if advised.metric == "nll" else f", NLL {advised.nll:.4f}"
    return f"{told}. Take --method {advised.method}: {_spelt(advised)}, {_gained(advised)}{nll}."


def _compared(asked: Standing, single: Standing, trial: int, images: int) -> str:
    by = asked.metric
    of = "of" if by == "accuracy" else "on"
    figures = (
        f"{_spelt(asked)} against {_spelt(single)} {of} {images} validation images, "
        f"cross-fitted, {_gained(asked)}"
    )
    other = f"the best single, trial {trial}"
    better, worse = (
        ("is more accurate than", "is less accurate than")
        if by == "accuracy"
        else (f"is better by {goal.name_of(by)} than", f"is worse by {goal.name_of(by)} than")
    )
    if asked.better_by == "metric":
        return f"{better} {other}: {figures}"
    if asked.metric_gain.high < 0:
        return f"{worse} {other}: {figures}"
    if asked.better_by == "NLL":
        return (
            f"is not told apart from {other}, by {goal.name_of(by)}: {figures}; its probabilities "
            f"are better, NLL {asked.nll:.4f} against {single.nll:.4f}"
        )
    told = "" if by == "accuracy" else f" by {goal.name_of(by)}"
    return f"is not told apart from {other}{told}: {figures}"


def _spelt(standing: Standing) -> str:
    return goal.spelt(standing.value, standing.metric)


def _gained(standing: Standing) -> str:
    """Write the gain in the metric's own direction: a lower NLL has a minus."""
    gain = standing.metric_gain
    if standing.metric == "nll":
        return f"{-gain.gain:+.4f} [{-gain.high:+.4f}, {-gain.low:+.4f}]"
    low, high = 100 * gain.low, 100 * gain.high
    return f"{100 * gain.gain:+.2f} points [{low:+.2f}, {high:+.2f}]"
