"""Searches played without training: the program's own schedulers over trials of known cost."""

import heapq
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Self

import numpy as np

from tuner.config import SearchConfig
from tuner.tuning.budget import Budget
from tuner.tuning.ray_backend.resources import Share
from tuner.tuning.schedulers import make_scheduler

TURNOVER_SECONDS = 0.25
"""Between the last epoch of a trial and the setup of the next one in its place: the engine, and the
worker that clears up. Measured on two cores, between trials of small CNNs on the digits."""
DECAY = 0.5
"""The simulated error falls with this power of the epochs; only the median rule sees it."""
NOISE = 0.3
"""Deviation of an epoch's result, where that of the trials' true quality is 1."""
LEANING = 0.25
"""A sampler that learns comes to prefer some configurations, nobody knows which: in each simulation
they get weights from a Dirichlet distribution of this concentration, of which few stand out."""
LEARNT = 1.0
"""By so many deviations at the most is better, on average, what such a sampler proposes."""
DRIFT = 0.05
"""Deviation of the machine's speed between measurement and search, as a share."""
LEARNERS = frozenset({"tpe", "gp", "cmaes"})
"""Samplers that learn from the trials."""


@dataclass(frozen=True, kw_only=True, slots=True)
class TrialCost:
    """What a trial costs, however good it is."""

    share: Share
    epochs: int
    """The most that it is trained."""
    setup_seconds: float
    """Before its first epoch."""
    epoch_seconds: float
    """Seconds of training and validation."""
    write_seconds: float
    """Seconds of writing a trial's files, where it waits for them: at its rungs and at its end."""
    is_misfit: bool = False
    """Whether it ends before its first epoch."""

    def slower(self, factor: float) -> Self:
        """Return the cost on a machine that takes ``factor`` times as long."""
        return replace(
            self,
            setup_seconds=factor * self.setup_seconds,
            epoch_seconds=factor * self.epoch_seconds,
            write_seconds=factor * self.write_seconds,
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class Played:
    """What a simulated search came to."""

    drawn: tuple[int, ...]
    """Which of the configurations each trial had that was begun."""
    seconds: float
    epochs: tuple[int, ...]
    """How far each trial came that was begun."""
    training_seconds: float
    gpu_seconds: float

    def reaching(self, epoch: int) -> int:
        """Count the trials that were trained for ``epoch`` epochs or more."""
        return sum(done >= epoch for done in self.epochs)


def simulate(
    costs: Sequence[TrialCost],
    num_known: int,
    search: SearchConfig,
    budget: Budget,
    fit: Callable[[Sequence[Share]], bool],
    *,
    start_seconds: float,
) -> Iterator[Played]:
    """Play searches without end, each with other trials, qualities and speed of the machine.

    Of how good trials are nothing is known. They are exchangeable, but that in each simulation slow
    ones are better or worse to another degree, and that a sampler which learns proposes better ones
    and keeps to some configurations.

    Args:
        costs: Of configurations of the space.
        num_known: The first trials have the first so many of these, in their order; the other
            trials have any.
        search: What is played.
        budget: May end it.
        fit: See ``play``.
        start_seconds: See ``play``.
    """
    generator = np.random.default_rng(search.seed)
    learns = search.sampler in LEARNERS
    num_known = min(num_known, budget.trials)
    trained = np.log([cost.epoch_seconds for cost in costs if not cost.is_misfit] or [1.0])
    sizes = np.array(
        [
            0.0
            if cost.is_misfit
            else (math.log(cost.epoch_seconds) - trained.mean()) / (trained.std() or 1.0)
            for cost in costs
        ]
    )
    while True:
        weights = generator.dirichlet(np.full(len(costs), LEANING if learns else 1.0))
        others = generator.choice(len(costs), budget.trials - num_known, p=weights)
        drawn = [*range(num_known), *map(int, others)]
        leaning = generator.uniform(-1, 1)
        qualities = leaning * sizes[drawn]
        qualities += math.sqrt(1 - leaning**2) * generator.standard_normal(len(drawn))
        if learns:
            qualities[num_known:] += generator.uniform(0, LEARNT)
        factor = math.exp(DRIFT * generator.standard_normal())
        yield play(
            drawn,
            [cost.slower(factor) for cost in costs],
            list(map(float, qualities)),
            search,
            budget,
            fit,
            generator,
            start_seconds=start_seconds,
        )


def play(
    drawn: Sequence[int],
    costs: Sequence[TrialCost],
    qualities: Sequence[float],
    search: SearchConfig,
    budget: Budget,
    fit: Callable[[Sequence[Share]], bool],
    generator: np.random.Generator,
    *,
    start_seconds: float = 0.0,
) -> Played:
    """Play a search.

    Args:
        drawn: Which of the configurations each trial has, in the order of their starts.
        costs: Of the configurations.
        qualities: Of each trial, standard normal or so: the larger, the better.
        search: Its scheduler judges the trials.
        budget: May end the search early, as it does a real one; its ``trials`` are not looked at.
        fit: Whether trials of these shares can run at once; always so for one alone.
        generator: Of the noise.
        start_seconds: Until the workers are there.
    """
    scheduler = make_scheduler(search)
    events: list[tuple[float, int]] = []
    done: list[int] = []
    running: dict[int, Share] = {}
    training = gpus = 0.0
    now = start_seconds

    def is_over() -> bool:
        return now >= budget.seconds or gpus >= budget.gpu_seconds

    def seconds(number: int, epoch: int) -> float:
        """Return the time from the end of the epoch before to the report of this one."""
        cost = costs[drawn[number]]
        is_awaited = epoch == cost.epochs or epoch in scheduler.judged_epochs(number)
        return cost.epoch_seconds + (cost.write_seconds if is_awaited else 0.0)

    def start() -> None:
        while len(done) < len(drawn) and not is_over():
            cost = costs[drawn[len(done)]]
            if not fit([*running.values(), cost.share]):
                return
            first = 0.0 if cost.is_misfit else seconds(len(done), 1)
            ready = now + TURNOVER_SECONDS + cost.setup_seconds + first
            heapq.heappush(events, (ready, len(done)))
            running[len(done)] = cost.share
            done.append(0)

    start()
    while events:
        now, number = heapq.heappop(events)
        cost = costs[drawn[number]]
        is_ended = cost.is_misfit
        if now > budget.seconds:
            # The epoch is cut off, and does not count.
            now = budget.seconds
            is_ended = True
        if not is_ended:
            done[number] += 1
            training += cost.epoch_seconds
            gpus += cost.epoch_seconds * cost.share.gpus
            error = math.exp(-qualities[number] - NOISE * generator.standard_normal())
            accuracy = 1 - error * done[number] ** -DECAY
            stop = scheduler.judge(number, done[number], accuracy)
            is_ended = stop is not None or done[number] >= cost.epochs or is_over()
        if is_ended:
            del running[number]
            start()
        else:
            heapq.heappush(events, (now + seconds(number, done[number] + 1), number))
    return Played(
        drawn=tuple(drawn[: len(done)]),
        seconds=now,
        epochs=tuple(done),
        training_seconds=training,
        gpu_seconds=gpus,
    )
