import itertools
import math
from collections.abc import Callable, Sequence

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tuner.config import ModelConfig, SearchConfig, TrialConfig
from tuner.tuning.budget import Budget
from tuner.tuning.planning.simulated import (
    TURNOVER_SECONDS,
    SimulatedSearch,
    TrialCost,
    simulate,
    simulate_search,
)
from tuner.tuning.resources import TrialResources

CPU = TrialResources(cpus=1, gpus=0)
seconds = st.floats(0.01, 100)


def config_of(epochs: int) -> TrialConfig:
    return TrialConfig(model=ModelConfig("cnn", {}), epochs=epochs)


costs = st.lists(
    st.builds(
        TrialCost,
        config=st.integers(1, 9).map(config_of),
        resources=st.just(CPU),
        setup_seconds=seconds,
        epoch_seconds=seconds,
        write_seconds=seconds,
        is_infeasible=st.booleans(),
    ),
    min_size=1,
    max_size=20,
)
SCHEDULERS = ("asha", "asha-stop", "hyperband", "median", "none")


def at_once(number: int) -> Callable[[Sequence[TrialResources]], bool]:
    return lambda shares: len(shares) <= number


def searched(scheduler: str = "none", **given: object) -> SearchConfig:
    return SearchConfig(scheduler=scheduler, epochs=9, grace=1, reduction=3, **given)


def simulated(
    costs: Sequence[TrialCost],
    slots: int,
    *,
    search: SearchConfig | None = None,
    seconds: float = math.inf,
    gpu_seconds: float = math.inf,
) -> SimulatedSearch:
    return simulate_search(
        range(len(costs)),
        costs,
        np.random.default_rng(0).standard_normal(len(costs)),
        search or searched(),
        Budget(trials=len(costs), seconds=seconds, gpu_seconds=gpu_seconds),
        at_once(slots),
        np.random.default_rng(1),
        start_seconds=5.0,
    )


def alone(cost: TrialCost) -> float:
    """Return the seconds that a trial holds its slot when nothing stops it."""
    epochs = 0 if cost.is_infeasible else cost.config.epochs
    writing = 0.0 if cost.is_infeasible else cost.write_seconds
    return TURNOVER_SECONDS + cost.setup_seconds + epochs * cost.epoch_seconds + writing


@given(costs)
def test_one_slot_without_a_scheduler_takes_the_sum_of_the_trials(
    costs: list[TrialCost],
) -> None:
    came = simulated(costs, 1)
    assert came.seconds == pytest.approx(5.0 + sum(map(alone, costs)))
    assert came.epochs == tuple(0 if cost.is_infeasible else cost.config.epochs for cost in costs)
    expected = sum(done * cost.epoch_seconds for done, cost in zip(came.epochs, costs, strict=True))
    assert came.training_seconds == pytest.approx(expected)


@given(costs, st.integers(1, 8))
def test_twice_the_slots_never_take_longer_and_never_less_than_half(
    costs: list[TrialCost], slots: int
) -> None:
    few, many = (simulated(costs, number).seconds - 5.0 for number in (slots, 2 * slots))
    assert few / 2 - 1e-6 <= many <= few + 1e-6


@given(costs)
def test_a_slot_for_each_trial_takes_as_long_as_the_longest(costs: list[TrialCost]) -> None:
    assert simulated(costs, len(costs)).seconds == pytest.approx(5.0 + max(map(alone, costs)))


@pytest.mark.parametrize("scheduler", SCHEDULERS)
@given(costs=costs, slots=st.integers(1, 4))
def test_no_more_trials_come_to_a_rung_than_to_the_one_before(
    scheduler: str, costs: list[TrialCost], slots: int
) -> None:
    came = simulated(costs, slots, search=searched(scheduler))
    reached = [came.reaching(epoch) for epoch in range(11)]
    assert reached[0] == len(costs)
    assert reached[10] == 0
    assert all(more >= fewer for more, fewer in itertools.pairwise(reached))
    assert all(done <= cost.config.epochs for done, cost in zip(came.epochs, costs, strict=True))
    assert sum(reached[1:]) == sum(came.epochs)


def test_asha_stops_about_two_of_three_at_its_first_rung() -> None:
    cost = TrialCost(
        config=config_of(9), resources=CPU, setup_seconds=0, epoch_seconds=1, write_seconds=0
    )
    came = simulated([cost] * 300, 4, search=searched("asha-stop"))
    assert came.reaching(1) == 300
    assert 80 <= came.reaching(2) <= 130
    assert came.reaching(4) < came.reaching(2)


@given(costs, st.floats(5, 500))
def test_a_budget_of_time_ends_the_search_on_time(costs: list[TrialCost], limit: float) -> None:
    came = simulated(costs, 2, seconds=limit)
    assert came.seconds <= limit
    assert came.seconds >= min(limit, simulated(costs, 2).seconds) - 1e-6


@pytest.mark.parametrize("slow", [1.0, 2.3])
def test_a_search_of_limited_time_trains_its_best_trials_to_their_end(slow: float) -> None:
    """The time suffices for six trials on two slots; the first ones may take longer than others."""
    costs = [
        TrialCost(
            config=config_of(12),
            resources=CPU,
            setup_seconds=0.5,
            epoch_seconds=slow if number < 8 else 1.0,
            write_seconds=0.1,
        )
        for number in range(40)
    ]
    found: list[float] = []
    for seed in range(20):
        generator = np.random.default_rng(seed)
        qualities = generator.standard_normal(40)
        came = simulate_search(
            range(40),
            costs,
            list(qualities),
            SearchConfig(epochs=12, grace=4, reduction=2),
            Budget(trials=40, seconds=6 * 12 / 2),
            at_once(2),
            generator,
        )
        ends = [number for number, epochs in enumerate(came.epochs) if epochs == 12]
        assert len(ends) >= 2, "one on each slot"
        assert len(came.epochs) > len(ends), "others were tried before"
        found += list(qualities[ends])
    # If trials are slow, there is no time to choose among many.
    assert slow > 1 or np.mean(found) > 0.4, "they are not any, whose mean is 0"


def test_a_budget_of_gpus_is_spent_by_the_share_that_trials_hold() -> None:
    half = TrialResources(cpus=1, gpus=0.5)
    cost = TrialCost(
        config=config_of(9), resources=half, setup_seconds=0, epoch_seconds=2, write_seconds=1
    )
    came = simulated([cost] * 10, 1, gpu_seconds=5.0)
    assert came.gpu_seconds == 5.0
    assert came.epochs == (5,)


def searches(
    costs: Sequence[TrialCost], num_known: int, search: SearchConfig
) -> list[SimulatedSearch]:
    found = simulate(
        costs,
        num_known,
        search,
        Budget(trials=search.trials),
        at_once(2),
        start_seconds=0.0,
    )
    return list(itertools.islice(found, 20))


TWO = [
    TrialCost(
        config=config_of(9), resources=CPU, setup_seconds=0, epoch_seconds=each, write_seconds=0
    )
    for each in (1.0, 4.0)
]


def test_simulated_searches_are_the_same_by_their_seed_and_differ_among_each_other() -> None:
    search = searched("asha", trials=12)
    first = searches(TWO, 2, search)
    assert first == searches(TWO, 2, search)
    assert first != searches(TWO, 2, searched("asha", trials=12, seed=1))
    assert len({one.seconds for one in first}) > 10


@pytest.mark.parametrize("sampler", ["random", "tpe"])
def test_trials_whose_configuration_is_known_have_it(sampler: str) -> None:
    for one in searches(TWO, 2, searched(trials=12, sampler=sampler)):
        assert one.config_indices[:2] == (0, 1)
        assert len(one.config_indices) == 12
        assert set(one.config_indices) <= {0, 1}


def test_nobody_knows_which_configurations_a_sampler_that_learns_comes_to_prefer() -> None:
    def spread(sampler: str) -> float:
        found = searches(TWO, 0, searched(trials=200, sampler=sampler))
        return float(np.std([np.mean(one.config_indices) for one in found]))

    assert spread("tpe") > spread("random")
