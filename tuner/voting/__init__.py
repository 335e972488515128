"""How the members of an ensemble vote: tensors in, tensors out."""

import torch
from torch import Tensor

SMALLEST_PROB = 1e-12
"""Probabilities below this count as this in logarithms: at most 27.6 nats per image."""


def floored(probs: Tensor, floor: float) -> Tensor:
    """Raise probabilities below ``floor`` to it and renormalize; a floor of 0 changes nothing.

    Args:
        probs: Shape (..., K), each row summing to 1, up to rounding.
        floor: Lowest probability, in [0, 1 / K).
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
    # In float32, ten tenths sum to more than 1, and the NLL of a sure vote would be negative.
    return (weights[:, None, None] * probs).sum(dim=0).clamp(max=1)


def uniform(members: Tensor, count: int) -> Tensor:
    """Return equal weights for some of ``count`` candidates, and 0 for the others.

    Args:
        members: Positions of the candidates that vote, int64, shape (M,).
        count: Number of candidates.

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
    """Return each image's share in a mean that weights all classes equally.

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
        shares: Shares of the images, summing to 1, shape (N,); ``None`` for equal ones.
    """
    return values.mean(dim=-1) if shares is None else values @ shares.to(values)
