"""What a run needs of the place where it is stored: of its paths, and of their storage."""

from collections.abc import Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Literal, Protocol, Self, TypeVar

LOCK_NAME = ".lock"
"""File in a run folder that is locked by the search that works in it."""


class AnyPath(Protocol):
    """A file or folder of a storage: a ``pathlib.Path``, or an ``ObjectPath`` of a bucket."""

    def __truediv__(self, name: str, /) -> Self:
        """Return the file or folder of this name in this folder."""
        ...

    @property
    def name(self) -> str:
        """The last part of the path."""
        ...

    @property
    def parent(self) -> Self:
        """The folder that contains it."""
        ...

    def absolute(self) -> Self:
        """Return the path that means the same in every process."""
        ...

    def exists(self) -> bool:
        """Return whether this file or folder exists."""
        ...

    def iterdir(self) -> Iterator[Self]:
        """Yield the files and folders in a folder."""
        ...

    def mkdir(self, *, parents: bool) -> None:
        """Create a folder that does not exist yet.

        Raises:
            FileExistsError: If it is there.
        """
        ...

    def read_bytes(self) -> bytes:
        """Read a file.

        Raises:
            FileNotFoundError: If there is none.
        """
        ...

    def unlink(self, *, missing_ok: Literal[True]) -> None:
        """Remove a file, if it exists."""
        ...


P = TypeVar("P", bound=AnyPath)


class Storage(Protocol[P]):
    """A kind of place that stores files: the disk, or buckets of objects."""

    def check_file(self, path: P, *, most: int, is_own: bool) -> None:
        """Make sure that a file can be opened without harm: no link, pipe or device, not endless.

        Args:
            path: The file. A folder passes, because opening it raises anyway.
            most: Maximum size in bytes.
            is_own: Whether the user named it; then it may be a link.

        Raises:
            OSError: If it is something else, or larger.
        """
        ...

    def check_no_link(self, folder: P) -> None:
        """Make sure that a folder is where it seems to be.

        Raises:
            OSError: If it is a link.
        """
        ...

    def etag(self, path: P) -> object:
        """Return a value that changes with a file; ``None`` if there is none."""
        ...

    def modified(self, path: P) -> float:
        """Return when a file was written, in seconds since 1970."""
        ...

    def with_snapshot(self, folder: P, *names: str) -> P:
        """Return a folder that answers from its present content, if looking again costs time.

        Args:
            folder: The folder.
            names: Names of the files below it whose content is read now, too.
        """
        ...

    def folders_with(self, folder: P, name: str) -> list[P]:
        """Return the folders in ``folder`` with a file of this name, sorted by their names."""
        ...

    def on_disk(self, path: P) -> AbstractContextManager[Path]:
        """Yield a file on disk: itself, or a temporary copy.

        Raises:
            OSError: If it is no plain file; see ``check_file``.
        """
        ...

    def replacing(self, path: P, *, flush: bool) -> AbstractContextManager[Path]:
        """Yield a path on disk whose file replaces ``path`` when the block ends without an error.

        Args:
            path: The file.
            flush: Whether the file is on the medium before it replaces the other, so that a power
                loss leaves the old file or the new one.
        """
        ...

    def append(self, path: P, content: bytes) -> None:
        """Append to a file, or create it."""
        ...

    def put(self, file: Path, target: P) -> None:
        """Copy a file on disk to a place where nobody looks yet."""
        ...

    def copy(self, source: P, target: P) -> None:
        """Copy a file within the storage to a place where nobody looks yet."""
        ...

    def replace_folder(self, new: Path, folder: P, *, last: str) -> None:
        """Put a folder that was written on disk in the place of another one, or in a free place.

        Args:
            new: The folder; beside ``folder`` where that is on disk. It may be moved.
            folder: Where to put it.
            last: Its file by which others find it; empty for none. A storage that cannot move
                folders removes it first and writes it last, so that nobody finds half a folder.
        """
        ...

    def remove_folder(self, folder: P) -> None:
        """Remove a folder and everything in it, if it exists."""
        ...

    def remove_leftovers(self, folder: P) -> None:
        """Remove all unfinished files from a folder in which nobody works any more."""
        ...

    def remove_abandoned(self, folder: P) -> None:
        """Remove temporary files and folders whose process is gone, but none of a live one."""
        ...

    def scratch(self, beside: P, prefix: str) -> AbstractContextManager[P]:
        """Yield a folder in the folder ``beside`` that exists during the block."""
        ...

    def locked(self, folder: P) -> AbstractContextManager[None]:
        """Keep other searches out of a run folder until the block, or the process, ends.

        Raises:
            UsageError: If another process is searching this run.
        """
        ...
