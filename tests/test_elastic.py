"""Clusters that change under a search."""

import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import ray
from ray.cluster_utils import Cluster
from ray.core.generated import autoscaler_pb2

from tests.benchmarks.faults import SPACE
from tests.benchmarks.processes import Search
from tests.raylets import Raylets, bare_python, pretend
from tuner.run import Run
from tuner.trial import TrialRecord, read_history

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
    old, bare = bare_python(tmp_path / "old", ()), bare_python(tmp_path / "bare", ("torchvision",))
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
