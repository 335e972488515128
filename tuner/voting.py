"""How the members of an ensemble vote: tensors in, tensors out."""

import torch
from torch import Tensor


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
    return (weights[:, None, None] * probs).sum(dim=0)
