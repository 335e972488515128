"""A folder of a bucket that one process at a time works in: its lock has a holder and an end."""

import json
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any
from uuid import uuid4

from tuner.errors import StorageError, UsageError
from tuner.storage.object_path import ObjectPath
from tuner.storage.protocol import LOCK_NAME

RENEW_SECONDS = 20.0
STALE_SECONDS = 90.0
"""A lock that was not renewed for so long belongs to nobody."""
SETTLE_SECONDS = 2.0
"""After this, of all who took a stale lock at once, the last one has it."""


@contextmanager
def leased(folder: ObjectPath) -> Iterator[None]:
    """Keep other searches out of a run folder until the block ends.

    The lock outlives a process that is killed: on the same machine that is seen, elsewhere it is
    waited for until the lock is stale.

    Raises:
        UsageError: If another process is searching this run.
    """
    lock = folder / LOCK_NAME
    mine = {"token": uuid4().hex, "host": socket.gethostname(), "pid": os.getpid()}
    _take(lock, mine)
    is_over = threading.Event()
    renewal = threading.Thread(target=_renew, args=(lock, mine, is_over), name="lock", daemon=True)
    renewal.start()
    try:
        yield
    finally:
        is_over.set()
        renewal.join(timeout=RENEW_SECONDS)
        # A storage that is gone has been told of; the lock gets stale there.
        with suppress(StorageError):
            if _token(lock) == mine["token"]:
                lock.unlink(missing_ok=True)


def _take(lock: ObjectPath, mine: dict[str, Any]) -> None:
    try:
        lock.create(_content(mine))
    except FileExistsError:
        # A lost answer has us ask again, and find what we wrote.
        if _token(lock) != mine["token"]:
            _take_over(lock, mine)


def _take_over(lock: ObjectPath, mine: dict[str, Any]) -> None:
    """Take a lock that nobody holds any more.

    Raises:
        UsageError: If somebody does.
    """
    holder = _holder(lock)
    left = STALE_SECONDS - (time.time() - holder.get("renewed", 0.0))
    is_dead = holder.get("host") == mine["host"] and not _is_alive(holder["pid"])
    if left > 0 and not is_dead:
        raise UsageError(
            f"{lock.parent}: process {holder['pid']} on {holder['host']} is searching this run; "
            f"wait for it, or stop it. If it was killed, try again in {left:.0f} s."
        )
    lock.write_bytes(_content(mine))
    time.sleep(SETTLE_SECONDS)
    if _token(lock) != mine["token"]:
        raise UsageError(f"{lock.parent}: another process began to search this run just now")


def _renew(lock: ObjectPath, mine: dict[str, Any], is_over: threading.Event) -> None:
    while not is_over.wait(RENEW_SECONDS):
        with suppress(StorageError, UsageError):  # Whoever works in the folder meets it, too.
            if _token(lock) != mine["token"]:
                print(
                    f"{lock.parent}: another process has taken this run over; leaving it",
                    file=sys.stderr,
                )
                os.kill(os.getpid(), signal.SIGINT)
                return
            lock.write_bytes(_content(mine))


def _content(mine: dict[str, Any]) -> bytes:
    return json.dumps(mine | {"renewed": time.time()}).encode()


def _holder(lock: ObjectPath) -> dict[str, Any]:
    """Return who has a lock; nothing if nobody."""
    try:
        holder: dict[str, Any] = json.loads(lock.read_bytes())
    except FileNotFoundError:
        return {}
    return holder


def _token(lock: ObjectPath) -> object:
    return _holder(lock).get("token")


def _is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
