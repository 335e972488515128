"""The nodes of the connected cluster: what they have, and whether they can run our trials."""

import platform
import secrets
import time
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass, replace
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import ray
from ray.exceptions import RayTaskError, RuntimeEnvSetupError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from tuner.errors import ClusterError, UsageError
from tuner.storage.files import write_text
from tuner.storage.paths import AnyPath, remove_folder, to_path
from tuner.tuning.ray_backend.private import state

ANSWER_SECONDS = 90.0
"""A node with cold caches starts a worker in about 5 s."""
DOUBT_SECONDS = 30.0
"""A lost worker is noticed before its lost node: Ray checks a node five times, 3 s apart."""
COMPARED = ("ray", "torch", "torchvision")
"""Packages whose versions must be the driver's on all nodes; what else a trial needs travels."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Answer:
    """What one node answered to a question."""

    node: str
    """Its identifier in the cluster."""
    host: str
    value: Any = None
    problem: str = ""
    """Why there is no value; empty if there is one."""


def alive_nodes() -> list[dict[str, Any]]:
    """Return Ray's own record of each node that is alive and takes new work.

    A node that is being drained, by an autoscaler or before a spot machine is taken away, takes
    none, and is as good as lost.
    """
    leaving = draining_nodes()
    nodes = ray.nodes()  # type: ignore[no-untyped-call]
    return [node for node in nodes if node["Alive"] and node["NodeID"] not in leaving]


def draining_nodes() -> frozenset[str]:
    """Return the identifiers of the nodes that finish their present work but take no new work."""
    return frozenset(state.get_draining_nodes())


def gone_nodes() -> frozenset[str]:
    """Return the identifiers of the nodes that have left the cluster or are leaving it."""
    nodes = ray.nodes()  # type: ignore[no-untyped-call]
    return draining_nodes() | {node["NodeID"] for node in nodes if not node["Alive"]}


def alive_resources(but: Collection[str] = ()) -> list[dict[str, float]]:
    """Return the resources of each node in ``alive_nodes``, except for those in ``but``."""
    return [node["Resources"] for node in alive_nodes() if node["NodeID"] not in but]


def is_gone(node: str) -> bool:
    """Whether a node has left the cluster or is leaving it; an empty name stands for no node."""
    return bool(node) and all(alive["NodeID"] != node for alive in alive_nodes())


def ask_nodes(question: Callable[..., Any], *arguments: Any) -> list[Answer]:
    """Call a function on every node of the cluster at once.

    Args:
        question: A function of this package.
        arguments: Arguments of the function.

    Returns:
        One answer per node, in a fixed order; none for a node that has left in the meantime.
    """
    task = ray.remote(num_cpus=0, max_retries=0)(question)
    nodes = sorted(alive_nodes(), key=lambda node: (node["NodeManagerHostname"], node["NodeID"]))
    asked = [
        task.options(
            scheduling_strategy=NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)
        ).remote(*arguments)
        for node in nodes
    ]
    done = set(ray.wait(asked, num_returns=len(asked), timeout=ANSWER_SECONDS)[0])
    end = time.monotonic() + DOUBT_SECONDS
    answers = [
        _answer(node, promise, end) if promise in done else _late(node)
        for node, promise in zip(nodes, asked, strict=True)
    ]
    return [answer for answer in answers if answer is not None]


def _answer(node: dict[str, Any], promise: Any, end: float) -> Answer | None:
    known = {"node": node["NodeID"], "host": node["NodeManagerHostname"]}
    try:
        return Answer(**known, value=ray.get(promise))
    except ray.exceptions.RayError as error:
        is_there = isinstance(error, RayTaskError | RuntimeEnvSetupError)
        if _has_left(node, 0.0 if is_there else end):
            return None
        # If a task raised, the first line names the task and the last one the error.
        lines = str(error).strip().splitlines() or [type(error).__name__]
        return Answer(**known, problem=lines[-1])


def _late(node: dict[str, Any]) -> Answer | None:
    if _has_left(node, 0.0):
        return None
    problem = f"no answer in {ANSWER_SECONDS:g} s"
    return Answer(node=node["NodeID"], host=node["NodeManagerHostname"], problem=problem)


def _has_left(node: dict[str, Any], end: float) -> bool:
    """Whether a node leaves by ``end``, a moment of the monotonic clock."""
    while not is_gone(node["NodeID"]):
        if time.monotonic() >= end:
            return False
        time.sleep(0.5)
    return True


def unshared_nodes(storage: AnyPath) -> Iterator[Answer]:
    """Yield the nodes that do not share a storage with this machine, each with its problem.

    Raises:
        OSError: If it cannot be written from here.
        TunerError: Likewise.
    """
    folder = storage / f".doctor-{secrets.token_hex(4)}"
    try:
        write_text(folder / "driver", "")
        for answer in ask_nodes(touch_marker, str(folder), "driver"):
            is_seen = (folder / answer.node).exists()
            problem = answer.problem or ("" if answer.value and is_seen else "is another folder")
            if problem:
                yield replace(answer, problem=problem)
    finally:
        remove_folder(folder)


def check_shared(storage: AnyPath) -> None:
    """Make sure that all nodes of a multi-node cluster write and read one storage.

    Raises:
        ClusterError: With those that do not.
        UsageError: If it cannot be written from here.
    """
    if len(alive_nodes()) == 1:
        return
    try:
        strangers = list(unshared_nodes(storage))
    except OSError as error:
        raise UsageError(
            f"{storage}: cannot be written: {error.strerror}. Choose another --storage."
        ) from None
    if strangers:
        hosts = "; ".join(f"{node.host} {node.node[:8]}: {node.problem}" for node in strangers)
        raise ClusterError(
            f"--storage {storage}: not all nodes share it: {hosts}. Give a folder that they share, "
            "or a URI such as s3://BUCKET/runs."
        )


def touch_marker(folder: str, here: str) -> bool:
    """Return whether the driver's file is visible in the storage; if so, write this node's file."""
    path = to_path(folder)
    if not (path / here).exists():
        return False
    write_text(path / ray.get_runtime_context().get_node_id(), "")
    return True


def versions_here() -> dict[str, str]:
    """Return the versions of Python and the compared packages; empty for what is missing."""
    return {"python": platform.python_version()} | {name: _version(name) for name in COMPARED}


def _version(name: str) -> str:
    """Return a version without its local part: builds for CPUs and for CUDA work together."""
    try:
        return version(name).partition("+")[0]
    except PackageNotFoundError:
        return ""


def check_versions() -> None:
    """Make sure that every node has the versions installed here.

    Raises:
        ClusterError: With a table of who differs, or does not answer.
    """
    here = versions_here()
    answers = ask_nodes(versions_here)
    wrong = [answer for answer in answers if answer.problem or answer.value != here]
    if wrong:
        raise ClusterError(
            f"{len(wrong)} of {len(answers)} nodes cannot run the trials; give them what this "
            f"machine has, or leave them out:\n{table_of_versions(here, wrong)}"
        )


def table_of_versions(here: dict[str, str], answers: list[Answer]) -> str:
    """Format a table of versions, those of this machine first."""
    rows = [("node", *here), ("this machine", *here.values())]
    for answer in answers:
        cells = [answer.problem] if answer.problem else list(_cells(here, answer.value))
        rows.append((f"{answer.host} {answer.node[:8]}", *cells))
    widths = [
        max(len(row[column]) for row in rows if len(row) == len(rows[0]))
        for column in range(len(rows[0]))
    ]
    return "\n".join(
        "  "
        + "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=False)).rstrip()
        for row in rows
    )


def _cells(here: dict[str, str], there: dict[str, str]) -> Iterator[str]:
    for name, value in there.items():
        yield (value or "none") + ("" if value == here[name] else " !")
