"""What a run asks of the place where it is kept: of its paths, and of what keeps them."""

from collections.abc import Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Literal, Protocol, Self, TypeVar

LOCK_NAME = ".lock"
"""File in a run folder that the search which works in it holds."""


class StoragePath(Protocol):
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
        """The folder that it lies in."""
        ...

    def absolute(self) -> Self:
        """Return the path that means the same in every process."""
        ...

    def exists(self) -> bool:
        """Return whether there is such a file or folder."""
        ...

    def iterdir(self) -> Iterator[Self]:
        """Yield the files and folders in a folder."""
        ...

    def mkdir(self, *, parents: bool) -> None:
        """Make a folder that is not there yet.

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

    def read_text(self) -> str:
        """Read a file of UTF-8."""
        ...

    def unlink(self, *, missing_ok: Literal[True]) -> None:
        """Remove a file, if it is there."""
        ...


P = TypeVar("P", bound=StoragePath)


class Storage(Protocol[P]):
    """A kind of place that keeps files: the disk, or buckets of objects."""

    def check_file(self, path: P, *, most: int, is_own: bool) -> None:
        """Make sure that a file can be opened without harm: no link, pipe or device, not endless.

        Args:
            path: The file, or a folder, of which the one who opens it is told.
            most: Bytes that it may have.
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
        """Return what changes when a file does; ``None`` where there is none."""
        ...

    def modified(self, path: P) -> float:
        """Return when a file was written, in seconds since 1970."""
        ...

    def with_snapshot(self, folder: P, *names: str) -> P:
        """Return a folder that answers from what is in it now, where asking again costs time.

        Args:
            folder: The folder.
            names: Names of the files below it whose content is read now, too.
        """
        ...

    def folders_with(self, folder: P, name: str) -> list[P]:
        """Return the folders in ``folder`` with a file of this name, sorted by their names."""
        ...

    def on_disk(self, path: P) -> AbstractContextManager[Path]:
        """Yield a file as one on disk: itself, or a copy for a while.

        Raises:
            OSError: If it is no plain file; see ``check_file``.
        """
        ...

    def replacing(self, path: P, *, flush: bool) -> AbstractContextManager[Path]:
        """Yield a path on disk whose file takes the place of ``path`` when the block ends well.

        Args:
            path: The file.
            flush: Whether it is on the medium before it takes the place, so that a loss of power
                leaves the old file or the new one.
        """
        ...

    def append(self, path: P, content: bytes) -> None:
        """Add to the end of a file, or begin one."""
        ...

    def put(self, file: Path, target: P) -> None:
        """Copy a file on disk to a place where nobody looks yet."""
        ...

    def copy(self, source: P, target: P) -> None:
        """Copy a file within the storage to a place where nobody looks yet."""
        ...

    def replace_folder(self, new: Path, folder: P, *, last: str) -> None:
        """Put a folder that was written on disk in the place of another one, or of none.

        Args:
            new: The folder; beside ``folder`` where that is on disk. It may be moved.
            folder: Where to.
            last: File of it by which others find it; empty for none. A storage that cannot move
                folders removes it first and writes it last, so that nobody finds half a folder.
        """
        ...

    def remove_folder(self, folder: P) -> None:
        """Remove a folder with all in it, if it is there."""
        ...

    def remove_leftovers(self, folder: P) -> None:
        """Remove all that was being written in a folder in which nobody works any more."""
        ...

    def remove_abandoned(self, folder: P) -> None:
        """Remove temporary files and folders whose process is gone, and none of a live one."""
        ...

    def scratch(self, beside: P, prefix: str) -> AbstractContextManager[P]:
        """Yield a folder in the folder ``beside``, for as long as the block lasts."""
        ...

    def locked(self, folder: P) -> AbstractContextManager[None]:
        """Keep other searches out of a run folder until the block, or the process, ends.

        Raises:
            UsageError: If another process is searching this run.
        """
        ...
