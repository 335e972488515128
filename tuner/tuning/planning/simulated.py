"""Searches on a simulated clock: the real tuner runs trials that are not trained."""

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
"""Seconds between a trial's last epoch and the setup of the next one on its slot, for the engine
and the worker's cleanup. Measured on two cores, between trials of small CNNs on the digits."""
DECAY = 0.5
"""The simulated error falls with this power of the epochs; it only affects the median rule."""
NOISE = 0.3
"""Standard deviation of an epoch's result, where that of the trials' true quality is 1."""
CONCENTRATION = 0.25
"""Concentration of a Dirichlet distribution: a sampler that learns comes to prefer some unknown
configurations, so in each simulation they get weights from it, of which few stand out."""
MOST_LEARNED = 1.0
"""Maximum mean gain, in standard deviations, of what such a sampler proposes."""
SPEED_DEVIATION = 0.05
"""Relative standard deviation of the machine's speed between measurement and search."""


class SimulatedClock:
    """A clock that stands still until it is set; ``now`` is in seconds."""

    def __init__(self, now: float = 0.0) -> None:
        self.now = now

    def __call__(self) -> float:
        """Return the time."""
        return self.now


Step = float | Event
"""A simulated worker's next action: let some seconds pass, or report an event."""


def run_simulated(
    tuner: Tuner,
    clock: SimulatedClock,
    train: Callable[[Assignment], Iterator[Step]],
    has_room: Callable[[Collection[TrialResources]], bool],
) -> Iterator[Event]:
    """Run the trials of a search on a simulated clock, as ``ray_backend`` does on a cluster.

    Args:
        tuner: Decides what the trials do; its spending uses ``clock``.
        clock: Set to the time of each report.
        train: Yields the actions of a trial's worker after the epochs that the trial already has,
            up to its ``TrialEnded``. It is resumed when its seconds have passed, or when its trial
            continues after a report. Negative seconds resume it before others that are waiting.
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
            # Running trials end after their current step.
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
    """The cost of a trial, regardless of how good it is."""

    config: TrialConfig
    resources: TrialResources
    setup_seconds: float
    """Seconds before its first epoch."""
    epoch_seconds: float
    """Seconds of an epoch's training and validation."""
    write_seconds: float
    """Seconds of writing a trial's files, where it waits for them: at its rungs and at its end."""
    parameters: int = 1
    """Number of parameters of its network."""
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
    """The result of a simulated search."""

    config_indices: tuple[int, ...]
    """Index of each started trial's configuration."""
    seconds: float
    epochs: tuple[int, ...]
    """Number of epochs of each started trial."""
    done: int
    """Number of trials that ended for good, not cut off by the budget."""
    training_seconds: float
    gpu_seconds: float
    most_states: int
    """Maximum number of trials at a time whose state was kept: running or waiting at a rung."""

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
    """Simulate searches endlessly, each with different trials, qualities and machine speed.

    Nothing is known about how good trials are. They are exchangeable, except that in each
    simulation slow ones are better or worse to a different degree, and that a sampler that learns
    proposes better ones and keeps to some configurations.

    Args:
        costs: Costs of configurations of the space.
        num_known: Number of first trials that have the first of these, in order; the other trials
            have any.
        search: The search to simulate.
        budget: May end it early.
        fit: See ``simulate_search``.
        start_seconds: See ``simulate_search``.
    """
    generator = np.random.default_rng(search.seed)
    # Patience depends on how good trials are.
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
        indices: Index of each trial's configuration, in the order in which trials start.
        costs: Costs of the configurations.
        qualities: Quality of each trial, roughly standard normal; higher is better.
        search: Its scheduler judges the trials.
        budget: May end the search early, as it does a real one.
        fit: Returns whether trials of these resources can run at once; one alone always can.
        generator: Source of the noise.
        start_seconds: Seconds until the workers are ready.
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
        # Called when the next trial is about to start.
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
            # Only the order matters: what trains longer is assumed to predict longer.
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
    for _ in run_simulated(tuner, clock, train, has_room):
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
