"""The engine's events without the engine: what it is told, and what becomes of trials then."""

import errno
import math
import os
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from ray import cloudpickle
from ray.tune.experiment import Trial
from ray.tune.progress_reporter import TrialProgressCallback
from ray.tune.search import Searcher
from ray.tune.utils import flatten_dict
from ray.tune.utils.callback import _create_default_callbacks

from tests.test_tuner import PLAN, World, start
from tuner.config import ModelConfig, TrialConfig
from tuner.run.events import (
    EpochEnded,
    Event,
    TrialEnded,
    TrialMeasured,
    TrialPlaced,
    TrialStarted,
)
from tuner.run.trial import EpochMetrics
from tuner.storage.patience import Patience, patient
from tuner.tuning.ray_backend import callbacks as engine
from tuner.tuning.ray_backend import capacity as capacities
from tuner.tuning.ray_backend.callbacks import (
    NoticePoster,
    Silence,
    TuneCallback,
    TuneScheduler,
    TuneSearcher,
)
from tuner.tuning.ray_backend.capacity import Capacity
from tuner.tuning.ray_backend.notices import Notice
from tuner.tuning.tuner import Tuner


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(tmp_path)


def searcher_of(world: World, tuner: Tuner) -> TuneSearcher:
    capacity = Capacity(PLAN, lambda line: None)
    return TuneSearcher(tuner, capacity, world.run.trial_path, lambda: None)


class Board:
    """Keeps what is posted, without Ray."""

    def __init__(self) -> None:
        self.posted: list[Notice] = []

    def post(self, notice: Notice) -> None:
        self.posted.append(notice)


def poster_of(tuner: Tuner, capacity: Capacity) -> tuple[NoticePoster, list[Notice]]:
    board: Any = Board()
    return NoticePoster(tuner, capacity, board), board.posted


def scheduler_of(
    world: World, tuner: Tuner, capacity: Capacity, poster: NoticePoster
) -> TuneScheduler:
    storage = Patience(world.run.path, lambda line: None)
    return TuneScheduler(tuner, capacity, poster, storage)


def test_a_search_that_has_no_room_ends_when_it_is_told_to(
    world: World, pretended_nodes: list[dict[str, float]]
) -> None:
    tuner = world.tuner()
    searcher = searcher_of(world, tuner)
    pretended_nodes.clear()
    assert searcher.suggest("") is None
    tuner.draining = "interrupted"
    assert searcher.suggest("") == Searcher.FINISHED


def test_a_search_that_has_no_room_ends_with_its_budget(
    world: World, pretended_nodes: list[dict[str, float]]
) -> None:
    tuner = world.tuner(seconds=0.0)
    pretended_nodes.clear()
    assert searcher_of(world, tuner).suggest("") == Searcher.FINISHED
    assert tuner.draining == "budget"


def test_a_search_whose_trials_have_ended_needs_no_room_to_end(
    world: World, pretended_nodes: list[dict[str, float]]
) -> None:
    tuner = world.tuner(trials=1)
    searcher = searcher_of(world, tuner)
    worker = world.begin(tuner)
    pretended_nodes.clear()
    assert searcher.suggest("") is None, "its worker may still be lost"
    worker.finish("completed")
    assert searcher.suggest("") == Searcher.FINISHED


def test_a_trial_that_lost_its_worker_and_gets_no_other_is_interrupted(
    world: World, pretended_nodes: list[dict[str, float]]
) -> None:
    tuner = world.tuner()
    searcher = searcher_of(world, tuner)
    worker = world.begin(tuner)
    worker.step(0.5)
    world.lose(tuner, worker.number)
    pretended_nodes.clear()
    assert searcher.suggest("") is None
    tuner.draining = "interrupted"
    assert searcher.suggest("") == Searcher.FINISHED
    assert world.run.trial(worker.number).status.state == "interrupted"
    assert world.run.trial(worker.number).status.reason == "after epoch 1, with its worker"


class Controller:
    """Ray's own, as far as a scheduler sees it."""

    def __init__(self, tuner: Tuner, trials: list[Any]) -> None:
        self._tuner = tuner
        self._trials = trials

    def get_live_trials(self) -> set[Any]:
        return set(self._trials)

    def stop_trial(self, trial: Any) -> None:
        trial.status = Trial.TERMINATED
        self._tuner.end(trial.config["number"])


@dataclass(eq=False)
class RayTrial:
    """A trial of Ray's, as far as a scheduler sees it."""

    config: dict[str, Any]
    status: str
    temporary_state: Any


def test_trials_that_wait_for_a_node_end_with_the_search(
    world: World, pretended_nodes: list[dict[str, float]]
) -> None:
    tuner = world.tuner()
    numbers = [given.number for _ in range(3) if (given := start(tuner))]
    waiting, about_to_run, running = (
        RayTrial({"number": number}, status, SimpleNamespace(ray_actor=worker))
        for number, status, worker in zip(
            numbers,
            (Trial.PENDING, Trial.PENDING, Trial.RUNNING),
            (None, "worker", "worker"),
            strict=True,
        )
    )
    controller = Controller(tuner, [waiting, about_to_run, running])
    capacity = Capacity(PLAN, lambda line: None)
    scheduler = scheduler_of(world, tuner, capacity, poster_of(tuner, capacity)[0])
    for trial in (about_to_run, waiting, running):
        scheduler.on_trial_add(controller, trial)
    assert scheduler.choose_trial_to_run(controller) is waiting, "the last of those that wait"
    waiting.status = Trial.RUNNING
    assert scheduler.choose_trial_to_run(controller) is about_to_run
    waiting.status = Trial.PENDING
    tuner.draining = "interrupted"
    assert scheduler.choose_trial_to_run(controller) is None
    assert set(tuner.live) == set(numbers[1:])
    assert world.run.trial(0).status.reason == "after epoch 0, before it had a worker"


@pytest.mark.parametrize(
    ("word", "text"),
    [
        ({"versions": [("torch", "1.0.0")]}, "its versions differ from this machine's:\n"),
        ({"problem": "it does not see /a. Mount it"}, ": h n: it does not see /a. Mount it; it is"),
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
    tuner, said = world.tuner(), []
    capacity = Capacity(PLAN, said.append)
    scheduler = scheduler_of(world, tuner, capacity, poster_of(tuner, capacity)[0])
    for _ in range(2):
        given = start(tuner)
        assert given is not None
        config = {"number": given.number, "path": str(world.run.trial_path(given.number))}
        trial: Any = SimpleNamespace(config=config)
        trial.temporary_state = SimpleNamespace(ray_actor="worker")
        result = {"event": TrialPlaced(number=given.number, node="n"), "host": "h", **word}
        assert scheduler.on_trial_result(None, trial, result) == TuneScheduler.CONTINUE
    assert killed == ["worker"] * 2
    assert capacity.refused == ["n"]
    assert capacity.has_lost("n")
    (line,) = said
    assert text in line
    monkeypatch.setattr(capacities, "is_gone", lambda node: False)
    placed = TrialPlaced(number=given.number, node="n")
    scheduler.on_trial_result(None, trial, {"event": placed})
    assert not capacity.has_lost("n"), "it has been mended"


def test_a_storage_that_fails_for_the_driver_too_is_waited_for_and_no_nodes_fault(
    world: World, pretended_nodes: list[dict[str, float]], monkeypatch: pytest.MonkeyPatch
) -> None:
    tuner = world.tuner()
    capacity = Capacity(PLAN, lambda line: None)
    scheduler = scheduler_of(world, tuner, capacity, poster_of(tuner, capacity)[0])
    given = start(tuner)
    assert given is not None
    path = world.run.trial_path(given.number)
    trial: Any = SimpleNamespace(config={"number": given.number, "path": str(path)})
    placed = TrialPlaced(number=given.number, node="n")
    word = {"event": placed, "host": "h", "problem": "a fault"}
    faults = [OSError(errno.EIO, "Input/output error")]

    def exists(path: Path) -> bool:
        if faults:
            raise faults.pop()
        return False

    patience = Patience(world.run.path, lambda line: None)
    monkeypatch.setattr(Path, "exists", exists)
    with patient(patience):
        scheduler.on_trial_result(None, trial, word)
    assert not faults
    assert not capacity.refused


def test_a_folder_that_the_driver_may_not_write_either_is_no_nodes_fault(
    world: World, pretended_nodes: list[dict[str, float]], monkeypatch: pytest.MonkeyPatch
) -> None:
    tuner = world.tuner()
    capacity = Capacity(PLAN, lambda line: None)
    scheduler = scheduler_of(world, tuner, capacity, poster_of(tuner, capacity)[0])
    given = start(tuner)
    assert given is not None
    path = world.run.trial_path(given.number)
    trial: Any = SimpleNamespace(config={"number": given.number, "path": str(path)})
    placed = TrialPlaced(number=given.number, node="n")
    word = {"event": placed, "host": "h", "problem": "a fault"}
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    scheduler.on_trial_result(None, trial, word)
    assert not capacity.refused


class Kept(SimpleNamespace):
    """What Ray keeps of a trial."""

    __hash__ = object.__hash__


def started(tuner: Tuner) -> Any:
    """Start a trial whose worker has not said a word; give what Ray keeps of it."""
    given = start(tuner)
    assert given is not None
    return kept_of(given.number)


def kept_of(number: int) -> Any:
    """Return what Ray keeps of a trial."""
    metadata = SimpleNamespace(metric_analysis={}, metric_n_steps={}, last_result={})
    config = {"number": number}
    return Kept(config=config, run_metadata=metadata, error_file="", evaluated_params={})


def test_a_worker_lost_at_its_start_with_a_node_is_no_failure_of_its_trial(
    world: World, pretended_nodes: list[dict[str, float]], monkeypatch: pytest.MonkeyPatch
) -> None:
    gone = {"long ago"}
    monkeypatch.setattr(capacities, "gone_nodes", lambda: frozenset(gone))
    monkeypatch.setattr(capacities, "is_gone", gone.__contains__)
    tuner = world.tuner()
    capacity = Capacity(PLAN, lambda line: None)
    assert capacity.has_room([])
    trial = started(tuner)
    poster = poster_of(tuner, capacity)[0]
    callback = TuneCallback(tuner, world.recorder, capacity, poster, max_failures=0)
    callback.on_trial_error(0, [], trial)
    callback.settle()
    assert set(tuner.live) == {0}, "its node may be missed later than it"
    gone.add("just now")
    callback.settle()
    assert not tuner.live
    assert not tuner.failures
    again = start(tuner)
    assert again is not None
    assert (again.number, again.attempt) == (0, 2)


def test_a_worker_lost_at_its_start_on_nodes_that_all_stay_is_a_failure(
    world: World, pretended_nodes: list[dict[str, float]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engine, "DOUBT_SECONDS", 0.0)
    monkeypatch.setattr(capacities, "is_gone", lambda node: False)
    tuner = world.tuner()
    capacity = Capacity(PLAN, lambda line: None)
    poster = poster_of(tuner, capacity)[0]
    callback = TuneCallback(tuner, world.recorder, capacity, poster, max_failures=0)
    callback.on_trial_error(0, [], started(tuner))
    callback.settle()
    assert tuner.failures == [(0, "its worker was lost, 1 time")]


def test_a_trial_whose_saved_state_is_damaged_fails_alone(
    world: World, pretended_nodes: list[dict[str, float]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(capacities, "is_gone", lambda node: False)
    tuner = world.tuner()
    capacity = Capacity(PLAN, lambda line: None)
    poster = poster_of(tuner, capacity)[0]
    callback = TuneCallback(tuner, world.recorder, capacity, poster, max_failures=3)
    worker, other = world.begin(tuner), world.begin(tuner)
    worker.step(0.5)
    (world.run.trial_path(worker.number) / "state.safetensors").write_bytes(b"\0" * 40)
    callback.on_trial_error(0, [], kept_of(worker.number))
    callback.settle()
    ((number, reason),) = tuner.failures
    assert number == worker.number
    assert "state.safetensors" in reason
    assert [*tuner.live] == [other.number]


def test_workers_are_told_once_of_what_changes(
    world: World, pretended_nodes: list[dict[str, float]], monkeypatch: pytest.MonkeyPatch
) -> None:
    killed: list[str] = []
    monkeypatch.setattr("ray.kill", killed.append)
    tuner = world.tuner(seconds=60.0)
    capacity = Capacity(PLAN, lambda line: None)
    poster, posted = poster_of(tuner, capacity)
    scheduler = scheduler_of(world, tuner, capacity, poster)
    worker = world.begin(tuner)
    trial: Any = SimpleNamespace(config={"number": worker.number})
    trial.temporary_state = SimpleNamespace(ray_actor="worker")
    poster.post_if_changed()
    assert posted == []
    monkeypatch.setattr(
        "tuner.tuning.ray_backend.capacity.draining_nodes", lambda: frozenset({"n"})
    )
    report = {"event": worker.ended(worker.train(0.5))}
    assert scheduler.on_trial_result(None, trial, report) == TuneScheduler.CONTINUE
    assert not killed, "the epoch may not be saved"
    scheduler.on_trial_result(None, trial, {"saved": 1})
    assert killed == ["worker"]
    monkeypatch.setattr("tuner.tuning.ray_backend.capacity.draining_nodes", frozenset)
    tuner.draining = "interrupted"
    poster.post_if_changed()
    tuner.spending.budget = replace(tuner.spending.budget, seconds=0.0)
    poster.post_if_changed()
    assert posted == [
        Notice(leaving=("n",)),
        Notice(is_ending=True),
        Notice(is_ending=True, is_over=True),
    ]


ROW = EpochMetrics(
    epoch=1, train_loss=1.0, val_loss=0.5, val_accuracy=0.75, lr=0.1, seconds=2.0, time=3.5
)


@pytest.mark.parametrize(
    "event",
    [
        TrialStarted(
            number=3,
            config=TrialConfig(model=ModelConfig("cnn", {"width": 16}), epochs=4),
            history=(ROW,),
            attempt=2,
            cpus=1.0,
            gpus=0.5,
        ),
        TrialPlaced(number=3, node="n"),
        TrialMeasured(number=3, latency_ms=1.5),
        EpochEnded(number=3, metrics=ROW, num_parameters=7, execution="eager", halved_from=1),
        TrialEnded(number=3, state="failed", reason="ValueError: no", traceback="Traceback"),
    ],
    ids=lambda event: type(event).__name__,
)
def test_an_event_comes_through_the_engine_as_it_was(event: Event) -> None:
    report = {"event": event, "tell": "a line"}
    assert flatten_dict(cloudpickle.loads(cloudpickle.dumps(report))) == report


def test_an_epoch_that_diverged_comes_through_the_engine() -> None:
    event = EpochEnded(number=0, metrics=replace(ROW, train_loss=math.nan, val_loss=math.inf))
    found = flatten_dict(cloudpickle.loads(cloudpickle.dumps({"event": event})))["event"]
    assert math.isnan(found.metrics.train_loss)
    assert math.isinf(found.metrics.val_loss)


def test_tune_prints_nothing_of_its_own(capsys: pytest.CaptureFixture[str]) -> None:
    callbacks = _create_default_callbacks([Silence()], air_verbosity=None)
    (printing,) = [one for one in callbacks if isinstance(one, TrialProgressCallback)]
    trial = Trial("none", stub=True)
    printing.on_trial_complete(0, [trial], trial)
    printing.on_trial_error(0, [trial], trial)
    assert capsys.readouterr().out == ""
