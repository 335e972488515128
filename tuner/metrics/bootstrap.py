"""Intervals of figures that are not a share of the images, by resampling the images."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
from torch import Tensor

from tuner.config import Metric
from tuner.metrics.calibration import NUM_BINS, equal_width_bins
from tuner.metrics.classwise import class_scores
from tuner.metrics.figures import Estimate, Interval, Intervals
from tuner.metrics.intervals import LEVEL
from tuner.voting import SMALLEST_PROB

RESAMPLES = 1000
SEED = 20120401
"""Fixed, so that the same images give the same intervals."""


NAMES = ("balanced_accuracy", "macro_f1", "worst_class", "nll", "ece")


def bootstrap(probs: Tensor, labels: Tensor, *, num_resamples: int = RESAMPLES) -> Intervals:
    """Return intervals by the bootstrap (Efron 1979), which draws images with replacement.

    A resample's calibration error is higher than that of the images themselves, because some of
    them occur several times, and its worst class is less accurate. So the interval takes the
    spread of the resamples around their own mean and moves it to the figure. Without any spread,
    as when no image is wrong, it is empty; for plain shares, Wilson's interval then says more.

    Args:
        probs: Shape (N, K), each row summing to 1.
        labels: int64, shape (N,), at least one.
        num_resamples: Number of resamples.
    """
    value, low, high = _resampled(_Images.of(probs, labels).figures, len(labels), num_resamples)
    most = [np.inf if name == "nll" else 1.0 for name in NAMES]
    low, high = np.clip(low, 0, value), np.clip(high, value, most)
    return Intervals(
        **{
            name: Estimate(value=float(value[i]), low=float(low[i]), high=float(high[i]))
            for i, name in enumerate(NAMES)
        }
    )


def paired_bootstrap(
    probs: Tensor,
    baseline: Tensor,
    labels: Tensor,
    metric: Metric,
) -> Interval:
    """Return the gain over a baseline in a classwise figure, with its 95 % interval.

    Each resample draws the same images for both.

    Args:
        probs: Class probabilities, shape (N, K).
        baseline: Those of the baseline for the same images.
        labels: int64, shape (N,), at least one.
        metric: A field of ``ClassScores``.
    """
    truth = labels.cpu().numpy()
    predicted = [one.argmax(dim=1).cpu().numpy() for one in (probs, baseline)]

    def gain(index: np.ndarray) -> np.ndarray:
        ours, theirs = (class_scores(one[index], truth[index]) for one in predicted)
        return np.array(getattr(ours, metric) - getattr(theirs, metric))

    value, low, high = map(float, _resampled(gain, len(truth), RESAMPLES))
    return Interval(gain=value, low=max(-1.0, min(low, value)), high=min(1.0, max(high, value)))


def _resampled(
    figures: Callable[[np.ndarray], np.ndarray], count: int, num_resamples: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return figures of ``count`` images, and both ends of their intervals; see ``bootstrap``."""
    value = figures(np.arange(count))
    random = np.random.RandomState(SEED)
    resamples = np.stack([figures(random.randint(0, count, count)) for _ in range(num_resamples)])
    ends = np.quantile(resamples, [(1 - LEVEL) / 2, (1 + LEVEL) / 2], axis=0)
    low, high = value + ends - resamples.mean(axis=0)
    return value, low, high


@dataclass(frozen=True, kw_only=True, slots=True)
class _Images:
    """The inputs of the figures, one per image, shape (N,)."""

    labels: np.ndarray
    predicted: np.ndarray
    surprise: np.ndarray
    """Negative log-likelihood of the true class, in nats."""
    bins: np.ndarray
    """Bin of the image's confidence."""
    gap: np.ndarray
    """Confidence, minus 1 if the prediction is right."""

    @classmethod
    def of(cls, probs: Tensor, labels: Tensor) -> "_Images":
        probs, labels = probs.double().cpu(), labels.cpu()
        confidence, predicted = probs.max(dim=1)
        of_truth = probs.gather(1, labels[:, None]).squeeze(1)
        return cls(
            labels=labels.numpy(),
            predicted=predicted.numpy(),
            surprise=-of_truth.clamp(min=SMALLEST_PROB).log().numpy(),
            bins=equal_width_bins(confidence).numpy(),
            gap=(confidence - (predicted == labels).double()).numpy(),
        )

    def figures(self, index: np.ndarray) -> np.ndarray:
        """Return the figures of the images at ``index``, in the order of ``NAMES``."""
        return np.fromiter(self._figures(index), dtype=np.float64)

    def _figures(self, index: np.ndarray) -> Iterator[float]:
        by_class = class_scores(self.predicted[index], self.labels[index])
        yield by_class.balanced_accuracy
        yield by_class.macro_f1
        yield by_class.worst_class
        yield self.surprise[index].mean()
        gaps = np.bincount(self.bins[index], weights=self.gap[index], minlength=NUM_BINS)
        yield np.abs(gaps).sum() / len(index)
