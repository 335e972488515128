"""What a worker sees to before it trains."""

import errno
import os
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import ray
import torch
from ray import tune

from tests.disks import remount, small_disk
from tests.stores import S3Server
from tuner.run.events import TrialPlaced
from tuner.storage import object_store
from tuner.storage.object_path import ObjectPath
from tuner.tuning.ray_backend import mps, trainable, worker
from tuner.tuning.ray_backend.device_fault import DeviceFaultError
from tuner.tuning.ray_backend.nodes import versions_here
from tuner.tuning.ray_backend.trainable import first_halved
from tuner.tuning.ray_backend.worker import (
    UnfitNodeError,
    marking_fault,
    problem_with,
    share_gpu,
    train_if_fit,
)


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(worker, "SEEN_SECONDS", 0.5)


def test_a_worker_says_whether_it_sees_what_the_driver_has_written(tmp_path: Path) -> None:
    assert problem_with(str(tmp_path)) == (
        f"it does not see {tmp_path / 'status.json'}, which was written for it"
    )
    (tmp_path / "status.json").write_text("{}")
    assert not problem_with(str(tmp_path))


def test_a_worker_says_that_it_may_not_write(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "status.json").write_text("{}")
    # Who is root may write anywhere.
    monkeypatch.setattr(os, "access", lambda path, mode: not mode & os.W_OK)
    assert problem_with(str(tmp_path)) == f"it may not write to {tmp_path}"


def test_a_worker_says_that_its_disk_is_mounted_to_be_read(tmp_path: Path) -> None:
    disk = tmp_path / "runs"
    with small_disk(disk, "1m"):
        (disk / "status.json").write_text("{}")
        assert not problem_with(str(disk))
        remount(disk, "ro")
        assert problem_with(str(disk)) == f"it may not write to {disk}"


def test_a_worker_sees_a_trial_in_a_store(bucket: ObjectPath) -> None:
    assert f"does not see {bucket}/status.json" in problem_with(str(bucket))
    (bucket / "status.json").write_bytes(b"{}")
    assert not problem_with(str(bucket))


@pytest.mark.parametrize("num_faults", [2, 10**6], ids=["passing", "lasting"])
def test_a_fault_of_the_storage_is_waited_for_before_it_is_a_nodes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, num_faults: int
) -> None:
    monkeypatch.setattr(worker, "SEEN_SECONDS", 0.0)
    monkeypatch.setattr(worker, "PATIENCE_SECONDS", 1.2)
    faults = [OSError(errno.ESTALE, "Stale file handle")] * num_faults

    def exists(path: Path) -> bool:
        if faults:
            raise faults.pop()
        return True

    monkeypatch.setattr(Path, "exists", exists)
    expected = "" if num_faults == 2 else "[Errno 116] Stale file handle"
    assert problem_with(str(tmp_path)) == expected


def test_a_bucket_that_a_node_never_reaches_is_its_problem(
    server: S3Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(object_store, "FIRST_SECONDS", 0.5)
    server.kill()
    try:
        assert "s3://unreached: no answer for" in problem_with("s3://unreached/run")
    finally:
        server.start()


def test_a_worker_that_lacks_what_a_store_takes_says_what_it_needs() -> None:
    assert "there is no such kind of storage" in problem_with("nonsense://bucket/run")


@pytest.mark.parametrize("gpus", [0.0, 1.0])
def test_a_worker_whose_gpu_pytorch_cannot_use_hands_its_trial_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, gpus: float
) -> None:
    (tmp_path / "status.json").write_text("{}")
    reports: list[dict[str, Any]] = []
    trained: list[dict[str, Any]] = []
    context = SimpleNamespace(get_node_id=lambda: "n")
    monkeypatch.setattr(ray, "get_runtime_context", lambda: context)
    monkeypatch.setattr(tune, "report", reports.append)
    monkeypatch.setattr(trainable, "train_trial", trained.append)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    params = {"number": 0, "path": str(tmp_path), "gpus": gpus}
    refusing = pytest.raises(UnfitNodeError, match="PyTorch finds no GPU")
    with refusing if gpus else nullcontext():
        train_if_fit(params, versions=versions_here())
    (report,) = reports
    assert report["event"] == TrialPlaced(number=0, node="n")
    assert ("problem" in report) == ("host" in report) == bool(gpus)
    assert trained == ([] if gpus else [params])


def test_a_trial_goes_on_by_turns_after_a_device_fault(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mps, "DEVICE_FILES", ())
    mps.join.cache_clear()
    monkeypatch.setenv(mps.PIPE, "/tmp/nvidia-mps")
    with pytest.raises(ValueError, match="a bug"), marking_fault(tmp_path):
        raise ValueError("a bug")
    assert share_gpu(tmp_path) == mps.Sharing(how="by turns"), "a machine without a GPU"
    assert os.environ[mps.PIPE] == "/tmp/nvidia-mps"
    with pytest.raises(DeviceFaultError), marking_fault(tmp_path):
        raise DeviceFaultError("an illegal memory access was encountered")
    assert share_gpu(tmp_path) is None
    assert os.environ[mps.PIPE] == str(mps.find_folder() / "none")
    monkeypatch.setattr(mps, "DEVICE_FILES", (Path("/dev/null"),))
    mps.join.cache_clear()
    assert not share_gpu(tmp_path / "next").reason, "the process stays apart, and says nothing"
    mps.join.cache_clear()


@pytest.mark.parametrize(
    ("known", "num_epochs", "is_short", "expected"),
    [
        (None, 1, True, 2),
        (None, 4, False, None),
        (1, 4, True, 1),
        (3, 2, False, 3),
        (3, 0, False, None),
        (3, 0, True, 1),
    ],
)
def test_the_first_halved_epoch_is_that_of_the_weights(
    known: int | None, num_epochs: int, is_short: bool, expected: int | None
) -> None:
    assert first_halved(known, num_epochs, is_short=is_short) == expected
