"""Ray nodes as processes of their own, on free ports and in folders of their own.

``ray.cluster_utils.Cluster`` has no dashboard and runs every node with this Python; ``ray stop``
would end other clusters of this machine too.
"""

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.error import HTTPError, URLError
from urllib.request import urlopen

import psutil

from tests.benchmarks.processes import Process, descendants
from tests.stores import free_port

SITE = Path(next(path for path in sys.path if path.endswith("site-packages")))


def listening_addresses(processes: Iterable[psutil.Process]) -> set[str]:
    """Return the addresses that processes listen on."""
    return {
        connection.laddr.ip.removeprefix("::ffff:")
        for process in processes
        for connection in process.net_connections("inet")
        if connection.status == psutil.CONN_LISTEN
    }


def bare_python(folder: Path, without: Sequence[str]) -> Path:
    """Make a Python that has all that is installed here, except for some packages.

    Args:
        folder: Where it is made.
        without: How the names of packages begin, as they stand among the installed ones.
    """
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(folder)], check=True)
    site = folder / "lib" / SITE.parent.name / "site-packages"
    for path in SITE.iterdir():
        if not path.name.lower().startswith(("__editable__", "cifar_tune", *without)):
            (site / path.name).symlink_to(path)
    return folder / "bin" / "python"


def pretend(python: Path, package: str, version: str) -> None:
    """Have a Python of ``bare_python`` say that a package has another version than it has."""
    (info,) = SITE.glob(f"{package}-*.dist-info")
    link = next(python.parents[1].glob(f"lib/*/site-packages/{info.name}"))
    link.unlink()
    link.mkdir()
    text = f"Metadata-Version: 2.1\nName: {package}\nVersion: {version}\n"
    (link / "METADATA").write_text(text)


class Raylets:
    """A head with a dashboard, and nodes that join it, until the end of a ``with`` block.

    Args:
        python: That the head runs on.
        cpus: That it has.
        token: File of the token that all of them ask for; ``None`` if they ask for none.
        growth: What ``ray up`` calls ``available_node_types``, of which Ray's real autoscaler may
            add nodes on this machine; ``None`` for no autoscaler.
    """

    def __init__(
        self,
        python: Path = Path(sys.executable),
        *,
        cpus: int = 1,
        token: Path | None = None,
        growth: Mapping[str, Any] | None = None,
    ) -> None:
        self._token = token
        self._is_growing = growth is not None
        # A short path, for Ray's sockets.
        self._folder = tempfile.TemporaryDirectory(prefix="ray-", ignore_cleanup_errors=True)
        self._processes: list[subprocess.Popen[bytes]] = []
        port, dashboard = free_port(), free_port()
        self.address = f"127.0.0.1:{port}"
        self.dashboard = f"http://127.0.0.1:{dashboard}"
        self.bootstrap = Path(self._folder.name, "bootstrap.yaml")
        head = ["--head", "--include-dashboard=true", f"--dashboard-port={dashboard}"]
        if growth is not None:
            self.bootstrap.write_text(json.dumps(autoscaling(self.address, cpus, growth)))
            head.append(f"--autoscaling-config={self.bootstrap}")
        self._start(python, cpus, *head, f"--port={port}")
        try:
            wait_for(self.dashboard + "/api/version")
        except BaseException:
            self.__exit__()
            raise

    def add(
        self, python: Path = Path(sys.executable), *, cpus: int = 1, own: Path | None = None
    ) -> int:
        """Start one more node; give its number.

        Args:
            python: That it runs on.
            cpus: That it has.
            own: A folder of which it sees another one than the rest, as on a machine of its own.
        """
        self._start(python, cpus, f"--address={self.address}", own=own)
        return len(self._processes) - 1

    def wait_for_nodes(self, number: int, seconds: float = 120) -> None:
        """Wait until so many nodes have joined."""
        end = time.monotonic() + seconds
        while self._num_alive() != number:
            assert time.monotonic() < end, f"not {number} nodes"
            time.sleep(0.5)

    def _num_alive(self) -> int:
        with urlopen(f"{self.dashboard}/nodes?view=summary", timeout=30) as answer:
            nodes = json.load(answer)["data"]["summary"]
        return sum(node["raylet"].get("state") == "ALIVE" for node in nodes)

    def running(self, number: int) -> list[Process]:
        """Return all processes of a node, those that it trains in among them."""
        return descendants(self._processes[number].pid)

    def remove(self, number: int) -> None:
        """Kill a node with all that it runs, as a power cut does."""
        process = self._processes[number]
        started = self.running(number)
        process.kill()
        for child in started:
            child.kill()
        process.wait()

    def _start(self, python: Path, cpus: int, *options: str, own: Path | None = None) -> None:
        left_out = ("PYTHONPATH", "RAY_AUTH_TOKEN_PATH")
        environment = {key: value for key, value in os.environ.items() if key not in left_out}
        environment |= {
            "PATH": f"{python.parent}:{environment['PATH']}",
            "RAY_AUTH_MODE": "token" if self._token else "disabled",
            "RAY_USAGE_STATS_ENABLED": "0",
        }
        if self._token:
            environment["RAY_AUTH_TOKEN_PATH"] = str(self._token)
        if self._is_growing:
            environment |= {"RAY_FAKE_CLUSTER": "1", "AUTOSCALER_UPDATE_INTERVAL_S": "1"}
        # Nodes that share a folder unpack what travels over each other.
        folder = Path(self._folder.name, str(len(self._processes)))
        folder.mkdir()
        ports = [
            f"--{name}-port={free_port()}"
            for name in ("dashboard-agent-grpc", "dashboard-agent-listen", "runtime-env-agent")
        ]
        common = ("--block", "--node-ip-address=127.0.0.1", f"--temp-dir={folder}", *ports)
        mount = 'mount -t tmpfs none "$0" && exec "$@"'
        with (folder / "log").open("wb") as log:
            process = subprocess.Popen(
                [
                    *(("unshare", "--mount", "sh", "-c", mount, str(own)) if own else ()),
                    *(str(python), "-m", "ray.scripts.scripts", "start", *common),
                    *(f"--num-cpus={cpus}", "--num-gpus=0", *options),
                ],
                env=environment,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        self._processes.append(process)

    def __enter__(self) -> "Raylets":
        return self

    def __exit__(self, *details: object) -> None:
        for number in reversed(range(len(self._processes))):
            self.remove(number)
        self._folder.cleanup()


def autoscaling(address: str, cpus: int, growth: Mapping[str, Any]) -> dict[str, Any]:
    """Return what ``ray up`` would have left on the head, of nodes that are processes here.

    ``ray.cluster_utils.AutoscalingCluster`` does as much, with a file that Ray's package lacks, and
    ends all Rays of the machine before and after.
    """
    lists = ("initialization", "setup", "head_setup", "worker_setup", "head_start_ray")
    return {
        "cluster_name": "tests",
        "max_workers": 8,
        "provider": {
            "type": "fake_multinode",
            "use_node_id_as_ip": True,
            "disable_node_updaters": True,
            "disable_launch_config_check": True,
            "gcs_address": address,
        },
        "available_node_types": {
            "ray.head.default": {"resources": {"CPU": cpus}, "node_config": {}, "max_workers": 0}
        }
        | {name: {"node_config": {}, **kind} for name, kind in growth.items()},
        "head_node_type": "ray.head.default",
        "upscaling_speed": 1.0,
        "idle_timeout_minutes": 5,
        **{f"{name}_commands": [] for name in (*lists, "worker_start_ray")},
        **{name: {} for name in ("auth", "docker", "file_mounts")},
        **{name: [] for name in ("cluster_synced_files", "rsync_exclude", "rsync_filter")},
        "file_mounts_sync_continuously": False,
    }


def wait_for(url: str, seconds: float = 120) -> None:
    """Wait until a server answers."""
    end = time.monotonic() + seconds
    while True:
        try:
            with urlopen(url, timeout=5):
                return
        except HTTPError:
            return  # It asks who we are.
        except (URLError, OSError):
            assert time.monotonic() < end, f"no answer from {url}"
            time.sleep(0.5)
