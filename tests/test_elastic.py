"""Clusters that change under a search."""

import signal
import time
from collections.abc import Iterable, Iterator
from pathlib import Path

import pytest
import ray
from ray.cluster_utils import Cluster
from ray.core.generated import autoscaler_pb2

from tests.benchmarks.faults import SPACE
from tests.benchmarks.processes import Process, Search
from tests.benchmarks.promises import flaws
from tests.conftest import wait_until
from tests.disks import needs_own_mounts
from tests.raylets import Raylets, bare_python, pretend
from tuner.run.run import Run
from tuner.run.trial import EpochMetrics, TrialRecord, read_history

pytestmark = [pytest.mark.ray, pytest.mark.slow]

LASTING = ("--trials", "1000", "--epochs", "40", "--max-failures", "0")
"""A search that outlasts every test, on a fast machine too. No trial of it may lose a worker, but a
node is not held against it."""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "space.yaml").write_text(SPACE)
    return tmp_path


@pytest.fixture
def cluster() -> Iterator[Cluster]:
    # A killed node is missed after 5 s, not 15; a slow one is given as long as ever to answer.
    missed = {"health_check_period_ms": 1000}
    cluster = Cluster(
        initialize_head=True, head_node_args={"num_cpus": 1, "_system_config": missed}
    )
    yield cluster
    cluster.shutdown()


def begin(folder: Path, cluster: Cluster | Raylets, *options: str) -> Search:
    """Begin a search that saves, unless ``options`` say otherwise, each epoch."""
    arguments = ("--space", "space.yaml", "--name", "run", "--scheduler", "none")
    saving = ("--save-seconds", "0")
    return Search(folder, *arguments, *saving, "--address", cluster.address, *options)


def trials(folder: Path) -> list[TrialRecord]:
    path = folder / "runs" / "run"
    return Run.open(path).trials() if (path / "run.json").exists() else []


def interrupt(search: Search) -> None:
    """End a search after the running epochs."""
    search.process.send_signal(signal.SIGINT)
    assert search.wait(120) == 130, search.errors


def assert_whole(found: list[TrialRecord]) -> None:
    """Hold trials to what a search that was interrupted leaves."""
    assert {trial.status.state for trial in found} <= {"completed", "interrupted"}
    assert [text for trial in found for text in flaws(trial)] == []


def test_a_lost_node_is_no_failure_of_its_trial(folder: Path, cluster: Cluster) -> None:
    removed = cluster.add_node(num_cpus=1)

    def on_it() -> list[TrialRecord]:
        return [
            trial
            for trial in trials(folder)
            if trial.status.node == removed.node_id and len(trial.history) >= 2
        ]

    with begin(folder, cluster, *LASTING) as search:
        wait_until(on_it)
        (moved,) = on_it()
        cluster.remove_node(removed, allow_graceful=False)
        before = read_history(moved.path)
        assert len(before) < 40, "it was lost in mid-run"
        # Its worker may end one more epoch before it is missed.
        wait_until(lambda: trials(folder)[moved.number].status.attempts == 2)
        seen = len(read_history(moved.path))
        wait_until(lambda: len(read_history(moved.path)) > seen)
        interrupt(search)
    found = trials(folder)
    assert_whole(found)
    after = found[moved.number]
    assert after.history[: len(before)] == tuple(before), "no epoch was trained again"
    assert after.status.node not in ("", removed.node_id)
    assert after.status.attempts == 2


def drain(cluster: Cluster, node_id: str) -> None:
    """Announce that a node will be taken away, as a cloud's notice does, or an autoscaler."""
    in_ten_minutes = int(1000 * (time.time() + 600))
    reason = autoscaler_pb2.DRAIN_NODE_REASON_PREEMPTION
    control = ray._raylet.GcsClient(address=cluster.address)
    assert control.drain_node(node_id, reason, "spot", in_ten_minutes) == (True, "")


def test_the_trials_of_a_drained_node_go_on_elsewhere(folder: Path, cluster: Cluster) -> None:
    leaving = cluster.add_node(num_cpus=2)

    def on_it() -> list[TrialRecord]:
        return [
            trial
            for trial in trials(folder)
            if trial.status.node == leaving.node_id and trial.status.state == "running"
        ]

    # What is not saved when the notice comes has to be, before the worker may go.
    with begin(folder, cluster, *LASTING, "--save-seconds", "2") as search:
        wait_until(lambda: len([trial for trial in on_it() if len(trial.history) >= 2]) == 2)
        before = {trial.number: read_history(trial.path) for trial in on_it()}
        assert all(len(rows) < 40 for rows in before.values()), "it is drained in mid-run"
        drain(cluster, leaving.node_id)
        wait_until(lambda: not on_it())
        seen = len(trials(folder))

        def have_gone_on() -> bool:
            assert not on_it(), "it is given no trial any more"
            now = {trial.number: trial for trial in trials(folder)}
            return all(len(now[number].history) > len(rows) for number, rows in before.items())

        wait_until(have_gone_on)
        wait_until(lambda: len(trials(folder)) > seen)
        interrupt(search)
    assert "The cluster has 1 node now, room for 1 trial at a time." in search.errors
    found = trials(folder)
    assert_whole(found)
    for number, rows in before.items():
        assert found[number].history[: len(rows)] == tuple(rows), "no epoch was trained again"
        assert found[number].status.attempts == 2


def test_a_node_that_joins_with_other_versions_gets_no_trials(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    old, bare = bare_python(tmp_path / "old", ()), bare_python(tmp_path / "bare", ("torch",))
    pretend(old, "torch", "1.0.0")
    with Raylets() as cluster, begin(folder, cluster, *LASTING) as search:
        wait_until(lambda: any(trial.history for trial in trials(folder)))
        for python in (old, bare):
            cluster.add(python)
        wait_until(lambda: sum(trial.status.attempts - 1 for trial in trials(folder)) == 2)
        refused = {trial.number for trial in trials(folder) if trial.status.attempts > 1}
        wait_until(lambda: all(trials(folder)[number].history for number in refused))
        interrupt(search)
    assert search.errors.count("A node gets no trials") == 2, search.errors
    assert "1.0.0 !" in search.errors
    assert "none !" in search.errors
    found = trials(folder)
    assert_whole(found)
    assert len({trial.status.node for trial in found if trial.history}) == 1


@needs_own_mounts
def test_a_node_that_joins_without_the_storage_gets_no_trials(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    with Raylets() as cluster, begin(folder, cluster, *LASTING) as search:
        wait_until(lambda: any(trial.history for trial in trials(folder)))
        cluster.add(own=folder / "runs")
        wait_until(lambda: "gets no trials" in search.errors)
        wait_until(lambda: sum(trial.status.attempts - 1 for trial in trials(folder)) == 1)
        (moved,) = (trial.number for trial in trials(folder) if trial.status.attempts == 2)
        wait_until(lambda: trials(folder)[moved].history)
        interrupt(search)
    assert search.errors.count("A node gets no trials") == 1, search.errors
    assert "status.json, which was written for it. Give it the storage" in search.errors
    found = trials(folder)
    assert_whole(found)
    assert len({trial.status.node for trial in found if trial.history}) == 1


def test_a_node_that_comes_and_goes_is_used_each_time_and_held_against_no_trial(
    folder: Path, cluster: Cluster
) -> None:
    with begin(folder, cluster, *LASTING) as search:
        for _ in range(3):
            node = cluster.add_node(num_cpus=1)
            # Lost as soon as a trial is there, which may not have ended its first epoch.
            wait_until(lambda: any(t.status.node == node.node_id for t in trials(folder)))  # noqa: B023
            cluster.remove_node(node, allow_graceful=False)
        wait_until(lambda: sum(trial.status.attempts - 1 for trial in trials(folder)) == 3)
        last = cluster.add_node(num_cpus=1)
        wait_until(lambda: any(t.status.node == last.node_id and t.history for t in trials(folder)))
        interrupt(search)
    assert "The cluster has 2 nodes now, room for 2 trials at a time." in search.errors
    found = trials(folder)
    assert_whole(found)
    assert sum(trial.status.attempts for trial in found) == len(found) + 3


def test_a_worker_that_wakes_up_after_its_trial_went_on_elsewhere_changes_nothing(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    for name, value in (("period_ms", 1000), ("timeout_ms", 3000), ("failure_threshold", 3)):
        monkeypatch.setenv(f"RAY_health_check_{name}", str(value))
    # Epochs of more than a second, so that the node freezes within one.
    # Of these a fast machine has some left, too, when the node freezes for good. The trial that was
    # on it goes on when the other one has ended.
    options = ("space.batch_size=4", "--trials", "2", "--epochs", "40", "--max-failures", "0")
    with Raylets() as cluster:
        number = cluster.add()
        cluster.wait_for_nodes(2)
        search = begin(folder, cluster, *options)
        with search:
            wait_until(lambda: sum(len(trial.history) >= 2 for trial in trials(folder)) == 2)
            frozen = cluster.running(number)
            send(frozen, signal.SIGSTOP)
            time.sleep(2)
            send(frozen, signal.SIGCONT)
            time.sleep(4)
            assert [trial.status.attempts for trial in trials(folder)] == [1, 1], "it was but slow"
            frozen = cluster.running(number)
            send(frozen, signal.SIGSTOP)
            wait_until(lambda: any(trial.status.attempts == 2 for trial in trials(folder)))
            (moved,) = (trial for trial in trials(folder) if trial.status.attempts == 2)
            before = moved.history
            assert len(before) < 30
            # As after a cut line: the worker goes on, and the raylet that would end it does not.
            send([p for p in frozen if p.name.startswith("ray::Implicit")], signal.SIGCONT)
            rows: list[EpochMetrics] = list(before)
            while len(rows) < len(before) + 6:
                now = read_history(moved.path)
                assert now[: len(rows)] == rows, "written over"
                rows = now
                assert search.wait(0.05) is None, search.errors
            interrupt(search)
            send(frozen, signal.SIGCONT)
    found = trials(folder)
    assert_whole(found)
    assert found[moved.number].status.state == "interrupted"
    assert not found[1 - moved.number].state.exists()


def send(processes: Iterable[Process], number: signal.Signals) -> None:
    for process in processes:
        process.kill(number)
