"""The interval of a share, for what needs no tensors."""

import math

Z_95 = 1.959964
"""Standard deviations either side of the mean that hold 95 % of a normal distribution."""


def share_interval(share: float, count: int, z: float = Z_95) -> tuple[float, float]:
    """Return the score interval (Wilson 1927) of a share.

    Args:
        share: Of ``count``, in [0, 1].
        count: Of how many, at least one.
        z: Standard deviations either side.
    """
    centre = (share + z**2 / (2 * count)) / (1 + z**2 / count)
    variance = share * (1 - share) / count + (z / (2 * count)) ** 2
    margin = z * math.sqrt(variance) / (1 + z**2 / count)
    # At 0 and 1 an end is the share itself, which rounding may miss.
    return min(share, max(0.0, centre - margin)), max(share, min(1.0, centre + margin))
