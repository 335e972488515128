"""Searches that promote, played to their end on a simulated clock."""

import math
import random
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from optuna.trial import TrialState as OptunaState
from ray.exceptions import OutOfMemoryError

from tests.test_tuner import SEARCH, World
from tuner.config import ModelConfig, SearchConfig, TrialConfig
from tuner.errors import ClusterError
from tuner.run.events import EpochEnded, Event, TrialEnded, TrialPromoted, TrialStarted
from tuner.run.state import SearchState
from tuner.run.trial import EpochMetrics
from tuner.tracking import tracked
from tuner.tuning.budget import Budget, Spending
from tuner.tuning.planning.simulated import SimulatedClock, Step, run_simulated
from tuner.tuning.proposers import FixedProposer
from tuner.tuning.ray_backend import driver
from tuner.tuning.resources import TrialResources
from tuner.tuning.sampling.sampler import Sampler
from tuner.tuning.schedulers import Asha, make_scheduler
from tuner.tuning.tuner import Assignment, Tuner

EPOCHS = 9
SLOT = TrialResources(cpus=1, gpus=0)


@dataclass(frozen=True)
class Played:
    """One trial: how long its epochs take, and how good it is after each."""

    seconds: float
    accuracies: tuple[float, ...]
    fails_after: int = EPOCHS
    """Epochs; the last for a trial that runs its course."""


played = st.builds(
    Played,
    seconds=st.sampled_from([1.0, 1.5, 4.0]),
    # Few values, so that many trials are equally good.
    accuracies=st.lists(
        st.sampled_from([0.1, 0.2, 0.3, 0.4, 0.9]), min_size=EPOCHS, max_size=EPOCHS
    ).map(tuple),
    fails_after=st.sampled_from([EPOCHS, EPOCHS, EPOCHS, 0, 2]),
)
searches = st.builds(
    SearchConfig,
    trials=st.just(0),
    epochs=st.just(EPOCHS),
    grace=st.integers(1, 3),
    reduction=st.integers(2, 4),
)


@dataclass
class Books:
    """What is seen of a search from its events, and what has to be so at each of them."""

    search: SearchConfig
    tuner: Tuner
    num_trials: int
    arrived: dict[int, dict[int, float]] = field(default_factory=dict)
    promoted: dict[int, list[int]] = field(default_factory=dict)
    paused: dict[int, int] = field(default_factory=dict)
    """Trial -> the rung where it waits."""
    events: list[Event] = field(default_factory=list)

    def rank(self, number: int, rung: int) -> int:
        values = self.arrived[rung]
        order = sorted(values, key=lambda one: (-values[one], one))
        return order.index(number) + 1

    def due(self) -> list[tuple[int, int]]:
        """Return the rung and the number of each trial that may be promoted, the best first."""
        found = []
        for rung, values in self.arrived.items():
            places = len(values) // self.search.reduction
            if len(self.promoted.get(rung, [])) < places:
                waiting = [n for n, at in self.paused.items() if at == rung]
                found += [(rung, n) for n in waiting if self.rank(n, rung) <= places]
        return sorted(found, key=lambda one: (-one[0], self.rank(one[1], one[0])))

    def is_in_order(self, number: int, rung: int) -> bool:
        """Whether a rung promotes a trial by its rank."""
        num_promoted = len(self.promoted.get(rung, []))
        if num_promoted >= len(self.arrived[rung]) // self.search.reduction:
            # No more will come, and it is the best.
            return num_promoted == 0 and self.rank(number, rung) == 1
        paused, self.paused = self.paused, {**self.paused, number: rung}
        due, self.paused = self.due(), paused
        return due[0] == (rung, number)

    def on(self, event: Event) -> None:
        number = event.number
        asha = self.tuner.scheduler
        assert isinstance(asha, Asha)
        match event:
            case EpochEnded(metrics=row) if row.epoch in asha.rungs:
                self.arrived.setdefault(row.epoch, {})[number] = row.val_accuracy
            case TrialStarted(attempt=1):
                assert not self.due(), "one that is due comes before a new one"
            case TrialPromoted(rung=rung):
                if not self.is_in_order(number, rung):
                    rows = self.tuner.state.trials[number].history
                    needed = (EPOCHS - len(rows)) * rows[-1].seconds
                    left = self.tuner.seconds_left()
                    assert needed <= left < math.inf, "it is the last chance to end in time"
                self.promoted.setdefault(rung, []).append(number)
                self.paused.pop(number, None)
            case TrialEnded(state="paused"):
                (rung,) = (
                    r for r in self.arrived if len(self.tuner.state.trials[number].history) == r
                )
                self.paused[number] = rung
            case TrialEnded():
                self.paused.pop(number, None)
        self.events.append(event)


def play(
    trials: Sequence[Played], search: SearchConfig, slots: int, seconds: float = float("inf")
) -> Books:
    """Search to the end."""
    search = replace(search, trials=len(trials))
    clock = SimulatedClock()
    configs = [TrialConfig(model=ModelConfig("cnn", {}), epochs=EPOCHS) for _ in trials]
    spending = Spending(Budget(trials=len(trials), seconds=seconds), clock=clock)
    tuner = Tuner(
        SearchState(search),
        FixedProposer(configs),
        make_scheduler(search),
        spending,
        lambda _: SLOT,
    )
    books = Books(search, tuner, len(trials))
    tuner.observers.append(books.on)

    def train(given: Assignment) -> Iterator[Step]:
        trial = trials[given.number]
        for epoch in range(given.num_epochs + 1, EPOCHS + 1):
            yield trial.seconds
            if epoch > trial.fails_after:
                yield TrialEnded(number=given.number, state="failed", reason=f"{given.number}")
            metrics = EpochMetrics(
                epoch=epoch,
                train_loss=1.0,
                val_loss=1.0,
                val_accuracy=trial.accuracies[epoch - 1],
                lr=0.1,
                seconds=trial.seconds,
                time=clock.now,
            )
            yield EpochEnded(number=given.number, metrics=metrics)
        yield TrialEnded(number=given.number, state="completed")

    most = max(1, len(trials) // search.reduction)
    for _ in run_simulated(tuner, clock, train, lambda running: len(running) < slots):
        first = [n for n, rung in books.paused.items() if rung == search.grace]
        passed = len(books.promoted.get(search.grace, []))
        is_of_use = not first or len(first) + passed <= most
        assert tuner.draining or is_of_use, "no state is kept that is of no use"
        assert set(tuner.paused) == set(books.paused)
        assert len(tuner.live) <= slots
    return books


@given(st.lists(played, min_size=1, max_size=25), searches, st.integers(1, 4))
def test_the_rules_of_promotion_hold_to_the_end_of_every_search(
    trials: list[Played], search: SearchConfig, slots: int
) -> None:
    books = play(trials, search, slots)
    state = books.tuner.state
    if books.tuner.draining == "broken":
        return
    assert not books.paused
    assert state.num_ended == len(trials)
    assert state.ended.keys() <= {"completed", "stopped", "failed"}
    for rung, values in books.arrived.items():
        assert len(books.promoted.get(rung, [])) <= max(1, len(values) // search.reduction)
    if all(trial.fails_after == EPOCHS for trial in trials):
        assert state.ended["completed"] >= 1, "a search of few trials trains one to the end"
    stops = {n: trial.status.stop for n, trial in state.trials.items() if trial.status.stop}
    for number, stop in stops.items():
        assert len(state.trials[number].history) == stop.rung
    again = play(trials, search, slots)
    assert [replace(e, time="") if hasattr(e, "time") else e for e in again.events] == [
        replace(e, time="") if hasattr(e, "time") else e for e in books.events
    ]


@given(st.lists(played, min_size=4, max_size=25), searches, st.integers(1, 4), st.floats(1.0, 40.0))
def test_what_waits_when_the_budget_is_spent_may_still_be_promoted(
    trials: list[Played], search: SearchConfig, slots: int, seconds: float
) -> None:
    books = play(trials, search, slots, seconds)
    state = books.tuner.state
    if books.tuner.draining == "budget":
        waiting = [n for n, t in state.trials.items() if t.status.state == "paused"]
        assert sorted(waiting) == sorted(books.tuner.paused)
        shown = {rung.epoch: rung for rung in state.rungs()}
        assert Counter(books.paused.values()) == Counter(
            {epoch: rung.paused for epoch, rung in shown.items() if rung.paused}
        )
        for epoch, rung in shown.items():
            promoted = [n for n in books.promoted.get(epoch, [])]
            came = books.arrived.get(epoch, {})
            ended = [n for n in came if n not in promoted and n not in books.paused]
            assert rung.arrived == len(came)
            assert rung.passed == len(came) - rung.paused - len(
                [
                    n
                    for n in came
                    if len(state.trials[n].history) == epoch
                    and state.trials[n].status.state in ("stopped", "failed")
                ]
            )
            assert all(state.trials[n].status.state in ("stopped", "failed") for n in ended)


@pytest.mark.parametrize(("num_trials", "completed"), [(1, 1), (2, 1), (27, 3), (81, 9)])
def test_as_many_trials_are_completed_as_the_reduction_leaves(
    num_trials: int, completed: int
) -> None:
    search = SearchConfig(epochs=9, grace=1, reduction=3)
    values = [random.Random(number).random() for number in range(num_trials)]
    trials = [Played(1.0, (value,) * EPOCHS) for value in values]
    books = play(trials, search, 1)
    assert books.tuner.state.ended["completed"] == completed
    best = max(range(num_trials), key=lambda number: values[number])
    assert books.tuner.state.trials[best].status.state == "completed"


def test_a_trial_that_is_the_best_at_its_rung_goes_on_in_its_place() -> None:
    trials = [Played(1.0, (value,) * EPOCHS) for value in (0.1, 0.2, 0.9, 0.3)]
    books = play(trials, SearchConfig(epochs=9, grace=1, reduction=3), 1)
    starts = [event.number for event in books.events if isinstance(event, TrialStarted)]
    assert starts == [0, 1, 2, 3], "of three that came, the third went on at once"
    assert [n for n, t in books.tuner.state.trials.items() if len(t.history) == 9] == [2]


def test_of_equal_trials_the_earlier_is_promoted_and_the_other_told_why() -> None:
    trials = [Played(1.0, (0.5,) * EPOCHS)] * 4
    books = play(trials, SearchConfig(epochs=9, grace=5, reduction=2), 1)
    reasons = [t.status.reason for t in books.tuner.state.trials.values()]
    late = "epoch 5: 0.5000, no place left, {} peers"
    assert reasons == ["", "", late.format(2), late.format(3)]


def test_the_remaining_epochs_are_those_of_the_promotions_to_come() -> None:
    trials = [Played(1.0, (value / 30,) * EPOCHS) for value in range(27)]
    state = SearchState(SearchConfig(trials=27, epochs=9, grace=1, reduction=3))
    books = play(trials, state.search, 1)
    total = sum(len(t.history) for t in books.tuner.state.trials.values())
    assert total == 27 + 9 * 2 + 3 * 6
    for event in books.events:
        state.apply(event)
        left = state.seconds_left(1)
        if isinstance(event, EpochEnded) and left is not None:
            assert left == pytest.approx(total - state.num_epochs)


# In a run folder


def promoting(folder: Path, **changes: Any) -> World:
    return World(folder, replace(SEARCH, scheduler="asha", **changes))


def waiting(world: World, tuner: Tuner, *accuracies: float) -> None:
    """Bring new trials to the first rung, where none is due before the last has come."""
    workers = [world.begin(tuner) for _ in accuracies]
    for worker, accuracy in zip(workers, accuracies, strict=True):
        worker.step(accuracy)


def states(world: World) -> list[str]:
    return [trial.status.state for trial in world.run.trials()]


def test_a_trial_whose_worker_is_lost_once_it_is_paused_waits_with_its_state(
    tmp_path: Path,
) -> None:
    world = promoting(tmp_path)
    tuner = world.tuner()
    worker = world.begin(tuner)
    assert tuner.on(worker.ended(worker.train(0.5))) == "pause"
    world.lose(tuner, 0)
    assert states(world) == ["paused"]
    assert world.run.trial(0).state.exists()
    assert not tuner.live


def test_a_trial_at_a_rung_waits_when_the_search_is_interrupted_and_goes_on_after(
    tmp_path: Path,
) -> None:
    world = promoting(tmp_path)
    tuner = world.tuner()
    waiting(world, tuner, 0.5)
    worker = world.begin(tuner)
    tuner.draining = "interrupted"
    assert not worker.step(0.9), "it would be due, and nothing starts any more"
    assert tuner.next(lambda running: True) == "done"
    assert states(world) == ["paused", "paused"]
    resumed = world.tuner()
    assert resumed.state.ended == {"paused": 2}
    assert [t.state for t in world.sampler.study.trials] == [OptunaState.PRUNED] * 2
    best = world.begin(resumed)
    assert (best.number, [row.epoch for row in best.history]) == (1, [1])
    assert world.run.trial(1).status.passed == 1
    assert world.begin(resumed).number == 2


def test_a_trial_promoted_at_once_is_shown_to_the_sampler_with_its_curve(tmp_path: Path) -> None:
    world = promoting(tmp_path, trials=9, epochs=9, reduction=3)
    tuner = world.tuner()
    waiting(world, tuner, 0.2, 0.1)
    worker = world.begin(tuner)
    assert worker.step(0.9), "of three that came, it goes on at once"
    assert worker.step(0.8)
    assert states(world) == ["paused", "paused", "running"]
    # The resumed search knows the same: the next epoch that is judged is the third.
    for sampler in (world.sampler, world.tuner().proposer):
        assert isinstance(sampler, Sampler)
        shown = {t.user_attrs["trial"]: t for t in sampler.study.get_trials()}
        assert [shown[number].state for number in range(3)] == [OptunaState.PRUNED] * 3
        assert [shown[number].value for number in range(3)] == [0.2, 0.1, 0.9]
        assert shown[2].intermediate_values == {1: 0.9}
    again = world.begin(world.tuner())
    assert (again.number, len(again.history)) == (2, 2)


def test_a_trial_cut_at_a_rung_before_its_report_is_judged_when_the_search_is_resumed(
    tmp_path: Path,
) -> None:
    world = promoting(tmp_path)
    tuner = world.tuner()
    waiting(world, tuner, 0.9)
    worker = world.begin(tuner)
    # The state was saved, and the disk too full for the other files.
    worker.train(0.1)
    tuner.draining = "interrupted"
    worker.finish("interrupted", reason="after epoch 0")
    resumed = world.tuner()
    assert states(world) == ["paused", "paused"]
    assert world.begin(resumed).number == 0, "the better one of the two at the rung"
    assert world.run.trial(1).status.passed == 0


def test_a_search_given_up_for_lack_of_memory_keeps_what_may_still_be_promoted(
    tmp_path: Path,
) -> None:
    world = promoting(tmp_path, trials=4)
    tuner = world.tuner()
    workers = [world.begin(tuner) for _ in range(4)]
    for worker, accuracy in zip(workers[:2], (0.5, 0.4), strict=True):
        assert not worker.step(accuracy)

    def kill() -> None:
        raise RuntimeError from OutOfMemoryError("killed")

    with pytest.raises(ClusterError, match="low on memory"):
        driver._run_over_losses(kill, tuner, world.recorder, max_failures=0)
    assert states(world) == ["paused", "paused", "interrupted", "interrupted"]
    assert world.begin(world.tuner()).number == 2


@pytest.mark.parametrize("scheduler", ["asha-stop", "none"])
def test_what_waits_is_taken_up_where_nothing_is_promoted_any_more(
    scheduler: str, tmp_path: Path
) -> None:
    world = promoting(tmp_path)
    waiting(world, world.tuner(), 0.5)
    world.search = replace(world.search, scheduler=scheduler)
    world.run.update(search=world.search)
    resumed = world.tuner()
    assert not resumed.paused
    assert [world.begin(resumed).number for _ in range(2)] == [0, 1]


def test_a_paused_trial_whose_state_was_removed_begins_anew(tmp_path: Path) -> None:
    world = promoting(tmp_path)
    waiting(world, world.tuner(), 0.5)
    world.run.trial(0).state.unlink()
    resumed = world.tuner()
    again = world.begin(resumed)
    assert (again.number, again.history) == (0, [])
    assert not again.step(0.5)
    assert states(world) == ["paused"]


def test_fewer_trials_after_a_resume_stop_what_can_be_promoted_no_more(tmp_path: Path) -> None:
    world = promoting(tmp_path)
    tuner = world.tuner()
    workers = [world.begin(tuner) for _ in range(3)]
    tuner.draining = "interrupted"
    for worker, accuracy in zip(workers, (0.1, 0.9, 0.5), strict=True):
        assert not worker.step(accuracy)
    world.tuner()
    assert states(world) == ["paused"] * 3, "of six trials, three may be promoted"
    shorter = world.tuner(trials=3)
    assert states(world) == ["stopped", "paused", "stopped"], "of three, one"
    assert [trial.state.exists() for trial in world.run.trials()] == [False, True, False]
    assert world.begin(shorter).number == 1


def test_trackers_hear_of_a_paused_trial_that_is_stopped_later(tmp_path: Path) -> None:
    reader = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    world = promoting(tmp_path, trials=3)
    tuner = world.tuner()
    said: list[str] = []
    with tracked(world.run, (), tuner.state, tuner.observers, said.append):
        waiting(world, tuner, 0.1, 0.2)
        waiting(world, tuner, 0.9)
    assert said == []
    assert states(world)[0] == "stopped"
    events = reader.EventAccumulator(str(world.run.path / "tensorboard" / "0000"))
    events.Reload()
    (end,) = events.Tensors("end/text_summary")
    assert end.tensor_proto.string_val[0].decode().startswith("stopped: ")


def test_one_that_begins_anew_was_promoted_from_no_rung(tmp_path: Path) -> None:
    world = promoting(tmp_path)
    tuner = world.tuner()
    waiting(world, tuner, 0.5, 0.4)
    worker = world.begin(tuner)
    assert worker.number == 0
    assert not worker.step(0.5)
    world.run.trial(0).state.unlink()
    assert not world.begin(world.tuner()).step(0.3)
    assert world.begin(world.tuner()).number == 1, "the better one of the two at the rung"


def test_trials_that_passed_a_rung_without_promotion_take_no_place_from_later_ones(
    tmp_path: Path,
) -> None:
    world = World(tmp_path, replace(SEARCH, scheduler="none"))
    tuner = world.tuner()
    for _ in range(3):
        worker = world.begin(tuner)
        assert [worker.step(0.1) for _ in range(4)] == [True] * 4
        worker.finish()
    world.search = replace(world.search, scheduler="asha")
    world.run.update(search=world.search)
    assert world.begin(world.tuner()).step(0.9), "the best of four that came to the first rung"
    assert world.run.trial(3).status.passed == 1
    # The promoted trial alone takes a place when the search is resumed once more.
    asha = world.tuner().scheduler
    assert isinstance(asha, Asha)
    assert {epoch: rung.num_promoted for epoch, rung in asha.rungs.items()} == {1: 1, 2: 0}
