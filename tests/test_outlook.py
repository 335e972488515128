"""What going on would bring, and a search that ends because that is not worth it."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import click
import numpy as np
import pytest
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st

from tests.test_tuner import SEARCH, World
from tuner.cli import cli
from tuner.cli.distill import distill as distill_command
from tuner.cli.plan import plan as plan_command
from tuner.cli.search import search as search_command
from tuner.run.outlook import COUNTED, MIN_TRIALS, expected_gain, outlook_of, why_not_go_on
from tuner.run.run import Run
from tuner.run.trial import write_history
from tuner.space import load_space
from tuner.tuning.refit import make_refit_request
from tuner.tuning.tuner import Tuner

scores = st.lists(st.floats(0, 0.999), min_size=MIN_TRIALS, max_size=40)


@given(scores, st.floats(1, 2), st.floats(0.1, 1))
def test_a_gain_goes_with_the_scale_of_the_errors(
    values: list[float], ratio: float, scale: float
) -> None:
    gain = expected_gain(values, ratio, "accuracy")
    assert gain is not None
    assert 0 <= gain <= 1 - max(values)
    smaller = expected_gain([1 - scale * (1 - value) for value in values], ratio, "accuracy")
    assert smaller == pytest.approx(scale * gain, abs=1e-6)
    assert expected_gain(values, 1.0, "accuracy") == 0
    assert gain <= (expected_gain(values, 2 * ratio, "accuracy") or 0.0)
    # Scores of NLL are below 0.
    assert expected_gain([value - 1 for value in values], ratio, "nll") == pytest.approx(gain)


def test_of_independent_draws_it_is_a_little_high_for_samplers_learn() -> None:
    generator = np.random.default_rng(0)
    gains = [expected_gain(generator.uniform(size=40), 1.5, "accuracy") for _ in range(4000)]
    # The least of n errors in [0, 1] is 1 / (n + 1) on average.
    came = 1 / 41 - 1 / 61
    assert came < np.mean(gains) < 1.5 * came


def test_too_few_trials_tell_nothing() -> None:
    values = [0.5] * (MIN_TRIALS - 1)
    assert expected_gain(values, 2.0, "accuracy") is None
    assert why_not_go_on(values, 0.9, 1.0, "accuracy") == ""
    assert why_not_go_on([*values, 0.5], 0.9, 1.0, "accuracy")
    assert why_not_go_on([*values, 0.5], 0.2, 1.0, "accuracy") == "", "it has hardly begun"


def rising(number: int) -> float:
    return 0.2 + number / 100


def level(number: int) -> float:
    return 0.2 + number / 100 if number < 8 else 0.27


def play(world: World, accuracy: Callable[[int], float]) -> Tuner:
    """Search to the end, one trial after the other."""
    tuner = world.tuner()
    while not tuner.is_draining() and tuner.has_more:
        worker = world.begin(tuner)
        for _ in range(world.search.epochs):
            assert worker.step(accuracy(worker.number))
        worker.finish()
    return tuner


@pytest.fixture
def world(tmp_path: Path) -> World:
    search = replace(SEARCH, trials=32, scheduler="none", patience=0.1)
    return World(tmp_path, search)


def test_a_search_without_hope_ends_and_says_why(world: World) -> None:
    tuner = play(world, level)
    assert MIN_TRIALS <= tuner.num_started < 32
    assert tuner.draining == "patience"
    assert "to bring +0.00 points, less than the 0.1 of --patience" in tuner.reason
    assert tuner.next(lambda running: True) == "done"


def test_one_that_has_come_to_its_end_was_not_ended(world: World) -> None:
    world.search = replace(world.search, trials=MIN_TRIALS)
    tuner = play(world, level)
    assert tuner.next(lambda running: True) == "done"
    assert (tuner.state.num_done, tuner.draining, tuner.reason) == (MIN_TRIALS, "", "")
    assert world.tuner().draining == ""


def test_no_search_ends_before_a_trial_was_trained_to_its_end(world: World) -> None:
    # On many slots all come to the first rung before one is promoted.
    world.search = replace(world.search, scheduler="asha")
    world.run.update(search=world.search)
    tuner = world.tuner()
    workers = [world.begin(tuner) for _ in range(20)]
    for worker in workers:
        worker.step(0.3)
    assert not tuner.draining
    while not tuner.is_draining() and tuner.has_more:
        worker = world.begin(tuner)
        while len(worker.history) < world.search.epochs and worker.step(0.3):
            pass
        if len(worker.history) == world.search.epochs:
            worker.finish()
    assert tuner.draining == "patience"
    assert tuner.state.ended["completed"] == 1


def test_a_trial_that_was_promoted_counts_again_when_it_waits_or_has_ended(world: World) -> None:
    world.search = replace(world.search, scheduler="asha")
    tuner = world.tuner()

    def counted() -> set[int]:
        return {t.number for t in world.run.trials() if t.status.state in COUNTED}

    workers = [world.begin(tuner) for _ in range(MIN_TRIALS)]
    for worker in workers:
        assert not worker.step(0.5 - worker.number / 100)
    assert tuner._reached.keys() == counted() == set(range(MIN_TRIALS))
    promoted = [world.begin(tuner) for _ in range(3)]
    assert tuner._reached.keys() == counted() == set(range(3, MIN_TRIALS))
    assert not promoted[2].step(0.6)
    assert tuner._reached.keys() == counted() == set(range(2, MIN_TRIALS))
    assert world.tuner()._reached == tuner._reached


def test_one_that_gets_better_goes_on_and_so_does_one_without_patience(
    world: World, tmp_path: Path
) -> None:
    assert play(world, rising).num_started == 32
    other = World(tmp_path / "other", replace(world.search, patience=0.0))
    (tmp_path / "other").mkdir()
    assert play(other, level).num_started == 32


def test_it_ends_again_when_it_is_resumed_unless_that_is_asked_for(world: World) -> None:
    num_started = play(world, level).num_started
    again = world.tuner()
    assert (again.draining, again.num_started) == ("patience", num_started)
    # With more to come, a quarter of it is more.
    assert world.tuner(trials=1000).draining == ""
    world.run.update(search=replace(world.search, patience=0.0))
    assert world.tuner().draining == ""


def test_a_refit_has_no_patience(finished_run: Run) -> None:
    finished_run.update(search=replace(finished_run.record.search, patience=0.5))
    request = make_refit_request(finished_run, command="", top=1, seeds=1)
    assert request.search.patience == 0


def test_a_run_says_what_going_on_would_bring(finished_run: Run) -> None:
    def told() -> str:
        run = Run.open(finished_run.path)
        return outlook_of(run, run.ranked())

    assert told() == "", "it has not been searched for a second"
    finished_run.update(active_seconds=90.0)
    assert told() == (
        "The gain of continuing can be estimated from 12 scored trials; there are 3 so far."
    )
    (first, *_) = finished_run.ranked()
    for number in range(3, 24):
        path = finished_run.trial_path(number)
        path.mkdir()
        for name in ("config.json", "status.json"):
            text = (first.path / name).read_text().replace('"trial": 1', f'"trial": {number}')
            (path / name).write_text(text)
        rows = [replace(row, val_accuracy=number / 100) for row in first.history]
        write_history(path, rows)
    assert told().startswith("As long again, 0:01:30, would bring about +")
    finished_run.update(active_seconds=7200.0)
    assert told().startswith("Another hour would bring about +")
    finished_run.update(reason="there was no hope")
    result = CliRunner().invoke(cli, ["show", "tiny", "--storage", str(finished_run.path.parent)])
    assert "Another hour would bring about +" in result.stdout
    assert "Ended: there was no hope." in result.stdout
    assert "search --resume --name tiny --patience 0" in result.stdout


def test_patience_may_stand_alone_or_in_the_space() -> None:
    def read(*words: str) -> object:
        context = search_command.make_context("search", list(words))
        return context.params["patience"]

    assert read() is None
    assert read("--patience", "--quiet") == 0.1
    assert read("--patience", "0.5", "search.trials=3") == 0.5
    assert read("--patience", "search.trials=3") == 0.1
    for words in (["--patience=-1"], ["--patience", "-1"], ["--patience", "-inf"]):
        with pytest.raises(click.BadParameter, match=r"is not in the range x>=0|not a finite"):
            read(*words)
    for command, words in ((plan_command, []), (distill_command, ["--into", "cnn"])):
        assert command.make_context("", ["--patience", *words]).params["patience"] == 0.1
    text = "{search: {patience: 0.2}, space: {model: cnn, optimizer: sgd}}"
    assert load_space(Path("space.yaml"), text=text).search.patience == 0.2
