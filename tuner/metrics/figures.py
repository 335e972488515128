"""Figures that ``metrics.json`` holds; ranges are checked where it is read. Needs no torch."""

from dataclasses import dataclass
from typing import Annotated

from tuner.config import NonNegative, Share
from tuner.schema import Bounds

Difference = Annotated[float, Bounds(ge=-1, le=1)]


@dataclass(frozen=True, kw_only=True, slots=True)
class Interval:
    """A gain with its confidence interval; a difference of shares, unless stated otherwise."""

    gain: Difference
    low: Difference
    high: Difference


@dataclass(frozen=True, kw_only=True, slots=True)
class Gain:
    """Gain in test accuracy."""

    over_best_single: Interval
    over_mean_member: Interval
    level: Share
    mcnemar_p: Share
    """P-value of McNemar's exact test against the best single candidate."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Estimate:
    """A figure with its interval."""

    value: NonNegative
    low: NonNegative
    high: NonNegative


@dataclass(frozen=True, kw_only=True, slots=True)
class Intervals:
    """Figures of class probabilities, each with its 95 % interval.

    They reflect chance in the choice of the images, not in the training seeds.
    """

    balanced_accuracy: Estimate
    """Mean accuracy over the classes that have images."""
    macro_f1: Estimate
    """Mean F1 score over the classes that have images or were predicted."""
    worst_class: Estimate
    """Lowest accuracy of a class that has images."""
    nll: Estimate
    """Mean negative log-likelihood of the true class, in nats."""
    ece: Estimate
    """Expected calibration error over 15 bins of equal width (Guo et al. 2017)."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Coverage:
    """The accuracy of a classifier that may decline to answer."""

    coverage: Share
    """Share of images answered, the most confident ones."""
    accuracy: Share
    """Accuracy on these images."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Latency:
    """Median time from uint8 images in memory to their probabilities."""

    one_ms: NonNegative
    """Milliseconds for a single image."""
    batch_ms: NonNegative
    """Milliseconds for 256 images."""
