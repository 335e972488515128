"""``doctor``: check whether a search would run here, and report each finding with its fix."""

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import ray

from tuner.config import DATA_DIR, DataConfig, Resources
from tuner.data.known import KNOWN, WITHOUT_NETWORK
from tuner.data.splits import load_splits
from tuner.errors import ClusterError, TunerError
from tuner.run.resuming import command_line
from tuner.schema import plural
from tuner.storage.paths import AnyPath
from tuner.tuning.ray_backend import mps
from tuner.tuning.ray_backend.autoscaler import find_autoscaler
from tuner.tuning.ray_backend.capacity import plan_capacity
from tuner.tuning.ray_backend.cluster import connected
from tuner.tuning.ray_backend.nodes import (
    Answer,
    alive_nodes,
    alive_resources,
    ask_nodes,
    table_of_versions,
    unshared_nodes,
    versions_here,
)
from tuner.tuning.ray_backend.payload import pack

Level = Literal["ok", "warning", "failure"]
GB = 1e9
STORE_SHARE = 0.5
"""Share of a node's object store; data beyond it are soon written to disk."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Finding:
    """One line of the report."""

    level: Level
    about: str
    text: str
    mend: str = ""
    """What to do; empty if all is well."""


def examine(
    address: str | None, storage: AnyPath, data: DataConfig, data_dir: Path
) -> Iterator[Finding]:
    """Examine a cluster, or this machine, the way a search would use it.

    Args:
        address: As for ``search``.
        storage: Where the runs would be stored.
        data: The images of the search.
        data_dir: Where downloaded data are kept.
    """
    try:
        # Versions are compared below, along with the other findings.
        with connected(address, compare=False):
            nodes = alive_nodes()
            yield Finding(level="ok", about="cluster", text=_sum(nodes))
            answers = ask_nodes(describe_node)
            yield from map(_node, answers)
            yield _versions(answers)
            yield from _storage(storage)
            yield from _data(data, data_dir, nodes)
            yield from _slots()
    except TunerError as error:
        yield _failed("cluster", error)


def _failed(about: str, error: Exception) -> Finding:
    """Return an error as a finding, with the problem and its fix apart."""
    what, _, mend = str(error).partition(". ")
    return Finding(level="failure", about=about, text=what, mend=mend)


def describe_node() -> dict[str, Any]:
    """Describe the node on which this runs."""
    return {
        "versions": versions_here(),
        "gpus": _gpus(),
        "torch_gpus": _torch_gpus(),
        "sharing": mps.examine(),
    }


def _gpus() -> list[str]:
    """Return name and memory of each GPU, as reported by the driver."""
    if not (program := shutil.which("nvidia-smi")):
        return []
    query = [program, "--query-gpu=name,memory.total", "--format=csv,noheader"]
    answer = subprocess.run(query, capture_output=True, text=True, check=False)
    return answer.stdout.strip().splitlines() if answer.returncode == 0 else []


def _torch_gpus() -> int:
    """Count the GPUs that PyTorch can use, in a process that sees all of them."""
    environment = {key: value for key, value in os.environ.items() if "VISIBLE_DEVICES" not in key}
    # The count alone includes those that an old driver cannot run this PyTorch on.
    code = "from torch import cuda; print(cuda.device_count() if cuda.is_available() else 0)"
    command = [sys.executable, "-c", code]
    answer = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    return int(answer.stdout.strip() or 0) if answer.returncode == 0 else 0


def _sum(nodes: list[dict[str, Any]]) -> str:
    total: dict[str, float] = {}
    for node in nodes:
        for name, number in node["Resources"].items():
            total[name] = total.get(name, 0) + number
    text = (
        f"{plural(len(nodes), 'node')}, {plural(total.get('CPU', 0), 'CPU')}, "
        f"{plural(total.get('GPU', 0), 'GPU')}, {total.get('memory', 0) / GB:.0f} GB of memory, "
        f"{total.get('object_store_memory', 0) / GB:.1f} GB of object store"
    )
    autoscaler = find_autoscaler()
    return text + (f"; an autoscaler adds nodes, {autoscaler}" if autoscaler else "")


def _node(answer: Answer) -> Finding:
    about = f"node {answer.host} {answer.node[:8]}"
    if answer.problem:
        mend = "See its logs, under the temporary folder of Ray there, or leave it out."
        return Finding(level="failure", about=about, text=answer.problem, mend=mend)
    known = {node["NodeID"]: node["Resources"] for node in alive_nodes()}
    if (resources := known.get(answer.node)) is None:
        text = "has just left the cluster, or is leaving it"
        mend = "Run doctor again once it is gone."
        return Finding(level="warning", about=about, text=text, mend=mend)
    num_gpus = resources.get("GPU", 0)
    gpus = f" ({'; '.join(answer.value['gpus'])})" if answer.value["gpus"] else ""
    text = (
        f"{plural(resources.get('CPU', 0), 'CPU')}, {plural(num_gpus, 'GPU')}{gpus}, "
        f"{resources.get('memory', 0) / GB:.0f} GB of memory"
    )
    usable = answer.value["torch_gpus"]
    if usable < num_gpus or (answer.value["gpus"] and not usable):
        return Finding(
            # Without them, trials train on the CPUs.
            level="failure" if num_gpus else "warning",
            about=about,
            text=f"{text}; PyTorch can use {usable} of the GPUs",
            mend="Install a PyTorch built for its driver: see https://pytorch.org/get-started.",
        )
    if not num_gpus and usable:
        return Finding(
            level="warning",
            about=about,
            text=f"{text}; Ray does not offer the {plural(usable, 'GPU')} that PyTorch finds",
            mend=f"Start Ray there with --num-gpus {usable}.",
        )
    sharing: mps.Sharing = answer.value["sharing"]
    if num_gpus and (sharing.how == "side by side" or sharing.reason):
        text += f"; {sharing}"
    if num_gpus and sharing.is_broken:
        mend = f"Fix MPS there, or set {mps.SWITCH}=0 where Ray is started, to do without."
        return Finding(level="warning", about=about, text=text, mend=mend)
    return Finding(level="ok", about=about, text=text)


def _versions(answers: list[Answer]) -> Finding:
    here = versions_here()
    given = [
        Answer(node=answer.node, host=answer.host, value=answer.value["versions"])
        for answer in answers
        if not answer.problem
    ]
    if wrong := [answer for answer in given if answer.value != here]:
        return Finding(
            level="failure",
            about="versions",
            text=f"differ on {plural(len(wrong), 'node')}:\n{table_of_versions(here, wrong)}",
            mend="Install the versions of this machine there.",
        )
    text = ", ".join(f"{name} {number}" for name, number in here.items())
    where = "everywhere"
    if len(given) < len(answers):
        where = f"on {len(given)} of {len(answers)} nodes"
    return Finding(level="ok", about="versions", text=f"{text}, {where}")


def _storage(storage: AnyPath) -> Iterator[Finding]:
    """Check that each node and the driver's can read the files that the other one writes."""
    about, storage = "storage", storage.absolute()
    mend = "Give a --storage that all nodes share and may write."
    try:
        strangers = list(unshared_nodes(storage))
    except (OSError, TunerError) as error:
        found = _failed(about, error)
        text = found.text if isinstance(error, TunerError) else f"{storage}: {found.text}"
        yield replace(found, text=text, mend=found.mend or mend)
        return
    for stranger in strangers:
        text = f"{storage} on {stranger.host} {stranger.node[:8]}: {stranger.problem}"
        yield Finding(level="failure", about=about, text=text, mend=mend)
    if not strangers:
        text = f"{storage}: all nodes write and read it"
        if isinstance(storage, Path):
            text += f"; {shutil.disk_usage(storage).free / GB:.0f} GB free"
        yield Finding(level="ok", about=about, text=text)


def _data(data: DataConfig, data_dir: Path, nodes: list[dict[str, Any]]) -> Iterator[Finding]:
    is_fetched = data.source in KNOWN and data.source not in WITHOUT_NETWORK
    if is_fetched and not _is_kept(data.source, data_dir):
        where = [] if data_dir == DATA_DIR else ["--data-dir", str(data_dir)]
        line = command_line("data prepare", *where, names=[data.source])
        yield Finding(
            level="warning",
            about="data",
            text=f"{data.source} is not in {data_dir}; a search would fetch it first",
            mend=f"On a machine with a network: {line}",
        )
        return
    try:
        splits = load_splits(data, data_dir)
    except TunerError as error:
        yield _failed("data", error)
        return
    arrays = [array for part in ("train", "val") for array in pack(splits)[part].values()]
    size = sum(array.nbytes for array in arrays)
    text = (
        f"{data.source}: {len(splits.train)} training and {len(splits.val)} validation images, "
        f"{size / GB:.2g} GB, which each node holds once"
    )
    store = min(node["Resources"].get("object_store_memory", 0) for node in nodes)
    if size > STORE_SHARE * store:
        yield Finding(
            level="warning",
            about="data",
            text=f"{text}; the smallest object store has {store / GB:.2g} GB",
            mend=f"Start Ray there with --object-store-memory {int(size / STORE_SHARE)}.",
        )
    else:
        yield Finding(level="ok", about="data", text=text)


def _is_kept(source: str, data_dir: Path) -> bool:
    """Whether a downloadable data set is there, decoded or as torchvision downloads it."""
    fetched = data_dir.glob(f"{source.replace('cifar', 'cifar-')}-*")
    return (data_dir / source).exists() or any(fetched)


def _slots() -> Iterator[Finding]:
    try:
        plan = plan_capacity(Resources())
    except ClusterError as error:
        yield _failed("trials", error)
        return
    yield Finding(level="ok", about="trials", text=str(plan))
    free = ray.available_resources()  # type: ignore[no-untyped-call]
    for name in ("CPU", "GPU"):
        total = sum(node.get(name, 0) for node in alive_resources())
        if free.get(name, 0) < total:
            yield Finding(
                level="warning",
                about="trials",
                text=f"{total - free.get(name, 0):g} of {plural(total, name)} in use by others",
                mend="Trials wait for them; see the dashboard, or 'ray status'.",
            )
