"""A search without a cluster is nobody else's business: its ports, its token, its leftovers."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
import torch

from tests.raylets import listening_addresses
from tuner.errors import ClusterError
from tuner.storage import temporary
from tuner.tuning.ray_backend import cluster
from tuner.tuning.ray_backend.sessions import MARKER, remove_old_sessions

SEARCH = """
import json, time, ray
from tuner.tuning.ray_backend.cluster import connected
with connected(None):
    ray.get(ray.remote(lambda: 0).remote())
    print(json.dumps(ray.nodes()[0]["RayletSocketName"]), flush=True)
    time.sleep(600)
"""


@pytest.mark.ray
def test_a_local_cluster_listens_on_this_machine_alone_and_leaves_nothing(
    tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    home = tmp_path_factory.mktemp("home")
    environment = {key: os.environ[key] for key in os.environ if not key.startswith("RAY_")}
    search = subprocess.Popen(
        [sys.executable, "-c", SEARCH],
        env=environment | {"HOME": str(home)},
        stdout=subprocess.PIPE,
        text=True,
    )
    assert search.stdout
    with search:
        session = Path(json.loads(search.stdout.readline())).parents[1]
        processes = [psutil.Process(search.pid), *psutil.Process(search.pid).children(True)]
        assert listening_addresses(processes) == {"127.0.0.1"}
        commands = " ".join(word for process in processes for word in process.cmdline())
        assert "raylet" in commands
        unused = ("dashboard.py", "log_monitor.py", "monitor.py")
        assert not [name for name in unused if name in commands]
        assert (home / ".ray" / "auth_token").stat().st_mode & 0o777 == 0o600
        monkeypatch.setattr(temporary, "YOUNG_SECONDS", 0.0)
        remove_old_sessions(session.parent)
        assert (session / MARKER).exists(), "the search runs"
        # What Ray started would end by itself, within a minute.
        for process in processes:
            process.kill()
    psutil.wait_procs(processes, timeout=60)
    end = time.monotonic() + 60
    while session.exists():
        assert time.monotonic() < end, "its processes are gone, but it stays"
        remove_old_sessions(session.parent)
        time.sleep(0.5)


def test_a_token_that_others_can_read_is_made_private(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("RAY_AUTH_MODE", raising=False)
    token = tmp_path / ".ray" / "auth_token"
    token.parent.mkdir()
    token.write_text("secret")
    token.chmod(0o644)
    cluster.make_token_private()
    assert (token.read_text(), token.stat().st_mode & 0o777) == ("secret", 0o600)


def test_a_session_of_others_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "session_1").mkdir()
    remove_old_sessions(tmp_path)
    assert (tmp_path / "session_1").exists()


def test_a_ray_that_ends_while_it_starts_is_told_in_a_line_and_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RAY_TMPDIR", str(tmp_path))
    monkeypatch.setattr(temporary, "YOUNG_SECONDS", 0.0)
    session = tmp_path / "ray" / f"session_2026-01-01_00-00-00_000000_{os.getpid()}"

    def start(**options: object) -> None:
        session.mkdir(parents=True)
        while not (session / MARKER).exists():
            time.sleep(0.01)
        # As Ray 2.60 does where its raylet or GCS is killed by then.
        raise Exception("The current node timed out during startup.\nThis could happen because ...")

    monkeypatch.setattr(cluster.ray, "init", start)
    message = "Ray could not be started here: The current node timed out during startup.$"
    with pytest.raises(ClusterError, match=message), cluster.connected("local"):
        pass
    remove_old_sessions(session.parent)
    assert not session.exists()


def test_a_home_that_cannot_be_written_is_told_with_what_helps(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("HOME", str(tmp_path / "file"))
    monkeypatch.delenv("RAY_AUTH_MODE", raising=False)
    with (
        pytest.raises(ClusterError, match="Set HOME to a folder that can be written"),
        cluster.connected(None),
    ):
        pass


@pytest.mark.parametrize("num_cpus", [0, 2])
@pytest.mark.parametrize("is_usable", [True, False])
def test_a_local_cluster_offers_no_gpu_that_pytorch_cannot_use_and_a_cpu(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, is_usable: bool, num_cpus: int
) -> None:
    given: dict[str, object] = {}

    def start(**options: object) -> None:
        given.update(options)
        raise Exception("That is enough.")

    monkeypatch.setenv("RAY_TMPDIR", str(tmp_path))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: is_usable)
    monkeypatch.setattr(cluster.ray_utils, "get_num_cpus", lambda: num_cpus)
    monkeypatch.setattr(cluster.ray, "init", start)
    with pytest.raises(ClusterError, match="That is enough"), cluster.connected("local"):
        pass
    assert given.get("num_gpus") == (None if is_usable else 0)
    assert given.get("num_cpus") == (None if num_cpus else 1), "in a container with half a CPU"
