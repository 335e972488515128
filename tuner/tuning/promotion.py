"""The order in which the trials of a rung are promoted."""

from bisect import bisect_left, insort
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np

from tuner.metrics.front import crowding


class Entry(NamedTuple):
    """A trial at a rung; of two that have no costs, the lesser one is ahead."""

    minus_score: float
    tie: float
    """Where scores are equal, the trial with less is ahead."""
    number: int
    costs: tuple[float, ...] = ()
    """Less is better of each."""

    @property
    def point(self) -> tuple[float, ...]:
        """Its score and its costs, of which less is better."""
        return (self.minus_score, *self.costs)


@dataclass
class Rung:
    """The trials that came to a rung, best first: those with the better score."""

    arrived: list[Entry] = field(default_factory=list)
    waiting: list[Entry] = field(default_factory=list)
    """Those of them that may still be promoted."""
    num_promoted: int = 0
    let_go: set[int] = field(default_factory=set)
    """Numbers of those that will not be promoted."""

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

    def candidates(self, places: int) -> list[Entry]:
        """Return those that may be promoted in place of the one that is due.

        The last of the rung's places is for the best that came there, as long as it waits.
        """
        is_for_best = self.num_promoted + 1 == places and self.rank(self.waiting[0]) == 1
        return self.waiting[:1] if is_for_best else self.waiting

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

    _fronts: list[list[Entry]] = field(default_factory=list)
    """Those of each front, best first."""

    def arrive(self, entry: Entry) -> None:
        """See ``Rung``; the places of all may change, the fronts of few do."""
        is_waiting = {one.number for one in self.waiting} | {entry.number}
        # What dominates it on a later front is dominated itself on each one before.
        number = bisect_left(self._fronts, True, key=lambda front: not _beaten(front, [entry])[0])
        coming = [entry]
        while coming:
            if number == len(self._fronts):
                self._fronts.append([])
            front = self._fronts[number]
            is_beaten = _beaten(coming, front)
            stay = [one for one, beaten in zip(front, is_beaten, strict=True) if not beaten]
            self._fronts[number] = _in_order([*stay, *coming])
            # What came beats these, and they come to the next front.
            coming = [one for one, beaten in zip(front, is_beaten, strict=True) if beaten]
            number += 1
        self.arrived = [one for front in self._fronts for one in front]
        self.waiting = [one for one in self.arrived if one.number in is_waiting]

    def rank(self, entry: Entry) -> int:
        """See ``Rung``; who was let go of holds no place, though others may have come to its front.

        Whoever comes later may bring others behind one that they were ahead of.
        """
        before = self.arrived[: self._find(self.arrived, entry)]
        return 1 + sum(one.number not in self.let_go for one in before)

    def front(self, entry: Entry) -> int | None:
        """See ``Rung``."""
        return next(number for number, front in enumerate(self._fronts, 1) if entry in front)

    def _find(self, entries: list[Entry], entry: Entry) -> int:
        return entries.index(entry) if entry in entries else len(entries)


def _beaten(ones: Sequence[Entry], others: Sequence[Entry]) -> list[bool]:
    """Say which of the others are dominated by some of the first."""
    if not ones or not others:
        return [False] * len(others)
    first, second = (np.array([entry.point for entry in entries]) for entries in (ones, others))
    is_no_worse, is_better = first[:, None] <= second, first[:, None] < second
    dominates = is_no_worse.all(axis=2) & is_better.any(axis=2)
    beaten: list[bool] = np.asarray(dominates.any(axis=0)).tolist()
    return beaten


def _in_order(front: Sequence[Entry]) -> list[Entry]:
    """Return the entries of a front, best first."""
    ordered = sorted(front)
    apart = crowding(np.array([one.point for one in ordered]))
    # The first has the best score.
    apart[0] = np.inf
    return [ordered[i] for i in np.argsort(-apart, kind="stable")]
