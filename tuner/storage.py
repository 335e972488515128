"""Where runs are kept: a folder here, or one of a store of objects, named by a URI.

A ``Remote`` answers to the few methods of a ``Path`` that a run folder needs. What is not among
them is done by the functions here, or needs a file on disk, which ``on_disk`` gives.
"""

import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from uuid import uuid4

from tuner.errors import UsageError
from tuner.remote import Remote
from tuner.store import EXTRAS

AnyPath = Path | Remote
"""Where something of a run lies."""


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


def at_a_glance(folder: AnyPath, *names: str) -> AnyPath:
    """Return a folder whose state, and the content of files of these names, is known from now on.

    Of a folder here that is the folder: to ask it takes no time.
    """
    return folder.glance(names) if isinstance(folder, Remote) else folder


def holding(folder: AnyPath, name: str) -> list[AnyPath]:
    """Return the folders in ``folder`` with a file of this name, sorted; see ``at_a_glance``."""
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


@contextmanager
def on_disk(path: AnyPath) -> Iterator[Path]:
    """Yield a file as one on disk, for what reads no other; of a store, a copy for a while."""
    if not isinstance(path, Remote):
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
