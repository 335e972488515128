"""A folder of a bucket for one process at a time: its lock has a holder and expires.

The clocks of machines differ, so the age of a lock is measured by the clock of its bucket.
"""

import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from uuid import uuid4

from tuner.errors import StorageError, UsageError
from tuner.schema import from_json, to_json
from tuner.storage.object_path import MOST_TEXT, ObjectPath
from tuner.storage.protocol import LOCK_NAME
from tuner.storage.temporary import BOOT_ID

RENEW_SECONDS = 20.0
STALE_SECONDS = 90.0
"""Seconds without renewal after which a lock belongs to nobody."""
SETTLE_SECONDS = 2.0
"""Seconds after which the last of those who took a stale lock at once holds it."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Holder:
    """What a lock says about the process that holds it."""

    token: str
    """A random text that only this process knows."""
    host: str
    pid: int
    machine: str = ""
    """Boot and PID namespace that its process ID belongs to; empty if the system does not say."""
    began: int | None = None
    """When the process began, in clock ticks since the machine booted."""
    renewed: float = 0.0
    """When the lock was last renewed, by the holder's own clock, in seconds since 1970."""


@contextmanager
def leased(folder: ObjectPath) -> Iterator[None]:
    """Keep other searches out of a run folder until the block ends.

    The lock outlives a killed process. On the same machine, and in the same container, that is
    detected; elsewhere the lock has to become stale first.

    Raises:
        UsageError: If another process is searching this run.
    """
    lock = folder / LOCK_NAME
    pid = os.getpid()
    mine = Holder(
        token=uuid4().hex,
        host=socket.gethostname(),
        pid=pid,
        machine=_machine(),
        began=_began(pid),
    )
    _take(lock, mine)
    is_over = threading.Event()
    renewal = threading.Thread(target=_renew, args=(lock, mine, is_over), name="lock", daemon=True)
    renewal.start()
    try:
        yield
    finally:
        is_over.set()
        renewal.join(timeout=RENEW_SECONDS)
        # If the storage is gone, that was reported; the lock becomes stale there.
        with suppress(StorageError):
            if _is_held(lock, mine):
                lock.unlink(missing_ok=True)
        folder.allow_writing()


def _take(lock: ObjectPath, mine: Holder) -> None:
    try:
        lock.create(_content(mine))
    except FileExistsError:
        # If an answer was lost, we asked again and find our own lock.
        if not _is_held(lock, mine):
            _take_over(lock, mine)


def _take_over(lock: ObjectPath, mine: Holder) -> None:
    """Take over a lock that nobody holds any more.

    Raises:
        UsageError: If somebody does.
    """
    holder = _holder(lock)
    if holder is not None:
        left = STALE_SECONDS - _age(lock, mine)
        is_near = bool(mine.machine) and holder.machine == mine.machine
        is_dead = is_near and not _is_alive(holder)
        if left > 0 and not is_dead:
            raise UsageError(
                f"{lock.parent}: process {holder.pid} on {holder.host} is searching this run; "
                f"wait for it, or stop it. If it was killed, try again in {left:.0f} s."
            )
    lock.write_bytes(_content(mine))
    time.sleep(SETTLE_SECONDS)
    if not _is_held(lock, mine):
        raise UsageError(f"{lock.parent}: another process began to search this run just now")


def _age(lock: ObjectPath, mine: Holder) -> float:
    """Return the age of a lock in seconds, by the clock of its bucket alone."""
    probe = lock.parent / f"{LOCK_NAME}-{mine.token}"
    probe.write_bytes(b"now")
    try:
        return probe.modified() - lock.modified()
    except FileNotFoundError:
        # Its holder has just ended.
        return STALE_SECONDS
    finally:
        probe.unlink(missing_ok=True)


def _renew(lock: ObjectPath, mine: Holder, is_over: threading.Event) -> None:
    while not is_over.wait(RENEW_SECONDS):
        with suppress(StorageError, UsageError):  # Whoever works in the folder gets it, too.
            if not _is_held(lock, mine):
                lock.parent.forbid_writing("another process has taken this run over")
                print(
                    f"{lock.parent}: another process has taken this run over; leaving it",
                    file=sys.stderr,
                )
                os.kill(os.getpid(), signal.SIGINT)
                return
            lock.write_bytes(_content(mine))


def _content(mine: Holder) -> bytes:
    return to_json(replace(mine, renewed=time.time())).encode()


def _holder(lock: ObjectPath) -> Holder | None:
    """Return the holder of a lock; ``None`` if nobody holds it.

    Raises:
        UsageError: If it is not a lock of ours.
    """
    try:
        if (size := lock.size()) > MOST_TEXT:
            raise UsageError(f"has {size} bytes")
        return from_json(Holder, lock.read_bytes())
    except FileNotFoundError:
        return None
    except UsageError as error:
        raise UsageError(
            f"{lock}: damaged or unreadable: {error}. Remove it if nothing is searching this run."
        ) from None


def _is_held(lock: ObjectPath, mine: Holder) -> bool:
    """Whether this process, and no other one, still holds the lock."""
    try:
        holder = _holder(lock)
    except UsageError:
        return False
    return holder is not None and holder.token == mine.token


def _machine() -> str:
    """Return what process IDs here belong to: containers may share a host name, but not this."""
    try:
        return f"{BOOT_ID.read_text().strip()} {Path('/proc/self/ns/pid').readlink()}"
    except OSError:
        return ""


def _began(pid: int) -> int | None:
    """Return when a process of this machine began, in clock ticks; ``None`` if not visible."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text(errors="replace")
    except OSError:
        return None
    # The name is in parentheses and may itself contain spaces and parentheses.
    return int(text.rpartition(")")[2].split()[19])


def _is_alive(holder: Holder) -> bool:
    """Whether a process of this machine still runs, and no later one has its number."""
    try:
        os.kill(holder.pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    return _began(holder.pid) in (holder.began, None)
