"""Where a worker starts, and how it checks that it can train.

Nothing here needs PyTorch, which a node that joins in mid-search may lack.
"""

import os
import platform
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any, NoReturn

import ray
from ray import tune

from tuner.errors import StorageError, UsageError
from tuner.run.events import TrialPlaced
from tuner.run.layout import STATUS
from tuner.storage.files import write_text
from tuner.storage.paths import AnyPath, to_path
from tuner.storage.patience import PATIENCE_SECONDS, storage_fault
from tuner.tuning.ray_backend import mps
from tuner.tuning.ray_backend.device_fault import DeviceFaultError
from tuner.tuning.ray_backend.nodes import versions_here

SEEN_SECONDS = 10.0
"""In a folder that several machines share, a new file may appear later on some of them."""
FAULT = "device_fault"
"""File in the folder of a trial in whose process a GPU failed."""
NO_GPU = (
    "PyTorch finds no GPU for a trial that was given one. Install a build for its driver, or give "
    "--gpus-per-trial 0 to train on CPUs"
)
"""Problem of a node whose driver lists a GPU, so that Ray offers it."""


class UnfitNodeError(Exception):
    """A node cannot run our trials."""


def place(params: dict[str, Any]) -> tune.PlacementGroupFactory:
    """Request a trial's share of a node from Ray, on any node except those in ``avoid``."""
    return _place(params["cpus"], params["gpus"], ",".join(params["avoid"]))


@cache  # Tune keeps it with each trial; separate ones would take 2 kB per trial.
def _place(cpus: float, gpus: float, avoid: str) -> tune.PlacementGroupFactory:
    share = {"CPU": cpus, "GPU": gpus}
    if not avoid:
        return tune.PlacementGroupFactory([share])
    others = {"ray.io/node-id": f"!in({avoid})"}
    return tune.PlacementGroupFactory([share], bundle_label_selector=[others])


def train_if_fit(params: dict[str, Any], *, versions: dict[str, str], **payload: Any) -> None:
    """Train one trial if the node has what it takes, or hand it back.

    An event is reported as one object, ``event``, because Tune flattens mappings and keeps
    statistics of every number. The first one is ``TrialPlaced``. From a node without the driver's
    versions, its report also holds ``host`` and ``versions``, from one that cannot use the trial's
    folder or GPU ``host`` and ``problem``. It holds ``tell``, a line for the user, if trials that
    share a GPU take turns on the node.

    Args:
        params: As for ``train_trial``.
        versions: The driver's versions.
        payload: The other arguments of ``train_trial``.

    Raises:
        UnfitNodeError: Where the node cannot run trials, so that this worker gets no other one.
        DeviceFaultError: Where this process cannot use its GPU any more, likewise.
    """
    placed = TrialPlaced(number=params["number"], node=ray.get_runtime_context().get_node_id())
    there = versions_here()
    if there != versions:
        # In pairs, because Tune flattens mappings.
        versions_there = list(there.items())
        tune.report({"event": placed, "host": platform.node(), "versions": versions_there})
        raise UnfitNodeError(f"{there}, not {versions}")
    if problem := problem_with(params["path"]):
        problem = problem.rstrip(".")
        _hand_back(placed, f"{problem}. Give it the storage of the others, to read and write")
    folder = to_path(params["path"])
    sharing = share_gpu(folder) if 0 < params["gpus"] < 1 else None
    is_client = sharing is not None and sharing.how == "side by side"
    # For a client, a GPU that is not seen is a fault of the MPS server; see ``check_gpu``.
    if params["gpus"] and not is_client and not sees_gpu():
        _hand_back(placed, NO_GPU)
    more = {}
    if sharing and sharing.how == "by turns" and sharing.reason:
        more["tell"] = f"On {platform.node()}, {sharing}."
    tune.report({"event": placed, **more})
    from tuner.tuning.ray_backend.trainable import train_trial

    with marking_fault(folder):
        if is_client:
            check_gpu()
        train_trial(params, **payload)


def _hand_back(placed: TrialPlaced, problem: str) -> NoReturn:
    """Report why this node cannot run the trial, and how to fix that."""
    tune.report({"event": placed, "host": platform.node(), "problem": problem})
    raise UnfitNodeError(problem)


def share_gpu(folder: AnyPath) -> mps.Sharing | None:
    """Let this process share its GPU with others, if the node can.

    Under MPS a device fault ends the processes of all trials on the GPU, and none of them can tell
    which one caused it. Each continues by turns, where a second fault is its own and harms nobody.

    Args:
        folder: The trial's folder.

    Returns:
        ``None`` for a trial that takes turns after such a fault.
    """
    if (folder / FAULT).exists():
        mps.stay_apart()
        return None
    return mps.join()


@contextmanager
def marking_fault(folder: AnyPath) -> Iterator[None]:
    """Leave a mark in a trial's folder if a device fault ends the block."""
    try:
        yield
    except DeviceFaultError:
        write_text(folder / FAULT, "")
        raise


def check_gpu() -> None:
    """Make sure that PyTorch sees the GPU that this process has just joined others on.

    Raises:
        DeviceFaultError: If not: a server in trouble looks like no GPU, and a CPU would be trained
            on instead.
    """
    if not sees_gpu():
        raise DeviceFaultError("the MPS server has refused this process")


def sees_gpu() -> bool:
    """Whether PyTorch can use a GPU in this process."""
    import torch

    return torch.cuda.is_available()


def problem_with(folder: str) -> str:
    """Return why a trial's folder cannot be used from here; empty if it can.

    A fault that may pass is waited out, as it is elsewhere.

    Args:
        folder: Where the driver has written ``status.json``.
    """
    began = time.monotonic()
    while True:
        patience = SEEN_SECONDS
        try:
            path = to_path(folder)
            if not (path / STATUS).exists():
                problem = f"it does not see {path / STATUS}, which was written for it"
            elif not may_write(path):
                problem = f"it may not write to {path}"
            else:
                return ""
        except (UsageError, StorageError) as error:
            return str(error)
        except OSError as error:
            problem = str(error)
            if storage_fault(error):
                patience = PATIENCE_SECONDS
        if time.monotonic() - began > patience:
            return problem
        time.sleep(0.5)


def may_write(folder: AnyPath) -> bool:
    """Whether a folder takes new files from this process; a bucket only shows that on a write."""
    return not isinstance(folder, Path) or os.access(folder, os.W_OK | os.X_OK)
