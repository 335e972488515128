"""Clusters that change under a search."""

import signal
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import pytest
import ray
from ray.cluster_utils import Cluster
from ray.core.generated import autoscaler_pb2

from tests.benchmarks.faults import SPACE
from tests.benchmarks.processes import Process, Search
from tests.benchmarks.promises import flaws
from tests.raylets import Raylets, bare_python, pretend
from tuner.run import Run
from tuner.trial import EpochRow, TrialRecord, read_history

pytestmark = [pytest.mark.ray, pytest.mark.slow]


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
    arguments = ("--space", "space.yaml", "--name", "run", "--scheduler", "none")
    return Search(folder, *arguments, "--address", cluster.address, *options)


def trials(folder: Path) -> list[TrialRecord]:
    path = folder / "runs" / "run"
    return Run.open(path).trials() if (path / "run.json").exists() else []


def wait_until(is_so: Callable[[], object], seconds: float = 120) -> None:
    end = time.monotonic() + seconds
    while not is_so():
        assert time.monotonic() < end, "it did not come to pass"
        time.sleep(0.05)


def test_a_node_that_joins_is_used(folder: Path, cluster: Cluster) -> None:
    with begin(folder, cluster, "--trials", "4", "--epochs", "30") as search:
        wait_until(lambda: any(trial.history for trial in trials(folder)))
        joined = cluster.add_node(num_cpus=1)
        assert search.wait(250) == 0, search.errors
    assert "The cluster has 2 nodes now, room for 2 trials at a time." in search.errors
    found = trials(folder)
    assert [trial.status.state for trial in found] == ["completed"] * 4
    assert joined.node_id in {trial.status.node for trial in found}


def test_a_lost_node_is_no_failure_of_its_trial(folder: Path, cluster: Cluster) -> None:
    removed = cluster.add_node(num_cpus=1)

    def on_it() -> list[TrialRecord]:
        return [
            trial
            for trial in trials(folder)
            if trial.status.node == removed.node_id and len(trial.history) >= 2
        ]

    # The trial may lose no worker, but a node is not held against it.
    with begin(folder, cluster, "--trials", "3", "--epochs", "20", "--max-failures", "0") as search:
        wait_until(on_it)
        (moved,) = on_it()
        cluster.remove_node(removed, allow_graceful=False)
        before = read_history(moved.path)
        assert len(before) < 20, "it was lost in mid-run"
        assert search.wait(250) == 0, search.errors
    found = trials(folder)
    assert [trial.status.state for trial in found] == ["completed"] * 3
    after = found[moved.number].history
    assert after[: len(before)] == tuple(before), "no epoch was trained again"
    assert found[moved.number].status.node != removed.node_id


def drain(cluster: Cluster, node_id: str) -> None:
    """Announce that a node will be taken away, as a cloud's notice does, or an autoscaler."""
    in_ten_minutes = int(1000 * (time.time() + 600))
    reason = autoscaler_pb2.DRAIN_NODE_REASON_PREEMPTION
    control = ray._raylet.GcsClient(address=cluster.address)
    assert control.drain_node(node_id, reason, "spot", in_ten_minutes) == (True, "")


def test_the_trials_of_a_drained_node_go_on_elsewhere(folder: Path, cluster: Cluster) -> None:
    leaving = cluster.add_node(num_cpus=2)

    def on_it() -> list[TrialRecord]:
        return [trial for trial in trials(folder) if trial.status.node == leaving.node_id]

    with begin(folder, cluster, "--trials", "4", "--epochs", "20", "--max-failures", "0") as search:
        wait_until(lambda: len([trial for trial in on_it() if len(trial.history) >= 2]) == 2)
        before = {trial.number: read_history(trial.path) for trial in on_it()}
        drain(cluster, leaving.node_id)
        wait_until(lambda: not on_it())
        seen = len(trials(folder))
        while search.wait(0.2) is None:
            assert not on_it(), "it is given no trial any more"
        assert search.process.returncode == 0, search.errors
    assert "The cluster has 1 node now, room for 1 trial at a time." in search.errors
    found = trials(folder)
    assert seen < len(found), "some trials began after the node was drained"
    assert [trial.status.state for trial in found] == ["completed"] * 4
    for number, rows in before.items():
        assert len(rows) < 20, "it was drained in mid-run"
        assert found[number].history[: len(rows)] == tuple(rows), "no epoch was trained again"
        assert found[number].status.attempts == 2


def test_a_node_that_joins_with_other_versions_gets_no_trials(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    old, bare = bare_python(tmp_path / "old", ()), bare_python(tmp_path / "bare", ("torch",))
    pretend(old, "torch", "1.0.0")
    options = ("--trials", "4", "--epochs", "30", "--max-failures", "0")
    with Raylets() as cluster, begin(folder, cluster, *options) as search:
        wait_until(lambda: any(trial.history for trial in trials(folder)))
        for python in (old, bare):
            cluster.add(python, cpus=2)
        assert search.wait(250) == 0, search.errors
    said = search.errors
    assert said.count("A node that joined gets no trials") == 2, said
    assert "1.0.0 !" in said
    assert "none !" in said
    found = trials(folder)
    assert [trial.status.state for trial in found] == ["completed"] * 4
    assert len({trial.status.node for trial in found}) == 1


def test_a_node_that_comes_and_goes_is_used_each_time_and_held_against_no_trial(
    folder: Path, cluster: Cluster
) -> None:
    options = ("--trials", "4", "--epochs", "30", "--max-failures", "0")
    with begin(folder, cluster, *options) as search:
        for _ in range(3):
            node = cluster.add_node(num_cpus=1)
            # Lost as soon as a trial is there, which may not have ended its first epoch.
            wait_until(lambda: any(t.status.node == node.node_id for t in trials(folder)))  # noqa: B023
            cluster.remove_node(node, allow_graceful=False)
        assert search.wait(250) == 0, search.errors
    found = trials(folder)
    assert [trial.status.state for trial in found] == ["completed"] * 4
    assert sum(trial.status.attempts for trial in found) == 4 + 3
    assert [text for trial in found for text in flaws(trial)] == []


def test_a_worker_that_wakes_up_after_its_trial_went_on_elsewhere_changes_nothing(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    for name, value in (("period_ms", 1000), ("timeout_ms", 3000), ("failure_threshold", 3)):
        monkeypatch.setenv(f"RAY_health_check_{name}", str(value))
    # Epochs of more than a second, so that the node freezes within one.
    options = ("space.batch_size=4", "--trials", "2", "--epochs", "12", "--max-failures", "0")
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
            assert len(before) < 12
            # As after a cut line: the worker goes on, and the raylet that would end it does not.
            send([p for p in frozen if p.name.startswith("ray::Implicit")], signal.SIGCONT)
            rows: list[EpochRow] = list(before)
            while search.wait(0.05) is None:
                now = read_history(moved.path)
                assert now[: len(rows)] == rows, "written over"
                rows = now
            assert search.process.returncode == 0, search.errors
            send(frozen, signal.SIGCONT)
    found = trials(folder)
    assert [trial.status.state for trial in found] == ["completed"] * 2
    assert [text for trial in found for text in flaws(trial)] == []
    assert not any(trial.state.exists() for trial in found)


def send(processes: Iterable[Process], number: signal.Signals) -> None:
    for process in processes:
        process.kill(number)
