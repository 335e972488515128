"""The state of a search is the same from its events and from its run watcher."""

import io
import os
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from tests.test_tuner import PLAN, SEARCH, World
from tests.test_tuner import start as start_next
from tuner.config import ModelConfig, SearchConfig, TrialConfig
from tuner.monitor.follow import RunWatcher, follow
from tuner.monitor.live_table import summary
from tuner.run.events import EpochEnded, TrialEnded, TrialPlaced, TrialStarted
from tuner.run.state import SearchState, error_kind, in_order
from tuner.run.trial import EpochMetrics, Stop, TrialStatus
from tuner.training.saving import forget_progress
from tuner.tuning.resources import TrialResources

CONFIG = TrialConfig(model=ModelConfig("cnn", {}), epochs=4)


def row(epoch: int, accuracy: float = 0.5, seconds: float = 2.0) -> EpochMetrics:
    return EpochMetrics(
        epoch=epoch,
        train_loss=1.0,
        val_loss=1.0,
        val_accuracy=accuracy,
        lr=0.1,
        seconds=seconds,
        time=float(epoch),
    )


def start(number: int, *history: EpochMetrics, config: TrialConfig = CONFIG) -> TrialStarted:
    return TrialStarted(number=number, config=config, history=history)


def end_epoch(number: int, metrics: EpochMetrics) -> EpochEnded:
    return EpochEnded(number=number, metrics=metrics)


def run_trial(search: SearchState, number: int, epochs: int, **ending: Any) -> None:
    search.apply(start(number))
    for epoch in range(1, epochs + 1):
        search.apply(end_epoch(number, row(epoch)))
    if ending:
        search.apply(TrialEnded(number=number, **ending))


def stopped(rung: int) -> dict[str, Any]:
    return {"state": "stopped", "stop": Stop(rung=rung, value=0.1, cut=0.2, peers=3)}


def facts(state: SearchState) -> object:
    return (
        state.rungs(),
        state.num_epochs,
        state.gpu_seconds,
        state.best,
        state.best_curve,
        state.best_so_far(),
        state.ended,
        state.errors,
        state.endings,
        state.running.keys(),
        {n: (trial.status, trial.gpus, trial.history) for n, trial in state.trials.items()},
    )


def test_rungs_tell_who_came_who_was_stopped_and_who_went_on() -> None:
    state = SearchState(SEARCH)
    run_trial(state, 0, 4, state="completed")
    run_trial(state, 1, 1, **stopped(1))
    run_trial(state, 2, 2, **stopped(2))
    run_trial(state, 3, 2, state="failed", reason="OSError: disk full")
    run_trial(state, 4, 1)
    assert [(r.epoch, r.arrived, r.stopped, r.passed) for r in state.rungs()] == [
        (1, 5, 1, 4),
        (2, 3, 1, 1),
    ]
    assert state.errors == {"OSError": 1}


def test_a_trial_that_is_taken_up_again_is_counted_once() -> None:
    state = SearchState(SEARCH)
    run_trial(state, 0, 2, state="interrupted")
    assert state.num_ended == 1
    # Its last epoch was not saved and is trained again.
    state.apply(start(0, row(1)))
    assert state.num_ended == 0
    state.apply(end_epoch(0, row(2)))
    state.apply(end_epoch(0, row(3)))
    assert state.num_epochs == 3
    assert len(state.running[0].history) == 3


def test_epochs_of_a_trial_stay_in_order_where_the_clocks_of_its_nodes_differ() -> None:
    one = [replace(row(epoch), time=time) for epoch, time in ((1, 100.0), (2, 110.0), (3, 105.0))]
    other = [replace(row(1), time=107.0), replace(row(2), time=120.0)]
    order = [(number, epoch.epoch) for number, epoch in in_order({0: one, 1: other})]
    assert order == [(0, 1), (1, 1), (0, 2), (0, 3), (1, 2)]


def test_an_epoch_that_is_trained_again_leaves_nothing_of_the_one_before() -> None:
    def goes(*events: TrialStarted | EpochEnded) -> SearchState:
        state = SearchState(SEARCH)
        for event in events:
            state.apply(event)
        return state

    first, lost, again = row(1, 0.5), row(2, 0.9), replace(row(2, 0.7), time=4.0)
    other = replace(row(1, 0.6), time=3.0)
    before = (start(0), end_epoch(0, first), end_epoch(0, lost), start(1), end_epoch(1, other))
    # A worker was lost: the trial starts again. Out of memory: its worker repeats the epoch.
    for repeated in ((start(0, first), end_epoch(0, again)), (end_epoch(0, again),)):
        state = goes(*before, *repeated)
        assert state.best == (0, again)
        assert state.best_curve == [(1, 0.5), (2, 0.6), (3, 0.7)]
        assert facts(state) == facts(
            goes(start(0), end_epoch(0, first), start(1), end_epoch(1, other), repeated[-1])
        )
    assert goes(*before, start(0, first)).best == (1, other)


def test_a_trial_that_ended_badly_leads_no_more() -> None:
    state = SearchState(SEARCH)
    run_trial(state, 0, 2, state="completed")
    state.apply(start(1))
    state.apply(end_epoch(1, row(1, 0.9)))
    assert state.best == (1, row(1, 0.9))
    state.apply(TrialEnded(number=1, state="out_of_memory"))
    assert state.best == (0, row(1))
    assert state.best_curve == [(1, 0.5)]


def test_nothing_is_foreseen_before_an_epoch_has_ended() -> None:
    state = SearchState(SEARCH)
    state.apply(start(0))
    assert state.seconds_left(2) is None


@given(st.integers(1, 30), st.integers(1, 27), st.integers(1, 8), st.floats(0.1, 100))
def test_where_none_is_stopped_all_epochs_are_to_come(
    trials: int, epochs: int, slots: int, seconds: float
) -> None:
    search = SearchConfig(trials=trials, epochs=epochs, scheduler="none")
    config = TrialConfig(model=ModelConfig("cnn", {}), epochs=epochs)
    state = SearchState(search)
    state.apply(start(0, config=config))
    state.apply(end_epoch(0, row(1, seconds=seconds)))
    expected = (trials * epochs - 1) * seconds / slots
    assert state.seconds_left(slots) == pytest.approx(expected)


def test_slots_are_busy_with_trials_that_have_a_worker_and_there_are_as_many_at_least() -> None:
    state = SearchState(SEARCH)
    for number in range(4):
        state.apply(start(number))
    assert "0 of 2 slots busy" in summary(state, 2, None)
    for number in range(3):
        state.apply(TrialPlaced(number=number, node="n"))
    state.apply(end_epoch(0, row(1)))
    assert "3 of 4 slots busy" in summary(state, 4, None)
    # Small trials, or a cluster that has grown since this number was recorded.
    assert "3 of 3 slots busy" in summary(state, 1, None)
    assert state.seconds_left(1) == state.seconds_left(3)
    assert state.seconds_left(3) != state.seconds_left(4)


def test_trials_to_come_are_taken_to_be_stopped_as_those_before_were() -> None:
    search = SearchConfig(trials=1000, epochs=9, grace=3, reduction=3, scheduler="asha-stop")
    state = SearchState(search)
    for number in range(900):
        ending = {"state": "completed"} if number % 3 == 0 else stopped(3)
        run_trial(state, number, 9 if number % 3 == 0 else 3, **ending)
    # 100 trials of 3 epochs, and of 6 more for a third of them, 2 s each.
    assert state.seconds_left(1) == pytest.approx(100 * (3 + 6 / 3) * 2, rel=0.01)


@pytest.mark.parametrize(
    ("status", "kind"),
    [
        (TrialStatus(state="completed"), ""),
        (TrialStatus(state="stopped", reason="epoch 3: below"), ""),
        (TrialStatus(state="diverged"), "diverged"),
        (TrialStatus(state="out_of_memory", reason="CUDA: x"), "out of memory"),
        (TrialStatus(state="failed", reason="ValueError: no"), "ValueError"),
        (TrialStatus(state="failed", reason="its worker was lost, 4 times: x"), "worker lost"),
        (TrialStatus(state="failed"), "failed"),
    ],
)
def test_an_error_has_a_kind(status: TrialStatus, kind: str) -> None:
    assert error_kind(status) == kind


def test_the_folder_tells_what_the_events_tell(tmp_path: Path) -> None:
    world = World(tmp_path)
    tuner = world.tuner()
    live = SearchState(SEARCH)
    tuner.observers.append(live.apply)
    first = world.begin(tuner)
    first.step(0.5)
    early = RunWatcher(world.run.path)
    second = world.begin(tuner)
    first.step(0.6)
    early.look()
    second.step(0.1)
    third = world.begin(tuner)
    third.step(0.9)
    third.finish("failed", reason="RuntimeError: broken")
    fourth = world.begin(tuner)
    fourth.step(0.95)
    ended = early.look()
    assert facts(early.state) == facts(live) == facts(SearchState.of(world.run))
    assert [ending.number for ending in ended] == [1, 2]
    assert early.look() == []
    assert not early.has_ended
    world.run.update(status="finished")
    early.look()
    assert early.has_ended


def test_a_watcher_forgets_epochs_that_are_trained_again(tmp_path: Path) -> None:
    world = World(tmp_path)
    tuner = world.tuner()
    worker = world.begin(tuner)
    worker.step(0.5)
    worker.step(0.9)
    watcher = RunWatcher(world.run.path)
    world.lose(tuner, 0)
    again = world.begin(tuner)
    # Its saved state is of no use to this worker.
    forget_progress(again.path)
    again.history.clear()
    tuner.on(again.started())
    again.step(0.4)
    watcher.look()
    assert watcher.state.best == tuner.state.best == (0, again.history[0])
    assert facts(watcher.state) == facts(tuner.state)


@pytest.mark.parametrize(
    ("budget", "latest"),
    # One epoch of two seconds on half a GPU spends one GPU-second; the trial runs on.
    [
        ({}, 100),
        ({"budget_seconds": 5.5}, 5.5),
        ({"budget_gpu_hours": 3 / 3600}, 4.01),
        # Another was lost with its worker.
        ({"budget_gpu_hours": 3 / 3600, "lost_gpu_seconds": 1.0}, 2.01),
    ],
)
def test_the_time_left_ends_with_the_recorded_budget(
    tmp_path: Path, budget: dict[str, float], latest: float
) -> None:
    world = World(tmp_path)
    tuner = world.tuner()
    world.recorder.run.update(slots=PLAN.to_plain(), **budget)
    watcher = RunWatcher(world.run.path)
    world.begin(tuner).step(0.5)
    watcher.look()
    left = watcher.clocks().remaining
    assert left is not None
    assert 0 < left <= latest
    assert budget or left > 6
    world.run.update(status="finished")
    watcher.look()
    assert watcher.clocks().remaining is None


def test_a_trial_that_waits_for_a_node_spends_no_gpu_hours(tmp_path: Path) -> None:
    world = World(tmp_path)
    tuner = world.tuner()
    world.recorder.run.update(budget_gpu_hours=100 / 3600)
    world.begin(tuner)
    assert start_next(tuner) is not None
    # On half a GPU.
    assert RunWatcher(world.run.path).clocks().budget == pytest.approx(200)


def test_a_search_that_is_silent_for_long_is_told_of(tmp_path: Path) -> None:
    world = World(tmp_path)
    worker = world.begin(world.tuner())
    worker.step(0.5)
    watcher = RunWatcher(world.run.path)
    now = time.monotonic()
    assert watcher.note(now + 30) == ""
    assert watcher.note(now + 90) == "No news for 0:01:30; was the search killed?"
    time.sleep(0.5)
    worker.step(0.6)
    watcher.look()
    assert watcher.note(now + 60.2) == "", "there was a change"


@pytest.mark.parametrize(
    ("written", "note"),
    [(-86400, "No news for 24:00:00; was the search killed?"), (-30, ""), (86400, "")],
    ids=["killed", "alive", "ahead"],
)
def test_a_search_that_was_killed_before_it_is_watched_is_told_of_at_once(
    tmp_path: Path, written: float, note: str
) -> None:
    world = World(tmp_path)
    world.begin(world.tuner()).step(0.5)
    moment = time.time() + written
    os.utime(world.run.path / "run.json", (moment, moment))
    watcher = RunWatcher(world.run.path)
    assert watcher.note(time.monotonic()) == note


@pytest.mark.parametrize("ahead", [-3600, 3600])
def test_a_search_is_watched_whatever_the_clock_of_its_machine_says(
    tmp_path: Path, ahead: int
) -> None:
    world = World(tmp_path)
    worker = world.begin(world.tuner())
    worker.step(0.5)
    record = world.run.path / "run.json"

    def write(seconds: float) -> None:
        world.recorder.run.update(active_seconds=seconds)
        written = record.stat().st_mtime + ahead
        os.utime(record, (written, written))

    write(10.0)
    watcher = RunWatcher(world.run.path)
    assert watcher.clocks().elapsed >= 10.0
    write(20.0)
    watcher.look()
    assert 20.0 <= watcher.clocks().elapsed < 50.0
    assert watcher.note(time.monotonic()) == ""


def test_the_best_so_far_stands_over_what_was_spent(tmp_path: Path) -> None:
    world = World(tmp_path)
    tuner = world.tuner()
    first, second = world.begin(tuner), world.begin(tuner)
    for accuracy in (0.3, 0.2, 0.5):
        first.step(accuracy)
    second.step(0.4)
    points = SearchState.of(world.run).best_so_far()
    assert [(epochs, best) for epochs, _, best in points] == [(1, 0.3), (3, 0.5), (4, 0.5)]
    assert points[-1][1] == pytest.approx(4 * 2.0 * 0.5 / 3600)
    assert SearchState(SEARCH).best_so_far() == []


def test_each_trial_spends_the_gpus_that_it_held(tmp_path: Path) -> None:
    world = World(tmp_path)
    tuner = world.tuner()
    tuner.resources_of = lambda config: TrialResources(cpus=1, gpus=1)
    world.begin(tuner).step(0.3)
    tuner.resources_of = lambda config: TrialResources(cpus=1, gpus=0)
    world.begin(tuner).step(0.5)
    whole, none = world.run.trials()
    assert (whole.gpu_hours, none.gpu_hours) == (2 / 3600, 0)
    both, second = (SearchState.from_trials(SEARCH, some) for some in ([whole, none], [none]))
    assert [hours for _, hours, _ in both.best_so_far()] == [2 / 3600, 2 / 3600]
    assert [hours for _, hours, _ in second.best_so_far()] == [2 / 3600], "of training"


def test_a_search_that_has_ended_is_shown_once(tmp_path: Path) -> None:
    world = World(tmp_path)
    worker = world.begin(world.tuner())
    worker.step(0.5)
    worker.finish("failed", reason="OSError: full")
    world.run.update(status="finished", slots={"count": 2, "cpus": 1, "gpus": 0})
    screen = io.StringIO()
    assert follow(world.run.path, Console(file=screen, width=200)).record.status == "finished"
    # As on the leaderboard, a trial that ended badly does not lead.
    assert screen.getvalue() == (
        "1/6 trials · 0 of 2 slots busy · 1 failed · 1 epoch of 2 s · elapsed 0:00:00\n"
    )
