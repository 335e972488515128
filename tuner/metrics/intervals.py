"""How far a share of some images may be from that of all such images; needs no torch."""

import math
from statistics import NormalDist

LEVEL = 0.95
"""Coverage of all displayed intervals."""


def quantile(level: float) -> float:
    """Return how many standard deviations either side of the mean hold ``level`` of a normal."""
    return NormalDist().inv_cdf((1 + level) / 2)


def wilson(share: float, count: int, *, level: float = LEVEL) -> tuple[float, float]:
    """Return the score interval of a share (Wilson 1927).

    Args:
        share: Share of the images, in [0, 1].
        count: Number of images, at least one.
        level: Coverage, in (0, 1).
    """
    z = quantile(level)
    centre = (share + z**2 / (2 * count)) / (1 + z**2 / count)
    variance = share * (1 - share) / count + (z / (2 * count)) ** 2
    margin = z * math.sqrt(variance) / (1 + z**2 / count)
    # At 0 and 1, one end is the share itself, which rounding may miss.
    return min(share, max(0.0, centre - margin)), max(share, min(1.0, centre + margin))


def margin(share: float, count: int) -> str:
    """Format half the width of a share's interval, such as ``± 7 points``."""
    low, high = wilson(share, count)
    points = 50 * (high - low)
    return f"± {points:.0f} points" if points >= 3 else f"± {points:.1f} points"
