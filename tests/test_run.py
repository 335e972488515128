"""The run folder: what is written comes back, the best trials are found, nothing is overwritten."""

import dataclasses
import html
import io
import json
import math
import re
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.conftest import Call, context_of
from tuner.cli.ensemble_tables import print_ensemble
from tuner.cli.trials_table import print_next
from tuner.config import AdamW, DataConfig, ModelConfig, SearchConfig, TrialConfig
from tuner.errors import NoUsableTrials, TunerError, UsageError
from tuner.run.resuming import storage_words
from tuner.run.run import (
    Run,
    check_name_free,
    find_run,
    leader,
    leaderboard,
    list_runs,
    open_runs,
    write_parquet,
)
from tuner.run.run_record import SCHEMA_VERSION, Reading, RunRecord
from tuner.run.trial import (
    LONGEST_EPOCH,
    EpochMetrics,
    Stop,
    TrialState,
    TrialStatus,
    best_row,
    read_history,
    write_history,
    write_status,
    write_trial,
)

CONFIG = TrialConfig(
    model=ModelConfig("cnn", {"stages": 2, "norm": "none"}), epochs=3, optimizer=AdamW(lr=0.01)
)
LOSSES = st.floats(allow_nan=True, allow_infinity=True)
NUMBERS = st.floats(0, allow_infinity=False)
ROWS = st.builds(
    EpochMetrics,
    epoch=st.integers(1, 1000),
    train_loss=LOSSES,
    # From few values, so that ties come up.
    val_loss=st.sampled_from([0.1, 0.5, 0.5000001, 3.0, math.nan, math.inf]),
    val_accuracy=st.sampled_from([0.0, 0.3, 0.7, 0.7000001, 1.0]),
    lr=NUMBERS,
    seconds=st.floats(0, LONGEST_EPOCH),
    time=NUMBERS,
)


def row(epoch: int = 1, accuracy: float = 0.5, loss: float = 1.0) -> EpochMetrics:
    return EpochMetrics(
        epoch=epoch,
        train_loss=1.0,
        val_loss=loss,
        val_accuracy=accuracy,
        lr=0.1,
        seconds=2.0,
        time=1.7e9,
    )


def record(**changes: Any) -> RunRecord:
    given = RunRecord(
        name="run",
        command="cifar-tune search --space 'räv.yaml'",
        space="räv.yaml",
        search=SearchConfig(trials=4, sampler="random"),
        data=DataConfig(source="digits", image_size=16),
        data_dir="/data",
        data_fingerprint="f" * 64,
        split_fingerprint="0" * 64,
        num_train=90,
        num_val=10,
        versions={"torch": "2.11"},
        hardware={"gpus": ["H100"], "cpus": 2},
        started="2026-01-02T03:04:05.678+00:00",
    )
    return dataclasses.replace(given, **changes)


def make_run(storage: Path, name: str = "run", **changes: Any) -> Run:
    return Run.create(storage / name, record(name=name, **changes), "space: {}\n")


def add_trial(
    run: Run,
    number: int,
    accuracy: float = 0.5,
    loss: float = 1.0,
    *,
    state: TrialState = "completed",
    config: TrialConfig = CONFIG,
    has_checkpoint: bool = True,
) -> None:
    path = run.trial_path(number)
    write_trial(path, config)
    write_status(path, TrialStatus(state=state, num_parameters=100 + number))
    # The best epoch is the first one, so that the last one's figures would be the wrong ones.
    write_history(path, [row(1, accuracy, loss), row(2, accuracy / 2, 2 * loss)])
    np.save(path / "val_probs.npy", np.full((10, 2), 0.5, dtype=np.float16))
    if has_checkpoint:
        (path / "checkpoint.safetensors").write_bytes(b"weights")


def numbers_of_top(run: Run, k: int) -> list[int]:
    return [trial.number for trial in run.top(k)]


@pytest.fixture
def run(tmp_path: Path) -> Run:
    return make_run(tmp_path)


# The folder


def test_a_run_comes_back_as_it_was_made(run: Run) -> None:
    opened = Run.open(run.path)
    assert opened.record == run.record == record()
    assert opened.path == run.path
    assert (run.path / "space.yaml").read_text() == "space: {}\n"


def test_an_update_is_written_and_the_rest_stays(run: Run) -> None:
    run.update(status="finished", finished="2026-01-02T04:00:00.000+00:00")
    expected = record(status="finished", finished="2026-01-02T04:00:00.000+00:00")
    assert Run.open(run.path).record == run.record == expected


def test_a_new_run_is_not_put_over_an_old_one(run: Run) -> None:
    run.update(git_commit="abc")
    with pytest.raises(UsageError, match="Choose another --name") as caught:
        make_run(run.path.parent)
    assert caught.value.exit_code == 2
    assert str(run.path) in str(caught.value)
    assert Run.open(run.path).record.git_commit == "abc"
    with pytest.raises(UsageError, match="Choose another --name"):
        check_name_free(run.path.parent, run.path.name)
    check_name_free(run.path.parent, "another")


def test_a_run_is_not_put_over_anything_else(tmp_path: Path) -> None:
    (tmp_path / "run").write_text("mine")
    with pytest.raises(UsageError, match="--name"):
        make_run(tmp_path)
    assert (tmp_path / "run").read_text() == "mine"


def test_a_storage_that_cannot_hold_folders_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(UsageError, match="Choose another --storage"):
        make_run(tmp_path / "file")


def test_a_later_version_is_refused(run: Run) -> None:
    run.update(schema_version=SCHEMA_VERSION + 1)
    with pytest.raises(UsageError, match="upgrade"):
        Run.open(run.path)


def test_what_version_1_called_asha_is_the_variant_that_stops(run: Run) -> None:
    assert run.record.search.scheduler == "asha"
    run.update(schema_version=1)
    old = Run.open(run.path)
    assert old.record.search.scheduler == "asha-stop"
    old.update(status="interrupted")
    again = Run.open(run.path).record
    assert (again.schema_version, again.search.scheduler) == (SCHEMA_VERSION, "asha-stop")


def test_a_folder_without_a_run_is_told(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"no run\.json"):
        Run.open(tmp_path)


def test_a_name_that_would_write_lines_of_its_own_is_damage(run: Run) -> None:
    run.update(name="run\nRun: all is well")
    with pytest.raises(TunerError, match=r"run.json: damaged or unreadable: name: 'run\\nRun"):
        Run.open(run.path)


@pytest.mark.parametrize(
    "text", ["", "{", "[]", "{}", '{"schema_version": 1}', '{"schema_version": "1"}', "\udcff"]
)
def test_a_damaged_record_is_named(run: Run, text: str) -> None:
    (run.path / "run.json").write_bytes(text.encode(errors="surrogateescape"))
    with pytest.raises(TunerError, match="damaged") as caught:
        Run.open(run.path)
    assert str(run.path / "run.json") in str(caught.value)
    assert caught.value.exit_code == 1


def test_a_run_is_searched_by_one_process_at_a_time(run: Run) -> None:
    with (
        run.locked(),
        pytest.raises(UsageError, match="another process"),
        Run.open(run.path).locked(),
    ):
        pass
    with Run.open(run.path).locked():
        pass


@pytest.mark.parametrize("number", [math.nan, math.inf])
def test_no_nan_reaches_a_json_file(run: Run, number: float) -> None:
    status = TrialStatus(state="stopped", stop=Stop(rung=1, value=number, cut=0.5, peers=1))
    with pytest.raises(ValueError, match="JSON"):
        run.update(hardware={"speed": number})
    with pytest.raises(ValueError, match="JSON"):
        write_status(run.trial_path(0), status)
    assert Run.open(run.path).record == record()
    assert not (run.trial_path(0) / "status.json").exists()


# Trials


def test_a_trial_comes_back_as_it_was_written(run: Run) -> None:
    status = TrialStatus(
        state="stopped",
        reason="epoch 1: 0.5000 below 0.6000, 2 peers",
        stop=Stop(rung=1, value=0.5, cut=1.0, peers=2),
        traceback='File "räv.py"\nValueError: \x1b[31m',
        num_parameters=7,
        started="2026-01-02T03:04:05.678+00:00",
    )
    add_trial(run, 3)
    write_status(run.trial_path(3), status)
    trial = run.trial(3)
    assert trial.status == status
    assert trial.config == CONFIG
    assert trial.number == 3
    assert trial.history == (row(1), row(2, 0.25, 2.0))
    assert trial.val_probs().shape == (10, 2)


@pytest.mark.parametrize("state", get_args(TrialState))
def test_every_state_comes_back(run: Run, state: TrialState) -> None:
    add_trial(run, 0, state=state)
    assert run.trial(0).status.state == state


def test_trials_are_read_in_the_order_of_their_numbers(run: Run) -> None:
    numbers = [10_000, 2, 0, 9999, *range(10, 30)]
    for number in numbers:
        add_trial(run, number)
    assert [trial.number for trial in run.trials()] == sorted(numbers)


def test_a_run_without_trials_has_none(run: Run) -> None:
    assert run.trials() == run.ranked() == []


def test_what_is_no_trial_is_passed_over(run: Run) -> None:
    add_trial(run, 1)
    write_trial(run.trial_path(2), CONFIG)  # Its status is not yet written.
    for name in ("0001 copy", "1st", ".0003"):
        write_status(run.path / "trials" / name, TrialStatus(state="completed"))
    assert [trial.number for trial in run.trials()] == [1]


def test_a_trial_whose_share_was_not_recorded_held_the_usual_one(run: Run) -> None:
    run.update(slots={"count": 1.0, "cpus": 1.0, "gpus": 0.5})
    add_trial(run, 0)
    add_trial(run, 1)
    write_status(run.trial_path(1), TrialStatus(state="completed", cpus=2.0, gpus=1.0))
    assert [trial.gpus for trial in run.trials()] == [0.5, 1.0]
    assert [trial.gpu_hours for trial in run.trials()] == [2.0 / 3600, 4.0 / 3600]


def test_a_running_trial_has_no_history_at_first(run: Run) -> None:
    write_trial(run.trial_path(0), CONFIG)
    write_status(run.trial_path(0), TrialStatus(state="running"))
    (trial,) = run.trials()
    assert trial.history == ()
    assert trial.best is None
    assert not trial.is_usable
    assert trial.as_row()["accuracy"] is None
    assert trial.as_row()["epochs"] == 0


@pytest.mark.parametrize("number", [0, 7])
def test_an_unknown_trial_is_told(run: Run, number: int) -> None:
    with pytest.raises(UsageError, match=f"no trial {number}"):
        run.trial(number)


@pytest.mark.parametrize(
    ("file", "text"),
    [
        ("config.json", "{"),
        ("config.json", "[]"),
        ("config.json", '{"model": "cnn"}'),
        ("config.json", '{"model": "cnn", "epochs": 1, "later": 2}'),
        ("status.json", ""),
        ("status.json", "{}"),
        ("status.json", '{"state": "sleeping"}'),
        ("status.json", '{"state": "stopped", "stop": {"rung": 1}}'),
        ("history.csv", "epoch,train_loss\n1,x\n"),
        ("history.csv", "epoch,train_loss\n1,2\n"),
        ("history.csv", "what\n1\n"),
    ],
)
def test_a_damaged_trial_is_named(run: Run, file: str, text: str) -> None:
    add_trial(run, 0)
    (run.trial_path(0) / file).write_text(text)
    with pytest.raises(TunerError, match="damaged") as caught:
        run.trial(0)
    assert str(run.trial_path(0)) in str(caught.value)
    assert caught.value.exit_code == 1


@pytest.mark.parametrize("content", [None, b"", b"\x93NUMPY", b"not an array"])
def test_damaged_validation_probabilities_are_named(run: Run, content: bytes | None) -> None:
    add_trial(run, 0)
    path = run.trial_path(0) / "val_probs.npy"
    path.unlink()
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(TunerError, match=r"val_probs\.npy"):
        run.trial(0).val_probs()


def test_validation_probabilities_are_never_unpickled(run: Run) -> None:
    add_trial(run, 0)
    np.save(run.trial_path(0) / "val_probs.npy", np.array([{"a": 1}]), allow_pickle=True)
    with pytest.raises(TunerError, match="allow_pickle"):
        run.trial(0).val_probs()


# The history


@given(st.lists(ROWS, max_size=4))
def test_a_history_comes_back_to_the_last_bit(
    tmp_path_factory: pytest.TempPathFactory, history: list[EpochMetrics]
) -> None:
    path = tmp_path_factory.getbasetemp() / "history"
    history = [dataclasses.replace(row, epoch=epoch) for epoch, row in enumerate(history, 1)]
    write_history(path, history)
    assert repr(read_history(path)) == repr(history)


HEAD = "epoch,train_loss,val_loss,val_accuracy,lr,seconds,time\n"
FIRST = "1,2.0,2.1,0.5,0.1,3.0,1000.0"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "has the columns ''"),
        ("epoch,loss\n", "has the columns 'epoch,loss'"),
        (f"{HEAD}2{FIRST[1:]}\n", "line 2: epoch '2' instead of 1"),
        (f"{HEAD}{FIRST}\n{FIRST}\n", "line 3: epoch '1' instead of 2"),
        (f"{HEAD}{FIRST},7\n", "line 2: '.*' is not an epoch's figures"),
        (f"{HEAD}1,2.0\n", "line 2: '1,2.0' is not an epoch's figures"),
        (f"{HEAD}{FIRST.replace('2.1', 'x')}\n", "is not an epoch's figures"),
        (f"{HEAD}{FIRST.replace('0.5', '7.5')}\n", r"val_accuracy is 7.5, not in \[0, 1\]"),
        (f"{HEAD}{FIRST.replace('0.5', 'nan')}\n", r"val_accuracy is nan, not in \[0, 1\]"),
        (f"{HEAD}{FIRST.replace('3.0', '-3')}\n", "seconds is -3.0, not a number from 0"),
        (f"{HEAD}{FIRST.replace('1000.0', 'inf')}\n", "time is inf, not a number from 0"),
        (f"{HEAD}{FIRST.replace('0.1', '1e400')}\n", "lr is inf, not a number from 0"),
        (f"{HEAD}{FIRST.replace('3.0', '1.7e308')}\n", r"seconds is 1.7e\+308, above 1e\+09"),
    ],
)
def test_a_history_that_cannot_be_is_told_in_a_line(run: Run, text: str, message: str) -> None:
    add_trial(run, 0)
    file = run.trial_path(0) / "history.csv"
    file.write_text(text)
    with pytest.raises(TunerError, match=f"{file}: damaged or unreadable: .*{message}") as caught:
        run.trials()
    assert "\n" not in str(caught.value)


def test_gpus_whose_hours_are_no_number_are_damage(run: Run) -> None:
    add_trial(run, 0)
    write_status(run.trial_path(0), TrialStatus(state="completed", gpus=1.7e308))
    with pytest.raises(TunerError, match=r"status\.json: .*gpus is 1.7e\+308, above 1e\+06"):
        run.trial(0)


def test_more_epochs_than_the_configuration_has_are_damage(run: Run) -> None:
    add_trial(run, 0)
    rows = [row(epoch, 0.5) for epoch in range(1, CONFIG.epochs + 2)]
    write_history(run.trial_path(0), rows)
    with pytest.raises(TunerError, match=r"history\.csv: .* has \d+ epochs where config\.json has"):
        run.trial(0)


def test_a_history_is_a_table_for_pandas(tmp_path: Path) -> None:
    write_history(tmp_path, [row(1, 0.25), row(2, 0.5, math.nan), row(3, 0.5, math.inf)])
    table = pd.read_csv(tmp_path / "history.csv")
    assert list(table.columns) == [field.name for field in dataclasses.fields(EpochMetrics)]
    assert table["val_accuracy"].tolist() == [0.25, 0.5, 0.5]
    assert np.isnan(table["val_loss"][1])
    assert np.isinf(table["val_loss"][2])


@given(st.lists(ROWS, max_size=8), st.randoms())
def test_no_epoch_is_better_than_the_best(history: list[EpochMetrics], random: Any) -> None:
    best = best_row(history, "accuracy")
    finite = [row for row in history if math.isfinite(row.val_loss)]
    if best is None:
        assert not finite
        return
    assert best in finite
    assert best.val_accuracy == max(row.val_accuracy for row in finite)
    equals = [row for row in finite if row.val_accuracy == best.val_accuracy]
    assert best.val_loss == min(row.val_loss for row in equals)
    equals = [row for row in equals if row.val_loss == best.val_loss]
    assert best.epoch == min(row.epoch for row in equals)
    shuffled = list(history)
    random.shuffle(shuffled)
    again = best_row(shuffled, "accuracy")
    assert again is not None
    assert again.epoch == best.epoch


# The best trials


def test_trials_rank_by_accuracy_then_loss_then_number(run: Run) -> None:
    figures = [(0.7, 0.9), (0.8, 0.5), (0.8, 0.4), (0.9, 2.0), (0.7, 0.9)]
    for number, (accuracy, loss) in enumerate(figures):
        add_trial(run, number, accuracy, loss)
    assert numbers_of_top(run, 5) == [3, 2, 1, 0, 4]
    assert numbers_of_top(run, 2) == [3, 2]


@pytest.mark.parametrize("state", get_args(TrialState))
def test_a_trial_is_taken_in_the_right_states_alone(run: Run, state: TrialState) -> None:
    add_trial(run, 0, 0.9, state=state)
    add_trial(run, 1, 0.1)
    is_usable = state in ("completed", "stopped", "paused", "interrupted")
    assert run.trial(0).is_usable == is_usable
    assert numbers_of_top(run, 1) == ([0] if is_usable else [1])


def test_a_trial_without_a_checkpoint_or_a_finite_epoch_is_not_taken(run: Run) -> None:
    add_trial(run, 0, 0.9, has_checkpoint=False)
    add_trial(run, 1, 0.8, math.nan)
    add_trial(run, 2, 0.1)
    assert numbers_of_top(run, 1) == [2]


@pytest.mark.parametrize("state", ["diverged", "failed", "out_of_memory"])
@pytest.mark.parametrize("all_data", [False, True])
def test_trials_that_ended_badly_rank_after_the_others(
    tmp_path: Path, state: TrialState, all_data: bool
) -> None:
    run = make_run(tmp_path, data=DataConfig(source="digits", all_data=all_data))
    add_trial(run, 0, 0.9, state=state)
    add_trial(run, 1, 0.1, state="running")
    add_trial(run, 2, 0.95, math.nan)
    assert [trial.number for trial in run.ranked()] == [1, 0, 2]
    assert leader(run.ranked()) == run.trial(1)
    assert leader(run.ranked()[1:]) is None


def test_trials_without_a_figure_rank_last(run: Run) -> None:
    add_trial(run, 0, 0.9, math.nan)
    add_trial(run, 1, 0.0)
    write_trial(run.trial_path(2), CONFIG)
    write_status(run.trial_path(2), TrialStatus(state="running"))
    assert [trial.number for trial in run.ranked()] == [1, 0, 2]


def test_more_trials_than_there_are_is_wrong_usage(run: Run) -> None:
    for number in range(3):
        add_trial(run, number)
    add_trial(run, 3, state="failed")
    with pytest.raises(UsageError, match="only 3 usable trials") as caught:
        run.top(4)
    assert caught.value.exit_code == 2
    assert "--top 3" in str(caught.value)


def test_no_usable_trial_has_an_exit_code_of_its_own(run: Run) -> None:
    add_trial(run, 0, state="failed")
    line = f"'cifar-tune leaderboard run --storage {run.path.parent}' says why"
    with pytest.raises(NoUsableTrials, match=re.escape(line)) as caught:
        run.top(1)
    assert caught.value.exit_code == 3


@pytest.mark.parametrize("keep", [1, 3, 5, 9])
def test_pruning_keeps_the_best_checkpoints_and_every_probability(run: Run, keep: int) -> None:
    accuracies = [0.3, 0.9, 0.5, 0.9, 0.1]
    for number, accuracy in enumerate(accuracies):
        add_trial(run, number, accuracy)
    add_trial(run, 5, 0.99, state="diverged")
    best = numbers_of_top(run, min(keep, 5))
    run.prune(keep)
    left = [trial.number for trial in run.trials() if trial.checkpoint.exists()]
    assert left == sorted(best)
    assert numbers_of_top(run, len(best)) == best
    assert all((trial.path / "val_probs.npy").exists() for trial in run.trials())
    run.prune(keep)
    assert numbers_of_top(run, len(best)) == best


def test_pruning_leaves_what_a_resumed_search_goes_on_with(run: Run) -> None:
    states: tuple[TrialState, ...] = ("completed", "interrupted", "running", "stopped", "failed")
    for number, state in enumerate(states):
        add_trial(run, number, 0.9 - number / 10, state=state)
    run.prune(1)
    left = [trial.number for trial in run.trials() if trial.checkpoint.exists()]
    assert [states[number] for number in left] == ["completed", "interrupted", "running"]


# The leaderboard


def test_the_leaderboard_has_a_row_a_trial_best_first(run: Run) -> None:
    resnet = dataclasses.replace(CONFIG, model=ModelConfig("resnet", {"depth": 18}), epochs=9)
    add_trial(run, 0, 0.5, state="stopped")
    add_trial(run, 1, 0.9, config=resnet)
    add_trial(run, 2, 0.7, math.nan, state="diverged")
    run.write_leaderboard()
    table = pd.read_csv(run.path / "leaderboard.csv")
    assert table["trial"].tolist() == [1, 0, 2]
    assert table["model"].tolist() == ["resnet", "cnn", "cnn"]
    assert table["state"].tolist() == ["completed", "stopped", "diverged"]
    assert table["accuracy"].tolist()[:2] == [0.9, 0.5]
    assert np.isnan(table["accuracy"][2])
    assert table["epochs"].tolist() == [2, 2, 2]
    assert table["max_epochs"].tolist() == [9, 3, 3]
    assert table["seconds"].tolist() == [4.0, 4.0, 4.0]
    assert table["parameters"].tolist() == [101, 100, 102]
    assert table["model.cnn.norm"].tolist()[1:] == ["none", "none"]
    assert table["optimizer.adamw.lr"].tolist() == [0.01] * 3


def test_whole_numbers_stay_whole_where_some_trials_have_none(run: Run) -> None:
    add_trial(
        run, 0, config=dataclasses.replace(CONFIG, model=ModelConfig("resnet", {"depth": 18}))
    )
    add_trial(run, 1, 0.4)
    run.write_leaderboard()
    table = pd.read_csv(run.path / "leaderboard.csv", dtype=str)
    assert table["model.resnet.depth"].tolist()[0] == "18"
    assert table["model.cnn.stages"].tolist()[1] == "2"


def test_the_leaderboard_of_no_trials_can_be_read(run: Run) -> None:
    run.write_leaderboard()
    assert pd.read_csv(run.path / "leaderboard.csv").empty


def test_the_leaderboard_of_a_real_run_tells_its_figures(finished_run: Run) -> None:
    table = pd.read_csv(finished_run.path / "leaderboard.csv").set_index("trial")
    assert len(table) == 3
    assert table["accuracy"].is_monotonic_decreasing
    for trial in finished_run.trials():
        assert trial.best is not None
        assert table["accuracy"][trial.number] == pytest.approx(trial.best.val_accuracy)
        assert table["seed"][trial.number] == trial.number


# Finding a run


def test_without_a_name_the_newest_run_is_found(tmp_path: Path) -> None:
    make_run(tmp_path, "a", started="2026-01-02T00:00:00.000+00:00")
    make_run(tmp_path, "b", started="2026-03-01T00:00:00.000+00:00")
    make_run(tmp_path, "c", started="2026-02-28T23:59:59.999+00:00")
    (tmp_path / "d").mkdir()
    assert find_run(tmp_path, None).record.name == "b"
    assert list_runs(tmp_path) == ["a", "b", "c"]


@pytest.mark.parametrize(
    "spoil",
    [
        lambda file: file.write_text(file.read_text()[:-20]),
        lambda file: file.write_bytes(b"\xff\xfe"),
        lambda file: file.write_text("[]"),
        lambda file: file.write_text(file.read_text().replace(": 2,", ": 99,", 1)),
        lambda file: file.rename(file.with_name("other")) and file.symlink_to("other"),
    ],
    ids=["cut off", "no text", "no record", "newer", "link"],
)
def test_a_run_that_cannot_be_read_is_named_and_stops_no_other(
    tmp_path: Path, spoil: Callable[[Path], object], capfd: pytest.CaptureFixture[str]
) -> None:
    make_run(tmp_path, "good", started="2026-01-02T00:00:00.000+00:00")
    make_run(tmp_path, "bad", started="2026-03-01T00:00:00.000+00:00")
    spoil(tmp_path / "bad" / "run.json")
    assert find_run(tmp_path, None).record.name == "good"
    assert [run.record.name for run in open_runs(tmp_path)] == ["good"]
    lines = capfd.readouterr().err.splitlines()
    assert len(lines) == 2
    assert all(str(tmp_path / "bad") in line for line in lines)
    shutil.rmtree(tmp_path / "good")
    with pytest.raises(UsageError, match="no run here can be read"):
        find_run(tmp_path, None)


def test_a_run_is_found_by_its_name_or_its_folder(tmp_path: Path) -> None:
    make_run(tmp_path / "one", "a")
    make_run(tmp_path / "other", "b")
    assert find_run(tmp_path / "one", "a").record.name == "a"
    assert find_run(tmp_path / "one", str(tmp_path / "other" / "b")).record.name == "b"


def test_the_storage_goes_before_a_folder_of_the_same_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_run(tmp_path / "storage", "a", git_commit="stored")
    make_run(tmp_path, "a", git_commit="near")
    make_run(tmp_path, "b")
    monkeypatch.chdir(tmp_path)
    assert find_run(tmp_path / "storage", "a").record.git_commit == "stored"
    assert find_run(tmp_path / "storage", "b").record.name == "b"


@pytest.mark.parametrize(("folder", "name"), [(".", "."), ("trials", "..")])
def test_a_run_has_the_name_of_its_folder_when_it_is_named_from_within(
    folder: str, name: str, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    (run.path / "trials").mkdir(exist_ok=True)
    monkeypatch.chdir(run.path / folder)
    assert find_run(Path("runs"), name).path == run.path.resolve()


def test_above_a_folder_is_not_looked_for_through_a_storage_that_is_missing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    outer = make_run(tmp_path, "outer").path
    monkeypatch.chdir(make_run(outer, "inner").path)
    assert find_run(Path("runs"), "..").path == outer.resolve()


def test_a_misspelt_run_is_guessed(tmp_path: Path) -> None:
    make_run(tmp_path, "quick-20260102")
    with pytest.raises(UsageError, match="did you mean 'quick-20260102'"):
        find_run(tmp_path, "quik-20260102")


def test_an_unknown_run_leads_to_the_list(tmp_path: Path) -> None:
    make_run(tmp_path, "quick-20260102")
    line = f"'cifar-tune runs --storage {tmp_path}' lists them"
    with pytest.raises(UsageError, match=re.escape(line)):
        find_run(tmp_path, "zzz")


@pytest.mark.parametrize("storage", ["", "not-there"])
def test_where_no_run_is_yet_the_message_says_how_to_make_one(tmp_path: Path, storage: str) -> None:
    with pytest.raises(UsageError, match="cifar-tune search"):
        find_run(tmp_path / storage, None)
    with pytest.raises(UsageError, match="no run 'a'"):
        find_run(tmp_path / storage, "a")


# The readings of the test images


def test_each_reading_of_the_test_images_is_a_line_of_json(run: Run) -> None:
    run.log_test_reading(Reading(by="ensemble", name="räv\nny rad", trials=(3, 1)))
    run.log_test_reading(Reading(by="evaluate"))
    lines = (run.path / "test_readings.jsonl").read_text().splitlines()
    first, second = map(json.loads, lines)
    assert first["name"] == "räv\nny rad"
    assert first["trials"] == [3, 1]
    assert second["by"] == "evaluate"
    assert first["at"] <= second["at"]


def test_the_leaderboard_as_parquet_holds_what_the_csv_holds(run: Run) -> None:
    add_trial(run, 0, 0.7)
    add_trial(run, 1, 0.9, config=dataclasses.replace(CONFIG, batch_size=64))
    write_trial(run.trial_path(2), dataclasses.replace(CONFIG, model=ModelConfig("resnet")))
    write_status(run.trial_path(2), TrialStatus(state="running"))
    file = io.BytesIO()
    write_parquet(run.ranked(), file)
    table = pd.read_parquet(file)
    assert table["trial"].tolist() == [1, 0, 2]
    assert table["accuracy"].tolist()[:2] == [0.9, 0.7]
    assert pd.isna(table["accuracy"][2])
    assert table["batch_size"].dtype.kind == "i"
    assert table.columns.tolist() == leaderboard(run.ranked()).columns.tolist()


def test_the_line_that_goes_on_names_the_budget(tmp_path: Path) -> None:
    run = make_run(tmp_path)
    assert "budget" not in run.resume_command()
    run.update(budget_seconds=90.5, budget_gpu_hours=1.5)
    assert "--time-budget 91s --gpu-hours 1.5" in run.how_to_go_on()
    assert "--time-budget 181s --gpu-hours 3" in run.resume_command(factor=2)


def test_commands_are_printed_even_if_the_current_folder_is_gone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = make_run(tmp_path / "runs")
    (tmp_path / "gone").mkdir()
    monkeypatch.chdir(tmp_path / "gone")
    (tmp_path / "gone").rmdir()
    monkeypatch.setattr(sys, "argv", ["bin/cifar-tune"])
    line = f"bin/cifar-tune search --resume --name run --storage {tmp_path / 'runs'}"
    assert run.resume_command() == line
    assert run.how_to_go_on().startswith(f"{run.path} keeps the trials' files.")


def test_the_default_folder_is_named_where_the_environment_has_another(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert storage_words(Path("runs")) == []
    monkeypatch.setenv("CIFAR_TUNE_STORAGE", "/elsewhere")
    assert storage_words(Path("runs")) == ["--storage", "runs"]


@pytest.mark.parametrize("name", ["--trust-code", "-x", "a b"])
def test_no_printed_command_takes_the_name_of_a_run_for_an_option(
    name: str,
    run_with_ensemble: Run,
    tmp_path: Path,
    call: Call,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    path = tmp_path / "runs" / name
    shutil.copytree(run_with_ensemble.path, path)
    monkeypatch.chdir(tmp_path)
    run = Run.open(path)
    assert call("report")[0] == 0
    page = html.unescape((path / "report.html").read_text())
    print_next(run, run.trials())
    print_ensemble(path / "ensembles" / "all", is_whole=False)
    told = f"{capsys.readouterr().out}\n  {run.resume_command()}\n"
    lines = re.findall(r"^  (cifar-tune .*)$", told, re.MULTILINE)
    lines += [line for line in re.findall(r"<code>(cifar-tune .*?)</code>", page) if name in line]
    assert len(lines) >= 8
    for line in lines:
        params = context_of(line).params
        assert not params.get("trust_code"), line
        assert any(name in str(value) for value in params.values()), line


def test_the_line_that_goes_on_names_the_cluster_of_this_session_alone(tmp_path: Path) -> None:
    run = make_run(tmp_path)
    run.address = "auto"
    run.update(status="interrupted")
    assert "--address auto" in run.how_to_go_on()
    assert "--address" not in Run.open(run.path).how_to_go_on()
