"""How much one more member would add to a greedy ensemble, estimated by cross-fitting."""

import torch
from torch import Tensor

from tuner.voting import probs_of_truth
from tuner.voting.crossfit import parts_of
from tuner.voting.greedy import greedy_weights
from tuner.voting.temperature import fit_temperature, soften

ROUNDS = 20
"""Maximum picks of the greedy ensemble."""
SHARES = (0.05, 0.1, 0.2, 0.35, 0.5, 1.0)
"""Shares of the vote that a new member may take."""


def truth_of(probs: Tensor, labels: Tensor) -> Tensor:
    """Return a candidate's probabilities of the true class, calibrated by its own temperature.

    They are calibrated as in a greedy ensemble; the NLL of a vote depends on nothing else.

    Args:
        probs: Probabilities of the validation images, shape (N, K).
        labels: int64, shape (N,).

    Returns:
        Float32, shape (N,).
    """
    softened = soften(probs, fit_temperature(probs, labels))
    return probs_of_truth(softened[None], labels)[0].float()


def best_addition(members: Tensor, candidates: Tensor) -> int | None:
    """Return the candidate that gives the greedy ensemble of ``members`` the lowest NLL.

    For each fifth of the images, the ensemble and the candidate's share of the vote are chosen on
    the others.

    Args:
        members: ``truth_of`` each possible member of the ensemble, shape (M, N).
        candidates: The same for the others, shape (C, N); at least one.

    Returns:
        Its position; ``None`` if no candidate lowers the NLL of the ensemble alone.
    """
    parts = parts_of(members.shape[1])
    order = torch.cat(parts)
    # Contiguous parts are read several times as fast.
    members, candidates = members[:, order], candidates[:, order]
    alone = torch.zeros(())
    joined = torch.zeros(len(candidates))
    start = 0
    for part in parts:
        held_out = slice(start, start + len(part))
        start += len(part)
        few = torch.cat([members[:, : held_out.start], members[:, held_out.stop :]], dim=1)
        no_labels = torch.zeros(few.shape[1], dtype=torch.long)
        weights = greedy_weights(few[..., None], no_labels, rounds=ROUNDS, bags=1)
        vote = weights.float() @ members
        own = vote.log()
        own_part = own[held_out].sum()
        alone += own_part
        best = (own.sum() - own_part).expand(len(candidates))
        gained = own_part.expand(len(candidates))
        distance = candidates - vote
        for share in SHARES:
            logs = torch.add(vote, distance, alpha=share).log_()
            of_part = logs[:, held_out].sum(dim=1)
            fitted = logs.sum(dim=1) - of_part
            is_better = fitted > best
            best = torch.where(is_better, fitted, best)
            gained = torch.where(is_better, of_part, gained)
        joined += gained
    place = int(joined.argmax())
    return place if joined[place] > alone else None
