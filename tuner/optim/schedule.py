"""The learning rate during a training."""

import math

from tuner.config import Cosine, OneCycle, Trapezoid


def lr_factor(schedule: Cosine | OneCycle | Trapezoid, progress: float) -> float:
    """Return the learning rate as a share of its peak.

    Args:
        schedule: The curve.
        progress: Share of all steps done, in [0, 1].

    Returns:
        A factor in [0, 1], 1 at the end of the warm-up.
    """
    if progress < schedule.warmup:
        done = progress / schedule.warmup
        match schedule:
            case Cosine() | Trapezoid():
                return done
            case OneCycle():
                return 1 / schedule.div + (1 - 1 / schedule.div) * (1 - _half_cosine(done))
    left = (1 - progress) / (1 - schedule.warmup)
    match schedule:
        case Trapezoid():
            return 1.0 if left >= schedule.cooldown else left / schedule.cooldown
        case Cosine() | OneCycle():
            return _half_cosine(1 - left)


def _half_cosine(done: float) -> float:
    """Fall from 1 to 0 as ``done`` goes from 0 to 1."""
    return 0.5 * (1 + math.cos(math.pi * done))
