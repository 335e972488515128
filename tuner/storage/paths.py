"""Where runs are stored: a local folder, or one in a bucket of objects, named by a URI.

An ``AnyPath`` has the few methods of a ``pathlib.Path`` that a run folder needs. The functions
here do the rest, through the path's ``Storage``.
"""

import hashlib
import io
import os
from contextlib import AbstractContextManager, suppress
from pathlib import Path, PurePosixPath
from typing import cast

from tuner.errors import UsageError
from tuner.schema import quoted
from tuner.storage.local_storage import LocalStorage
from tuner.storage.object_path import MOST_TEXT, ObjectPath
from tuner.storage.object_storage import ObjectStorage
from tuner.storage.object_store import EXTRAS
from tuner.storage.protocol import AnyPath as AnyPath
from tuner.storage.protocol import P, Storage

MOST_NAME, MOST_PATH = 255, 4095
"""Maximum lengths in bytes of a name and of a path in file systems."""
LOCAL: Storage[Path] = LocalStorage()
OBJECTS: Storage[ObjectPath] = ObjectStorage()


def to_path(text: str) -> AnyPath:
    """Return the path that a user names: a local folder, or a URI.

    Raises:
        UsageError: If it is a URI of nothing, or no path.
    """
    check_path(text)
    if ":/" not in text:
        return expanded(text)
    scheme, _, rest = text.partition("://")
    place = PurePosixPath(rest)
    if not rest.strip("/") or not scheme.isalnum() or ".." in place.parts or place.is_absolute():
        raise UsageError(f"{quoted(text)}: is not a folder of a store; write s3://BUCKET/FOLDER")
    return ObjectPath(f"{scheme}://{place}")


def expanded(place: str | os.PathLike[str]) -> Path:
    """Return a path with ``~`` replaced by the user's home; ``~name`` of an unknown user stays."""
    try:
        return Path(place).expanduser()
    except RuntimeError:
        return Path(place)


def with_name(path: AnyPath) -> AnyPath:
    """Return a path that ends in the name of its folder, even if it is ``.`` or ends in ``..``."""
    if isinstance(path, Path) and path.name in ("", ".."):
        # The current folder may be gone, and a link may lead to itself.
        with suppress(OSError, RuntimeError):
            return path.resolve()
    return path


def check_path(text: str) -> None:
    """Make sure that the system accepts a text as a path, before anything is looked up there.

    Raises:
        UsageError: If it is empty, a part of it is too long, or a character cannot be in a path.
    """
    if not text:
        # As from a shell variable that is not set; pathlib takes it for the current folder.
        raise UsageError("'': is empty; give a name or a path")
    try:
        parts = text.encode().split(b"/")
    except UnicodeEncodeError:
        raise UsageError(f"{quoted(text)}: has half of a character, which no path can") from None
    if "\0" in text:
        raise UsageError(f"{quoted(text)}: has a NUL, which no path can")
    if len(text.encode()) > MOST_PATH or max(map(len, parts)) > MOST_NAME:
        raise UsageError(f"{quoted(text)}: is too long for a path")


def storage_of(path: P) -> Storage[P]:
    """Return the storage of a path."""
    return cast("Storage[P]", OBJECTS if isinstance(path, ObjectPath) else LOCAL)


def extra_for(text: str) -> str:
    """Return the extra of this package that a storage needs; empty for none."""
    return EXTRAS.get(text.partition("://")[0], "")


def with_snapshot(folder: P, *names: str) -> P:
    """Return a folder that answers from a snapshot, which holds the files of these names, too.

    For a local folder, this is the folder itself: looking takes no time.
    """
    return storage_of(folder).with_snapshot(folder, *names)


def folders_with(folder: P, name: str) -> list[P]:
    """Return the folders in ``folder`` with a file of this name, sorted by their names."""
    return storage_of(folder).folders_with(folder, name)


def etag(path: AnyPath) -> object:
    """Return a value that changes with a file; ``None`` if there is none."""
    return storage_of(path).etag(path)


def modified(path: AnyPath) -> float:
    """Return when a file was written, in seconds since 1970."""
    return storage_of(path).modified(path)


def read_bytes(path: AnyPath, *, most: int = MOST_TEXT, is_own: bool = False) -> bytes:
    """Read a whole file.

    Args:
        path: The file.
        most: Maximum size in bytes.
        is_own: Whether the user named it; then it may be a link.

    Raises:
        OSError: If it is no plain file, too large, or cannot be read.
    """
    storage_of(path).check_file(path, most=most, is_own=is_own)
    return path.read_bytes()


def read_text(path: AnyPath, *, encoding: str = "utf-8", is_own: bool = False) -> str:
    """Read a whole text file with universal newlines; see ``read_bytes``.

    Raises:
        OSError: If it is no plain file, or cannot be read.
        UnicodeDecodeError: If it is no such text.
    """
    text = read_bytes(path, is_own=is_own).decode(encoding)
    return io.StringIO(text, newline=None).read()


def inside(folder: AnyPath, name: str) -> AnyPath:
    """Return the path in ``folder`` to which ``name``, read from one of its files, refers.

    Args:
        folder: The folder.
        name: Plain names, with a slash between a subfolder and its file.

    Raises:
        ValueError: If it leads elsewhere.
    """
    parts = name.split("/")
    is_plain = not any(part in ("", ".", "..") or "\0" in part for part in parts)
    if not is_plain or max(len(part.encode()) for part in parts) > MOST_NAME:
        raise ValueError(f"{quoted(name)} is not the name of a file in {folder.name}")
    path = folder
    for part in parts[:-1]:
        path = path / part
        check_no_link(path)
    return path / parts[-1]


def lies_in(path: AnyPath, storage: AnyPath) -> bool:
    """Whether a path is in a storage, where the record of a run may lead; links are followed.

    A run may come from somebody else. Its record alone leads to no other files, and to no server.
    """
    if isinstance(path, Path) and isinstance(storage, Path):
        return path.resolve().is_relative_to(storage.resolve())
    return str(path).startswith(f"{storage}/")


def check_no_link(folder: AnyPath) -> None:
    """Make sure that a folder of a run is really inside it.

    Raises:
        OSError: If it is a link.
    """
    storage_of(folder).check_no_link(folder)


def on_disk(path: AnyPath) -> AbstractContextManager[Path]:
    """Yield a run's file on disk, for code that reads no other; from a bucket, a temporary copy.

    Raises:
        OSError: If it is a link, a pipe or a device, or too large.
    """
    return storage_of(path).on_disk(path)


def sha256_of(path: AnyPath) -> str:
    """Return the SHA-256 of a file's content, in hexadecimal.

    Raises:
        OSError: If it is no plain file, or cannot be read.
    """
    with on_disk(path) as local, local.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def copy_file(source: AnyPath, target: AnyPath) -> None:
    """Copy a file to a place where nobody looks yet."""
    storage = storage_of(target)
    if storage is storage_of(source):
        storage.copy(source, target)
        return
    with on_disk(source) as file:
        storage.put(file, target)


def remove_folder(folder: AnyPath) -> None:
    """Remove a folder and everything in it, if it exists."""
    storage_of(folder).remove_folder(folder)


def replace_folder(new: Path, folder: AnyPath, *, last: str = "") -> None:
    """Put a folder that was written locally in the place of another one, or in a free place.

    Args:
        new: The folder, beside ``folder`` if that is local; it is moved.
        folder: Where to put it.
        last: Its file by which others find it. In a bucket, which cannot move folders, this file
            is removed first and written last.
    """
    storage_of(folder).replace_folder(new, folder, last=last)


def scratch(beside: P, prefix: str) -> AbstractContextManager[P]:
    """Yield a folder in the folder ``beside`` that exists during the block."""
    return storage_of(beside).scratch(beside, prefix)


def locked(folder: AnyPath) -> AbstractContextManager[None]:
    """Keep other searches out of a run folder until the block, or the process, ends.

    Raises:
        UsageError: If another process is searching this run.
    """
    return storage_of(folder).locked(folder)
