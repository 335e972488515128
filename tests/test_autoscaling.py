"""Clusters that grow while trials wait, by Ray's own autoscaler."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import ray

from tests.benchmarks.faults import SPACE
from tests.conftest import wait_until
from tests.raylets import Raylets
from tests.test_elastic import assert_whole, begin, interrupt, trials

pytestmark = [pytest.mark.ray, pytest.mark.slow]

WORKERS = {"worker": {"resources": {"CPU": 1}, "max_workers": 2}}


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return a folder with a space, where a driver looks for what ``ray up`` leaves on a head."""
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "space.yaml").write_text(SPACE)
    return tmp_path


@pytest.fixture(scope="module")
def cluster() -> Iterator[Raylets]:
    """Start a head without CPUs, with an autoscaler."""
    with Raylets(cpus=0, growth=WORKERS) as raylets, pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_AUTH_MODE", "disabled")
        control = ray._raylet.GcsClient(address=raylets.address)

        def is_managed() -> bool:
            status = json.loads(control.internal_kv_get(b"__autoscaling_status", None) or "{}")
            return bool(status.get("autoscaler_report"))

        wait_until(is_managed)
        yield raylets


def test_a_search_on_a_cluster_without_workers_has_it_grow(folder: Path, cluster: Raylets) -> None:
    (folder / "ray_bootstrap_config.yaml").write_text(cluster.bootstrap.read_text())
    with begin(folder, cluster, "--cpus-per-trial", "2") as refused:
        assert refused.wait(60) == 4
    assert "adds none that has more (at most 2 of 1 CPU and" in refused.errors
    with begin(folder, cluster, "--trials", "6", "--epochs", "20") as search:
        assert search.wait(240) == 0, search.errors
    assert "run: 2 trials at a time" in search.errors
    assert search.errors.count("Waiting for a node") == 1
    assert "Waiting for a node that has 1 CPU, from the autoscaler." in search.errors
    found = trials(folder)
    assert [trial.status.state for trial in found] == ["completed"] * 6
    assert len({trial.status.node for trial in found}) == 2, "a second node came for what waited"


def test_a_search_waits_for_nodes_of_which_nothing_is_known_until_it_is_interrupted(
    folder: Path, cluster: Raylets
) -> None:
    with begin(folder, cluster, "--gpus-per-trial", "1", "--trials", "3") as search:
        wait_until(lambda: "Waiting for a node that has 1 CPU and 1 GPU" in search.errors)
        interrupt(search)
    found = trials(folder)
    assert_whole(found)
    assert [trial.status.reason for trial in found] == ["after epoch 0, before it had a worker"]
