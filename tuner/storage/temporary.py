"""Temporary files and folders, and the removal of those whose process was killed.

Each is locked by the process that made it. The system ends a lock with its process, so that what
can be locked by another one is nobody's any more.
"""

import contextlib
import fcntl
import os
import shutil
import stat
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

PREFIX = "cifar-tune-"
SUFFIX = ".tmp"
"""End of the names of all temporary files and folders."""
YOUNG_SECONDS = 1.0
"""What is younger may not be locked yet."""


class TemporaryFolder(tempfile.TemporaryDirectory[str]):
    """A temporary folder that is there until ``cleanup``, or for as long as the block lasts.

    Args:
        beside: The folder to make it in; ``None`` for the system's own place.
        prefix: Begin of its name.
    """

    def __init__(self, beside: Path | None = None, prefix: str = PREFIX) -> None:
        super().__init__(dir=beside, prefix=prefix, suffix=SUFFIX)
        self._lock = os.open(self.name, os.O_RDONLY)
        _lock(self._lock)

    def cleanup(self) -> None:
        """Remove the folder with all in it."""
        if self._lock >= 0:
            os.close(self._lock)
            self._lock = -1
        super().cleanup()


@contextmanager
def temporary_file(path: Path) -> Iterator[Path]:
    """Yield an empty hidden file beside ``path``, which is removed if it is still there then."""
    handle, name = tempfile.mkstemp(prefix=f".{path.name}.", suffix=SUFFIX, dir=path.parent)
    try:
        _lock(handle)
        yield Path(name)
    finally:
        Path(name).unlink(missing_ok=True)
        os.close(handle)


def remove_abandoned(folder: Path, prefix: str = ".") -> None:
    """Remove temporary files and folders in a folder whose process is gone.

    Args:
        folder: Where to look; it need not be there.
        prefix: Begin of their names.
    """
    for path in folder.glob(f"{prefix}*{SUFFIX}"):
        if not is_abandoned(path):
            continue
        if path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        else:
            with contextlib.suppress(OSError):
                path.unlink()


def hold(path: Path) -> int:
    """Make a file that is locked until its descriptor, which is returned, is closed."""
    handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
    _lock(handle)
    return handle


def is_abandoned(path: Path) -> bool:
    """Return whether a temporary file or folder is this user's, and its process is gone."""
    try:
        info = path.lstat()
        is_folder = stat.S_ISDIR(info.st_mode)
        if not (is_folder or stat.S_ISREG(info.st_mode)) or info.st_uid != os.getuid():
            return False
        if time.time() - info.st_mtime < YOUNG_SECONDS:
            return False
        handle = os.open(path, (os.O_RDONLY if is_folder else os.O_RDWR) | os.O_NOFOLLOW)
    except OSError:
        return False
    try:
        return _lock(handle)
    finally:
        os.close(handle)


def _lock(handle: int) -> bool:
    """Lock an open file or folder; say whether that went well. Some file systems have no locks."""
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    return True
