"""The storage on this machine's file system."""

import contextlib
import fcntl
import os
import shutil
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from tuner.errors import TunerError, UsageError
from tuner.storage.patience import fault_number, is_unwritable, storage_fault
from tuner.storage.protocol import LOCK_NAME
from tuner.storage.temporary import REPLACED, TemporaryFolder, remove_abandoned, temporary_file

MOST_TENSORS = 32 * 2**30
"""Maximum size in bytes of a file of numbers."""


class LocalStorage:
    """Folders on a local disk or on one that machines share; see ``Storage``."""

    def check_file(self, path: Path, *, most: int = MOST_TENSORS, is_own: bool = False) -> None:
        """Make sure that a file can be opened without harm."""
        info = path.stat(follow_symlinks=is_own)
        if stat.S_ISLNK(info.st_mode):
            raise OSError(f"{path.name} is a link; put the file itself in its place")
        if not stat.S_ISREG(info.st_mode) and not stat.S_ISDIR(info.st_mode):
            raise OSError(f"{path.name} is a pipe or a device, not a file")
        if info.st_size > most:
            raise OSError(
                f"{path.name} has {info.st_size} bytes, more than the {most} that are read"
            )

    def check_no_link(self, folder: Path) -> None:
        """Make sure that a folder is where it seems to be."""
        if folder.is_symlink():
            raise OSError(f"{folder.name} is a link; put the folder itself in its place")

    def etag(self, path: Path) -> object:
        """Return the time of the last change; ``None`` if there is no file."""
        try:
            return path.stat().st_mtime_ns
        except (FileNotFoundError, NotADirectoryError):
            return None

    def modified(self, path: Path) -> float:
        """Return when a file was written, in seconds since 1970."""
        return path.stat().st_mtime

    def with_snapshot(self, folder: Path, *names: str) -> Path:
        """Return the folder itself: looking on a disk takes no time."""
        return folder

    def folders_with(self, folder: Path, name: str) -> list[Path]:
        """Return the folders in ``folder`` with a file of this name, sorted by their names."""
        return [path.parent for path in sorted(folder.glob(f"*/{name}"))]

    @contextmanager
    def on_disk(self, path: Path) -> Iterator[Path]:
        """Yield the file itself."""
        self.check_file(path)
        yield path

    @contextmanager
    def replacing(self, path: Path, *, flush: bool) -> Iterator[Path]:
        """Yield a path beside ``path`` that is renamed at the end, after a flush if requested."""
        with _naming(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            with temporary_file(path) as temporary:
                yield temporary
                if flush:
                    with temporary.open("rb+") as file:
                        os.fsync(file.fileno())
                temporary.chmod(0o644)
                temporary.replace(path)

    def append(self, path: Path, content: bytes) -> None:
        """Append to a file, or create it."""
        self._check_if_there(path)
        with _naming(path), path.open("ab") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())

    def put(self, file: Path, target: Path) -> None:
        """Copy a file."""
        with _naming(target):
            shutil.copyfile(file, target)

    def copy(self, source: Path, target: Path) -> None:
        """Copy a plain file."""
        with self.on_disk(source) as file:
            self.put(file, target)

    def replace_folder(self, new: Path, folder: Path, *, last: str = "") -> None:
        """Move a folder to the place of another one beside it, or to a free place.

        The other one is moved beside ``new``. If the process is killed in between,
        ``remove_abandoned`` puts it back, provided that ``new`` is in a temporary folder.
        """
        if folder.exists():
            replaced = new.with_name(REPLACED)
            replaced.mkdir()
            folder.rename(replaced / folder.name)
        new.rename(folder)

    def remove_folder(self, folder: Path) -> None:
        """Remove a folder and everything in it, if it exists."""
        shutil.rmtree(folder, ignore_errors=True)

    def remove_leftovers(self, folder: Path) -> None:
        """Remove what ``replacing`` left in a folder when its process was killed."""
        # Named ``.NAME.SUFFIX.RANDOM``; other hidden files are not ours.
        for leftover in folder.glob(".*.*.*"):
            # A network file system may keep a file that another node has open.
            with contextlib.suppress(OSError):
                leftover.unlink()

    def remove_abandoned(self, folder: Path) -> None:
        """Remove temporary files and folders in a folder whose process is gone."""
        remove_abandoned(folder)

    @contextmanager
    def scratch(self, beside: Path, prefix: str) -> Iterator[Path]:
        """Yield a folder in the folder ``beside`` that exists during the block."""
        beside.mkdir(parents=True, exist_ok=True)
        with TemporaryFolder(beside, prefix) as folder:
            yield Path(folder)

    @contextmanager
    def locked(self, folder: Path) -> Iterator[None]:
        """Keep other searches out of a run folder; the system ends the lock with its process."""
        with self._lock_file(folder) as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise UsageError(
                    f"{folder}: another process is searching this run; wait for it, or stop it"
                ) from None
            except OSError as error:
                raise TunerError(
                    f"{folder}: this file system has no locks ({error.strerror}), which keep two "
                    "searches apart. Mount it with them, or choose another --storage."
                ) from error
            yield

    def _lock_file(self, folder: Path) -> IO[str]:
        lock = folder / LOCK_NAME
        try:
            # Through a link, another file would be emptied.
            self._check_if_there(lock)
            return lock.open("w")
        except OSError as error:
            raise TunerError(f"{lock}: damaged or unreadable: {error}") from error

    def _check_if_there(self, path: Path) -> None:
        if path.exists() or path.is_symlink():
            self.check_file(path)


@contextmanager
def _naming(path: Path) -> Iterator[None]:
    """Name the file that is being written where the storage fails.

    The system names no file if a write fails, ``shutil`` the wrong one, and safetensors raises an
    error of its own.

    Raises:
        OSError: If it fails, with the number of the fault and the file. A fault of another file
            that is read meanwhile is raised unchanged.
    """
    try:
        yield
    except Exception as error:
        number = fault_number(error)
        is_named = isinstance(error, OSError) and error.filename is not None
        if number is None or (is_named and not is_unwritable(error)):
            raise
        raise OSError(number, storage_fault(error), str(path)) from error
