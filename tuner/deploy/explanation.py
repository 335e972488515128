"""Explain a vote: what each member predicts, and which members decide."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from tuner.voting import soft_vote


@dataclass(frozen=True, kw_only=True, slots=True)
class MemberVote:
    """The prediction of one member for an image."""

    member: str
    """Such as ``trial 3``."""
    label: str
    """Its most probable class."""
    confidence: float
    """Its probability of that class, at its temperature in the vote."""
    weight: float
    """Its share in the vote."""
    is_decisive: bool
    """Whether the other members alone would predict another class."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Explanation:
    """An ensemble's prediction for one image, and the votes behind it."""

    label: str
    confidence: float
    runner_up: str
    """The second most probable class."""
    margin: float
    """How much less probable it is."""
    agreement: float
    """Share of members that predict the same class as the ensemble."""
    votes: tuple[MemberVote, ...]
    prepared: str
    """How the image's pixels were prepared."""

    def __str__(self) -> str:
        agreeing = sum(vote.label == self.label for vote in self.votes)
        lines = [
            f"{self.label}, {self.confidence:.1%}; then {self.runner_up}, {self.margin:.1%} less",
            f"members that say so: {agreeing} of {len(self.votes)}",
        ]
        for vote in self.votes:
            decisive = "  (without it, another class)" if vote.is_decisive else ""
            lines.append(
                f"  {vote.member}: {vote.label}, {vote.confidence:.1%}, weight {vote.weight:.3f}"
                f"{decisive}"
            )
        return "\n".join([*lines, f"image: {self.prepared}"])


def explain(
    probs: Tensor,
    members: Tensor,
    weights: Tensor,
    *,
    classes: Sequence[str],
    names: Sequence[str],
    prepared: str,
) -> Explanation:
    """Explain a vote on one image.

    Args:
        probs: The ensemble's probabilities, shape (K,), with K of 2 or more.
        members: The members' probabilities at their own temperatures, shape (M, K).
        weights: Their shares, shape (M,).
        classes: Names of the K classes.
        names: Names of the M members.
        prepared: How the image's pixels were prepared.
    """
    (first, second), order = probs.topk(2)
    answer = int(order[0])
    # The temperature of the whole vote does not change the order.
    votes = tuple(
        MemberVote(
            member=name,
            label=classes[int(own.argmax())],
            confidence=own.max().item(),
            weight=weights[number].item(),
            is_decisive=_answer_without(number, members, weights) not in (answer, None),
        )
        for number, (name, own) in enumerate(zip(names, members, strict=True))
    )
    return Explanation(
        label=classes[answer],
        confidence=first.item(),
        runner_up=classes[int(order[1])],
        margin=(first - second).item(),
        agreement=sum(vote.label == classes[answer] for vote in votes) / len(votes),
        votes=votes,
        prepared=prepared,
    )


def _answer_without(number: int, members: Tensor, weights: Tensor) -> int | None:
    """Return the class that the other members vote for; ``None`` if there are no others."""
    others = torch.arange(len(weights)) != number
    total = weights[others].sum()
    if not total > 0:
        return None
    return int(soft_vote(members[others, None], weights[others] / total).argmax())
