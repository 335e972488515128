"""Searches on a simulated clock: the program's own tuner over trials that are not trained."""

import heapq
import math
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Self

import numpy as np

from tuner.config import SearchConfig, TrialConfig
from tuner.run.events import EpochEnded, Event, TrialEnded, TrialMeasured, TrialPlaced
from tuner.run.state import SearchState
from tuner.run.trial import EpochMetrics
from tuner.tuning.budget import Budget, Spending
from tuner.tuning.proposers import FixedProposer
from tuner.tuning.resources import TrialResources
from tuner.tuning.schedulers import make_scheduler
from tuner.tuning.tuner import Assignment, Tuner

TURNOVER_SECONDS = 0.25
"""Between the last epoch of a trial and the setup of the next one in its place: the engine, and the
worker that clears up. Measured on two cores, between trials of small CNNs on the digits."""
DECAY = 0.5
"""The simulated error falls with this power of the epochs; only the median rule sees it."""
NOISE = 0.3
"""Deviation of an epoch's result, where that of the trials' true quality is 1."""
CONCENTRATION = 0.25
"""A sampler that learns comes to prefer some configurations, nobody knows which: in each simulation
they get weights from a Dirichlet distribution of this concentration, of which few stand out."""
MOST_LEARNED = 1.0
"""What such a sampler proposes is better on average, by at most this many deviations."""
SPEED_DEVIATION = 0.05
"""Deviation of the machine's speed between measurement and search, as a share."""


class SimulatedClock:
    """A clock that stands still until it is set; ``now`` is in seconds."""

    def __init__(self, now: float = 0.0) -> None:
        self.now = now

    def __call__(self) -> float:
        """Return the time."""
        return self.now


Step = float | Event
"""What a simulated worker does next: let some seconds pass, or report an event."""


def run_trials(
    tuner: Tuner,
    clock: SimulatedClock,
    train: Callable[[Assignment], Iterator[Step]],
    has_room: Callable[[Collection[TrialResources]], bool],
) -> Iterator[Event]:
    """Run the trials of a search on a simulated clock, as ``ray_backend`` does on a cluster.

    Args:
        tuner: Decides what the trials do; its spending goes by ``clock``.
        clock: Is set to the time of each report.
        train: Yields what the worker of a trial does after the epochs that it was assigned with, up
            to its report of ``TrialEnded``; it is resumed when its seconds have passed, or its
            trial goes on after a report. Seconds below 0 have it go on before others that are
            waiting.
        has_room: See ``Tuner.next``.

    Yields:
        Each report, after the tuner has answered it.
    """
    workers: dict[int, tuple[Assignment, Iterator[Step]]] = {}
    due: list[tuple[float, int]] = []

    def start() -> Iterator[Event]:
        while isinstance(given := tuner.next(has_room), Assignment):
            workers[given.number] = given, train(given)
            yield from resume(given.number)

    def resume(number: int) -> Iterator[Event]:
        given, steps = workers[number]
        for step in steps:
            if isinstance(step, int | float):
                heapq.heappush(due, (clock.now + step, number))
                return
            if tuner.on(step) != "continue" or isinstance(step, TrialEnded):
                end(number)
            elif _ends_here(tuner, given, step):
                end(number, _interrupted(tuner, number))
            yield step
            if number not in workers:
                return

    def end(number: int, event: TrialEnded | None = None) -> None:
        if event is not None:
            tuner.on(event)
        tuner.end(number)
        del workers[number]

    yield from start()
    while due:
        moment, number = due[0]
        spent = clock.now + tuner.spending.seconds_left(tuner.spending.gpus_under_way)
        if spent < moment:
            # Running trials end after their step under way.
            clock.now = spent
            tuner.draining = tuner.draining or "budget"
            due.clear()
            for running in sorted(workers):
                end(running, _interrupted(tuner, running, ", when the budget was spent"))
            return
        heapq.heappop(due)
        clock.now = max(clock.now, moment)
        yield from resume(number)
        if number not in workers:
            yield from start()


def _ends_here(tuner: Tuner, given: Assignment, event: Event) -> bool:
    """Whether a worker sees after its epoch that the search ends."""
    is_epoch = isinstance(event, EpochEnded) and event.metrics.epoch < given.config.epochs
    return is_epoch and tuner.is_draining()


def _interrupted(tuner: Tuner, number: int, why: str = "") -> TrialEnded:
    epoch = len(tuner.state.trials[number].history)
    return TrialEnded(number=number, state="interrupted", reason=f"after epoch {epoch}{why}")


@dataclass(frozen=True, kw_only=True, slots=True)
class TrialCost:
    """What a trial costs, however good it is."""

    config: TrialConfig
    resources: TrialResources
    setup_seconds: float
    """Before its first epoch."""
    epoch_seconds: float
    """Seconds of training and validation."""
    write_seconds: float
    """Seconds of writing a trial's files, where it waits for them: at its rungs and at its end."""
    parameters: int = 1
    """How many its network has."""
    is_infeasible: bool = False
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
class SimulatedSearch:
    """What a simulated search came to."""

    config_indices: tuple[int, ...]
    """Which of the configurations each trial had that was begun."""
    seconds: float
    epochs: tuple[int, ...]
    """How far each trial came that was begun."""
    done: int
    """Trials that ended by themselves: at a rung or their last epoch, not for want of budget."""
    training_seconds: float
    gpu_seconds: float
    most_states: int
    """Most trials at a time whose state was kept: those that ran or waited at a rung."""

    def reaching(self, epoch: int) -> int:
        """Count the trials that were trained for ``epoch`` epochs or more."""
        return sum(done >= epoch for done in self.epochs)


def simulate(
    costs: Sequence[TrialCost],
    num_known: int,
    search: SearchConfig,
    budget: Budget,
    fit: Callable[[Sequence[TrialResources]], bool],
    *,
    start_seconds: float,
) -> Iterator[SimulatedSearch]:
    """Simulate searches without end, each with other trials, qualities and speed of the machine.

    Of how good trials are nothing is known. They are exchangeable, but that in each simulation slow
    ones are better or worse to another degree, and that a sampler which learns proposes better ones
    and keeps to some configurations.

    Args:
        costs: Of configurations of the space.
        num_known: The first trials have the first so many of these, in their order; the other
            trials have any.
        search: What is simulated.
        budget: May end it.
        fit: See ``simulate_search``.
        start_seconds: See ``simulate_search``.
    """
    generator = np.random.default_rng(search.seed)
    # It goes by how good trials are.
    search = replace(search, patience=0.0)
    learns = search.learns
    num_known = min(num_known, budget.trials)
    trained = np.log([cost.epoch_seconds for cost in costs if not cost.is_infeasible] or [1.0])
    sizes = np.array(
        [
            0.0
            if cost.is_infeasible
            else (math.log(cost.epoch_seconds) - trained.mean()) / (trained.std() or 1.0)
            for cost in costs
        ]
    )
    while True:
        weights = generator.dirichlet(np.full(len(costs), CONCENTRATION if learns else 1.0))
        others = generator.choice(len(costs), budget.trials - num_known, p=weights)
        indices = [*range(num_known), *map(int, others)]
        correlation = generator.uniform(-1, 1)
        qualities = correlation * sizes[indices]
        qualities += math.sqrt(1 - correlation**2) * generator.standard_normal(len(indices))
        if learns:
            qualities[num_known:] += generator.uniform(0, MOST_LEARNED)
        factor = math.exp(SPEED_DEVIATION * generator.standard_normal())
        yield simulate_search(
            indices,
            [cost.slower(factor) for cost in costs],
            list(map(float, qualities)),
            search,
            budget,
            fit,
            generator,
            start_seconds=start_seconds,
        )


def simulate_search(
    indices: Sequence[int],
    costs: Sequence[TrialCost],
    qualities: Sequence[float],
    search: SearchConfig,
    budget: Budget,
    fit: Callable[[Sequence[TrialResources]], bool],
    generator: np.random.Generator,
    *,
    start_seconds: float = 0.0,
) -> SimulatedSearch:
    """Simulate a search.

    Args:
        indices: Which of the configurations each trial has, in the order of their starts.
        costs: Of the configurations.
        qualities: Of each trial, standard normal or so: the larger, the better.
        search: Its scheduler judges the trials.
        budget: May end the search early, as it does a real one.
        fit: Whether trials of these resources can run at once; always so for one alone.
        generator: Of the noise.
        start_seconds: Until the workers are there.
    """
    clock = SimulatedClock()
    spending = Spending(replace(budget, trials=len(indices)), clock=clock)
    scheduler = make_scheduler(search)
    own = [costs[index] for index in indices]
    tuner = Tuner(
        SearchState(search),
        FixedProposer([cost.config for cost in own]),
        scheduler,
        spending,
        # The next trial's: asked for when it is about to start.
        lambda config: own[tuner.num_started - 1].resources,
    )

    def has_room(running: Collection[TrialResources]) -> bool:
        return fit([*running, own[tuner.up_next].resources])

    def train(given: Assignment) -> Iterator[Step]:
        number, cost = given.number, own[given.number]
        yield TURNOVER_SECONDS
        yield TrialPlaced(number=number, node="simulated")
        yield cost.setup_seconds
        if cost.is_infeasible:
            yield TrialEnded(number=number, state="out_of_memory")
        if not given.is_measured:
            # It is the order that counts: what trains longer is taken to predict longer.
            yield TrialMeasured(
                number=number,
                latency_ms=1000 * cost.epoch_seconds,
                size_mb=4e-6 * cost.parameters,
            )
        for epoch in range(given.num_epochs + 1, given.config.epochs + 1):
            is_awaited = epoch == given.config.epochs or epoch in given.judged_epochs
            yield cost.epoch_seconds + (cost.write_seconds if is_awaited else 0.0)
            error = math.exp(-qualities[number] - NOISE * generator.standard_normal())
            error *= epoch**-DECAY
            # Whatever the metric, the better trial has the better value.
            metrics = EpochMetrics(
                epoch=epoch,
                train_loss=0.0,
                val_loss=error,
                val_accuracy=1 - error,
                val_balanced_accuracy=1 - error,
                val_macro_f1=1 - error,
                val_worst_class=1 - error,
                lr=0.0,
                seconds=cost.epoch_seconds,
                time=clock.now,
            )
            yield EpochEnded(number=number, metrics=metrics, num_parameters=cost.parameters)
        yield TrialEnded(number=number, state="completed")

    # The clock of the budget starts before the workers do.
    clock.now = start_seconds
    most_states = 0
    for _ in run_trials(tuner, clock, train, has_room):
        most_states = max(most_states, len(tuner.live) + len(tuner.paused))
    trials = tuner.state.trials.values()
    return SimulatedSearch(
        config_indices=tuple(indices[: tuner.num_started]),
        seconds=min(clock.now, budget.seconds),
        epochs=tuple(len(trial.history) for trial in trials),
        done=tuner.state.num_done,
        training_seconds=sum(row.seconds for trial in trials for row in trial.history),
        gpu_seconds=tuner.state.gpu_seconds,
        most_states=most_states,
    )
