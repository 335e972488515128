"""How the members of an ensemble vote: tensors in, tensors out."""

import torch
from torch import Tensor

SMALLEST_PROB = 1e-12
"""Probabilities below it count as this much in logarithms: 27.6 nats at most for an image."""


def floored(probs: Tensor, floor: float) -> Tensor:
    """Raise probabilities to ``floor`` and normalize anew; a floor of 0 leaves them as they are.

    Args:
        probs: Shape (..., K), each row summing to 1, up to rounding.
        floor: The least probability, in [0, 1 / K).
    """
    if not floor:
        return probs
    raised = probs.clamp(min=floor)
    return raised / raised.sum(dim=-1, keepdim=True)


def soft_vote(probs: Tensor, weights: Tensor) -> Tensor:
    """Blend the members' class probabilities.

    Args:
        probs: Softmax outputs, shape (M, N, K), each row summing to 1.
        weights: Shares, shape (M,), non-negative, summing to 1.

    Returns:
        Blended probabilities, shape (N, K).

    Raises:
        ValueError: If ``weights`` does not have one entry per member, each non-negative and all
            summing to 1.
    """
    if probs.ndim != 3:
        raise ValueError(f"probs must have shape (M, N, K), got {tuple(probs.shape)}")
    if weights.shape != probs.shape[:1]:
        raise ValueError(f"{len(probs)} members need as many weights, got {tuple(weights.shape)}")
    weights = weights.to(probs)
    # Written so that NaN is refused, too.
    if not (weights >= 0).all():
        raise ValueError(f"weights must not be negative, got {weights.tolist()}")
    if not torch.isclose(weights.sum(), weights.new_ones(()), atol=1e-4):
        raise ValueError(f"weights must sum to 1, got {weights.sum().item():g}")
    # Ten tenths are above 1 in float32, and the NLL of a sure vote would be below 0.
    return (weights[:, None, None] * probs).sum(dim=0).clamp(max=1)


def uniform(members: Tensor, count: int) -> Tensor:
    """Return equal weights to some of ``count`` candidates, and none to the others.

    Args:
        members: Positions of those that vote, int64, shape (M,).
        count: Candidates.

    Returns:
        Float64, shape (count,), summing to 1.
    """
    weights = torch.zeros(count, dtype=torch.float64)
    weights[members] = 1 / len(members)
    return weights


def probs_of_truth(probs: Tensor, labels: Tensor) -> Tensor:
    """Return each member's probability of the true class, all that the NLL of a vote depends on.

    Args:
        probs: Shape (M, N, K).
        labels: int64, shape (N,).

    Returns:
        Shape (M, N), at least ``SMALLEST_PROB``.
    """
    index = labels.to(probs.device).view(1, -1, 1).expand(len(probs), -1, 1)
    return probs.gather(2, index).squeeze(2).clamp(min=SMALLEST_PROB)


def shares_by_class(labels: Tensor) -> Tensor:
    """Return each image's share of a mean in which all classes count the same.

    Args:
        labels: int64, shape (N,).

    Returns:
        Float64, shape (N,), summing to 1.
    """
    counts = labels.bincount().double()
    return 1 / (counts[labels] * (counts > 0).sum())


def mean_over_images(values: Tensor, shares: Tensor | None) -> Tensor:
    """Return the mean over the last dimension.

    Args:
        values: Shape (..., N).
        shares: Of the images, summing to 1, shape (N,); ``None`` for equal ones.
    """
    return values.mean(dim=-1) if shares is None else values @ shares.to(values)
