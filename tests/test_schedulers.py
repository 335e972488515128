import itertools
import math
from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tuner.config import SearchConfig
from tuner.tuning.schedulers import (
    MIN_PEERS,
    Asha,
    Hyperband,
    Median,
    Scheduler,
    StoppingAsha,
    make_scheduler,
)

KINDS = ("asha", "asha-stop", "hyperband", "median", "none")
accuracies = st.floats(0, 1)
reductions = st.integers(2, 5)


def make(kind: str, *, epochs: int = 9, grace: int = 1, reduction: int = 3) -> Scheduler:
    return make_scheduler(
        SearchConfig(scheduler=kind, epochs=epochs, grace=grace, reduction=reduction)
    )


def state(scheduler: Scheduler) -> object:
    """Return all on which later verdicts depend."""
    if isinstance(scheduler, Hyperband):
        return [bracket.rungs for bracket in scheduler.brackets]
    if isinstance(scheduler, Median):
        return scheduler.averages, scheduler._best, scheduler._total
    if isinstance(scheduler, Asha):
        return scheduler.rungs, scheduler._last
    assert isinstance(scheduler, StoppingAsha)
    return scheduler.rungs


def first_rung(values: list[float], reduction: int = 3) -> StoppingAsha:
    """Return ASHA after ``values`` have come to its rung at epoch 1."""
    asha = StoppingAsha(grace=1, reduction=reduction, epochs=9)
    for number, value in enumerate(values):
        asha.enter(number, 1, value)
    return asha


@pytest.mark.parametrize(
    ("grace", "reduction", "epochs", "rungs"),
    [(1, 3, 27, [1, 3, 9]), (3, 3, 27, [3, 9]), (2, 4, 33, [2, 8, 32]), (27, 3, 27, [])],
)
def test_rungs_lie_a_factor_apart_below_the_last_epoch(
    grace: int, reduction: int, epochs: int, rungs: list[int]
) -> None:
    assert list(StoppingAsha(grace=grace, reduction=reduction, epochs=epochs).rungs) == rungs


@given(st.lists(accuracies, max_size=30), accuracies, reductions)
def test_the_best_value_so_far_goes_on(values: list[float], value: float, reduction: int) -> None:
    asha = first_rung(values, reduction)
    assert asha.judge(len(values), 1, max([value, *values])) is None


@given(st.lists(accuracies, min_size=1, max_size=30), accuracies, reductions)
def test_asha_parts_the_best_share_from_the_rest(
    values: list[float], value: float, reduction: int
) -> None:
    stop = first_rung(values, reduction).judge(len(values), 1, value)
    num_better = sum(other > value for other in values)
    share = (len(values) - 1) / reduction
    if stop is None:
        assert num_better <= share + 1
    else:
        assert num_better > share
        assert stop.value == value < stop.cut <= max(values)
        assert stop.peers == len(values)
        assert stop.rung == 1


@given(st.lists(accuracies, min_size=1, max_size=30), accuracies, st.randoms())
def test_a_verdict_does_not_depend_on_the_order_of_those_before(
    values: list[float], value: float, random: object
) -> None:
    shuffled = list(values)
    random.shuffle(shuffled)  # type: ignore[attr-defined]
    number = len(values)
    assert first_rung(values).judge(number, 1, value) == first_rung(shuffled).judge(
        number, 1, value
    )


@given(st.lists(accuracies, max_size=30), accuracies, accuracies)
def test_a_higher_accuracy_is_never_a_reason_to_stop(
    values: list[float], one: float, other: float
) -> None:
    low, high = sorted((one, other))
    if first_rung(values).judge(99, 1, low) is None:
        assert first_rung(values).judge(99, 1, high) is None


@given(st.lists(accuracies, max_size=40), reductions)
def test_whatever_the_order_a_rung_passes_on_its_first_and_its_best(
    values: list[float], reduction: int
) -> None:
    asha = StoppingAsha(grace=1, reduction=reduction, epochs=9)
    passed = [v for number, v in enumerate(values) if asha.judge(number, 1, v) is None]
    assert passed[:1] == values[:1]
    assert max(passed, default=0) == max(values, default=0)
    assert asha.rungs[1] == values, "those that are stopped stay in the rung"


def test_of_equal_scores_the_lower_tie_is_promoted_in_whatever_order_they_came() -> None:
    ties = {0: 2.3, 1: 1.1, 2: 1.9, 3: 0.7}
    for order in itertools.permutations(ties):
        asha = Asha(grace=1, reduction=2, epochs=4)
        for number in order:
            asha.judge(number, 1, 0.0, ties[number])
        assert asha.next_promotion({}) == 3
        asha.promote(3)
        assert asha.next_promotion({}) == 1
        asha.promote(1)
        assert asha.next_promotion({}) is None


def test_asha_judges_at_its_rungs_alone() -> None:
    asha = StoppingAsha(grace=2, reduction=2, epochs=9)
    for number, epoch in itertools.product(range(5), range(1, 10)):
        stop = asha.judge(number, epoch, 1 - number / 10)
        assert (stop is not None) == (number > 0 and epoch in (2, 4, 8))


@pytest.mark.parametrize("kind", KINDS)
@given(events=st.lists(st.tuples(st.integers(0, 7), accuracies), max_size=60), data=st.data())
def test_entering_leaves_what_judging_leaves(
    kind: str, events: list[tuple[int, float]], data: st.DataObject
) -> None:
    judged, replayed = make(kind), make(kind)
    epochs: Counter[int] = Counter()
    for number, value in events:
        epochs[number] += 1
        judged.judge(number, epochs[number], value)
        if data.draw(st.booleans()):
            replayed.enter(number, epochs[number], value)
        else:
            replayed.judge(number, epochs[number], value)
    assert state(judged) == state(replayed)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_a_value_that_is_not_finite_is_refused_and_forgotten(kind: str, value: float) -> None:
    scheduler, untouched = make(kind), make(kind)
    for refuse in (scheduler.judge, scheduler.enter):
        with pytest.raises(ValueError, match="must be finite"):
            refuse(0, 1, value)
    assert state(scheduler) == state(untouched)


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "asha"])
def test_the_first_trial_goes_on_and_the_last_epoch_is_not_judged(kind: str) -> None:
    scheduler = make(kind)
    assert all(scheduler.judge(0, epoch, 0.0) is None for epoch in range(1, 10))
    for number in range(1, 20):
        for epoch in range(1, 9):
            scheduler.enter(number, epoch, 0.9)
        assert scheduler.judge(number, 9, 0.0) is None


def test_none_stops_nothing() -> None:
    scheduler = make("none")
    for number, epoch in itertools.product(range(20), range(1, 10)):
        assert scheduler.judge(number, epoch, 1 - number / 20) is None


def peers(*curves: list[float], grace: int = 1) -> Median:
    median = Median(grace=grace, epochs=9)
    for number, curve in enumerate(curves):
        for epoch, value in enumerate(curve, start=1):
            median.enter(number, epoch, value)
    return median


def judge_all(scheduler: Scheduler, number: int, curve: list[float]) -> list[object]:
    return [scheduler.judge(number, epoch, value) for epoch, value in enumerate(curve, start=1)]


def test_median_compares_the_best_so_far_with_the_running_averages() -> None:
    # Means of two epochs: 0.2, 0.4, 0.5, so that their median is 0.4.
    median = peers([0.1, 0.3], [0.3, 0.5], [0.4, 0.6])
    first, stop = judge_all(median, 3, [0.35, 0.3])
    assert first is None, "0.35 is not below 0.3"
    assert stop is not None
    assert (stop.rung, stop.value, stop.peers) == (2, 0.35, 3)
    assert stop.cut == pytest.approx(0.4)
    assert str(stop) == "epoch 2: 0.3500 below 0.4000, 3 peers"


def test_median_spares_a_trial_that_was_good_once() -> None:
    median = peers(*[[0.5, 0.5, 0.5]] * 5)
    assert judge_all(median, 9, [0.5, 0.0, 0.0]) == [None] * 3


@given(st.lists(st.lists(accuracies, min_size=3, max_size=3), max_size=8), accuracies)
def test_median_stops_by_the_definition(curves: list[list[float]], value: float) -> None:
    median = peers(*curves)
    median.enter(99, 1, value)
    median.enter(99, 2, value)
    stop = median.judge(99, 3, value)
    cut = np.median([np.mean(curve) for curve in curves]) if len(curves) >= MIN_PEERS else 0
    if abs(value - cut) > 1e-9:
        assert (stop is not None) == (value < cut)


def test_median_waits_for_grace_and_for_peers() -> None:
    good, bad = [0.9] * 4, [0.1] * 4
    assert judge_all(peers(*[good] * (MIN_PEERS - 1)), 9, bad) == [None] * 4
    stops = judge_all(peers(*[good] * MIN_PEERS, grace=3), 9, bad)
    assert [stop is not None for stop in stops] == [False, False, True, True]


def test_hyperband_makes_each_bracket_more_patient_and_the_last_one_endless() -> None:
    hyperband = Hyperband(grace=1, reduction=3, epochs=27, seed=0)
    assert [list(bracket.rungs) for bracket in hyperband.brackets] == [[1, 3, 9], [3, 9], [9], []]
    weights = np.array([27 / 4, 9 / 3, 3 / 2, 1])
    np.testing.assert_allclose(hyperband.shares, weights / weights.sum())


def test_hyperband_draws_its_brackets_by_their_shares_from_seed_and_number() -> None:
    def places(seed: int) -> list[int]:
        hyperband = Hyperband(grace=3, reduction=3, epochs=27, seed=seed)
        # Asked for in any order, a number gives the same bracket.
        found = {n: hyperband.bracket(n) for n in reversed(range(2000))}
        return [hyperband.brackets.index(found[n]) for n in range(2000)]

    assert places(1) == places(1)
    assert places(1) != places(2)
    shares = Hyperband(grace=3, reduction=3, epochs=27, seed=1).shares
    observed = np.bincount(places(1)) / 2000
    # Four standard errors of a share of 2,000.
    np.testing.assert_allclose(observed, shares, atol=4 * math.sqrt(0.25 / 2000))


def test_hyperband_compares_only_within_a_bracket() -> None:
    hyperband = Hyperband(grace=1, reduction=3, epochs=9, seed=0)
    inside = [n for n in range(200) if hyperband.bracket(n) is hyperband.brackets[0]]
    outside = [n for n in range(200) if hyperband.bracket(n) is not hyperband.brackets[0]]
    for number in outside:
        hyperband.enter(number, 1, 0.9)
    first, second = inside[:2]
    assert hyperband.judge(first, 1, 0.5) is None
    stop = hyperband.judge(second, 1, 0.1)
    assert stop is not None
    assert stop.peers == 1
    assert hyperband.judge(outside[0], 1, 0.0) is None, "its bracket has no rung at epoch 1"


def test_without_room_for_a_rung_hyperband_stops_nothing() -> None:
    hyperband = Hyperband(grace=9, reduction=3, epochs=9, seed=0)
    assert hyperband.shares.tolist() == [1.0]
    assert all(hyperband.judge(n, e, 1 - n / 9) is None for n in range(9) for e in range(1, 10))
