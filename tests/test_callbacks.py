"""The engine's events without the engine: what it is told, and what becomes of trials then."""

from dataclasses import asdict, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from ray.tune.experiment import Trial
from ray.tune.search import Searcher

from tests.test_tuner import World
from tuner.tuning.ray_backend import callbacks as engine
from tuner.tuning.ray_backend import capacity as rooms
from tuner.tuning.ray_backend.callbacks import Herald, TuneCallback, TuneScheduler, TuneSearcher
from tuner.tuning.ray_backend.capacity import Room
from tuner.tuning.ray_backend.notices import Notice
from tuner.tuning.tuner import Conductor


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(tmp_path)


def searcher_of(conductor: Conductor) -> TuneSearcher:
    return TuneSearcher(conductor, Room(conductor.slots, lambda line: None), lambda: None)


class Board:
    """Keeps what is posted, without Ray."""

    def __init__(self) -> None:
        self.posted: list[Notice] = []

    def post(self, notice: Notice) -> None:
        self.posted.append(notice)


def herald_of(conductor: Conductor, room: Room) -> tuple[Herald, list[Notice]]:
    board: Any = Board()
    return Herald(conductor, room, board), board.posted


def test_a_search_that_has_no_room_ends_when_it_is_told_to(
    world: World, pretended_nodes: list[dict[str, float]]
) -> None:
    conductor = world.conductor()
    searcher = searcher_of(conductor)
    pretended_nodes.clear()
    assert searcher.suggest("") is None
    conductor.draining = "interrupted"
    assert searcher.suggest("") == Searcher.FINISHED


def test_a_search_that_has_no_room_ends_with_its_budget(
    world: World, pretended_nodes: list[dict[str, float]]
) -> None:
    conductor = world.conductor(seconds=0.0)
    pretended_nodes.clear()
    assert searcher_of(conductor).suggest("") == Searcher.FINISHED
    assert conductor.draining == "budget"


def test_a_search_whose_trials_have_ended_needs_no_room_to_end(
    world: World, pretended_nodes: list[dict[str, float]]
) -> None:
    conductor = world.conductor(trials=1)
    searcher = searcher_of(conductor)
    worker = world.begin(conductor)
    pretended_nodes.clear()
    assert searcher.suggest("") is None, "its worker may still be lost"
    worker.finish("completed")
    assert searcher.suggest("") == Searcher.FINISHED


def test_a_trial_that_lost_its_worker_and_gets_no_other_is_interrupted(
    world: World, pretended_nodes: list[dict[str, float]]
) -> None:
    conductor = world.conductor()
    searcher = searcher_of(conductor)
    worker = world.begin(conductor)
    worker.step(0.5)
    conductor.lose(worker.number)
    pretended_nodes.clear()
    assert searcher.suggest("") is None
    conductor.draining = "interrupted"
    assert searcher.suggest("") == Searcher.FINISHED
    assert world.run.trial(worker.number).status.state == "interrupted"
    assert world.run.trial(worker.number).status.reason == "after epoch 1, with its worker"


class Controller:
    """Ray's own, as far as a scheduler sees it."""

    def __init__(self, conductor: Conductor, trials: list[Any]) -> None:
        self._conductor = conductor
        self._trials = trials

    def get_trials(self) -> list[Any]:
        return self._trials

    def stop_trial(self, trial: Any) -> None:
        trial.status = Trial.TERMINATED
        self._conductor.end(trial.config["number"])


def test_trials_that_wait_for_a_node_end_with_the_search(
    world: World, pretended_nodes: list[dict[str, float]]
) -> None:
    conductor = world.conductor()
    numbers = [params["number"] for _ in range(3) if (params := conductor.start())]
    waiting, about_to_run, running = (
        SimpleNamespace(
            config={"number": number},
            status=status,
            temporary_state=SimpleNamespace(ray_actor=worker),
        )
        for number, status, worker in zip(
            numbers,
            (Trial.PENDING, Trial.PENDING, Trial.RUNNING),
            (None, "worker", "worker"),
            strict=True,
        )
    )
    controller = Controller(conductor, [waiting, about_to_run, running])
    room = Room(conductor.slots, lambda line: None)
    scheduler = TuneScheduler(conductor, room, herald_of(conductor, room)[0])
    assert scheduler.choose_trial_to_run(controller) is waiting
    conductor.draining = "interrupted"
    assert scheduler.choose_trial_to_run(controller) is None
    assert set(conductor.live) == set(numbers[1:])
    assert world.run.trial(0).status.reason == "after epoch 0, before it had a worker"


@pytest.mark.parametrize(
    ("word", "text"),
    [
        ({"versions": [("torch", "1.0.0")]}, "has not the versions of this machine:\n"),
        ({"problem": "it does not see /a."}, ": h n: it does not see /a. Give it the storage"),
    ],
)
def test_a_node_that_cannot_run_trials_is_named_once_and_held_against_none(
    world: World,
    pretended_nodes: list[dict[str, float]],
    monkeypatch: pytest.MonkeyPatch,
    word: dict[str, Any],
    text: str,
) -> None:
    killed: list[str] = []
    monkeypatch.setattr("ray.kill", killed.append)
    conductor, said = world.conductor(), []
    room = Room(conductor.slots, said.append)
    scheduler = TuneScheduler(conductor, room, herald_of(conductor, room)[0])
    for _ in range(2):
        params = conductor.start()
        assert params is not None
        trial: Any = SimpleNamespace(config=params)
        trial.temporary_state = SimpleNamespace(ray_actor="worker")
        result = {"node": "n", "host": "h", **word}
        assert scheduler.on_trial_result(None, trial, result) == TuneScheduler.CONTINUE
    assert killed == ["worker"] * 2
    assert room.refused == ["n"]
    assert room.has_lost("n")
    (line,) = said
    assert text in line


class Kept(SimpleNamespace):
    """What Ray keeps of a trial."""

    __hash__ = object.__hash__


def started(conductor: Conductor) -> Any:
    """Start a trial whose worker has not said a word; give what Ray keeps of it."""
    params = conductor.start()
    assert params is not None
    figures = SimpleNamespace(metric_analysis={}, metric_n_steps={}, last_result={})
    return Kept(config=params, run_metadata=figures, error_file="", evaluated_params={})


def test_a_worker_lost_at_its_start_with_a_node_is_no_failure_of_its_trial(
    world: World, pretended_nodes: list[dict[str, float]], monkeypatch: pytest.MonkeyPatch
) -> None:
    gone = {"long ago"}
    monkeypatch.setattr(rooms, "gone_nodes", lambda: frozenset(gone))
    monkeypatch.setattr(rooms, "is_gone", gone.__contains__)
    conductor = world.conductor()
    room = Room(conductor.slots, lambda line: None)
    assert room.takes_another([])
    trial = started(conductor)
    callback = TuneCallback(conductor, room, herald_of(conductor, room)[0], max_failures=0)
    callback.on_trial_error(0, [], trial)
    callback.settle()
    assert set(conductor.live) == {0}, "its node may be missed later than it"
    gone.add("just now")
    callback.settle()
    assert not conductor.live
    assert not conductor.failures
    again = conductor.start()
    assert again is not None
    assert (again["number"], again["attempt"]) == (0, 2)


def test_a_worker_lost_at_its_start_on_nodes_that_all_stay_is_a_failure(
    world: World, pretended_nodes: list[dict[str, float]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engine, "DOUBT_SECONDS", 0.0)
    monkeypatch.setattr(rooms, "is_gone", lambda node: False)
    conductor = world.conductor()
    room = Room(conductor.slots, lambda line: None)
    callback = TuneCallback(conductor, room, herald_of(conductor, room)[0], max_failures=0)
    callback.on_trial_error(0, [], started(conductor))
    callback.settle()
    assert conductor.failures == [(0, "its worker was lost, 1 time")]


def test_workers_are_told_once_of_what_changes(
    world: World, pretended_nodes: list[dict[str, float]], monkeypatch: pytest.MonkeyPatch
) -> None:
    killed: list[str] = []
    monkeypatch.setattr("ray.kill", killed.append)
    conductor = world.conductor(seconds=60.0)
    room = Room(conductor.slots, lambda line: None)
    herald, posted = herald_of(conductor, room)
    scheduler = TuneScheduler(conductor, room, herald)
    worker = world.begin(conductor)
    trial: Any = SimpleNamespace(config=worker.params)
    trial.temporary_state = SimpleNamespace(ray_actor="worker")
    herald.look()
    assert posted == []
    monkeypatch.setattr(
        "tuner.tuning.ray_backend.capacity.draining_nodes", lambda: frozenset({"n"})
    )
    row = asdict(worker.train(0.5))
    assert scheduler.on_trial_result(None, trial, row) == TuneScheduler.CONTINUE
    assert not killed, "the epoch may not be saved"
    scheduler.on_trial_result(None, trial, {"saved": 1})
    assert killed == ["worker"]
    monkeypatch.setattr("tuner.tuning.ray_backend.capacity.draining_nodes", frozenset)
    conductor.draining = "interrupted"
    herald.look()
    conductor.spending.budget = replace(conductor.spending.budget, seconds=0.0)
    herald.look()
    assert posted == [
        Notice(leaving=("n",)),
        Notice(is_ending=True),
        Notice(is_ending=True, is_over=True),
    ]
