"""A run in a store: the same files, figures and commands as of one in a folder."""

import json
import subprocess
import threading
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

import pytest
import torch

from tests.benchmarks.faults import SPACE
from tests.benchmarks.processes import PROGRAM, Search
from tests.conftest import Call, wait_until
from tests.disks import needs_own_mounts
from tests.raylets import Raylets
from tests.stores import S3Server
from tuner.data.splits import Splits
from tuner.ensemble.candidates import damage_of_network, read_candidate
from tuner.ensemble.check import damage_of_ensemble
from tuner.ensemble.integrity import why_not_network
from tuner.errors import StorageError, UsageError
from tuner.monitor.follow import RunWatcher
from tuner.run.checkpoint import read_description
from tuner.run.run import Run, find_run, open_runs
from tuner.run.trial import TrialStatus, write_status
from tuner.storage import object_store
from tuner.storage.files import write_text
from tuner.storage.object_path import ObjectPath
from tuner.storage.object_store import store_of
from tuner.storage.paths import read_text, to_path
from tuner.storage.protocol import LOCK_NAME
from tuner.training.saving import read_own_progress


@pytest.mark.usefixtures("server")
def test_a_bucket_that_is_not_there_is_told(call: Call, trained_run: Run) -> None:
    nowhere = to_path("s3://no-such-bucket/runs")
    with pytest.raises(UsageError, match="there is no s3://no-such-bucket"):
        Run.create(nowhere / "new", trained_run.record, "space: {}\n")
    code, _, err = call("leaderboard", "--storage", str(nowhere))
    assert code == 2
    assert "there is no s3://no-such-bucket" in err


def test_a_bucket_of_which_a_part_may_be_seen_alone_is_there(
    bucket: ObjectPath, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As with rights for one prefix: the bucket itself may not be asked after."""

    def refuse(*arguments: object, **options: object) -> None:
        raise PermissionError("Forbidden")

    monkeypatch.setattr(store_of("s3://bucket")._fs, "info", refuse)
    assert open_runs(bucket) == []


def test_of_two_runs_of_a_name_that_are_made_at_once_one_is_refused(
    bucket: ObjectPath, trained_run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    both_looked, both_tried = threading.Barrier(2), threading.Barrier(2)
    made, refused = list[str](), list[str]()

    def make(space: str) -> None:
        with ExitStack() as held:
            try:
                Run.create(bucket / "run", trained_run.record, space, held)
                made.append(space)
            except UsageError as error:
                refused.append(str(error))
            both_tried.wait(60)

    monkeypatch.setattr(ObjectPath, "mkdir", lambda path, parents: both_looked.wait(60))
    threads = [threading.Thread(target=make, args=(space,)) for space in ("one", "two")]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert "is searching this run" in refused.pop()
    monkeypatch.setattr(ObjectPath, "mkdir", lambda path, parents: None)
    with ExitStack() as held, pytest.raises(UsageError, match="Choose another --name"):
        Run.create(bucket / "run", trained_run.record, "three", held)
    assert [read_text(bucket / "run" / "space.yaml")] == made


def test_a_run_in_a_store_reads_as_one_in_a_folder(stored_run: Run, trained_run: Run) -> None:
    assert stored_run.record == trained_run.record
    here, there = trained_run.ranked(), stored_run.ranked()
    assert [trial.as_row() for trial in there] == [trial.as_row() for trial in here]
    assert [trial.is_usable for trial in there] == [trial.is_usable for trial in here]
    assert (there[0].val_probs() == here[0].val_probs()).all()
    assert read_description(there[0].checkpoint) == read_description(here[0].checkpoint)


def test_runs_of_a_store_are_found_by_name_address_and_age(stored_run: Run) -> None:
    storage = stored_run.path.parent
    assert [run.record.name for run in open_runs(storage)] == ["tiny"]
    for name in ("tiny", str(stored_run.path), None):
        assert find_run(storage, name).path == stored_run.path
    with pytest.raises(UsageError, match="did you mean 'tiny'"):
        find_run(storage, "tinny")


def test_a_leaderboard_takes_a_question_a_file_and_a_few(stored_run: Run, server: S3Server) -> None:
    def questions() -> int:
        return server.log.read_text().count('"GET /') + server.log.read_text().count('"HEAD /')

    before = questions()
    trials = stored_run.ranked()
    rows = [trial.as_row() for trial in trials if trial.is_usable]
    assert len(rows) == 3
    # Four small files a trial, read side by side, and the listing of all of them.
    assert 0 < questions() - before <= 3 * 4 + 3


def test_an_outage_of_the_store_is_not_reported_as_damage(
    stored_run: Run, server: S3Server, digits: Splits, monkeypatch: pytest.MonkeyPatch
) -> None:
    trial = stored_run.ranked()[0]
    read, damage = read_candidate(trial, digits.val.labels, digits.num_classes)
    assert read is not None, damage
    recorded, cpu = read.recorded, torch.device("cpu")
    steps: list[Callable[[], object]] = [
        lambda: read_candidate(trial, digits.val.labels, digits.num_classes),
        lambda: damage_of_network(recorded, digits, cpu),
        lambda: why_not_network(trial.checkpoint, trial, digits, recorded.sample, 0.0, cpu),
        lambda: list(damage_of_ensemble(stored_run.path / "ensembles" / "top2")),
        lambda: read_own_progress(stored_run.trial_path(1)),
    ]
    monkeypatch.setattr(object_store, "PATIENCE_SECONDS", 0.1)
    server.kill()
    try:
        for step in steps:
            with pytest.raises(StorageError, match="no answer"):
                step()
    finally:
        server.start()


def test_pruning_removes_checkpoints_from_a_store(stored_run: Run) -> None:
    stored_run.prune(1)
    kept = [trial.number for trial in stored_run.trials() if trial.checkpoint.exists()]
    assert kept == [1]


def test_a_search_in_a_store_can_be_watched(stored_run: Run) -> None:
    write_status(stored_run.trial_path(0), TrialStatus(state="running"))
    watcher = RunWatcher(stored_run.path)
    assert [*watcher.state.running] == [0]
    assert not watcher.look()
    write_status(stored_run.trial_path(0), TrialStatus(state="completed"))
    assert [ending.number for ending in watcher.look()] == [0]


@pytest.mark.parametrize(
    "words",
    [
        ["leaderboard"],
        ["runs"],
        ["show", "tiny"],
        ["show", "tiny", "1"],
        ["report"],
        ["compare", "tiny", "tiny"],
        ["rerun", "tiny", "0"],
        ["check", "tiny"],
        ["ensemble", "--top", "2"],
        ["ensemble", "--top", "2", "--dry-run"],
    ],
    ids=" ".join,
)
def test_every_command_takes_a_run_from_a_store(
    call: Call, stored_run: Run, words: list[str]
) -> None:
    stored_run.update(hardware={"threads_per_trial": 1})
    write_text(stored_run.path / "space.yaml", SPACE)
    code, out, err = call(*words, "--storage", str(stored_run.path.parent), "--json")
    assert code == 0, err
    json.loads(out)
    names = {path.name for path in stored_run.path.iterdir()}
    assert ("report.html" in names) == (words == ["report"])
    assert ("ensembles" in names) == (words == ["ensemble", "--top", "2"])
    assert not [name for name in names if name.startswith(".ensemble")]


def search(tmp_path: Path, bucket: ObjectPath, *options: str) -> Search:
    (tmp_path / "space.yaml").write_text(SPACE)
    return Search(
        tmp_path,
        *("--space", "space.yaml", "--name", "run", "--scheduler", "none"),
        *("--storage", str(bucket), *options),
    )


@pytest.mark.ray
@pytest.mark.slow
def test_a_search_outlives_the_death_of_its_storage(
    call: Call, bucket: ObjectPath, server: S3Server, tmp_path: Path
) -> None:
    trials = server.folder / bucket.uri.removeprefix("s3://") / "run" / "trials"
    with search(tmp_path, bucket, "--trials", "6") as running:
        wait_until(lambda: [*trials.glob("*/history.csv")])
        server.kill()
        # The driver comes to the storage at the latest to renew its lock; workers wait in silence.
        wait_until(lambda: "s3://bucket does not answer" in running.errors)
        time.sleep(3)
        assert running.process.poll() is None
        server.start()
        assert running.wait(200) == 0, running.errors
        told = running.errors
    assert "s3://bucket does not answer" in told
    assert "s3://bucket answers again" in told
    run = Run.open(bucket / "run")
    assert run.record.status == "finished"
    assert [trial.status.state for trial in run.trials()] == ["completed"] * 6
    for trial in run.trials():
        assert [row.epoch for row in trial.history] == [*range(1, 9)]
        assert read_description(trial.checkpoint).epoch == trial.best.epoch
    code, out, _ = call("leaderboard", "--storage", str(bucket), "--json")
    assert code == 0
    assert [row["epochs"] for row in json.loads(out)["trials"]] == [8] * 6
    code, out, _ = call("ensemble", "--top", "2", "--storage", str(bucket), "--json")
    assert code == 0
    assert json.loads(out)["path"] == f"{bucket}/run/ensembles/top2"


@pytest.mark.ray
@pytest.mark.slow
@needs_own_mounts
def test_a_cluster_that_shares_no_folder_searches_into_a_store(
    bucket: ObjectPath, tmp_path: Path
) -> None:
    folder = tmp_path / "local" / "runs"
    folder.mkdir(parents=True)
    with Raylets() as raylets:
        raylets.add(own=tmp_path / "local")
        raylets.wait_for_nodes(2)
        options = ("--trials", "2", "--epochs", "2", "--address", raylets.address)
        for storage, code, text in (
            (folder, 4, "is another folder"),
            (bucket, 0, f"{bucket}: all nodes write and read it"),
        ):
            words = ("--address", raylets.address, "--storage", str(storage), "--data", "digits")
            told = subprocess.run([PROGRAM, "doctor", *words], capture_output=True, text=True)
            assert told.returncode == code, told
            assert text in told.stdout
        with search(tmp_path, bucket, *options, "--storage", str(folder)) as refused:
            assert refused.wait(120) == 4, refused.errors
        assert "not all nodes share it" in refused.errors
        assert "is another folder" in refused.errors
        assert not [*folder.iterdir()], "nothing was trained"
        with search(tmp_path, bucket, *options) as searching:
            assert searching.wait(200) == 0, searching.errors
    trials = Run.open(bucket / "run").trials()
    assert [trial.status.state for trial in trials] == ["completed"] * 2
    assert len({trial.status.node for trial in trials}) == 2, "both nodes have written"


@pytest.mark.ray
@pytest.mark.slow
def test_a_killed_search_goes_on_from_its_storage(
    bucket: ObjectPath, server: S3Server, tmp_path: Path
) -> None:
    run = bucket / "run"
    trials = server.folder / bucket.uri.removeprefix("s3://") / "run" / "trials"
    # Trials that end within ten seconds would leave no state behind before their end.
    with search(tmp_path, bucket, "--trials", "4", "--save-seconds", "0") as running:
        wait_until(lambda: [*trials.glob("*/state.safetensors")])
        running.kill_everything()
    assert (run / LOCK_NAME).exists(), "the lock outlives its process"
    with search(tmp_path, bucket, "--resume", "--trials", "4") as resumed:
        assert resumed.wait(200) == 0, resumed.errors
    found = Run.open(run)
    assert found.record.status == "finished"
    assert [trial.status.state for trial in found.trials()] == ["completed"] * 4
    for trial in found.trials():
        assert [row.epoch for row in trial.history] == [*range(1, 9)]
        assert not trial.state.exists()
    assert not (run / LOCK_NAME).exists()
    left = {path.name for path in run.iterdir()}
    assert left == {"run.json", "space.yaml", "trials", "tensorboard", "leaderboard.csv"}
