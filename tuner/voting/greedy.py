"""Greedy selection of members, with replacement, from a library of models (Caruana et al. 2004)."""

import torch
from torch import Tensor

from tuner.voting import mean_over_images, probs_of_truth

ROUNDS = 40
"""Maximum picks per bag: the cap that keeps the selection from overfitting its images."""
BAGS = 20
"""Number of bags: random halves of the candidates, as in section 2.3 of the paper."""


def greedy_weights(
    probs: Tensor,
    labels: Tensor,
    shares: Tensor | None = None,
    *,
    rounds: int = ROUNDS,
    bags: int = BAGS,
    seed: int = 0,
) -> Tensor:
    """Choose members by forward selection with replacement, averaged over bags of candidates.

    In each bag, the candidate that gives the vote the lowest NLL is added, again and again, and
    the picks up to the lowest NLL reached count. Each bag starts from the best single candidate:
    as the NLL is convex in the vote, that of the bags' average is never above this candidate's.
    The order of the candidates does not matter.

    Source: Caruana, Niculescu-Mizil, Crew & Ksikes (2004), Ensemble Selection from Libraries of
    Models. They bag candidates, too, but start from the best N of them; we start from one.

    Args:
        probs: Class probabilities of the candidates, shape (M, N, K).
        labels: int64, shape (N,).
        shares: Shares of the images in the NLL, summing to 1, shape (N,); ``None`` for equal ones.
        rounds: Maximum picks per bag, at least 1.
        bags: Number of bags, at least 1; a single one holds all candidates.
        seed: Seed of the bags.

    Returns:
        Shares of the picks, float64, shape (M,), summing to 1.
    """
    of_truth = probs_of_truth(probs, labels).float()
    alone = mean_over_images(of_truth.double().log(), shares)
    order = alone.argsort(descending=True, stable=True)
    of_truth = of_truth[order]
    generator = torch.Generator().manual_seed(seed)
    count = len(order)
    weights = torch.zeros(count, dtype=torch.float64)
    for _ in range(bags):
        others = 1 + torch.randperm(count - 1, generator=generator)
        half = others if bags == 1 else others[: (count + 1) // 2]
        bag = torch.cat([torch.zeros(1, dtype=torch.long), half])
        picks = bag[_forward_selection(of_truth[bag], shares, rounds)]
        weights += torch.bincount(picks, minlength=count).double() / (bags * len(picks))
    chosen = torch.empty_like(weights)
    chosen[order] = weights
    return chosen / chosen.sum()


def _forward_selection(of_truth: Tensor, shares: Tensor | None, rounds: int) -> Tensor:
    """Return the positions of the rows picked from ``of_truth``, shape (M, N), starting with 0."""
    picks = [0]
    total = of_truth[0].clone()
    best, best_length = mean_over_images(total.log(), shares), 1
    for length in range(2, rounds + 1):
        logs = mean_over_images((of_truth + total).log_(), shares)
        scores = logs - torch.tensor(float(length)).log()
        pick = int(scores.argmax())
        picks.append(pick)
        total += of_truth[pick]
        if scores[pick] > best:
            best, best_length = scores[pick], length
    return torch.tensor(picks[:best_length])
