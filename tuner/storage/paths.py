"""Where runs are kept: a folder here, or one of a store of objects, named by a URI.

A ``Remote`` answers to the few methods of a ``Path`` that a run folder needs. What is not among
them is done by the functions here, or needs a file on disk, which ``on_disk`` gives.
"""

import io
import shutil
import stat
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from uuid import uuid4

from tuner.errors import UsageError
from tuner.storage.object_path import Remote
from tuner.storage.object_store import EXTRAS

AnyPath = Path | Remote
"""Where something of a run lies."""
MOST_TEXT = 64 * 2**20
"""Bytes of a file that is read whole, at most."""
MOST_TENSORS = 32 * 2**30
"""Bytes of a file of numbers, at most."""


def to_path(text: str) -> AnyPath:
    """Return the path that a user names: a folder here, or a URI.

    Raises:
        UsageError: If it is a URI of nothing.
    """
    if ":/" not in text:
        return Path(text)
    scheme, _, rest = text.partition("://")
    place = PurePosixPath(rest)
    if not rest.strip("/") or not scheme.isalnum() or ".." in place.parts or place.is_absolute():
        raise UsageError(f"--storage {text}: is no folder of a storage; write s3://BUCKET/FOLDER")
    return Remote(f"{scheme}://{place}")


def extra_for(text: str) -> str:
    """Name the extra of this package that a storage needs; empty for none."""
    return EXTRAS.get(text.partition("://")[0], "")


def with_snapshot(folder: AnyPath, *names: str) -> AnyPath:
    """Return a folder whose state, and the content of files of these names, is known from now on.

    Of a folder here that is the folder: to ask it takes no time.
    """
    return folder.glance(names) if isinstance(folder, Remote) else folder


def folders_with(folder: AnyPath, name: str) -> list[AnyPath]:
    """Return the folders in ``folder`` with a file of this name, sorted; see ``with_snapshot``."""
    if not isinstance(folder, Remote):
        return [path.parent for path in sorted(folder.glob(f"*/{name}"))]
    found = folder.read_all([f"{path.uri}/{name}" for path in folder.iterdir()])
    return [Remote(uri).parent for uri in found]


def stamp(path: AnyPath) -> object:
    """Return what changes when a file does; ``None`` where there is none."""
    if isinstance(path, Remote):
        return path.stamp()
    try:
        return path.stat().st_mtime_ns
    except FileNotFoundError:
        return None


def modified(path: AnyPath) -> float:
    """Return when a file was written, in seconds since 1970."""
    return path.modified() if isinstance(path, Remote) else path.stat().st_mtime


def check_file(path: Path, *, most: int = MOST_TENSORS, is_own: bool = False) -> None:
    """Make sure that a file can be opened without harm: no link, no pipe, no device, not endless.

    Args:
        path: The file, or a folder, of which the one who opens it is told.
        most: Bytes that it may have.
        is_own: Whether the user named it; then it may be a link.

    Raises:
        OSError: If it is something else, or larger.
    """
    info = path.stat(follow_symlinks=is_own)
    if stat.S_ISLNK(info.st_mode):
        raise OSError(f"{path.name} is a link; put the file itself in its place")
    if not stat.S_ISREG(info.st_mode) and not stat.S_ISDIR(info.st_mode):
        raise OSError(f"{path.name} is a pipe or a device, not a file")
    if info.st_size > most:
        raise OSError(f"{path.name} has {info.st_size} bytes, more than the {most} that are read")


def read_bytes(path: AnyPath, *, most: int = MOST_TEXT, is_own: bool = False) -> bytes:
    """Read a file whole; see ``check_file``.

    Raises:
        OSError: If it is no plain file, or cannot be read.
    """
    if not isinstance(path, Remote):
        check_file(path, most=most, is_own=is_own)
    content = path.read_bytes()
    if len(content) > most:
        raise OSError(f"{path.name} is larger than the {most} bytes that are read")
    return content


def read_text(path: AnyPath, *, encoding: str = "utf-8", is_own: bool = False) -> str:
    """Read a file of text whole, its lines ended as Python does; see ``read_bytes``.

    Raises:
        OSError: If it is no plain file, or cannot be read.
        UnicodeDecodeError: If it is no such text.
    """
    text = read_bytes(path, is_own=is_own).decode(encoding)
    return io.StringIO(text, newline=None).read()


def inside(folder: AnyPath, name: str) -> AnyPath:
    """Return the file that ``name``, which a file of the folder holds, is in this folder.

    Args:
        folder: The folder.
        name: Plain names, with a slash between a folder below this one and its file.

    Raises:
        ValueError: If it leads elsewhere.
    """
    parts = name.split("/")
    if any(part in ("", ".", "..") or "\0" in part for part in parts):
        raise ValueError(f"{name[:200]!r} is no name of a file in {folder.name}")
    path = folder
    for part in parts[:-1]:
        path = path / part
        check_no_link(path)
    return path / parts[-1]


def check_no_link(folder: AnyPath) -> None:
    """Make sure that a folder of a run is in it, and not elsewhere.

    Raises:
        OSError: If it is a link.
    """
    if not isinstance(folder, Remote) and folder.is_symlink():
        raise OSError(f"{folder.name} is a link; put the folder itself in its place")


@contextmanager
def on_disk(path: AnyPath) -> Iterator[Path]:
    """Yield a run's file as one on disk, for what reads no other; of a store, a copy for a while.

    Raises:
        OSError: If it is no plain file; see ``check_file``.
    """
    if not isinstance(path, Remote):
        check_file(path)
        yield path
        return
    with tempfile.TemporaryDirectory(prefix="cifar-tune-") as folder:
        copy = Path(folder) / path.name
        path.download(copy)
        yield copy


def copy_file(source: AnyPath, target: AnyPath) -> None:
    """Copy a file to a place where nobody looks yet."""
    match source, target:
        case Remote(), Remote():
            source.copy_to(target)
        case _, Remote():
            with on_disk(source) as file:
                target.upload(file)
        case _, Path():
            with on_disk(source) as file:
                shutil.copyfile(file, target)


def remove_folder(folder: AnyPath) -> None:
    """Remove a folder with all in it, if it is there."""
    if isinstance(folder, Remote):
        for file in folder.files():
            file.unlink(missing_ok=True)
    else:
        shutil.rmtree(folder, ignore_errors=True)


def replace_folder(new: Path, folder: AnyPath, *, last: str = "") -> None:
    """Put a folder that was written here in the place of another one, or of none.

    Args:
        new: The folder, in the same one as ``folder`` where that is here; it is moved.
        folder: Where to.
        last: File of it by which others find it. A store cannot move folders: there this one goes
            first and comes last, so that nobody finds half a folder.
    """
    if not isinstance(folder, Remote):
        old = new.with_name("old")
        if folder.exists():
            folder.rename(old)
        new.rename(folder)
        return
    if last:
        (folder / last).unlink(missing_ok=True)
    remove_folder(folder)
    names = [path.relative_to(new) for path in sorted(new.rglob("*")) if path.is_file()]
    for name in sorted(names, key=lambda name: name == Path(last)):
        (folder / name.as_posix()).upload(new / name)


@contextmanager
def scratch(beside: AnyPath, prefix: str) -> Iterator[AnyPath]:
    """Yield a folder in the folder ``beside``, for as long as the block lasts."""
    if not isinstance(beside, Remote):
        beside.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=prefix, dir=beside) as folder:
            yield Path(folder)
        return
    remote = beside / f"{prefix}{uuid4().hex[:8]}"
    try:
        yield remote
    finally:
        remove_folder(remote)
