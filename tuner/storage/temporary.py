"""Temporary files and folders, and the removal of those whose process was killed.

Each is locked by the process that made it. The system ends a lock with its process, so whatever
another process can lock belongs to nobody any more. That holds on one machine: some file systems do
not show locks to other machines. So names say which machine made a file, and a file made by another
machine, or before a restart, belongs to nobody once it has not been changed for a day.
"""

import contextlib
import fcntl
import hashlib
import os
import re
import shutil
import socket
import stat
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

PREFIX = "cifar-tune-"
SUFFIX = ".tmp"
"""Suffix of the names of all temporary files and folders."""
OTHERS = re.compile(r"\.[0-9a-f]{8}\.tmp$")
"""End of a name made by some machine; see ``own_suffix``."""
BOOT_ID = Path("/proc/sys/kernel/random/boot_id")
"""A random text of the system, another one after each boot, that its containers see, too."""
YOUNG_SECONDS = 1.0
"""Anything younger may not be locked yet."""
FORGOTTEN_SECONDS = 24 * 3600.0
"""Anything of another machine that nobody has changed for this long belongs to nobody."""
REPLACED = "replaced"
"""Folder in a temporary one that holds what was moved away for something new, by its name."""


class TemporaryFolder(tempfile.TemporaryDirectory[str]):
    """A temporary folder that exists until ``cleanup``, or during the block.

    Args:
        beside: The folder to create it in; ``None`` for the system's default.
        prefix: Start of its name.
    """

    def __init__(self, beside: Path | None = None, prefix: str = PREFIX) -> None:
        super().__init__(dir=beside, prefix=prefix, suffix=own_suffix())
        self._lock = os.open(self.name, os.O_RDONLY)
        _lock(self._lock)

    def cleanup(self) -> None:
        """Remove the folder and everything in it."""
        if self._lock >= 0:
            os.close(self._lock)
            self._lock = -1
        super().cleanup()


@contextmanager
def temporary_file(path: Path) -> Iterator[Path]:
    """Yield an empty hidden file beside ``path``; at the end, remove it if it still exists."""
    handle, name = tempfile.mkstemp(prefix=f".{path.name}.", suffix=own_suffix(), dir=path.parent)
    try:
        _lock(handle)
        yield Path(name)
    finally:
        Path(name).unlink(missing_ok=True)
        os.close(handle)


def own_suffix() -> str:
    """Return the suffix of the names of what this machine makes."""
    # Containers on several machines may share a host name. Those on one machine see each other's
    # locks, and its boot.
    machine = _boot_id() or socket.gethostname()
    # Names are up to 255 bytes long.
    return f".{hashlib.sha256(machine.encode()).hexdigest()[:8]}{SUFFIX}"


def _boot_id() -> str:
    """Return what identifies this machine since it booted; empty if the system does not say."""
    try:
        return BOOT_ID.read_text().strip()
    except OSError:
        return ""


def remove_abandoned(folder: Path, prefix: str = ".") -> None:
    """Remove temporary files and folders in a folder whose process is gone.

    The content of their ``REPLACED`` folder is put back, if nothing has taken its place.

    Args:
        folder: Where to look; it need not exist.
        prefix: Start of their names.
    """
    for path in folder.glob(f"{prefix}*{SUFFIX}"):
        is_own = path.name.endswith(own_suffix())
        is_others = OTHERS.search(path.name) is not None and _is_forgotten(path)
        if not (is_own or is_others) or not is_abandoned(path):
            continue
        if path.is_dir():
            moved = path / REPLACED
            # A link may lead to somebody else's files.
            for replaced in () if moved.is_symlink() else moved.glob("*"):
                if not (folder / replaced.name).exists():
                    replaced.rename(folder / replaced.name)
            shutil.rmtree(path, ignore_errors=True)
        else:
            with contextlib.suppress(OSError):
                path.unlink()


def _is_forgotten(path: Path) -> bool:
    """Whether nobody has changed a file, or anything in a folder, for a day."""
    try:
        newest = max(entry.lstat().st_mtime for entry in (path, *path.rglob("*")))
    except OSError:
        # It is being changed.
        return False
    return time.time() - newest > FORGOTTEN_SECONDS


def hold(path: Path) -> int:
    """Create a file that is locked until the returned descriptor is closed."""
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
    """Lock an open file or folder; return whether that worked. Some file systems have no locks."""
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    return True
