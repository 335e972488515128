"""Which trials are paused or stopped early, and the reason for each stop."""

import math
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from typing import Literal, Protocol

import numpy as np

from tuner.config import SearchConfig, rung_epochs
from tuner.run.trial import Stop
from tuner.tuning.promotion import Entry, FrontRung, Rung

MIN_PEERS = 3
"""Number of trials that the median rule needs to compare with before it stops one."""
Verdict = Stop | Literal["pause"] | None
"""Why a trial stops, ``"pause"`` if it waits at a rung, or ``None`` if it continues."""
Costs = tuple[float, ...]
"""Costs of a trial, one per objective; lower is better."""
Prefer = Callable[[Sequence[int]], int | None]
"""Picks the trial to promote from those that wait, best first; ``None`` for the one due."""


class Scheduler(Protocol):
    """Judges trials by their validation score after each epoch; higher is better.

    ``enter`` and ``judge`` leave the same state, so that a resumed search is where it was before.
    """

    def judged_epochs(self, number: int) -> Collection[int]:
        """Return the epochs after which trial ``number`` may be paused or stopped."""

    def enter(
        self, number: int, epoch: int, value: float, tie: float = 0.0, costs: Costs = ()
    ) -> None:
        """Record a trial's score after ``epoch``, without judging it.

        Args:
            number: Number of the trial.
            epoch: The epoch that it has completed.
            value: Its score.
            tie: Breaks ties where scores are ranked: the lower value is ahead.
            costs: Other objectives, lower is better; ``Asha`` ranks by them, too.

        Raises:
            ValueError: If ``value`` is not finite, since NaN would pass every comparison.
        """

    def judge(
        self, number: int, epoch: int, value: float, tie: float = 0.0, costs: Costs = ()
    ) -> Verdict:
        """Record a trial's score after ``epoch``, and return what the trial has to do.

        Args and errors are those of ``enter``.
        """


class Asha:
    """Asynchronous successive halving with promotion (Li et al. 2020, arXiv 1810.05934).

    Rungs are at ``grace * reduction ** i`` epochs, below the last epoch. A trial that reaches a
    rung waits there. The best ``n // reduction`` of the n trials that reached a rung may be
    promoted, and no more than that many: a sampler that improves pushes earlier trials out of the
    best, and would otherwise have more and more promoted. A rung that no further trial can reach
    promotes at least its best trial, so that a search of few trials trains one of them to the end;
    if that one fails, none takes its place.
    ``promotion`` defines which trials are the best.

    Several methods take ``coming``: epoch of a rung -> number of trials under way that reached it
    last; those that have not reached a rung, or are still to be proposed, count under 0.

    Args:
        grace: Epochs of the first rung.
        reduction: Factor between two rungs; one of this many trials at a rung is promoted.
        epochs: The last epoch of a trial.
        has_costs: Whether trials have costs.
    """

    def __init__(self, *, grace: int, reduction: int, epochs: int, has_costs: bool = False) -> None:
        self.reduction = reduction
        self._epochs = epochs
        make = FrontRung if has_costs else Rung
        self.rungs: dict[int, Rung] = {
            epoch: make() for epoch in rung_epochs(grace, reduction, epochs)
        }
        self._last: dict[int, tuple[int, Entry]] = {}
        """Trial -> the last rung that it reached, and its entry there."""

    def judged_epochs(self, number: int) -> Collection[int]:
        """See ``Scheduler``."""
        return self.rungs.keys()

    def enter(
        self, number: int, epoch: int, value: float, tie: float = 0.0, costs: Costs = ()
    ) -> None:
        """See ``Scheduler``; a trial that continues beyond a rung was promoted there."""
        _check_finite(value)
        if epoch <= self.last_rung(number):
            return
        self.promote(number)
        if epoch in self.rungs:
            entry = Entry(-value, tie, number, costs)
            self.rungs[epoch].arrive(entry)
            self._last[number] = epoch, entry

    def judge(
        self, number: int, epoch: int, value: float, tie: float = 0.0, costs: Costs = ()
    ) -> Verdict:
        """See ``Scheduler``."""
        self.enter(number, epoch, value, tie, costs)
        return "pause" if epoch in self.rungs else None

    def last_rung(self, number: int) -> int:
        """Return the last rung that a trial reached; 0 before the first."""
        return self._last[number][0] if number in self._last else 0

    def next_promotion(self, coming: Mapping[int, int], prefer: Prefer | None = None) -> int | None:
        """Return the trial to promote next, if any: the one that is due at the highest rung.

        Args:
            coming: See ``Asha``.
            prefer: Called at every second promotion. It may choose another trial than the one that
                is due, among those that wait at rungs with a place left: no rung promotes more, or
                gives its last place to another, while its best trial waits.
        """
        free = list(self._with_places(coming))
        best = ((rung, rung.waiting[0], places) for rung, places in reversed(free))
        due = next((one.number for rung, one, places in best if rung.rank(one) <= places), None)
        if due is None or prefer is None or self._num_promoted % 2 == 0:
            return due
        preferred = prefer([one.number for rung, places in free for one in rung.candidates(places)])
        return due if preferred is None else preferred

    def epochs_to_next_rung(self, rung: int) -> int:
        """Return the number of epochs from a rung, 0 for the start, to the next one or the end."""
        return next((epoch for epoch in self.rungs if epoch > rung), self._epochs) - rung

    def waiting(self) -> Iterator[int]:
        """Yield the trials that wait at rungs, those of the highest rung first, best first."""
        for rung in reversed(self.rungs.values()):
            yield from (entry.number for entry in rung.waiting)

    @property
    def _num_promoted(self) -> int:
        return sum(rung.num_promoted for rung in self.rungs.values())

    def _with_places(self, coming: Mapping[int, int]) -> Iterator[tuple[Rung, int]]:
        """Yield the rungs that may promote one more waiting trial, with their number of places."""
        for epoch, most in self._most_arriving(coming).items():
            rung = self.rungs[epoch]
            places = self._places(len(rung.arrived), is_closed=most == len(rung.arrived))
            if rung.num_promoted < places and rung.waiting:
                yield rung, places

    def promote(self, number: int) -> None:
        """Record that a trial continues, if it waits at a rung."""
        if number in self._last:
            epoch, entry = self._last[number]
            self.rungs[epoch].num_promoted += self.rungs[epoch].take(entry)

    def leave(self, number: int) -> None:
        """Record that a trial will not be promoted any more, if it waits at a rung."""
        if number in self._last:
            epoch, entry = self._last[number]
            if self.rungs[epoch].take(entry):
                self.rungs[epoch].let_go.add(number)

    def give_up(self, coming: Mapping[int, int]) -> list[tuple[int, Stop]]:
        """Let go of the trials that cannot be promoted any more; return the reason for each."""
        gone: list[tuple[int, Stop]] = []
        for epoch in self.rungs:
            # Recomputed each time: trials let go from a rung will not reach the next one.
            most, rung = self._most_arriving(coming)[epoch], self.rungs[epoch]
            places = self._places(most, is_closed=True)
            while rung.waiting:
                last = rung.waiting[-1]
                # Better trials that wait go first.
                is_late = rung.num_promoted + len(rung.waiting) > places
                if not is_late and rung.rank(last) <= places:
                    break
                rung.take(last)
                rung.let_go.add(last.number)
                cut = -rung.arrived[min(places, len(rung.arrived)) - 1].minus_score
                stop = Stop(
                    rung=epoch,
                    value=-last.minus_score,
                    cut=cut,
                    peers=len(rung.arrived) - 1,
                    front=rung.front(last),
                )
                gone.append((last.number, stop))
        return gone

    def _most_arriving(self, coming: Mapping[int, int]) -> dict[int, int]:
        """Return the largest number of trials that can reach each rung."""
        most: dict[int, int] = {}
        below = num_promotable = 0
        for epoch, rung in self.rungs.items():
            num_coming = coming.get(below, 0) + num_promotable
            most[epoch] = len(rung.arrived) + num_coming
            free = self._places(most[epoch], is_closed=True) - rung.num_promoted
            num_promotable = max(0, min(free, len(rung.waiting) + num_coming))
            below = epoch
        return most

    def _places(self, num_arrived: int, *, is_closed: bool) -> int:
        """Return how many of the trials that reached a rung may be promoted."""
        return max(num_arrived // self.reduction, int(is_closed and num_arrived > 0))


class StoppingAsha:
    """The stopping variant of asynchronous successive halving, as in Ray Tune.

    Rungs are at ``grace * reduction ** i`` epochs, below the last epoch. A trial that reaches a
    rung continues if its score is in the best ``1 / reduction`` of those that reached it before;
    the first always continues.
    """

    def __init__(self, *, grace: int, reduction: int, epochs: int) -> None:
        self.reduction = reduction
        self.rungs: dict[int, list[float]] = {
            epoch: [] for epoch in rung_epochs(grace, reduction, epochs)
        }
        """Epoch of the rung -> scores of the trials that reached it, in order of arrival."""

    def judged_epochs(self, number: int) -> Collection[int]:
        """See ``Scheduler``."""
        return self.rungs.keys()

    def enter(
        self, number: int, epoch: int, value: float, tie: float = 0.0, costs: Costs = ()
    ) -> None:
        """See ``Scheduler``."""
        _check_finite(value)
        if epoch in self.rungs:
            self.rungs[epoch].append(value)

    def judge(
        self, number: int, epoch: int, value: float, tie: float = 0.0, costs: Costs = ()
    ) -> Stop | None:
        """See ``Scheduler``; this and the schedulers below never pause a trial."""
        arrived = self.rungs.get(epoch, [])
        cut = float(np.quantile(arrived, 1 - 1 / self.reduction)) if arrived else -math.inf
        stop = Stop(rung=epoch, value=value, cut=cut, peers=len(arrived)) if value < cut else None
        self.enter(number, epoch, value)
        return stop


class Hyperband:
    """Asynchronous Hyperband: several brackets of stopping ASHA, each more patient than the last.

    The rungs of bracket s begin at ``grace * reduction ** s`` epochs; the last bracket has none.
    Each trial is assigned to a random bracket and judged by its peers there. A bracket with k rungs
    gets trials in proportion to ``reduction ** k / (k + 1)``, so that all brackets train about the
    same number of epochs (Li et al. 2018, JMLR 18:185, algorithm 1; random assignment as in Klein
    et al. 2020, arXiv 2003.10865).
    """

    def __init__(self, *, grace: int, reduction: int, epochs: int, seed: int) -> None:
        self.seed = seed
        self.brackets = [StoppingAsha(grace=grace, reduction=reduction, epochs=epochs)]
        while self.brackets[-1].rungs:
            grace *= reduction
            self.brackets.append(StoppingAsha(grace=grace, reduction=reduction, epochs=epochs))
        num_rungs = np.array([len(bracket.rungs) for bracket in self.brackets])
        weights = float(reduction) ** num_rungs / (num_rungs + 1)
        self.shares = weights / weights.sum()
        """Share of the trials that each bracket gets."""

    def bracket(self, number: int) -> StoppingAsha:
        """Return the bracket of trial ``number``, the same on every call."""
        draw = np.random.default_rng((self.seed, number)).choice(len(self.brackets), p=self.shares)
        return self.brackets[draw]

    def judged_epochs(self, number: int) -> Collection[int]:
        """See ``Scheduler``."""
        return self.bracket(number).judged_epochs(number)

    def enter(
        self, number: int, epoch: int, value: float, tie: float = 0.0, costs: Costs = ()
    ) -> None:
        """See ``Scheduler``."""
        self.bracket(number).enter(number, epoch, value)

    def judge(
        self, number: int, epoch: int, value: float, tie: float = 0.0, costs: Costs = ()
    ) -> Stop | None:
        """See ``Scheduler``."""
        return self.bracket(number).judge(number, epoch, value)


class Median:
    """The median stopping rule of Vizier (Golovin et al. 2017, section 3.2.2).

    From ``grace`` epochs on and below the last, a trial stops if its best score so far is below
    the median of the other trials' mean scores from their first epoch to this one. It is compared
    with the trials that reached this epoch before, if there are at least ``MIN_PEERS``.
    """

    def __init__(self, *, grace: int, epochs: int) -> None:
        self.judged = range(grace, epochs)
        self.averages: dict[int, list[float]] = {}
        """Epoch -> mean score up to it of each trial that reached it, in order of arrival."""
        self._best: dict[int, float] = {}
        self._total: dict[int, float] = {}

    def judged_epochs(self, number: int) -> Collection[int]:
        """See ``Scheduler``."""
        return self.judged

    def enter(
        self, number: int, epoch: int, value: float, tie: float = 0.0, costs: Costs = ()
    ) -> None:
        """See ``Scheduler``."""
        _check_finite(value)
        self._best[number] = max(value, self._best.get(number, value))
        self._total[number] = self._total.get(number, 0.0) + value
        self.averages.setdefault(epoch, []).append(self._total[number] / epoch)

    def judge(
        self, number: int, epoch: int, value: float, tie: float = 0.0, costs: Costs = ()
    ) -> Stop | None:
        """See ``Scheduler``."""
        peers = list(self.averages.get(epoch, ()))
        self.enter(number, epoch, value)
        if epoch not in self.judged or len(peers) < MIN_PEERS:
            return None
        best, cut = self._best[number], float(np.median(peers))
        return Stop(rung=epoch, value=best, cut=cut, peers=len(peers)) if best < cut else None


def make_scheduler(search: SearchConfig) -> Scheduler:
    """Return the scheduler that ``search`` names; ``none`` is stopping ASHA without rungs."""
    grace, reduction, epochs = search.grace, search.reduction, search.epochs
    match search.scheduler:
        case "asha":
            has_costs = bool(search.costs)
            return Asha(grace=grace, reduction=reduction, epochs=epochs, has_costs=has_costs)
        case "asha-stop":
            return StoppingAsha(grace=grace, reduction=reduction, epochs=epochs)
        case "hyperband":
            return Hyperband(grace=grace, reduction=reduction, epochs=epochs, seed=search.seed)
        case "median":
            return Median(grace=grace, epochs=epochs)
        case "none":
            return StoppingAsha(grace=epochs, reduction=reduction, epochs=epochs)


def _check_finite(value: float) -> None:
    if not math.isfinite(value):
        raise ValueError(f"a score must be finite, got {value}")
