"""A folder of a bucket that one process at a time works in: its lock has a holder and an end.

Machines differ in their clocks: how long ago a lock was renewed is told by that of the bucket.
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
from tuner.storage.object_path import ObjectPath
from tuner.storage.protocol import LOCK_NAME

RENEW_SECONDS = 20.0
STALE_SECONDS = 90.0
"""A lock that was not renewed for so long belongs to nobody."""
SETTLE_SECONDS = 2.0
"""After this, of all who took a stale lock at once, the last one has it."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Holder:
    """What a lock tells of the process that has it."""

    token: str
    """A word that this process alone knows."""
    host: str
    pid: int
    machine: str = ""
    """What counts its processes; empty where the system does not tell."""
    began: int | None = None
    """When the process began, in clock ticks after the machine did."""
    renewed: float = 0.0
    """When it last said that it lives, by its own clock, in seconds since 1970."""


@contextmanager
def leased(folder: ObjectPath) -> Iterator[None]:
    """Keep other searches out of a run folder until the block ends.

    The lock outlives a process that is killed: on the same machine, and in the same container,
    that is seen; elsewhere it is waited for until the lock is stale.

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
        # A storage that is gone has been told of; the lock gets stale there.
        with suppress(StorageError):
            if _is_held(lock, mine):
                lock.unlink(missing_ok=True)
        folder.allow_writing()


def _take(lock: ObjectPath, mine: Holder) -> None:
    try:
        lock.create(_content(mine))
    except FileExistsError:
        # A lost answer has us ask again, and find what we wrote.
        if not _is_held(lock, mine):
            _take_over(lock, mine)


def _take_over(lock: ObjectPath, mine: Holder) -> None:
    """Take a lock that nobody holds any more.

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
    """Return how many seconds ago a lock was written, by the clock of its bucket alone."""
    probe = lock.parent / f"{LOCK_NAME}-{mine.token}"
    probe.write_bytes(b"now")
    try:
        return probe.modified() - lock.modified()
    except FileNotFoundError:
        # Its holder has ended just now.
        return STALE_SECONDS
    finally:
        probe.unlink(missing_ok=True)


def _renew(lock: ObjectPath, mine: Holder, is_over: threading.Event) -> None:
    while not is_over.wait(RENEW_SECONDS):
        with suppress(StorageError, UsageError):  # Whoever works in the folder meets it, too.
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
    """Return who has a lock; ``None`` if nobody.

    Raises:
        UsageError: If it is not a lock of ours.
    """
    try:
        return from_json(Holder, lock.read_bytes())
    except FileNotFoundError:
        return None
    except UsageError as error:
        raise UsageError(
            f"{lock}: damaged or unreadable: {error}. Remove it if nothing is searching this run."
        ) from None


def _is_held(lock: ObjectPath, mine: Holder) -> bool:
    """Whether the lock is still this process's own, and not another's or no lock any more."""
    try:
        holder = _holder(lock)
    except UsageError:
        return False
    return holder is not None and holder.token == mine.token


def _machine() -> str:
    """Name what counts processes here: containers may share a host's name, and none of those."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{boot} {Path('/proc/self/ns/pid').readlink()}"
    except OSError:
        return ""


def _began(pid: int) -> int | None:
    """Return when a process of this machine began; ``None`` if that cannot be seen."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text(errors="replace")
    except OSError:
        return None
    # The name stands in parentheses and may hold spaces and parentheses itself.
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
