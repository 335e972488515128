"""Whether confidence can be trusted: bins, their errors, accuracy at coverage."""

from dataclasses import dataclass

import torch
from torch import Tensor

from tuner.metrics.figures import Coverage

NUM_BINS = 15
"""As in Guo et al. (2017)."""


def equal_width_bins(confidence: Tensor) -> Tensor:
    """Return each image's bin, from 0: bin m holds the confidences in (m / 15, (m + 1) / 15].

    Args:
        confidence: Probability of the predicted class, shape (N,).

    Returns:
        int64, shape (N,).
    """
    return (confidence * NUM_BINS).ceil().long().clamp(1, NUM_BINS) - 1


def equal_mass_bins(confidence: Tensor) -> Tensor:
    """Return each image's bin, from 0, by ascending confidence, with equally many images in each.

    Args:
        confidence: Shape (N,).

    Returns:
        int64, shape (N,); the sizes of the 15 bins differ by at most 1.
    """
    bins = torch.empty_like(confidence, dtype=torch.long)
    order = confidence.argsort(stable=True)
    bins[order] = torch.arange(len(order), device=order.device) * NUM_BINS // len(order)
    return bins


def expected_error(bins: Tensor, confidence: Tensor, is_right: Tensor) -> float:
    """Return the expected calibration error (Guo et al. 2017, equation 3).

    This is the mean gap between confidence and accuracy over the bins, weighted by their images.
    The order of the images does not matter, even where a bin ends among equal confidences.

    Args:
        bins: Bin of each image, int64, shape (N,).
        confidence: Float64, shape (N,).
        is_right: Whether the predicted class is the true one, bool, shape (N,).
    """
    # |sum of confidence - sum of right| is the bin's gap times its number of images.
    shortfall = confidence - _shared_among_ties(confidence, is_right)
    gaps = confidence.new_zeros(NUM_BINS).index_add_(0, bins, shortfall)
    return gaps.abs().sum().item() / len(bins)


def _shared_among_ties(confidence: Tensor, is_right: Tensor) -> Tensor:
    """Return, for each image, the accuracy among the images of exactly the same confidence.

    A cut among ties gives this on average over their orders. Float64, shape (N,).
    """
    values, group = torch.unique(confidence, return_inverse=True)
    right = torch.bincount(group, weights=is_right.double(), minlength=len(values))
    return (right / torch.bincount(group, minlength=len(values)))[group]


@dataclass(frozen=True, kw_only=True, slots=True)
class Bin:
    """One bar of a reliability diagram."""

    low: float
    high: float
    """The bin's range of confidence."""
    count: int
    """Images in it, at least 1."""
    confidence: float
    """Their mean confidence."""
    accuracy: float


def reliability(probs: Tensor, labels: Tensor) -> list[Bin]:
    """Return confidence and accuracy for each equal-width bin that holds an image.

    Args:
        probs: Shape (N, K).
        labels: int64, shape (N,).
    """
    confidence, predicted = probs.double().max(dim=1)
    is_right = (predicted == labels).double()
    bins = equal_width_bins(confidence)
    return [
        Bin(
            low=number / NUM_BINS,
            high=(number + 1) / NUM_BINS,
            count=int(within.sum()),
            confidence=confidence[within].mean().item(),
            accuracy=is_right[within].mean().item(),
        )
        for number in range(NUM_BINS)
        if (within := bins == number).any()
    ]


def accuracy_at_coverage(probs: Tensor, labels: Tensor, steps: int = 20) -> list[Coverage]:
    """Return the accuracy among the most confident images, from a few of them up to all.

    Selective prediction as in El-Yaniv & Wiener (2010). Images of equal confidence are equally
    likely to be answered.

    Args:
        probs: Shape (N, K).
        labels: int64, shape (N,).
        steps: Number of coverages, up to 1 and as evenly spaced as whole images allow; those
            without an image are left out.
    """
    confidence, predicted = probs.double().max(dim=1)
    order = confidence.argsort(descending=True, stable=True)
    right = _shared_among_ties(confidence, predicted == labels)[order].cumsum(dim=0)
    counts = {len(labels) * step // steps for step in range(1, steps + 1)} - {0}
    return [
        Coverage(coverage=count / len(labels), accuracy=right[count - 1].item() / count)
        for count in sorted(counts)
    ]
