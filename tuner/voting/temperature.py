"""Temperatures: calibration that changes no decision of the vote or member it is fitted to."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from tuner.voting import soft_vote

RANGE = (0.05, 20.0)
SMALLEST_NORMAL = torch.finfo(torch.float32).tiny
"""Probabilities below this count as this, because float32 holds them with fewer digits or as 0.

It is 87 nats. A floor as high as that of the NLL, 28 nats, would hide the confidence of a member
that needs a temperature of 5 or more.
"""


def soften(probs: Tensor, temperature: float) -> Tensor:
    """Divide log-probabilities by a temperature and renormalize.

    A temperature above 1 makes them less confident, below 1 more. The order of the classes stays.

    Args:
        probs: Shape (..., K).
        temperature: Above 0; 1 returns ``probs`` in float64.

    Returns:
        Float64, same shape.
    """
    probs = probs.double()
    if temperature == 1:
        return probs
    return (probs.clamp(min=SMALLEST_NORMAL).log() / temperature).softmax(dim=-1)


def soften_each(probs: Tensor, temperatures: Sequence[float]) -> Tensor:
    """Return each member's probabilities at its own temperature, in their own precision.

    Args:
        probs: Shape (M, N, K).
        temperatures: One per member; 1 leaves a member unchanged.

    Returns:
        Shape (M, N, K).
    """
    softened = [soften(p, t).to(p.dtype) for p, t in zip(probs, temperatures, strict=True)]
    return torch.stack(softened)


def mix(
    probs: Tensor, weights: Tensor, temperatures: Sequence[float], temperature: float
) -> Tensor:
    """Return the vote of members, each at its own temperature, at the temperature of the vote.

    Args:
        probs: Probabilities of the members, shape (M, N, K).
        weights: As for ``soft_vote``.
        temperatures: One per member.
        temperature: Temperature of the vote.

    Returns:
        Float64, shape (N, K).
    """
    return soften(soft_vote(soften_each(probs, temperatures), weights), temperature)


def fit_temperature(probs: Tensor, labels: Tensor) -> float:
    """Return the temperature with the lowest NLL (Guo et al. 2017), between 0.05 and 20.

    The NLL uses smoothed labels; otherwise the best temperature would be the lowest one wherever
    every image is right. More images mean less smoothing.

    An average of calibrated members is underconfident (Rahaman & Thiery 2021): a vote needs its
    own temperature, whether or not its members have theirs.

    Args:
        probs: Probabilities of a vote or a member, shape (N, K).
        labels: int64, shape (N,).
    """
    from scipy.optimize import minimize_scalar  # Takes 0.2 s; prediction does not need it.

    num_images, num_classes = probs.shape
    logs = probs.double().clamp(min=SMALLEST_NORMAL).log()
    of_truth = logs.gather(1, labels.to(probs.device)[:, None]).mean()
    of_others = (logs.sum(dim=1).mean() - of_truth) / (num_classes - 1)
    # Platt (1999), "Probabilistic outputs for support vector machines": under a uniform prior, the
    # MAP estimates after N right ones are the targets: (N + 1) / (N + 2) for the true class and
    # 1 / (N + 2) for what is not true, here shared by the other classes.
    of_target = ((num_images + 1) * of_truth + of_others) / (num_images + 2)

    def nll(log_temperature: float) -> float:
        temperature = math.exp(log_temperature)
        normalizers = torch.logsumexp(logs / temperature, dim=1)
        return (normalizers.mean() - of_target / temperature).item()

    low, high = map(math.log, RANGE)
    found = minimize_scalar(nll, bounds=(low, high), method="bounded", options={"xatol": 1e-6})
    # An exact 1 beats a fit that is worse by rounding.
    return 1.0 if nll(0.0) <= found.fun else math.exp(found.x)
