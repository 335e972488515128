"""Runs of commit a475a52: a finished search with an ensemble, and an interrupted one.

They are in ``tests/assets/runs-a475a52.tar.xz``: four trials of three epochs on the digits, and two
of sixty that a Ctrl-C ended.
"""

import io
import json
import tarfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from rich.console import Console

from tuner.cli import cli
from tuner.data.splits import load_splits
from tuner.errors import TunerError
from tuner.metrics.classwise import class_scores
from tuner.run.run import Run
from tuner.run.trial import read_history
from tuner.space import SearchSpace, load_run_space, load_space
from tuner.tuning.ray_backend.driver import connected_run
from tuner.tuning.request import load_searched, make_search_request

ARCHIVE = Path(__file__).parent / "assets" / "runs-a475a52.tar.xz"


@pytest.fixture
def storage(tmp_path: Path) -> Path:
    with tarfile.open(ARCHIVE) as archive:
        archive.extractall(tmp_path, filter="data")
    return tmp_path


def invoke(*words: str) -> str:
    result = CliRunner().invoke(cli, words, catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.stdout


def document(*words: str) -> Any:
    return json.loads(invoke(*words, "--json"))


def test_a_finished_run_is_read_and_reported(storage: Path) -> None:
    at = ("--storage", str(storage))
    board = document("leaderboard", "finished", *at)
    assert [trial["trial"] for trial in board["trials"]] == [0, 3, 2, 1]
    assert "3 stopped, 1 completed, of 4 trials" in invoke("show", "finished", *at)
    invoke("report", "finished", *at)
    page = (storage / "finished" / "report.html").read_text()
    assert "epoch 2: 0.3056 below 0.4236" in page
    assert "top3" in page


def test_a_metric_that_it_did_not_record_is_computed_from_its_probabilities(storage: Path) -> None:
    run = Run.open(storage / "finished")
    labels = load_splits(run.record.data, storage / "data").val.labels.numpy()
    usable = [trial for trial in run.trials() if trial.is_scored]
    expected = {
        trial.number: class_scores(trial.val_probs().argmax(axis=1), labels) for trial in usable
    }
    at = ("--storage", str(storage), "--metric", "worst_class")
    board = document("leaderboard", "finished", *at)["trials"]
    told = {row["trial"]: row["worst_class"] for row in board}
    assert told == {number: scores.worst_class for number, scores in expected.items()}
    assert [row["worst_class"] for row in board] == sorted(told.values(), reverse=True)
    compared = document("compare", "finished", "finished", *at)["runs"]
    assert compared[0]["best"] == board[0]["worst_class"]
    run.update(data=replace(run.record.data, source=str(storage / "gone")))
    result = CliRunner().invoke(cli, ["leaderboard", "finished", *at])
    assert isinstance(result.exception, TunerError)
    assert "--data" in str(result.exception)
    assert document("leaderboard", "finished", "--data", "digits", *at)["trials"] == board
    run.update(data=replace(run.record.data, source="digits"))
    (usable[0].path / "val_probs.npy").unlink()
    result = CliRunner().invoke(cli, ["leaderboard", "finished", *at])
    assert isinstance(result.exception, TunerError)
    words = str(result.exception)
    assert "was recorded without worst_class, which needs its val_probs.npy" in words


def test_its_trials_are_combined_to_the_same_vote(storage: Path) -> None:
    path = storage / "finished" / "ensembles"
    before = json.loads((path / "top3" / "metrics.json").read_text())
    invoke(
        "ensemble", "--run", "finished", "--storage", str(storage), "--top", "3", "--name", "new"
    )
    after = json.loads((path / "new" / "metrics.json").read_text())
    for images, scores in before["ensemble"].items():
        # Rows of test probabilities are normalized anew, as those of the validation images were.
        known = {name: after["ensemble"][images][name] for name in scores}
        assert known == pytest.approx(scores, abs=1e-7)


def test_a_run_that_stopped_its_trials_goes_on_so_unless_it_is_told_else(storage: Path) -> None:
    run = Run.open(storage / "finished")

    def scheduler(*overrides: str, text: str = "") -> str:
        def load(words: Sequence[str]) -> SearchSpace:
            if text:
                return load_space(Path("space.yaml"), words, text=text)
            return load_run_space(run.path / "space.yaml", words)

        return load_searched(load, overrides, run).search.scheduler

    assert scheduler() == scheduler("search.trials=9") == "asha-stop"
    assert scheduler("search.scheduler=asha") == "asha"
    assert scheduler("search={scheduler: asha}") == "asha"
    other = "{search: {scheduler: SCHEDULER}, space: {model: cnn, optimizer: sgd}}"
    assert scheduler(text=other.replace("SCHEDULER", "asha")) == "asha-stop"
    assert scheduler(text=other.replace("SCHEDULER", "median")) == "median"
    # In what this version writes, it has its own meaning.
    run.update()
    assert scheduler(text=other.replace("SCHEDULER", "asha")) == "asha"


@pytest.mark.ray
def test_a_run_that_is_interrupted_before_its_trials_go_on_keeps_its_version(
    storage: Path, session: None
) -> None:
    run = Run.open(storage / "interrupted")
    run.update(status="running", schema_version=1)
    space = load_run_space(run.path / "space.yaml")
    request = make_search_request(
        space, stem="", storage=storage, resumed=run, space_name="", command=""
    )
    splits = load_splits(request.data, request.data_dir)
    with (
        pytest.raises(KeyboardInterrupt),
        connected_run(request, splits, Console(file=io.StringIO())),
    ):
        raise KeyboardInterrupt
    record = json.loads((run.path / "run.json").read_text())
    assert (record["status"], record["schema_version"]) == ("interrupted", 1)


@pytest.mark.ray
def test_an_interrupted_run_goes_on_where_its_trials_were(storage: Path, session: None) -> None:
    paths = [storage / "interrupted" / "trials" / f"{number:04d}" for number in range(2)]
    before = [read_history(path) for path in paths]
    assert [len(rows) for rows in before] == [3, 6]
    invoke("search", "--resume", "--name", "interrupted", "--storage", str(storage), "--quiet")
    run = Run.open(storage / "interrupted")
    assert run.record.status == "finished"
    assert (run.record.schema_version, run.record.search.scheduler) == (2, "none")
    cnn, speednet = map(read_history, paths)
    assert len(cnn) == len(speednet) == 60
    assert cnn[:3] == before[0]
    # Muon has taken over a kernel of speednet's since: its saved moments fit no more.
    assert speednet[0].time > before[1][-1].time
