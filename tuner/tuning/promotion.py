"""The order in which the trials of a rung are promoted."""

from bisect import bisect_left, insort
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np

from tuner.metrics.front import crowding, front_ranks


class Entry(NamedTuple):
    """A trial at a rung; of two that have no costs, the lesser one is ahead."""

    minus_score: float
    tie: float
    """Where scores are equal, the trial with less is ahead."""
    number: int
    costs: tuple[float, ...] = ()
    """Less is better of each."""


@dataclass
class Rung:
    """The trials that came to a rung, best first: those with the better score."""

    arrived: list[Entry] = field(default_factory=list)
    waiting: list[Entry] = field(default_factory=list)
    """Those of them that may still be promoted."""
    num_promoted: int = 0

    def arrive(self, entry: Entry) -> None:
        """Take up a trial that waits."""
        insort(self.arrived, entry)
        insort(self.waiting, entry)

    def rank(self, entry: Entry) -> int:
        """Return the place of an entry among all that arrived; 1 is the best."""
        return self._find(self.arrived, entry) + 1

    def front(self, entry: Entry) -> int | None:
        """Return the front on which an entry lies, where there are costs."""
        return None

    def take(self, entry: Entry) -> bool:
        """Take an entry out of those that wait; say whether it was among them."""
        place = self._find(self.waiting, entry)
        is_there = place < len(self.waiting) and self.waiting[place] == entry
        if is_there:
            del self.waiting[place]
        return is_there

    def _find(self, entries: list[Entry], entry: Entry) -> int:
        return bisect_left(entries, entry)


@dataclass
class FrontRung(Rung):
    """The trials that came to a rung, best first: those on the lower front (non-dominated rank).

    Within a front the best score is first; then come those that stand most apart, by their crowding
    distance, so that the promoted ones spread over the front (as in NSGA-II, Deb et al. 2002; with
    asynchronous halving as in Schmucker et al. 2021, arXiv 2106.12639).
    """

    _fronts: dict[Entry, int] = field(default_factory=dict)

    def arrive(self, entry: Entry) -> None:
        """See ``Rung``; all places may change."""
        waiting = {*self.waiting, entry}
        self._fronts = _by_front([*self.arrived, entry])
        self.arrived = list(self._fronts)
        self.waiting = [one for one in self.arrived if one in waiting]

    def front(self, entry: Entry) -> int | None:
        """See ``Rung``."""
        return self._fronts[entry]

    def _find(self, entries: list[Entry], entry: Entry) -> int:
        return entries.index(entry) if entry in entries else len(entries)


def _by_front(entries: Iterable[Entry]) -> dict[Entry, int]:
    """Return entries with their fronts, best first."""
    ordered = sorted(entries)
    points = np.array([(one.minus_score, *one.costs) for one in ordered])
    ranks = front_ranks(points)
    found: dict[Entry, int] = {}
    for rank in range(1, int(ranks.max()) + 1):
        places = np.flatnonzero(ranks == rank)
        # Of the ordered entries, the first of each front has its best score.
        apart = crowding(points[places])
        apart[0] = np.inf
        found |= {ordered[places[i]]: rank for i in np.argsort(-apart, kind="stable")}
    return found
