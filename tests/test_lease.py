"""A lock in a bucket, which outlives its process, is held, renewed, taken over and lost."""

import json
import os
import signal
import socket
import subprocess
import sys
import time

import pytest

from tests.conftest import wait_until
from tests.stores import S3Server
from tuner.errors import StorageError, UsageError
from tuner.storage import lease
from tuner.storage.files import append_line, write_json, write_text
from tuner.storage.object_path import ObjectPath
from tuner.storage.paths import copy_file, locked, read_text
from tuner.storage.protocol import LOCK_NAME


def test_a_run_in_a_store_has_one_search_at_a_time(bucket: ObjectPath) -> None:
    write_text(bucket / "run.json", "")
    refusal = rf"process {os.getpid()} on .* again in \d+ s"
    with locked(bucket), pytest.raises(UsageError, match=refusal):
        locked(bucket).__enter__()
    with locked(bucket):
        pass
    assert not (bucket / LOCK_NAME).exists()


def holder(**differing: object) -> dict[str, object]:
    """Return what the lock of a process that is gone holds."""
    known = {"token": "x", "host": socket.gethostname(), "pid": 2**22 + 1, "began": 1}
    return {**known, "machine": lease._machine(), "renewed": time.time(), **differing}


@pytest.mark.parametrize(
    "differing",
    [{}, {"pid": os.getpid()}, {"machine": "another"}],
    ids=["dead", "restarted", "stale"],
)
def test_the_lock_of_a_process_that_is_gone_is_taken(
    bucket: ObjectPath, differing: dict[str, object], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lease, "SETTLE_SECONDS", 0.1)
    write_json(bucket / LOCK_NAME, holder(**differing))
    if "machine" in differing:
        monkeypatch.setattr(lease, "STALE_SECONDS", 1.0)
        # The times of a bucket are whole seconds.
        time.sleep(2.1)
    with locked(bucket):
        assert json.loads(read_text(bucket / LOCK_NAME))["pid"] == os.getpid()
    assert not list(bucket.iterdir())


@pytest.mark.parametrize("ahead", [-3600, -70, 30, 3600])
@pytest.mark.parametrize("machine", ["another", ""])
def test_the_lock_of_a_process_elsewhere_is_waited_for_whatever_its_clock_says(
    bucket: ObjectPath, ahead: int, machine: str
) -> None:
    """A container has its own processes, and may have the name of its host."""
    write_json(bucket / LOCK_NAME, holder(machine=machine, renewed=time.time() + ahead))
    with pytest.raises(UsageError, match=r"process \d+ on .* again in (8\d|90) s"):
        locked(bucket).__enter__()


def test_the_lock_of_a_process_that_is_stopped_here_is_not_taken_before_it_ends(
    bucket: ObjectPath, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lease, "SETTLE_SECONDS", 0.1)
    monkeypatch.setattr(lease, "STALE_SECONDS", -1.0)
    with subprocess.Popen(["sleep", "60"]) as child:
        child.send_signal(signal.SIGSTOP)
        write_json(bucket / LOCK_NAME, holder(pid=child.pid, began=lease._began(child.pid)))
        refusal = rf"process {child.pid} on .* wait for it, or stop it\. If it searches no more, "
        try:
            with pytest.raises(UsageError, match=refusal):
                locked(bucket).__enter__()
        finally:
            child.kill()
        # It remains as a zombie, for nobody has asked how it ended.
        os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)
        mine = lease.Holder(token="mine", host="here", pid=1, machine=lease._machine())
        lease._take(bucket / LOCK_NAME, mine)


def test_a_process_of_a_namespace_of_its_own_is_elsewhere() -> None:
    program = "from tuner.storage import lease; print(lease._machine())"
    command = ["unshare", "--pid", "--fork", "--mount-proc", sys.executable, "-c", program]
    told = subprocess.run(command, capture_output=True, text=True)
    if told.returncode:
        pytest.skip("no namespace may be made here")
    boot, _, namespace = lease._machine().partition(" ")
    assert told.stdout.startswith(f"{boot} pid:")
    assert namespace not in told.stdout


def test_a_lock_is_renewed(bucket: ObjectPath, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lease, "RENEW_SECONDS", 0.1)

    def renewed() -> float:
        return float(json.loads(read_text(bucket / LOCK_NAME))["renewed"])

    with locked(bucket):
        first = renewed()
        wait_until(lambda: renewed() != first)
        assert renewed() > first


def test_a_search_whose_lock_was_taken_is_interrupted_and_writes_no_more(
    bucket: ObjectPath, server: S3Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lease, "RENEW_SECONDS", 0.1)
    lock = server.folder / bucket.uri.removeprefix("s3://") / LOCK_NAME
    another = json.dumps(holder(token="another"))

    def search() -> None:
        with locked(bucket):
            try:
                # Again and again, for a renewal under way writes over the first.
                for _ in range(40):
                    lock.write_text(another)
                    time.sleep(0.25)
            except KeyboardInterrupt:
                for write in (
                    lambda: write_text(bucket / "run.json", "{}"),
                    lambda: append_line(bucket / "lines", "one"),
                    lambda: copy_file(bucket / LOCK_NAME, bucket / "copy"),
                    lambda: (bucket / "trials" / "0001" / "status.json").unlink(missing_ok=True),
                ):
                    with pytest.raises(StorageError, match="another process has taken this run"):
                        write()
                raise

    with pytest.raises(KeyboardInterrupt):
        search()
    assert lock.read_text() == another
    assert [path.name for path in bucket.iterdir()] == [LOCK_NAME]
    write_text(bucket / "run.json", "{}")


def test_a_process_that_slept_looks_at_its_lock_before_it_writes(
    bucket: ObjectPath, server: S3Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lease, "RENEW_SECONDS", 3600.0)
    monkeypatch.setattr(lease, "STALE_SECONDS", 1.0)
    lock = server.folder / bucket.uri.removeprefix("s3://") / LOCK_NAME
    another = json.dumps(holder(token="another"))
    with locked(bucket):
        time.sleep(1.1)
        write_text(bucket / "early", "nobody has taken the lock")
        lock.write_text(another)
        time.sleep(1.1)
        with pytest.raises(KeyboardInterrupt):
            write_text(bucket / "late", "")
        with pytest.raises(StorageError, match="another process has taken this run over"):
            write_text(bucket / "late", "")
    assert lock.read_text() == another
    assert [path.name for path in bucket.iterdir()] == [LOCK_NAME, "early"]
