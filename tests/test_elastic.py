"""Clusters that change under a search, and clusters of many small nodes."""

import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from ray.cluster_utils import Cluster

from tests.benchmarks.faults import SPACE
from tests.benchmarks.processes import Search
from tuner.run import Run
from tuner.trial import TrialRecord, read_history

pytestmark = [pytest.mark.ray, pytest.mark.slow]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "space.yaml").write_text(SPACE)
    return tmp_path


@pytest.fixture
def cluster() -> Iterator[Cluster]:
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1})
    yield cluster
    cluster.shutdown()


def begin(folder: Path, cluster: Cluster, *options: str) -> Search:
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
    with begin(folder, cluster, "--trials", "6", "--epochs", "60") as search:
        wait_until(lambda: any(trial.history for trial in trials(folder)))
        joined = cluster.add_node(num_cpus=1)
        assert search.wait(250) == 0, search.errors
    assert "The cluster has 2 nodes now, room for 2 trials at a time." in search.errors
    found = trials(folder)
    assert [trial.status.state for trial in found] == ["completed"] * 6
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
    with begin(folder, cluster, "--trials", "3", "--epochs", "60", "--max-failures", "0") as search:
        wait_until(on_it)
        (moved,) = on_it()
        cluster.remove_node(removed, allow_graceful=False)
        before = read_history(moved.path)
        assert len(before) < 60, "it was lost in mid-run"
        assert search.wait(250) == 0, search.errors
    found = trials(folder)
    assert [trial.status.state for trial in found] == ["completed"] * 3
    after = found[moved.number].history
    assert after[: len(before)] == tuple(before), "no epoch was trained again"
    assert found[moved.number].status.node != removed.node_id
