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
    lease = _Lease(lock, mine)
    _take(lock, mine)
    folder.guard_writing(lease.why_not_write)
    is_over = threading.Event()
    renewal = threading.Thread(target=_renew, args=(lease, is_over), name="lock", daemon=True)
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
        folder.end_guard()


class _Lease:
    """A lock that this process holds as long as it renews it.

    Args:
        lock: The file, which is taken after this is made.
        mine: What it says about this process.
    """

    def __init__(self, lock: ObjectPath, mine: Holder) -> None:
        self._lock = lock
        self._mine = mine
        self._renewed = _now()
        self._is_renewing = threading.RLock()
        self.is_lost = False

    def why_not_write(self) -> str:
        """Return why nothing may be written any more; empty while the lock is held.

        A lock that was not renewed in time is looked at first: another process may have taken it
        while this machine slept, or this process was stopped.
        """
        if _now() - self._renewed > STALE_SECONDS:
            self.renew()
        return "another process has taken this run over" if self.is_lost else ""

    def renew(self) -> None:
        """Renew the lock; interrupt this process if another one has taken it."""
        with self._is_renewing:
            if self.is_lost:
                return
            if _is_held(self._lock, self._mine):
                # Before the write, which asks whether it may be done.
                self._renewed = _now()
                self._lock.write_bytes(_content(self._mine))
                return
            self.is_lost = True
            print(
                f"{self._lock.parent}: another process has taken this run over; leaving it",
                file=sys.stderr,
            )
            os.kill(os.getpid(), signal.SIGINT)


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
        # It may be stopped, and continue at any time.
        is_alive = is_near and holder.pid != mine.pid and _is_visible(holder)
        if is_alive or (left > 0 and not is_dead):
            killed = (
                f" If it was killed, try again in {left:.0f} s."
                if left > 0
                else f" If it searches no more, remove {lock}."
            )
            raise UsageError(
                f"{lock.parent}: process {holder.pid} on {holder.host} is searching this run; "
                f"wait for it, or stop it.{killed}"
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


def _renew(lease: _Lease, is_over: threading.Event) -> None:
    while not lease.is_lost and not is_over.wait(RENEW_SECONDS):
        with suppress(StorageError, UsageError):  # Whoever works in the folder gets it, too.
            lease.renew()


def _now() -> float:
    """Return seconds of a clock that counts those in which the machine sleeps, too."""
    return time.clock_gettime(getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC))


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
    """Return when a process of this machine began, in clock ticks; ``None`` if not visible.

    -1 if it has ended, and its parent has not noticed.
    """
    try:
        text = Path(f"/proc/{pid}/stat").read_text(errors="replace")
    except OSError:
        return None
    # The name is in parentheses and may itself contain spaces and parentheses.
    state, *fields = text.rpartition(")")[2].split()
    return -1 if state == "Z" else int(fields[18])


def _is_alive(holder: Holder) -> bool:
    """Whether a process of this machine still runs, and no later one has its number."""
    try:
        os.kill(holder.pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    return _began(holder.pid) in (holder.began, None)


def _is_visible(holder: Holder) -> bool:
    """Whether a process of this machine is seen to run, and no later one has its number."""
    return holder.began is not None and _began(holder.pid) == holder.began
