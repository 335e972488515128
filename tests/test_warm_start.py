"""What a search takes over from earlier runs, whose spaces and images may be others."""

import io
import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from optuna.trial import TrialState as OptunaState
from rich.console import Console

from tests.conftest import context_of, record_of
from tests.test_sampler import curve
from tuner.cli.search import repeated
from tuner.config import AdamW, DataConfig, Metric, ModelConfig, SearchConfig, Sgd, TrialConfig
from tuner.data.splits import Splits
from tuner.errors import DataError
from tuner.models.families import FAMILIES
from tuner.run.run import Run
from tuner.run.trial import TrialStatus, write_history, write_status, write_trial
from tuner.schema import build, to_plain
from tuner.space import RandomTrial, SearchSpace, load_space
from tuner.tuning.request import make_search_request
from tuner.tuning.sampling.sampler import Sampler
from tuner.tuning.session import recorded_earlier_run
from tuner.tuning.warm_start import add_earlier_trials, can_teach, choose, read_runs, with_portfolio

SPACE = """
search: {trials: 32, epochs: 4, grace: 1}
baseline:
  - optimizer: {sgd: {lr: 0.3}}
space:
  model: {cnn: {stages: 2, width: {int: [8, 32]}}}
  optimizer:
    choice:
      sgd: {lr: {float: [0.01, 1.0], log: true}}
      adamw: {lr: {float: [0.001, 0.1], log: true}}
  label_smoothing: 0.1
"""


def config(width: int, lr: float, **others: Any) -> TrialConfig:
    params = to_plain(build(FAMILIES["cnn"], {"stages": 2, "width": width}))
    model = ModelConfig("cnn", params)
    return TrialConfig(**{"model": model, "epochs": 4, "optimizer": Sgd(lr=lr), **others})


def make_run(
    path: Path, splits: Splits, trials: Sequence[tuple[TrialConfig, float]], **changes: Any
) -> Run:
    """Return a run whose trials reached these accuracies."""
    record = record_of(
        splits,
        DataConfig(source="digits"),
        path.parent,
        name=path.name,
        command="cifar-tune search",
        space="space.yaml",
        search=SearchConfig(trials=len(trials), epochs=4, grace=1),
        status="finished",
    )
    run = Run.create(path, replace(record, **changes), SPACE)
    for number, (one, accuracy) in enumerate(trials):
        write_trial(run.trial_path(number), one)
        write_history(run.trial_path(number), curve(0.0, 0.0, 0.0, accuracy))
        write_status(run.trial_path(number), TrialStatus(state="completed"))
    return run


def started(
    space: SearchSpace, runs: Sequence[Run], splits: Splits
) -> tuple[Sampler, SearchSpace, list[str]]:
    """Start a search from runs; return its sampler, its space, and what was said."""
    console = Console(file=io.StringIO(), width=300)
    earlier = read_runs(runs, space.search, splits)
    space = with_portfolio(space, earlier, Path("runs"), console)
    sampler = Sampler(space, space.search)
    if len(earlier) == 1 and can_teach(earlier[0], space.search):
        add_earlier_trials(sampler, earlier[0], console)
    assert isinstance(console.file, io.StringIO)
    return sampler, space, console.file.getvalue().splitlines()


def rates(sampler: Sampler, count: int) -> list[float]:
    found = [sampler.ask(number) for number in range(count)]
    return [one.optimizer.lr for one in found if one]


@pytest.fixture
def space() -> SearchSpace:
    return load_space(Path("space.yaml"), text=SPACE)


@given(st.integers(1, 5), st.integers(5, 12), st.integers(0, 100))
def test_each_run_s_best_is_among_the_first(runs: int, each: int, seed: int) -> None:
    # What a run has not tried counts as its last.
    regrets = np.ones((runs, runs * each))
    for run in range(runs):
        order = np.random.default_rng((seed, run)).permutation(each)
        regrets[run, run * each : (run + 1) * each] = order / each
    chosen = choose(regrets, 8)
    assert len(set(chosen)) == len(chosen) == min(8, runs * each)
    firsts = chosen[:runs]
    assert {column // each for column in firsts} == set(range(runs))
    assert all(regrets[column // each, column] == 0 for column in firsts)


def test_one_that_is_good_everywhere_goes_before_the_best_of_each() -> None:
    regrets = np.array([[0.0, 1.0, 0.1], [1.0, 0.0, 0.1]])
    assert choose(regrets, 3)[0] == 2


def test_the_best_of_several_runs_are_tried_first_by_rank(
    space: SearchSpace, digits: Splits, tmp_path: Path
) -> None:
    # Of other images, on which accuracies are lower throughout.
    hard = make_run(
        tmp_path / "hard",
        digits,
        [(config(8, 0.05), 0.21), (config(9, 0.06), 0.22), (config(10, 0.07), 0.12)],
        data_fingerprint="others",
    )
    easy = make_run(tmp_path / "easy", digits, [(config(8, 0.5), 0.97), (config(9, 0.6), 0.96)])
    sampler, tried, said = started(space, [hard, easy], digits)
    assert said == ["Tries first: 5 configurations of hard, easy."]
    assert sorted(rates(sampler, 6)[:2]) == [0.06, 0.5], "the best of each"
    fresh = Sampler(tried, tried.search)
    first = [fresh.ask(number) for number in range(6)]
    assert [one.label_smoothing for one in first if one] == [0.1] * 6, "as this space has it"
    assert [one.optimizer.lr for one in first if one][5] == 0.3, "its own baseline comes after them"
    assert not fresh.study.get_trials(states=[1]), "the sampler has learnt of no accuracy"


def test_a_search_that_goes_on_tries_what_is_left_of_them(
    space: SearchSpace, digits: Splits, tmp_path: Path
) -> None:
    runs = [
        make_run(tmp_path / name, digits, [(config(8, lr), 0.5), (config(9, lr), 0.4)])
        for name, lr in (("one", 0.05), ("two", 0.5))
    ]
    sampler, tried, _ = started(space, runs, digits)
    whole = rates(sampler, 4)
    again = load_space(Path("space.yaml"), text=tried.resolved())
    resumed = Sampler(again, again.search)
    first = Sampler(tried, tried.search).ask(0)
    assert first is not None
    assert resumed.add(first, "completed", curve(0.1), 0)
    assert [one.optimizer.lr for one in (resumed.ask(n) for n in (1, 2, 3)) if one] == whole[1:]


def test_no_more_than_a_quarter_of_the_trials_and_eight(
    space: SearchSpace, digits: Splits, tmp_path: Path
) -> None:
    trials = [(config(8, 0.01 + index / 100), index / 100) for index in range(20)]
    runs = [make_run(tmp_path / "one", digits, trials), make_run(tmp_path / "two", digits, [])]
    for trials_asked, expected in ((100, 8), (12, 3), (2, 1)):
        search = replace(space.search, trials=trials_asked)
        _, tried, _ = started(replace(space, search=search), runs, digits)
        assert len(tried.baseline) - len(space.baseline) == expected


def test_what_does_not_fit_is_told_with_its_reason(
    space: SearchSpace, digits: Splits, tmp_path: Path
) -> None:
    resnet = ModelConfig("resnet", {"depth": 10})
    trials = [
        (config(8, 0.1), 0.5),
        (config(64, 0.1), 0.6),
        (config(65, 0.1), 0.6),
        (config(8, 0.1, model=resnet), 0.9),
        (config(8, 0.1, optimizer=AdamW(lr=0.5)), 0.9),
    ]
    runs = [make_run(tmp_path / name, digits, trials) for name in ("one", "two")]
    sampler, _, said = started(space, runs, digits)
    assert said == [
        "Tries first: 1 configuration of one, two.",
        "8 of 10 trials do not fit this space: 4 by model.cnn.width, 2 by model, "
        "2 by optimizer.adamw.lr.",
    ]
    assert rates(sampler, 2) == [0.1, 0.3]


def test_one_run_alone_teaches_the_sampler(
    space: SearchSpace, digits: Splits, tmp_path: Path
) -> None:
    trials = [
        (config(8, 0.5, label_smoothing=0.1), 0.9),
        (config(9, 0.2, label_smoothing=0.1), 0.8),
    ]
    run = make_run(tmp_path / "one", digits, trials)
    sampler, tried, said = started(space, [run], digits)
    assert tried is space, "how good they are is known"
    assert said == ["Learnt from 2 trials of one."]
    assert [trial.value for trial in sampler.study.trials] == [0.9, 0.8]
    assert rates(sampler, 1) == [0.3]
    # On other images they are to be tried, too.
    run.update(data_fingerprint="others")
    sampler, tried, said = started(space, [run], digits)
    assert said == ["Tries first: 2 configurations of one.", "Learnt from 2 trials of one."]
    assert rates(sampler, 3) == [0.5, 0.2, 0.3]


def test_what_differs_in_a_fixed_value_is_tried_first_even_from_a_comparable_run(
    space: SearchSpace, digits: Splits, tmp_path: Path
) -> None:
    others = [(config(8, 0.5), 0.9), (config(9, 0.2), 0.8)]
    run = make_run(tmp_path / "one", digits, others)
    sampler, _, said = started(space, [run], digits)
    assert said == [
        "Tries first: 2 configurations of one.",
        "Learnt from 0 trials of one; 2 are outside this space.",
    ]
    assert rates(sampler, 3) == [0.5, 0.2, 0.3]
    # What the sampler learns from is not tried again, and what does not fit is told of.
    known = (config(10, 0.05, label_smoothing=0.1), 0.7)
    run = make_run(tmp_path / "two", digits, [*others, known, (config(64, 0.1), 0.6)])
    sampler, _, said = started(space, [run], digits)
    assert said == [
        "Tries first: 2 configurations of two.",
        "1 of 4 trials do not fit this space: 1 by model.cnn.width.",
        "Learnt from 1 trial of two; 3 are outside this space.",
    ]
    assert rates(sampler, 3) == [0.5, 0.2, 0.3]


def test_a_sampler_that_learns_nothing_tries_first_what_was_best_in_one_run(
    digits: Splits, tmp_path: Path
) -> None:
    trials = [(config(8, 0.2), 0.8), (config(9, 0.5), 0.9)]
    run = make_run(tmp_path / "one", digits, trials)
    space = load_space(Path("space.yaml"), ["search.sampler=random"], text=SPACE)
    sampler, _, said = started(space, [run], digits)
    assert said == ["Tries first: 2 configurations of one."]
    assert rates(sampler, 3) == [0.5, 0.2, 0.3]


def test_a_search_that_goes_on_is_taught_again(
    space: SearchSpace, digits: Splits, tmp_path: Path
) -> None:
    one = make_run(tmp_path / "one", digits, [(config(8, 0.02), 0.9), (config(16, 0.5), 0.8)])
    run = make_run(tmp_path / "next", digits, [(config(8, 0.1), 0.5)], taught_by="one")
    request: Any = SimpleNamespace(storage=tmp_path, name="next", search=space.search)
    said = io.StringIO()
    console = Console(file=said, width=500)
    for place in ("one", str(one.path)):
        run.update(taught_by=place)
        (earlier,) = recorded_earlier_run(request, digits, console)
        assert [trial.number for trial in earlier.trials] == [0, 1]
    shutil.rmtree(one.path)
    assert recorded_earlier_run(request, digits, console) == []
    assert said.getvalue().startswith(f"Continues without what {one.path} has taught")


@pytest.mark.parametrize(
    "place", ["{outside}/one", "http://169.254.169.254/x", "s3://evil/x", "..", "link"]
)
def test_a_record_alone_leads_to_no_run_outside_its_storage(
    place: str, space: SearchSpace, digits: Splits, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    outside = tmp_path / "outside"
    place = place.format(outside=outside)
    one = make_run(outside / "one", digits, [(config(8, 0.02), 0.9)])
    (storage := tmp_path / "runs").mkdir()
    (storage / "link").symlink_to(one.path)
    run = make_run(storage / "next", digits, [(config(8, 0.1), 0.5)], taught_by=place)
    request: Any = SimpleNamespace(storage=storage, name="next", search=space.search)
    said = io.StringIO()
    monkeypatch.setattr("tuner.tuning.session.read_runs", None)
    assert recorded_earlier_run(request, digits, Console(file=said, width=500)) == []
    assert said.getvalue() == (
        f"Continues without what {place} has taught: it is not in {storage}, and has to be given "
        "again, by --warm-start\n"
    )
    given = make_search_request(
        space,
        space_name="space.yaml",
        stem="space",
        storage=storage,
        resumed=run,
        warm_start=(one,),
        command="",
    )
    assert given.taught_by == str(one.path)
    run.outside_words = given.outside_words
    assert context_of(run.resume_command()).params["warm_start"] == (str(one.path),)
    beside = replace(given, warm_start=(run,))
    assert (beside.taught_by, beside.outside_words) == ("next", ())


@pytest.mark.parametrize("metric", ["accuracy", "nll"])
def test_of_other_images_the_sampler_learns_the_order_alone(
    metric: Metric, digits: Splits, tmp_path: Path
) -> None:
    trials = [(config(8, lr, label_smoothing=0.1), 0.9 + lr) for lr in (0.02, 0.04, 0.06)]
    run = make_run(tmp_path / "one", digits, trials, data_fingerprint="others")
    space = load_space(Path("space.yaml"), [f"search.metric={metric}"], text=SPACE)
    sampler, _, _ = started(space, [run], digits)
    known = sampler.study.get_trials()
    order = run.by(metric).ranked()
    values = {trial.params["optimizer.sgd.lr"]: trial.value for trial in known}
    told = [values[trial.config.optimizer.lr] for trial in order]
    assert told == sorted(told, reverse=metric == "accuracy")
    with sampler._storage.drawing():
        drawn_from = sampler.study.get_trials()
    # Whatever this search finds out is complete to TPE, and so better than these.
    assert {trial.state for trial in drawn_from} == {OptunaState.PRUNED}


def test_what_another_space_has_as_text_does_not_fit_a_range(
    space: SearchSpace, digits: Splits, tmp_path: Path
) -> None:
    trials: list[tuple[TrialConfig, float]] = []
    for width in ("wide", [8], True, 8):
        params = {**config(8, 0.1).model.params, "width": width}
        trials.append((config(8, 0.1, model=ModelConfig("cnn", params)), 0.5))
    runs = [make_run(tmp_path / name, digits, trials) for name in ("one", "two")]
    # A copy is called as it was asked for.
    runs[0].update(name="two\nLearnt from 3 trials of three.")
    _, _, said = started(space, runs, digits)
    assert said == [
        "Tries first: 1 configuration of one, two.",
        "6 of 8 trials do not fit this space: 6 by model.cnn.width.",
    ]


def test_an_earlier_version_s_run_is_ranked_by_images_that_have_moved(
    space: SearchSpace, finished_run: Run, digits: Splits
) -> None:
    search = replace(space.search, metric="worst_class")
    for trial in finished_run.trials():
        rows = [
            replace(row, val_worst_class=None, val_macro_f1=None, val_balanced_accuracy=None)
            for row in trial.history
        ]
        write_history(trial.path, rows)
        (trial.path / "digests.json").unlink()
    gone = replace(finished_run.record.data, source="/gone")
    finished_run.update(data=gone)
    (one,) = read_runs([finished_run], search, digits)
    assert all(trial.best and trial.best.val_worst_class is not None for trial in one.trials)
    finished_run.update(data_fingerprint="others")
    with pytest.raises(DataError, match=r"--data or --data-dir says where") as told:
        read_runs([finished_run], search, digits)
    assert "tiny did not record accuracy of the worst class" in str(told.value)


def test_several_runs_may_follow_one_option() -> None:
    def read(line: str) -> str:
        return " ".join(repeated("--warm-start", line.split()))

    assert read("--warm-start a b x.y=3") == "--warm-start a --warm-start b x.y=3"
    assert read("--warm-start=a b --quiet c") == "--warm-start=a --warm-start b --quiet c"
    assert read("--warm-start a --warm-start b") == "--warm-start a --warm-start b"
    assert read("k=v --name n -- --warm-start a b") == "k=v --name n -- --warm-start a b"
    assert read("--warm-start") == "--warm-start"


def test_a_configuration_of_another_space_is_sampled_as_this_one_has_it(
    space: SearchSpace, digits: Splits, tmp_path: Path
) -> None:
    known = config(16, 0.05, batch_size=32)
    runs = [make_run(tmp_path / name, digits, [(known, 0.5)]) for name in ("one", "two")]
    _, tried, _ = started(space, runs, digits)
    drawn = tried.sample(RandomTrial(params=tried.baseline_params(0)), epochs=4, seed=0, baseline=0)
    assert (drawn.model.params["width"], drawn.optimizer.lr, drawn.batch_size) == (16, 0.05, 128)
