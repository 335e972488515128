import functools
import math
import random
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, get_args

import pytest
import torch
from optuna.trial import TrialState as OptunaState

from tuner.config import DataConfig, Metric, SearchConfig
from tuner.metrics import goal
from tuner.run.checkpoint import load_progress, save_state
from tuner.run.events import EpochEnded, Event, TrialEnded, TrialPlaced, TrialStarted
from tuner.run.run import Run
from tuner.run.run_record import RunRecord, now
from tuner.run.trial import (
    BY_CLASS,
    OPEN,
    EpochMetrics,
    Stop,
    TrialState,
    read_history,
    write_history,
)
from tuner.space import SearchSpace, load_space
from tuner.training.saving import forget_progress, restore_files
from tuner.tuning.budget import Budget
from tuner.tuning.planning.simulated import SimulatedClock, Step, run_simulated
from tuner.tuning.recorder import Recorder, make_tuner
from tuner.tuning.resources import CapacityPlan, TrialResources
from tuner.tuning.sampling.sampler import Sampler
from tuner.tuning.schedulers import Hyperband, Median
from tuner.tuning.tuner import Assignment, Tuner

SPACE = """
space:
  batch_size: {choice: [32, 64, 128]}
  model: {cnn: {stages: 2, width: {int: [8, 64]}}}
  optimizer: {sgd: {lr: {float: [0.01, 1.0], log: true}}}
"""
SEARCH = SearchConfig(
    trials=6, epochs=4, grace=1, reduction=2, sampler="random", scheduler="asha-stop"
)
PLAN = CapacityPlan(
    default=TrialResources(cpus=1, gpus=0.5), count=2, count_parameters=lambda config: 7
)


@functools.cache
def read_space(text: str) -> SearchSpace:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "space.yaml"
        path.write_text(text)
        return load_space(path)


@dataclass
class World:
    """A run folder, and what outlives a search that is killed: the clock, the epochs trained."""

    folder: Path
    search: SearchConfig = SEARCH
    text: str = SPACE
    clock: int = 0
    trained: Counter[tuple[int, int]] = field(default_factory=Counter)
    """Trial and epoch -> how often."""
    is_lazy: bool = False
    """Whether workers save an epoch where they have to alone."""
    recorder: Recorder = field(init=False)
    sampler: Sampler = field(init=False)
    num_outside: int = field(init=False)
    """Number of trials of the last tuner that its space did not hold."""

    @property
    def run(self) -> Run:
        path = self.folder / "run"
        if path.exists():
            return Run.open(path)
        record = RunRecord(
            name="run",
            command="",
            space="",
            search=self.search,
            data=DataConfig(),
            data_dir="",
            data_fingerprint="",
            split_fingerprint="",
            num_train=1,
            num_val=1,
            started=now(),
        )
        return Run.create(path, record, self.text)

    @property
    def space(self) -> SearchSpace:
        return read_space(self.text)

    def tuner(
        self,
        sampler: Sampler | None = None,
        plan: CapacityPlan = PLAN,
        clock: Callable[[], float] = time.monotonic,
        **budget: Any,
    ) -> Tuner:
        """Return the tuner of a search that begins, or goes on where the run folder ends."""
        self.sampler = sampler or Sampler(self.space, self.search)
        whole = Budget(**{"trials": self.search.trials, **budget})
        tuner, self.recorder = make_tuner(self.run, self.sampler, whole, plan, clock)
        self.num_outside = tuner.restore(self.recorder.restore())
        return tuner

    def begin(self, tuner: Tuner) -> "Worker":
        given = start(tuner)
        assert given is not None
        worker = Worker(self, tuner, given)
        for event in worker.first_words():
            assert tuner.on(event) == "continue"
        return worker

    def lose(self, tuner: Tuner, number: int, fatal: str = "") -> None:
        """Take a trial's worker away."""
        tuner.lose(number, self.recorder.saved_epochs(number), fatal)


def start(tuner: Tuner) -> Assignment | None:
    """Start a trial, if there is one."""
    given = tuner.next(lambda running: True)
    return given if isinstance(given, Assignment) else None


@dataclass
class Worker:
    """Does to the folder of a trial, and reports, what ``ray_backend.trainable`` does."""

    world: World
    tuner: Tuner
    given: Assignment
    history: list[EpochMetrics] = field(default_factory=list)

    @property
    def number(self) -> int:
        return self.given.number

    @property
    def path(self) -> Path:
        return self.world.recorder.run.trial_path(self.number)

    def first_words(self) -> Iterator[Event]:
        """Yield what is reported before the first epoch."""
        yield TrialPlaced(number=self.number, node="n")
        self.history = restore_files(self.path)
        if len(self.history) != self.given.num_epochs:
            yield self.started()

    def started(self) -> TrialStarted:
        """Return what is reported where the tuner knows other epochs than ``history``."""
        return TrialStarted(
            number=self.number,
            config=self.given.config,
            history=tuple(self.history),
            attempt=self.given.attempt,
            cpus=self.given.resources.cpus,
            gpus=self.given.resources.gpus,
            num_parameters=self.given.num_parameters,
        )

    def train(self, accuracy: float, loss: float = 1.0, **figures: float) -> EpochMetrics:
        """Train an epoch, and keep it."""
        self.world.clock += 1
        row = EpochMetrics(
            epoch=len(self.history) + 1,
            train_loss=loss,
            val_loss=loss,
            val_accuracy=accuracy,
            lr=0.1,
            seconds=2.0,
            time=float(self.world.clock),
            **figures,
        )
        self.world.trained[self.number, row.epoch] += 1
        self.history.append(row)
        is_last = row.epoch == self.world.search.epochs or not math.isfinite(loss)
        if not self.world.is_lazy or row.epoch in self.given.judged_epochs or is_last:
            self.save()
        return row

    def save(self) -> None:
        """Have the newest epoch on disk."""
        rows = [row for row in self.history if math.isfinite(row.val_loss)]
        if rows:
            save_state(self.path / "state.safetensors", {"w": torch.zeros(1)}, rows)
        write_history(self.path, self.history)

    def ended(self, row: EpochMetrics) -> EpochEnded:
        """Return what is reported of an epoch."""
        return EpochEnded(number=self.number, metrics=row, num_parameters=7, execution="eager")

    def report(self, row: EpochMetrics) -> bool:
        """Report an epoch; close the books if the trial may not go on."""
        goes_on = self.tuner.on(self.ended(row)) == "continue"
        if not goes_on:
            self.tuner.end(self.number)
        elif self.tuner.is_draining() and row.epoch < self.world.search.epochs:
            self.save()
            self.finish("interrupted", reason=f"after epoch {row.epoch}")
            goes_on = False
        return goes_on

    def step(self, accuracy: float, loss: float = 1.0, **figures: float) -> bool:
        return self.report(self.train(accuracy, loss, **figures))

    def finish(self, state: TrialState = "completed", **words: str) -> None:
        ending = TrialEnded(number=self.number, state=state, **words)
        assert self.tuner.on(ending) == "continue"
        self.tuner.end(self.number)


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(tmp_path)


def unstopped(world: World, **given: Any) -> Tuner:
    world.search = replace(world.search, scheduler="none")
    return world.tuner(**given)


# One trial


def test_a_trial_that_runs_its_course(world: World) -> None:
    tuner = unstopped(world)
    worker = world.begin(tuner)
    assert world.run.trial(0).status.state == "running"
    assert all(worker.step(epoch / 10) for epoch in range(1, 5))
    worker.finish()
    record = world.run.trial(0)
    assert (record.status.state, record.status.num_parameters) == ("completed", 7)
    assert record.status.node == "n"
    assert record.status.started <= record.status.finished
    assert not record.state.exists()
    assert tuner.state.ended == {"completed": 1}
    assert tuner.state.best is not None
    assert (tuner.state.best[0], tuner.state.best[1].epoch) == (0, 4)


def test_an_epoch_that_is_told_again_counts_once(world: World) -> None:
    tuner = world.tuner()
    worker = world.begin(tuner)
    row = worker.train(0.5)
    for _ in range(3):
        assert worker.report(row)
    assert tuner.state.num_epochs == 1
    assert tuner.scheduler.rungs == {1: [0.5], 2: []}
    assert tuner.state.trials[0].history == [row]


def test_a_worker_lost_before_it_reported_is_heard_in_its_place(world: World) -> None:
    tuner = world.tuner()
    worker = world.begin(tuner)
    row = worker.train(0.5)
    # The engine starts another one for the same trial; its first word is the unheard epoch.
    again = Worker(world, tuner, worker.given)
    for event in again.first_words():
        assert tuner.on(event) == "continue"
    assert tuner.state.trials[0].history == [row]
    assert tuner.scheduler.rungs[1] == [0.5]
    assert again.step(0.6)
    assert world.run.trial(0).status.num_parameters == 7


def test_a_trial_that_ends_unheard_has_the_parameters_of_its_configuration(world: World) -> None:
    tuner = world.tuner()
    worker = world.begin(tuner)
    worker.train(0.5)
    world.lose(tuner, worker.number, "its worker was lost too often")
    record = world.run.trial(0)
    assert (len(record.history), record.status.num_parameters) == (1, 7)


def test_an_epoch_that_diverged_is_not_judged(world: World) -> None:
    tuner = world.tuner()
    first, second = world.begin(tuner), world.begin(tuner)
    first.step(0.9)
    assert second.step(0.1, loss=math.nan)
    second.finish("diverged")
    assert tuner.scheduler.rungs[1] == [0.9]
    assert world.run.trial(1).status.state == "diverged"
    assert tuner.state.best is not None
    assert tuner.state.best[0] == 0
    resumed = world.tuner()
    assert resumed.scheduler.rungs[1] == [0.9]
    assert resumed.state.best == tuner.state.best


def test_a_trial_that_is_stopped_says_why(world: World) -> None:
    tuner = world.tuner()
    first, second = world.begin(tuner), world.begin(tuner)
    assert first.step(0.9)
    assert not second.step(0.1)
    status = world.run.trial(1).status
    assert status.state == "stopped"
    assert status.stop == Stop(rung=1, value=0.1, cut=0.9, peers=1)
    assert status.reason == "epoch 1: 0.1000 below 0.9000, 1 peer"
    assert not world.run.trial(1).state.exists()


def by_metric(world: World, metric: Metric) -> Tuner:
    """Search by a metric: trial 1 is behind trial 0 in accuracy and ahead in all else."""
    world.search = replace(world.search, scheduler="asha-stop", metric=metric)
    tuner = world.tuner()
    workers = [world.begin(tuner), world.begin(tuner)]
    for _ in range(4):
        for worker, accuracy, share, loss in zip(
            workers, (0.9, 0.8), (0.2, 0.6), (0.9, 0.7), strict=True
        ):
            figures = dict.fromkeys(BY_CLASS, share)
            if worker.number in tuner.live:
                worker.step(accuracy, loss=loss, **figures)
    for number in list(tuner.live):
        workers[number].finish()
    return tuner


@pytest.mark.parametrize("metric", [metric for metric in get_args(Metric) if metric != "accuracy"])
def test_the_metric_chooses_another_trial_than_accuracy_does(
    tmp_path: Path, metric: Metric
) -> None:
    (tmp_path / "one").mkdir()
    (tmp_path / "other").mkdir()
    by_accuracy = by_metric(World(tmp_path / "one"), "accuracy")
    world = World(tmp_path / "other")
    tuner = by_metric(world, metric)
    for each, best in ((by_accuracy, 0), (tuner, 1)):
        assert each.state.best is not None
        assert each.state.best[0] == best
    assert [trial.number for trial in world.run.ranked()] == [1, 0]
    value = 0.7 if metric == "nll" else 0.6
    assert tuner.state.best_so_far()[-1][2] == value
    assert f"{goal.name_of(metric)} {value:.4f}" in str(tuner.state.endings[-1])
    study = world.sampler.study
    assert study.best_trial.user_attrs["trial"] == 1
    assert study.best_value == value
    resumed = world.tuner()
    assert resumed.state.best == tuner.state.best
    assert resumed.proposer.study.best_value == value
    assert resumed.scheduler.rungs == tuner.scheduler.rungs
    assert world.run.leaderboard()["trial"].tolist() == [1, 0]


def test_a_trial_that_is_stopped_by_its_loss_says_so_in_nats(world: World) -> None:
    world.search = replace(world.search, scheduler="asha-stop", metric="nll")
    tuner = world.tuner()
    first, second = world.begin(tuner), world.begin(tuner)
    assert first.step(0.5, loss=0.3)
    assert not second.step(0.9, loss=0.8)
    status = world.run.trial(1).status
    assert status.stop == Stop(rung=1, value=0.8, cut=0.3, peers=1, metric="nll")
    assert status.reason == "epoch 1: 0.8000 above 0.3000, 1 peer"


def test_a_trial_whose_workers_are_lost_has_failed(world: World) -> None:
    tuner = world.tuner()
    world.begin(tuner).step(0.5)
    tuner.end(0, lost="its worker was lost: killed")
    status = world.run.trial(0).status
    assert (status.state, status.reason) == ("failed", "its worker was lost: killed")
    assert not tuner.live


def test_the_study_holds_the_truth_of_every_ending(world: World) -> None:
    tuner = world.tuner()
    completed = world.begin(tuner)
    for _ in range(4):
        completed.step(0.8)
    completed.finish()
    world.begin(tuner).step(0.3)
    diverged = world.begin(tuner)
    diverged.step(0.9)
    diverged.step(0.1, loss=math.inf)
    diverged.finish("diverged")
    world.begin(tuner).finish("out_of_memory", reason="2 GiB")
    world.begin(tuner).finish("failed", reason="ValueError: no", traceback="Traceback")
    world.begin(tuner).step(0.95)
    expected = [
        (OptunaState.COMPLETE, 0.8, [1, 2, 3, 4]),
        (OptunaState.PRUNED, 0.3, [1]),
        (OptunaState.PRUNED, None, []),
        (OptunaState.PRUNED, None, []),
        (OptunaState.FAIL, None, []),
        (OptunaState.RUNNING, None, []),
    ]
    for sampler in (world.sampler, world.tuner().proposer):
        trials = sorted(sampler.study.trials, key=lambda trial: trial.user_attrs["trial"])
        assert [(t.state, t.value, list(t.intermediate_values)) for t in trials] == expected
    assert world.run.trial(4).status.traceback == "Traceback"


# When to start no more


def test_a_search_ends_with_the_asked_number_of_trials(world: World) -> None:
    tuner = unstopped(world, trials=2)
    for _ in range(2):
        world.begin(tuner).finish()
    assert start(tuner) is None
    assert not tuner.draining
    more = unstopped(world, trials=3)
    assert world.begin(more).number == 2
    assert start(more) is None


def test_a_grid_ends_the_search_before_the_trials_do(tmp_path: Path) -> None:
    text = "space: {model: {cnn: {stages: 2}}, batch_size: {choice: [32, 64]}}"
    world = World(tmp_path, replace(SEARCH, sampler="grid", scheduler="none"), text)
    tuner = world.tuner()
    for _ in range(2):
        world.begin(tuner).finish()
    assert start(tuner) is None
    assert {trial.config.batch_size for trial in world.run.trials()} == {32, 64}
    assert start(world.tuner()) is None


def test_a_spent_time_budget_ends_trials_after_their_epoch(world: World) -> None:
    tuner = unstopped(world)
    first, second = world.begin(tuner), world.begin(tuner)
    assert first.step(0.5)
    for _ in range(3):
        assert second.step(0.5)
    tuner.spending.budget = Budget(trials=6, seconds=0)
    assert not first.step(0.6)
    assert second.step(0.5), "its last epoch: it has run its course"
    second.finish()
    assert tuner.draining == "budget"
    assert start(tuner) is None
    record = world.run.trial(0)
    assert (record.status.state, record.status.reason) == ("interrupted", "after epoch 2")
    assert len(load_progress(record.state)[0]) == 2, "it can go on from there"
    assert not world.run.trial(1).state.exists()


def test_time_spent_in_earlier_searches_counts_and_time_between_them_does_not(
    world: World,
) -> None:
    world.run.update(active_seconds=100.0)
    assert start(unstopped(world, seconds=99.0)) is None
    tuner = unstopped(world, seconds=160.0)
    assert start(tuner) is not None
    assert 100 <= tuner.spending.seconds < 130


def test_gpu_seconds_are_those_of_epochs_over_all_resumes(world: World) -> None:
    tuner = unstopped(world, gpu_seconds=3.5)
    worker = world.begin(tuner)
    for _ in range(3):
        # Two seconds on half a GPU.
        assert worker.step(0.5)
    assert worker.step(0.5), "the last epoch"
    assert tuner.draining == "budget"
    worker.finish()
    assert start(unstopped(world, gpu_seconds=3.5)) is None
    assert start(unstopped(world, gpu_seconds=4.5)) is not None


def test_the_budget_counts_the_gpus_that_a_trial_held(world: World) -> None:
    tuner = unstopped(world)
    worker = world.begin(tuner)
    assert all([worker.step(0.5) for _ in range(4)])
    worker.finish()
    resumed = unstopped(world, gpu_seconds=4.5)
    assert start(resumed) is not None, "eight seconds on half a GPU"
    (trial, begun) = world.run.trials()
    assert (trial.status.cpus, trial.status.gpus) == (begun.status.cpus, begun.status.gpus)
    large = unstopped(
        world, plan=replace(PLAN, default=TrialResources(cpus=1, gpus=1)), gpu_seconds=4.5
    )
    assert start(large) is not None


def test_an_interrupt_lets_running_trials_end_their_epoch(world: World) -> None:
    tuner = unstopped(world)
    first, second = world.begin(tuner), world.begin(tuner)
    first.step(0.5)
    tuner.draining = "interrupted"
    assert start(tuner) is None
    assert not first.step(0.5)
    assert not second.step(0.4)
    assert tuner.state.ended == {"interrupted": 2}
    resumed = unstopped(world)
    assert resumed.state.ended == {"interrupted": 2}
    workers = [world.begin(resumed), world.begin(resumed)]
    assert [len(worker.history) for worker in workers] == [2, 1]
    assert resumed.state.ended == {}
    assert world.run.trial(0).status.state == "running"
    assert world.run.trial(0).status.reason == ""


def fail(world: World, tuner: Tuner, reason: str) -> None:
    world.begin(tuner).finish("failed", reason=reason)


def test_three_first_trials_that_fail_alike_break_the_search(world: World) -> None:
    tuner = world.tuner()
    for _ in range(2):
        fail(world, tuner, "ValueError: no")
        assert not tuner.draining
    fail(world, tuner, "ValueError: no")
    assert tuner.draining == "broken"
    assert start(tuner) is None


@pytest.mark.parametrize("reasons", [["a", "a", "b", "b", "b"], ["a", "b", "a", "a", "a"]])
def test_failures_of_several_kinds_do_not_break_the_search(
    world: World, reasons: list[str]
) -> None:
    tuner = world.tuner()
    for reason in reasons:
        fail(world, tuner, reason)
    assert not tuner.draining


def test_failures_after_another_ending_do_not_break_the_search(world: World) -> None:
    tuner = world.tuner()
    fail(world, tuner, "a")
    world.begin(tuner).finish("out_of_memory")
    for _ in range(4):
        fail(world, tuner, "a")
    assert not tuner.draining


def test_trials_whose_workers_are_gone_are_taken_up_again_unless_they_were_stopped(
    world: World,
) -> None:
    tuner = world.tuner()
    first, second = world.begin(tuner), world.begin(tuner)
    assert first.step(0.9)
    # Stopped, but lost before the engine said that it had ended.
    assert tuner.on(second.ended(second.train(0.1))) == "stop"
    for number in list(tuner.live):
        tuner.lose(number, world.recorder.saved_epochs(number), is_excused=True)
    assert not tuner.live
    assert world.run.trial(1).status.state == "stopped"
    again = world.begin(tuner)
    assert again.number == 0
    assert [row.epoch for row in again.history] == [1]
    again.step(0.95)
    assert world.trained[0, 1] == world.trained[0, 2] == 1


def test_trials_that_wait_for_a_worker_are_interrupted_with_the_search(world: World) -> None:
    tuner = world.tuner()
    trials = world.begin(tuner), world.begin(tuner)
    for trial in trials:
        trial.step(0.5)
        tuner.lose(trial.number, world.recorder.saved_epochs(trial.number), is_excused=True)
    tuner.draining = "budget"
    assert tuner.next(lambda running: True) == "done"
    assert [trial.status.state for trial in world.run.trials()] == ["interrupted"] * 2


def test_a_trial_that_lost_its_worker_goes_on_first_unless_it_may_not(world: World) -> None:
    tuner = world.tuner()
    first, second = world.begin(tuner), world.begin(tuner)
    first.step(0.5)
    second.step(0.6)
    world.lose(tuner, 0)
    assert world.run.trial(0).status.state == "running"
    again = world.begin(tuner)
    assert (again.number, [row.epoch for row in again.history]) == (0, [1])
    assert len(tuner.live[0].lost_on) == 1
    tuner.lose(0, world.recorder.saved_epochs(0), is_excused=True)
    world.begin(tuner)
    assert len(tuner.live[0].lost_on) == 1
    world.lose(tuner, 1, "its worker was lost, 4 times")
    assert world.run.trial(1).status.state == "failed"
    tuner.draining = "interrupted"
    world.lose(tuner, 0)
    assert world.run.trial(0).status.state == "interrupted"
    assert not tuner.live


def test_epochs_that_were_lost_with_a_worker_are_trained_and_told_again(world: World) -> None:
    world.search, world.is_lazy = replace(SEARCH, epochs=8, grace=2), True
    tuner = world.tuner()
    told: list[tuple[int, list[int]]] = []

    def listen(event: Event) -> None:
        match event:
            case TrialStarted(number=number, history=history):
                told.append((number, [row.epoch for row in history]))
            case EpochEnded(metrics=row):
                told[-1][1].append(row.epoch)

    tuner.observers.append(listen)
    worker = world.begin(tuner)
    for accuracy in (0.5, 0.5, 0.9):
        assert worker.step(accuracy)
    assert tuner.state.num_epochs == 3
    world.lose(tuner, 0)
    assert tuner.state.num_epochs == 2, "the third was not saved"
    assert tuner.state.best == (0, worker.history[0])
    again = world.begin(tuner)
    assert [row.epoch for row in again.history] == [1, 2]
    while len(again.history) < 8:
        assert again.step(0.6)
    again.finish()
    assert told == [(0, [1, 2, 3]), (0, [1, 2, 3, 4, 5, 6, 7, 8])]
    assert read_history(worker.path) == list(world.run.trial(0).history) == again.history
    assert tuner.state.num_epochs == 8
    assert tuner.scheduler.rungs == {2: [0.5], 4: [0.6]}
    # Nine epochs of two seconds, on half a GPU, over all resumes.
    assert tuner.spending.gpu_seconds == pytest.approx(9.0, abs=0.5)
    assert world.tuner().spending.gpu_seconds == pytest.approx(9.0, abs=0.5)


def test_an_epoch_that_is_told_twice_counts_once(world: World) -> None:
    world.search, world.is_lazy = replace(SEARCH, epochs=8, grace=2), True
    tuner = world.tuner()
    worker = world.begin(tuner)
    for _ in range(3):
        assert worker.step(0.5)
    # Short of memory: the worker goes back to the second epoch, which was saved.
    worker.history = restore_files(worker.path)
    assert tuner.on(worker.started()) == "continue"
    assert tuner.state.num_epochs == 2
    assert tuner.spending.gpu_seconds == pytest.approx(3.0, abs=0.5)
    assert worker.step(0.6)
    assert [row.val_accuracy for row in tuner.state.trials[0].history] == [0.5, 0.5, 0.6]
    assert tuner.state.num_epochs == 3
    # The third epoch was trained twice.
    assert tuner.spending.gpu_seconds == pytest.approx(4.0, abs=0.5)


def test_a_trial_whose_state_cannot_be_used_is_trained_from_its_first_epoch(world: World) -> None:
    world.search, world.is_lazy = replace(SEARCH, epochs=8, grace=2), False
    tuner = world.tuner()
    worker = world.begin(tuner)
    assert worker.step(0.5)
    assert worker.step(0.5)
    world.lose(tuner, 0)
    again = world.begin(tuner)
    assert len(tuner.state.trials[0].history) == 2
    forget_progress(again.path)
    again.history.clear()
    assert tuner.on(again.started()) == "continue"
    assert not tuner.state.trials[0].history
    assert tuner.state.num_epochs == 0
    assert again.step(0.4)
    assert [row.val_accuracy for row in world.run.trial(0).history] == [0.4]
    # Three epochs of two seconds on half a GPU.
    assert tuner.spending.gpu_seconds == pytest.approx(3.0, abs=0.5)


def test_a_repeated_epoch_is_no_peer_of_its_own(world: World) -> None:
    world.search, world.is_lazy = replace(SEARCH, scheduler="median", grace=3), True
    tuner = world.tuner()
    worker = world.begin(tuner)
    worker.step(0.5)
    world.lose(tuner, 0)
    assert world.begin(tuner).step(0.5)
    assert tuner.scheduler.averages == {1: [0.5]}


def test_a_worker_short_of_memory_may_go_back_to_its_saved_epoch(world: World) -> None:
    world.search, world.is_lazy = replace(SEARCH, scheduler="none"), True
    tuner = world.tuner()
    worker = world.begin(tuner)
    for _ in range(3):
        worker.step(0.5)
    del worker.history[1:]
    worker.step(0.7)
    assert [row.val_accuracy for row in tuner.state.trials[0].history] == [0.5, 0.7]
    assert tuner.state.num_epochs == 2


def test_the_budget_knows_the_epochs_under_way(world: World) -> None:
    clock = SimulatedClock()
    tuner = unstopped(world, clock=clock, gpu_seconds=1.5)
    worker = world.begin(tuner)
    assert worker.step(0.5)
    assert not tuner.is_draining()
    clock.now += 1.1
    assert tuner.is_draining()
    assert tuner.is_over
    worker.finish("interrupted", reason="after epoch 1, when the budget was spent")
    # A second of an epoch, and half a second of one that does not count.
    assert world.tuner().spending.gpu_seconds == pytest.approx(1.55)


def test_the_budget_lasts_as_long_as_the_trials_with_a_worker_take_to_spend_it(
    world: World,
) -> None:
    clock = SimulatedClock()
    tuner = unstopped(world, clock=clock, gpu_seconds=100.0)
    assert start(tuner) is not None
    assert tuner.seconds_left() == 200, "half a GPU, once it has a node"
    world.begin(tuner)
    assert tuner.seconds_left() == 200, "of two trials, one still waits"
    world.begin(tuner)
    assert tuner.seconds_left() == 100


def test_an_epoch_that_was_saved_and_not_heard_is_counted_once(world: World) -> None:
    clock = SimulatedClock()
    tuner = unstopped(world, clock=clock)
    worker = world.begin(tuner)
    worker.train(0.5)
    clock.now += 3.0
    world.lose(tuner, worker.number)
    # Three seconds of half a GPU, two of them of the epoch.
    assert tuner.spending.gpu_seconds == pytest.approx(1.5)
    assert tuner.spending.lost_gpu_seconds == pytest.approx(0.5)
    world.recorder.record_spending()
    assert unstopped(world).spending.gpu_seconds == pytest.approx(1.5)


def test_a_trial_cut_before_its_first_epoch_begins_anew(world: World) -> None:
    tuner = unstopped(world)
    worker = world.begin(tuner)
    worker.finish("interrupted", reason="after epoch 0, when the budget was spent")
    record = world.run.trial(0)
    assert (record.status.state, record.is_usable, record.best) == ("interrupted", False, None)
    assert [t.state for t in world.sampler.study.trials] == [OptunaState.RUNNING]
    assert not tuner.failures
    resumed = unstopped(world)
    again = world.begin(resumed)
    assert (again.number, again.history) == (0, [])
    assert again.step(0.5)


# Replay


def test_unfinished_trials_are_taken_up_first_from_their_saved_states(world: World) -> None:
    tuner = world.tuner()
    first, second = world.begin(tuner), world.begin(tuner)
    first.step(0.5)
    second.step(0.6)
    first.step(0.6)
    write_history(second.path, [*second.history, replace(second.history[0], epoch=2)])
    configs = [trial.config for trial in world.run.trials()]
    resumed = world.tuner()
    assert resumed.state.num_epochs == 3, "what was not saved is trained again"
    one, two = world.begin(resumed), world.begin(resumed)
    assert [(w.number, len(w.history)) for w in (one, two)] == [(0, 2), (1, 1)]
    assert [resumed.state.trials[n].config for n in (0, 1)] == configs
    assert world.begin(resumed).number == 2


def test_a_trial_without_a_status_was_never_begun(world: World) -> None:
    tuner = world.tuner()
    world.begin(tuner)
    world.begin(tuner)
    (world.run.trial_path(1) / "status.json").unlink()
    resumed = world.tuner()
    assert [world.begin(resumed).number for _ in range(3)] == [0, 1, 2]


def test_an_epoch_that_was_not_judged_is_judged_on_replay(world: World) -> None:
    tuner = world.tuner()
    first, second = world.begin(tuner), world.begin(tuner)
    first.step(0.9)
    second.train(0.1)
    resumed = world.tuner()
    assert resumed.state.ended == {"stopped": 1}
    record = world.run.trial(1)
    assert record.status.stop == Stop(rung=1, value=0.1, cut=0.9, peers=1)
    assert not record.state.exists()
    assert resumed.scheduler.rungs[1] == [0.9, 0.1]
    assert [world.begin(resumed).number for _ in range(2)] == [0, 2]


def test_an_interrupted_epoch_is_not_judged_again(world: World) -> None:
    tuner = world.tuner()
    first, second = world.begin(tuner), world.begin(tuner)
    tuner.draining = "interrupted"
    second.step(0.1)
    first.step(0.9)
    # Against the better one it would not pass any more.
    resumed = world.tuner()
    assert resumed.state.ended == {"interrupted": 2}
    assert resumed.scheduler.rungs[1] == [0.1, 0.9]


def test_a_changed_space_keeps_the_trials_that_it_holds(world: World) -> None:
    tuner = unstopped(world)
    for accuracy in (0.3, 0.4, 0.5, 0.6):
        worker = world.begin(tuner)
        for _ in range(4):
            worker.step(accuracy)
        worker.finish()
    world.begin(tuner).step(0.9)
    trials = world.run.trials()
    kept = {trial.number for trial in trials if trial.config.batch_size != 64}
    assert 0 < len(kept) < 5
    world.text = SPACE.replace("[32, 64, 128]", "[32, 128, 256]")
    changed = world.tuner(trials=8)
    assert world.num_outside == 5 - len(kept)
    assert {t.user_attrs["trial"] for t in world.sampler.study.trials} == kept
    assert changed.state.ended == {"completed": 4}, "all of them stay in the run"
    last = world.begin(changed)
    assert last.number == 4
    for _ in range(3):
        last.step(0.9)
    last.finish()
    assert world.begin(changed).number == 5


def test_a_warm_start_teaches_the_sampler_and_makes_no_peers(tmp_path: Path) -> None:
    (tmp_path / "one").mkdir()
    (tmp_path / "two").mkdir()
    earlier, world = World(tmp_path / "one"), World(tmp_path / "two")
    tuner = earlier.tuner(trials=3)
    for accuracy in (0.3, 0.6, 0.9):
        worker = earlier.begin(tuner)
        while worker.step(accuracy) and len(worker.history) < 4:
            pass
        worker.finish()
    sampler = Sampler(world.space, world.search)
    tried = earlier.run.trials()
    assert all(sampler.add(t.config, t.status.state, t.history) for t in tried)
    started = world.tuner(sampler, trials=3)
    assert [t.value for t in sampler.study.trials] == [0.3, 0.6, 0.9]
    assert started.scheduler.rungs == {1: [], 2: []}
    worker = world.begin(started)
    assert worker.number == 0
    config = world.run.trial(0).config
    assert all(replace(t.config, seed=config.seed) != config for t in tried)
    assert started.state.best is None


# A kill at any moment


class Killed(BaseException):
    """What the test raises where kill -9 would end the search."""


@dataclass
class Script:
    """What the trials of a search give, whenever they are trained."""

    seed: int

    def accuracy(self, number: int, epoch: int) -> float:
        return random.Random(f"{self.seed} {number} {epoch}").random()

    def due(self, number: int, epoch: int) -> float:
        """Return when an epoch ends, so that trials overtake one another."""
        return epoch * random.Random(f"{self.seed} {number}").uniform(1, 3)

    def fails(self, number: int) -> bool:
        return number == 3


def play(world: World, script: Script) -> Tuner:
    """Search to the end, with two trials at a time, on a simulated clock."""
    clock = SimulatedClock()
    tuner = world.tuner(clock=clock)

    def train(given: Assignment) -> Iterator[Step]:
        worker = Worker(world, tuner, given)
        yield from worker.first_words()
        while not script.fails(given.number) and len(worker.history) < world.search.epochs:
            epoch = len(worker.history) + 1
            # What was due before the search was killed goes on in the order in which it was.
            yield script.due(given.number, epoch) - clock.now
            yield worker.ended(worker.train(script.accuracy(given.number, epoch)))
        state = "failed" if script.fails(given.number) else "completed"
        yield TrialEnded(number=given.number, state=state)

    for _ in run_simulated(tuner, clock, train, lambda running: len(running) < PLAN.count):
        pass
    return tuner


@pytest.fixture
def kill(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """Return a function that has the search killed before its n-th change of the run folder."""
    left = math.inf

    def killing(change: Any, concerns: Any) -> Any:
        def changed(path: Path, *args: Any, **kwargs: Any) -> Any:
            nonlocal left
            if concerns(path):
                left -= 1
                if left < 0:
                    raise Killed
            return change(path, *args, **kwargs)

        return changed

    def kill_before(num_changes: float) -> None:
        nonlocal left
        left = num_changes

    monkeypatch.setattr("os.fsync", lambda handle: None)
    monkeypatch.setattr(Path, "replace", killing(Path.replace, lambda path: True))
    # A temporary file is removed by a process that lives.
    monkeypatch.setattr(
        Path,
        "unlink",
        killing(Path.unlink, lambda path: path.name == "state.safetensors" and path.exists()),
    )
    return kill_before


def books(tuner: Tuner, run: Run) -> object:
    """Return all that must not depend on whether, and when, a search was killed."""
    assert not list(run.path.glob("trials/*/state.safetensors"))
    trials = [
        (t.number, t.status.state, t.status.stop, [(r.epoch, r.val_accuracy) for r in t.history])
        for t in run.trials()
    ]
    match tuner.scheduler:
        case Hyperband(brackets=brackets):
            seen: object = [bracket.rungs for bracket in brackets]
        case Median(averages=averages):
            seen = averages
        case asha:
            seen = asha.rungs
    best = tuner.state.best and (tuner.state.best[0], tuner.state.best[1].epoch)
    return trials, seen, tuner.state.ended, best, tuner.state.num_epochs


@pytest.mark.parametrize(
    ("scheduler", "is_lazy"),
    [
        *[(scheduler, False) for scheduler in ("asha", "asha-stop", "hyperband", "median")],
        *[(scheduler, True) for scheduler in ("asha", "asha-stop", "median")],
    ],
)
@pytest.mark.parametrize("stride", [7, pytest.param(1, marks=pytest.mark.slow)])
def test_a_search_killed_at_any_moment_decides_as_one_that_was_not(
    scheduler: str, is_lazy: bool, stride: int, tmp_path: Path, kill: Any
) -> None:
    search = replace(SEARCH, scheduler=scheduler, grace=2 if is_lazy else 1)
    script = Script(seed=1)

    def fresh(name: str) -> World:
        (tmp_path / name).mkdir()
        return World(tmp_path / name, search, is_lazy=is_lazy)

    whole = fresh("whole")
    expected = books(play(whole, script), whole.run)
    states = {trial.status.state for trial in whole.run.trials()}
    assert states == {"completed", "failed", "stopped"}
    num_whole = whole.trained.total()
    for moment in range(0, 200, stride):
        world = fresh(str(moment))
        world.run  # noqa: B018 - makes the folder, which is not what is killed
        num_kills = 0
        # The second kill comes soon, perhaps in the replay of the first.
        for num_changes in (moment, moment % 5):
            kill(num_changes)
            try:
                play(world, script)
            except Killed:
                num_kills += 1
        kill(math.inf)
        ended = {t.number for t in world.run.trials() if t.status.state not in OPEN}
        trained = Counter(world.trained)
        tuner = play(world, script)
        assert books(tuner, world.run) == expected, f"killed before change {moment}"
        assert not [key for key in world.trained - trained if key[0] in ended]
        # No more than two epochs lie between two rungs.
        most = PLAN.count * (2 if is_lazy else 1)
        assert world.trained.total() <= num_whole + num_kills * most
        for trial in world.run.trials():
            assert tuner.state.trials[trial.number].history == list(trial.history)
            trained_to = max((e for n, e in world.trained if n == trial.number), default=0)
            assert trained_to == len(trial.history)
        told = Counter(t.user_attrs["trial"] for t in world.sampler.study.trials)
        assert told == dict.fromkeys(range(6), 1)
        if not num_kills:
            break
    assert moment > 25, "the search was killed from its first change to its last"
