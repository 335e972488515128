"""The order in which the trials of a rung are promoted."""

from bisect import bisect_left, insort
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np

from tuner.metrics.front import crowding


class Entry(NamedTuple):
    """A trial at a rung; between two without costs, the smaller entry is ahead."""

    minus_score: float
    tie: float
    """Between equal scores, the trial with the lower value is ahead."""
    number: int
    costs: tuple[float, ...] = ()
    """Lower is better for each."""

    @property
    def point(self) -> tuple[float, ...]:
        """The negated score and the costs; lower is better for each."""
        return (self.minus_score, *self.costs)


@dataclass
class Rung:
    """The trials that reached a rung, best score first."""

    arrived: list[Entry] = field(default_factory=list)
    waiting: list[Entry] = field(default_factory=list)
    """The trials that may still be promoted."""
    num_promoted: int = 0
    let_go: set[int] = field(default_factory=set)
    """Numbers of the trials that will not be promoted."""

    def arrive(self, entry: Entry) -> None:
        """Add a trial, which then waits here."""
        insort(self.arrived, entry)
        insort(self.waiting, entry)

    def rank(self, entry: Entry) -> int:
        """Return the rank of an entry among all that arrived; 1 is the best."""
        return self._find(self.arrived, entry) + 1

    def front(self, entry: Entry) -> int | None:
        """Return the front of an entry; ``None`` without costs."""
        return None

    def candidates(self, places: int) -> list[Entry]:
        """Return the entries that may be promoted instead of the one that is due.

        The rung's last place is reserved for the best entry that arrived, as long as it waits.
        """
        is_for_best = self.num_promoted + 1 == places and self.rank(self.waiting[0]) == 1
        return self.waiting[:1] if is_for_best else self.waiting

    def take(self, entry: Entry) -> bool:
        """Remove an entry from those that wait; return whether it was among them."""
        place = self._find(self.waiting, entry)
        is_there = place < len(self.waiting) and self.waiting[place] == entry
        if is_there:
            del self.waiting[place]
        return is_there

    def _find(self, entries: list[Entry], entry: Entry) -> int:
        return bisect_left(entries, entry)


@dataclass
class FrontRung(Rung):
    """The trials that reached a rung, ordered by front (non-dominated rank), the lowest first.

    Within a front, the best score is first; the others follow by decreasing crowding distance, so
    that the promoted trials spread over the front (as in NSGA-II, Deb et al. 2002; with
    asynchronous halving as in Schmucker et al. 2021, arXiv 2106.12639).
    """

    _fronts: list[list[Entry]] = field(default_factory=list)
    """The entries of each front, best first."""

    def arrive(self, entry: Entry) -> None:
        """See ``Rung``; every rank may change, but few entries move to another front."""
        is_waiting = {one.number for one in self.waiting} | {entry.number}
        # An entry that dominates it on a later front is itself dominated on each earlier front.
        number = bisect_left(self._fronts, True, key=lambda front: not _beaten(front, [entry])[0])
        coming = [entry]
        while coming:
            if number == len(self._fronts):
                self._fronts.append([])
            front = self._fronts[number]
            is_beaten = _beaten(coming, front)
            stay = [one for one, beaten in zip(front, is_beaten, strict=True) if not beaten]
            self._fronts[number] = _in_order([*stay, *coming])
            # The newcomers dominate these, which move to the next front.
            coming = [one for one, beaten in zip(front, is_beaten, strict=True) if beaten]
            number += 1
        self.arrived = [one for front in self._fronts for one in front]
        self.waiting = [one for one in self.arrived if one.number in is_waiting]

    def rank(self, entry: Entry) -> int:
        """See ``Rung``; trials that were let go do not count.

        A later arrival can reorder entries: those that were ahead of a trial when it was let go may
        now be on its front, or behind it.
        """
        before = self.arrived[: self._find(self.arrived, entry)]
        return 1 + sum(one.number not in self.let_go for one in before)

    def front(self, entry: Entry) -> int | None:
        """See ``Rung``."""
        return next(number for number, front in enumerate(self._fronts, 1) if entry in front)

    def _find(self, entries: list[Entry], entry: Entry) -> int:
        return entries.index(entry) if entry in entries else len(entries)


def _beaten(ones: Sequence[Entry], others: Sequence[Entry]) -> list[bool]:
    """Return, for each of ``others``, whether one of ``ones`` dominates it."""
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
