"""A lock in a bucket, which outlives its process, is held, renewed, taken over and lost."""

import json
import os
import socket
import time

import pytest

from tuner.errors import UsageError
from tuner.storage import lease
from tuner.storage.files import write_json, write_text
from tuner.storage.object_path import ObjectPath
from tuner.storage.paths import locked
from tuner.storage.protocol import LOCK_NAME


def test_a_run_in_a_store_has_one_search_at_a_time(bucket: ObjectPath) -> None:
    write_text(bucket / "run.json", "")
    refusal = rf"process {os.getpid()} on .* again in \d+ s"
    with locked(bucket), pytest.raises(UsageError, match=refusal):
        locked(bucket).__enter__()
    with locked(bucket):
        pass
    assert not (bucket / LOCK_NAME).exists()


@pytest.mark.parametrize(
    ("host", "age"), [(None, 1.0), ("elsewhere", lease.STALE_SECONDS + 1)], ids=["dead", "stale"]
)
def test_the_lock_of_a_process_that_is_gone_is_taken(
    bucket: ObjectPath, host: str | None, age: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lease, "SETTLE_SECONDS", 0.1)
    holder = {"token": "x", "host": host or socket.gethostname(), "pid": 2**22 + 1}
    write_json(bucket / LOCK_NAME, holder | {"renewed": time.time() - age})
    with locked(bucket):
        assert json.loads((bucket / LOCK_NAME).read_text())["pid"] == os.getpid()


def test_the_lock_of_a_killed_process_elsewhere_is_waited_for(bucket: ObjectPath) -> None:
    holder = {"token": "x", "host": "elsewhere", "pid": 1, "renewed": time.time() - 30}
    write_json(bucket / LOCK_NAME, holder)
    with pytest.raises(UsageError, match=r"process 1 on elsewhere .* again in \d+ s"):
        locked(bucket).__enter__()


def test_a_lock_is_renewed(bucket: ObjectPath, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lease, "RENEW_SECONDS", 0.1)

    def renewed() -> float:
        return float(json.loads((bucket / LOCK_NAME).read_text())["renewed"])

    with locked(bucket):
        first, end = renewed(), time.monotonic() + 60
        while renewed() == first:
            assert time.monotonic() < end, "it is not renewed"
            time.sleep(0.1)
        assert renewed() > first


def test_a_search_whose_lock_was_taken_is_interrupted(
    bucket: ObjectPath, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lease, "RENEW_SECONDS", 0.1)

    def search() -> None:
        with locked(bucket):
            # Again and again, for a renewal under way writes over the first.
            for _ in range(40):
                write_json(bucket / LOCK_NAME, {"token": "another"})
                time.sleep(0.25)

    with pytest.raises(KeyboardInterrupt):
        search()
    assert json.loads((bucket / LOCK_NAME).read_text()) == {"token": "another"}
