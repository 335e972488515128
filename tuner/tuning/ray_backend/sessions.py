"""Session folders that Ray leaves behind; those of our sessions are removed once they are over."""

import contextlib
import errno
import os
import shutil
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tuner.storage.temporary import hold, is_abandoned
from tuner.tuning.ray_backend.private import get_default_ray_temp_dir

MARKER = "cifar-tune.lock"
"""File in a session's folder that marks it as ours; its process holds a lock on it."""
MARK_SECONDS = 0.05
"""Seconds between two checks for the folder of a session that starts."""


@contextmanager
def marked_session() -> Iterator[None]:
    """Mark the session that this process starts in the block as ours; remove older ones of ours.

    It is marked as soon as its folder exists: Ray may not start, and this process may be killed.
    """
    folder = Path(get_default_ray_temp_dir())  # type: ignore[no-untyped-call]
    before = set(_own_sessions(folder))
    handles: list[int] = []
    is_over = threading.Event()

    def mark() -> None:
        while not is_over.wait(MARK_SECONDS):
            for session in set(_own_sessions(folder)) - before:
                # Without a mark the folder stays, as Ray leaves it.
                with contextlib.suppress(OSError):
                    handles.append(hold(session / MARKER))
                remove_old_sessions(folder)
                return

    thread = threading.Thread(target=mark, name="session-mark", daemon=True)
    thread.start()
    try:
        yield
    finally:
        is_over.set()
        thread.join()
        for handle in handles:
            os.close(handle)


def _own_sessions(folder: Path) -> Iterator[Path]:
    """Yield the folders of sessions that this process has started."""
    return folder.glob(f"session_[0-9]*_{os.getpid()}")


def remove_old_sessions(folder: Path) -> None:
    """Remove the folders of our sessions that are over."""
    for marker in folder.glob(f"session_*/{MARKER}"):
        session = marker.parent
        if not session.is_symlink() and is_abandoned(marker) and not _answers(session):
            shutil.rmtree(session, ignore_errors=True)


def _answers(session: Path) -> bool:
    """Return whether the session's processes, which outlive a killed driver, may still run."""
    for path in session.glob("sockets/*"):
        with contextlib.closing(socket.socket(socket.AF_UNIX)) as client:
            try:
                client.connect(str(path))
            except OSError as error:
                if error.errno in (errno.ECONNREFUSED, errno.ENOENT):
                    continue
            return True
    return False
