"""Trade-offs between a figure of merit and costs: fronts, and the crowding on them."""

import bisect

import numpy as np


def front_ranks(points: np.ndarray) -> np.ndarray:
    """Return the front of each point; front 1 holds the points that no other point dominates.

    A point dominates another one if it is nowhere worse and somewhere better. Points on the second
    front are dominated only by points on the first, and so on (non-dominated sorting).

    Args:
        points: Shape (n, m), finite; lower is better in each column.

    Returns:
        int64, shape (n,).
    """
    unique, places = np.unique(points, axis=0, return_inverse=True)
    # In this order, no point is dominated by a later one.
    fronts = _fronts_of_two(unique) if points.shape[1] == 2 else _fronts_of_many(unique)
    return fronts[places.reshape(-1)]


def _fronts_of_two(points: np.ndarray) -> np.ndarray:
    """Return the fronts of distinct points in ascending order, in n log n steps."""
    fronts = np.empty(len(points), dtype=np.int64)
    # Lowest second value on each front so far; it grows from front to front.
    least: list[float] = []
    for index, second in enumerate(points[:, 1].tolist()):
        front = bisect.bisect_right(least, second)
        least[front : front + 1] = [second]
        fronts[index] = front + 1
    return fronts


def _fronts_of_many(points: np.ndarray) -> np.ndarray:
    """Return the fronts of distinct points in ascending order."""
    fronts = np.zeros(len(points), dtype=np.int64)
    # The first column is already sorted.
    others = np.ascontiguousarray(points[:, 1:].T)
    for index in range(len(points)):
        is_above = np.ones(index, dtype=bool)
        for column in others:
            is_above &= column[:index] <= column[index]
        fronts[index] = 1 + fronts[:index][is_above].max(initial=0)
    return fronts


def crowding(points: np.ndarray) -> np.ndarray:
    """Return the crowding distances of the points of one front (Deb et al. 2002, section III.B).

    This is the distance between a point's two neighbours, scaled to the front's range in each
    column and summed over the columns; infinite for points at an end of a column.

    Args:
        points: Shape (n, m), finite.

    Returns:
        Float64, shape (n,).
    """
    distances = np.zeros(len(points))
    for column in points.T:
        order = np.argsort(column, kind="stable")
        ordered = column[order]
        if (span := ordered[-1] - ordered[0]) > 0:
            distances[order[1:-1]] += (ordered[2:] - ordered[:-2]) / span
            distances[order[[0, -1]]] = np.inf
    return distances
