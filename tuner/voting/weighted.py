"""Weights fitted to validation images: the convex stack of the members' probabilities."""

import numpy as np
import torch
from torch import Tensor

from tuner.errors import TunerError
from tuner.voting import probs_of_truth

NEGLIGIBLE = 1e-3
"""Weights below this are set to 0."""


class NoWeightsError(TunerError):
    """Members for which no weights can be fitted."""


def fitted_weights(probs: Tensor, labels: Tensor, shares: Tensor | None = None) -> Tensor:
    """Return the non-negative weights, summing to one, whose vote has the lowest NLL.

    The NLL is convex in the weights (a linear opinion pool; Breiman 1996 stacks regressions this
    way), so the minimum does not depend on the starting point.

    Args:
        probs: Class probabilities of the candidates, shape (M, N, K).
        labels: int64, shape (N,).
        shares: Shares of the images in the NLL, summing to 1, shape (N,); ``None`` for equal ones.

    Returns:
        Float64, shape (M,); weights that would be below ``NEGLIGIBLE`` are 0.

    Raises:
        NoWeightsError: If the search for them fails, as it may where members are sure of what is
            wrong.
    """
    # Takes a third of a second, which a search would otherwise wait for, too.
    from scipy.optimize import Bounds, LinearConstraint, minimize

    of_truth = probs_of_truth(probs, labels).double().numpy()
    of_image = None if shares is None else shares.numpy()
    count = len(of_truth)

    def nll(weights: np.ndarray) -> float:
        return float(-np.average(np.log(weights @ of_truth), weights=of_image))

    def gradient(weights: np.ndarray) -> np.ndarray:
        return -np.average(of_truth / (weights @ of_truth), axis=1, weights=of_image)

    found = minimize(
        nll,
        np.full(count, 1 / count),
        jac=gradient,
        method="SLSQP",
        bounds=Bounds(0, 1),
        constraints=LinearConstraint(np.ones((1, count)), 1, 1),
        options={"ftol": 1e-10, "maxiter": 500},
    )
    if not found.success:
        raise NoWeightsError(
            f"no weights can be fitted to these members: {found.message}; take --method greedy"
        )
    weights = np.where(found.x < NEGLIGIBLE, 0, found.x)
    return torch.from_numpy(weights / weights.sum())
