"""The Ray cluster: connect or start, what it has, and what a trial may ask of it."""

import logging
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ray

import tuner
from tuner.errors import ClusterError, UsageError

CONNECT_SECONDS = 5.0


@dataclass(frozen=True, kw_only=True, slots=True)
class Slots:
    """What each trial gets, and how many trials fit at once."""

    cpus: float
    gpus: float
    count: int

    @property
    def threads(self) -> int:
        """Threads of a trial: never more than its CPUs.

        Two trials of one thread each train 1.26 times as many images as one of two threads; two of
        two threads on the same two cores 0.69 times.
        """
        return max(1, int(self.cpus))

    def __str__(self) -> str:
        return f"{_count(self.count, 'trial')} at a time, each on {_share(self.cpus, self.gpus)}"


def _share(cpus: float, gpus: float) -> str:
    return _count(cpus, "CPU") + (f" and {_count(gpus, 'GPU')}" if gpus else "")


def _count(number: float, noun: str) -> str:
    return f"{number:g} {noun}{'' if number == 1 else 's'}"


@contextmanager
def connected(address: str | None) -> Iterator[None]:
    """Connect to the cluster at ``address`` or in ``RAY_ADDRESS``, or start Ray here, for a while.

    A session that the caller has opened already is used as it is, and left open.

    Raises:
        UsageError: If the address is of a kind that cannot be searched from.
        ClusterError: If nobody answers there, or not as a Ray cluster.
    """
    _hush()
    if ray.is_initialized():
        yield
        return
    address = address or os.environ.get("RAY_ADDRESS") or None
    options: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.CRITICAL}
    if address is None:
        options |= {"address": "local", "include_dashboard": False}
    else:
        _check_address(address)
        # The nodes need no copy of this package: it travels with the search.
        package = str(Path(tuner.__file__).parent)
        options |= {"address": address, "runtime_env": {"py_modules": [package]}}
    try:
        ray.init(**options)
    except (ConnectionError, RuntimeError, ValueError, OSError) as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise ClusterError(
            f"--address {address}: no Ray cluster could be used: {reason}"
            if address
            else f"Ray could not be started here: {reason}"
        ) from error
    # Ray sets up its own logging as it starts.
    _hush()
    try:
        yield
    finally:
        ray.shutdown()


def _hush() -> None:
    """Keep the engine's notices off the terminal; what goes wrong is told by us."""
    for name in ("ray", "ray.tune", "ray.train", "ray.air"):
        logging.getLogger(name).setLevel(logging.CRITICAL)


def _check_address(address: str) -> None:
    """Refuse at once what Ray would wait for, or explain in pages."""
    if address.startswith("ray://"):
        raise UsageError(
            f"--address {address}: a search cannot run over ray://. Run it on a machine of the "
            "cluster with --address auto."
        )
    if address in ("auto", "local"):
        return
    host, _, port = address.rpartition(":")
    if not host or not port.isdigit():
        raise UsageError(f"--address {address}: not an address. Give auto, or HOST:PORT.")
    try:
        socket.create_connection((host, int(port)), timeout=CONNECT_SECONDS).close()
    except (OSError, OverflowError) as error:
        raise ClusterError(
            f"--address {address}: nobody answers there ({error}). Start a cluster with "
            "'ray start --head', or leave --address out to search on this machine."
        ) from error


def plan_slots(gpus: float | None, cpus: float | None, concurrent: int | None) -> Slots:
    """Decide what each trial gets of the connected cluster.

    Without a word, a trial gets one GPU where there are any, and one CPU.

    Args:
        gpus: GPUs a trial; a fraction lets several trials share one.
        cpus: CPUs a trial.
        concurrent: The most trials at once; ``None`` for as many as fit.

    Raises:
        ClusterError: If no node could ever run a trial, or not so many at once.
    """
    nodes = _nodes()
    total_gpus = sum(node.get("GPU", 0) for node in nodes)
    gpus = (1.0 if total_gpus else 0.0) if gpus is None else gpus
    cpus = 1.0 if cpus is None else cpus
    if gpus > 1 and gpus != int(gpus):
        raise UsageError(f"--gpus-per-trial {gpus:g}: above 1, only whole GPUs can be given")
    count = sum(_fits(node, cpus, gpus) for node in nodes)
    if not count:
        largest = max(nodes, key=lambda node: (node.get("GPU", 0), node.get("CPU", 0)))
        raise ClusterError(
            f"a trial asks for {_share(cpus, gpus)}, but the largest of "
            f"{_count(len(nodes), 'node')} has {_count(largest.get('CPU', 0), 'CPU')} and "
            f"{_count(largest.get('GPU', 0), 'GPU')}. Lower --cpus-per-trial or --gpus-per-trial "
            "(0 trains on CPUs)."
        )
    if concurrent is not None and concurrent > count:
        raise ClusterError(
            f"--concurrent {concurrent}: only {_count(count, 'trial')} of {_share(cpus, gpus)} can "
            f"run at once. Give --concurrent {count} or less, or less to each trial."
        )
    return Slots(cpus=cpus, gpus=gpus, count=concurrent or count)


def _fits(node: dict[str, float], cpus: float, gpus: float) -> int:
    """Count the trials that fit on a node at once; a GPU share lies on one GPU."""
    by_cpu = int(node.get("CPU", 0) / cpus) if cpus else None
    by_gpu = int(node.get("GPU", 0)) * int(1 / gpus) if 0 < gpus < 1 else None
    if gpus >= 1:
        by_gpu = int(node.get("GPU", 0) / gpus)
    return min(number for number in (by_cpu, by_gpu) if number is not None)


def _nodes() -> list[dict[str, float]]:
    """Give the resources of each node that is alive."""
    return [node["Resources"] for node in ray.nodes() if node["Alive"]]  # type: ignore[no-untyped-call]


def hardware() -> dict[str, Any]:
    """Describe the connected cluster for the run's record."""
    nodes = _nodes()
    kinds = {
        key.removeprefix("accelerator_type:")
        for node in nodes
        for key in node
        if "accelerator_type:" in key
    }
    return {
        "nodes": len(nodes),
        "cpus": sum(node.get("CPU", 0) for node in nodes),
        "gpus": sum(node.get("GPU", 0) for node in nodes),
        "accelerators": sorted(kinds),
    }
