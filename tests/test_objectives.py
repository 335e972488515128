"""Searches by accuracy and costs: the space, the fronts, the promotions, what is shown."""

import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from tests.conftest import Call
from tests.test_promotion import SLOT, promoting
from tests.test_run import add_trial, make_run
from tests.test_tuner import Worker, World, start
from tuner.cli.trials_table import print_leaderboard
from tuner.config import CostObjective, ModelConfig, SearchConfig, TrialConfig
from tuner.data.cache import Images
from tuner.data.splits import Splits
from tuner.ensemble import planning
from tuner.ensemble.request import EnsembleRequest
from tuner.errors import SpaceError, TunerError, UsageError
from tuner.metrics.front import crowding, front_ranks
from tuner.monitor.follow import RunWatcher
from tuner.report.front import front_of
from tuner.run.events import EpochEnded, TrialEnded, TrialMeasured
from tuner.run.run import Run
from tuner.run.state import SearchState
from tuner.run.trial import EpochMetrics, read_status, write_status
from tuner.space import load_space
from tuner.training.costs import measure_costs
from tuner.tuning.budget import Budget, Spending
from tuner.tuning.planning.simulated import SimulatedClock, Step, run_simulated
from tuner.tuning.promotion import Entry, FrontRung
from tuner.tuning.proposers import FixedProposer
from tuner.tuning.schedulers import make_scheduler
from tuner.tuning.tuner import Assignment, Tuner

LATENCY = CostObjective(cost="latency_ms")
SIZE = CostObjective(cost="size_mb")
PARAMETERS = CostObjective(cost="parameters")
CPU = torch.device("cpu")

# Fronts


def dominates(one: Sequence[float], other: Sequence[float]) -> bool:
    pairs = list(zip(one, other, strict=True))
    return all(a <= b for a, b in pairs) and any(a < b for a, b in pairs)


@given(
    st.integers(1, 3).flatmap(
        lambda m: st.lists(st.lists(st.integers(0, 5), min_size=m, max_size=m), min_size=1)
    )
)
def test_a_front_is_what_is_left_undominated_without_the_fronts_before(
    points: list[list[int]],
) -> None:
    ranks = front_ranks(np.array(points, dtype=float)).tolist()
    left, front = list(range(len(points))), 0
    while left:
        front += 1
        free = [i for i in left if not any(dominates(points[j], points[i]) for j in left)]
        assert [i for i in left if ranks[i] == front] == free
        left = [i for i in left if i not in free]
    assert max(ranks) == front


def test_the_ends_of_a_front_are_infinitely_far_apart_and_its_crowd_is_near() -> None:
    points = np.array([[0.0, 10.0], [1.0, 9.0], [1.1, 8.9], [1.2, 8.8], [10.0, 0.0]])
    distances = crowding(points)
    assert np.isinf(distances[[0, 4]]).all()
    assert distances[2] == min(distances)


def test_of_a_front_the_best_score_is_first_and_then_who_stands_apart() -> None:
    rung = FrontRung()
    crowd = [Entry(-0.90 + 0.01 * i, 0.0, i, (100.0 - i,)) for i in range(4)]
    cheap, poor = Entry(-0.5, 0.0, 8, (1.0,)), Entry(-0.4, 0.0, 9, (50.0,))
    for entry in (poor, *crowd, cheap):
        rung.arrive(entry)
    assert [entry.number for entry in rung.arrived[:2]] == [0, 8]
    assert rung.arrived[-1] == poor
    assert (rung.front(cheap), rung.front(poor)) == (1, 2)
    assert rung.take(cheap)
    assert not rung.take(cheap)
    assert rung.rank(cheap) == 2


@given(
    st.lists(st.lists(st.integers(0, 6), min_size=3, max_size=3), min_size=1, max_size=30),
    st.sets(st.integers(0, 29)),
)
def test_a_rung_is_in_order_after_each_arrival(points: list[list[int]], taken: set[int]) -> None:
    rung, came = FrontRung(), list[Entry]()
    for number, (score, *costs) in enumerate(points):
        came.append(Entry(-score, 0.0, number, tuple(costs)))
        rung.arrive(came[-1])
        if number in taken:
            rung.take(came[number // 2])
        ranks = front_ranks(np.array([one.point for one in came])).tolist()
        assert [rung.front(one) for one in came] == ranks
        assert [ranks[one.number] for one in rung.arrived] == sorted(ranks)
        for front in range(1, max(ranks) + 1):
            first, *rest = [one for one in rung.arrived if ranks[one.number] == front]
            members = sorted([first, *rest])
            assert first == members[0], "the best score"
            apart = dict(zip(members, crowding(np.array([m.point for m in members])), strict=True))
            assert [apart[one] for one in rest] == sorted((apart[o] for o in rest), reverse=True)
        gone = {came[number // 2] for number in taken if number < len(came)}
        assert rung.waiting == [one for one in rung.arrived if one not in gone]


# Promotions


def searched(
    values: Sequence[tuple[float, float]], costs: tuple[CostObjective, ...], slots: int = 2
) -> Tuner:
    """Search to the end where each trial has an accuracy throughout, and a latency."""
    search = SearchConfig(trials=len(values), epochs=9, grace=1, reduction=3, costs=costs)
    clock = SimulatedClock()
    configs = [TrialConfig(model=ModelConfig("cnn", {}), epochs=9) for _ in values]
    spending = Spending(Budget(trials=len(values)), clock=clock)
    tuner = Tuner(
        SearchState(search),
        FixedProposer(configs),
        make_scheduler(search),
        spending,
        lambda _: SLOT,
    )

    def train(given: Assignment) -> Iterator[Step]:
        accuracy, latency = values[given.number]
        if not given.is_measured:
            yield TrialMeasured(number=given.number, latency_ms=latency)
        for epoch in range(given.num_epochs + 1, 10):
            yield 1.0
            metrics = EpochMetrics(
                epoch=epoch,
                train_loss=1.0,
                val_loss=1.0,
                val_accuracy=accuracy,
                lr=0.1,
                seconds=1.0,
                time=clock.now,
            )
            yield EpochEnded(number=given.number, metrics=metrics)
        yield TrialEnded(number=given.number, state="completed")

    for _ in run_simulated(tuner, clock, train, lambda running: len(running) < slots):
        pass
    return tuner


def test_a_cheap_trial_goes_on_that_accuracy_alone_would_stop() -> None:
    dear = [(0.8 - 0.01 * i, 20.0 - i) for i in range(8)]
    values = [*dear[:4], (0.5, 1.0), *dear[4:]]
    by_both, by_accuracy = searched(values, (LATENCY,)), searched(values, ())
    assert len(by_both.state.trials[4].history) == 3
    assert len(by_accuracy.state.trials[4].history) == 1
    for tuner in (by_both, by_accuracy):
        assert [rung.arrived for rung in tuner.state.rungs()] == [9, 3]


def test_a_dominated_trial_is_stopped_and_told_its_front() -> None:
    values = [(0.9 - 0.1 * i, 1.0 + i) for i in range(6)]
    tuner = searched(values, (LATENCY,), slots=1)
    status = tuner.state.trials[5].status
    assert status.state == "stopped"
    assert status.stop is not None
    assert status.stop.front == 6
    assert status.reason == "epoch 1: 0.4000, on front 6, 5 peers"


def measured(world: World, tuner: Tuner, *trials: tuple[float, float]) -> None:
    """Bring new trials with an accuracy and a latency to the first rung."""
    workers = [world.begin(tuner) for _ in trials]
    for worker, (accuracy, latency) in zip(workers, trials, strict=True):
        tuner.on(TrialMeasured(number=worker.number, latency_ms=latency))
        worker.step(accuracy)


def test_a_search_that_is_killed_goes_on_by_the_costs_that_were_measured(tmp_path: Path) -> None:
    world = promoting(tmp_path, costs=(LATENCY, PARAMETERS), trials=8)
    tuner = world.tuner()
    killed = world.begin(tuner)
    assert not killed.given.is_measured
    tuner.on(TrialMeasured(number=killed.number, latency_ms=2.0))
    measured(world, tuner, (0.5, 3.0), (0.8, 9.0), (0.4, 1.0), (0.3, 8.0))
    before = tuner.scheduler
    resumed = world.tuner()
    assert vars(resumed.scheduler) == vars(before)
    assert world.run.trial(killed.number).status.latency_ms == 2.0
    given = start(resumed)
    assert given is not None
    assert given.is_measured, "what a network costs is measured once"


def test_a_watcher_of_the_folder_learns_what_networks_cost(tmp_path: Path) -> None:
    world = promoting(tmp_path, costs=(LATENCY, SIZE))
    tuner = world.tuner()
    worker: Worker = world.begin(tuner)
    watcher = RunWatcher(world.run.path)
    tuner.on(TrialMeasured(number=worker.number, latency_ms=2.0, size_mb=0.5))
    watcher.look()
    assert watcher.state.trials[0].status == tuner.state.trials[0].status


# What a network costs


def splits(folds: int = 0) -> Splits:
    images = Images(images=torch.zeros(12, 1, 8, 8, dtype=torch.uint8), labels=torch.arange(12) % 3)
    return Splits(
        train=images,
        val=images,
        classes=("a", "b", "c"),
        mean=(0.5,),
        std=(0.5,),
        fingerprint="",
        split_fingerprint="",
        fold_of=torch.arange(12) % folds if folds else None,
    )


def test_costs_are_those_of_all_networks_of_a_trial() -> None:
    config = TrialConfig(model=ModelConfig("cnn", {"stages": 1, "width": 8}), epochs=1)
    one = measure_costs(config, splits(), CPU, [LATENCY, SIZE, PARAMETERS])
    three = measure_costs(config, splits(folds=3), CPU, [SIZE])
    assert one.keys() == {"latency_ms", "size_mb"}
    assert three["size_mb"] == pytest.approx(3 * one["size_mb"])
    assert measure_costs(config, splits(), CPU, [PARAMETERS]) == {}


def test_the_latency_of_a_batch_is_told_an_image() -> None:
    config = TrialConfig(model=ModelConfig("cnn", {"stages": 2, "width": 16}), epochs=1)
    one = measure_costs(config, splits(), CPU, [LATENCY])["latency_ms"]
    many = measure_costs(config, splits(), CPU, [replace(LATENCY, batch=256)])["latency_ms"]
    assert 0 < many < one


def test_the_latency_is_measured_in_the_memory_layout_of_members() -> None:
    config = TrialConfig(model=ModelConfig("cnn", {"stages": 2, "width": 16}), epochs=1)
    layouts: set[bool] = set()

    def look(module: nn.Module, inputs: object) -> None:
        if isinstance(module, nn.Conv2d):
            layouts.add(module.weight.is_contiguous(memory_format=torch.channels_last))

    hook = nn.modules.module.register_module_forward_pre_hook(look)
    try:
        measure_costs(config, splits(), CPU, [LATENCY])
        measure_costs(config, splits(folds=2), CPU, [LATENCY])
    finally:
        hook.remove()
    assert layouts == {True}


# The space

SPACE = "space: {model: cnn}\n"


def space(folder: Path, text: str) -> SearchConfig:
    path = folder / "space.yaml"
    path.write_text(SPACE + text)
    return load_space(path).search


def test_the_metric_is_that_of_the_objectives(tmp_path: Path) -> None:
    found = space(tmp_path, "objectives: [nll, {latency_ms: 64}, size_mb]\n")
    assert found.metric == "nll"
    assert found.costs == (CostObjective(cost="latency_ms", batch=64), SIZE)
    assert found.objectives == "nll, latency_ms at batch 64, size_mb"
    assert space(tmp_path, "objectives: [accuracy]\n") == SearchConfig()


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("objectives: accuracy", "2:13: objectives: is not a list; write [accuracy"),
        ("objectives: []", "2:13: objectives: there is no objective"),
        ("objectives: [latency_ms]", "2:14: objectives[0]: is a cost, and the first"),
        ("objectives: [acuracy]", "2:14: objectives[0]: 'acuracy' is not one of"),
        ("objectives: [[accuracy]]", "2:14: objectives[0]: is not a metric's name"),
        ("objectives: [accuracy, latencyms]", "did you mean 'latency_ms'?"),
        ("objectives: [accuracy, {latncy_ms: 1}]", "2:25: objectives[1].latncy_ms: 'latncy_ms'"),
        ("objectives: [accuracy, {latency_ms: 0}]", "the number is the images at a time"),
        ("objectives: [accuracy, {latency_ms: big}]", "2:37: objectives[1].latency_ms: 'big'"),
        (
            "objectives: [accuracy, {latency_ms: [1, 2]}]",
            "latency_ms: [1, 2] is not a whole number",
        ),
        ("objectives: [accuracy, {size_mb: }]", "objectives[1].size_mb: size_mb takes no number"),
        ("objectives: [accuracy, {size_mb: 4}]", "size_mb takes no number; write size_mb"),
        ("objectives: [accuracy, [size_mb]]", "2:24: objectives[1]: a list is not an objective"),
        ("objectives: [accuracy, nll]", "nll is a second metric"),
        (
            "objectives: [accuracy, size_mb, size_mb]",
            "2:33: objectives[2]: size_mb is listed twice",
        ),
        (
            "objectives: [accuracy, size_mb]\nsearch: {metric: nll}",
            "2:14: objectives[0]: is accuracy, and search.metric (--metric) is nll",
        ),
        (
            "objectives: [accuracy, size_mb]\nsearch: {scheduler: median}",
            "2:13: objectives: median uses only the metric; write search: {scheduler: asha}",
        ),
        (
            "search: {for: ensemble, scheduler: hyperband}",
            "2:10: search.for: only asha promotes trials, and hyperband does not",
        ),
        ("search: {costs: []}", "2:10: search.costs: unknown key"),
    ],
)
def test_a_mistake_is_told_where_it_stands(text: str, told: str, tmp_path: Path) -> None:
    with pytest.raises(SpaceError) as caught:
        space(tmp_path, text)
    assert told in str(caught.value)
    assert len(str(caught.value).splitlines()) == 1


# What is shown and combined


def run_with(folder: Path, *costs: CostObjective) -> Run:
    run = make_run(folder, search=SearchConfig(trials=4, costs=costs))
    for number, (accuracy, latency) in enumerate([(0.8, 4.0), (0.9, 8.0), (0.5, 1.0), (0.7, 5.0)]):
        add_trial(run, number, accuracy)
        path = run.trial_path(number)
        status = read_status(path)
        assert status is not None
        write_status(path, replace(status, latency_ms=latency))
    return run


def test_the_leaderboard_has_the_fronts_and_the_costs(tmp_path: Path) -> None:
    table = run_with(tmp_path, LATENCY).leaderboard()
    assert table["trial"].tolist() == [1, 0, 3, 2]
    assert table["front"].tolist() == [1, 1, 2, 1]
    assert table["latency_ms"].tolist() == [8.0, 4.0, 5.0, 1.0]


def test_a_run_without_costs_has_no_front(tmp_path: Path) -> None:
    run = run_with(tmp_path)
    assert not {"front", "latency_ms"} & set(run.leaderboard().columns)
    assert front_of(run, run.ranked()) == []


def test_a_trial_that_ended_badly_or_was_not_measured_is_on_no_front(tmp_path: Path) -> None:
    run = run_with(tmp_path, LATENCY)
    add_trial(run, 4, 0.95, state="failed")
    add_trial(run, 5, 0.99)
    fronts = {trial.number: trial.front for trial in run.ranked()}
    assert fronts == {0: 1, 1: 1, 2: 1, 3: 2, 4: None, 5: None}


def test_a_cost_of_nothing_is_known(tmp_path: Path) -> None:
    run = run_with(tmp_path, LATENCY)
    write_status(run.trial_path(2), replace(run.trial(2).status, latency_ms=0.0))
    assert front_of(run, run.ranked())[-1].costs == {"latency_ms": 0.0}


def test_a_long_front_is_told_in_lines_that_fit_a_terminal(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = run_with(tmp_path, replace(LATENCY, batch=16), SIZE)
    for number in range(4, 25):
        add_trial(run, number, number / 100)
        status = run.trial(number).status
        write_status(run.trial_path(number), replace(status, latency_ms=number / 100, size_mb=1.0))
    print_leaderboard(run, run.ranked(), 5, searched=())
    told = capsys.readouterr().out.partition("On front 1 of ")[2].partition("\n\n")[0]
    assert told.startswith("accuracy, latency_ms at batch 16, size_mb: 24, 23,")
    assert "and 1 more. No other" in told.replace("\n", " ")
    assert max(map(len, told.splitlines()[1:])) <= 80


def test_checkpoints_of_the_front_stay(tmp_path: Path) -> None:
    run = run_with(tmp_path, LATENCY)
    run.prune(1)
    kept = [trial.number for trial in run.trials() if trial.checkpoint.exists()]
    assert kept == [0, 1, 2]


def test_an_ensemble_of_the_front_has_its_trials(finished_run: Run) -> None:
    search = finished_run.record.search
    request = EnsembleRequest(front=True)
    with (
        pytest.raises(UsageError, match="was searched by accuracy alone"),
        planning(finished_run, request, devices=[CPU]),
    ):
        pass
    finished_run.update(search=replace(search, costs=(PARAMETERS,)))
    front = front_of(finished_run, finished_run.ranked())
    sizes = [one.costs["parameters"] for one in front]
    assert sizes == sorted(sizes, reverse=True), "what is less accurate is smaller"
    with planning(finished_run, request, devices=[CPU]) as plan:
        members = [plan.pool.trials[i].number for i in plan.choice.members]
        name = plan.request.folder_name
    assert (members, name) == ([one.trial for one in front], "front")
    # Not compared with the default of --top, which cannot be given; the best of the front remain.
    with planning(finished_run, replace(request, pool=1), devices=[CPU]) as plan:
        assert [plan.pool.trials[i].number for i in plan.choice.members] == members[:1]


@pytest.mark.ray
@pytest.mark.slow
def test_a_search_measures_what_its_networks_cost_and_says_who_is_on_the_front(
    tmp_path: Path, call: Call
) -> None:
    import tuner

    given: dict[str, Any] = {
        "extends": "quick",
        "objectives": ["accuracy", {"latency_ms": 1}, "size_mb"],
        "search": {"trials": 4, "epochs": 2, "grace": 1, "reduction": 2, "for": "ensemble"},
    }
    run = tuner.search(given, data="digits", storage=tmp_path, name="costs", progress=False)
    records = run.ranked()
    for trial in records:
        latency, size = trial.status.latency_ms, trial.status.size_mb
        assert latency is not None
        assert size is not None
        assert math.isclose(size, 4 * trial.status.num_parameters / 1e6, rel_tol=0.05)
    made = tuner.combine(run, front=True, progress=False)
    on_front = {trial.number for trial in records if trial.front == 1}
    assert {member.trial for member in made.members} == on_front
    shown = json.loads(call("show", str(run.path), "--json").out)["front"]
    assert {one["trial"] for one in shown} == on_front


def test_whoever_is_stopped_leaves_its_place_to_another() -> None:
    values = [(0.95, 5.25), (0.5, 5.0), (0.1, 1.0), (0.6, 5.1), (0.55, 0.9)]
    values += [(0.05, 9), (0.04, 9), (0.03, 9), (0.02, 9)]
    tuner = searched(values, (LATENCY,), slots=1)
    assert [rung.arrived for rung in tuner.state.rungs()] == [9, 3]
    # It was stopped when four had come, and the fifth put it on the first front again.
    assert tuner.state.trials[3].status.state == "stopped"


def test_a_front_is_not_that_of_what_damage_has_left(finished_run: Run) -> None:
    finished_run.update(search=replace(finished_run.record.search, costs=(PARAMETERS,)))
    (finished_run.trial_path(1) / "history.csv").unlink()
    with (
        pytest.raises(TunerError, match=r"history\.csv"),
        planning(finished_run, EnsembleRequest(front=True), devices=[CPU]),
    ):
        pass
