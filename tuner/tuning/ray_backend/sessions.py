"""Folders that Ray leaves of each cluster that it starts: ours are removed once they are over."""

import contextlib
import errno
import os
import shutil
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import ray

from tuner.storage.temporary import hold, is_abandoned

MARKER = "cifar-tune.lock"
"""File in a session's folder by which it is known as ours; its process holds it."""


@contextmanager
def marked_session() -> Iterator[None]:
    """Mark the session that this process has started as ours, and remove older ones of ours."""
    (node,) = ray.nodes()  # type: ignore[no-untyped-call]
    session = Path(node["RayletSocketName"]).parents[1]
    try:
        handle = hold(session / MARKER)
    except OSError:
        # Then it stays, as Ray leaves it.
        yield
        return
    try:
        remove_old_sessions(session.parent)
        yield
    finally:
        os.close(handle)


def remove_old_sessions(folder: Path) -> None:
    """Remove the folders of sessions that were ours and are over."""
    for marker in folder.glob(f"session_*/{MARKER}"):
        session = marker.parent
        if not session.is_symlink() and is_abandoned(marker) and not _answers(session):
            shutil.rmtree(session, ignore_errors=True)


def _answers(session: Path) -> bool:
    """Return whether the session's own processes, which outlive a killed driver, may still run."""
    for path in session.glob("sockets/*"):
        with contextlib.closing(socket.socket(socket.AF_UNIX)) as client:
            try:
                client.connect(str(path))
            except OSError as error:
                if error.errno in (errno.ECONNREFUSED, errno.ENOENT):
                    continue
            return True
    return False
