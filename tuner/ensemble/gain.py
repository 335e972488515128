"""How much one more member would add to the greedy ensemble of some, told by cross-fitting."""

import torch
from torch import Tensor

from tuner.voting import probs_of_truth
from tuner.voting.crossfit import parts_of
from tuner.voting.greedy import greedy_weights
from tuner.voting.temperature import fit_temperature, soften

ROUNDS = 20
"""Picks of the greedy ensemble at most."""
NUM_SHARES = 10
"""Shares of the vote that a new member may take: a tenth, two tenths and so on."""


def truth_of(probs: Tensor, labels: Tensor) -> Tensor:
    """Return a candidate's probabilities of the true class, calibrated by a temperature of its own.

    It is calibrated as for a greedy ensemble; its NLL in a vote depends on nothing else.

    Args:
        probs: Of the validation images, shape (N, K).
        labels: int64, shape (N,).

    Returns:
        Float32, shape (N,).
    """
    softened = soften(probs, fit_temperature(probs, labels))
    return probs_of_truth(softened[None], labels)[0].float()


def best_addition(members: Tensor, candidates: Tensor) -> int | None:
    """Return the candidate with which the greedy ensemble of ``members`` has the lowest NLL.

    For each fifth of the images, the ensemble, and the share of the vote that a candidate joins it
    with, are chosen on the others.

    Args:
        members: What ``truth_of`` returned of each that may be in the ensemble, shape (M, N).
        candidates: The same of the others, shape (C, N); at least one.

    Returns:
        Its position; ``None`` if no candidate lowers the NLL of the ensemble alone.
    """
    num_images = members.shape[1]
    shares = [step / NUM_SHARES for step in range(1, NUM_SHARES + 1)]
    alone = torch.zeros((), dtype=torch.float64)
    joined = torch.zeros(len(candidates), dtype=torch.float64)
    for part in parts_of(num_images):
        is_chosen_on = torch.ones(num_images, dtype=torch.bool)
        is_chosen_on[part] = False
        few = members[:, is_chosen_on, None]
        no_labels = torch.zeros(few.shape[1], dtype=torch.long)
        weights = greedy_weights(few, no_labels, rounds=ROUNDS, bags=1)
        vote = weights.float() @ members
        own = vote.log().double()
        alone += own[part].sum()
        best = (own.sum() - own[part].sum()).expand(len(candidates))
        held_out = own[part].sum().expand(len(candidates))
        distance = candidates - vote
        for share in shares:
            logs = torch.add(vote, distance, alpha=share).log_()
            of_part = logs[:, part].double().sum(dim=1)
            fitted = logs.double().sum(dim=1) - of_part
            is_better = fitted > best
            best = torch.where(is_better, fitted, best)
            held_out = torch.where(is_better, of_part, held_out)
        joined += held_out
    place = int(joined.argmax())
    return place if joined[place] > alone else None
