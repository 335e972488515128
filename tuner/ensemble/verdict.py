"""Whether combining is worth it, judged by cross-fitted figures on validation images alone.

Test images play no part: the advice was not chosen on them.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from tuner.config import Method, Metric
from tuner.ensemble.choosing import Choice
from tuner.ensemble.request import SOUPS
from tuner.metrics import goal
from tuner.metrics.bootstrap import paired_bootstrap
from tuner.metrics.figures import Interval
from tuner.metrics.intervals import LEVEL, quantile
from tuner.metrics.predict import score
from tuner.metrics.significance import NO_GAIN, paired_gain
from tuner.voting import probs_of_truth

VOTES: tuple[Method, ...] = ("vote", "greedy", "weighted")
"""Methods that choose without computing a network, and one of which is advised."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Standing:
    """The value of a choice on validation images that played no part in it."""

    method: Method | None
    """``None`` for the best single candidate."""
    num_members: int
    accuracy: float
    nll: float
    gain: Interval
    """Gain in accuracy over the best single candidate."""
    nll_gain: Interval
    """How much lower the NLL is than that of the best single candidate, in nats."""
    metric: Metric = "accuracy"
    """The metric that counts."""
    value: float
    """Value of the metric."""
    metric_gain: Interval
    """Gain in the metric over the best single candidate; above 0, the choice is better."""

    @property
    def better_by(self) -> Literal["metric", "NLL"] | None:
        """What shows it to be better than the best single candidate, if anything.

        A lower NLL counts only if the metric is no worse.
        """
        if self.metric_gain.low > 0:
            return "metric"
        return "NLL" if self.metric_gain.gain >= 0 and self.nll_gain.low > 0 else None


@dataclass(frozen=True, kw_only=True, slots=True)
class Verdict:
    """The requested choice compared with the best single candidate, and the advice."""

    text: str
    """The verdict in words."""
    images: int
    """Number of validation images judged on."""
    top: int
    """Number of members requested, or the maximum."""
    best_single: int
    """The best trial by the metric on all of these images."""
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
    """Compare choices with the best single candidate.

    Args:
        single: The best single candidate, calibrated if the others are.
        asked: The requested choice.
        votes: Choices among which one is advised, if one is better than the single candidate.
        labels: Labels of the validation images, int64, shape (N,).
        top: Number of members requested, or the maximum.
        trial: Number of the best single candidate's trial.
        metric: The metric that counts.
    """
    alone = _standing(single, single, labels, metric)
    own = _standing(asked, single, labels, metric)
    # The request may be a soup, which is advised only to those who asked for it. The single network
    # at another temperature is no other choice.
    others = (vote for vote in votes if vote.members != single.members)
    standings = [own, *(_standing(vote, single, labels, metric) for vote in others)]
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
    if torch.equal(choice.crossfit, single.crossfit):
        gain = nll_gain = metric_gain = NO_GAIN
    else:
        correct, alone = (one.crossfit.argmax(dim=1) == labels for one in (choice, single))
        # A network gives the same answers at any temperature.
        is_same = choice.members == single.members and torch.equal(correct, alone)
        gain = NO_GAIN if is_same else paired_gain(correct, alone)
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
    """Return how much lower the NLL is than a baseline's, with its paired 95 % interval."""
    both = probs_of_truth(torch.stack([probs, baseline]).double(), labels)
    gains = both[0].log() - both[1].log()
    mean = gains.mean().item()
    margin = quantile(LEVEL) * gains.std().item() / math.sqrt(len(gains))
    return Interval(gain=mean, low=mean - margin, high=mean + margin)


def _sentence(single: Standing, asked: Standing, advised: Standing, trial: int, images: int) -> str:
    is_alone = asked.num_members == 1 and asked.gain == asked.nll_gain == NO_GAIN
    if is_alone:
        what = "right on" if single.metric == "accuracy" else f"{goal.name_of(single.metric)}"
        on = "of" if single.metric == "accuracy" else "on"
        told = (
            f"The best single, trial {trial}, stands alone, {what} {_spelt(single)} {on} "
            f"{images} validation images"
        )
    else:
        what = asked.method or "vote"
        whole = f"The {what}" if what == "vote" or what in SOUPS else f"The {what} vote"
        told = f"{whole} of {asked.num_members} {_compared(asked, single, trial, images)}"
    if advised == asked or (is_alone and advised.method is None):
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
            f"cannot be told apart from {other}, by {goal.name_of(by)}: {figures}; its "
            f"probabilities are better, NLL {asked.nll:.4f} against {single.nll:.4f}"
        )
    told = "" if by == "accuracy" else f" by {goal.name_of(by)}"
    return f"cannot be told apart from {other}{told}: {figures}"


def _spelt(standing: Standing) -> str:
    return goal.spelt(standing.value, standing.metric)


def _gained(standing: Standing) -> str:
    """Format the gain in the metric's own direction: a lower NLL has a minus."""
    gain = standing.metric_gain
    if standing.metric == "nll":
        return f"{-gain.gain:+.4f} [{-gain.high:+.4f}, {-gain.low:+.4f}]"
    low, high = 100 * gain.low, 100 * gain.high
    return f"{100 * gain.gain:+.2f} points [{low:+.2f}, {high:+.2f}]"
